"""`Block`: what was sampled from the policy at once and is trained on for some steps, in memory and in a checkpoint."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from exoalign.data.table import read_table, write_table
from exoalign.groups import Group

GROUPS, TENSORS = "rollouts.parquet", "rollouts.safetensors"


@dataclass(frozen=True)
class Block:
    """What a block's steps train on.

    Attributes:
        number: of the block, from 0.
        groups: n groups with token ids, rewards, log mu and log pi_ref.
        tensors: by name, [n, ...] on the CPU: what else the steps need of each group.
    """

    number: int
    groups: list[Group]
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        write_table(self.groups, folder / GROUPS)
        if self.tensors:
            save_file({name: values.contiguous() for name, values in self.tensors.items()}, folder / TENSORS)

    @classmethod
    def load(cls, folder: Path, number: int) -> Block | None:
        """The block that a checkpoint holds; None where it was saved between two.

        Raises:
            DataError: if the file of groups cannot be read.
        """
        if not (folder / GROUPS).is_file():
            return None
        tensors = load_file(folder / TENSORS) if (folder / TENSORS).is_file() else {}
        return cls(number, read_table(folder / GROUPS), tensors)

    def metrics(self) -> dict[str, float]:
        """What the samples are like: means over all completions.

        Returns:
            `sample_reward`, `sample_length` (tokens) and `sample_kl`, the mean of log pi - log pi_ref in nats with pi the
            policy at the sampler's temperature: an estimate of KL(pi || pi_ref) where nothing is truncated.
        """
        return {
            "sample_reward": statistics.fmean(r for group in self.groups for r in group.rewards or ()),
            "sample_length": statistics.fmean(n for group in self.groups for n in group.counted_tokens),
            "sample_kl": statistics.fmean(_log_ratios(self.groups)),
        }


def _log_ratios(groups: Sequence[Group]) -> list[float]:
    """log pi - log pi_ref of all completions, pi before any truncation."""
    found = []
    for group in groups:
        drawn = group.provenance.get("model_logprobs") or group.sampler_logprobs or ()
        found += [ours - theirs for ours, theirs in zip(drawn, group.reference_logprobs or (), strict=True)]
    return found
