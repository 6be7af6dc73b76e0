"""`ExoTrainer`: transformers' Trainer on groups of completions. It adds the objective, the reference and the diagnostics.

Ten lines align a model::

    from exoalign import ExoConfig, ExoTrainer, Group

    groups = [Group("A film review:", (" A joy.", " A bore."), rewards=(1.0, -1.0)), ...]
    trainer = ExoTrainer(model="demo", args=ExoConfig("out", objective="exo_rw"), train_dataset=groups)
    trainer.train()
    trainer.save_model("aligned")
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer

from exoalign import adapters
from exoalign.data.collate import collate
from exoalign.data.doctor.findings import Finding
from exoalign.data.doctor.targets import target_findings
from exoalign.data.group_table import with_ids
from exoalign.errors import TrainingError
from exoalign.groups import Group, GroupBatch, check_groups
from exoalign.logprobs.engine import completion_logprobs
from exoalign.logprobs.passes import logprobs_in_passes
from exoalign.losses import OBJECTIVES, policy_log_probs, preference_target, reward_target
from exoalign.models import autocast, load_model, load_tokenizer, without_dropout
from exoalign.train.arguments import ExoConfig
from exoalign.train.diagnostics import refuse_lost_updates, step_metrics
from exoalign.train.gradient import accumulate
from exoalign.train.preflight import tokens_per_pass
from exoalign.train.reference import add_reference, check_agreement
from exoalign.train.reference_cache import ReferenceCache

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class ExoTrainer(Trainer):
    """Aligns a causal language model with any of the four objectives.

    Args:
        model: the policy, or its folder or hub id (then loaded in float32, and its tokenizer with it). Before training it
            is also the reference, unless `ref_model` is given.
        args: the settings.
        train_dataset: groups with rewards (exo_rw, dpo_rw) or with a winner and K = 2 (exo_pref, dpo_pref). Token ids and
            reference log-probs are added where they are missing.
        eval_dataset: groups to compute the loss on, as for any Trainer.
        processing_class: the tokenizer.
        peft_config: train a fresh adapter with these settings (peft's LoraConfig, for example) and leave the model's own
            weights as they are; the reference is the model with the adapter off. A model that has an adapter already
            (peft's wrapper, or an adapter's folder) needs none: that adapter is trained further, and as it stands before
            training it is the reference.
        ref_model: another reference than the policy's initial weights; then policy and reference may differ at step 0.
        report: called with the number of groups whose reference log-probs are done.
        reference_cache: a folder in which reference log-probs are kept for other runs, whatever their objective or betas;
            None keeps none. `exoalign.train.reference_cache.default_folder()` is the command line's.
        kwargs: further arguments of `transformers.Trainer`.

    Attributes:
        findings: the warnings given so far.
        reference_cache: the cache with the numbers of groups it was asked for and knew, or None.

    Raises:
        DataError, ModelError, TrainingError: when data, model and settings do not fit; see the messages.
    """

    args: ExoConfig
    model: PreTrainedModel
    train_dataset: Any
    eval_dataset: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the groups of the whole step

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: ExoConfig,
        train_dataset: Sequence[Group],
        eval_dataset: Sequence[Group] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: PreTrainedModel | None = None,
        report: Callable[[int], None] | None = None,
        reference_cache: str | Path | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        objective = OBJECTIVES[args.objective]
        for groups in (train_dataset, eval_dataset):
            if groups is not None:
                check_groups(groups, needs=objective.needs)
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
        self._ref_model, self._report, self._adapter_is_fresh = ref_model, report, peft_config is not None
        self.reference_cache = None if reference_cache is None else ReferenceCache(reference_cache)
        self._sums: dict[str, Tensor] = {}
        self._groups = 0
        self._prepared = False
        self._budget: int | None = None
        self.findings: list[Finding] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=with_ids(train_dataset, processing_class, context=context),
            eval_dataset=None if eval_dataset is None else with_ids(eval_dataset, processing_class, context=context),
            processing_class=processing_class,
            data_collator=_tensors,
            **kwargs,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what is missing of the reference, check it against the policy, warn, and train.

        Raises:
            TrainingError: if policy and reference disagree before the first step, or the loss is not finite at some step.
        """
        self.prepare_reference()
        if OBJECTIVES[self.args.objective].needs == "rewards":
            for finding in target_findings(self.train_dataset, beta_pi=self.args.beta_pi, beta_r=self.args.beta_r):
                self.findings.append(finding)
                logger.warning(finding.sentence)
        output = super().train(*args, **kwargs)
        if not all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            raise TrainingError(f"after step {self.state.global_step} a weight is not finite; lower learning_rate")
        return output

    def prepare_reference(self) -> None:
        """Give all groups their reference log-probs, and check that the policy agrees with them. `train` calls it, once.

        Call it before the policy has changed: its weights of now are the reference.
        """
        if self._prepared:
            return
        shared: dict[str, Any] = {
            "bf16": self.args.bf16,
            "temperature": self.args.temperature,
            "max_tokens": self.tokens_per_pass,
        }
        reference = self.model if self._ref_model is None else self._ref_model.to(self.args.device)  # type: ignore[arg-type]
        base = self._ref_model is None and self._adapter_is_fresh
        with adapters.switched_off(reference) if base else contextlib.nullcontext():
            self.train_dataset = add_reference(
                self.train_dataset, reference, report=self._report, cache=self.reference_cache, **shared
            )
            if self.eval_dataset is not None:
                self.eval_dataset = add_reference(self.eval_dataset, reference, cache=self.reference_cache, **shared)
        if self._ref_model is None:
            kept = self.reference_cache is not None and self.reference_cache.used
            largest = check_agreement(self.train_dataset, self.model, kept=kept, **shared)
            logger.info("policy and reference agree before step 1: largest |log-ratio| %.2g nats", largest)
        self._prepared = True

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over the groups of a step, in passes of at most `max_tokens_per_pass` tokens."""
        model.train()
        prepare = getattr(self.optimizer, "train", None)  # of schedule-free optimizers
        if callable(prepare):
            prepare()
        batch = GroupBatch(**self._prepare_inputs(inputs))

        def backward(loss: Tensor, last: bool) -> None:  # several processes exchange gradients after the last pass only
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                self.accelerator.backward(loss)

        return accumulate(
            model,
            batch,
            lambda logprobs, part: self._losses(model, logprobs, part),
            total=batch.shape[0] if num_items_in_batch is None else num_items_in_batch,
            max_tokens=self.tokens_per_pass,
            temperature=self.args.temperature,
            bf16=self.args.bf16,
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
        """The objective, summed over the groups of this pass and divided by the groups of the whole step."""
        batch = GroupBatch(**inputs)
        with autocast(batch.prompt_ids.device, bf16=self.args.bf16):
            logprobs = completion_logprobs(model, batch, temperature=self.args.temperature)
        losses = self._losses(model, logprobs, batch)
        loss = losses.sum() / (num_items_in_batch if num_items_in_batch is not None else len(losses))
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    def _losses(self, model: torch.nn.Module, logprobs: Tensor, batch: GroupBatch) -> Tensor:
        """The objective of each group, [B], given its log-probs [B, K]."""
        if batch.reference_logprobs is None:
            raise TrainingError("the groups have no reference log-probs; call train() or prepare_reference() first")
        log_ratios = torch.where(batch.mask, logprobs - batch.reference_logprobs.to(logprobs.dtype), 0.0)
        losses = self.args.loss(log_ratios, batch)
        for b in (~torch.isfinite(losses)).nonzero().flatten().tolist():
            raise TrainingError(
                f"{self._name(batch, b)}: the loss at step {self.state.global_step + 1} is {losses[b].item()} and the log-probs"
                f" are {[round(x, 3) for x in logprobs[b].tolist()]}: a weight or a log-prob is not finite; lower"
                " learning_rate, or look at this group; nothing was saved from this step"
            )
        if model.training:
            self._note(losses, log_ratios, batch)
        return losses

    def _name(self, batch: GroupBatch, b: int) -> str:
        """Where a group of the batch comes from, found again by its tokens and which of them count."""
        prompt = tuple(batch.prompt_ids[b, : batch.prompt_lengths[b]].tolist())
        lengths = [n for n in batch.completion_lengths[b].tolist() if n]
        ids = batch.completion_ids[b]
        if batch.completion_masks is not None:
            ids = torch.where(batch.completion_masks[b], ids, ~ids)  # as in Group.marked_ids
        replies = tuple(tuple(ids[k, :n].tolist()) for k, n in enumerate(lengths))
        for group in itertools.chain(self.train_dataset, self.eval_dataset or []):
            if group.prompt_ids == prompt and group.marked_ids == replies:
                return group.where
        return f"group {b + 1} of the batch"

    def _note(self, losses: Tensor, log_ratios: Tensor, batch: GroupBatch) -> None:
        log_ratios = log_ratios.detach()
        log_q = policy_log_probs(log_ratios, beta_pi=self.args.beta_pi, mask=batch.mask)
        if batch.rewards is not None and OBJECTIVES[self.args.objective].needs == "rewards":
            log_p = reward_target(batch.rewards, beta_r=self.args.beta_r, mask=batch.mask)
            metrics = step_metrics(log_ratios, log_q, log_p, batch.mask, batch.rewards, None)
        else:
            log_p = preference_target(batch.winner, epsilon=self.args.epsilon or 0.0, like=log_ratios)
            metrics = step_metrics(log_ratios, log_q, log_p, batch.mask, None, batch.winner)
        for name, value in {"loss": losses.detach().sum(), **metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
        self._groups += len(losses)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A standard folder: weights (or the adapter) as safetensors, configuration, tokenizer, template, and no pickle."""
        super().save_model(output_dir, _internal_call)
        (Path(output_dir or self.args.output_dir or ".") / "training_args.bin").unlink(missing_ok=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the objective's metrics, as means over all groups since the last log."""
        if "loss" in logs and self._groups:
            logs = {**logs, **{name: float(value) / self._groups for name, value in self._sums.items()}}
            self._sums, self._groups = {}, 0
        super().log(logs, start_time)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a held-out batch; there are no labels to gather."""
        batch = GroupBatch(**self._prepare_inputs(inputs))
        with autocast(batch.prompt_ids.device, bf16=self.args.bf16):
            logprobs = logprobs_in_passes(
                model, batch, max_tokens=self.tokens_per_pass, temperature=self.args.temperature
            )
        return self._losses(model, logprobs, batch).mean(), None, None

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Groups in the passes of one step: an uneven last pass then weighs what it holds."""
        return sum(len(batch["prompt_lengths"]) for batch in batch_samples)


def _tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    """A batch as a data loader hands it on; a function of the module, so that worker processes can have it."""
    return collate(groups).as_dict()
