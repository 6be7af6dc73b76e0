"""A synthetic comparison, the same on every machine: what `write_compare_page` gets from a whole comparison."""

import math
import random
from typing import Any

from conftest import _completion

METHODS = [
    ("exo_k4", "EXO, K = 4", 0.62),
    ("exo_k8", "EXO, K = 8", 0.70),
    ("exo_k32", "EXO, K = 32", 0.78),
    ("online_exo", "EXO online, K = 4", 0.80),
    ("dpo", "DPO-rw", 0.60),
    ("online_dpo", "DPO-rw online", 0.68),
    ("exo_pref", "EXO-pref", 0.45),
    ("dpo_pref", "DPO-pref", 0.40),
    ("ppo", "PPO", 0.74),
    ("best_of_n", "Best-of-N", 0.72),
]
BASE = 0.3
UP_TO = 2.0


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def reward_at(kl: float, power: float) -> float:
    return BASE + power * (1 - math.exp(-kl / 1.5))


def _point(rng: random.Random, step: int, kl: float, power: float, cost: float) -> dict[str, Any]:
    length = 38 + 6 * kl * rng.random()
    return {
        "step": step,
        "seconds": 3.1 * step * cost,
        "tokens": int(2400 * step * cost),
        "reward": around(reward_at(kl, power) + rng.gauss(0, 0.015), 0.03),
        "kl": around(kl * 1.02, 0.12 * kl + 0.02),
        "kl_exact": around(kl, 0.08 * kl + 0.01),
        "kl_k3": around(kl, 0.1 * kl + 0.02),
        "length": around(length, 1.2),
        "distinct_2": around(0.8 - 0.08 * kl, 0.01),
        "self_bleu": around(0.2 + 0.06 * kl, 0.02),
    }


def _run(rng: random.Random, place: int, seed: int) -> dict[str, Any]:
    name, _, power = METHODS[place]
    if name == "best_of_n":
        kls = [math.log(n) - (n - 1) / n for n in (1, 2, 4, 16, 64)]
        points = [_point(rng, n, kl, power, 1.0) for n, kl in zip((1, 2, 4, 16, 64), kls, strict=True)]
        return {"method": name, "seed": 0, "beta": None, "points": points, "history": []}
    cost = 4.0 if name == "ppo" else 1.0 + 0.15 * place
    points = [_point(rng, 24 * i, (1.1 + 0.12 * place) * i**0.9 * 0.5, power, cost) for i in range(1, 6)]
    history = [
        {
            "step": step,
            "loss": 0.9 - 0.4 * (1 - math.exp(-step / 30)) + rng.gauss(0, 0.03),
            "grad_norm": 2 + rng.random(),
            "learning_rate": 1e-5 * (1 - step / 120),
            "policy_reward": BASE + 0.3 * (1 - math.exp(-step / 40)) + rng.gauss(0, 0.02),
        }
        for step in range(1, 121)
    ]
    return {"method": name, "seed": seed, "beta": 0.5, "points": points, "history": history}


def _frontier(name: str, power: float) -> dict[str, Any]:
    kl = [0.05 * i for i in range(61)]
    reward = [reward_at(x, power) for x in kl]
    area = sum(reward_at(0.02 * i, power) - BASE for i in range(100)) / 100
    return {
        "method": name,
        "kl": kl,
        "reward": reward,
        "low": [r - 0.02 - 0.005 * x for r, x in zip(reward, kl, strict=True)],
        "high": [r + 0.02 + 0.005 * x for r, x in zip(reward, kl, strict=True)],
        "area": around(area, 0.02),
        "area_with_seeds": around(area, 0.03),
        "area_seeds": [area - 0.01, area, area + 0.01],
        "up_to": UP_TO,
    }


def _samples(rng: random.Random, runs: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """All points of the first prompts and the last points of the others, `count` replies in all."""
    found: list[dict[str, Any]] = []
    while count > 0:
        rows = [{"method": "sft", "seed": 0, "beta": None, "step": 0, **_completion(rng, 0.4)}]
        for run in runs:
            for point in run["points"] if len(found) < 3 else run["points"][-1:]:
                key = {"method": run["method"], "seed": run["seed"], "beta": run["beta"], "step": point["step"]}
                rows.append({**key, **_completion(rng, point["reward"]["mean"])})
        rows = rows[:count]
        count -= len(rows)
        found.append({"prompt": f"Write a short review of a place that you saw in {1990 + len(found)}.", "rows": rows})
    return found


def make_comparison(samples: int = 2000) -> dict[str, Any]:
    """10 methods with 3 seeds of 5 points each (Best-of-N: 1), and so many samples."""
    rng = random.Random(3)
    runs = [
        _run(rng, place, seed)
        for place, (name, _, _) in enumerate(METHODS)
        for seed in range(1 if name == "best_of_n" else 3)
    ]
    frontiers = [_frontier(name, power) for name, _, power in METHODS]
    areas = {found["method"]: found["area"]["mean"] for found in frontiers}
    names = [name for name, _, _ in METHODS]
    models = ["sft", *names]
    strength = {"sft": 0.0} | {name: power for name, _, power in METHODS}

    def rate(a: str, b: str) -> dict[str, float]:
        return around(1 / (1 + math.exp(-2.5 * (strength[a] - strength[b]))), 0.05)

    return {
        "title": "sentiment: EXO, DPO, PPO and Best-of-N",
        "methods": [
            {"name": name, "label": label, "about": '{"objective": "exo_rw", "learning_rate": 1e-05}'}
            for name, label, _ in METHODS
        ],
        "runs": runs,
        "frontiers": frontiers,
        "difference": [
            {
                "a": a,
                "b": b,
                "area": around(areas[a] - areas[b], 0.008),
                "area_with_seeds": around(areas[a] - areas[b], 0.012),
            }
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        ],
        "win_rates": {
            "models": models,
            "matrix": [[None if a == b else rate(a, b) for b in models] for a in models],
            "against": [
                {
                    "model": name,
                    "other": other,
                    "by": by,
                    "rate": rate(name, "sft"),
                    "length_controlled": around(rate(name, "sft")["mean"] - 0.03, 0.06),
                    "ties": 4,
                    "invalid": 1 if by == "judge" else 0,
                }
                for other in ("sft", "chosen")
                for by in ("reward", "held-out reward model", "judge")
                for name in names
            ],
            "ratings": [
                {
                    "model": name,
                    "elo": 400 * strength[name],
                    "low": 400 * strength[name] - 30,
                    "high": 400 * strength[name] + 35,
                }
                for name in sorted(models, key=lambda name: -strength[name])
            ],
        },
        "variance": [
            {
                "method": name,
                "completions": k,
                "variance": around(scale / k, 0.1 * scale / k),
                "cosine": around(1 - scale / (2 * k), 0.05 / k),
            }
            for name, scale in (("exo_k8", 1.1), ("dpo", 0.8), ("ppo", 2.0))
            for k in (2, 4, 8, 16, 32)
        ],
        "search": [
            {
                "method": name,
                "trials": [
                    {
                        "settings": {"learning_rate": rate, "beta": 0.5},
                        "objective": power - abs(math.log10(rate / 1e-5)) / 5,
                        "chosen": rate == 1e-5,
                    }
                    for rate in (3e-6, 1e-5, 3e-5)
                ],
            }
            for name, _, power in METHODS[:-1]
        ],
        "samples": _samples(rng, runs, samples),
        "recipe": {
            "name": "sentiment",
            "betas": [0.5],
            "seeds": [0, 1, 2],
            "task": {
                "seed": 0,
                "model": {"path": "demo", "precision": "bfloat16"},
                "reward": {"function": "sentiment"},
            },
        },
        "versions": {"exoalign": "0.3.0", "torch": "2.13.0"},
        "warnings": ["PPO seed 2 failed: the loss is not finite in step 31. Lower align.learning_rate below 1e-05."],
    }
