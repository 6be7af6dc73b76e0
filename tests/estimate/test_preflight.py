"""Estimates of whole runs: sums by hand, a 70B model from its configuration, and what to lower where it does not fit."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from exoalign import adapters, pipeline
from exoalign.errors import ConfigError, ModelError
from exoalign.estimate import preflight
from exoalign.estimate.lines import count, lines, size, warning
from exoalign.estimate.preflight import _work, estimate, skeleton
from exoalign.estimate.shapes import even_shape, parse_shape, shape_of
from exoalign.estimate.simulate import Simulated
from exoalign.groups import Group
from exoalign.logprobs.passes import TOGETHER
from exoalign.pipeline import run
from exoalign.recipe import build_recipe
from exoalign.train.arguments import ExoConfig
from exoalign.train.preflight import estimate_training

CPU = torch.device("cpu")
SETTINGS = {"bf16": False, "rate": 1e11, "device": CPU}


def test_the_shape_of_groups_by_hand():
    groups = [
        Group("a", ("b", "c", "d"), rewards=(0, 1, 2), prompt_ids=(1, 2, 3), completion_ids=((1,), (1, 2), (1, 2, 3))),
        Group("e", ("f", "g"), rewards=(0, 1), prompt_ids=(1,) * 9, completion_ids=((1, 2, 3, 4), (1, 2))),
    ]
    shape = shape_of(groups)
    assert (shape.groups, shape.prompt, shape.k, shape.completion, shape.completions) == (2, 9, 3, 4, 5)
    assert shape.targets == shape.counted == 1 + 2 + 3 + 4 + 2
    assert shape.tokens == (3 + 0 + 1 + 2) + (9 + 3 + 1)
    assert shape.largest_group == 9 + 3 * 3
    assert shape.longest == 9 + 4
    assert shape_of([groups[0], replace(groups[1], completion_ids=((1,), (1, 2)))]).longest == 9 + 2  # of one group
    masks = ((True, False, False, True), (False, True))
    turns = shape_of([groups[0], replace(groups[1], completion_masks=masks)])
    assert turns == replace(shape, counted=1 + 2 + 3 + 2 + 1)


def test_shapes_as_text():
    assert parse_shape("groups=10, prompt=5,k=4,completion=3") == even_shape(groups=10, prompt=5, k=4, completion=3)
    assert parse_shape("").k == 8
    assert even_shape(groups=10, prompt=5, k=4, completion=3).tokens == 10 * (5 + 4 * 2)
    for text in ("k", "k=1", "K=8", "k=8,k=8", "k=8.5", "prompt=-1", "groups=0"):
        with pytest.raises(ConfigError, match=f"--shape: '{text.split(',')[-1]}'; expected each of groups, prompt, k"):
            parse_shape(text)


def test_work_by_hand():
    # of a token: 2 + 1 forward, 6 backward; 10 groups of 20 + 4 * 10 = 60 tokens
    found = Simulated(0, 0, 0, 0, 0, 0, forward=120, head=60, backward=360, shared=True)
    shape = even_shape(groups=10, prompt=20, k=4, completion=11)
    assert _work(shape, found, simulated=60, tokens=60, epochs=1) == (10, 600 * 3 + 600 * 9)
    assert _work(shape, found, simulated=60, tokens=120, epochs=2) == (5, 600 * 3 + 2 * 600 * 9)
    # passes of 40 tokens: the prompt and two completions, so two of them and the prompt twice, and one more forward
    assert _work(shape, found, simulated=60, tokens=40, epochs=1) == (20, 600 * 3 + 800 * 12)


@pytest.mark.parametrize(
    ("batch", "shape", "tokens"),
    [
        (8, even_shape(groups=100, prompt=20, k=2, completion=141), TOGETHER),  # groups of 20 + 2 * 140 = 300
        (2, even_shape(groups=100, prompt=20, k=2, completion=141), 600),  # a step has no more
        (8, even_shape(groups=100, prompt=200, k=10, completion=201), 2200),  # one group is more already
    ],
)
def test_a_pass_holds_what_is_put_together_of_a_step(batch, shape, tokens, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("exoalign.train.preflight.default_device", lambda: CPU)
    arguments = ExoConfig(str(tmp_path), per_device_train_batch_size=batch)
    found = estimate_training(skeleton(str(tiny_folder)), arguments, shape, tokens=4096)
    assert found.tokens_per_pass == tokens
    assert found.passes == math.ceil(shape.tokens / tokens)


def test_what_does_not_count_takes_no_time_in_the_head(tiny_folder):
    # 4 completions of 11 tokens of which 5 count, in one pass: 6 of 11 products of 32 x 259 less, forward and (3 of them)
    # backward in one epoch, and forward once more for the reference
    shape = even_shape(groups=10, prompt=20, k=4, completion=11)
    model = skeleton(str(tiny_folder))
    every, some = (
        estimate(model, replace(shape, counted=n), tokens_per_pass=60, **SETTINGS) for n in (shape.targets, 10 * 4 * 5)
    )
    assert every.operations - some.operations == pytest.approx(10 * 4 * 6 * 5 * 2 * 32 * 259, rel=0.02)


def test_the_sum_and_the_time(tiny_folder):
    found = estimate(skeleton(str(tiny_folder)), even_shape(groups=10, prompt=20, k=4, completion=11), **SETTINGS)
    assert found.optimizer == 8 * found.trainable == 2 * found.gradients
    assert (
        found.total
        == (found.weights + found.gradients + found.optimizer + found.activations + found.temporary + found.data)
        + found.baseline
    )
    assert found.data == 44 * 10 * (20 + 4 * 11) + 200 * 40
    assert found.seconds == pytest.approx(found.operations / (0.75 * 1e11))
    assert found.fits
    assert found.choices == ()


def test_64_completions_in_passes_of_the_tokens_of_8_take_the_same_activations(tiny_folder):
    model = skeleton(str(tiny_folder))
    eight, many = (even_shape(groups=10, prompt=100, k=k, completion=21) for k in (8, 64))
    budget = {"tokens_per_pass": eight.largest_group, **SETTINGS}
    few = estimate(model, eight, **budget)
    assert estimate(model, many, **budget).activations == few.activations
    at_once = estimate(model, many, tokens_per_pass=many.largest_group, **SETTINGS)
    assert at_once.activations > 4 * few.activations


def test_what_to_lower_is_named_with_what_it_leads_to(tiny_folder):
    model, shape = skeleton(str(tiny_folder)), even_shape(groups=10, prompt=100, k=64, completion=21)
    found = estimate(model, shape, tokens_per_pass=1380, memory=605_000_000, **SETTINGS)
    assert not found.fits
    *single, together = found.choices
    names = [choice.setting.partition("=")[0] for choice in single]
    assert set(names) >= {"align.max_tokens_per_pass", "align.trainer.gradient_checkpointing", "model.precision"}
    assert [c.total for c in single] == sorted(c.total for c in single)
    assert together.setting == "all of these"
    assert together.total < single[0].total < found.total
    fewer = next(c for c in single if c.setting.startswith("align.max"))
    tokens = int(fewer.setting.partition("=")[2])
    assert estimate(model, shape, tokens_per_pass=tokens, memory=605_000_000, **SETTINGS).total == fewer.total
    text = warning(found)
    assert text.startswith(f"memory: about {size(found.total)} are needed and 605 MB are there. What lowers it")
    assert all(f"{choice.setting}: {size(choice.total)}" in text for choice in found.choices)
    assert warning(estimate(model, shape, **SETTINGS)) is None


def test_lines_say_where_the_memory_goes(tiny_folder):
    found = estimate(skeleton(str(tiny_folder)), even_shape(groups=10), memory=2 * 10**9, **SETTINGS)
    text = "\n".join(lines(found))
    assert text.startswith("estimate for 10 groups, K up to 8, prompts up to 512 and completions up to 256 tokens:\n")
    for word in ("weights", "gradients", "optimizer", "activations", "head", "cache", "peak memory", "time"):
        assert f"  {word}" in text or f", {word}" in text or f" {word}" in text
    assert f"of {size(2 * 10**9)} that this process can have on the cpu" in text
    assert [size(n) for n in (540_000_000, 999_900_000, 1_411_000_000_000)] == ["540 MB", "1.0 GB", "1,411 GB"]
    assert [count(n) for n in (12, 540_000, 134_515_008, 70_553_706_496)] == ["12", "540 K", "135 M", "70.6 B"]


@pytest.mark.skipif(sys.platform != "linux", reason="the highest memory is read from /proc")
def test_70b_and_64_completions_from_a_configuration(tmp_path):
    """In a process of its own, for its memory: the folder holds config.json and nothing else."""
    LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path / "large")
    command = f"align --model {tmp_path / 'large'} --estimate --shape k=64 --json model.precision=bfloat16"
    code = (
        "import sys; from exoalign import cli\n"
        "try: cli.main()\n"
        "except SystemExit: sys.stderr.write(open('/proc/self/status').read().partition('VmHWM:')[2])"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    # embedding and head; a layer: q and out, k and v, mlp; norms
    layer = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192 + 2 * 8192
    assert found["parameters"] == 2 * 128256 * 8192 + 80 * layer + 8192 == 70_553_706_496
    assert found["optimizer"] == 8 * found["parameters"]
    assert not found["fits"]
    assert [c["setting"] for c in found["choices"]][-1] == "all of these"
    assert (
        int(done.stderr.split()[0]) < 700_000
    )  # KiB, most of it PyTorch itself; getrusage would tell the parent's too
    assert list((tmp_path / "large").iterdir()) == [tmp_path / "large" / "config.json"]


def test_what_is_no_language_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ModelError, match="no model can be laid out from its configuration"):
        skeleton(str(tmp_path))


def test_an_adapter_folder_is_its_base_with_the_adapter_on_it(tiny_model, tmp_path):
    adapted = adapters.wrap(tiny_model, adapters.lora_config(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    settings = {**SETTINGS, "memory": 10**10, "tokens_per_pass": 60}
    shape = even_shape(groups=10, prompt=20, k=4, completion=11)
    found = estimate(skeleton(str(tmp_path / "adapter")), shape, **settings)
    assert found.trainable == 2 * 2 * (32 + 32)  # in either layer two matrices of 32 x 2
    assert found == estimate(adapted, shape, **settings)


def test_weights_of_4_bits_are_not_estimated(tiny_folder, tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    values = {
        "model": {"path": str(tiny_folder)},
        "data": {"train": str(tmp_path / "pairs.jsonl")},
        "align": {"objective": "exo_pref", "lora": {"quantize": "4bit"}},
    }
    with pytest.raises(ConfigError, match=r"align\.lora\.quantize=4bit: an estimate counts weights of 32 bits"):
        pipeline.estimate(build_recipe(values), even_shape())


def run_align(tmp_path, tiny_folder, capfd, caplog):
    rows = [{"prompt": "Hi", "chosen": f"Hello {i}!", "rejected": "What?"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "out": str(tmp_path / "out"),
        "model": {"path": str(tiny_folder), "precision": "float32"},
        "data": {"train": str(tmp_path / "pairs.jsonl")},
        "align": {"objective": "exo_pref", "groups_per_step": 2},
    }
    run(build_recipe(values))
    return capfd.readouterr().err, [record.getMessage() for record in caplog.records]


def test_a_run_says_it_before_step_1(tmp_path, tiny_folder, capfd, caplog):
    said, warned = run_align(tmp_path, tiny_folder, capfd, caplog)
    before, _, _ = said.partition("step")
    assert "  estimate for 4 groups, K up to 2, prompts up to 2 and completions up to 9 tokens:\n" in before
    assert re.search(r"peak memory +\d+ MB  of [\d.]+ GB", before)
    assert not any("memory" in line for line in warned)


def test_a_run_over_the_memory_is_warned_and_goes_on(tmp_path, tiny_folder, capfd, caplog, monkeypatch):
    monkeypatch.setattr(preflight, "memory_for", lambda device: 500_000_000)
    _, warned = run_align(tmp_path, tiny_folder, capfd, caplog)
    assert any(line.startswith("memory: about 6") and "align.trainer.gradient_ch" in line for line in warned)
    assert (tmp_path / "out" / "align" / "manifest.json").is_file()


def test_a_run_goes_on_where_no_estimate_can_be_made(tmp_path, tiny_folder, capfd, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise ModelError("Odd does not run on tensors without data (...)\nmore")

    monkeypatch.setattr(preflight, "simulate", refuse)
    _, warned = run_align(tmp_path, tiny_folder, capfd, caplog)
    assert "no estimate of memory and time can be made: Odd does not run on tensors without data (...)" in warned
    assert (tmp_path / "out" / "align" / "manifest.json").is_file()
