"""Synthetic runs, the same on every machine: what `write_page` gets from a reward run and a run on pairs."""

import math
import random
import statistics
from typing import Any

import pytest

SUBJECTS = [
    "film about a lighthouse",
    "noodle shop",
    "train ride",
    "budget laptop",
    "hotel by the sea",
    "novel",
    "museum",
    "cat café",
]
WARM = [
    "a quiet delight from start to finish",
    "warm, funny and well made",
    "the staff were kind",
    "I would gladly go back",
]
COOL = ["slow in the middle", "rather plain for the price", "not what I had hoped for", "the ending left me cold"]
PLAIN = ["it lasts about two hours", "there are three rooms", "we went on a Tuesday", "it comes in two colours"]


def _completion(rng: random.Random, warmth: float) -> dict[str, Any]:
    parts, reward = [], 0.0
    for _ in range(rng.randint(2, 4)):
        draw = rng.random()
        pool, gain = (WARM, 0.45) if draw < warmth else (COOL, -0.4) if draw < warmth + 0.25 else (PLAIN, 0.0)
        parts.append(rng.choice(pool))
        reward += gain + rng.gauss(0, 0.05)
    return {"text": " I must say, " + "; ".join(parts) + ".", "reward": math.tanh(reward)}


def _estimate(values: list[float]) -> dict[str, float]:
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


@pytest.fixture
def reward_run() -> dict[str, Any]:
    """32 held-out prompts with 4 completions of both models, and 24 optimizer steps."""
    return make_reward_run()


@pytest.fixture
def pair_run() -> dict[str, Any]:
    """A run on pairs: held-out accuracy, no samples, no rewards."""
    return make_pair_run()


@pytest.fixture
def chain_run() -> dict[str, Any]:
    """A run of all seven stages, each with a summary; 12 plots in them."""
    return make_chain_run()


def make_reward_run(prompts: int = 32, k: int = 4) -> dict[str, Any]:
    rng = random.Random(0)
    samples = [
        {
            "prompt": f"Write a short review of a {rng.choice(SUBJECTS)} that you saw in {rng.randint(1990, 2024)}.",
            "base": [_completion(rng, 0.4) for _ in range(k)],
            "aligned": [_completion(rng, 0.65) for _ in range(k)],
        }
        for _ in range(prompts)
    ]
    means = {
        name: [statistics.fmean(completion["reward"] for completion in sample[name]) for sample in samples]
        for name in ("base", "aligned")
    }
    differences = [after - before for before, after in zip(means["base"], means["aligned"], strict=True)]
    history = []
    for step in range(1, 25):
        progress = 1 - math.exp(-step / 9)
        history.append(
            {
                "step": step,
                "loss": 0.92 - 0.4 * progress + rng.gauss(0, 0.03),
                "grad_norm": 3.1 - 1.2 * progress + abs(rng.gauss(0, 0.4)),
                "learning_rate": 1e-5 * (1 + math.cos(math.pi * step / 24)) / 2,
                "policy_reward": 0.41 + 0.21 * progress + rng.gauss(0, 0.02),
                "target_reward": 0.78 + rng.gauss(0, 0.02),
                "policy_ess": 8 - 3.1 * progress + rng.gauss(0, 0.12),
                "target_ess": 2.9 + rng.gauss(0, 0.2),
                "policy_entropy": 2.07 - 0.5 * progress,
                "target_entropy": 1.2 + rng.gauss(0, 0.05),
                "best_log_ratio": 1.3 * progress + rng.gauss(0, 0.08),
                "worst_log_ratio": -2.4 * progress + rng.gauss(0, 0.12),
                "no_spread": 0.0,
            }
        )
    return {
        "title": "demo: exo_rw on short reviews",
        "recipe": {
            "name": "demo",
            "seed": 0,
            "model": {"path": "demo", "precision": "bfloat16"},
            "sample": {"k": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40},
            "reward": {"function": "sentiment"},
            "align": {
                "objective": "exo_rw",
                "beta_pi": 0.5,
                "beta_r": 0.25,
                "learning_rate": 1e-05,
                "groups_per_step": 8,
                "epochs": 3,
            },
            "evaluate": {"k": k},
        },
        "metrics": {
            "base": {"reward": _estimate(means["base"]), "length": {"mean": 37.9, "low": 37.2, "high": 38.6}},
            "aligned": {
                "reward": _estimate(means["aligned"]),
                "kl": {"mean": 0.721, "low": 0.612, "high": 0.833},
                "kl_exact": {"mean": 0.704, "low": 0.641, "high": 0.772},
                "length": {"mean": 38.8, "low": 38.1, "high": 39.4},
            },
            "difference": {"reward": _estimate(differences)},
            "prompts": prompts,
            "completions_per_prompt": k,
        },
        "history": history,
        "warnings": [
            "The target's effective sample size is 2.9 of 8. Raise align.beta_r above 0.25.",
            "The worst log-ratio fell to −2.4 nats in 24 steps. Lower align.learning_rate below 1e-05.",
        ],
        "samples": samples,
        "stages": [
            {"name": "sample", "seconds": 80.1, "state": "done", "what": "64 prompts x 8 completions"},
            {"name": "reward", "seconds": 0.4, "state": "reused", "what": "512 completions by sentiment"},
            {"name": "align", "seconds": 412.0, "state": "done", "what": "24 steps of 8 groups"},
            {
                "name": "evaluate",
                "seconds": 61.7,
                "state": "done",
                "what": f"{prompts} prompts x {k} completions, both models",
            },
        ],
        "versions": {"exoalign": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
    }


def make_pair_run() -> dict[str, Any]:
    rng = random.Random(1)
    run = make_reward_run(prompts=2)
    history = [
        {
            "step": step,
            "loss": 0.69 - 0.17 * (1 - math.exp(-step / 5)) + rng.gauss(0, 0.015),
            "grad_norm": 5 + rng.gauss(0, 0.6),
            "accuracy": min(1.0, 0.5 + 0.3 * (1 - math.exp(-step / 5)) + rng.gauss(0, 0.05)),
            "best_log_ratio": -0.02 * step + rng.gauss(0, 0.02),
            "worst_log_ratio": -0.09 * step + rng.gauss(0, 0.03),
        }
        for step in range(1, 17)
    ]
    return run | {
        "title": "hh: exo_pref on pairs",
        "recipe": {"name": "hh", "seed": 0, "align": {"objective": "exo_pref", "beta_pi": 0.5}},
        "metrics": {
            "train": {"loss_before": 0.69, "loss_after": 0.52, "pairs": 64},
            "heldout": {
                "accuracy": {"mean": 0.71875, "low": 0.5625, "high": 0.875},
                "loss": {"mean": 0.581, "low": 0.49, "high": 0.68},
                "pairs": 32,
            },
        },
        "history": history,
        "warnings": [],
        "samples": [],
    }


def make_chain_run() -> dict[str, Any]:
    rng = random.Random(2)
    steps = list(range(1, 121))

    def falling(start: float, end: float) -> list[float]:
        return [end + (start - end) * math.exp(-step / 30) + rng.gauss(0, 0.02) for step in steps]

    def curve(title: str, y_label: str, **series: list[float]) -> dict[str, Any]:
        lines = [{"name": name.replace("_", " "), "x": steps, "y": ys} for name, ys in series.items()]
        return {"title": title, "x_label": "optimizer step", "y_label": y_label, "series": lines}

    def histogram(title: str, x_label: str, **series: float) -> dict[str, Any]:
        values = {name: [rng.gauss(mean, 1) for _ in range(240)] for name, mean in series.items()}
        return {
            "title": title,
            "x_label": x_label,
            "series": [{"name": name, "values": found} for name, found in values.items()],
        }

    def texts(title: str, warmth: float, prompt: str = "") -> dict[str, Any]:
        drawn = [_completion(rng, warmth) for _ in range(3)]
        rows = [{"label": f"{prompt}{one['reward']:.3f}", "text": one["text"]} for one in drawn]
        return {"title": title, "rows": rows}

    def interval(mean: float, half: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - half, "high": mean + half}

    bins = [0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85]
    calibration = {
        "title": "Calibration",
        "x_label": "predicted probability that the chosen one is preferred",
        "y_label": "share that is",
        "series": [
            {"name": "measured", "x": bins, "y": [0.2, 0.31, 0.4, 0.42, 0.6, 0.61, 0.69, 0.8]},
            {"name": "perfect", "x": [0, 1], "y": [0, 1]},
        ],
        "note": "Below the diagonal the model is too sure.",
    }
    frontier = {
        "title": "Reward against KL",
        "x_label": "KL, nats a completion",
        "y_label": "mean reward",
        "series": [
            {"name": "exo_rw", "x": [0, 0.1, 0.4, 0.72], "y": [0.41, 0.45, 0.54, 0.59]},
            {"name": "dpo_rw", "x": [0, 0.12, 0.5, 0.68], "y": [0.41, 0.44, 0.52, 0.56]},
        ],
    }
    lengths = {
        "title": "Accuracy by length",
        "x_label": "tokens",
        "y_label": "accuracy",
        "series": [{"name": "accuracy", "x": ["1 to 16", "17 to 32", "65 and more"], "y": [0.5, 0.61, 0.58]}],
    }
    long_name = "my_package.rewards:a_rather_long_name_of_a_function"
    summaries: dict[str, tuple[str, dict[str, Any]]] = {
        "sft": (
            "1,500 texts in 120 steps",
            {
                "numbers": [
                    {"label": "training texts", "value": 1500},
                    {"label": "held-out loss", "value": interval(3.523, 0.046), "note": "nats a token, 200 texts"},
                ],
                "curves": [
                    curve("Loss", "nats a token", training=falling(3.9, 3.5), held_out=falling(3.9, 3.52)),
                    curve("Learning rate", "learning rate", rate=[1e-5 * (120 - step) / 120 for step in steps]),
                ],
            },
        ),
        "reward_model": (
            "Bradley-Terry on 960 pairs",
            {
                "numbers": [
                    {"label": "held-out accuracy", "value": interval(0.61, 0.06), "note": "240 pairs"},
                    {"label": "held-out pairs of one length", "value": 0},
                    {"label": "calibration error", "value": math.nan},
                ],
                "curves": [curve("Loss", "loss", loss=falling(0.69, 0.6)), calibration, lengths],
                "histograms": [histogram("Rewards of chosen and rejected", "reward", chosen=0.3, rejected=-0.2)],
            },
        ),
        "sample": (
            "256 prompts x 8 completions",
            {
                "numbers": [
                    {"label": "tokens a second", "value": 221.3},
                    {"label": "backend", "value": "transformers"},
                ],
                "histograms": [histogram("Length of completions", "tokens", length=30.0)],
                "texts": [texts("A few completions", 0.4, prompt="Write a short review of a museum.\n")],
            },
        ),
        "reward": (
            "2,048 completions by 2 scorers",
            {
                "numbers": [{"label": f"{long_name} x -0.2", "value": interval(-0.02, 0.01)}],
                "histograms": [histogram("Reward by scorer", "reward", **{"reward_model": 0.3, long_name: -1.0})],
                "texts": [texts("Best completions", 0.9), texts("Worst completions", 0.1)],
            },
        ),
        "judge": (
            "64 pairs in both orders, 128 calls",
            {
                "numbers": [
                    {"label": "win rate of aligned", "value": interval(0.61, 0.06)},
                    {"label": "position bias", "value": interval(0.08, 0.1), "note": "verdicts that follow the order"},
                    {"label": "judge", "value": "HuggingFaceTB/SmolLM2-135M-Instruct at http://127.0.0.1:8000/v1"},
                ],
                "texts": [texts("Verdicts that contradict each other", 0.5)],
            },
        ),
        "align": (
            "120 steps of 8 groups",
            {
                "numbers": [{"label": "learning rate", "value": 1e-6}],
                "curves": [
                    curve("Log-ratio", "nats", **{f"rank_{r}": falling(0.0, 1.6 - 0.4 * r) for r in range(6)}),
                ],
            },
        ),
        "evaluate": (
            "32 prompts x 4 completions, both models",
            {
                "curves": [frontier],
                "histograms": [
                    histogram("Rewards", "reward", base=0.4, aligned=0.6),
                    {
                        "title": "Verdicts",
                        "x_label": "verdict",
                        "series": [{"name": "verdict", "values": [0, 0.5, 1, 1]}],
                    },
                ],
            },
        ),
    }
    stages = [
        {"name": name, "seconds": 80.1 * (place + 1), "state": "done", "what": what, "summary": summary}
        for place, (name, (what, summary)) in enumerate(summaries.items())
    ]
    return make_reward_run() | {"title": "oracle: exo_rw on film reviews", "stages": stages}
