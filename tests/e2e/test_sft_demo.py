"""Supervised fine-tuning of the demo model on film reviews: a few steps, after which it predicts others better."""

import json

import pytest

from exoalign.config import ModelSection
from exoalign.config_sft import SftSection
from exoalign.models import context_length, load_tokenizer, native_bfloat16
from exoalign.stages_sft import read_sft_data, sft


@pytest.mark.slow
def test_a_few_steps_lower_the_perplexity_of_held_out_reviews(shared_data, tmp_path):
    def reviews(side, limit):
        return {"path": str(shared_data / f"rt_polarity_{side}.jsonl.gz"), "adapter": "rt_polarity", "limit": limit}

    section = SftSection.model_validate(
        {
            "data": {"train": reviews("train", 64), "evaluation": reviews("test", 24)},
            "learning_rate": 1e-4,
            "rows_per_step": 8,
        }
    )
    tokenizer, model = load_tokenizer("demo"), ModelSection(path="demo")
    data = read_sft_data(section, tokenizer, context=context_length("demo"), seed=0)
    assert not data.notes
    sft(section, data, tmp_path, model=model, tokenizer=tokenizer, seed=0, bf16=native_bfloat16(), show=False)
    found = json.loads((tmp_path / "metrics.json").read_text())["heldout"]
    assert found["difference"]["high"] < -0.1  # nats a token
    assert found["after"]["perplexity"]["mean"] < 0.9 * found["before"]["perplexity"]["mean"]
    steps = json.loads((tmp_path / "history.json").read_text())["steps"]
    assert len(steps) == 8
