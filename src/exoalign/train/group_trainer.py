"""`GroupTrainer`: transformers' Trainer on groups of completions, for any loss that is a function of one value a completion.

A step's groups go through the model in passes of bounded size. Each completion gets a value (`values`, [B, K]: its log-prob,
or a reward model's score), each group a loss (`losses`, [B]), and what a step minimises is the sum of the losses over what
they `count`.

Shape legend: B groups, K completions.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer

from exoalign import adapters
from exoalign.data.collate import collate, holds
from exoalign.data.group_table import with_ids
from exoalign.errors import TrainingError
from exoalign.groups import Group, GroupBatch
from exoalign.logprobs.engine import completion_logprobs
from exoalign.logprobs.passes import values_in_passes
from exoalign.models import autocast, load_model, load_tokenizer, without_dropout
from exoalign.train.arguments import GroupConfig
from exoalign.train.checkpoint_folder import CheckpointFolder
from exoalign.train.diagnostics import refuse_lost_updates
from exoalign.train.gradient import accumulate
from exoalign.train.preflight import tokens_per_pass

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GroupTrainer(Trainer, ABC):
    """What any training on groups needs; a subclass says what it minimises with `losses`.

    Args:
        model: the model, or the folder or hub id of a causal language model (then loaded in float32, with its tokenizer).
        args: the settings.
        train_dataset: groups; token ids are added where they are missing.
        eval_dataset: groups to compute the loss on, as for any Trainer.
        processing_class: the tokenizer.
        peft_config: train a fresh adapter with these settings and leave the model's own weights as they are.
        kwargs: further arguments of `transformers.Trainer`.

    Attributes:
        trained_tokens: tokens that went through the model in training so far, a prompt counted once for all its completions.
        temperature: the logits are divided by it in the default `values`.
        values_are: what `values` finds, in words for an error.

    Raises:
        DataError, ModelError, TrainingError: when data, model and settings do not fit; see the messages.
    """

    args: GroupConfig
    model: PreTrainedModel
    train_dataset: Any
    eval_dataset: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by what the whole step counts
    temperature: float = 1.0
    values_are = "log-probs"
    batch_type: type[GroupBatch] = GroupBatch  # what `losses` and `values` are given

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: GroupConfig,
        train_dataset: Sequence[Group],
        eval_dataset: Sequence[Group] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model)
            model = load_model(model)
        if processing_class is None:
            raise TrainingError("no tokenizer: give processing_class with the model")
        if peft_config is not None:
            model = adapters.wrap(model, peft_config)  # type: ignore[assignment]  # it hands on whatever its model has
        if not any(weight.requires_grad for weight in model.parameters()):
            raise TrainingError(
                "no weight of the model is trainable; load its adapter with is_trainable=True, or with exoalign.load_model"
            )
        refuse_lost_updates(model, args.learning_rate)
        if args.disable_dropout:
            without_dropout(model)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self.trained_tokens = 0
        self._budget: int | None = None
        self.checkpoints: CheckpointFolder | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=with_ids(train_dataset, processing_class, context=context),
            eval_dataset=None if eval_dataset is None else with_ids(eval_dataset, processing_class, context=context),
            processing_class=processing_class,
            data_collator=_tensors,
            **kwargs,
        )

    # What a subclass says.

    @abstractmethod
    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The loss of each group, [B], given the values [B, K] of its completions; 0 stands where a completion is absent.

        While `model.training`, a subclass may tell `note` what else to log.
        """

    def values(self, model: torch.nn.Module, batch: GroupBatch) -> Tensor:
        """What the loss needs of each completion, [B, K]: log pi(y_k|x) in nats, unless a subclass says otherwise.

        `batch` may be a part of the step's groups, or one group with some of its completions.
        """
        with autocast(batch.prompt_ids.device, bf16=self.args.bf16):
            return completion_logprobs(model, batch, temperature=self.temperature)

    def count(self, batch: GroupBatch) -> int:
        """What the losses of a batch are divided by, summed over a step: its groups, unless a subclass says otherwise."""
        return len(batch.prompt_lengths)

    # What it does with that.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train.

        Raises:
            TrainingError: if the loss is not finite at some step, or a weight after the last.
        """
        output = super().train(*args, **kwargs)
        self._check_weights()
        return output

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise TrainingError(
                f"after step {self.state.global_step} a weight is not finite; lower learning_rate; nothing was saved from"
                " this step"
            )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over the groups of a step, in passes of at most `max_tokens_per_pass` tokens."""
        model.train()
        prepare = getattr(self.optimizer, "train", None)  # of schedule-free optimizers
        if callable(prepare):
            prepare()
        batch = self.batch_type(**self._prepare_inputs(inputs))
        self.trained_tokens += int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())

        def backward(loss: Tensor, last: bool) -> None:  # several processes exchange gradients after the last pass only
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                self.accelerator.backward(loss)

        return accumulate(
            model,
            batch,
            lambda values, part: self._finite_losses(model, values, part),
            total=self.count(batch) if num_items_in_batch is None else num_items_in_batch,
            max_tokens=self.tokens_per_pass,
            values=self.values,
            repeatable=self.args.disable_dropout,
            backward=backward,
        )

    @property
    def tokens_per_pass(self) -> int:
        """Tokens that go through the model at once: see `max_tokens_per_pass`."""
        if self._budget is None:
            self._budget = tokens_per_pass(self.model, self.args, self.train_dataset, self.eval_dataset or [])
        return self._budget

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The losses, summed over the groups of this pass and divided by what the whole step counts."""
        batch = self.batch_type(**inputs)
        values = self.values(model, batch)
        losses = self._finite_losses(model, values, batch)
        loss = losses.sum() / (num_items_in_batch if num_items_in_batch is not None else self.count(batch))
        return (loss, {"values": values}) if return_outputs else loss

    def _finite_losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        losses = self.losses(model, values, batch)
        for b in (~torch.isfinite(losses)).nonzero().flatten().tolist():
            raise TrainingError(
                f"{self.name_of(batch, b)}: the loss at step {self.state.global_step + 1} is {losses[b].item()} and the"
                f" {self.values_are} are {[round(x, 3) for x in values[b].tolist()]}: a weight or one of these is not finite;"
                " lower learning_rate, or look at this group; nothing was saved from this step"
            )
        if model.training:
            self.note(loss=losses.sum())
            self._counted += self.count(batch)
        return losses

    def name_of(self, batch: GroupBatch, b: int) -> str:
        """Where a group of the batch comes from, found again by its tokens and which of them count."""
        found = (group.where for group in self.known_groups() if holds(batch, b, group))
        return next(found, f"group {b + 1} of the batch")

    def known_groups(self) -> Iterable[Group]:
        """All groups that a batch may hold."""
        return itertools.chain(self.train_dataset, self.eval_dataset or [])

    def note(self, **sums: Tensor) -> None:
        """Metrics summed over some groups of a step; `log` divides them by what these groups `count`."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the metrics noted since the last log, as means over what was counted."""
        if "loss" in logs and self._counted:
            totals = torch.stack([*self._sums.values(), torch.tensor(float(self._counted), device=self.args.device)])
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, reduction="sum")
            *sums, counted = totals.tolist()
            logs = {**logs, **{name: value / counted for name, value in zip(self._sums, sums, strict=True)}}
            self._sums, self._counted = {}, 0
        super().log(logs, start_time)

    # Checkpoints.

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self.checkpoints is None else str(self.checkpoints.path)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.checkpoints is None:
            super()._save_checkpoint(model, trial)
            return
        self._check_weights()
        with self.checkpoints.saving(self.state.global_step) as folder:
            super()._save_checkpoint(model, trial)
            self._save_notes(folder)
        self.checkpoints.prune(self.state.best_model_checkpoint)

    def _save_notes(self, folder: Path) -> None:
        text = json.dumps(self.notes())
        (folder / f"notes_{self.args.process_index}.json").write_text(text, encoding="utf-8")

    def notes(self) -> dict[str, Any]:
        """What this process noted since the last log, and the passes that it has trained in: other passes round otherwise."""
        sums = {name: float(value) for name, value in self._sums.items()}
        counts = {"counted": self._counted, "trained_tokens": self.trained_tokens}
        return {"sums": sums, **counts, "tokens_per_pass": self.tokens_per_pass}

    def restore_notes(self, folder: Path) -> dict[str, Any]:
        """Go on with what a checkpoint's `notes` say, and return them."""
        record = json.loads((folder / f"notes_{self.args.process_index}.json").read_text(encoding="utf-8"))
        self._sums = {name: torch.tensor(value, device=self.args.device) for name, value in record["sums"].items()}
        self._counted, self._budget = record["counted"], record["tokens_per_pass"]
        self.trained_tokens = record["trained_tokens"]
        return dict(record)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A standard folder: weights (or the adapter) as safetensors, configuration, tokenizer, template, and no pickle."""
        super().save_model(output_dir, _internal_call)
        (Path(output_dir or self.args.output_dir or ".") / "training_args.bin").unlink(missing_ok=True)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch; there are no labels to gather."""
        batch = self.batch_type(**self._prepare_inputs(inputs))
        values = values_in_passes(model, batch, self.values, max_tokens=self.tokens_per_pass)
        return self._finite_losses(model, values, batch).sum() / self.count(batch), None, None

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int:
        """What the passes of one step count: an uneven last pass then weighs what it holds. Several processes average their
        gradients, so that each divides by the mean of what they count.
        """
        counted = sum(self.count(self.batch_type(**batch)) for batch in batch_samples)
        if self.args.world_size == 1:
            return counted
        everywhere = self.accelerator.reduce(torch.tensor(counted, device=device), reduction="sum")
        return everywhere / self.args.world_size


def _tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    """A batch as a data loader hands it on; a function of the module, so that worker processes can have it."""
    return collate(groups).as_dict()
