"""From the data of a recipe to groups with token ids: read, choose completions, split, tokenise, fit, mix; kept by the cache.

Everything is streamed from the source into the cache's file: what is held in memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exoalign.config_data import DataSection, SourceSection, as_list
from exoalign.data.formats import SetAside, stream_groups
from exoalign.data.group_table import GroupTable, join
from exoalign.data.mix import Side, mix, split, subsample
from exoalign.data.sources import Source
from exoalign.data.token_cache import Kept, keep, source_record, tokenizer_record
from exoalign.data.token_report import TokenReport
from exoalign.data.tokenize import stream_tokenized
from exoalign.data.truncate import TruncationReport, fit
from exoalign.errors import DataError
from exoalign.groups import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """Groups that are ready for training.

    Attributes:
        groups: with token ids.
        made_from: what they depend on besides the tokenizer, as JSON values.
        notes: what the user should know: rows set aside, what was cut, how much came from the cache.
    """

    groups: Sequence[Group]
    made_from: Any
    notes: list[str] = field(default_factory=list)
