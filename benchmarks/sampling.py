"""The sampler's rate against a plain loop of `generate(do_sample=True)`: python benchmarks/sampling.py [--json FILE]

K = 8 completions for each of some short prompts (a question in a chat) and of some long ones (512 tokens of running text), in
the type that the processor is fast in. The plain loop is what one writes by hand: prompts sorted by length, each K times in a
batch, padded on the left. It is measured at several batch sizes first; the best one is what both sides are then compared at.
One process a measurement, ABAB order, other prompts each round. Counted are the tokens of completions up to their end; the
model is loaded and warmed up before.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import measured, parser, peak_bytes, report

K, TEMPERATURE, LEAST = 8, 0.8, 0.9
SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class Case:
    """What is sampled: so many prompts a round, and tokens a completion."""

    what: str
    prompts: int
    max_new_tokens: int


CASES = {
    "short": Case("chat questions of about 25 tokens, 40 new ones", 32, 40),
    "long": Case("running text of 512 tokens, 64 new ones", 16, 64),
}


def prompts_of(name: str, tokenizer: Any, data: Path, count: int, number: int) -> list[Any]:
    """The prompts of a round."""
    from exoalign import Message, read_groups
    from exoalign.groups import prompt_text

    groups, _ = read_groups(str(data / "hh_harmless_train.jsonl.gz"), limit=2000)
    texts = [prompt_text(group.prompt) for group in groups]
    if name == "short":
        asked = [text.split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").strip() for text in texts]
        fitting = [text for text in asked if 5 <= len(tokenizer(text)["input_ids"]) <= 25]
        return [(Message("user", text),) for text in fitting[number * count :][:count]]
    ids = tokenizer("".join(texts))["input_ids"]
    return [tokenizer.decode(ids[place * 512 :][:512]) for place in range(number * count, (number + 1) * count)]


def plain(model: Any, tokenizer: Any, prompts: list[Any], new: int, size: int, seed: int) -> int:
    """The loop by hand; the number of tokens that it drew."""
    import torch

    from exoalign.data.tokenize import prompt_ids

    torch.manual_seed(seed)
    rows = [ids for ids in sorted((prompt_ids(tokenizer, p) for p in prompts), key=len) for _ in range(K)]
    tokens, end, pad = 0, tokenizer.eos_token_id, tokenizer.pad_token_id
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width = max(map(len, batch))
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch]),
                attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
                max_new_tokens=new,
            )
        for row in output[:, width:].tolist():
            tokens += row.index(end) + 1 if end in row else len(row)
    return tokens


def ours(model: Any, tokenizer: Any, prompts: list[Any], new: int, size: int, seed: int) -> int:
    """`TransformersSampler`; the number of tokens that it drew."""
    from exoalign import SamplingSettings, TransformersSampler

    settings = SamplingSettings(k=K, temperature=TEMPERATURE, max_new_tokens=new, seed=seed)
    drawn = TransformersSampler(model, tokenizer, batch_size=size).draw(prompts, settings)
    return sum(len(draw.ids) for draws in drawn for draw in draws)


def measure(side: str, name: str, model: str, data: str, size: int, count: int, number: int) -> dict[str, float]:
    """One side's rate on a round's prompts, in this process."""
    import torch

    from exoalign import load_model, load_tokenizer
    from exoalign.models import native_bfloat16, quiet_libraries

    quiet_libraries()
    run, tokenizer = {"ours": ours, "plain": plain}[side], load_tokenizer(model)
    loaded = load_model(model, dtype=torch.bfloat16 if native_bfloat16() else torch.float32).eval()
    prompts = prompts_of(name, tokenizer, Path(data), count, number)
    run(loaded, tokenizer, prompts[:2], 2, size, 0)
    began = time.perf_counter()
    tokens = run(loaded, tokenizer, prompts, CASES[name].max_new_tokens, size, number)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": tokens, "per_second": tokens / seconds, "peak_bytes": peak_bytes()}


def main() -> None:
    """Find the best batch size, compare, print a line for each case, write JSON after each."""
    if sys.argv[1:2] == ["--measure"]:
        side, name, model, data, *numbers = sys.argv[2:]
        report(measure(side, name, model, data, *map(int, numbers)))
        return
    from exoalign.models import resolve

    command = parser(__doc__, rounds=5)
    command.add_argument("--case", choices=list(CASES), help="this case only")
    command.add_argument("--prompts", type=int, help="prompts a round, in place of the case's")
    command.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes that are tried")
    options = command.parse_args()
    model, results = resolve(options.model), {}
    for name in [options.case] if options.case else CASES:
        case = CASES[name]
        count = options.prompts or case.prompts

        def rate(side: str, size: int, number: int, name: str = name, count: int = count) -> dict[str, Any]:
            return measured("sampling.py", "--measure", side, name, model, options.data, size, count, number)

        tried = {size: rate("plain", size, 0)["per_second"] for size in options.sizes}
        best = max(tried, key=lambda size: tried[size])
        rounds = []
        for number in range(1, options.rounds + 1):
            rounds.append({side: rate(side, best, number) for side in ("ours", "plain")})
            a, b = (rounds[-1][side]["per_second"] for side in ("ours", "plain"))
            sys.stderr.write(f"{name} round {number}: {a:.0f} against {b:.0f} tokens/s\n")
        ratios = [r["ours"]["per_second"] / r["plain"]["per_second"] for r in rounds]
        results[name] = {
            "what": case.what,
            "prompts": count,
            "k": K,
            "batch_size": best,
            "plain_by_batch_size": tried,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            **{side: statistics.median(r[side]["per_second"] for r in rounds) for side in ("ours", "plain")},
            "rounds": rounds,
        }
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
        found = results[name]
        sys.stdout.write(
            f"{name:6} {found['ratio']:.2f} of the plain loop's rate ({min(ratios):.2f} to {max(ratios):.2f}, at least {LEAST}"
            f" wanted): {found['ours']:.0f} against {found['plain']:.0f} tokens/s at {best} rows\n"
        )


if __name__ == "__main__":
    main()
