"""`RolloutTrainer`: a `GroupTrainer` whose groups are sampled from the policy as it trains: the base of online EXO, PPO, RLOO.

Optimizer steps come in blocks (`train.schedule`). At a block's first step its prompts get K completions each from the policy
of that moment, rewards, and the log-probs of the frozen reference; the block's steps train on these groups, `passes_per_block`
times over. A checkpoint holds the groups of the block that it stands in, and what is drawn depends on (seed, block) alone and
takes nothing from torch's random state: a training that was interrupted equals one that was not, to the bit.

What a subclass says:

- `losses(model, values, batch)` [B]: as for any `GroupTrainer` (and `values`, `count`, if it needs others). The batch has
  `reference_logprobs` and `rewards`.
- `experience(groups)`: tensors [n, ...], one row a group, that are computed once a block with the model that drew it (values,
  token log-probs, advantages). They are kept beside the groups, and in checkpoints. None unless overridden.
- `inputs_of(groups, tensors)`: what `training_step` is given of some of the block's groups; `collate` unless overridden. Each
  group has `sampler_logprobs`, log mu with mu the policy that drew the block. A subclass that hands on other tensors than a
  `GroupBatch` has needs a `training_step` of its own.
- `checked(groups)`: a last look at the block's groups when they are new.

Shape legend: B groups, K completions, n groups of a block.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from exoalign import adapters
from exoalign.data.collate import collate
from exoalign.data.formats import PromptRow
from exoalign.errors import ConfigError, DataError, TrainingError
from exoalign.groups import Group
from exoalign.sampling import TransformersSampler
from exoalign.sampling.protocol import assemble
from exoalign.train.group_trainer import GroupTrainer
from exoalign.train.preflight import tokens_per_pass
from exoalign.train.reference import check_agreement, logprobs_of
from exoalign.train.rollout_block import Block
from exoalign.train.rollout_config import RolloutConfig
from exoalign.train.schedule import Schedule

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Score = Callable[[Sequence[Group]], list[Group]]
"""Groups with completions -> the same with rewards. It must say the same of the same groups each time."""


class RolloutTrainer(GroupTrainer):
    """What training on the policy's own samples needs; see this file's head for what a subclass says.

    Args:
        model: the policy, or its folder or hub id (then loaded in float32).
        args: the settings.
        prompts: to sample after.
        score: gives groups their rewards.
        processing_class: the tokenizer.
        peft_config: train a fresh adapter; the reference is then the model with the adapter off, and needs no memory.
        ref_model: the reference; the policy as it is now where none is given (a copy is kept).
        report: called with the number of completions that were drawn.
        kwargs: further arguments of `transformers.Trainer`.

    Attributes:
        block: the groups that are trained on now, None before the first step.
        sampled_tokens: tokens that were drawn so far, in all.

    Raises:
        DataError: if there are no prompts, or one leaves no room for a completion.
        ConfigError, ModelError, TrainingError: as `GroupTrainer`; and with several processes.
    """

    args: RolloutConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: RolloutConfig,
        prompts: Sequence[PromptRow],
        score: Score,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        ref_model: PreTrainedModel | None = None,
        report: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        if not prompts:
            raise DataError("no prompts to sample after: the data is empty")
        if args.world_size > 1:
            raise ConfigError(f"{args.world_size} processes: training on the policy's own samples uses one")
        if args.auto_find_batch_size:
            raise ConfigError(
                "auto_find_batch_size would change which prompts a step has; set max_tokens_per_pass instead"
            )
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        plan = (len(prompts), per_step, args.resample_every, args.passes_per_block)
        self.schedule = (
            Schedule(*plan, args.max_steps, args.seed)
            if args.max_steps > 0
            else Schedule.for_epochs(*plan, args.num_train_epochs, args.seed)
        )
        args = copy.copy(args)
        args.max_steps = self.schedule.steps
        self.prompts, self.score = list(prompts), score
        self.block: Block | None = None
        self.sampled_tokens, self._report = 0, report
        self.temperature = args.temperature
        super().__init__(model, args, [], None, processing_class, peft_config, **kwargs)
        # transformers counts batches: it goes through as many numbers as there are groups in all steps, once
        self.train_dataset, self.data_collator = range(self.schedule.steps * per_step), _no_tensors
        self._ids = self.sampler.encode(
            [row.prompt for row in prompts], args.sampling(0), [row.source for row in prompts]
        )
        self._adapter_off = ref_model is None and peft_config is not None
        self._same_at_first = ref_model is None
        if ref_model is None and not self._adapter_off:
            ref_model = copy.deepcopy(self.model)
        self.ref_model = None if ref_model is None else ref_model.to(self.args.device).requires_grad_(False).eval()  # type: ignore[arg-type]

    # What a subclass may say.

    def experience(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Tensors [n, ...] on the CPU that the steps of a new block need besides its groups."""
        return {}

    def inputs_of(self, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What `training_step` is given of B groups and their rows of the block's tensors, on the CPU."""
        return collate(groups).as_dict()

    def checked(self, groups: list[Group]) -> list[Group]:
        """A new block's groups as they are trained on."""
        return groups

    # How a block comes about.

    @contextlib.contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The frozen reference, while the context lasts."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with adapters.switched_off(self.model):
            yield self.model

    @functools.cached_property
    def sampler(self) -> TransformersSampler:
        """What draws from the policy."""
        tokenizer: Any = self.processing_class
        return TransformersSampler(self.model, tokenizer, batch_size=self.args.sampling_batch_size, name="policy")

    def make_block(self, number: int) -> Block:
        """Sample and score a block's prompts with the model as it is."""
        settings, rows = self.args.sampling(number), [self.prompts[i] for i in self.schedule.prompts_of(number)]
        asked, sources = [row.prompt for row in rows], [row.source for row in rows]
        found = {}
        for draws in self.sampler.draw(asked, settings, sources):
            found.update({(draw.prompt, draw.k): draw for draw in draws})
            if self._report:
                self._report(len(draws))
        ids = [self._ids[i] for i in self.schedule.prompts_of(number)]
        sampling = {"backend": "transformers", "model": "policy", "online_block": number, **settings.as_dict()}
        groups = []
        for i, row in enumerate(rows):
            kept = {"tokenizer": self.sampler.vocabulary, "sampler": sampling}
            own = {} if row.row is None else {"row": dict(row.row)}
            draws = [found[i, k] for k in range(settings.k)]
            groups.append(assemble(row.prompt, row.source, ids[i], draws, {**kept, **own}))
        self.sampled_tokens += sum(len(ids) for group in groups for ids in group.completion_ids or ())
        groups = self.checked(self._with_reference(self._rewarded(groups), check=number == 0))
        return Block(number, groups, self.experience(groups))

    def _rewarded(self, groups: list[Group]) -> list[Group]:
        scored = list(self.score(groups))
        if len(scored) != len(groups):
            raise TrainingError(f"the score function returned {len(scored)} groups for {len(groups)}; expected each")
        for group in scored:
            if group.rewards is None:
                raise TrainingError(f"{group.where}: the score function gave it no rewards; expected one a completion")
        return scored

    def _with_reference(self, groups: list[Group], *, check: bool) -> list[Group]:
        how: dict[str, Any] = {
            "bf16": self.args.bf16,
            "temperature": self.temperature,
            "max_tokens": self.tokens_per_pass,
        }
        with self.reference() as model:
            rows = logprobs_of(groups, model, **how)
        for group, row in zip(groups, rows, strict=True):
            if not np.isfinite(row).all():
                raise TrainingError(f"{group.where}: a reference log-prob is not finite: {row}; look at its weights")
        groups = [replace(group, reference_logprobs=row) for group, row in zip(groups, rows, strict=True)]
        if check and self._same_at_first and self.state.global_step == 0:
            check_agreement(groups, self.model, **how)
        return groups

    # What transformers' loop is given.

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of the step that begins: out of the block's groups, which are drawn first if the block is new.

        transformers calls it when the step before is done. What its loader gives, which has been fetched before that, is
        a place only.
        """
        for _ in range(num_batches):
            next(epoch_iterator)
        step = self.state.global_step
        number = self.schedule.block_of(step)
        if self.block is None or self.block.number != number:
            self.block = self.make_block(number)
        block, rows, size = self.block, self.schedule.rows_of(step), self.args.per_device_train_batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = [
            self.inputs_of(
                [block.groups[i] for i in part], {name: values[part] for name, values in block.tensors.items()}
            )
            for part in parts
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens that go through the model at once: room for the longest prompt with completions of full length."""
        if self._budget is None:
            longest = max(self._ids, key=len)
            completions = ((0,) * self.args.max_new_tokens,) * self.args.k
            largest = Group("", ("",) * self.args.k, prompt_ids=tuple(longest), completion_ids=completions)
            self._budget = tokens_per_pass(self.model, self.args, [largest])
        return self._budget

    def known_groups(self) -> Iterable[Group]:
        """The block's groups."""
        return self.block.groups if self.block else []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with what the block's samples are like: mean reward and length, and their KL from the reference."""
        if "loss" in logs and self.block is not None:
            logs = {**logs, **self.block.metrics(), "sampled_tokens": float(self.sampled_tokens)}
        super().log(logs, start_time)

    # Checkpoints.

    def _save_notes(self, folder: Path) -> None:
        super()._save_notes(folder)
        if self.block is None or self.schedule.block_of(self.state.global_step) != self.block.number:
            return
        self.block.save(folder)

    def notes(self) -> dict[str, Any]:
        """And the tokens drawn so far."""
        return {**super().notes(), "sampled_tokens": self.sampled_tokens}

    def restore_notes(self, folder: Path) -> dict[str, Any]:
        """And the block that the checkpoint stands in; where it stands between two, the next is drawn."""
        record = super().restore_notes(folder)
        self.sampled_tokens = record["sampled_tokens"]
        self.block = Block.load(folder, self.schedule.block_of(self.state.global_step))
        return record


def _no_tensors(places: Sequence[int]) -> dict[str, Tensor]:
    """What transformers' loader hands on: `get_batch_samples` takes the step's place only."""
    return {"places": torch.tensor(places)}
