"""Makes tests/models/smollm2_greedy.json: greedy continuations by `transformers`.

python launch/weights.py smollm2-135m-instruct
pip install torch==2.13.0
python tests/models/make_continuations.py FOLDER-PRINTED-BY-THE-FIRST-LINE
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

OUT = Path(__file__).with_name("smollm2_greedy.json")
NEW_TOKENS = 24
PROMPTS = (
    "What is the capital of France?",
    "Compute 12 + 30.",
    "Write a haiku about rain.",
    "Name three prime numbers.",
    "Explain photosynthesis in one sentence.",
    "Translate 'good morning' into Spanish.",
    "def fibonacci(n):",
    "List the planets of the solar system.",
    "Why is the sky blue?",
    "A train travels 60 km in 40 minutes. How fast is it?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    rows = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[0, len(ids) :].tolist()
        rows.append({"prompt": prompt, "tokens": new, "text": tokenizer.decode(new)})
        print(prompt, "->", rows[-1]["text"])
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
