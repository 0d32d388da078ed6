"""Talking to a team in a terminal: every agent's action as it happens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.text import Text

from mappa_jax.serving.episodes import TEAM, Answer, Served, Watch, answer, check
from mappa_jax.serving.errors import ApiError
from mappa_jax.serving.protocol import ChatMessage, ChatRequest
from mappa_jax.types import Action, Observation

FOLDED = 8  # lines of a tool's output that are shown at once
WIDTH = 400  # characters of such a line
HELP = """\
Every line is a task for the team. Besides:
  /agents  who they are
  /trace   the last answer's actions, whole
  /help    this
  /quit    leave (or Ctrl-D)
Ctrl-C stops the answer that is under way."""


def plain(text: str) -> str:
    """`text` without what would command the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def folded(text: str, lines: int = FOLDED) -> str:
    """The first lines, and how many more there are."""
    rows = text.rstrip("\n").split("\n")
    shown = [row if len(row) <= WIDTH else row[:WIDTH] + " ..." for row in rows[:lines]]
    if (more := len(rows) - lines) > 0:
        shown.append(f"... {more} more lines, see /trace")
    return "\n".join(shown)


def said_by_tool(seen: Observation) -> str:
    """What a program's run gave, in plain lines."""
    parts = [seen.stdout.rstrip("\n"), seen.stderr.rstrip("\n")]
    if seen.limit:
        parts.append(f"stopped: {seen.limit} limit")
    elif seen.exit_status:
        parts.append(f"exit status {seen.exit_status}")
    return "\n".join(part for part in parts if part) or "(no output)"


class Terminal:
    """A conversation.

    Args:
      served: whom to talk to.
      console: where it is shown; plain lines where that is no terminal.
      read: the next line, or None at the end.
      who: the team, or one agent, which then remembers the conversation.
    """

    def __init__(
        self,
        served: Served,
        console: Console,
        read: Callable[[], Awaitable[str | None]],
        who: str = TEAM,
    ):
        self._served = served
        self._console = console
        self._read = read
        self._who = who
        self._chat: list[ChatMessage] = []
        self._last: list[Action] = []
        self._working: asyncio.Task[Answer] | None = None

    def interrupt(self) -> None:
        """Ctrl-C: stops the answer that is under way."""
        if self._working is None:
            self._say("nothing is under way; /quit or Ctrl-D leaves", "dim")
        else:
            self._working.cancel()

    async def run(self) -> None:
        """Until there is no further line, or /quit."""
        served = self._served
        names = " -> ".join(role.name for role in served.stage.workflow.roles)
        self._say(f"{self._who}: {names}, after {served.step} iterations; /help helps")
        while True:
            if self._console.is_terminal:
                self._console.print("> ", end="", style="bold")
            line = await self._read()
            if line is None or line.strip() == "/quit":
                return
            if line.strip():
                await self._handle(line.strip())

    async def _handle(self, line: str) -> None:
        if not line.startswith("/"):
            await self._ask(line)
        elif line == "/help":
            self._say(HELP)
        elif line == "/agents":
            self._show_agents()
        elif line == "/trace":
            self._show_trace()
        else:
            self._say(
                f"{line.split()[0]}: there is no such command; /help helps", "red"
            )

    async def _ask(self, line: str) -> None:
        chat = [*self._chat, ChatMessage(role="user", content=line)]
        request = ChatRequest(model=self._who, messages=chat)
        self._last = []
        try:
            check(self._served, request)
            asked = answer(
                *(self._served, request, 0, secrets.randbits(63)),
                Watch(self._show_action),
            )
            self._working = asyncio.create_task(asked)
            done = await self._working
        except ApiError as e:
            self._say(e.message, "red")
            return
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise
            self._say("stopped", "red")
            return
        finally:
            self._working = None
        self._say("answer", "bold green")
        self._say(done.content or "(nothing)")
        if self._who != TEAM:
            said = ChatMessage(role="assistant", content=done.content)
            self._chat = [*chat, said]

    def _show_action(self, action: Action) -> None:
        self._last.append(action)
        if self._who != TEAM:
            return
        cut = ", cut at its limit" if action.finish == "length" else ""
        self._say(f"{action.agent} ({len(action.token_ids)} tokens{cut})", "bold cyan")
        self._say(action.content or "(nothing)")
        if action.observation is not None:
            seen = action.observation
            self._say(f"  ran its program, {seen.seconds:.1f} s:", "yellow")
            said = folded(said_by_tool(seen))
            self._say("\n".join(f"  | {row}" for row in said.split("\n")), "dim")

    def _show_agents(self) -> None:
        for role in self._served.stage.workflow.roles:
            config = self._served.stage.seats[role.name].config
            tool = ", runs programs" if role.uses_tool else ""
            self._say(
                f"{role.name} ({role.title}{tool}): {role.duty}; {config.max_turns} x "
                f"{config.max_new_tokens} tokens at most"
            )

    def _show_trace(self) -> None:
        if not self._last:
            self._say("no answer yet")
        for action in self._last:
            self._say(f"{action.agent}, turn {action.turn + 1}, was shown", "bold cyan")
            for message in action.messages:
                self._say(f"[{message.role}] {message.content}", "dim")
            self._say("and wrote", "bold cyan")
            self._say(action.text)
            if action.observation is not None:
                self._say("its program gave", "yellow")
                self._say(said_by_tool(action.observation))

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(plain(text), style=style), soft_wrap=True)
