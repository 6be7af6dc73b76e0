"""`PpoTrainer`: proximal policy optimisation on the policy's own samples, the baseline that EXO is compared with.

One rollout (a block of `train.rollouts`), in the order in which things happen:

1.  The policy draws K completions of each prompt at the temperature that all log-probs use, too.          `rollouts`
2.  Each gets its reward; one that has no end pays a penalty.                                              `checked`
3.  log pi_old, V_old and log pi_ref of each token, dropout off.                                           `experience`
4.  r_t = -beta (log pi_old - log pi_ref) + [last token] r, whitened or scaled if asked for.
5.  A_t and the returns R_t by GAE; A_t whitened over the rollout.
6.  beta is adapted, if it has a target.
7.  `passes_per_block` times over the rollout in minibatches: clipped policy loss + value_coefficient * clipped value loss,
    a mean over the minibatch's tokens.                                                                    `values`

The equations stand in `rl_losses`, the table of details with their sources in docs/ppo.md. They follow Huang et al. 2024, "The
N+ Implementation Details of RLHF with PPO" (arXiv 2403.17031) and its code. Departures: the value is a linear head on the
policy's own trunk, not a second model that begins at the reward model (which is not there for every reward); log pi_old is
computed with the kernels of training, so that the first ratio is 1, and not taken from generation; a completion ends at its
EOS, so nothing after it is masked away.

Shape legend: B groups, n groups of a rollout, K completions, L tokens of the longest completion, E hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exoalign.data.collate import collate
from exoalign.groups import Group, GroupBatch
from exoalign.logprobs.passes import split_batch
from exoalign.logprobs.tokens import completion_tokens, token_mask
from exoalign.models import autocast
from exoalign.rl_losses import (
    KlController,
    RewardScale,
    approximate_kl,
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    token_rewards,
    whiten,
)
from exoalign.train.rl_arguments import PpoConfig
from exoalign.train.rloo import PolicyGradientTrainer

HEAD = "value_head.safetensors"
PER_TOKEN = ("old_logprobs", "old_values", "advantages", "returns")


@dataclass(frozen=True)
class TokenBatch(GroupBatch):
    """A `GroupBatch` with what the rollout knew of each token: each [B, K, L] float32, 0 where there is no token."""

    old_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def take(self, groups: Sequence[int], completions: Sequence[int] | None = None) -> TokenBatch:
        """As `GroupBatch.take`, with the tokens of what is taken."""
        part = super().take(groups, completions)
        rows, length = list(groups), part.completion_ids.shape[-1]
        columns = list(range(self.shape[1])) if completions is None else list(completions)
        tokens = {name: getattr(self, name)[rows][:, columns, :length] for name in PER_TOKEN}
        return TokenBatch(**part.as_dict(), **tokens)


class PpoTrainer(PolicyGradientTrainer):
    """Trains policy and value head by PPO; see `RolloutTrainer` for the arguments, which it shares.

    Attributes:
        value_head: E -> 1, V(s_t) of the prefix before a token. It is kept in checkpoints, and is no part of what `save_model`
            writes.
        controller: the strength of the KL penalty now.
        scale: the deviation of all rewards so far.
    """

    args: PpoConfig
    batch_type = TokenBatch
    values_are = "PPO losses"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The head begins at zero, weights and bias (as in the code of 1909.08593): V is 0 and not noise. In float32.
        size = self.model.config.get_text_config().hidden_size
        self.value_head = torch.nn.Linear(size, 1, device=self.args.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self._attach()  # so that its gradient is cleared and clipped with the model's, and it is checked to be finite
        self.controller = KlController(self.args.beta, self.args.target_kl, self.args.kl_horizon)
        self.scale = RewardScale()

    # Steps 3 to 6: the rollout.

    @torch.no_grad()
    def experience(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """What the steps of a new rollout need of each token: `PER_TOKEN`, [n, K, L] each."""
        batch = collate(groups)
        mask = token_mask(batch)
        old_logprobs, old_values = self._tokens(self.model, batch, self.value_head)
        with self.reference() as reference:
            reference_logprobs, _ = self._tokens(reference, batch, None)  # the reference is the SFT policy, frozen
        assert batch.rewards is not None
        log_ratios = torch.where(mask, old_logprobs - reference_logprobs, 0.0)
        rewards = token_rewards(batch.rewards, log_ratios, mask, beta=self.controller.beta)
        if self.args.scale_rewards:  # reward and penalty alike: the optimum stays
            self.scale.update(batch.rewards[batch.mask].tolist())
            rewards = rewards / self.scale.deviation
        if self.args.whiten_rewards:  # "whiten rewards" with the mean kept: 2403.17031
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalised_advantages(
            rewards, old_values, mask, gamma=self.args.gamma, lam=self.args.lam
        )
        if self.args.whiten_advantages:  # over the whole rollout, as in the code of 2403.17031
            advantages = whiten(advantages, mask)
        self.controller.update(float(log_ratios.sum(-1)[batch.mask].mean()), completions=int(batch.mask.sum()))
        return dict(zip(PER_TOKEN, (old_logprobs, old_values, advantages, returns), strict=True))

    def _tokens(self, model: torch.nn.Module, batch: GroupBatch, head: torch.nn.Linear | None) -> tuple[Tensor, Tensor]:
        """log pi and V (0 without a head) of each token, [n, K, L] on the CPU, in passes of bounded size, without dropout."""
        logprobs = torch.zeros(token_mask(batch).shape)
        values, training = torch.zeros_like(logprobs), model.training
        model.eval()
        try:
            with autocast(self.args.device, bf16=self.args.bf16):
                for passes in split_batch(model, batch, self.tokens_per_pass):
                    for part in passes:
                        some = part.of(batch)
                        found = completion_tokens(model, some, head, temperature=self.temperature)
                        for tensor, where in zip(found, (logprobs, values), strict=True):
                            if tensor is not None:
                                short = where.shape[-1] - tensor.shape[-1]
                                part.put(torch.nn.functional.pad(tensor.cpu().float(), (0, short)), where)
        finally:
            model.train(training)
        return logprobs, values

    def inputs_of(self, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a minibatch is made of: a `TokenBatch` by name."""
        batch = collate(groups)
        length = batch.completion_ids.shape[-1]
        return {**batch.as_dict(), **{name: tensors[name][..., :length] for name in PER_TOKEN}}

    # Step 7: the minibatches.

    def values(self, model: torch.nn.Module, batch: GroupBatch) -> Tensor:
        """The clipped losses of each completion, summed over its tokens: [B, K]."""
        assert isinstance(batch, TokenBatch)
        with autocast(batch.prompt_ids.device, bf16=self.args.bf16):
            logprobs, values = completion_tokens(model, batch, self.value_head, temperature=self.temperature)
        assert values is not None
        mask, old_logprobs = token_mask(batch), batch.old_logprobs
        assert old_logprobs is not None
        assert batch.old_values is not None
        assert batch.advantages is not None
        assert batch.returns is not None
        policy = clipped_policy_loss(logprobs, old_logprobs, batch.advantages, mask, clip=self.args.clip)
        value = clipped_value_loss(values, batch.old_values, batch.returns, mask, clip=self.args.value_clip)
        if model.training and torch.is_grad_enabled():  # once for each token, though a large group goes through twice
            moved = torch.where(mask, logprobs - old_logprobs, 0.0).exp() - 1
            self.note(
                policy_loss=policy.sum(),
                value_loss=value.sum(),
                clipped=(moved.abs() > self.args.clip).sum(),
                step_kl=approximate_kl(logprobs, old_logprobs, mask).sum(),
            )
        return (policy + self.args.value_coefficient * value).sum(-1)

    def losses(self, model: torch.nn.Module, values: Tensor, batch: GroupBatch) -> Tensor:
        """What `values` found, summed over the completions: [B]."""
        return torch.where(batch.mask, values, 0.0).sum(-1)

    def count(self, batch: GroupBatch) -> int:
        """The tokens of a minibatch: its loss is a mean over them."""
        return int(batch.completion_lengths.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with beta, and the share of the returns' variance that the value explained when the rollout was new."""
        if "loss" in logs and self.block is not None:
            mask = token_mask(collate(self.block.groups))
            returns, values = (self.block.tensors[name][mask] for name in ("returns", "old_values"))
            spread = float(returns.var(unbiased=False))
            unexplained = float((returns - values).var(unbiased=False))
            explained = 1 - unexplained / spread if spread > 0 else 0.0
            logs = {**logs, "beta": self.controller.beta, "explained_variance": explained}
        super().log(logs, start_time)

    # The value head: trained with the model, and kept out of what is saved of it.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the model's weights, with the value head's as a group of their own."""
        made: torch.optim.Optimizer | None = self.optimizer
        if made is None:
            with self._bare_model():
                made = super().create_optimizer(model)
            head = {"params": list(self.value_head.parameters()), "lr": self.args.value_learning_rate}
            made.add_param_group({**head, "weight_decay": 0.0})
        return made

    def _attach(self) -> None:
        self.model.value_head = self.value_head

    @contextlib.contextmanager
    def _bare_model(self) -> Iterator[None]:
        """The model without the value head, while the context lasts."""
        del self.model.value_head
        try:
            yield
        finally:
            self._attach()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy alone: a standard folder, as any other trainer's."""
        with self._bare_model():
            super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._bare_model():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_notes(self, folder: Path) -> None:
        super()._save_notes(folder)
        save_file({name: weight.cpu() for name, weight in self.value_head.state_dict().items()}, folder / HEAD)

    def notes(self) -> dict[str, Any]:
        """And the state of beta and of the rewards' scale."""
        scale = self.scale.count, self.scale.mean, self.scale.squares
        return {**super().notes(), "beta": self.controller.beta, "scale": scale}

    def restore_notes(self, folder: Path) -> dict[str, Any]:
        """And the value head with them."""
        record = super().restore_notes(folder)
        self.value_head.load_state_dict(load_file(folder / HEAD))
        self.controller.beta, self.scale = record["beta"], RewardScale(*record["scale"])
        return record
