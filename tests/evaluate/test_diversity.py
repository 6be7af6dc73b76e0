"""Diversity by hand and against NLTK, the correlation by hand and against NumPy."""

import math
import random

import numpy as np
import pytest

from exoalign.errors import DataError
from exoalign.evaluate.diversity import bleu, distinct_n, diversity_of, length_against_reward, self_bleu
from exoalign.groups import Group, Message


class TestDistinct:
    def test_by_hand(self):
        assert distinct_n(["a b c", "a b d"]) == 3 / 4
        assert distinct_n(["a b c", "a b d"], n=1) == 4 / 6
        assert distinct_n(["a a a a"]) == 1 / 3
        assert distinct_n(["x y", "x y", "x y"]) == 1 / 3
        assert distinct_n(["a  b\nc", "d"]) == 1.0  # white space of any kind; a single word has no pair
        assert distinct_n(["a", "", "b"]) is None


class TestBleu:
    def test_by_hand(self):
        # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples; no match of 1 quadruple counts 0.1; as long as its reference
        expected = (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4)
        assert bleu(["the", "cat", "sat", "down"], [["the", "cat", "sat", "here"]]) == pytest.approx(expected)
        # one word of two, and no pair; the reference is twice as long: exp(1 - 4 / 2)
        assert bleu(["a", "x"], [["a", "b", "c", "d"]]) == pytest.approx(math.exp(-1) * (1 / 2 * 0.1) ** (1 / 2))

    def test_a_word_counts_as_often_as_one_reference_has_it(self):
        assert bleu(["a", "a"], [["a", "b"], ["a", "c"]]) == pytest.approx((1 / 2 * 0.1) ** 0.5)

    def test_ends(self):
        assert bleu(["a", "b"], [["a", "b"]]) == 1.0
        assert bleu(["a", "b"], [["c", "d"]]) == 0.0
        assert bleu([], [["a"]]) == 0.0
        assert bleu([], [[], ["a"]]) == 1.0
        assert bleu(["a"], [[]]) == 0.0

    def test_it_equals_nltk(self):
        translate = pytest.importorskip("nltk.translate.bleu_score")
        generator = random.Random(0)
        for _ in range(200):
            words = [generator.choices("abcdef", k=generator.randint(1, 12)) for _ in range(generator.randint(2, 5))]
            orders = min(4, len(words[0]))
            expected = translate.sentence_bleu(
                words[1:],
                words[0],
                weights=(1 / orders,) * orders,
                smoothing_function=translate.SmoothingFunction(epsilon=0.1).method1,
            )
            assert bleu(words[0], words[1:]) == pytest.approx(expected, rel=1e-9)


class TestSelfBleu:
    def test_by_hand(self):
        assert self_bleu(["a b", "a b", "c d"]) == pytest.approx((1 + 1 + 0) / 3)
        assert self_bleu(["the same words again here"] * 3) == 1.0
        assert self_bleu(["alone"]) is None

    def test_the_order_does_not_matter(self):
        texts = ["a b c d e", "a b x d e", "q r a b"]
        assert self_bleu(texts) == pytest.approx(self_bleu(texts[::-1]))


class TestOfGroups:
    def test_prompts_are_the_unit(self):
        groups = [Group("p", ("a b", "a b")), Group("q", ("a b", "c d")), Group("r", ("a", "b"))]
        assert diversity_of(groups, distinct_n).as_dict() == {"mean": 0.75, "low": 0.5, "high": 1.0}  # r has no pair
        assert diversity_of(groups[2:], distinct_n) is None

    def test_a_trajectory_is_what_people_read(self):
        turns = (Message("assistant", "a b"),)
        assert diversity_of([Group((Message("user", "?"),), (turns, turns))], self_bleu).mean == 1.0


def group(lengths, rewards):
    ids = tuple((1,) * n for n in lengths)
    return Group("p", ("x",) * len(lengths), rewards=tuple(rewards), prompt_ids=(1,), completion_ids=ids)


class TestLengthAgainstReward:
    def test_only_what_differs_within_a_prompt_counts(self):
        # longer prompts' replies are better, but of each prompt's the shorter one is
        groups = [group((1, 2), (1.0, 0.5)), group((11, 12), (11.0, 10.5)), group((21, 23), (21.0, 20.0))]
        assert length_against_reward(groups).as_dict() == pytest.approx({"mean": -1.0, "low": -1.0, "high": -1.0})

    def test_it_is_pearsons(self):
        generator = np.random.default_rng(0)
        lengths, noise = generator.integers(1, 30, size=40), generator.normal(size=40)
        rewards = 0.1 * lengths + noise
        found = length_against_reward([group(lengths.tolist(), rewards.tolist())])
        assert found.mean == pytest.approx(np.corrcoef(lengths, rewards)[0, 1])
        assert found.low == pytest.approx(found.mean)  # one prompt has no interval
        assert found.high == pytest.approx(found.mean)

    def test_the_interval_has_the_width_of_theory(self):
        # 400 pairs of normal deviations with correlation r: the standard error is (1 - r^2) / sqrt(400)
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 200, size=(400, 2))
        rewards = (lengths - 100) / 58 + generator.normal(size=(400, 2))
        found = length_against_reward([group(*row) for row in zip(lengths.tolist(), rewards.tolist(), strict=True)])
        assert found.mean == pytest.approx(0.5**0.5, abs=0.08)
        assert (found.high - found.low) / 2 == pytest.approx(1.96 * (1 - found.mean**2) / 20, rel=0.3)

    @pytest.mark.parametrize(
        ("lengths", "rewards"), [((3, 3, 3), (1, 2, 3)), ((1, 2, 3), (0.1, 0.1, 0.1)), ((4,), (1,))]
    )
    def test_nothing_varies_nothing_is_said(self, lengths, rewards):
        assert length_against_reward([group(lengths, rewards)]) is None

    def test_what_is_missing_is_named(self):
        with pytest.raises(DataError, match="no groups"):
            length_against_reward([])
        with pytest.raises(DataError, match="no rewards"):
            length_against_reward([Group("p", ("x",), prompt_ids=(1,), completion_ids=((1,),))])
