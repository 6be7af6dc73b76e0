"""The doctor's numbers: by hand, by enumeration, or by an independent slow computation."""

import json
import math

import numpy as np
import pytest

from exoalign.data.doctor.duplicates import resembling, sketch
from exoalign.data.doctor.examine import examine
from exoalign.data.doctor.lengths import Lengths, histogram
from exoalign.data.doctor.rewards import rank_correlation
from exoalign.data.doctor.targets import beta_r_table, epsilon_table, ess_of, suggest_beta_r
from exoalign.data.set_aside import SetAside
from exoalign.groups import Group


def group(i: int, completions, **more) -> Group:
    return Group(f"prompt {i}", completions, provenance={"source": f"x:{i}"}, **more)


# Rank correlation


def test_rank_correlation_with_ties_by_hand():
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4; less their mean 2.5: 4.5 / sqrt(4.5 * 5)
    found = rank_correlation(np.array([[10.0, 20, 20, 40]]), np.array([[1.0, 3, 2, 4]]))
    assert found == pytest.approx([4.5 / math.sqrt(22.5)])


def test_rank_correlation_is_pearsons_of_the_ranks():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 6, size=(50, 7)).astype(float), generator.normal(size=(50, 7))

    def ranks(row):
        return [sum(y < x for y in row) + (sum(y == x for y in row) + 1) / 2 for x in row]

    expected = [np.corrcoef(ranks(x), ranks(y))[0, 1] for x, y in zip(a, b, strict=True)]
    assert rank_correlation(a, b) == pytest.approx(expected)


def test_groups_without_an_order_are_left_out():
    assert np.isnan(rank_correlation(np.array([[1.0, 1], [1, 2]]), np.array([[1.0, 2], [3, 3]]))).all()
    groups = [group(0, ("ab", "c"), winner=0), group(1, ("ab", "cd"), winner=0)]
    found = examine(groups, SetAside(), near=False).length_correlation
    assert (found["mean"], found["groups"]) == (1, 1)


def test_the_interval_of_the_choice_is_the_normal_one():
    # of 400 pairs the longer reply wins 300: mean of +1 and -1 is 0.5, standard error sqrt(1 - 0.5^2) / 20
    groups = [group(i, ("longer", "short"), winner=int(i >= 300)) for i in range(400)]
    found = examine(groups, SetAside(), near=False).length_correlation
    half = 1.96 * math.sqrt(0.75) / 20
    assert (found["mean"], found["groups"]) == (0.5, 400)
    assert found["low"] == pytest.approx(0.5 - half, abs=0.012)
    assert found["high"] == pytest.approx(0.5 + half, abs=0.012)


# The target


def test_ess_and_entropy_by_hand():
    # softmax(log 3, 0) = (3/4, 1/4): ESS 1 / (10/16), entropy log 4 - 3/4 log 3
    table = beta_r_table({2: np.array([[0.1 * math.log(3), 0.0]])})
    value = next(value for value in table["values"] if value["beta_r"] == 0.1)
    assert value["ess"] == pytest.approx(1.6)
    assert value["ess_share"] == pytest.approx(0.6)
    assert value["entropy"] == pytest.approx(math.log(4) - 0.75 * math.log(3))
    one = epsilon_table()["values"][0]
    assert (one["epsilon"], one["ess"]) == (1e-3, pytest.approx(1 / (0.999**2 + 0.001**2)))


def test_the_suggested_beta_r_by_hand():
    # ESS = 1.5 of K = 2: p^2 + (1 - p)^2 = 2/3, so p = (1 + 1/sqrt 3) / 2 and 1 / beta_r = log(p / (1 - p))
    expected = 1 / math.log((1 + 1 / math.sqrt(3)) / (1 - 1 / math.sqrt(3)))
    rewards = np.array([[1.0, 0.0], [5.0, 6.0], [0.0, 1.0]])
    assert suggest_beta_r({2: rewards}) == pytest.approx(expected, rel=1e-5)
    assert suggest_beta_r({2: rewards * 1000}) == pytest.approx(1000 * expected, rel=1e-5)
    assert beta_r_table({2: rewards})["suggested"] == 0.76


def test_the_suggestion_is_the_median_over_groups_of_every_size():
    rewards = {2: np.array([[1.0, 0.0]]), 4: np.array([[0.3, 0.1, 0.0, 0.2], [0.0, 9.0, 1.0, 2.0]])}
    beta_r = suggest_beta_r(rewards)
    shares = sorted(
        (1 / sum((math.exp(r / beta_r) / sum(math.exp(s / beta_r) for s in row)) ** 2 for r in row) - 1) / (k - 1)
        for k, rows in rewards.items()
        for row in rows
    )
    assert shares[1] == pytest.approx(0.5, abs=1e-4)


def test_ties_at_the_top_leave_no_suggestion():
    # as beta_r goes to 0 the ESS goes to 3 of 4: (3 - 1) / (4 - 1) is above 1/2 everywhere
    table = beta_r_table({4: np.array([[1.0, 1, 1, 0]])})
    assert table["suggested"] is None
    assert [value["beta_r"] for value in table["values"]] == [0.1, 0.5]
    assert beta_r_table({2: np.array([[1.0, 1.0]])}) is None


def test_groups_without_spread_have_no_say():
    rewards = {3: np.array([[1.0, 0, 0], [2, 2, 2]])}
    assert ess_of(rewards, 1e-3) == pytest.approx([1.0])


@pytest.mark.parametrize("size", [1.7e308, 1e-320])
def test_extreme_rewards_give_json(size):
    groups = [group(i, ("ab", "cd"), rewards=(size, -size)) for i in range(3)]
    examination = examine(groups, SetAside(), beta_r=0.5)
    json.dumps(examination.as_dict(), allow_nan=False)
    assert examination.targets["beta_r"]["suggested"] is None
    assert examination.rewards["max"] == size


def test_the_betas_given_are_judged():
    groups = [group(i, ("ab", "cd", "ef"), rewards=(1.0, 0.5, 0.0)) for i in range(3)]

    def kinds(**betas):
        return {finding.kind for finding in examine(groups, SetAside(), near=False, **betas).findings}

    assert kinds() == set()
    assert kinds(beta_r=0.01) == {"sharp"}
    assert kinds(beta_r=0.5) == set()
    assert kinds(beta_r=20.0) == {"flat", "still"}
    assert kinds(beta_r=20.0, beta_pi=0.05) == {"flat"}


# Rewards


def test_the_spread_within_groups():
    groups = [group(i, ("ab", "cd", "ef"), rewards=(float(i), 0.0, 2.0)) for i in (1, 3, 5)]
    found = examine(groups, SetAside(), near=False).rewards
    assert (found["min"], found["max"], found["median"]) == (0, 5, 2)  # of 0 0 0 1 2 2 2 3 5
    assert found["spread"] == {"p05": pytest.approx(2.1), "median": 3, "p95": pytest.approx(4.8)}  # of 2 3 5
    assert found["all_equal"] == 0


# Lengths


def test_summaries_by_hand():
    lengths = Lengths()
    for prompt, completions in ((4, [1, 2]), (6, [9]), (20, [])):
        lengths.add(prompt, completions)
    found = lengths.summary()
    assert found["prompt"] == {"median": 6, "p95": pytest.approx(6 + 0.9 * 14), "max": 20, "total": 30}
    assert found["completion"] == {"median": 2, "p95": pytest.approx(2 + 0.9 * 7), "max": 9, "total": 12}
    assert (found["row"]["median"], found["row"]["max"]) == (15, 20)  # 6, 15 and 20


def test_histograms_hold_everything():
    values = [*range(1000), 10**6]
    found = histogram(values, whole=True)
    assert sum(found["counts"]) == 1001
    assert found["edges"][0] == 0
    assert found["edges"][-1] == 10**6  # the last bar holds what is far out
    assert set(np.diff(found["edges"])[:-1]) == {34}  # 995 / 30, rounded up
    assert histogram([3, 3]) == {"edges": [3, 4], "counts": [2]}
    assert histogram([]) == {"edges": [], "counts": []}


# Near-duplicates


def shingles(text):
    raw = " ".join(text.casefold().split()).encode()
    return {raw[i : i + 8] for i in range(len(raw) - 7)}


def test_sketches_estimate_the_jaccard_similarity():
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghij"), size=6)) for _ in range(400)]
    base = " ".join(words[:200])
    errors = []
    for changed in (0, 10, 40, 100, 200):
        other = " ".join(words[200 : 200 + changed] + words[changed:200])
        exact = len(shingles(base) & shingles(other)) / len(shingles(base) | shingles(other))
        errors.append((sketch(base) == sketch(other)).mean() - exact)
    assert max(map(abs, errors)) < 3 / 16  # three standard deviations
    assert errors[0] == 0


def test_a_long_text_is_sketched_in_parts_as_in_one():
    text = "".join(np.random.default_rng(1).choice(list("abcdefgh"), size=40_000))
    halves = np.minimum(sketch(text[:20_007]), sketch(text[20_000:]))
    assert (sketch(text) == halves).all()


def test_short_and_empty_texts_have_sketches():
    found = resembling(np.array([sketch(text) for text in ("", "Hi", "Ho", "hi ", "")]))
    assert found.tolist() == [0, 1, 2, 1, 0]


def test_only_the_earlier_of_two_is_pointed_to():
    sketches = np.array(
        [sketch("the quick brown fox"), sketch("something else altogether"), sketch("The quick brown fox")]
    )
    assert resembling(sketches).tolist() == [0, 1, 0]
    assert resembling(sketches, among=0).tolist() == [0, 1, 2]
