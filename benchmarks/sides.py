"""Both sides of the comparison, each run in a process of its own: `python benchmarks/sides.py SIDE CASE MODEL DATA ROUND`.

Both are transformers' Trainer with the same rows in the same order, plain SGD, no checkpointing, no dropout, the reference
log-probs computed before. Timed is the optimizer step, after a warm-up on half of its rows.
Prints one line of JSON: seconds, units a second, peak memory of the process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, rows_of
from processes import peak_bytes, report
from transformers import TrainerCallback

from exoalign import ExoConfig, ExoTrainer, Group, load_model, load_tokenizer
from exoalign.models import quiet_libraries

LEARNING_RATE = 1e-3  # plain SGD; bfloat16 weights cannot represent much smaller steps


class Clock(TrainerCallback):
    """Seconds from the first step's begin to the last one's end."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.began is not None
        self.seconds = time.perf_counter() - self.began


def settings(case: Case, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 1,
        "bf16": case.precision == "autocast",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 0,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.accelerator.is_available(),
    }


def ours(case: Case, groups: list[Group], model: str, folder: str) -> tuple[Any, float]:
    """ExoTrainer, and how many units it trains on."""
    arguments = ExoConfig(
        **settings(case, folder), objective=case.objective, per_device_train_batch_size=case.groups_per_step
    )
    trainer = ExoTrainer(_load(model, case), arguments, groups, processing_class=load_tokenizer(model))
    trainer.prepare_reference()
    units = len(groups) if case.unit == "pairs" else sum(group.k for group in groups)
    return trainer, units


def trl(case: Case, groups: list[Group], model: str, folder: str) -> tuple[Any, float]:
    """TRL's DPOTrainer with its EXO loss on the disjoint pairs of each group."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):  # token ids are given, so that both sides have the same
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    pairs = [pair for group in groups for pair in pairs_of(group)]
    arguments = DPOConfig(
        **settings(case, folder),
        loss_type=["exo_pair"],
        label_smoothing=1e-3,
        beta=0.5,
        precompute_ref_log_probs=True,
        max_length=None,
        per_device_train_batch_size=len(pairs),
    )
    trainer = OnTokens(
        _load(model, case),
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=load_tokenizer(model),
    )
    return trainer, len(pairs) if case.unit == "pairs" else 2 * len(pairs)


def pairs_of(group: Group) -> list[dict[str, list[int]]]:
    """Disjoint pairs: the winner and the loser, or neighbours in the order of rewards."""
    assert group.prompt_ids is not None
    assert group.completion_ids is not None
    order = sorted(range(group.k), key=lambda k: -(group.rewards[k] if group.rewards else k == group.winner))
    return [
        {
            "prompt_ids": list(group.prompt_ids),
            "chosen_ids": list(group.completion_ids[a]),
            "rejected_ids": list(group.completion_ids[b]),
        }
        for a, b in zip(order[::2], order[1::2], strict=False)
    ]


def _load(model: str, case: Case) -> Any:
    return load_model(model, dtype=torch.bfloat16 if case.precision == "bfloat16" else torch.float32)


def _warm_up(trainer: Any) -> None:
    """Forward and backward over the first half of the rows, gradients dropped: memory is mapped, kernels are chosen."""
    rows = [trainer.train_dataset[i] for i in range((len(trainer.train_dataset) + 1) // 2)]
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # train() sets it
    trainer.training_step(trainer.model, inputs)
    trainer.model.zero_grad()
    if hasattr(trainer, "_metrics"):
        trainer._metrics["train"].clear()


def measure(side: str, name: str, model: str, data: Path, number: int) -> dict[str, float]:
    """Train a case by one side and measure it."""
    quiet_libraries()
    case = CASES[name]
    groups = rows_of(case, model, data, number)
    with tempfile.TemporaryDirectory() as folder:
        trainer, units = {"ours": ours, "trl": trl}[side](case, groups, model, folder)
        _warm_up(trainer)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return {"seconds": clock.seconds, "per_second": units / clock.seconds, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    report(measure(*sys.argv[1:4], Path(sys.argv[4]), int(sys.argv[5])))
