"""Online training on a tiny GPT-2: 8 prompts, the reward is the share of words with a number below 20."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tiny_training import tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback

from exoalign.data.formats import PromptRow
from exoalign.groups import Group
from exoalign.train.online import OnlineConfig, OnlineExoTrainer

PROMPTS = [PromptRow(f"w{i} w2 w3", f"prompts.txt:{i}", {"number": i}) for i in range(1, 9)]


def words():
    """The tokenizer of `tiny_training`, which splits texts into words."""
    found = tokenizer()
    found.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    return found


def low_words(groups: Sequence[Group]) -> list[Group]:
    """The share of tokens below 20."""
    return [
        replace(group, rewards=tuple(sum(i < 20 for i in ids) / len(ids) for ids in group.completion_ids or ()))
        for group in groups
    ]


def tiny_policy() -> GPT2LMHeadModel:
    """The same weights each time."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    )


def build_online(out: Path, *, lora: bool = False, kind=OnlineExoTrainer, config=OnlineConfig, **settings):
    """An online trainer with its initial weights: blocks of 2 steps of 2 prompts x 4 completions, 8 steps."""
    model, peft_config = tiny_policy(), None
    if lora:
        from exoalign import adapters

        peft_config = adapters.lora_config(r=2, alpha=4.0, dropout=0.0, target_modules="all-linear")
    arguments = {
        "k": 4, "resample_every": 2, "max_new_tokens": 6, "learning_rate": 0.01, "num_train_epochs": 2, "seed": 3,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "beta_r": 0.1, **settings,
    }  # fmt: skip
    trainer = kind(
        model, config(str(out), **arguments), PROMPTS, low_words, processing_class=words(), peft_config=peft_config
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
