"""The three estimates of the KL, on policies over all sequences: three symbols, three positions, every step by itself."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from exoalign.errors import DataError
from exoalign.kl_estimators import k3_terms, kl_intervals

SYMBOLS, LENGTH = 3, 3


def policy(seed, scale):
    """log pi(. | prefix) for every prefix: the steps depend on all that went before."""
    generator = np.random.default_rng(seed)
    prefixes = [p for n in range(LENGTH) for p in itertools.product(range(SYMBOLS), repeat=n)]
    logits = {prefix: scale * generator.normal(size=SYMBOLS) for prefix in prefixes}
    return {prefix: z - math.log(sum(np.exp(z))) for prefix, z in logits.items()}


def enumerated(pi, reference):
    """Probabilities of all sequences, their true KL, and each sequence's three estimates."""
    probabilities, kl, estimates = [], 0.0, {"k1": [], "k3": [], "exact": []}
    for y in itertools.product(range(SYMBOLS), repeat=LENGTH):
        steps = [(pi[y[:t]], reference[y[:t]], y[t]) for t in range(LENGTH)]
        ratios = [p[token] - q[token] for p, q, token in steps]
        probability = math.exp(sum(p[token] for p, _, token in steps))
        probabilities.append(probability)
        kl += probability * sum(ratios)  # the definition, sequence by sequence
        estimates["k1"].append(sum(ratios))
        estimates["k3"].append(k3_terms(ratios).sum())
        estimates["exact"].append(sum(float((np.exp(p) * (p - q)).sum()) for p, q, _ in steps))
    return np.array(probabilities), kl, {name: np.array(values) for name, values in estimates.items()}


def nudged(reference, by):
    """The reference moved a little."""
    other = policy(7, by)
    moved = {prefix: z + other[prefix] for prefix, z in reference.items()}
    return {prefix: z - math.log(sum(np.exp(z))) for prefix, z in moved.items()}


# moved a little, as far as training goes, and a policy that has given up most of what the reference says
CASES = {
    "near": (nudged(policy(2, 1.0), 0.1), policy(2, 1.0)),
    "far": (policy(1, 1.0), policy(2, 1.0)),
    "collapsed": (policy(1, 4.0), policy(2, 0.5)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_three_are_unbiased(case):
    probabilities, kl, estimates = enumerated(*CASES[case])
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert kl > 0.004
    for values in estimates.values():
        assert probabilities @ values == pytest.approx(kl, rel=1e-10)


def variances(case):
    probabilities, kl, estimates = enumerated(*CASES[case])
    return {name: probabilities @ (values - kl) ** 2 for name, values in estimates.items()}


def test_how_their_variances_compare():
    near, far, collapsed = (variances(case) for case in CASES)
    # near the reference k1 is noise around zero; k3 and the exact steps are of the second order in the change
    assert near["exact"] < near["k3"] < near["k1"] / 50
    assert far["exact"] < far["k3"]
    assert far["exact"] < far["k1"] / 2
    # where the policy has given up tokens that the reference likes, k3 is the worst: r has no bound
    assert collapsed["exact"] < collapsed["k1"] < collapsed["k3"]


def test_k3_by_hand():
    # r = 1, 1/2, 2: 0; -1/2 + log 2; 1 - log 2
    found = k3_terms([0.0, math.log(2), -math.log(2)])
    assert found.tolist() == pytest.approx([0.0, math.log(2) - 0.5, 1 - math.log(2)], rel=1e-14)
    assert (k3_terms(np.linspace(-3, 3, 1001)) >= 0).all()


def test_k3_of_whole_completions_has_the_same_mean():
    pi, reference = CASES["far"]
    probabilities, kl, estimates = enumerated(pi, reference)
    whole = k3_terms(estimates["k1"])
    assert probabilities @ whole == pytest.approx(kl, rel=1e-10)


def test_truncated_sampling_biases_k3_by_the_mass_that_is_never_drawn():
    # pi = (1, 0) after truncation of (0.9, 0.1), reference (0.6, 0.4): KL = log(1 / 0.6), E[k3] = 0.6 - 1 - log 0.6
    kl = math.log(1 / 0.6)
    assert k3_terms(kl).item() == pytest.approx(kl - 0.4)


def test_intervals_are_over_prompts():
    found = kl_intervals([[1.0, 3.0], [5.0]], [[2.0], [2.0]], [[0.0], [1.0]])
    assert list(found) == ["kl", "kl_exact", "kl_k3"]
    # two prompts: a resample has both once, or one of them twice
    assert found["kl"].as_dict() == {"mean": 3.5, "low": 2.0, "high": 5.0}
    assert found["kl_exact"].as_dict() == {"mean": 2.0, "low": 2.0, "high": 2.0}
    assert found["kl_k3"].as_dict() == {"mean": 0.5, "low": 0.0, "high": 1.0}


def test_other_prompts_are_refused():
    with pytest.raises(DataError, match="2 of kl, 2 of kl_exact, 1 of kl_k3"):
        kl_intervals([[1.0], [2.0]], [[1.0], [2.0]], [[1.0]])


def test_the_variances_in_the_docs_are_these():
    page = (Path(__file__).parents[1] / "docs" / "measures.md").read_text()
    for case, title in zip(CASES, ("moved a little", "far", "collapsed onto little"), strict=True):
        told = re.search(rf"^\| {title} \|(.*)\|$", page, re.MULTILINE)[1].split("|")
        found = enumerated(*CASES[case])[1], *(variances(case)[name] for name in ("k1", "k3", "exact"))
        assert [float(number) for number in told] == pytest.approx(found, rel=0.02)
