"""Scoring HH replies by a reward model, in passes against one by one: python benchmarks/scoring.py [--replies N] [--json FILE]

The reward model is the demo model with a fresh head: its rewards mean nothing, and take as long as others. The ways take
turns, a round after the other: `passes` (the two replies of a pair share their prompt), `apart` (each reply a group of its own,
so that nothing is shared) and `one by one` (the model's own forward, of the same replies thinned to `--alone`). Where these run
in bfloat16, `float32` is one by one as transformers loads a model, without autocast. Rates are the medians over the rounds in
replies a second, tokenising included. `tokens saved` is the ratio of the tokens of `apart` to those of `passes`: where matrix
products are as fast for one reply as for many, as on most CPUs, scoring cannot gain more at equal precision.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from processes import parser, peak_bytes

TARGET = 3.0


def apart(groups: Sequence[Any]) -> list[Any]:
    """Each completion as a group of its own."""
    from exoalign import Group

    return [Group(group.prompt, (completion,)) for group in groups for completion in group.completions]


def measure(model: str, data: Path, rounds: int, *, replies: int, alone: int, bf16: bool) -> dict[str, Any]:
    """Rates of the three ways, their ratio, and by how much their rewards differ."""
    from exoalign import load_tokenizer, read_groups
    from exoalign.models import quiet_libraries
    from exoalign.rewards.inputs import together
    from exoalign.rewards.load import load_reward_model
    from exoalign.rewards.model import RewardModel
    from exoalign.rewards.padding import set_padding

    quiet_libraries()
    groups, _ = read_groups(str(data / "hh_harmless_train.jsonl.gz"), limit=replies // 2)
    some = groups[:: max(1, -(-replies // alone))]
    with tempfile.TemporaryDirectory() as folder:
        begun, tokenizer = load_reward_model(model, fresh_labels=1), load_tokenizer(model)
        set_padding(begun, tokenizer)
        begun.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        scorer = RewardModel(folder, bf16=bf16)
        plain = RewardModel(folder, bf16=False) if bf16 else scorer
    scorer(groups[:2])  # the examination of the model, once for all
    made = [scorer.inputs.of(group) for group in groups]
    texts = [ids for row in made for ids in row]
    places = [part for row in made for _, part in together(row, 0)]
    packed = sum(len(p.prompt_ids or ()) + sum(len(c) - 1 for c in p.completion_ids or ()) for p in places)
    ways: dict[str, tuple[Callable[[Sequence[Any]], list[tuple[float, ...]]], list[Any]]] = {
        "passes": (scorer, groups),
        "apart": (scorer, apart(groups)),
        "one by one": (scorer.one_by_one, some),
        **({"float32": (plain.one_by_one, some)} if bf16 else {}),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(rounds):
        for name, (score, work) in ways.items():
            began = time.perf_counter()
            found[name] = score(work)
            rates[name].append(sum(group.k for group in work) / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    passes = dict(zip(map(id, groups), found["passes"], strict=True))
    pairs = (
        (a, b)
        for g, row in zip(some, found["one by one"], strict=True)
        for a, b in zip(passes[id(g)], row, strict=True)
    )
    return {
        "replies": sum(group.k for group in groups),
        "precision": "bfloat16 autocast" if bf16 else "float32",
        "rates": rates,
        "replies a second": medians,
        "passes over": {name: medians["passes"] / rate for name, rate in medians.items()},
        "expected": TARGET,
        "tokens saved": sum(map(len, texts)) / packed,
        "largest difference in reward": max(abs(a - b) for a, b in pairs),
        "spread of rewards": statistics.pstdev([value for row in found["passes"] for value in row]),
        "peak bytes": peak_bytes(),
    }


def main() -> None:
    """Measure, print, and write to --json."""
    from exoalign.models import native_bfloat16, resolve

    command = parser(__doc__, 3)
    command.add_argument("--replies", type=int, default=2000, help="replies that are scored")
    command.add_argument("--alone", type=int, default=200, help="replies of them that are scored one by one")
    command.add_argument("--float32", action="store_true", help="no bfloat16, where the machine has it")
    options = command.parse_args()
    found = measure(
        resolve(options.model),
        options.data,
        options.rounds,
        replies=options.replies,
        alone=options.alone,
        bf16=native_bfloat16() and not options.float32,
    )
    text = json.dumps(found, indent=1)
    if options.json:
        options.json.write_text(text)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
