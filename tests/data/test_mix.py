"""Splits go by prompt and nothing else, weights are shares, and what is kept by completion stays with its completion."""

import itertools
from collections import Counter

import pytest

from exoalign.data.mix import choose, mix, side_of, split, subsample
from exoalign.errors import DataError
from exoalign.groups import Group, Message


def groups(count, rows=2):
    return [Group(f"prompt {i}", (f"{i} a {j}", f"{i} b {j}"), winner=0) for i in range(count) for j in range(rows)]


FULL = Group(
    "x",
    ("a", "b", "c", "d"),
    rewards=(0.5, 2.0, -1.0, 2.0),
    winner=1,
    prompt_ids=(1,),
    completion_ids=((10,), (11, 11), (12,), (13,)),
    completion_masks=((True,), (False, True), (True,), (True,)),
    sampler_logprobs=(-1.0, -2.0, -3.0, -4.0),
    reference_logprobs=(-1.5, -2.5, -3.5, -4.5),
    scores={"length": (1.0, 2.0, 3.0, 4.0)},
    provenance={"source": "f:1", "finish": ["stop", "length", "stop", "stop"], "model_logprobs": [1.0, 2.0, 3.0, 4.0]},
)


class TestSplit:
    def test_every_row_is_on_one_side_and_no_prompt_on_both(self):
        data = groups(200)
        sides = {side: list(split(data, holdout=0.3, seed=1, side=side)) for side in ("train", "heldout")}
        assert sorted(g.completions for part in sides.values() for g in part) == sorted(g.completions for g in data)
        assert not {g.prompt for g in sides["train"]} & {g.prompt for g in sides["heldout"]}
        assert len(sides["heldout"]) % 2 == 0

    def test_neither_order_nor_other_rows_matter(self):
        data = groups(50, rows=1)
        heldout = {g.prompt for g in split(data, holdout=0.5, seed=3, side="heldout")}
        assert {g.prompt for g in split(data[::-1], holdout=0.5, seed=3, side="heldout")} == heldout
        assert {g.prompt for g in split(data[:20], holdout=0.5, seed=3, side="heldout")} == heldout & {
            g.prompt for g in data[:20]
        }

    def test_it_streams(self):
        endless = (Group(f"{i}", ("a", "b"), winner=0) for i in itertools.count())
        assert len(list(itertools.islice(split(endless, holdout=0.1, seed=0, side="train"), 20))) == 20

    def test_the_share_is_that_of_the_prompts_and_the_seed_decides_which(self):
        sides = [Counter(side_of(f"p{i}", holdout=0.2, seed=seed) for i in range(4000)) for seed in (0, 1)]
        for counts in sides:  # 800 expected, standard deviation 25
            assert 700 < counts["heldout"] < 900
        both = sum(all(side_of(f"p{i}", holdout=0.2, seed=s) == "heldout" for s in (0, 1)) for i in range(4000))
        assert 100 < both < 220  # independent: 160 expected

    def test_a_larger_share_holds_out_what_a_smaller_one_does(self):
        small, large = ({i for i in range(300) if side_of(f"{i}", holdout=h, seed=0) == "heldout"} for h in (0.1, 0.4))
        assert small < large

    def test_a_known_draw_stays_what_it_is(self):
        """A split must be the same in every version: sha256('[0, "split", "Hi"]') begins with 000fb0 = 0.000239 * 2**24."""
        for prompt in ("Hi", (Message("user", "Hi"),)):  # whoever reads them sees the same
            assert [side_of(prompt, holdout=h, seed=0) for h in (0.000239, 0.000240)] == ["train", "heldout"]


class TestMix:
    def test_a_weight_is_a_share_at_every_point(self):
        drawn = mix([1000, 1000, 1000], [5, 3, 2], seed=0)
        assert len(drawn) >= 1995  # until the first set is at its end
        for n in (10, 100, 1000, 2000):
            counts = Counter(number for number, _ in drawn[:n])
            for number, share in enumerate((0.5, 0.3, 0.2)):
                assert abs(counts[number] - share * n) <= 1

    def test_nothing_is_drawn_twice_and_the_smallest_for_its_weight_ends_it(self):
        drawn = mix([100, 5], [1, 1], seed=0)
        assert len(set(drawn)) == len(drawn)
        assert Counter(number for number, _ in drawn) == {0: 6, 1: 5}  # in turns, the first set first

    def test_only_the_relation_of_the_weights_matters(self):
        assert mix([30, 30], [2, 1], seed=4) == mix([30, 30], [0.5, 0.25], seed=4)

    def test_the_seed_chooses_the_rows(self):
        one, again, other = (mix([50, 5], [1, 1], seed=seed) for seed in (0, 0, 1))
        assert one == again
        assert one != other
        assert [number for number, _ in one] == [number for number, _ in other]
        assert {row for number, row in one if number == 0} != set(range(6))  # not simply the first ones


class TestChoose:
    def test_everything_goes_with_its_completion(self):
        chosen = choose(FULL, [3, 1])
        assert chosen == Group(
            "x",
            ("d", "b"),
            rewards=(2.0, 2.0),
            winner=1,
            prompt_ids=(1,),
            completion_ids=((13,), (11, 11)),
            completion_masks=((True,), (False, True)),
            sampler_logprobs=(-4.0, -2.0),
            reference_logprobs=(-4.5, -2.5),
            scores={"length": (4.0, 2.0)},
            provenance={
                "source": "f:1",
                "finish": ["stop", "length"],
                "model_logprobs": [4.0, 2.0],
                "chosen_completions": [3, 1],
            },
        )
        assert choose(chosen, [0]).provenance["chosen_completions"] == [3]  # of the row, not of the choice before
        assert choose(chosen, [0]).winner is None

    def test_the_best_and_the_worst(self):
        assert subsample(FULL, how="best_worst", k=2, seed=0).completions == ("b", "c")
        assert subsample(FULL, how="best_worst", k=3, seed=0).completions == ("b", "c", "d")
        equal = Group("x", ("a", "b", "c"), rewards=(1, 1, 1))
        assert subsample(equal, how="best_worst", k=2, seed=0).completions == ("a", "b")

    def test_random_depends_on_prompt_and_seed_alone(self):
        many = [Group(f"p{i}", tuple("abcdefgh"), rewards=tuple(range(8))) for i in range(40)]
        drawn = [subsample(g, how="random", k=3, seed=0).completions for g in many]
        assert drawn == [subsample(g, how="random", k=3, seed=0).completions for g in many[::-1]][::-1]
        assert drawn != [subsample(g, how="random", k=3, seed=1).completions for g in many]
        counts = Counter(text for texts in drawn for text in texts)
        assert set(counts) == set("abcdefgh")
        assert all(list(texts) == sorted(texts) and len(texts) == 3 for texts in drawn)

    @pytest.mark.parametrize("rewards", [None, (4, 3, 2, 1)])
    def test_random_keeps_the_winner(self, rewards):
        for i in range(20):
            whole = Group(f"p{i}", ("a", "b", "c", "d"), rewards=rewards, winner=2)
            group = subsample(whole, how="random", k=2, seed=0)
            assert group.completions[group.winner] == "c"

    @pytest.mark.parametrize("wrong", [["stop"], "stop", None, {"a": 1}, []])
    def test_lists_that_are_not_of_the_completions_are_left_out(self, wrong):
        group = Group("x", ("a", "b", "c", "d"), provenance={"finish": wrong, "chosen_completions": wrong, "x": wrong})
        assert dict(choose(group, [3, 1]).provenance) == {"chosen_completions": [3, 1], "x": wrong}

    @pytest.mark.parametrize(("how", "k"), [("all", None), ("best_worst", 4), ("random", 9)])
    def test_groups_that_are_small_enough_stay_as_they_are(self, how, k):
        assert subsample(FULL, how=how, k=k, seed=0) is FULL

    def test_best_worst_without_rewards_is_refused(self):
        group = Group("x", ("a", "b", "c"), winner=0, provenance={"source": "f:7"})
        with pytest.raises(DataError, match=r"^f:7: `best_worst` of 3 completions needs rewards, .* use `random`"):
            subsample(group, how="best_worst", k=2, seed=0)
