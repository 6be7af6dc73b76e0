"""`OnlineExoTrainer`: EXO and DPO on completions of the policy as it trains, with the proposal correction.

Every `resample_every` steps the policy is sampled (iterative EXO). Its samples are corrected by c = log pi_ref - log mu, with
mu the policy that drew them, so that the optimum is the same pi* as with samples of the reference (`train.correction`).
`correction="off"` leaves it out, for comparison: then the optimum is another one, and moves with the policy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exoalign.data.collate import collate
from exoalign.data.doctor.findings import Finding
from exoalign.data.doctor.targets import target_findings
from exoalign.errors import ConfigError
from exoalign.groups import Group, GroupBatch
from exoalign.objectives import OBJECTIVES
from exoalign.train.arguments import ExoConfig
from exoalign.train.correction import CollapseWatch, proposal_of
from exoalign.train.objective import objective_losses
from exoalign.train.rollout_config import RolloutConfig
from exoalign.train.rollouts import RolloutTrainer

logger = logging.getLogger(__name__)

REMEDY = (
    "the policy is far from the reference: raise beta_pi or beta_r, lower the learning rate, take more completions a prompt"
    " (k), or truncate less (top_p, top_k)"
)


@dataclass
class OnlineConfig(RolloutConfig, ExoConfig):
    """Arguments of `OnlineExoTrainer`: those of `RolloutConfig` and of `ExoConfig`.

    Raises:
        ConfigError: as those, and with one completion a prompt or an objective that learns from pairs.
    """

    temperature: float = field(default=1.0, metadata={"help": "logits are divided by it, sampler's and all others"})

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ConfigError(f"k is {self.k}; expected at least 2: one completion alone holds no preference")
        super().__post_init__()
        if OBJECTIVES[self.objective].needs != "rewards":
            raise ConfigError(
                f"objective is {self.objective}, which learns from pairs that somebody chose; online training has rewards:"
                " use exo_rw or dpo_rw"
            )


class OnlineExoTrainer(RolloutTrainer):
    """Aligns a causal language model on its own samples; see `RolloutTrainer` for the arguments, which it shares.

    Attributes:
        findings: the warnings given so far.
    """

    args: OnlineConfig

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.findings: list[Finding] = []
        self._watch = CollapseWatch(self.args.k, REMEDY)

    def checked(self, groups: list[Group]) -> list[Group]:
        """The groups of a block as they are; of the first block's rewards what there is to warn of is told."""
        if self.state.global_step == 0:
            self._tell(target_findings(groups, beta_pi=self.args.beta_pi, beta_r=self.args.beta_r))
        return groups

    def inputs_of(self, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tensors of B groups, with their proposal: the policy of the block's first step, not the reference, drew them."""
        if self.args.correction == "off":
            return collate(groups).as_dict()
        return collate(groups, proposals=[proposal_of(group) for group in groups]).as_dict()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and warn once where the correction leaves too little of the completions."""
        super().log(logs, start_time)
        self._tell(self._watch.look(self.state.log_history))

    def _tell(self, findings: Sequence[Finding]) -> None:
        self.findings += findings
        for finding in findings:
            logger.warning(finding.sentence)

    def notes(self) -> dict[str, Any]:
        """And the findings of the first block, which is not seen again; that of the correction follows from the history."""
        return {**super().notes(), "findings": [asdict(found) for found in self.findings if found.kind != "correction"]}

    def restore_notes(self, folder: Path) -> dict[str, Any]:
        """And the findings."""
        record = super().restore_notes(folder)
        self.findings = [Finding(**{**found, "where": tuple(found["where"])}) for found in record["findings"]]
        return record

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """The objective of each group, [B], given its log-probs [B, K]."""
        return objective_losses(self.args, values, batch, note=self.note if model.training else None)
