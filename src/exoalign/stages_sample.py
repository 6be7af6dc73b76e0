"""Sampling as a stage that goes on where it was interrupted: completions are kept batch by batch, groups written at the end.

What a batch holds does not depend on what is done already: a stage that was killed writes the same bytes as one that was not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exoalign.config import ModelSection
from exoalign.config_sample import SampleSection
from exoalign.data.formats import PromptRow
from exoalign.data.table import write_table
from exoalign.files import write_text
from exoalign.finished import Finished
from exoalign.groups import Group, prompt_text
from exoalign.sampling import TransformersSampler
from exoalign.sampling.protocol import Draw, Sampler, SamplingSettings, assemble

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GROUPS, ROWS, SUMMARY = "groups.parquet", "rows.sqlite", "summary.json"
MOST_VALUES, SHOWN = 2000, 3


def settings_of(section: SampleSection, *, k: int, seed: int) -> SamplingSettings:
    """The settings of a recipe's section, with this many completions a prompt."""
    return SamplingSettings(
        k, section.temperature, section.top_p, section.max_new_tokens, seed, section.top_k, tuple(section.stop)
    )


def open_sampler(
    section: SampleSection,
    model: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[], PreTrainedModel],
    *,
    bf16: bool,
    name: str = "base",
) -> Sampler:
    """The sampler of a recipe's section: over the model that `load` gives, or over vLLM, which loads it by itself.

    Raises:
        ModelError: if the model cannot be loaded, or vLLM is not installed.
    """
    if section.backend == "transformers":
        return TransformersSampler(load(), tokenizer, batch_size=section.batch_size, name=name)
    from exoalign.sampling.vllm import VllmSampler

    return VllmSampler(
        model.path,
        tokenizer,
        dtype="bfloat16" if bf16 else "float32",
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        batch_size=section.batch_size,
        name=name,
    )


class Drawn:
    """All completions of some prompts, on the disk: those that an earlier attempt left there are not drawn again.

    Args:
        sampler: draws them.
        rows: the prompts.
        settings: how.
        folder: holds `rows.sqlite`, where sets of other prompts, models or settings may lie too.
        report: called with the number of completions that are there, at once for those that were.
    """

    def __init__(
        self,
        sampler: Sampler,
        rows: Sequence[PromptRow],
        settings: SamplingSettings,
        folder: Path,
        report: Callable[[int], None] = lambda n: None,
    ) -> None:
        self.rows, self.settings = rows, settings
        prompts, sources = [row.prompt for row in rows], [row.source for row in rows]
        self.ids = sampler.encode(prompts, settings, sources)
        self.provenance = sampler.provenance(settings)
        self.file, self.made_with = folder / ROWS, {**self.provenance, "prompts": self.ids}
        with Finished(self.file, self.made_with) as done:
            keys = done.keys()
            report(len(keys))
            for draws in sampler.draw(prompts, settings, sources, skip=keys):
                done.add(((draw.prompt, draw.k), draw.as_dict()) for draw in draws)
                report(len(draws))

    def __iter__(self) -> Iterator[Group]:
        """A group for each prompt, in order, one at a time."""
        with Finished(self.file, self.made_with) as done:
            stored = iter(done)
            for row, ids in zip(self.rows, self.ids, strict=True):
                draws = [Draw.from_dict(*next(stored)) for _ in range(self.settings.k)]
                own = {} if row.row is None else {"row": row.row}
                yield assemble(row.prompt, row.source, ids, draws, {**self.provenance, **own})


def sample(
    sampler: Sampler,
    rows: Sequence[PromptRow],
    settings: SamplingSettings,
    folder: Path,
    report: Callable[[int], None] = lambda n: None,
) -> str:
    """K completions for each prompt -> groups.parquet, summary.json; rows.sqlite holds what is done meanwhile.

    Args:
        sampler: draws them.
        rows: the prompts.
        settings: how.
        folder: where the stage works; what an earlier attempt left there is used.
        report: called with the number of completions that are there.

    Returns:
        A few words on what was done.

    Raises:
        DataError: naming a prompt without tokens, or one that leaves no room in the context.
        ModelError: if the model's logits are not finite.
        StoreError: if there is no space left, or rows.sqlite is damaged.
    """
    seen = _Seen()
    write_table(map(seen.add, Drawn(sampler, rows, settings, folder, report)), folder / GROUPS)
    write_text(folder / SUMMARY, json.dumps(seen.summary(settings), indent=1))
    return f"{len(rows)} prompts x {settings.k} completions, {seen.share('stop'):.0%} ended by themselves"


class _Seen:
    """What a summary needs of groups that are seen once."""

    def __init__(self) -> None:
        self.finish, self.lengths, self.distinct = list[str](), list[int](), list[int]()
        self.texts = list[dict[str, str]]()

    def add(self, group: Group) -> Group:
        self.finish += group.provenance["finish"]
        self.lengths += [len(ids) for ids in group.completion_ids or ()]
        self.distinct.append(len(set(group.completion_ids or ())))
        if len(self.texts) < SHOWN:
            self.texts.append({"label": prompt_text(group.prompt), "text": str(group.completions[0])})
        return group

    def share(self, finish: str) -> float:
        """Of all completions those that ended so."""
        return self.finish.count(finish) / max(1, len(self.finish))

    def summary(self, settings: SamplingSettings) -> dict[str, Any]:
        """The stage's part of the report."""
        numbers: list[dict[str, Any]] = [
            {"label": "prompts", "value": len(self.distinct)},
            {"label": "completions a prompt", "value": settings.k},
            {"label": "ended by themselves", "value": self.share("stop"), "note": "at the model's end token"},
        ]
        if settings.stop:
            numbers.append({"label": "ended at a stop string", "value": self.share("stop_string")})
        numbers.append(
            {
                "label": "cut at the limit",
                "value": self.share("length"),
                "note": f"after max_new_tokens, {settings.max_new_tokens}",
            }
        )
        if self.lengths:
            numbers += [
                {"label": "mean length", "value": statistics.fmean(self.lengths), "note": "tokens"},
                {"label": "distinct completions a prompt", "value": statistics.fmean(self.distinct)},
            ]
        step = -(-len(self.lengths) // MOST_VALUES) or 1
        series = [{"name": "completions", "values": self.lengths[::step]}]
        return {
            "numbers": numbers,
            "histograms": [{"title": "Length of completions", "x_label": "tokens", "series": series}],
            "texts": [{"title": "First completions", "rows": self.texts}],
        }
