"""Peak memory and time of a training run, before it begins: from shapes alone, and what to lower where it does not fit."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exoalign import adapters
from exoalign.errors import ModelError, first_line
from exoalign.estimate.budget import ADAM_BYTES, BASELINE, largest_pass, recomputes
from exoalign.estimate.memory import memory_for
from exoalign.estimate.rate import product_rate
from exoalign.estimate.shapes import DataShape
from exoalign.estimate.simulate import PassShape, Simulated, simulate
from exoalign.models import default_device, resolve

EFFICIENCY = 0.75
"""Share of the measured rate of matrix products that a whole pass reaches (see docs/estimate.md)."""
TOKEN_BYTES, COMPLETION_BYTES = 44, 200
"""What Python holds of a token of the data, an int in a tuple and its text, and of a completion."""
ADAPTER = "align.lora.r=16 (an adapter in place of all weights)"
ADAPTER_SHARE = 0.01
"""Trainable weights of a low-rank adapter, of all: a rank of 16 or so."""


@dataclass(frozen=True)
class Choice:
    """A setting that would lower the peak, and the peak it would lead to, in bytes."""

    setting: str
    total: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take. All sizes in bytes, at the highest point of a training pass.

    Attributes:
        parameters, trainable: numbers of weights.
        weights, gradients, optimizer: kept through the run.
        activations: of one pass, kept from its forward for its backward.
        temporary: tiles of the head's logits, gradients on their way, and fragments of the allocator.
        data: token ids, texts and the cache of reference log-probs.
        baseline: Python and its libraries.
        memory: what the process may hold on the device, None where that is not known.
        tokens_per_pass: tokens that go through the model at once.
        passes: forward and backward passes of one epoch.
        operations: floating-point operations of the run.
        rate: of matrix products as measured, operations a second.
        seconds: of the reference and all training steps.
        shared: whether a prompt is computed once for all its completions.
        bf16, checkpointing, device: what it holds for.
        choices: what would lower the peak, where it is over the memory, the most effective first.
    """

    shape: DataShape
    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    data: int
    baseline: int
    memory: int | None
    tokens_per_pass: int
    passes: int
    operations: int
    rate: float
    seconds: float
    shared: bool
    bf16: bool
    checkpointing: bool
    device: str
    choices: tuple[Choice, ...] = ()

    @property
    def total(self) -> int:
        """Peak bytes."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.temporary)
        return sum(parts) + self.data + self.baseline

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the memory; True where that is not known."""
        return self.memory is None or self.total <= self.memory

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total, "fits": self.fits}


def skeleton(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A causal language model without weights (on the meta device) from its configuration: config.json is enough.

    A folder with an adapter gives its base with the adapter on it, trainable, as `load_model` does.

    Raises:
        ModelError: if there is no configuration, or none of a causal language model; if an adapter is not its base's.
    """
    source = resolve(path)
    if adapters.is_adapter_folder(source):
        base, base_revision = adapters.base_of(source)
        below = skeleton(base, revision=base_revision, trust_remote_code=trust_remote_code)
        with warnings.catch_warnings():  # PyTorch warns that the adapter's weights, too, come to nothing
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            return adapters.attach(below, source)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"model {path}: no model can be laid out from its configuration ({first_line(error)})"
        ) from error


def estimate(
    model: Any,
    shape: DataShape,
    *,
    bf16: bool,
    tokens_per_pass: int | None = None,
    most: int | None = None,
    epochs: float = 1.0,
    memory: int | None = None,
    rate: float | None = None,
    checkpointing: bool | None = None,
    optimizer_bytes: int = ADAM_BYTES,
    device: torch.device | None = None,
) -> Estimate:
    """Estimate peak memory and time of training a model on data of a shape.

    Args:
        model: a causal language model with its adapters, weights on any device or on none (see `skeleton`).
        shape: of the data.
        bf16: matrix products under bfloat16 autocast.
        tokens_per_pass: tokens that may go through the model at once; what fits when None.
        most: tokens that there are for one pass, however many may go: those of a step, say.
        epochs: of training; the reference goes through the data once more.
        memory: bytes that the process may hold; what the device has for it when None.
        rate: of matrix products, operations a second; measured here when None.
        checkpointing: activations are recomputed; what the model is set to when None.
        optimizer_bytes: of the optimizer's state for each trainable weight.
        device: that trains; the accelerator if there is one, else the CPU, when None.

    Raises:
        ModelError: if the model cannot run on tensors without data.
    """
    device = device or default_device()
    memory = memory if memory is not None else memory_for(device)
    checkpointing = recomputes(model) if checkpointing is None else checkpointing
    run = _Run(model, shape, epochs, memory, optimizer_bytes, device)
    tokens = tokens_per_pass or run.budget(bf16=bf16, checkpointing=checkpointing)
    tokens = tokens if most is None else min(tokens, most)
    rows = _one_pass(shape, tokens).tokens
    rate = rate or product_rate(model, bf16=bf16, device=device, rows=rows)
    result = run.plan(tokens, bf16=bf16, checkpointing=checkpointing, rate=rate)
    return result if result.fits else replace(result, choices=_choices(run, result))


@dataclass(frozen=True)
class _Run:
    """What stays the same while settings are compared."""

    model: Any
    shape: DataShape
    epochs: float
    memory: int | None
    optimizer_bytes: int
    device: torch.device

    def budget(self, *, bf16: bool, checkpointing: bool) -> int:
        return largest_pass(
            self.model,
            bf16=bf16,
            memory=self.memory,
            prompt=self.shape.prompt,
            completion=self.shape.completion,
            checkpointing=checkpointing,
            optimizer_bytes=self.optimizer_bytes,
            device=self.device,
        )

    def plan(self, tokens: int, *, bf16: bool, checkpointing: bool, rate: float = 1.0) -> Estimate:
        shape, on_cpu = self.shape, self.device.type == "cpu"
        one = _one_pass(shape, tokens)
        found = simulate(self.model, one, bf16=bf16, device=self.device, checkpointing=checkpointing)
        passes, operations = _work(shape, found, one.tokens, tokens, self.epochs)
        data = TOKEN_BYTES * (shape.tokens + shape.completions) + COMPLETION_BYTES * shape.completions
        return Estimate(
            shape=shape,
            parameters=sum(p.numel() for p in self.model.parameters()),
            trainable=found.trainable,
            weights=found.weights,
            gradients=found.gradients,
            optimizer=self.optimizer_bytes * found.trainable,
            activations=found.activations,
            temporary=found.temporary + found.fragments,
            data=data if on_cpu else 0,
            baseline=BASELINE if on_cpu else 0,
            memory=self.memory,
            tokens_per_pass=tokens,
            passes=passes,
            operations=operations,
            rate=rate,
            seconds=operations / (EFFICIENCY * rate),
            shared=found.shared,
            bf16=bf16,
            checkpointing=checkpointing,
            device=self.device.type,
        )


def _one_pass(shape: DataShape, tokens: int) -> PassShape:
    """The largest pass that a budget of tokens and the data allow."""
    step = max(shape.completion - 1, 1)
    most = max(shape.groups * shape.k, 1)
    counted = max(round(shape.completion * shape.counted / shape.targets), 1)
    return PassShape(shape.prompt, min(max((tokens - shape.prompt) // step, 1), most), shape.completion, counted)


def _work(shape: DataShape, found: Simulated, simulated: int, tokens: int, epochs: float) -> tuple[int, int]:
    """Passes of an epoch, and operations of the reference and all epochs."""
    forward, backward = (found.forward + found.head) / simulated, found.backward / simulated  # of a token
    prompts = shape.tokens - shape.targets + shape.completions
    mean, prompt = shape.tokens / shape.groups, prompts / shape.groups
    if mean <= tokens:
        passes = math.ceil(shape.tokens / tokens)
        epoch = (forward + backward) * shape.tokens
    else:  # a group in several passes: its prompt in each, and a forward of all before the loss is known
        parts = math.ceil((mean - prompt) / max(tokens - prompt, 1.0))
        passes = parts * shape.groups
        epoch = (2 * forward + backward) * (shape.tokens + (parts - 1) * prompts)
    return passes, round(forward * shape.tokens + epochs * epoch)


def _choices(run: _Run, now: Estimate) -> tuple[Choice, ...]:
    """What would lower the peak, each alone and then all together, the most effective first."""
    fewer = min(run.budget(bf16=now.bf16, checkpointing=now.checkpointing), now.tokens_per_pass)
    ours = {"tokens": now.tokens_per_pass, "bf16": now.bf16, "checkpointing": now.checkpointing}
    changes: dict[str, dict[str, Any]] = {
        f"align.max_tokens_per_pass={fewer}": {"tokens": fewer},
        "model.precision=bfloat16": {"bf16": True},
        "align.trainer.gradient_checkpointing=true": {"checkpointing": True},
    }
    found = [Choice(name, run.plan(**{**ours, **change}).total) for name, change in changes.items()]
    full = now.trainable > now.parameters / 2
    spared = round((1 - ADAPTER_SHARE) * (now.gradients + now.optimizer)) if full else 0
    found.append(Choice(ADAPTER, now.total - spared))
    choices = sorted((choice for choice in found if choice.total < now.total), key=lambda choice: choice.total)
    if len(choices) > 1:
        choices.append(Choice("all of these", run.plan(fewer, bf16=True, checkpointing=True).total - spared))
    return tuple(choices)
