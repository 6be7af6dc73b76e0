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
    from exoalign.data.formats import read_groups, read_prompts, read_texts, stream_groups
    from exoalign.data.sources import Source
    from exoalign.data.tokenize import tokenize
    from exoalign.errors import ExoalignError
    from exoalign.estimate.budget import largest_pass
    from exoalign.estimators import Interval, cluster_bootstrap, paired_difference
    from exoalign.groups import Group, GroupBatch, Message
    from exoalign.logprobs.engine import compare_policies, completion_logprobs
    from exoalign.losses import OBJECTIVES, dpo_pref, dpo_rw, exo_pref, exo_rw
    from exoalign.merging import merge
    from exoalign.models import load_model, load_tokenizer
    from exoalign.pipeline import run
    from exoalign.recipe import load_recipe
    from exoalign.rewards.functions import score
    from exoalign.sampling import SamplingSettings, TransformersSampler
    from exoalign.train.align import ExoTrainer
    from exoalign.train.arguments import ExoConfig

_HOMES = {
    "config": ["Recipe"],
    "data.collate": ["collate"],
    "data.formats": ["read_groups", "read_prompts", "read_texts", "stream_groups"],
    "data.sources": ["Source"],
    "data.tokenize": ["tokenize"],
    "errors": ["ExoalignError"],
    "estimate.budget": ["largest_pass"],
    "estimators": ["Interval", "cluster_bootstrap", "paired_difference"],
    "groups": ["Group", "GroupBatch", "Message"],
    "logprobs.engine": ["compare_policies", "completion_logprobs"],
    "losses": ["OBJECTIVES", "dpo_pref", "dpo_rw", "exo_pref", "exo_rw"],
    "merging": ["merge"],
    "models": ["load_model", "load_tokenizer"],
    "pipeline": ["run"],
    "recipe": ["load_recipe"],
    "rewards.functions": ["score"],
    "sampling": ["SamplingSettings", "TransformersSampler"],
    "train.align": ["ExoTrainer"],
    "train.arguments": ["ExoConfig"],
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order in which one meets them
    "Group", "GroupBatch", "Message", "Recipe", "Interval", "ExoalignError", "OBJECTIVES",
    "exo_rw", "exo_pref", "dpo_rw", "dpo_pref",
    "load_model", "load_tokenizer", "Source", "read_prompts", "read_groups", "read_texts", "stream_groups", "tokenize",
    "collate",
    "completion_logprobs", "compare_policies", "SamplingSettings", "TransformersSampler", "score",
    "ExoConfig", "ExoTrainer", "merge", "largest_pass", "cluster_bootstrap", "paired_difference",
    "load_recipe", "run", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"exoalign.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'exoalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
