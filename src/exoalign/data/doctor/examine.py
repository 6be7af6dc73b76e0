"""Reads groups one by one, keeps what the parts of the doctor count, and puts their findings together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from exoalign.data.doctor.duplicates import Duplicates
from exoalign.data.doctor.findings import Examination, Finding, counted, finding, graded
from exoalign.data.doctor.lengths import Limits, histogram, truncation_findings
from exoalign.data.doctor.parts import Parts
from exoalign.data.doctor.records import parts_of, tokenized
from exoalign.data.doctor.targets import beta_r_table, epsilon_table, ess_of, reward_findings
from exoalign.data.formats import Record
from exoalign.data.set_aside import SetAside, Tally
from exoalign.errors import DataError
from exoalign.groups import Group, completion_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASIDE = (("empty", "empty_completions"), ("same text", "identical_completions"))  # in a reader's reason -> kind


def examine(
    records: Iterable[Record],
    aside: SetAside,
    *,
    source: str = "data",
    kind: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    test: Iterable[Record] | None = None,
    max_prompt_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    beta_pi: float = 0.5,
    beta_r: float | None = None,
    context: int | None = None,
    special: Sequence[str] | None = None,
    near: bool = True,
) -> Examination:
    """Examine a data set, reading it once; no texts are kept.

    Args:
        records: groups, prompts or texts, as a stream or a list.
        aside: the rows that the reader set aside or (tolerated) found malformed; it is looked at after the stream has ended.
        source: the name of the data, for the result.
        kind: pairs, kway, ratings, rankings, prompts or text; told from the records when None.
        tokenizer: for lengths in tokens and its special tokens; without it words are counted, unless groups have token ids.
        test: the records of the test data, to look for the same prompts.
        max_prompt_tokens, max_completion_tokens: budgets whose cost is counted; they need tokens.
        beta_pi, beta_r: with `beta_r`, the target of these is judged too.
        context: the model's context length in tokens, to look for rows that are longer; it needs tokens.
        special: special tokens to look for where no tokenizer is given; those of common chat templates when None.
        near: look for near-duplicates: most of the time that it takes without a tokenizer.

    Raises:
        DataError: budgets without tokens, or whatever `test` raises as it is read.
        ModelError: if the tokenizer can make tokens of no row: it has no usable chat template, or no end-of-sequence token.
    """
    parts = Parts(tokenizer, near, special, Limits(max_prompt_tokens, max_completion_tokens, context))
    for record in tokenized(records, tokenizer, parts.refused):
        parts.add(record)
    other = None
    if test is not None:
        other = Duplicates(near=near)
        for record in test:
            prompt, completions, where = parts_of(record)
            other.add(where, completion_text(completions[0]) if prompt is None else prompt_text(prompt))
    findings = [*_reader_findings(aside, parts), *parts.findings(other)]
    truncation = None
    if max_prompt_tokens is not None or max_completion_tokens is not None:
        if parts.tokens is None:
            raise DataError("budgets count tokens, and there is no tokenizer to count them; give a model")
        truncation = parts.tokens.truncation(max_prompt_tokens, max_completion_tokens)
        findings += truncation_findings(truncation, parts.groups, parts.over_budget.first)
    rewards = parts.rewards.by_k()
    table = beta_r_table(rewards)
    if beta_r is not None:
        findings += reward_findings(rewards, beta_pi=beta_pi, beta_r=beta_r)
    correlation = parts.rewards.length_correlation()
    findings += parts.rewards.findings(correlation)
    chosen: float | None = beta_r or (table["suggested"] if table else None)
    malformed, set_aside = aside.malformed, aside.rows
    read = aside.read or parts.groups + set_aside + malformed
    lengths = parts.words if parts.tokens is None else parts.tokens
    prompt_lengths, completion_lengths, _ = lengths.arrays()
    return Examination(
        source=source,
        kind=kind or " and ".join(sorted(parts.kinds)) or "none",
        rows={
            "read": read,
            "used": read - set_aside - malformed,
            "set_aside": set_aside,
            "malformed": malformed,
        },
        groups=parts.groups,
        prompts=parts.duplicates.different,
        k=dict(sorted(parts.k.items())),
        unit="words" if parts.tokens is None else "tokens",
        lengths={**lengths.summary(), "characters": parts.characters.summary()},
        rewards=parts.rewards.summary(),
        length_correlation=None if correlation is None else correlation[0].as_dict() | {"groups": correlation[1]},
        targets={"beta_r": table, "epsilon": epsilon_table() if "pairs" in parts.kinds else None},
        truncation=truncation,
        histograms={
            "prompt": histogram(prompt_lengths[prompt_lengths >= 0], whole=True),
            "completion": histogram(completion_lengths, whole=True),
            "k": {"edges": [float(k) for k in sorted(parts.k)], "counts": [parts.k[k] for k in sorted(parts.k)]},
            "rewards": histogram([r for matrix in rewards.values() for r in matrix.ravel()]),
            "ess": histogram([] if chosen is None else ess_of(rewards, chosen)),
        },
        findings=graded(findings),
    )


def examine_fast(
    groups: Iterable[Group],
    aside: SetAside | None = None,
    *,
    special: Sequence[str] | None = None,
    beta_pi: float = 0.5,
    beta_r: float | None = None,
) -> Examination:
    """The part that runs before training: all but near-duplicates, lengths in the tokens that the groups have already.

    Args:
        groups: as they will be trained on.
        aside: what the reader set aside.
        special: the model's special tokens, to look for in the texts; those of common chat templates when None.
        beta_pi, beta_r: as in the objective; `beta_r` for an objective from rewards only.
    """
    return examine(groups, aside or SetAside(), beta_pi=beta_pi, beta_r=beta_r, special=special, near=False)


def _reader_findings(aside: SetAside, parts: Parts) -> list[Finding]:
    """Malformed rows and rows set aside, as the reader told them; and a data set without any group."""
    malformed, infinite = (aside.errors.get(kind, Tally()) for kind in ("malformed", "not_finite"))
    found = finding(
        "malformed",
        malformed,
        counted(malformed.count, "malformed row"),
        "mend or remove them: training stops at the first",
        "error",
    )
    found += finding(
        "not_finite",
        infinite,
        f"{counted(infinite.count, 'row')} with a number that is not finite",
        "give these completions a finite reward, or remove the rows: training stops at the first",
        "error",
    )
    if not parts.groups:
        text = "no row can be used: there is nothing to train on"
        found.append(Finding("no_groups", text, "see what was set aside and what is malformed", "error"))
    for reason, rows in aside.reasons.items():
        kind = next((kind for words, kind in _ASIDE if words in reason), "set_aside")
        text = f"{counted(rows.count, 'row')} set aside: {reason}"
        found += finding(kind, rows, text, "nothing is trained on them; mend them if that is not meant")
    return found
