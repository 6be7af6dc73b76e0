"""`ExoTrainer`: a `GroupTrainer` with the objective, the reference and the diagnostics.

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

from exoalign import adapters
from exoalign.data.doctor.findings import Finding
from exoalign.data.doctor.targets import target_findings
from exoalign.groups import Group, GroupBatch, check_groups
from exoalign.objectives import OBJECTIVES
from exoalign.train.arguments import ExoConfig
from exoalign.train.correction import CollapseWatch, CorrectedCollate, correction_for
from exoalign.train.group_trainer import GroupTrainer
from exoalign.train.objective import objective_losses
from exoalign.train.reference import add_reference, check_agreement
from exoalign.train.reference_cache import ReferenceCache

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

REMEDY = (
    "sample from the reference itself or from a model nearer to it (sample.top_p, sample.top_k, sample.temperature), take more"
    " completions a prompt (sample.k), or set align.correction to off, whose optimum is another one"
)


class ExoTrainer(GroupTrainer):
    """Aligns a causal language model with any of the `OBJECTIVES`.

    Args:
        model: the policy, or its folder or hub id (then loaded in float32, and its tokenizer with it). Before training it
            is also the reference, unless `ref_model` is given.
        args: the settings.
        train_dataset: groups with rewards (exo_rw, dpo_rw, sft_best) or with a winner and K = 2 (exo_pref, dpo_pref, ipo).
            Token ids and reference log-probs are added where they are missing.
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
        corrected: training groups whose proposal is corrected, known when the reference is.

    Raises:
        DataError, ModelError, TrainingError: when data, model and settings do not fit; see the messages.
    """

    args: ExoConfig

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
        self.temperature = args.temperature
        self._ref_model, self._report, self._adapter_is_fresh = ref_model, report, peft_config is not None
        self.reference_cache = None if reference_cache is None else ReferenceCache(reference_cache)
        self._prepared, self.corrected = False, 0
        self._watch: CollapseWatch | None = None
        self.findings: list[Finding] = []
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, peft_config, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what is missing of the reference, check it against the policy, warn, and train.

        Raises:
            TrainingError: if policy and reference disagree before the first step, or the loss is not finite at some step.
        """
        self.prepare_reference()
        if "beta_r" in OBJECTIVES[self.args.objective].reads:
            for finding in target_findings(self.train_dataset, beta_pi=self.args.beta_pi, beta_r=self.args.beta_r):
                self.findings.append(finding)
                logger.warning(finding.sentence)
        return super().train(*args, **kwargs)

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
            if OBJECTIVES[self.args.objective].needs == "rewards":
                self._correct(reference)
        if self._ref_model is None:
            largest = check_agreement(self.train_dataset, self.model, **shared)
            logger.info("policy and reference agree before step 1: largest |log-ratio| %.2g nats", largest)
        self._prepared = True

    def _correct(self, reference: torch.nn.Module) -> None:
        """Find out which groups the reference did not draw, and give batches their proposal."""
        how: dict[str, Any] = {"mode": self.args.correction, "temperature": self.args.temperature}
        both = itertools.chain(self.train_dataset, self.eval_dataset or ())
        correction = correction_for(both, reference, **how)
        if correction is None:
            return
        self.data_collator = CorrectedCollate(correction)
        completions = 0
        for group in self.train_dataset:
            completions += group.k
            self.corrected += correction.of(group) is not None
        self._watch = CollapseWatch(completions / len(self.train_dataset), REMEDY)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and warn once where the correction leaves too little of the completions."""
        super().log(logs, start_time)
        for finding in self._watch.look(self.state.log_history) if self._watch else ():
            self.findings.append(finding)
            logger.warning(finding.sentence)

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The objective of each group, [B], given its log-probs [B, K]."""
        return objective_losses(self.args, values, batch, note=self.note if model.training else None)
