"""A judge's scores as a column of rewards: a `Scorer` like a reward function or a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exoalign.config_judge import JudgeSection
from exoalign.errors import ConfigError, JudgeError
from exoalign.groups import Group
from exoalign.rewards.comparisons import questions_of, read, singles
from exoalign.rewards.judge import Judge
from exoalign.rewards.judge_prompt import load_judge_prompt


class JudgeScorer:
    """Scores each completion alone, by a pointwise prompt.

    Args:
        section: the judge; its `kind` is pointwise.
        name: of its column.
        seed: of the delimiters.

    Raises:
        ConfigError: if the judge compares pairs, or cannot be set up.
    """

    def __init__(self, section: JudgeSection, *, name: str = "judge", seed: int = 0) -> None:
        if section.kind != "pointwise":
            raise ConfigError(
                f"judge.kind is {section.kind}: a scorer gives each completion a number; set it to pointwise"
            )
        self.name, self.section, self.seed = name, section, seed
        self._prompt = load_judge_prompt(section.prompt, section.kind)
        self._judge = Judge(section)

    def identity(self) -> dict[str, Any]:
        """The server, the model, the question and the seed."""
        return {"judge": self.section.identity(), "question": self._prompt.text, "seed": self.seed}

    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """The score of each completion of each group.

        Raises:
            JudgeError: if the judge fails, the budget is spent, or an answer is no score: naming the row, with the answer.
        """
        cases = singles(groups)
        asked = questions_of(cases, self._prompt, seed=self.seed)
        answers = self._judge.ask([question for questions in asked for question in questions])
        scores: list[list[float]] = [[] for _ in groups]
        invalid = []
        for one in read(cases, asked, answers, self._prompt):
            score = one.verdicts[0].score
            if score is None:
                said = (one.answers[0].text or "")[:60]
                invalid.append(
                    f"{one.case.where}, completion {one.case.completions[0] + 1}: {one.verdicts[0].why} ({said!r})"
                )
            else:
                scores[one.case.group].append(score)
        if invalid:
            raise JudgeError(
                f"{len(invalid)} of {len(cases)} answers of {self.section.model} are no score; the first: {invalid[0]}."
                " A scorer needs one for each completion: change judge.prompt, judge.max_tokens or the judge, or use `exoalign"
                " judge`, which leaves such groups out and counts them"
            )
        return [tuple(row) for row in scores]
