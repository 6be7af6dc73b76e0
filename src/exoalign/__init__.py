"""Exoalign: align language models with preferences by Efficient Exact Optimization (EXO, arXiv 2402.00856).

What stands here is the public API. Names are loaded when they are first used, so that `import exoalign` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from exoalign._version import __version__

if TYPE_CHECKING:
    from exoalign.config import Recipe
    from exoalign.data.collate import collate
    from exoalign.data.convert_file import convert_file
    from exoalign.data.doctor.examine import examine, examine_fast
    from exoalign.data.doctor.findings import Examination, Finding
    from exoalign.data.formats import (
        PromptRow,
        TextRow,
        open_records,
        read_groups,
        read_prompts,
        read_texts,
        stream_groups,
    )
    from exoalign.data.group_table import GroupTable
    from exoalign.data.mix import mix, split, subsample
    from exoalign.data.set_aside import SetAside
    from exoalign.data.show import render_group
    from exoalign.data.sources import Source
    from exoalign.data.table import read_table, write_table
    from exoalign.data.token_report import TokenReport
    from exoalign.data.tokenize import tokenize
    from exoalign.data.truncate import Truncated, fit
    from exoalign.errors import (
        ConfigError,
        DataError,
        ExoalignError,
        Interrupted,
        ModelError,
        RewardError,
        StoreError,
    )
    from exoalign.estimate.budget import largest_pass
    from exoalign.estimators import Interval, cluster_bootstrap, paired_difference
    from exoalign.groups import Group, GroupBatch, Message
    from exoalign.listing import list_runs
    from exoalign.logprobs.engine import compare_policies, completion_logprobs
    from exoalign.losses import dpo_pref, dpo_rw, exo_pref, exo_rw
    from exoalign.merging import merge
    from exoalign.models import load_model, load_tokenizer
    from exoalign.objectives import OBJECTIVES, ipo, sft_best
    from exoalign.pipeline import dry_run, run
    from exoalign.recipe import load_recipe
    from exoalign.reward_losses import bradley_terry, plackett_luce
    from exoalign.rewards.functions import score
    from exoalign.rewards.model import RewardModel
    from exoalign.rewards.scorers import FunctionScorer, Scorer
    from exoalign.sampling import SamplingSettings, TransformersSampler
    from exoalign.train.align import ExoTrainer
    from exoalign.train.arguments import ExoConfig
    from exoalign.train.checkpoints import train_resumably
    from exoalign.train.online import OnlineConfig, OnlineExoTrainer
    from exoalign.train.ppo import PpoTrainer
    from exoalign.train.reward import RewardConfig, RewardTrainer
    from exoalign.train.rl_arguments import PpoConfig, RlooConfig
    from exoalign.train.rloo import RlooTrainer
    from exoalign.train.sft import SftConfig, SftTrainer

_HOMES = {
    "config": ["Recipe"],
    "data.collate": ["collate"],
    "data.convert_file": ["convert_file"],
    "data.doctor.examine": ["examine", "examine_fast"],
    "data.doctor.findings": ["Examination", "Finding"],
    "data.formats": [
        "PromptRow",
        "TextRow",
        "open_records",
        "read_groups",
        "read_prompts",
        "read_texts",
        "stream_groups",
    ],
    "data.group_table": ["GroupTable"],
    "data.mix": ["mix", "split", "subsample"],
    "data.set_aside": ["SetAside"],
    "data.show": ["render_group"],
    "data.sources": ["Source"],
    "data.table": ["read_table", "write_table"],
    "data.token_report": ["TokenReport"],
    "data.tokenize": ["tokenize"],
    "data.truncate": ["Truncated", "fit"],
    "errors": ["ConfigError", "DataError", "ExoalignError", "Interrupted", "ModelError", "RewardError", "StoreError"],
    "estimate.budget": ["largest_pass"],
    "estimators": ["Interval", "cluster_bootstrap", "paired_difference"],
    "groups": ["Group", "GroupBatch", "Message"],
    "logprobs.engine": ["compare_policies", "completion_logprobs"],
    "losses": ["dpo_pref", "dpo_rw", "exo_pref", "exo_rw"],
    "merging": ["merge"],
    "models": ["load_model", "load_tokenizer"],
    "objectives": ["OBJECTIVES", "ipo", "sft_best"],
    "listing": ["list_runs"],
    "pipeline": ["dry_run", "run"],
    "recipe": ["load_recipe"],
    "reward_losses": ["bradley_terry", "plackett_luce"],
    "rewards.functions": ["score"],
    "rewards.model": ["RewardModel"],
    "rewards.scorers": ["FunctionScorer", "Scorer"],
    "sampling": ["SamplingSettings", "TransformersSampler"],
    "train.align": ["ExoTrainer"],
    "train.arguments": ["ExoConfig"],
    "train.checkpoints": ["train_resumably"],
    "train.online": ["OnlineConfig", "OnlineExoTrainer"],
    "train.ppo": ["PpoTrainer"],
    "train.reward": ["RewardConfig", "RewardTrainer"],
    "train.rl_arguments": ["PpoConfig", "RlooConfig"],
    "train.rloo": ["RlooTrainer"],
    "train.sft": ["SftConfig", "SftTrainer"],
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order in which one meets them
    "Group", "GroupBatch", "Message", "Recipe", "Interval", "OBJECTIVES",
    "ExoalignError", "ConfigError", "DataError", "ModelError", "RewardError", "StoreError", "Interrupted",
    "exo_rw", "exo_pref", "dpo_rw", "dpo_pref", "ipo", "sft_best", "bradley_terry", "plackett_luce",
    "load_model", "load_tokenizer", "Source", "read_prompts", "read_groups", "read_texts", "stream_groups", "PromptRow",
    "TextRow", "SetAside", "convert_file", "read_table", "write_table", "GroupTable", "split", "mix", "subsample",
    "tokenize", "TokenReport", "fit", "Truncated", "render_group", "collate",
    "open_records", "examine", "examine_fast", "Examination", "Finding",
    "completion_logprobs", "compare_policies", "SamplingSettings", "TransformersSampler", "score",
    "Scorer", "FunctionScorer", "RewardModel",
    "ExoConfig", "ExoTrainer", "OnlineConfig", "OnlineExoTrainer", "SftConfig", "SftTrainer", "RewardConfig", "RewardTrainer",
    "PpoConfig", "PpoTrainer", "RlooConfig", "RlooTrainer", "train_resumably",
    "merge", "largest_pass", "cluster_bootstrap", "paired_difference",
    "load_recipe", "run", "dry_run", "list_runs", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"exoalign.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'exoalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
