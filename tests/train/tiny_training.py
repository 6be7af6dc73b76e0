"""The training that is interrupted in tests: a tiny GPT-2 with dropout, 8 groups in steps of 2 x 1, three epochs."""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback

from exoalign import ExoConfig, ExoTrainer, Group
from exoalign.files import checksum
from exoalign.train.group_trainer import GroupTrainer

STEPS = 12


def tokenizer() -> PreTrainedTokenizerFast:
    """64 words, one of them the end."""
    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, 64)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")), eos_token="<eos>", pad_token="<eos>"
    )


def groups() -> list[Group]:
    """8 groups of 3 completions, tokenised."""
    return [
        Group(
            f"Film {i}",
            (" good", " bad", " so so"),
            rewards=tuple(math.sin(1 + i + 2 * j) for j in range(3)),
            prompt_ids=(1, 2, 3 + i),
            completion_ids=((20 + i, 21), (30 + i, 31, 32), (40, 41 + i)),
        )
        for i in range(8)
    ]


def build(out: Path, *, lora: bool = False, **settings) -> GroupTrainer:
    """A trainer with its initial weights, the same each time."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    )
    peft_config = None
    if lora:
        from exoalign import adapters

        peft_config = adapters.lora_config(r=2, alpha=4.0, dropout=0.2, target_modules="all-linear")
    arguments = {
        "learning_rate": 0.01, "save_strategy": "no", "disable_tqdm": True, "seed": 3, "num_train_epochs": 3,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "disable_dropout": False, "use_cpu": True,
        "beta_r": 0.5, **settings,
    }  # fmt: skip
    trainer = ExoTrainer(
        model,
        ExoConfig(str(out), **arguments),
        groups(),
        groups()[:3],
        processing_class=tokenizer(),
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def outcome(trainer: GroupTrainer, folder: Path) -> dict:
    """What came out of a training, to the bit: weights, history, reference, warnings."""
    trainer.save_model(str(folder / "model"))
    return {
        "weights": {p.name: checksum(p) for p in sorted((folder / "model").glob("*.safetensors"))},
        "history": [step for step in trainer.state.log_history if "loss" in step],
        "reference": [list(group.reference_logprobs) for group in trainer.train_dataset],
        "warnings": [finding.sentence for finding in trainer.findings],
    }
