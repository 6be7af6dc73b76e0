"""Reward models: loaded or begun, padded so that others read them alike, and applied, fast and one by one."""

import copy
import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from exoalign import Group, Message
from exoalign.errors import ConfigError, ModelError, RewardError
from exoalign.models import load_tokenizer
from exoalign.rewards.load import load_reward_model
from exoalign.rewards.model import RewardModel, reward_of
from exoalign.rewards.padding import set_padding

GROUPS = [
    Group((Message("user", "Hi"),), ("Hello there!", "Go away.", "Hello there! And more of it, much more.")),
    Group("A film: ", ("good", "bad, bad, bad " * 9, "q")),
    Group((Message("user", "Why? " * 20),), ("Because.",)),
]


def make_reward_model(folder, base, *, labels=1, tokenizer=None):
    """A reward model with a head large enough to matter, as transformers saves it."""
    model = load_reward_model(str(base), fresh_labels=labels, device="cpu")
    tokenizer = tokenizer or load_tokenizer(str(base))
    set_padding(model, tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn_like(model.score.weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ranking(tiny_folder, tmp_path_factory):
    return make_reward_model(tmp_path_factory.mktemp("ranking") / "rm", tiny_folder)


@pytest.fixture(scope="module")
def classifier(tiny_folder, tmp_path_factory):
    return make_reward_model(tmp_path_factory.mktemp("classifier") / "rm", tiny_folder, labels=2)


def by_transformers(folder, texts):
    """Logits of texts by plain transformers, in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits


class TestScoring:
    def test_the_rewards_are_those_of_one_by_one_and_of_plain_transformers(self, ranking):
        scorer = RewardModel(str(ranking), device="cpu")
        fast, slow = scorer(GROUPS), scorer.one_by_one(GROUPS)
        tokenizer = AutoTokenizer.from_pretrained(ranking)
        texts = []
        for group in GROUPS:
            for completion in group.completions:
                if isinstance(group.prompt, str):
                    texts.append(group.prompt + completion)
                else:
                    turns = [*(turn._asdict() for turn in group.prompt), {"role": "assistant", "content": completion}]
                    texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
        truth = by_transformers(ranking, texts)[:, 0].tolist()
        assert [len(row) for row in fast] == [3, 3, 1]
        assert [x for row in slow for x in row] == pytest.approx(truth, abs=1e-4)
        assert [x for row in fast for x in row] == pytest.approx(truth, abs=1e-4)
        assert max(truth) - min(truth) > 1

    def test_neither_order_nor_company_nor_budget_changes_a_reward(self, ranking):
        scorer = RewardModel(str(ranking), device="cpu")
        truth = scorer(GROUPS)
        assert scorer(GROUPS[::-1])[::-1] == [pytest.approx(row, abs=1e-4) for row in truth]
        assert [scorer([group])[0] for group in GROUPS] == [pytest.approx(row, abs=1e-4) for row in truth]
        small = RewardModel(str(ranking), device="cpu", tokens_per_batch=1)  # each completion a pass of its own
        assert small(GROUPS) == [pytest.approx(row, abs=1e-4) for row in truth]
        assert scorer([]) == []

    def test_an_encoder_is_scored_in_rows(self, tmp_path, tiny_tokenizer):
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = BertConfig(
            vocab_size=len(tiny_tokenizer),
            pad_token_id=tiny_tokenizer.pad_token_id,
            num_labels=3,
            initializer_range=0.5,
            **size,
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        scorer = RewardModel(str(tmp_path), device="cpu", reads="completion", positive_label=2)
        groups = [GROUPS[1], Group("p", ("a somewhat longer text", "x"))]
        logits = by_transformers(tmp_path, [text for group in groups for text in group.completions])
        p = logits.softmax(-1)[:, 2]
        truth = torch.log(p / (1 - p)).tolist()
        assert [x for row in scorer(groups) for x in row] == pytest.approx(truth, abs=1e-4)
        assert scorer.one_by_one(groups) == [pytest.approx(row, abs=1e-4) for row in scorer(groups)]

    def test_a_classifier_gives_the_log_odds_of_its_label(self, classifier):
        logits = by_transformers(classifier, ["A film: good"])[0]
        group = Group("A film: ", ("good",))
        for label, sign in ((None, 1), (1, 1), ("label_1", 1), (0, -1)):
            (found,) = RewardModel(str(classifier), device="cpu", positive_label=label)([group])
            assert found == pytest.approx((sign * float(logits[1] - logits[0]),), abs=1e-4)

    def test_a_label_that_is_not_there(self, classifier, ranking):
        with pytest.raises(
            ConfigError, match=r"positive_label is 'good'; .* has the labels 0 \(LABEL_0\), 1 \(LABEL_1\)"
        ):
            RewardModel(str(classifier), device="cpu", positive_label="good")
        with pytest.raises(ConfigError, match="has one label, whose logit is the reward; leave positive_label out"):
            RewardModel(str(ranking), device="cpu", positive_label=0)

    def test_what_it_is_known_by(self, ranking, classifier):
        known = RewardModel(str(ranking), device="cpu").identity()
        assert json.loads(json.dumps(known)) == known
        assert known["positive_label"] is None
        assert known["reward_model"].keys() >= {
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "chat_template.jinja",
        }
        assert RewardModel(str(classifier), device="cpu").identity()["positive_label"] == 1
        assert known != RewardModel(str(ranking), device="cpu", reads="completion").identity()

    def test_progress_counts_groups(self, ranking):
        done = []
        RewardModel(str(ranking), device="cpu", report=done.append)(GROUPS)
        assert sum(done) == len(GROUPS)

    def test_a_reward_that_is_not_finite_is_named(self, ranking, tmp_path):
        shutil.copytree(ranking, tmp_path / "rm")
        weights = load_file(tmp_path / "rm" / "model.safetensors")
        weights["score.weight"][0, 0] = math.nan
        save_file(weights, tmp_path / "rm" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            RewardError, match=r"A film: .*completion 1: the reward model careful says nan; expected a finite number"
        ):
            RewardModel(str(tmp_path / "rm"), device="cpu", name="careful")(GROUPS[1:2])

    def test_too_long_inputs_are_told(self, ranking):
        scorer = RewardModel(str(ranking), device="cpu")
        scorer([Group("a" * 600, ("b",))])
        assert scorer.lines() == ["1 of 1 inputs are longer than the reward model's 512 tokens: cut at the left"]


def test_log_odds_by_hand():
    p = torch.tensor([0.2, 0.5, 0.3])
    assert reward_of(p.log(), 1).item() == pytest.approx(0.0, abs=1e-6)  # 0.5 against 0.5
    assert reward_of(p.log(), 0).item() == pytest.approx(math.log(0.25), rel=1e-5)
    assert reward_of(torch.tensor([[2.0], [3.0]]), 0).tolist() == [2.0, 3.0]


class TestLoading:
    def test_a_fresh_head_is_small_and_the_seed_s(self, tiny_folder):
        first, again, other = (
            load_reward_model(str(tiny_folder), fresh_labels=1, seed=seed, device="cpu").score.weight
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert 0 < first.std() < 2 / 33

    def test_the_layers_are_the_causal_model_s(self, tiny_folder, tiny_model):
        made = load_reward_model(str(tiny_folder), fresh_labels=2, device="cpu")
        assert all(
            torch.equal(a, b) for a, b in zip(made.model.parameters(), tiny_model.model.parameters(), strict=True)
        )
        assert made.score.weight.shape == (2, 32)

    def test_drawing_the_head_leaves_the_random_numbers_alone(self, tiny_folder):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        load_reward_model(str(tiny_folder), fresh_labels=1, device="cpu")
        assert torch.equal(torch.rand(1), expected)

    def test_a_language_model_is_no_reward_model(self, tiny_folder):
        with pytest.raises(ModelError, match=r"no complete LlamaForSequenceClassification: score.weight is missing"):
            load_reward_model(str(tiny_folder), device="cpu")

    def test_a_reward_model_of_other_labels(self, ranking):
        with pytest.raises(ModelError, match=r"has 1 labels, and 2 are wanted: a ranking has 1, a classifier 2"):
            load_reward_model(str(ranking), fresh_labels=2, device="cpu")

    def test_a_missing_layer(self, ranking, tmp_path):
        shutil.copytree(ranking, tmp_path / "rm")
        weights = load_file(tmp_path / "rm" / "model.safetensors")
        del weights["model.layers.0.mlp.up_proj.weight"]
        save_file(weights, tmp_path / "rm" / "model.safetensors", metadata={"format": "pt"})
        for labels in (None, 1):
            with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
                load_reward_model(str(tmp_path / "rm"), fresh_labels=labels, device="cpu")

    def test_pickled_weights_are_not_loaded(self, ranking, tmp_path):
        shutil.copytree(ranking, tmp_path / "rm")
        weights = load_file(tmp_path / "rm" / "model.safetensors")
        (tmp_path / "rm" / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "rm" / "pytorch_model.bin")
        with pytest.raises(ModelError, match="no safetensors weights, and pickled ones are not loaded"):
            load_reward_model(str(tmp_path / "rm"), device="cpu")

    def test_an_adapter_is_to_be_merged(self, tiny_model, tmp_path):
        peft = pytest.importorskip("peft")
        peft.get_peft_model(tiny_model, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="is an adapter; merge it first: exoalign merge"):
            load_reward_model(str(tmp_path), device="cpu")


class TestPadding:
    def test_a_padding_token_that_ends_no_text_stays(self, tiny_folder, tiny_tokenizer):
        model, tokenizer = (
            load_reward_model(str(tiny_folder), fresh_labels=1, device="cpu"),
            copy.deepcopy(tiny_tokenizer),
        )
        assert set_padding(model, tokenizer) == tiny_tokenizer.pad_token_id
        assert model.config.pad_token_id == tiny_tokenizer.pad_token_id

    def test_one_that_ends_a_turn_is_replaced_by_a_special_token_that_does_not(self, tiny_folder, tiny_tokenizer):
        model, tokenizer = (
            load_reward_model(str(tiny_folder), fresh_labels=1, device="cpu"),
            copy.deepcopy(tiny_tokenizer),
        )
        tokenizer.pad_token = tokenizer.eos_token  # as SmolLM2 has it
        assert set_padding(model, tokenizer) == tiny_tokenizer.convert_tokens_to_ids("<pad>")
        assert tokenizer.pad_token == "<pad>"
        assert len(model.get_input_embeddings().weight) == len(tiny_tokenizer)

    def test_where_there_is_none_one_is_added_and_the_folder_still_reads_alike(
        self, tiny_folder, tiny_tokenizer, tmp_path
    ):
        folder = tmp_path / "rm"
        plain = _tokenizer_without_pad(tiny_tokenizer)
        make_reward_model(folder, tiny_folder, tokenizer=plain)
        assert plain.pad_token == "<|padding|>"
        assert AutoTokenizer.from_pretrained(folder).pad_token == "<|padding|>"
        assert len(plain) == len(_tokenizer_without_pad(tiny_tokenizer)) + 1
        scorer = RewardModel(str(folder), device="cpu")
        (fast,), (slow,) = scorer(GROUPS[:1]), scorer.one_by_one(GROUPS[:1])
        assert fast == pytest.approx(slow, abs=1e-4)


def _tokenizer_without_pad(tiny_tokenizer):
    """As the tiny one, with only the two special tokens of its template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.pad_token = fast.eos_token
    fast.chat_template = tiny_tokenizer.chat_template
    return fast


def test_a_text_that_ends_with_the_padding_token_is_read_before_it_as_transformers_does(
    tiny_folder, tiny_tokenizer, tmp_path
):
    # somebody else's model, whose padding token ends its turns
    model = load_reward_model(str(tiny_folder), fresh_labels=1, device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        model.score.weight.normal_()
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\nHo<|im_end|>"
    truth = by_transformers(tmp_path, [text])[0, 0].item()
    scorer = RewardModel(str(tmp_path), device="cpu")
    group = Group((Message("user", "Hi"),), ("Ho",))
    assert scorer([group])[0] == pytest.approx((truth,), abs=1e-4)
    before = by_transformers(tmp_path, [text.removesuffix("<|im_end|>")])[0, 0].item()
    assert truth == pytest.approx(before, abs=1e-4)


def test_the_libraries_are_quiet(ranking, caplog):
    with caplog.at_level(logging.WARNING, logger="exoalign"):
        RewardModel(str(ranking), device="cpu")(GROUPS)
    assert caplog.records == []
