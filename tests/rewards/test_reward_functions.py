"""Reward functions are found where the user keeps them, and what they return wrongly stops with the row."""

import math
import sys
import textwrap

import numpy as np
import pytest
import torch

from exoalign.errors import RewardError
from exoalign.groups import Group, Message
from exoalign.rewards import functions
from exoalign.rewards.functions import length, resolve_reward, score, sentiment

GROUPS = [
    Group("Say:", ("good", "bad"), provenance={"source": "p.jsonl:1"}),
    Group(
        (Message("system", "Be kind."), Message("user", "Hi")), ("a b", "c", "d"), provenance={"source": "p.jsonl:2"}
    ),
]


# The functions that ship


def test_sentiment_has_the_sign_of_the_text():
    texts = ["A wonderful, moving film. I loved it!", "An awful, boring film. I hated it.", "The film is a film.", ""]
    loved, hated, plain, empty = sentiment([""] * 4, texts)
    assert loved > 0.5
    assert hated < -0.5
    assert plain == empty == 0.0


def test_sentiment_stays_within_its_bounds():
    texts = ["good " * 5000, "terrible!!! " * 5000, "🙂" * 100, "\0\x1b[31m", "NOT good, but VERY bad :( " * 50]
    values = sentiment([""] * 5, texts)
    assert all(type(value) is float and -1 <= value <= 1 for value in values)
    assert values[0] > 0.99
    assert values[1] < -0.99


def test_length_counts_words():
    assert length([""] * 4, ["one", "two  words", "", " a\nb\tc "]) == [1.0, 2.0, 0.0, 3.0]


# Finding one's own


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of its own name into the working directory and gives the name back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    names = []

    def write(code: str) -> str:
        names.append(f"reward_module_{abs(hash(request.node.nodeid))}_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(textwrap.dedent(code))
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_short_names():
    assert resolve_reward("sentiment") is sentiment
    assert resolve_reward("length") is length


def test_a_function_in_the_working_directory(module):
    name = module("""
        def vowels(prompts, completions):
            return [sum(c in "aeiou" for c in text) for text in completions]
        class Judge:
            @staticmethod
            def zero(prompts, completions):
                return [0] * len(completions)
    """)
    assert resolve_reward(f"{name}:vowels")(["x"], ["aeb"]) == [2]
    assert resolve_reward(f"{name}:Judge.zero")(["x"], ["y"]) == [0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sentimnt", "'sentimnt'; shipped are sentiment, length, .*if_verifiable; did you mean sentiment?"),
        (
            "my_rewards",
            "'my_rewards'; shipped are sentiment, length, .*if_verifiable; for your own write module:function",
        ),
        ("", "''; shipped are sentiment, length"),
        ("no_such_module_here:f", "module no_such_module_here cannot be imported .* ModuleNotFoundError"),
        (":f", "module  cannot be imported"),
        ("..:f", r"module \.\. cannot be imported"),
        ("math:sqr", "module math has no sqr; did you mean sqrt?"),
        ("math:", "module math has no "),
        ("math:pi.x", r"module math has no pi\.x"),
        ("math:pi", "'math:pi' is float; expected a function"),
    ],
)
def test_a_function_that_is_not_there_is_told(name, message):
    with pytest.raises(RewardError, match=f"^reward.function .*{message}"):
        resolve_reward(name)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def f(:", "SyntaxError"),
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import math; math.nothing", "AttributeError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(module, code, kind):
    name = module(code)
    with pytest.raises(RewardError, match=f"module {name} cannot be imported from .*: {kind}"):
        resolve_reward(f"{name}:f")


def test_without_vader_sentiment_is_refused_before_anything_is_sampled(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    functions._vader.cache_clear()
    with pytest.raises(RewardError, match=r"pip install 'exoalign\[sentiment\]'"):
        resolve_reward("sentiment")


# Scoring


def test_each_completion_has_the_reward_of_its_own_text():
    seen = []

    def reward(prompts, completions):
        seen.append((list(prompts), list(completions)))
        return [float(len(text)) for text in completions]

    done = []
    scored = score(GROUPS, reward, report=done.append)
    assert [group.rewards for group in scored] == [(4.0, 3.0), (3.0, 1.0, 1.0)]
    assert seen[0] == (["Say:"] * 2, ["good", "bad"])
    assert seen[1][0] == ["system: Be kind.\n\nuser: Hi"] * 3
    assert done == [1, 1]
    assert [group.where for group in scored] == ["p.jsonl:1", "p.jsonl:2"]


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 1),
        [True, False],
        np.array([0.5, 1.5], dtype=np.float32),
        torch.tensor([0.5, 1.5]),
        [np.float64(1), torch.tensor([2.0])],
        (x / 2 for x in range(2)),
    ],
    ids=["tuple", "bools", "array", "tensor", "scalars", "generator"],
)
def test_any_sequence_of_numbers_will_do(values):
    rewards = score(GROUPS[:1], lambda prompts, completions: values)[0].rewards
    assert [type(reward) for reward in rewards] == [float, float]


def test_what_a_function_does_to_its_arguments_stays_there():
    def greedy(prompts, completions):
        completions.append("more")
        prompts.clear()
        return [0.0] * (len(completions) - 1)

    assert [group.completions for group in score(GROUPS, greedy)] == [group.completions for group in GROUPS]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (None, "None"),
        ("0.5", "'0.5'"),
        ("x" * 999, "'" + "x" * 59),
        (10**400, "1000"),
        (1j, "1j"),
        ([1.0], r"\[1.0\]"),
        (torch.tensor([1.0, 2.0]), r"tensor"),
        (np.array([1.0, 2.0]), "array"),
        (torch.tensor(math.nan), "tensor"),
    ],
)
def test_a_value_that_is_no_finite_number_stops_and_names_row_and_completion(value, found):
    def reward(prompts, completions):
        return [0.0, value] if len(completions) == 2 else [0.0, 1.0, value]

    message = (
        rf"^reward function mine returned {found}.* at p\.jsonl:1, completion 2 \('bad'\); expected a finite number"
    )
    with pytest.raises(RewardError, match=message) as error:
        score(GROUPS, reward, name="reward function mine")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_count_stops_and_names_the_row(count):
    message = rf"^mine returned {count} values at p\.jsonl:1 for 2 completions"
    with pytest.raises(RewardError, match=message):
        score(GROUPS, lambda prompts, completions: [0.5] * count, name="mine")


async def waiting(prompts, completions):
    return [0.0, 0.0]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda prompts, completions: None, "NoneType"),
        (lambda prompts, completions: 0.5, "float"),
        (lambda prompts, completions: "ab", "str"),
        (lambda prompts, completions: {"a": 1, "b": 2}, "dict"),
        (lambda prompts, completions: torch.tensor(0.5), "Tensor"),
    ],
)
def test_what_is_no_list_stops_and_names_the_row(function, kind):
    with pytest.raises(RewardError, match=rf"^mine returned {kind} at p\.jsonl:1; expected a list of 2 numbers"):
        score(GROUPS, function, name="mine")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_async_function_is_none():
    with pytest.raises(RewardError, match=r"^mine returned coroutine at"):
        score(GROUPS, waiting, name="mine")


@pytest.mark.parametrize(
    "error", [ValueError("no such word"), KeyError("x"), SystemExit(0), RecursionError(), AssertionError()]
)
def test_a_function_that_raises_stops_and_names_the_row(error):
    def reward(prompts, completions):
        if len(completions) == 3:
            raise error
        return [0.0, 0.0]

    message = rf"^mine raised {type(error).__name__} at p\.jsonl:2 \('system: Be kind\.\\n\\nuser: Hi'\): "
    with pytest.raises(RewardError, match=message) as caught:
        score(GROUPS, reward, name="mine")
    assert caught.value.__cause__ is error


def test_ctrl_c_in_a_reward_function_is_ctrl_c():
    def reward(prompts, completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(GROUPS, reward)
