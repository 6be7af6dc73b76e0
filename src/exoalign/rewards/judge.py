"""A judge with many questions: each is asked once, a few at a time, its answer kept before anything else happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from exoalign.config_judge import JudgeSection
from exoalign.errors import JudgeError
from exoalign.files import cache_folder
from exoalign.finished import Finished
from exoalign.rewards.judge_client import Answer, JudgeClient

_ONLY = (0, 0)
"""The key of an answer: its file of finished rows is told by the question's content."""


class Question(NamedTuple):
    """What is asked, and the row that it is about."""

    text: str
    where: str


class Judge:
    """Asks a judge and keeps its answers. `notes` are what the user should mind before anything is sent.

    Args:
        section: the server and the settings.
        answers: the file that keeps them; a question that has its answer there is not asked again, by whatever run. None is the
            one in `$EXOALIGN_CACHE`.
        report: called with 1 for each new answer.

    Raises:
        ConfigError: as `JudgeClient`.
    """

    def __init__(
        self, section: JudgeSection, answers: Path | None = None, *, report: Callable[[int], None] = lambda n: None
    ) -> None:
        self.section, self.report = section, report
        self.answers = answers or cache_folder() / "judge" / "answers.sqlite"
        self._client = JudgeClient(section)
        self.notes = self._client.notes

    def _kept(self) -> Finished:
        self.answers.parent.mkdir(parents=True, exist_ok=True)
        return Finished(self.answers, None)

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer yet, those with the same text once."""
        with self._kept() as answers:
            return self._missing(questions, answers)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answer to each question, in order.

        Raises:
            JudgeError: if the judge fails, or `max_calls` is spent; the answers that came are kept.
            StoreError: if they cannot be kept.
        """
        with self._kept() as answers:
            missing = self._missing(questions, answers)
            most = len(missing) if self.section.max_calls is None else self.section.max_calls
            self._ask(missing[:most], answers)
            if missing[most:]:
                raise JudgeError(
                    f"the budget is spent: {most} questions were asked (judge.max_calls, --max-calls),"
                    f" {len(missing) - most} are left. What was answered is kept: run it again to go on"
                )
            return [Answer(**self._rows(question, answers).get(_ONLY)) for question in questions]

    def _missing(self, questions: Sequence[Question], answers: Finished) -> list[Question]:
        once = {question.text: question for question in reversed(questions)}
        first = [question for question in questions if once.pop(question.text, None) is not None]
        return [question for question in first if not self._rows(question, answers).keys()]

    def _rows(self, question: Question, answers: Finished) -> Finished:
        return answers.beside({"url": self.section.url, **self._client.request(question.text)})

    def _ask(self, questions: Sequence[Question], answers: Finished) -> None:
        """Ask all, until one fails: then those that are under way are waited for, as they are paid for, and kept."""
        waiting = iter(questions)
        running: dict[Future[Answer], Question] = {}
        failure: BaseException | None = None
        with ThreadPoolExecutor(self.section.concurrency) as pool:
            while True:
                while failure is None and len(running) < self.section.concurrency:
                    question = next(waiting, None)
                    if question is None:
                        break
                    running[pool.submit(self._client.ask, *question)] = question
                if not running:
                    break
                try:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt as interrupt:
                    if failure is not None:
                        raise  # the second time: do not wait
                    failure = interrupt
                    continue
                for future in done:
                    question = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        failure = failure or error
                        continue
                    self._rows(question, answers).add([(_ONLY, future.result().as_dict())])
                    self.report(1)
        if failure is not None:
            raise failure
