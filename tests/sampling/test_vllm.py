"""vLLM cannot run on the machines that run the tests: what it is given and how its answers are read, with a stand-in for it."""

import sys
import types

import pytest

from exoalign import SamplingSettings
from exoalign.errors import ModelError
from exoalign.finished import fingerprint_of
from exoalign.models import identity
from exoalign.sampling.vllm import VllmSampler, seed_of

SETTINGS = SamplingSettings(k=2, temperature=0.7, top_p=0.9, max_new_tokens=5, seed=3, top_k=4, stop=("ab",))


@pytest.fixture
def vllm(monkeypatch):
    """Answers each completion with two tokens, whose log-probs are those of its place in the batch; the reason varies."""
    module = types.ModuleType("vllm")
    module.engines, module.calls = [], []

    class LLM:
        def __init__(self, **arguments):
            module.engines.append(arguments)

        def generate(self, prompts, params, *, use_tqdm):
            assert not use_tqdm
            module.calls.append((prompts, params))
            endings = [("stop", None), ("stop", 257), ("stop", "ab"), ("length", None)]
            answers = []
            for place in range(len(prompts)):
                reason, stopped = endings[place % 4]
                steps = [{token: types.SimpleNamespace(logprob=-float(place) - token / 8)} for token in (7, 9)]
                output = types.SimpleNamespace(
                    token_ids=[7, 9], text=f"t{place}", logprobs=steps, finish_reason=reason, stop_reason=stopped
                )
                answers.append(types.SimpleNamespace(outputs=[output]))
            return answers

    module.LLM = LLM
    module.SamplingParams = lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_without_vllm_it_says_what_to_install(tiny_folder, tiny_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"pip install 'exoalign\[vllm\]', or choose transformers"):
        VllmSampler(str(tiny_folder), tiny_tokenizer)


def test_the_engine_tells_logprobs_of_what_it_draws_from_and_reads_no_settings_of_the_model(
    vllm, tiny_folder, tiny_tokenizer
):
    VllmSampler(str(tiny_folder), tiny_tokenizer, dtype="float32", engine={"tensor_parallel_size": 2})
    assert vllm.engines == [
        {
            "model": str(tiny_folder), "tokenizer": str(tiny_folder), "dtype": "float32", "revision": None,
            "tokenizer_revision": None, "trust_remote_code": False, "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs", "generation_config": "vllm", "tensor_parallel_size": 2,
        }
    ]  # fmt: skip


def test_what_each_completion_is_asked_with(vllm, tiny_folder, tiny_tokenizer):
    sampler = VllmSampler(str(tiny_folder), tiny_tokenizer, batch_size=3)
    drawn = list(sampler.draw(["abc", "x"], SETTINGS))
    assert [[(d.prompt, d.k) for d in draws] for draws in drawn] == [[(1, 0), (1, 1), (0, 0)], [(0, 1)]]
    short, long = (tiny_tokenizer(text)["input_ids"] for text in ("x", "abc"))
    asked, params = vllm.calls[0]
    assert asked == [{"prompt_token_ids": ids} for ids in (short, short, long)]
    assert params[0] == {
        "n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 4, "max_tokens": 5, "seed": seed_of(3, 1, 0), "stop": ["ab"],
        "stop_token_ids": [tiny_tokenizer.eos_token_id], "include_stop_str_in_output": False,
        "skip_special_tokens": True, "logprobs": 0,
    }  # fmt: skip
    seeds = {p["seed"] for _, params in vllm.calls for p in params}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    list(sampler.draw(["x"], SamplingSettings(k=1)))
    assert vllm.calls[-1][1][0]["top_k"] == -1
    assert vllm.calls[-1][1][0]["stop"] is None


def test_records_are_those_of_the_other_backend(vllm, tiny_folder, tiny_tokenizer):
    sampler = VllmSampler(str(tiny_folder), tiny_tokenizer, name="m")
    groups = sampler.sample(["abc", "x"], SETTINGS)
    # batch: x0, x1, abc0, abc1; a completion's log-prob is that of 7 and of 9 at its place: -2 place - 2
    assert [group.sampler_logprobs for group in groups] == [(-6.0, -8.0), (-2.0, -4.0)]
    assert [group.provenance["finish"] for group in groups] == [["stop_string", "length"], ["stop", "stop"]]
    assert [group.completions for group in groups] == [("t2", "t3"), ("t0", "t1")]
    assert groups[0].completion_ids == ((7, 9), (7, 9))
    assert groups[0].prompt_ids == tuple(tiny_tokenizer("abc")["input_ids"])
    assert groups[0].provenance["sampler"] == {
        "backend": "vllm", "model": "m", "fingerprint": fingerprint_of(identity(str(tiny_folder))), "dtype": "bfloat16",
        "batch_size": 1024, **SETTINGS.as_dict(),
    }  # fmt: skip
    assert "model_logprobs" not in groups[0].provenance  # it tells one kind of log-prob only
    (whole,) = sampler.sample(["abc"], SamplingSettings(k=2, temperature=0.7))
    assert whole.provenance["model_logprobs"] == list(whole.sampler_logprobs)


def test_what_is_done_is_not_asked_again(vllm, tiny_folder, tiny_tokenizer):
    sampler = VllmSampler(str(tiny_folder), tiny_tokenizer, batch_size=2)
    (draws,) = sampler.draw(["abc", "x"], SETTINGS, skip={(1, 0), (1, 1), (0, 1)})
    assert [(d.prompt, d.k) for d in draws] == [(0, 0)]
    assert len(vllm.calls) == 1


def test_what_it_cannot_do_is_refused(vllm, tiny_folder, tiny_tokenizer, tmp_path):
    sampler = VllmSampler(str(tiny_folder), tiny_tokenizer)
    with pytest.raises(ModelError, match=r"sample.temperature is 0.001; vLLM takes no lower one than 0.01"):
        list(sampler.draw(["x"], SamplingSettings(temperature=0.001)))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter.*merge it first with `exoalign merge`"):
        VllmSampler(str(tmp_path), tiny_tokenizer)
