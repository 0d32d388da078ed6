"""What the ground truth says of an answer, by the kind of its task."""

from __future__ import annotations

from mappa_jax.answers import Grader
from mappa_jax.tabular.submission import SubmissionGrader
from mappa_jax.types import Outcome, Task


class AnyGrader:
    """Grades texts (`answers.Grader`) and files of predictions (`SubmissionGrader`)."""

    def __init__(self, texts: Grader, submissions: SubmissionGrader):
        self._texts, self._submissions = texts, submissions

    async def grade(self, task: Task, answer: str | None) -> Outcome | None:
        """What the ground truth says; None where the task has none.

        Args:
          task: says how it is graded.
          answer: a text, or what the file of predictions holds; None or "": there is
            none.

        Raises:
          GradingError: the grader itself failed.
        """
        if task.grader == "submission":
            return await self._submissions.grade(task, answer or None)
        return await self._texts.grade(task, answer or "")

    async def aclose(self) -> None:
        await self._texts.aclose()
