"""The command line: its options are frozen, help comes at once, and bad input ends with one message and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from exoalign import cli
from exoalign._version import __version__
from exoalign.store import RunFolder

COMMANDS = ["run", "sft", "align", "merge", "doctor", "runs", "data", "sample", "score", "judge", "reward", "evaluate"]


# What the command line offers: change it here too, and in the changelog, when it changes


def test_the_options_of_every_command_are_these():
    group = typer.main.get_command(cli.app)
    commands = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        commands |= {name: command} if inner is None else {f"{name} {part}": inner[part] for part in inner}
    offered = {
        name: [
            (" ".join(p.opts) if p.param_type_name == "option" else p.name, p.required, p.default)
            for p in command.params
            if p.name != "help"
        ]
        for name, command in commands.items()
    }
    assert [p.opts for p in group.params if p.name != "help"] == [["--version"]]
    assert offered == {
        "run": [
            ("recipe", True, None),
            ("overrides", False, None),
            ("--dry-run", False, False),
            ("--redo", False, False),
            ("--allow-inexact", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "align": [
            ("--model", True, None),
            ("--data", False, None),
            ("--out", False, None),
            ("--objective", False, None),
            ("--online", False, False),
            ("--reward", False, None),
            ("--eval-data", False, None),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--eval-split", False, None),
            ("--subset", False, None),
            ("--revision", False, None),
            ("--limit", False, None),
            ("--eval-limit", False, None),
            ("--estimate", False, False),
            ("--shape", False, None),
            ("overrides", False, None),
            ("--redo", False, False),
            ("--allow-inexact", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "sft": [
            ("--model", True, None),
            ("--data", True, None),
            ("--out", True, None),
            ("--eval-data", False, None),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--eval-split", False, None),
            ("--subset", False, None),
            ("--revision", False, None),
            ("--limit", False, None),
            ("--eval-limit", False, None),
            ("overrides", False, None),
            ("--redo", False, False),
            ("--allow-inexact", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "merge": [
            ("adapter", True, None),
            ("--out", True, None),
            ("--dtype", False, "float32"),
            ("--json", False, False),
        ],
        "doctor": [
            ("data", True, None),
            ("--model", False, None),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--subset", False, None),
            ("--revision", False, None),
            ("--test", False, None),
            ("--test-split", False, None),
            ("--limit", False, None),
            ("--max-prompt-tokens", False, None),
            ("--max-completion-tokens", False, None),
            ("--beta-r", False, None),
            ("--beta-pi", False, None),
            ("--json", False, False),
            ("--html", False, None),
        ],
        "runs": [("folders", False, None), ("--json", False, False)],
        "score": [
            ("--data", True, None),
            ("--out", True, None),
            ("--function", False, None),
            ("--model", False, None),
            ("--server", False, None),
            ("--weight", False, None),
            ("--clip", False, None),
            ("--argument", False, None),
            ("--normalise", False, "none"),
            ("--adapter", False, None),
            ("--limit", False, None),
            ("--explain", False, 0),
            ("--redo", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "sample": [
            ("--model", True, None),
            ("--prompts", True, None),
            ("--out", True, None),
            ("--k", False, 8),
            ("--temperature", False, 1.0),
            ("--top-p", False, 1.0),
            ("--top-k", False, 0),
            ("--stop", False, None),
            ("--max-new-tokens", False, 128),
            ("--seed", False, 0),
            ("--batch-size", False, 64),
            ("--precision", False, "auto"),
            ("--backend", False, "transformers"),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--subset", False, None),
            ("--revision", False, None),
            ("--limit", False, None),
            ("--trust-remote-code", False, False),
            ("--redo", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "judge": [
            ("--data", True, None),
            ("--url", True, None),
            ("--judge-model", True, None),
            ("--out", True, None),
            ("--against", False, None),
            ("--kind", False, "pairwise"),
            ("--prompt", False, "instruction"),
            ("--pairs", False, None),
            ("--write", False, None),
            ("--control", False, 20),
            ("--max-calls", False, None),
            ("--max-tokens", False, 16),
            ("--concurrency", False, 4),
            ("--timeout", False, 120.0),
            ("--retries", False, 4),
            ("--api-key-env", False, "OPENAI_API_KEY"),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--subset", False, None),
            ("--limit", False, None),
            ("--seed", False, 0),
            ("--redo", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
        "data convert": [
            ("source", True, None),
            ("out", True, None),
            ("--to", True, None),
            ("--adapter", False, None),
            ("--split", False, None),
            ("--subset", False, None),
            ("--revision", False, None),
            ("--limit", False, None),
            ("--pairs", False, "best_worst"),
            ("--force", False, False),
            ("--json", False, False),
        ],
        "data adapters": [("--json", False, False)],
        "evaluate winrate": [
            ("ours", True, None),
            ("theirs", True, None),
            ("--chosen", False, False),
            ("--column", False, None),
            ("--seed", False, 0),
            ("--json", False, False),
        ],
        "evaluate ratings": [
            ("files", True, None),
            ("--column", False, None),
            ("--seed", False, 0),
            ("--json", False, False),
        ],
        "reward train": [
            ("--model", True, None),
            ("--data", True, None),
            ("--out", True, None),
            ("--kind", False, "ranking"),
            ("--eval-data", False, None),
            ("--holdout", False, None),
            ("--adapter", False, None),
            ("--limit", False, None),
            ("--eval-limit", False, None),
            ("--seed", False, 0),
            ("overrides", False, None),
            ("--redo", False, False),
            ("--allow-inexact", False, False),
            ("--json", False, False),
            ("--quiet -q", False, False),
        ],
    }


def python(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *[[*c.split(), "--help"] for c in [*COMMANDS, "data convert", "evaluate winrate"]]],
)
def test_help_exits_with_0_and_loads_no_torch(arguments):
    done = python("-X", "importtime", "-m", "exoalign", *arguments)
    assert done.returncode == 0
    assert done.stdout.startswith(("Usage: ", f"exoalign {__version__}"))
    loaded = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "exoalign.cli" in loaded
    assert not {"torch", "transformers", "numpy", "pyarrow"} & loaded


def test_every_command_has_a_line_in_the_help():
    text = python("-m", "exoalign", "--help").stdout
    assert all(re.search(rf"^\W*{command} +[A-Z]", text, re.MULTILINE) for command in COMMANDS)


# Bad input


PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
SCORED = {"prompt": "Hi", "completions": ["a", "b", "c"], "rewards": [0, 1, 2]}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_folder):
    """The working directory, with files of rows and a recipe for each way of running."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *rows) -> None:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines))

    write("pairs.jsonl", PAIR, PAIR)
    write("prompts.jsonl", {"prompt": "One"}, {"prompt": "Two"})
    write("empty.jsonl")
    write("broken.jsonl", PAIR, b'{"prompt": "Hi", "cho')
    write("no_prompt.jsonl", {"prompt": "One"}, {"text": "Hi"})
    write("no_prompt_pair.jsonl", PAIR, {"chosen": "a", "rejected": "b"})
    write("long.jsonl", PAIR, {**PAIR, "prompt": "x" * 600})
    write("single.jsonl", SCORED, {**SCORED, "completions": ["a"], "rewards": [1]})
    write("three.jsonl", SCORED)
    write("uneven.jsonl", SCORED, {**SCORED, "rewards": [0, 1]})
    write("nan.jsonl", SCORED, b'{"prompt": "Hi", "completions": ["a", "b"], "rewards": [NaN, 1]}')
    for name, base in {"bare": str(tiny_folder), "lost": "./gone"}.items():
        (tmp_path / name).mkdir()
        settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "target_modules": ["q_proj"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "lost" / "adapter_model.safetensors").touch()
    model = f"model:\n  path: {tiny_folder}\n"
    (tmp_path / "data.yaml").write_text(
        f"out: out\n{model}data:\n  train: pairs.jsonl\nalign:\n  objective: exo_pref\n"
    )
    (tmp_path / "prompts.yaml").write_text(
        f"out: out\n{model}prompts:\n  train: prompts.jsonl\n  evaluation: prompts.jsonl\n"
        "reward:\n  function: length\nsample:\n  k: 2\n  max_new_tokens: 4\n"
    )
    (tmp_path / "typo.yaml").write_text(f"{model}data:\n  train: pairs.jsonl\nalign:\n  beta_R: 0.5\n")
    return tmp_path


@pytest.fixture
def exoalign(monkeypatch, capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exoalign", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


ALIGN = "align --model MODEL --out out --data"
BAD = {
    "missing recipe": ("run promts.yaml", "recipe promts.yaml does not exist; did you mean prompts.yaml?"),
    "unknown key": ("run typo.yaml", "typo.yaml:6: unknown key `align.beta_R`; did you mean `beta_r`?"),
    "wrong type": (
        "run data.yaml align.beta_r=high",
        "override 'align.beta_r=high': `align.beta_r` is 'high'; input should be a valid number",
    ),
    "no setting": ("run data.yaml align.beta_r", "override 'align.beta_r': expected section.key=value, "),
    "unknown objective": (
        "run data.yaml align.objective=exo_prf",
        "override 'align.objective=exo_prf': `align.objective` is 'exo_prf'; expected 'exo_rw', 'exo_pref', 'dpo_rw',"
        " 'dpo_pref', 'ppo' or 'rloo'; did you mean exo_pref?",
    ),
    "unknown objective as option": (
        f"{ALIGN} pairs.jsonl --objective exo_prf",
        "--objective: `align.objective` is 'exo_prf'; expected 'exo_rw', 'exo_pref', 'dpo_rw', 'dpo_pref', 'ppo' or 'rloo';",
    ),
    "a baseline without samples": (
        f"{ALIGN} pairs.jsonl --objective ppo",
        "--objective: align: `objective` is ppo, which learns from samples of the policy as it trains: give an `online`",
    ),
    "missing file": (f"{ALIGN} pears.jsonl", "--data: `data.train`: file pears.jsonl does not exist (looked for"),
    "missing file in a recipe": (
        "run prompts.yaml prompts.evaluation=promts.jsonl",
        "override 'prompts.evaluation=promts.jsonl': `prompts.evaluation`: file promts.jsonl does not exist (looked for"
        " promts.jsonl); did you mean prompts.jsonl?",
    ),
    "wrong limit": (f"{ALIGN} pairs.jsonl --limit 0", "--limit: `data.limit` is 0; input should be greater than or"),
    "missing model": ("run data.yaml model.path=./nowhere", "model ./nowhere: no such folder; expected a folder with"),
    "empty model folder": (
        "run data.yaml model.path=./hollow",
        "model ./hollow: no config.json in the folder; expected",
    ),
    "unknown trainer key": (
        "run data.yaml align.trainer.warmup_step=1",
        "align.trainer.warmup_step is no argument of the",
    ),
    "unknown reward": (
        "run prompts.yaml reward.function=lenght",
        "reward.function is 'lenght'; shipped are sentiment, length, regex, repetition, readability, if_verifiable;",
    ),
    "empty file": (f"{ALIGN} empty.jsonl", "empty.jsonl: no rows; expected one JSON object on each line"),
    "empty prompts": ("run prompts.yaml prompts.train=empty.jsonl", "empty.jsonl: no rows; expected one JSON object"),
    "no JSON": (f"{ALIGN} broken.jsonl", "broken.jsonl:2: not JSON at column "),
    "no prompt": (
        "run prompts.yaml prompts.train=no_prompt.jsonl",
        "no_prompt.jsonl:2: no `prompt`; found columns text",
    ),
    "no prompt in a pair": (
        f"{ALIGN} no_prompt_pair.jsonl",
        "no_prompt_pair.jsonl:2: no `prompt`; found columns chosen",
    ),
    "bad held-out data": (f"{ALIGN} pairs.jsonl --eval-data broken.jsonl", "broken.jsonl:2: not JSON at column "),
    "long pair": (
        f"{ALIGN} long.jsonl",
        "long.jsonl:2: prompt of 600 and completion of 7 tokens, but the context allows 512; give a model",
    ),
    "long prompt": ("run prompts.yaml prompts.train=long.jsonl", "long.jsonl:2: the prompt has 600 tokens ('xxx"),
    "no room for a completion": (
        "run prompts.yaml sample.max_new_tokens=510",
        "prompts.jsonl:1: the prompt has 3 tokens ('One'): with max_new_tokens 510 that is more than the model's context",
    ),
    "one completion": (
        f"{ALIGN} single.jsonl --objective exo_rw",
        "single.jsonl:2: found 1 completion(s), expected at",
    ),
    "K that differs": (
        f"{ALIGN} uneven.jsonl --objective exo_rw",
        "uneven.jsonl:2: 2 rewards for 3 completions; expected",
    ),
    "three without a winner": (
        f"{ALIGN} three.jsonl",
        "three.jsonl:1: the objective needs `winner`, which this group lacks",
    ),
    "pairs without rewards": (
        f"{ALIGN} pairs.jsonl --objective exo_rw",
        "pairs.jsonl:1: the objective needs `rewards`, which this group lacks; add it or use exo_pref or dpo_pref",
    ),
    "NaN": (f"{ALIGN} nan.jsonl --objective dpo_rw", "nan.jsonl:2: NaN is no number; expected finite values"),
    "a folder of something else": (
        f"{ALIGN} pairs.jsonl out=thesis",
        "thesis is not empty and holds no run (thesis.tex, ",
    ),
    "no adapter": (
        "merge MODEL --out merged",
        "MODEL is no adapter: no adapter_config.json in it; expected a folder saved",
    ),
    "missing adapter": ("merge ./nowhere --out merged", "model ./nowhere: no such folder; expected a folder with"),
    "an adapter without weights": (
        "merge bare --out merged",
        "adapter bare has no adapter_model.safetensors, and pickled weights (adapter_model.bin) are not loaded; save it again",
    ),
    "an adapter without its base": (
        "merge lost --out merged",
        "adapter lost: its base model ./gone is not there; put it back, or set base_model_name_or_path in",
    ),
    "unknown target module": (
        "run data.yaml align.lora.target_modules=[qproj]",
        "align.lora: target_modules: LlamaForCausalLM has no module 'qproj'; did you mean q_proj?",
    ),
    "rank 0": (
        "run data.yaml align.lora.r=0",
        "override 'align.lora.r=0': `align.lora.r` is 0; input should be greater",
    ),
    "a file as folder": (
        f"{ALIGN} pairs.jsonl out=pairs.jsonl",
        "pairs.jsonl is a file; choose another folder with out=",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_message_and_leaves_everything(case, place, exoalign, tiny_folder):
    (place / "hollow").mkdir()
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").write_text("...")
    before = contents(place)
    command, message = BAD[case]
    code, out, err = exoalign(*command.replace("MODEL", str(tiny_folder)).split())
    assert err.startswith(f"error: {message.replace('MODEL', str(tiny_folder))}")
    assert (code, out, err.count("error:")) == (2, "", 1)
    assert contents(place) == before
    assert not (place / "out").exists()


def test_the_splits_of_a_folder_are_trained_on_and_held_out(place, exoalign, tiny_folder):
    (place / "films").mkdir()
    for split, count in {"train": 3, "test": 2}.items():
        rows = [json.dumps({**PAIR, "prompt": f"{split} {i}"}) for i in range(count)]
        (place / "films" / f"{split}.jsonl").write_text("\n".join(rows))
    options = ["--model", str(tiny_folder), "--data", "films", "--eval-data", "films", "--out", "out", "--json", "-q"]
    code, _, err = exoalign("align", *options)
    assert (code, err) == (2, "error: films: has files of the splits test, train; name one as `split`\n")
    code, out, _ = exoalign("align", *options, "--split", "train", "--eval-split", "test")
    assert code == 0
    assert {side: part["pairs"] for side, part in json.loads(out)["metrics"].items()} == {"train": 3, "heldout": 2}


def test_split_subset_and_revision_reach_the_hub(place, exoalign, tiny_folder, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return [PAIR, {**PAIR, "prompt": "Ho"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    where = ["--subset", "films", "--revision", "v2", "--split", "train", "--eval-split", "test"]
    hub = ["--data", "owner/name", "--eval-data", "owner/name", *where]
    assert exoalign("align", "--model", str(tiny_folder), "--estimate", *hub)[0] == 0
    common = {"name": "films", "revision": "v2", "streaming": True}
    assert asked == [(("owner/name",), common | {"split": split}) for split in ("train", "test")]
    local = [
        "--data",
        "owner/name",
        "--eval-data",
        "pairs.jsonl",
        *where[:-2],
    ]  # a file has neither subset nor revision
    assert exoalign("align", "--model", str(tiny_folder), "--estimate", *local)[0] == 0


def refuse(monkeypatch, method: str, name: str) -> None:
    """Root may do everything with a file, so the method refuses in the system's place."""
    real = getattr(Path, method)

    def refusing(self, *arguments, **options):
        if name in self.name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, method, refusing)


def test_a_file_that_may_not_be_read_ends_with_one_line(place, exoalign, tiny_folder, monkeypatch):
    refuse(monkeypatch, "open", "pairs.jsonl")
    done = exoalign("align", "--model", str(tiny_folder), "--data", "pairs.jsonl", "--out", "out")
    assert done == (
        2,
        "",
        "error: pairs.jsonl: cannot be read: Permission denied; look at its permissions and its disk\n",
    )


def test_a_page_that_cannot_be_written_ends_with_one_line(place, exoalign, monkeypatch):
    code, out, err = exoalign("doctor", "pairs.jsonl", "--html", "gone/page.html")
    assert (code, out) == (2, "")
    assert "the folder of 'gone/page.html' does not exist" in " ".join(err.replace("│", " ").split())
    refuse(monkeypatch, "write_text", "page.html")
    code, out, err = exoalign("doctor", "pairs.jsonl", "--html", "page.html")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: \S*page\.html\S*: Permission denied; mend that and run it again\n", err)


@pytest.mark.parametrize("command", ["--version", "data adapters", "doctor pairs.jsonl"])
def test_a_reader_that_has_gone_is_no_error(command, place):
    process = subprocess.Popen(
        [sys.executable, "-m", "exoalign", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # so that little is written at the end only
    )
    process.stdout.close()  # before anything is written
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_a_run_with_an_adapter_and_its_merge(place, exoalign):
    code, out, _ = exoalign("run", "data.yaml", "align.lora.r=2", "align.learning_rate=0.01", "--json", "--quiet")
    assert code == 0
    adapter = json.loads(out)["model"]
    code, out, err = exoalign("merge", adapter, "--out", "merged")
    assert (code, err) == (0, "")
    assert re.match(r"model: merged\nlog-probs of 6 completions: merged and unmerged differ by at most \S+ nats", out)
    assert (place / "merged" / "model.safetensors").is_file()
    code, out, _ = exoalign("merge", adapter, "--out", "merged16", "--dtype", "bfloat16", "--json")
    result = json.loads(out)
    assert (code, result["model"], result["dtype"]) == (0, "merged16", "bfloat16")
    assert result["largest_difference"] < 0.5
    code, _, err = exoalign("merge", adapter, "--out", "merged")
    assert (code, err) == (2, "error: merged is there already; choose another with --out\n")


@pytest.mark.parametrize("recipe", ["data.yaml", "prompts.yaml"])
def test_the_folder_of_another_run_is_left_alone(recipe, place, exoalign):
    with RunFolder("out", "theirs") as folder:
        folder.stage("align", {"seed": 1}, lambda path: str((path / "model").write_text("weights")))
    before = contents(place / "out")
    code, out, err = exoalign("run", recipe)
    assert (code, out) == (2, "")
    assert "error: out holds the run 'theirs', not 'run'; choose another with out=..." in err
    assert contents(place / "out") == before


def test_a_stage_made_from_something_else_is_left_alone(place, exoalign):
    with RunFolder("out", "run") as folder:
        folder.stage("align", {"seed": 1}, lambda path: str((path / "model").write_text("weights")))
    before = contents(place / "out" / "align")
    code, out, err = exoalign("run", "data.yaml")
    assert (code, out) == (2, "")
    assert "error: out/align stands and does not fit:\n  seed was 1 and is 0\n" in err
    assert contents(place / "out" / "align") == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5, float('nan')]", "returned nan at {}:1, completion 2 ("),
        ("return [0.5]", "returned 1 values at {}:1 for 2 completions"),
        ("raise ValueError('no such word')", "raised ValueError at {}:1 ('One'): no such word"),
    ],
)
def test_a_reward_function_that_fails_stops_its_stage_and_keeps_the_samples(
    body, message, place, exoalign, monkeypatch
):
    name = f"cli_reward_{abs(hash(body))}"
    (place / f"{name}.py").write_text(f"def f(prompts, completions):\n    {body}\n")
    monkeypatch.syspath_prepend(place)
    code, out, err = exoalign("run", "prompts.yaml", f"reward.function={name}:f", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: reward function {name}:f {message.format('prompts.jsonl')}")
    assert (place / "out" / "sample" / "manifest.json").is_file()
    assert not (place / "out" / "reward").exists()


def test_escape_codes_in_names_and_rows_are_inert(place, exoalign):
    (place / "a\x1b[31m.jsonl").write_text(json.dumps({**PAIR, "\x1b[2Jkey": 1, "chosen": 5}))
    _, _, err = exoalign("run", "data.yaml", "data.train=a\x1b[31m.jsonl")
    assert "\x1b" not in err
    (place / "row.jsonl").write_text(json.dumps({"\x1b[2Jkey": 1}))
    _, _, err = exoalign("run", "data.yaml", "data.train=row.jsonl")
    assert "row.jsonl:1: columns \\x1b[2Jkey; expected" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["align"],
        ["align", "--model", "x"],
        ["align", "--model", "x", "--data", "y"],
        ["align", "--model", "x", "--estimate", "--split", "train"],
        ["align", "--model", "x", "--data", "y", "--out", "z", "--eval-split", "test"],
        ["doctor", "x", "--test-split", "test"],
        ["align", "--modle", "x"],
        ["run"],
        ["ruin"],
        ["--nothing"],
        ["run", "a.yaml", "--beta", "1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, exoalign):
    code, out, err = exoalign(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_an_estimate_needs_a_configuration_only_and_writes_nothing(place, exoalign, tiny_folder):
    (place / "shapes").mkdir()
    (place / "shapes" / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    before = contents(place)
    code, out, err = exoalign("align", "--model", "shapes", "--estimate", "--shape", "groups=20,k=64,completion=30")
    assert (code, err) == (0, "")
    assert out.startswith("estimate for 20 groups, K up to 64, prompts up to 512 and completions up to 30 tokens:\n")
    assert re.search(r"^  peak memory +[\d.]+ [MG]B  of [\d.]+ GB that", out, re.MULTILINE)
    assert contents(place) == before
    code, out, err = exoalign("align", "--model", "shapes", "--estimate")
    assert (code, err) == (0, "note: these lengths are assumed; give --data, or --shape with your own\n")
    assert out.startswith("estimate for 1,000 groups, K up to 8,")


def test_an_estimate_takes_its_lengths_from_data(place, exoalign, tiny_folder):
    before = contents(place)
    code, out, _ = exoalign("align", "--model", str(tiny_folder), "--estimate", "--data", "pairs.jsonl", "--json")
    found = json.loads(out)
    # one token a byte, and the end of the turn
    expected = {"groups": 2, "prompt": 2, "k": 2, "completion": 7, "longest": 2 + 7, "completions": 4}
    assert (code, found["shape"]) == (
        0,
        expected | {"targets": 2 * (7 + 6), "counted": 2 * (7 + 6), "tokens": 2 * (2 + 6 + 5)},
    )
    assert found["total"] > found["weights"] + found["gradients"] + found["optimizer"]
    assert contents(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shape k=1", "error: --shape: 'k=1'; expected each of groups, prompt, k, completion at most once"),
        ("--data broken.jsonl", "error: broken.jsonl:2: not JSON at column "),
        ("align.epochs=none", "error: override 'align.epochs=none': `align.epochs` is 'none'; input should be a valid"),
    ],
)
def test_an_estimate_of_bad_input_ends_with_one_message(arguments, message, place, exoalign, tiny_folder):
    code, out, err = exoalign("align", "--model", str(tiny_folder), "--estimate", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err


def test_without_a_command_the_help_is_shown(exoalign):
    _, out, err = exoalign()
    assert "Usage: " in out + err


@pytest.mark.parametrize("case", ["unknown key", "no JSON", "long prompt"])
def test_a_real_process_ends_the_same_way(case, place, tiny_folder):
    before = contents(place)
    command, message = BAD[case]
    done = python("-m", "exoalign", *command.replace("MODEL", str(tiny_folder)).split(), cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert contents(place) == before


def test_a_wrong_recipe_is_told_before_torch_is_loaded(place):
    done = python("-X", "importtime", "-m", "exoalign", "run", "typo.yaml", cwd=place)
    assert done.returncode == 2
    assert "error: typo.yaml:6: unknown key" in done.stderr
    assert not re.search(r"\| +(torch|transformers)$", done.stderr, re.MULTILINE)
