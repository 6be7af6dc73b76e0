"""The report as HTML text: what it says, that it agrees with the metrics, and that data stays data."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from exoalign.errors import DataError
from exoalign.report import write_page
from exoalign.report.curves import training_figures
from exoalign.report.figures import bins, reward_figures
from exoalign.report.finding import cards, finding
from exoalign.report.html import HERE, visible
from exoalign.report.stage_views import duration

EMPTY: dict[str, Any] = {
    "title": "nothing",
    "recipe": {},
    "metrics": {},
    "history": [],
    "warnings": [],
    "samples": [],
    "stages": [],
    "versions": {},
}
ATTACK = "<script>window.hacked=1</script></script><img src=x onerror='hacked=1'>{{7*7}} [/foo] \x1b[31mred\x1b[0m \"'&"
SHOWN = ATTACK.replace("\x1b", "␛")


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and the content of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self.inside != "style":
            self.texts.append(data)

    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(text) for attributes, text in self.scripts if attributes.get("type") == "application/json"]

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def rewards(before: float, after: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {
        "base": {"reward": {"mean": before}},
        "aligned": {"reward": {"mean": after}, **more},
        "difference": {"reward": {"mean": after - before, "low": low, "high": high}},
        "prompts": 32,
    }


# What it says


def test_a_clear_rise_is_said_with_its_interval_prompts_and_kl() -> None:
    metrics = rewards(0.41, 0.59, 0.12, 0.24, kl={"mean": 0.72, "low": 0.66, "high": 0.78})
    assert finding(metrics) == (
        "Mean reward rose from 0.41 to 0.59 (+0.18, 95% interval 0.12 to 0.24) on 32 held-out prompts, "
        "at a KL of 0.72 nats from the reference."
    )


def test_an_interval_that_contains_0_is_no_rise() -> None:
    said = finding(rewards(0.41, 0.44, -0.05, 0.11))
    assert said == (
        "No clear change in mean reward: 0.41 before, 0.44 after (+0.03, 95% interval −0.05 to 0.11, which contains 0) "
        "on 32 held-out prompts."
    )


def test_an_interval_that_touches_0_is_no_rise() -> None:
    assert finding(rewards(0.41, 0.46, 0.0, 0.1)).startswith("No clear change")


def test_a_fall_is_called_a_fall() -> None:
    said = finding(rewards(0.59, 0.41, -0.24, -0.12))
    assert said.startswith("Mean reward fell from 0.59 to 0.41 (−0.18, 95% interval −0.24 to −0.12)")


def test_a_clear_interval_never_rounds_to_0() -> None:
    assert "95% interval 0.003 to 0.123" in finding(rewards(0.4, 0.463, 0.0031, 0.1229))


def test_without_an_interval_nothing_is_claimed() -> None:
    said = finding({"base": {"reward": {"mean": 0.4}}, "aligned": {"reward": {"mean": 0.6}}})
    assert said == "Mean reward went from 0.400 to 0.600 (+0.200). No interval was computed, so this may be noise."


def test_the_exact_kl_is_preferred_and_the_log_ratio_shown_beside_it(reward_run: dict[str, Any]) -> None:
    assert "at a KL of 0.70 nats" in finding(reward_run["metrics"])
    kl = next(card for card in cards(reward_run["metrics"]) if card.label == "KL from reference")
    assert (kl.value, kl.note) == ("0.70 nats", "95%: 0.64 to 0.77; mean log-ratio 0.72")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.5625, 0.875, "better than chance (50%)"),
        (0.45, 0.875, "not clearly different from chance (50%)"),
        (0.2, 0.4, "worse than chance (50%)"),
    ],
)
def test_pairs_are_judged_against_chance(pair_run: dict[str, Any], low: float, high: float, said: str) -> None:
    pair_run["metrics"]["heldout"]["accuracy"] |= {"low": low, "high": high}
    sentence = finding(pair_run["metrics"])
    assert sentence.startswith("The aligned model ranks the preferred reply first in 72% of 32 held-out pairs")
    assert said in sentence
    assert sentence.endswith("Training loss fell from 0.69 to 0.52 on 64 pairs.")


def test_it_is_told_that_training_pairs_were_drawn(pair_run: dict[str, Any]) -> None:
    pair_run["metrics"]["train"]["of"] = 100_000
    assert finding(pair_run["metrics"]).endswith("from 0.69 to 0.52 on 64 pairs, drawn from 100,000.")
    assert [card.note for card in cards(pair_run["metrics"]) if card.label == "Pairs"] == [
        "training (of 100,000) + held out"
    ]


@pytest.mark.parametrize(
    "metrics", [{}, {"base": {"reward": {"mean": math.nan}}, "aligned": {"reward": {"mean": math.nan}}}]
)
def test_nothing_finite_means_no_finding(metrics: dict[str, Any]) -> None:
    assert "states no finding" in finding(metrics)


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.44, 42.4, 80.1, 119.7, 7500)] == [
        "0.4 s",
        "42 s",
        "1 min 20 s",
        "2 min 00 s",
        "2 h 05 min",
    ]


# What it shows


def test_the_page_shows_the_numbers_of_the_metrics(tmp_path: Path, reward_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **reward_run))
    metrics = reward_run["metrics"]
    for model, label in (("base", "Reward before"), ("aligned", "Reward after")):
        reward = metrics[model]["reward"]
        assert f"{label} {reward['mean']:.2f} 95%: {reward['low']:.2f} to {reward['high']:.2f}" in page.text
    assert "Completion length 37.9 → 38.8" in page.text
    assert f"aligned.reward {metrics['aligned']['reward']['mean']:.6g}" in page.text
    assert "prompts 32" in page.text
    for warning in reward_run["warnings"]:
        assert warning in page.text
    for stage in reward_run["stages"]:
        assert stage["what"] in page.text
    assert "1 min 20 s" in page.text
    assert "learning_rate 1e-05" in page.text
    assert "transformers 5.23.0" in page.text


def test_every_completion_is_shown_with_its_reward(tmp_path: Path, reward_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **reward_run))
    for sample in reward_run["samples"]:
        assert sample["prompt"] in page.text
        for completion in sample["base"] + sample["aligned"]:
            reward = f"{round(completion['reward'], 2) + 0.0:.2f}".replace("-", "−")
            assert f"reward {reward}{completion['text']}" in page.text


def test_small_rewards_can_be_told_apart(tmp_path: Path) -> None:
    sample = {"prompt": "p", "base": [{"text": "x", "reward": 0.0011}], "aligned": [{"text": "y", "reward": 0.0042}]}
    page = Page(write_page(tmp_path / "report.html", **(EMPTY | {"samples": [sample]})))
    assert "mean reward 0.00110 → 0.00420 +0.00310" in page.text


def test_the_mean_plot_holds_the_intervals(reward_run: dict[str, Any]) -> None:
    reward_run["metrics"]["aligned"]["reward"] = {"mean": 0.4, "low": 0.35, "high": 0.55}
    figure = next(figure for figure in reward_figures(reward_run["metrics"], []) if figure.id == "mean-reward")
    wanted = [reward_run["metrics"][name]["reward"] for name in ("base", "aligned", "difference")]
    for trace, reward in zip(figure.spec["data"], wanted, strict=True):
        assert trace["x"] == [reward["mean"]]
        assert trace["x"][0] + trace["error_x"]["array"][0] == pytest.approx(reward["high"])
        assert trace["x"][0] - trace["error_x"]["arrayminus"][0] == pytest.approx(reward["low"])


def test_the_histogram_counts_every_completion_once() -> None:
    values = [-0.5, -0.49, 0.0, 0.1, 0.1, 0.3, 0.31, 0.33, 0.4, 0.5, 0.52, 0.61, 0.7, 0.88, 0.95, 1.0]
    sample = {"prompt": "p", "base": [{"text": "t", "reward": value} for value in values], "aligned": []}
    (figure,) = reward_figures({}, [sample])
    (trace,) = figure.spec["data"]
    assert sum(count for _, count in trace["customdata"]) == len(values)
    assert sum(trace["y"]) == pytest.approx(1)
    lows, width = bins(values)
    for low, (_, count) in zip(lows, trace["customdata"], strict=True):
        assert count == sum(low - 1e-9 <= value < low + width - 1e-9 for value in values)


def test_few_different_rewards_are_shown_each_on_its_own() -> None:
    sample = {"prompt": "p", "base": [{"text": "t", "reward": value} for value in (0, 1, 1, 1)], "aligned": []}
    (figure,) = reward_figures({}, [sample])
    assert figure.spec["data"][0]["x"] == ["0", "1"]
    assert figure.spec["data"][0]["y"] == [0.25, 0.75]


def test_curves_hold_the_history_and_k(reward_run: dict[str, Any]) -> None:
    figures = {figure.id: figure.spec for figure in training_figures(reward_run["history"], 8)}
    assert list(figures) == ["loss", "expected-reward", "ess", "log-ratio", "grad-norm"]
    assert figures["loss"]["data"][0]["y"] == [row["loss"] for row in reward_run["history"]]
    assert [trace["name"] for trace in figures["ess"]["data"]] == ["policy q", "target p"]
    assert figures["ess"]["layout"]["annotations"][0]["text"] == "K = 8"
    assert figures["ess"]["layout"]["yaxis"]["range"][1] > 8


def test_a_pair_run_shows_accuracy_and_no_rewards(tmp_path: Path, pair_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **pair_run))
    assert "Held-out accuracy 72% 95%: 56% to 88%" in page.text
    assert "Training accuracy" in page.text
    assert "Mean reward" not in page.text
    assert "This run has no samples." in page.text
    assert "This run raised no warnings." in page.text


def test_an_empty_run_still_has_a_page(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path / "report.html", **EMPTY))
    assert "No training history was recorded." in page.text
    assert page.figures() == []


def test_gaps_and_missing_rewards_are_gaps(tmp_path: Path) -> None:
    run = EMPTY | {
        "history": [{"step": 1, "loss": math.nan}, {"loss": 0.5}, {"step": 3}],
        "samples": [
            {"prompt": "", "base": [{"text": "x", "reward": math.inf}], "aligned": [{"text": "", "reward": None}]}
        ],
    }
    page = Page(write_page(tmp_path / "report.html", **run))
    (loss,) = page.figures()
    assert (loss["data"][0]["x"], loss["data"][0]["y"]) == ([1, 2, 3], [None, 0.5, None])
    assert "(empty prompt) mean reward – → –" in page.text


def test_all_figures_are_valid_plotly(reward_run: dict[str, Any], pair_run: dict[str, Any]) -> None:
    for run in (reward_run, pair_run):
        figures = reward_figures(run["metrics"], run["samples"]) + training_figures(run["history"], 8)
        assert figures
        for figure in figures:
            go.Figure(figure.spec)


# Form


def test_headings_descend_without_a_gap_and_ids_are_unique(tmp_path: Path, reward_run: dict[str, Any]) -> None:
    page = Page(write_page(tmp_path / "report.html", **reward_run))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    referenced = " ".join(
        page.attributes("aria-labelledby") + page.attributes("aria-describedby") + page.attributes("for")
    )
    links = [target[1:] for target in page.attributes("href") if target.startswith("#")]
    assert {*referenced.split(), *links} <= set(ids)
    assert ("html", {"lang": "en"}) in page.elements


def schemes() -> dict[str, dict[str, str]]:
    css = (HERE / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    read = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in (light, dark)]
    return {"light": read[0], "dark": read[1]}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_colours_have_contrast_aa(scheme: str) -> None:
    colours = schemes()[scheme]
    for ink in ("text", "muted", "base", "aligned", "target", "plum", "leaf"):
        for ground in ("page", "surface"):
            bright, dim = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{ink} on {ground}"


def test_every_colour_of_the_plots_is_defined_in_both_schemes(reward_run: dict[str, Any]) -> None:
    figures = reward_figures(reward_run["metrics"], reward_run["samples"]) + training_figures(reward_run["history"], 8)
    used = set(re.findall(r"var\(--([a-z-]+)\)", json.dumps([figure.spec for figure in figures])))
    assert {"base", "aligned", "target", "text"} <= used
    for colours in schemes().values():
        assert used <= set(colours)


# Data stays data


@pytest.fixture
def attacked(tmp_path: Path, reward_run: dict[str, Any]) -> Page:
    run = reward_run | {
        "title": ATTACK,
        "recipe": {"name": ATTACK, "align": {ATTACK: ATTACK, "list": [ATTACK]}},
        "metrics": reward_run["metrics"] | {ATTACK: {"mean": 1.0}},
        "warnings": [ATTACK],
        "samples": [
            {"prompt": ATTACK, "base": [{"text": ATTACK, "reward": 0.1}], "aligned": [{"text": ATTACK, "reward": 0.2}]}
        ],
        "stages": [{"name": ATTACK, "seconds": 1.0, "state": ATTACK, "what": ATTACK}],
        "versions": {ATTACK: ATTACK},
    }
    return Page(write_page(tmp_path / "report.html", **run))


def test_injected_text_is_shown_and_runs_nowhere(attacked: Page) -> None:
    tags = [tag for tag, _ in attacked.elements]
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in attacked.elements for name in attributes)
    assert not any("hacked" in text for _, text in attacked.scripts)
    # title 2, preview and prompt, completions 2, warning, stage 3, recipe 3 and a list in JSON, metric, version 2
    assert attacked.text.count(SHOWN) == 16
    assert "\x1b" not in attacked.text


def test_only_scripts_with_the_nonce_can_run(attacked: Page, tmp_path: Path, reward_run: dict[str, Any]) -> None:
    policy = next(a["content"] for tag, a in attacked.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    nonce = re.search(r"script-src 'nonce-([\w-]{16,})';", policy)
    assert nonce is not None
    assert policy.startswith("default-src 'none';")
    active = [attributes for attributes, _ in attacked.scripts if attributes.get("type") != "application/json"]
    assert [attributes.get("nonce") for attributes in active] == [nonce[1]] * 2
    other = write_page(tmp_path / "other.html", **reward_run).read_text(encoding="utf-8")
    assert nonce[1] not in other


def test_text_in_a_figure_cannot_end_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exoalign.report import page as module
    from exoalign.report.figures import Figure

    hostile = Figure("x", "x", "x", {"data": [{"name": ATTACK}], "layout": {"height": 1}})
    monkeypatch.setattr(module, "training_figures", lambda *_: [hostile])
    page = Page(write_page(tmp_path / "report.html", **EMPTY))
    assert "img" not in [tag for tag, _ in page.elements]
    assert page.figures() == [hostile.spec]


def test_control_characters_become_visible() -> None:
    assert visible("a\r\nb\tc\x00\x1b\x7f") == "a\nb\tc␀␛␡"
    assert visible("\x9b\u202e\ud800") == "⟨U+009B⟩⟨U+202E⟩⟨U+D800⟩"
    assert visible("naïve 日本 🐈\u200d") == "naïve 日本 🐈\u200d"


def test_a_lone_surrogate_does_not_stop_the_page(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path / "report.html", **(EMPTY | {"warnings": ["half \ud83d of an emoji"]})))
    assert "half ⟨U+D83D⟩ of an emoji" in page.text


def test_a_sample_without_text_is_named(tmp_path: Path) -> None:
    run = EMPTY | {"samples": [{"prompt": "p", "base": [{"completion": "t"}]}]}
    with pytest.raises(
        DataError, match=re.escape("samples[0].base[0]: found keys ['completion'], expected a text at 'text'")
    ):
        write_page(tmp_path / "report.html", **run)
    assert list(tmp_path.iterdir()) == []


def test_the_report_never_imports_torch() -> None:
    code = "import sys, exoalign.report; print(sorted({'torch', 'transformers', 'plotly'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
