"""The near end of a worker process that compares answers (`answer_worker`)."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

# Deaths of a worker that the answer itself has caused, and what they are called.
_ANSWER_SIGNALS = {
    signal.SIGPROF: "timeout",
    signal.SIGSEGV: "crash",
    signal.SIGABRT: "crash",
}
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from mappa_jax.answer_worker import serve; serve(float(sys.argv[2]))"
)


class GradingError(RuntimeError):
    """Grading itself is broken: no worker can be run. Never the answer's doing."""


class AnswerProcess:
    """A place for one worker process: started on need, replaced when it dies.

    Args:
      seconds: processor time for one request.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's reply; a death that the answer has caused is a reply, too.

        Blocks for at most about twice `seconds` of the worker's processor time. Not
        for several threads at once.

        Args:
          request: as `answer_worker` takes it.

        Returns:
          `score` in 0..1 and `reason`.

        Raises:
          GradingError: the worker dies for another cause, twice in a row.
        """
        line = json.dumps(request) + "\n"
        for _ in range(2):  # a worker killed from outside is replaced once
            reply, status = self._exchange(line)
            if reply:
                return json.loads(reply)
            if -status in _ANSWER_SIGNALS:
                return {"score": 0.0, "reason": _ANSWER_SIGNALS[-status]}
        self._errors.seek(0)
        raise GradingError(
            f"an answer worker ended with status {status} twice: "
            f"{self._errors.read()[-2000:].strip() or 'it left no message'}"
        )

    def close(self) -> None:
        """Ends the worker."""
        if self._process is not None:
            self._process.kill()
            self._reap()
        self._errors.close()

    def _exchange(self, line: str) -> tuple[str, int]:
        process = self._process = self._process or self._start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return "", self._reap()
        reply = process.stdout.readline()
        return (reply, 0) if reply.endswith("\n") else ("", self._reap())

    def _start(self) -> subprocess.Popen[str]:
        # Not multiprocessing: spawning there imports the launch script, and with it
        # jax, once more in every worker.
        root = str(pathlib.Path(__file__).resolve().parents[1])
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, root, str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )

    def _reap(self) -> int:
        process, self._process = self._process, None
        process.stdout.close()
        status = process.wait()
        try:
            process.stdin.close()
        except BrokenPipeError:  # what was not yet written has nowhere to go
            pass
        return status
