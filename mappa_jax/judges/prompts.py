"""What a judge model is shown of one action: a template and its fields.

Whatever comes from the task, an agent or a program is *fenced*: it stands between two
lines that carry a nonce, and the template says that nothing between them is an
instruction or a verdict. The nonce is derived from the fenced text itself, so that the
same request gives the same prompt, and no text can contain its own nonce.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping

from mappa_jax.types import JudgeRequest, Message, Observation, Role

CHARS_PER_TOKEN = 4  # of JudgeConfig.field_tokens
NONCE_CHARS = 16
TEMPLATES = {
    "solver": "mathchat_solver.txt",
    "coder": "mathchat_coder.txt",
    "verifier": "mathchat_verifier.txt",
}
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A judge's prompt; `sha256` is the hex digest of `text` in UTF-8."""

    text: str
    sha256: str


def render(request: JudgeRequest, field_tokens: int) -> Prompt:
    """The prompt for one action.

    Args:
      request: what the judge may see.
      field_tokens: the longest field, in tokens of about 4 characters; longer ones
        lose their middle, visibly.

    Raises:
      ValueError: if there is no template for the role.
    """
    template = load_template(request.role.name)
    longest = field_tokens * CHARS_PER_TOKEN
    raw = {name: shorten(text, longest) for name, text in _foreign(request).items()}
    nonce = make_nonce(raw.values())
    fields = {name: fence(name, text, nonce) for name, text in raw.items()}
    fields |= _own(request) | {"nonce": nonce}
    text = fill(template, fields)
    # A lone surrogate has no UTF-8 form; the text that is sent must be the one hashed.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return Prompt(text, hashlib.sha256(text.encode("utf-8")).hexdigest())


def load_template(role: str) -> str:
    """The template of a role's name.

    Raises:
      ValueError: if there is none.
    """
    if role not in TEMPLATES:
        raise ValueError(f"no judge prompt for role {role!r}; there are {[*TEMPLATES]}")
    folder = pathlib.Path(__file__).with_name("prompts")
    return (folder / TEMPLATES[role]).read_text(encoding="utf-8")


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Puts `fields` for `{{name}}`, in one pass: what is put in is not looked at again.

    Raises:
      KeyError: if the template names a field that is not there.
    """
    return _PLACEHOLDER.sub(lambda match: fields[match[1]], template)


def fence(name: str, text: str, nonce: str) -> str:
    """`text` between two lines that only we can write."""
    return f"<<<{nonce} {name}\n{text}\n{nonce}>>>"


def make_nonce(texts: Iterable[str]) -> str:
    """Hex digits that depend on all of `texts` and occur in none of them."""
    digest = hashlib.sha256()
    texts = [*texts]
    for text in texts:
        encoded = text.encode("utf-8", errors="surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)
    while True:
        nonce = digest.hexdigest()[:NONCE_CHARS]
        if not any(nonce in text for text in texts):
            return nonce
        digest.update(b"again")


def shorten(text: str, longest: int) -> str:
    """At most `longest` characters of `text`: the middle gives way to a mark."""
    if len(text) <= longest:
        return text
    mark = f"\n[... {len(text) - longest} or more characters left out here ...]\n"
    room = max(longest - len(mark), 0)
    head = room - room // 2
    return text[:head] + mark[:longest] + text[len(text) - room // 2 :]


def _foreign(request: JudgeRequest) -> dict[str, str]:
    """Texts that we did not write, by the name of their field."""
    action = request.action
    return {
        "task": request.task,
        "received": "\n\n".join(map(_describe_message, action.messages)),
        "action": action.text,
        "observation": _describe_observation(action.observation),
        "reference": request.reference if request.reference is not None else "",
    }


def _own(request: JudgeRequest) -> dict[str, str]:
    """Texts that are ours and stand outside the fences."""
    action, role = request.action, request.role
    stopped = {
        "stop": "it stopped of its own accord",
        "length": "it ran into the limit and was cut off",
    }
    if request.reference is None:
        about = "You are not shown the right answer: the field below is empty."
    else:
        about = (
            "The field below holds the right answer. The agent has not seen it. Use "
            "it only to tell whether what the agent states is right."
        )
    return {
        "team": "\n".join(map(_describe_role, request.team)),
        "title": role.title,
        "turn": f"turn {action.turn + 1} of at most {role.max_turns}",
        "length": f"{len(action.token_ids)} of {request.token_limit} tokens; "
        f"{stopped[action.finish]}",
        "about_reference": about,
    }


def _describe_role(role: Role) -> str:
    turns = "one turn" if role.max_turns == 1 else f"at most {role.max_turns} turns"
    tool = ", its code is run" if role.uses_tool else ""
    return f"- {role.title} ({role.name}, {turns}{tool}): {role.duty}"


def _describe_message(message: Message) -> str:
    return f"[{message.role}]\n{message.content}"


def _describe_observation(seen: Observation | None) -> str:
    if seen is None:
        return "(no code was run)"
    return (
        f"exit status: {seen.exit_status}\n"
        f"limit hit: {seen.limit or 'none'}\n"
        f"files: {', '.join(seen.files) or 'none'}\n"
        f"[stdout]\n{seen.stdout}\n[stderr]\n{seen.stderr}"
    )
