"""Estimates against measured runs of the demo model: python benchmarks/estimate.py

Each setting trains in a process of its own, for its peak resident memory; completions are random tokens.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time

SETTINGS = [  # groups, prompt, K, completion, bfloat16, checkpointing
    (4, 512, 8, 64, True, False),
    (4, 512, 8, 64, False, False),
    (4, 64, 64, 40, True, False),
    (8, 100, 2, 150, False, False),
    (4, 512, 8, 64, True, True),
]


def measure(groups: int, prompt: int, k: int, completion: int, bf16: bool, checkpointing: bool) -> dict[str, float]:
    import torch

    from exoalign import ExoConfig, ExoTrainer, Group, load_model, load_tokenizer
    from exoalign.estimate.shapes import shape_of
    from exoalign.stages import estimate_training

    torch.set_num_threads(2)
    tokenizer, draw = load_tokenizer("demo"), random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100, 49000) for _ in range(count))

    rows = [
        Group(
            f"{i}",
            tuple(f"{i} {j}" for j in range(k)),
            rewards=tuple(float(j) for j in range(k)),
            prompt_ids=ids(prompt),
            completion_ids=tuple(ids(completion) for _ in range(k)),
        )
        for i in range(groups)
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = ExoConfig(
            folder,
            objective="exo_rw",
            bf16=bf16,
            gradient_checkpointing=checkpointing,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = ExoTrainer(load_model("demo"), settings, rows, processing_class=tokenizer)
        found = estimate_training(trainer.model, settings, shape_of(rows))
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"memory": found.total, "peak": peak, "time": found.seconds, "seconds": seconds, "rate": found.rate}


def main() -> None:
    memory, spent = (f"{name} estimated | measured | ratio" for name in ("memory", "time"))
    print(f"| groups, prompt, K, completion | precision | {memory} | {spent} |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        command = [sys.executable, __file__, json.dumps(setting)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        r = json.loads(done.stdout.splitlines()[-1])
        how = ("bfloat16" if setting[4] else "float32") + (", checkpointing" if setting[5] else "")
        memory = f"{r['memory'] / 1e9:.2f} GB | {r['peak'] / 1e9:.2f} GB | {r['memory'] / r['peak']:.2f}"
        spent = f"{r['time']:.0f} s | {r['seconds']:.0f} s | {r['time'] / r['seconds']:.2f}"
        print(f"| {', '.join(map(str, setting[:4]))} | {how} | {memory} | {spent} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
