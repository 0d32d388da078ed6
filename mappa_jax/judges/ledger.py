"""Every judge call on record: the cache, the account and the replay of a run.

WORKDIR/judge_ledger.jsonl has two kinds of lines, in the order in which things
happened. {"blob": sha256, "zlib": base64} holds a text once; {"call": {...}} tells of
a call and names its prompt and its raw answer by their hashes. A line is on its way
to the disk when `append` returns. A torn last line, which a crash leaves, is removed
when the ledger is opened. On several hosts each writes a file of its own, host 1
WORKDIR/judge_ledger.host1.jsonl; whoever opens the ledger reads them all.

A call is known by its key, a hash of the provider, the model, its settings and the
prompt; the same content is never paid for twice. It also has an address, where in the
run it was asked: a replay gives at an address what the run got there, missing verdicts
included. Where two addresses shared a call, each has its entry, and only that of the
call itself has attempts and a cost.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.provider import Usage

ANSWERED = "answered"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One call, from the first attempt to the last.

    Attributes:
      key: the hash of its content.
      address: where in the run it was asked; "" for a probe.
      provider, model: who was asked.
      outcome: "answered", or the value of a MissingReason.
      detail: what went wrong, "" where nothing did.
      answer: the raw text; None unless answered.
      usage: tokens, all attempts together.
      usd: its price in US dollars.
      latency_s: of the attempts, pauses between them left out.
      attempts: how many; 0: nobody was asked for this address.
      time: seconds since the epoch.
    """

    key: str
    address: str
    provider: str
    model: str
    outcome: str
    detail: str = ""
    answer: str | None = None
    usage: Usage = Usage()
    usd: float = 0.0
    latency_s: float = 0.0
    attempts: int = 1
    time: float = 0.0


@dataclasses.dataclass
class Spent:
    """What all calls of a ledger have cost."""

    usd: float = 0.0
    tokens: int = 0
    calls: int = 0

    def add(self, entry: Entry) -> None:
        self.usd += entry.usd
        self.tokens += entry.usage.total
        self.calls += entry.attempts > 0

    def plus(self, other: Spent, times: int) -> Spent:
        """This and so many times the other."""
        return Spent(
            usd=self.usd + times * other.usd,
            tokens=self.tokens + times * other.tokens,
            calls=self.calls + times * other.calls,
        )


class Ledger:
    """The calls of one run; in memory only where `path` is None.

    `spent` counts all calls that are known; `settled` those up to the last time that
    hosts told one another of theirs.

    Args:
      path: the file of host 0; made where it is missing, unless `read_only`.
      read_only: a replay: nothing is repaired and nothing may be appended.
      host: whose file is written to.

    Raises:
      JudgeError: a line other than the last is damaged, or there is no file to replay.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False, host: int = 0):
        self.spent = Spent()
        self.settled = Spent()
        self._new: list[Entry] = []
        self._read_only = read_only
        self._answered: dict[str, Entry] = {}
        self._by_address: dict[tuple[str, str], Entry] = {}
        self._blobs: set[str] = set()  # those that our own file holds
        self._file = None
        if path is None:
            return
        if read_only and not path.is_file():
            raise JudgeError(f"judge.replay={str(path)!r}: there is no such ledger")
        own = path if not host else path.with_suffix(f".host{host}.jsonl")
        others = sorted({path, *path.parent.glob(f"{path.stem}.host*.jsonl")} - {own})
        read = [self._read(p) for p in others if p.exists()]
        if own.exists():
            read.append(self._read(own, own=True))
        entries = [entry for part in read for entry in part]
        if len(read) > 1:  # in the order in which things happened, on whichever host
            entries.sort(key=lambda entry: entry.time)
        for entry in entries:
            self._count(entry)
        self.settled = dataclasses.replace(self.spent)
        if not read_only:
            own.parent.mkdir(parents=True, exist_ok=True)
            self._file = own.open("ab")

    def answered(self, key: str) -> Entry | None:
        """The call of this content that was answered, if any was."""
        return self._answered.get(key)

    def at(self, key: str, address: str) -> Entry | None:
        """What the run got at `address`: its last call there, else the answer to the
        same content elsewhere."""
        return self._by_address.get((key, address)) or self._answered.get(key)

    def append(self, entry: Entry, prompt: str) -> None:
        """Records a call; raises OSError where the disk refuses it."""
        if self._read_only:
            raise ValueError("a ledger that is replayed is not written to")
        self._count(entry)
        self._new.append(entry)
        if self._file is None:
            return
        fields = dataclasses.asdict(entry)
        lines = []
        for name, text in (("prompt", prompt), ("answer", entry.answer)):
            fields[name] = None
            if text is not None:
                encoded = text.encode("utf-8", errors="replace")
                fields[name] = digest = hashlib.sha256(encoded).hexdigest()
                if digest not in self._blobs:
                    self._blobs.add(digest)
                    packed = base64.b64encode(zlib.compress(encoded, 9)).decode()
                    lines.append({"blob": digest, "zlib": packed})
        lines.append({"call": fields})
        self._file.write("".join(json.dumps(x) + "\n" for x in lines).encode())
        self._file.flush()

    def take_new(self) -> list[Entry]:
        """What was appended since the last time: what the other hosts must learn."""
        new, self._new = self._new, []
        self.settled = dataclasses.replace(self.spent)
        return new

    def learn(self, entries: list[Entry]) -> None:
        """Counts calls that another host has recorded in its file."""
        for entry in entries:
            self._count(entry)
        self.settled = dataclasses.replace(self.spent)

    def sync(self) -> None:
        """Returns when all that was appended is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _count(self, entry: Entry) -> None:
        self.spent.add(entry)
        self._by_address[entry.key, entry.address] = entry
        if entry.outcome == ANSWERED:
            self._answered[entry.key] = entry

    def _read(self, path: Path, *, own: bool = False) -> list[Entry]:
        """The calls of one file, each of which holds the texts that it needs."""
        whole, texts, entries = 0, {}, []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # torn: the crash came while it was being written
                try:
                    entry = _take(json.loads(line), texts)
                except (ValueError, KeyError, TypeError, zlib.error) as e:
                    raise JudgeError(
                        f"{path}:{number}: not a line of a judge ledger ({e!r}); move "
                        "the file away, or remove that line: its call is asked again"
                    ) from e
                entries += [entry] if entry else []
                whole += len(line)
        if own:
            self._blobs |= set(texts)
            if whole < path.stat().st_size and not self._read_only:
                with path.open("r+b") as file:
                    file.truncate(whole)
        return entries


def _take(row: dict[str, Any], texts: dict[str, str | None]) -> Entry | None:
    """One line: a text, which is kept in `texts`, or a call."""
    if "blob" in row:
        text = zlib.decompress(base64.b64decode(row["zlib"])).decode()
        texts[row["blob"]] = text
        return None
    fields = dict(row["call"])
    texts[fields.pop("prompt")] = None  # it may be long, and is not needed again
    answer = fields.pop("answer")
    if answer is not None:
        fields["answer"] = texts[answer]
    return Entry(**fields | {"usage": Usage(**fields["usage"])})
