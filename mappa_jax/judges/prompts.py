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
from typing import Literal

from mappa_jax.config import JudgeConfig, WorkflowConfig
from mappa_jax.text import shown_names
from mappa_jax.types import JudgeRequest, Message, Observation, Role

CHARS_PER_TOKEN = 4  # of JudgeConfig.field_tokens and prompt_tokens
NONCE_CHARS = 16
KEPT_TOKENS = 64  # of a field, however long the others are
# Which fields give way first where all together are too long.
SACRIFICE = ("received", "task", "reference", "trail", "action", "observation")
# How the verdict is written: by the endpoint's JSON schema, fenced in free text, or as
# a single number.
Form = Literal["schema", "fenced", "number"]
OWN = pathlib.Path(__file__).with_name("prompts")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A judge's prompt.

    Attributes:
      text: what is sent.
      sha256: the hex digest of `text` in UTF-8.
      nonce: of its fences.
      form: how the verdict is asked for.
    """

    text: str
    sha256: str
    nonce: str
    form: Form


def render(
    request: JudgeRequest,
    config: JudgeConfig,
    form: Form,
    templates: Mapping[str, str] | None = None,
) -> Prompt:
    """The prompt for one action.

    Fields longer than `field_tokens` (of about 4 characters) lose their middle,
    visibly; so do, in the order of SACRIFICE, those that together exceed
    `prompt_tokens`.

    Args:
      request: the action and what it may be shown with.
      config: the lengths of fields.
      form: how the verdict is to be written.
      templates: of `load_templates`; None: that of the role is read now.

    Raises:
      ValueError: if there is no template for the role, or it is of no use.
    """
    role = request.role.name
    templates = templates or load_templates([role], config.prompts)
    template = templates[role]
    longest = config.field_tokens * CHARS_PER_TOKEN
    raw = {name: shorten(text, longest) for name, text in _foreign(request).items()}
    raw = fit(raw, config.prompt_tokens * CHARS_PER_TOKEN)
    nonce = make_nonce(raw.values())
    fields = {name: fence(name, text, nonce) for name, text in raw.items()}
    fields |= _own(request) | {"nonce": nonce, "answer": _answer(request, form, nonce)}
    fields.setdefault("trail", "")  # of a team that owes no files
    return _prompt(fill(template, fields), nonce, form)


def probe(form: Form) -> Prompt:
    """A short prompt that any judge can answer: the call before the first step."""
    nonce = make_nonce(["probe"])
    asked = _ANSWER[form].format(fields=_FIELDS, nonce=nonce)
    text = f"This is a test of the connection. Let the score be 10. {asked}"
    return _prompt(text, nonce, form)


def _prompt(text: str, nonce: str, form: Form) -> Prompt:
    # A lone surrogate has no UTF-8 form; the text that is sent must be the one hashed.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Prompt(text, digest, nonce, form)


def load_templates(
    roles: Iterable[str],
    folder: str = "",
    workflow: str = WorkflowConfig.name,
    rubric: str = JudgeConfig.rubric,
) -> dict[str, str]:
    """The templates by role, checked.

    Args:
      roles: their names.
      folder: the user's own templates; "" for ours.
      workflow: and
      rubric: WORKFLOW_ROLE_RUBRIC.txt is looked for first, then WORKFLOW_ROLE.txt,
        then ROLE.txt.

    Raises:
      ValueError: naming the file: it is missing, cannot be read, names fields that
        there are not, or lacks one without which no verdict can be given.
    """
    return {role: load_template(role, folder, workflow, rubric) for role in roles}


def load_template(
    role: str,
    folder: str = "",
    workflow: str = WorkflowConfig.name,
    rubric: str = JudgeConfig.rubric,
) -> str:
    """The template of a role's name; see `load_templates`."""
    where = pathlib.Path(folder) if folder else OWN
    names = [f"{workflow}_{role}_{rubric}.txt", f"{workflow}_{role}.txt", f"{role}.txt"]
    path = next((where / n for n in names if (where / n).is_file()), None)
    if path is None:
        raise ValueError(
            f"judge.prompts={folder!r}: no judge prompt for role {role!r} of workflow "
            f"{workflow!r}: neither {' nor '.join(names)} is in {where}; copy the "
            f"files of {OWN} there and edit them"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(
            f"judge.prompts={folder!r}: {path.name} cannot be read ({e}); copy the "
            f"files of {OWN} there and edit them"
        ) from e
    _check_template(text, f"judge.prompts={folder!r}: {path.name}")
    return text


def _check_template(text: str, where: str) -> None:
    found = set(_PLACEHOLDER.findall(text))
    if unknown := found - set(FIELDS):
        raise ValueError(
            f"{where} names {sorted(unknown)}; the fields are {', '.join(FIELDS)}"
        )
    for line in _PLACEHOLDER.sub("", text).splitlines():
        if "{{" in line or "}}" in line:
            raise ValueError(
                f"{where} has a brace too many in {line.strip()!r}; a field is written "
                "{{name}}, without blanks"
            )
    if missing := {"action", "answer"} - found:
        raise ValueError(
            f"{where} lacks {sorted(missing)}: without it no verdict can be given"
        )


def hash_templates(templates: Mapping[str, str]) -> str:
    """Another digest wherever another prompt would be sent."""
    told = sorted(templates.items())
    return hashlib.sha256(repr(told).encode("utf-8")).hexdigest()


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


def fit(texts: Mapping[str, str], longest: int) -> dict[str, str]:
    """`texts` of together at most `longest` characters, shortened by SACRIFICE."""
    out = dict(texts)
    for name in filter(out.__contains__, SACRIFICE):
        excess = sum(map(len, out.values())) - longest
        if excess <= 0:
            break
        room = max(len(out[name]) - excess, KEPT_TOKENS * CHARS_PER_TOKEN)
        out[name] = shorten(out[name], room)
    return out


_FIELDS = (
    '"rationale" (two to four sentences that name what decided the score), then '
    '"score" (a number from 0 to 10)'
)
_CORRECT = (
    ', then "correct" (true or false: whether the final answer is right; null if you '
    "cannot tell)"
)
_ANSWER = {
    "number": "Answer with the score alone, as a whole number from 0 to 10.",
    "schema": "Answer with one JSON object and nothing else: {fields}.",
    "fenced": (
        "Think in as many words as you need. Then give your verdict as one JSON object "
        "({fields}), fenced like the material: a line <<<{nonce} verdict before it and "
        "a line {nonce}>>> after it. Only the last such verdict counts."
    ),
}


def _answer(request: JudgeRequest, form: Form, nonce: str) -> str:
    fields = _FIELDS + _CORRECT if request.is_last else _FIELDS
    return _ANSWER[form].format(fields=fields, nonce=nonce)


def _foreign(request: JudgeRequest) -> dict[str, str]:
    """Texts that we did not write, by the name of their field."""
    action = request.action
    foreign = {
        "task": request.task,
        "received": "\n\n".join(map(_describe_message, action.messages)),
        "action": action.text,
        "observation": _describe_observation(action.observation),
        "reference": request.reference if request.reference is not None else "",
    }
    if any(role.makes for role in request.team):
        foreign["trail"] = _describe_trail(request)
    return foreign


FIELDS = (
    *SACRIFICE,
    *("team", "title", "turn", "length", "about_reference", "nonce", "answer"),
)


def _own(request: JudgeRequest) -> dict[str, str]:
    """Texts that are ours and stand outside the fences."""
    action, role = request.action, request.role
    stopped = {
        "stop": "it stopped of its own accord",
        "length": "it ran into the limit and was cut off",
    }
    if request.reference is None:
        about = "You are not shown the right answer: the field below is empty."
    elif action.outcome is not None:
        about = (
            "The field below is a report on the submission that lies in the folder "
            "after this action. The agent has not seen it."
        )
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
    made = f" It makes: {', '.join(role.makes)}." if role.makes else ""
    return f"- {role.title} ({role.name}, {turns}{tool}): {role.duty}{made}"


def _describe_trail(request: JudgeRequest) -> str:
    """What each action up to this one has done to the files, and what is not there."""
    lines, there = [], ()
    titles = {role.name: role.title for role in request.team}
    for action in (*request.before, request.action):
        seen = action.observation
        who = f"{titles[action.agent]}, turn {action.turn + 1}"
        if seen is None:
            lines.append(f"{who}: ran nothing")
            continue
        there = seen.files
        made = [name for name in seen.files if name not in seen.files_before]
        gone = [name for name in seen.files_before if name not in seen.files]
        did = {"made": made, "changed": seen.changed, "removed": gone}
        told = "; ".join(f"{verb} {shown_names(f)}" for verb, f in did.items() if f)
        lines.append(f"{who}: {told or 'changed no file'}")
    for role in request.team[: request.team.index(request.role) + 1]:
        missing = [name for name in role.makes if name not in there]
        if missing:
            lines.append(f"owed by the {role.title}, not there: {', '.join(missing)}")
    return "\n".join(lines)


def _describe_message(message: Message) -> str:
    return f"[{message.role}]\n{message.content}"


def _describe_observation(seen: Observation | None) -> str:
    if seen is None:
        return "(no code was run)"
    return (
        f"exit status: {seen.exit_status}\n"
        f"limit hit: {seen.limit or 'none'}\n"
        f"files before: {shown_names(seen.files_before) or 'none'}\n"
        f"files after: {shown_names(seen.files) or 'none'}\n"
        f"[stdout]\n{seen.stdout}\n[stderr]\n{seen.stderr}"
    )
