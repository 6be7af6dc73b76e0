"""Every recipe that ships is parsed, has the paper's settings, and runs whole on a tiny model, from raw rows to the page.

A folder with the name of a hub's data set in the working directory is read in its place: so the recipes run as they are.
"""

import json
from pathlib import Path

import pytest

from exoalign import load_recipe, run
from exoalign.compare_recipe import load_comparison
from exoalign.comparison import compare

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("compare-"))
COMPARISONS = sorted(path.stem for path in RECIPES.glob("compare-*.yaml"))


def review(i: int) -> dict:
    return {"text": f"This film, number {i}, is a work of {'joy' if i % 2 else 'dull'} and long hours.", "label": i % 2}


def post(i: int) -> dict:
    return {"id": f"t3_{i}", "subreddit": "AskReddit", "title": f"Why {i}?", "post": "I wonder.", "summary": f"He {i}."}


def comparison(i: int) -> dict:
    info = {"id": f"t3_{i}", "post": f"It was {i}.", "title": "A day", "subreddit": "self", "article": None}
    summaries = [{"text": f" A day {i}.", "policy": "ref"}, {"text": " Long.", "policy": "sup1"}]
    return {"info": info, "summaries": summaries, "choice": i % 2, "worker": "w", "batch": "b", "split": "train"}


def transcript(i: int) -> dict:
    asked = f"\n\nHuman: What is {i}?\n\nAssistant:"
    return {"chosen": f"{asked} A number.", "rejected": f"{asked} Nothing."}


def binarized(i: int) -> dict:
    def turns(reply: str) -> list[dict]:
        return [{"role": "user", "content": f"Add {i}."}, {"role": "assistant", "content": reply}]

    return {
        "prompt": f"Add {i}.",
        "prompt_id": str(i),
        "chosen": turns("Yes."),
        "rejected": turns("No."),
        "messages": turns("Yes."),
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }


def rated(i: int) -> dict:
    replies = [{"response": f"Reply {k} to {i}.", "overall_score": float(2 + (i + k) % 5)} for k in range(4)]
    return {"instruction": f"Say {i}.", "completions": replies, "source": "x", "models": ["a", "b", "c", "d"]}


MIRRORS = {
    "stanfordnlp/imdb": (review, ["train", "test"]),
    "cornell-movie-review-data/rotten_tomatoes": (review, ["train", "test"]),
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered": (post, ["train", "validation", "test"]),
    "openai/summarize_from_feedback/comparisons": (comparison, ["train", "validation"]),
    "Anthropic/hh-rlhf": (transcript, ["train", "test"]),
    "HuggingFaceH4/ultrafeedback_binarized": (binarized, ["train_prefs", "test_prefs"]),
    "openbmb/UltraFeedback": (rated, ["train"]),
}
SMALL = {
    "demo": ["prompts.limit=4", "prompts.evaluation_limit=2"],
    "imdb": ["sft.epochs=1", "reward_model.epochs=1"],
    "sentiment-oracle": [
        f"{part}.{side}.local=null"
        for part in ("sft.data", "reward_model.data", "prompts")
        for side in ("train", "evaluation")
    ],
    "ultrafeedback": ["data.holdout=0.3"],
}
NEW_TOKENS = ["sample.max_new_tokens=6"]


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """The working directory, with a folder for each data set of the hub, in its own schema; test rows are others."""
    for name, (row, splits) in MIRRORS.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for n, split in enumerate(splits):
            rows = [row(i) for i in range(20 * n, 20 * n + 8)]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_whole_on_a_tiny_model(name, mirrors, tiny_folder):
    recipe = load_recipe(
        RECIPES / f"{name}.yaml",
        [f"model.path={tiny_folder}", "model.precision=float32", "out=out", *SMALL.get(name, [])]
        + ([] if name == "ultrafeedback" else NEW_TOKENS),
    )
    result = run(recipe, show=False)
    names = [stage["name"] for stage in result["stages"]]
    expected = ["sft"] * (recipe.sft is not None) + ["reward_model"] * (recipe.reward_model is not None)
    expected += ["align", "evaluate"] if recipe.data else ["sample", "reward", "align", "evaluate"]
    assert names == expected
    for stage in names:
        assert (mirrors / "out" / stage / "manifest.json").is_file()
    page = (mirrors / "out" / "report" / "index.html").read_text()
    assert all(f">{stage}<" in page for stage in names)
    if recipe.reward_model is not None:
        measured = json.loads((mirrors / "out" / "reward_model" / "metrics.json").read_text())["heldout"]["accuracy"]
        assert 0 <= measured["low"] <= measured["mean"] <= measured["high"] <= 1


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_small_form_of_a_comparison_runs_whole_on_a_tiny_model(name, mirrors, tiny_folder):
    comparison, task = load_comparison(RECIPES / f"{name}.yaml", ["out=out"], small=True)
    settings = [*comparison.settings, f"model.path={tiny_folder}", "model.precision=float32", "sample.max_new_tokens=4"]
    settings += SMALL[Path(comparison.task).stem]
    settings += ["sft.trainer.max_steps=1", "reward_model.trainer.max_steps=1", "sample.k=4", "prompts.train.limit=4"]
    task = load_recipe(RECIPES / comparison.task, settings)
    found = comparison.model_dump()
    for method in found["methods"].values():
        chosen = method["align"].get("completions")
        if chosen is not None:
            chosen["k"] = min(chosen["k"], 4)
    comparison = type(comparison).model_validate({**found, "checkpoints": 1})
    result = compare(comparison, task, show=False)
    assert result["left"] == []
    assert [row["method"] for row in result["methods"] if row["runs"]] == list(comparison.methods)
    assert (mirrors / "out-small" / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("name", "betas", "groups", "steps", "tokens", "epochs"),
    [("imdb", 0.1, 64, 800, 500, 5), ("tldr", 0.5, 128, 800, 75, 1), ("hh", 0.5, 128, 700, 200, 1)],
)
def test_the_settings_are_the_papers(name, betas, groups, steps, tokens, epochs, mirrors):
    """As in the official code's scripts: train_exo.sh, train_sft.sh, train_rm.sh or train_class.sh, inference_sft.sh."""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    align = recipe.align
    assert (align.objective, align.beta_pi, align.beta_r, align.learning_rate) == ("exo_rw", betas, betas, 1e-6)
    assert (align.groups_per_step, align.trainer["max_steps"]) == (groups, steps)
    assert (recipe.sample.k, recipe.sample.temperature, recipe.sample.max_new_tokens) == (2, 0.8, tokens)
    assert (recipe.sft.learning_rate, recipe.sft.epochs, recipe.reward_model.learning_rate) == (1e-5, epochs, 1e-5)
    assert recipe.evaluate.k == 4
    assert recipe.prompts.evaluation.limit == 512
