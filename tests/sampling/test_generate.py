"""Expected log-probs and frequencies come from the plain model, one unpadded sequence at a time; expected tokens from hand."""

import copy
import dataclasses
import itertools
import json
import logging
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exoalign import Message, SamplingSettings, TransformersSampler, collate, completion_logprobs
from exoalign.errors import DataError, ModelError
from exoalign.models import fingerprint
from exoalign.sampling import Draw
from exoalign.sampling.choice import SeededChoice, StopText, before_stop

# 1 to 40 bytes, so that every batch of several is padded; the conversation is rendered by the template
PROMPTS = [
    "A film review:",
    "x",
    "The quick brown fox jumps over the lazy dog",
    (Message("user", "Hello"),),
    "Why?",
    "é",
]
SETTINGS = SamplingSettings(k=4, temperature=0.7, max_new_tokens=10, seed=5)
ONE_DOWN = math.nextafter(1.0, 0.0)


def ids_of(groups):
    return [group.completion_ids for group in groups]


def step_logits(model, prefix):
    """Logits of the next token, without padding, cache and `generate`."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([prefix]), use_cache=False).logits[0, -1].double()


def biased(model, **bias):
    """Adds to the logits of some tokens (t65=3.0), at every place."""

    def add(module, args, output):
        output = output.clone()
        for name, value in bias.items():
            output[..., int(name[1:])] += value
        return output

    model.lm_head.register_forward_hook(add)
    return model


@pytest.fixture
def sample(tiny_model, tiny_tokenizer):
    """Draws from the tiny model."""

    def draw(prompts=PROMPTS, settings=SETTINGS, *, sources=None, **arguments):
        return TransformersSampler(tiny_model, tiny_tokenizer, **arguments).sample(prompts, settings, sources)

    return draw


class TestSeeds:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_the_size_of_a_batch_changes_nothing(self, tiny_model, sample, dtype):
        tiny_model.to(dtype)
        draws = [sample(batch_size=size) for size in (1, 3, 64, 10_000)]
        for other in draws[1:]:
            assert ids_of(other) == ids_of(draws[0])
            for ours, theirs in zip(other, draws[0], strict=True):
                assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-4)

    def test_the_prompts_beside_it_change_nothing(self, sample):
        whole = sample()
        for i, prompt in enumerate(PROMPTS):
            others = ["something else " * 3] * len(PROMPTS)
            others[i] = prompt  # the completion depends on its prompt's place in the list, and on the prompt
            assert sample(others)[i].completion_ids == whole[i].completion_ids

    def test_a_completion_does_not_depend_on_how_many_or_how_long(self, sample):
        whole = sample()
        fewer = sample(settings=SamplingSettings(k=2, temperature=0.7, max_new_tokens=10, seed=5))
        shorter = sample(settings=SamplingSettings(k=4, temperature=0.7, max_new_tokens=6, seed=5))
        assert ids_of(fewer) == [group.completion_ids[:2] for group in whole]
        assert ids_of(shorter) == [tuple(ids[:6] for ids in group.completion_ids) for group in whole]

    def test_the_same_seed_gives_the_same_bits(self, sample):
        assert sample() == sample()

    def test_seeds_places_and_completions_all_differ(self, sample):
        draws = [sample(["Why?"] * 3, SamplingSettings(k=5, max_new_tokens=10, seed=seed)) for seed in (0, 1)]
        completions = [ids for groups in draws for group in groups for ids in group.completion_ids]
        assert len(set(completions)) == 2 * 3 * 5

    def test_the_global_random_state_is_neither_read_nor_moved(self, sample):
        torch.manual_seed(1)
        first, state = sample(), torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert sample() == first


class TestLogprobs:
    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
    def test_they_are_those_of_the_model_at_the_temperature(self, tiny_model, sample, temperature):
        groups = sample(settings=SamplingSettings(k=3, temperature=temperature, max_new_tokens=12), batch_size=5)
        with torch.no_grad():
            expected = completion_logprobs(tiny_model, collate(groups), temperature=temperature)
        assert torch.tensor([g.sampler_logprobs for g in groups]).sub(expected).abs().max() < 1e-4

    @pytest.mark.parametrize("top_p", [0.3, 0.9])
    def test_below_top_p_one_they_are_those_of_the_nucleus(self, tiny_model, sample, top_p):
        temperature = 0.8
        settings = SamplingSettings(k=3, temperature=temperature, top_p=top_p, max_new_tokens=6)
        for group in sample(PROMPTS[:3], settings):
            for ids, logprob in zip(group.completion_ids, group.sampler_logprobs, strict=True):
                expected = 0.0
                for t, token in enumerate(ids):
                    probs = torch.softmax(step_logits(tiny_model, [*group.prompt_ids, *ids[:t]]) / temperature, -1)
                    ranked = sorted(range(len(probs)), key=lambda v: -probs[v])
                    mass = list(itertools.accumulate(probs[v].item() for v in ranked))
                    size = next(n + 1 for n, total in enumerate(mass) if total >= top_p)
                    assert token in ranked[:size]
                    expected += math.log(probs[token] / mass[size - 1])
                assert logprob == pytest.approx(expected, abs=1e-4)

    def test_truncated_they_differ_from_the_models(self, tiny_model, sample):
        """Under the sampler: one of the 3 likeliest, renormalised; under the model: as completion_logprobs has it."""
        settings = SamplingSettings(k=3, temperature=0.8, top_k=3, max_new_tokens=6)
        groups = sample(PROMPTS[:3], settings)
        with torch.no_grad():
            expected = completion_logprobs(tiny_model, collate(groups), temperature=0.8)
        for group, row in zip(groups, expected, strict=True):
            assert group.provenance["model_logprobs"] == pytest.approx(row.tolist(), abs=1e-4)
            for ids, logprob in zip(group.completion_ids, group.sampler_logprobs, strict=True):
                by_hand = 0.0
                for t, token in enumerate(ids):
                    logits = step_logits(tiny_model, [*group.prompt_ids, *ids[:t]]) / 0.8
                    kept = sorted(range(len(logits)), key=lambda v: -logits[v])[:3]
                    assert token in kept
                    by_hand += float(logits[token] - torch.logsumexp(logits[kept], 0))
                assert logprob == pytest.approx(by_hand, abs=1e-4)

    def test_draws_are_as_frequent_as_the_model_says(self, tiny_tokenizer):
        """Both tokens of 4,000 completions over a vocabulary of 5, against all 25 probabilities."""
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=5, initializer_range=0.1, eos_token_id=None, **shape)).eval()
        settings = SamplingSettings(k=4000, temperature=0.7, max_new_tokens=2, seed=1)
        (group,) = TransformersSampler(model, tiny_tokenizer, batch_size=4000).sample(["!#"], settings)
        assert group.prompt_ids == (0, 2)  # the first characters of the byte alphabet
        first = torch.softmax(step_logits(model, [0, 2]) / 0.7, -1)
        second = torch.stack([torch.softmax(step_logits(model, [0, 2, v]) / 0.7, -1) for v in range(5)])
        expected = 4000 * (first[:, None] * second).flatten()
        counts = torch.zeros(25, dtype=torch.float64)
        for a, b in group.completion_ids:
            counts[5 * a + b] += 1
        assert expected.min() > 5
        assert expected.max() > 3 * expected.min()
        # chi-square with 24 degrees of freedom: P(> 51.2) = 0.001
        assert ((counts - expected) ** 2 / expected).sum() < 51.2


# What a model's generation_config.json may hold; each of these alone would change what is drawn.
OWN = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.2,
    "min_new_tokens": 9,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(60, 90)),
    "max_length": 3,
    "num_beams": 2,
}


class TestTheModelsOwnSettings:
    def test_they_change_nothing_and_come_back(self, tiny_model, sample):
        ends = [tiny_model.generation_config.eos_token_id, *range(70, 110)]  # so that min_new_tokens would matter
        tiny_model.generation_config = GenerationConfig(eos_token_id=ends)
        plain = sample()
        assert "stop" in plain[0].provenance["finish"] + plain[1].provenance["finish"]
        own = GenerationConfig(eos_token_id=ends, **OWN)
        tiny_model.generation_config = own
        assert sample() == plain
        assert tiny_model.generation_config is own
        assert own.repetition_penalty == 5.0

    def test_settings_and_mode_come_back_when_generate_raises(self, tiny_model, sample):
        own = tiny_model.generation_config
        tiny_model.train()

        def fail(module, args):
            raise RuntimeError("out of memory")

        hook = tiny_model.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            sample()
        hook.remove()
        assert tiny_model.generation_config is own
        assert tiny_model.training

    def test_dropout_is_off_while_sampling_and_the_mode_comes_back(self, tiny_model, sample):
        plain = sample()
        for layer in tiny_model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        tiny_model.train()
        assert sample() == plain
        assert tiny_model.training


class TestEnds:
    def test_an_end_stands_once_and_last(self, tiny_model, tiny_tokenizer, sample):
        ends = {tiny_tokenizer.eos_token_id, *range(70, 110)}
        tiny_model.generation_config.eos_token_id = sorted(ends - {tiny_tokenizer.eos_token_id})
        reasons = set()
        for group in sample(settings=SamplingSettings(k=32, max_new_tokens=3)):
            for ids, finish in zip(group.completion_ids, group.provenance["finish"], strict=True):
                assert not ends & set(ids[:-1])
                assert finish == ("stop" if ids[-1] in ends else "length")
                assert len(ids) == 3 if finish == "length" else len(ids) <= 3
                reasons.add((finish, len(ids) == 3))
        assert reasons == {("stop", True), ("stop", False), ("length", True)}  # an end may be the last token allowed

    def test_the_tokenizers_end_counts_beside_the_models(self, tiny_model, tiny_tokenizer, sample):
        tiny_model.generation_config.eos_token_id = 70
        end = tiny_tokenizer.eos_token_id
        biased(tiny_model, **{f"t{end}": 50.0})
        for group in sample():
            assert group.completion_ids == ((end,),) * 4
            assert group.completions == ("",) * 4
            assert group.provenance["finish"] == ["stop"] * 4

    def test_a_padding_token_that_is_drawn_ends_nothing(self, tiny_model, tiny_tokenizer, sample):
        biased(tiny_model, **{f"t{tiny_tokenizer.pad_token_id}": 50.0})
        for group in sample():
            assert group.completion_ids == ((tiny_tokenizer.pad_token_id,) * 10,) * 4
            assert group.provenance["finish"] == ["length"] * 4

    def test_without_a_padding_token_an_end_fills_the_places(self, tiny_model, tiny_tokenizer):
        tiny_model.generation_config.eos_token_id = list(range(70, 110))
        bare = copy.deepcopy(tiny_tokenizer)
        bare.pad_token = None
        with_pad, without = (
            TransformersSampler(tiny_model, t).sample(PROMPTS, SETTINGS) for t in (tiny_tokenizer, bare)
        )
        assert ids_of(without) == ids_of(with_pad)
        assert [g.completions for g in without] == [g.completions for g in with_pad]

    def test_without_any_end_it_is_refused(self, tiny_model, tiny_tokenizer):
        tiny_model.generation_config.eos_token_id = None
        bare = copy.deepcopy(tiny_tokenizer)
        bare.eos_token = None
        with pytest.raises(ModelError, match=r"no end-of-sequence token.*set `eos_token`"):
            TransformersSampler(tiny_model, bare)


class TestGroups:
    def test_the_text_has_no_special_tokens_but_the_ids_keep_them(self, tiny_model, tiny_tokenizer, sample):
        h, start = (tiny_tokenizer.convert_tokens_to_ids(token) for token in ("h", "<|im_start|>"))
        end = tiny_tokenizer.eos_token_id
        biased(tiny_model, **{f"t{h}": 51.0, f"t{start}": 50.0, f"t{end}": 50.0})  # nothing else is ever drawn
        seen = set()
        for group in sample(settings=SamplingSettings(k=16, max_new_tokens=10)):
            for ids, text in zip(group.completion_ids, group.completions, strict=True):
                assert text == "h" * ids.count(h)
                seen |= set(ids)
        assert seen == {h, start, end}

    def test_they_come_in_order_with_their_provenance(self, tiny_model, tiny_tokenizer):
        reports = []
        sampler = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=5, name="tiny", report=reports.append)
        sources = [f"prompts.jsonl:{i}" for i in range(len(PROMPTS))]
        groups = sampler.sample(PROMPTS, SETTINGS, sources)
        assert [group.prompt for group in groups] == PROMPTS
        assert groups[1].prompt_ids == tuple(tiny_tokenizer("x")["input_ids"])
        assert [group.provenance["source"] for group in groups] == sources
        assert reports == [5, 5, 5, 5, 4]  # 6 prompts, 4 completions each
        assert groups[0].provenance["sampler"] == {
            "backend": "transformers", "model": "tiny", "fingerprint": fingerprint(tiny_model),
            "dtype": "torch.float32", "batch_size": 5, "k": 4, "temperature": 0.7, "top_p": 1.0,
            "max_new_tokens": 10, "seed": 5, "top_k": 0, "stop": [],
        }  # fmt: skip
        assert groups[0].provenance["model_logprobs"] == list(groups[0].sampler_logprobs)

    def test_prompts_of_like_length_share_a_batch(self, tiny_model, sample, monkeypatch):
        widths, generate = [], tiny_model.generate
        monkeypatch.setattr(
            tiny_model, "generate", lambda **kwargs: widths.append(kwargs["input_ids"].shape[1]) or generate(**kwargs)
        )
        prompts = ["a" * 30, "b", "c" * 29, "d" * 2]
        sample(prompts, SamplingSettings(k=2, max_new_tokens=1), batch_size=4, share_prefill=False)
        assert widths == [2, 30]

    def test_no_prompts_give_no_groups(self, sample):
        assert sample([]) == []

    def test_a_prompt_without_a_token_is_named(self, sample):
        with pytest.raises(DataError, match=r"^prompt 2: the prompt has no token; expected at least one"):
            sample(["a", ""])
        with pytest.raises(DataError, match=r"^rows\.jsonl:7: the prompt has no token"):
            sample([""], sources=["rows.jsonl:7"])

    def test_a_prompt_that_leaves_no_room_is_named(self, sample):
        with pytest.raises(DataError) as caught:
            sample(["a", "b" * 503], sources=["rows.jsonl:6", "rows.jsonl:7"])
        message = str(caught.value)  # 503 + 10 > 512
        assert message.startswith(f"rows.jsonl:7: the prompt has 503 tokens ({'b' * 40!r}): with max_new_tokens 10")
        assert message.endswith("context of 512; shorten the prompt or lower sample.max_new_tokens")

    def test_a_prompt_that_just_fits_is_taken(self, sample):
        (group,) = sample(["b" * 502])
        assert len(group.prompt_ids) == 502

    def test_weights_that_are_not_finite_are_told(self, tiny_model, sample):
        tiny_model.model.norm.weight.data[3] = math.nan
        with pytest.raises(ModelError, match="logits hold NaN or infinity"):
            sample()


class TestSkip:
    def test_a_batch_is_drawn_whole_or_not_at_all(self, tiny_model, tiny_tokenizer):
        """6 prompts x 4 in batches of 5: what is left out changes no bit of the rest, batches that are done are not drawn."""
        reports = []
        sampler = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=5, report=reports.append)
        whole = [draw for draws in sampler.draw(PROMPTS, SETTINGS) for draw in draws]
        assert sorted((draw.prompt, draw.k) for draw in whole) == [(i, k) for i in range(6) for k in range(4)]
        done = {(draw.prompt, draw.k) for draw in whole[:12]}  # two batches, and two of the third
        reports.clear()
        rest = [draw for draws in sampler.draw(PROMPTS, SETTINGS, skip=done) for draw in draws]
        assert rest == whole[12:]
        assert reports == [3, 5, 4]
        assert list(sampler.draw(PROMPTS, SETTINGS, skip={(d.prompt, d.k) for d in whole})) == []

    def test_a_draw_and_its_json(self, sample, tiny_model, tiny_tokenizer):
        (draws,) = TransformersSampler(tiny_model, tiny_tokenizer).draw(["Why?"], SamplingSettings(k=2))
        assert [Draw.from_dict((d.prompt, d.k), json.loads(json.dumps(d.as_dict()))) for d in draws] == draws


class TestMemory:
    def test_a_batch_that_does_not_fit_is_drawn_in_halves(self, tiny_model, tiny_tokenizer, caplog):
        """A model that holds 6 rows at most: 24 rows at once, then 12, then 6."""
        rows = []

        def full(module, args, kwargs):
            rows.append(len(kwargs["input_ids"]))
            if rows[-1] > 6:
                raise torch.OutOfMemoryError("no")

        plain = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=6).sample(PROMPTS, SETTINGS)
        hook = tiny_model.register_forward_pre_hook(full, with_kwargs=True)
        with caplog.at_level(logging.WARNING, "exoalign"):
            found = TransformersSampler(tiny_model, tiny_tokenizer, batch_size=24).sample(PROMPTS, SETTINGS)
        assert ids_of(found) == ids_of(plain)
        told = [record.getMessage() for record in caplog.records if record.name.startswith("exoalign")]
        assert [line.split()[0] for line in told] == ["24", "12", "12"]
        assert all("drawn in halves; lower sample.batch_size" in line for line in told)
        hook.remove()
        hook = tiny_model.register_forward_pre_hook(
            lambda module, args: (_ for _ in ()).throw(torch.OutOfMemoryError())
        )
        with pytest.raises(torch.OutOfMemoryError):
            TransformersSampler(tiny_model, tiny_tokenizer, batch_size=24).sample(PROMPTS, SETTINGS)


class TestStop:
    def test_a_text_ends_a_completion_wherever_the_borders_of_tokens_are(self, tiny_model, tiny_tokenizer, sample):
        """Only h and i are drawn, one byte a token: each text of a run without stops, cut by hand."""
        h, i = (tiny_tokenizer.convert_tokens_to_ids(token) for token in "hi")
        biased(tiny_model, **{f"t{h}": 50.0, f"t{i}": 50.0})
        settings = SamplingSettings(k=16, max_new_tokens=12)
        stopped = dataclasses.replace(settings, stop=("hih", "iiii"))
        seen = set()
        for free, cut in zip(sample(settings=settings), sample(settings=stopped), strict=True):
            model_logprobs = cut.provenance["model_logprobs"]
            for k, text in enumerate(free.completions):
                ends = [place + len(stop) for stop in stopped.stop if (place := text.find(stop)) >= 0]
                n = min(ends, default=12)
                stop = next((s for s in stopped.stop if text[:n].endswith(s)), "")
                assert cut.completion_ids[k] == free.completion_ids[k][:n]
                assert cut.completions[k] == text[: n - len(stop)]
                assert cut.provenance["finish"][k] == ("stop_string" if stop else "length")
                assert (cut.sampler_logprobs[k] == free.sampler_logprobs[k]) == (n == 12)
                assert model_logprobs[k] == cut.sampler_logprobs[k]
                seen.add(stop)
        assert seen == {"hih", "iiii", ""}

    def test_the_logprobs_cover_the_ids(self, tiny_model, sample):
        groups = sample(settings=SamplingSettings(k=4, max_new_tokens=12, stop=("e", "t")))
        assert any("stop_string" in group.provenance["finish"] for group in groups)
        with torch.no_grad():
            expected = completion_logprobs(tiny_model, collate(groups))
        for group, row in zip(groups, expected, strict=True):
            assert group.sampler_logprobs == pytest.approx(row.tolist(), abs=1e-4)

    def test_an_end_token_comes_first(self, tiny_model, tiny_tokenizer, sample):
        h = tiny_tokenizer.convert_tokens_to_ids("h")
        biased(tiny_model, **{f"t{h}": 49.0, f"t{tiny_tokenizer.eos_token_id}": 50.0})
        finishes = set()
        for group in sample(settings=SamplingSettings(k=16, max_new_tokens=6, stop=("hhh",))):
            for ids, text, finish in zip(
                group.completion_ids, group.completions, group.provenance["finish"], strict=True
            ):
                ended = ids[-1] == tiny_tokenizer.eos_token_id
                assert finish == ("stop" if ended else "stop_string")
                assert text == ("h" * (len(ids) - 1) if ended else "")
                assert len(ids) == 3 or ended
                finishes.add(finish)
        assert finishes == {"stop", "stop_string"}

    @pytest.mark.parametrize("text", ["né", "日", "a b", "<|im_start|>x"])
    def test_bytes_of_a_character_and_special_tokens(self, tiny_tokenizer, text):
        """A byte a token. The special token is none of the text, so that stop strings are found across it."""
        ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        shown = text.replace("<|im_start|>", "")
        criterion = StopText(tiny_tokenizer, [shown[-1], "never"], 2)
        for n in range(1, len(ids) + 1):
            rows = torch.tensor([ids[:n], [0] * n])
            assert criterion(rows, None).tolist() == [n == len(ids), False]
        assert criterion.lengths == [len(ids), None]

    def test_a_stop_longer_than_a_token_and_shorter_than_the_next(self):
        """Tokens of several characters: the stop string begins within one and ends within another."""
        vocabulary = {"abc": 0, "def": 1, "<end>": 2}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.decoder = decoders.Fuse()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
        criterion = StopText(fast, ["cd"], 1)
        steps = [bool(criterion(torch.tensor([[0, 0, 1, 0][:n]]), None)) for n in range(1, 5)]
        assert steps == [False, False, True, True]
        assert criterion.lengths == [3]
        assert before_stop("abcabcdef", ["cd", "zz"]) == "abcab"
        assert before_stop("abcabcdef", ["f", "bc"]) == "a"
        assert before_stop("abc", ["x"]) == "abc"


def choose(logits, uniforms, *, temperature=1.0, **kept):
    """Tokens and log-probs that one distribution gives at several uniform numbers."""
    rows = torch.tensor([logits]).repeat(len(uniforms), 1)
    choice = SeededChoice(torch.tensor(uniforms, dtype=torch.float64)[:, None], temperature=temperature, **kept)
    scores = choice(torch.zeros(len(uniforms), 1, dtype=torch.long), rows)
    assert scores.isfinite().sum(1).tolist() == [1] * len(uniforms)
    return scores.argmax(1).tolist(), choice.sampler_logprobs[0].tolist()


class TestSeededChoice:
    def test_it_inverts_the_cumulative_distribution(self):
        logits = [math.log(p) for p in (0.5, 0.25, 0.25)]
        tokens, logprobs = choose(logits, [0.0, 0.49, 0.51, 0.74, 0.76, ONE_DOWN])
        assert tokens == [0, 0, 1, 1, 2, 2]
        assert logprobs == pytest.approx([math.log(p) for p in (0.5, 0.5, 0.25, 0.25, 0.25, 0.25)], abs=1e-6)

    def test_a_temperature_sharpens(self):
        # weights (4, 1) at T = 1/2: (16, 1) / 17
        tokens, logprobs = choose([math.log(4), 0.0], [0.94, 0.942], temperature=0.5)
        assert tokens == [0, 1]  # 16/17 = 0.9412
        assert logprobs == pytest.approx([math.log(16 / 17), math.log(1 / 17)], abs=1e-6)

    def test_a_nucleus_is_renormalised(self):
        # 0.5 is below 0.6, so that the nucleus is the first two: (5/8, 3/8)
        logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
        tokens, logprobs = choose(logits, [0.0, 0.62, 0.63, ONE_DOWN], top_p=0.6)
        assert tokens == [0, 0, 1, 1]
        assert logprobs == pytest.approx([math.log(p) for p in (0.625, 0.625, 0.375, 0.375)], abs=1e-6)

    def test_the_likeliest_are_kept_and_the_model_has_its_own_logprob(self):
        # of (0.4, 0.1, 0.3, 0.2) the first two: (4/7, 0, 3/7, 0); under the model 0.4 and 0.3
        rows = torch.tensor([[math.log(p) for p in (0.4, 0.1, 0.3, 0.2)]]).repeat(2, 1)
        choice = SeededChoice(torch.tensor([[0.57], [0.58]], dtype=torch.float64), temperature=1.0, top_k=2)
        assert choice(torch.zeros(2, 1, dtype=torch.long), rows).argmax(1).tolist() == [0, 2]
        assert choice.sampler_logprobs[0].exp().tolist() == pytest.approx([4 / 7, 3 / 7], abs=1e-6)
        assert choice.model_logprobs[0].exp().tolist() == pytest.approx([0.4, 0.3], abs=1e-6)

    def test_a_nucleus_is_that_of_the_likeliest(self):
        # the first two hold 0.7 < 0.75 of all, but 0.7 / 0.89 > 0.75 of the three likeliest: (5/7, 2/7)
        logits = [math.log(p) for p in (0.5, 0.2, 0.19, 0.11)]
        assert choose(logits, [0.71, 0.72, ONE_DOWN], top_k=3, top_p=0.75)[0] == [0, 1, 1]
        assert choose(logits, [0.71, 0.72, ONE_DOWN], top_p=0.75)[0] == [1, 1, 2]

    @pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (12, 0.8), (3, 0.99), (500, 0.9)])
    def test_the_distribution_is_that_of_transformers(self, tiny_model, top_k, top_p):
        """Each token's share of 20,001 even uniform numbers, against softmax after transformers' own warpers."""
        torch.manual_seed(3)
        logits, temperature = 2 * torch.randn(40), 0.8
        kept = GenerationConfig(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
        warpers = tiny_model._get_logits_processor(kept)
        expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None]).softmax(-1)[0]
        even = [(i + 0.5) / 20_001 for i in range(20_001)]
        tokens, logprobs = choose(logits.tolist(), even, temperature=temperature, top_k=top_k, top_p=top_p)
        shares = torch.bincount(torch.tensor(tokens), minlength=40) / 20_001
        assert (shares - expected).abs().max() < 1e-4
        assert torch.tensor(logprobs).exp().sub(expected[tokens]).abs().max() < 1e-6

    def test_a_token_without_probability_is_never_drawn(self):
        none = -math.inf
        assert choose([none, 0.0, none, 0.0, none], [0.0, 0.5, ONE_DOWN])[0] == [1, 3, 3]

    @pytest.mark.parametrize("seed", range(5))
    def test_nor_when_the_sum_of_a_large_vocabulary_is_not_one(self, seed):
        # float32 log-probs of 50,000 tokens sum to 1 - 1e-6 or 1 + 1e-6, never quite to 1
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(50_000, generator=generator)
        logits[:100] = logits[40_000:] = -math.inf
        tokens, logprobs = choose(logits.tolist(), [0.0, ONE_DOWN])
        assert tokens == [100, 39_999]
        assert all(math.isfinite(value) for value in logprobs)

    def test_each_step_and_each_row_has_its_own_number(self):
        choice = SeededChoice(torch.tensor([[0.1, 0.9], [0.9, 0.1]], dtype=torch.float64), temperature=1.0, top_p=1.0)
        tokens = [choice(torch.zeros(2, 1), torch.zeros(2, 2)).argmax(1).tolist() for _ in range(2)]
        assert tokens == [[0, 1], [1, 0]]
