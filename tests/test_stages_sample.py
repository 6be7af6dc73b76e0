"""A sampling stage that is killed again and again leaves the bytes of one that was not."""

import json
import multiprocessing
import random
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from exoalign import SamplingSettings, TransformersSampler, cli, load_model, load_tokenizer
from exoalign.config_sample import SampleSection
from exoalign.data.formats import PromptRow
from exoalign.data.table import read_table
from exoalign.finished import Finished
from exoalign.stages_sample import Drawn, sample, settings_of

SETTINGS = SamplingSettings(k=4, temperature=0.9, max_new_tokens=12, seed=1, top_k=50, stop=("e",))
PRELOADED = ["exoalign.stages_sample", "pytest", "transformers.models.llama.modeling_llama"]
ROWS = [PromptRow(f"{'word ' * (i % 5)}number {i}", f"p.jsonl:{i + 1}") for i in range(40)]


def work(model, folder, said):
    """In a process of its own: the stage, saying how many completions are there."""
    torch.set_num_threads(1)
    sampler = TransformersSampler(load_model(str(model), device="cpu"), load_tokenizer(str(model)), batch_size=6)
    sample(sampler, ROWS, SETTINGS, folder, said.send)
    said.send("done")


@pytest.fixture(scope="module")
def begin():
    """Starts `work` in a folder; the processes are forked off one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(model, folder):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(model, folder, there))
        process.start()
        there.close()
        return process, here

    return start


def outputs(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("rows.sqlite")}


def test_killed_five_times_the_files_are_those_of_an_undisturbed_run(tmp_path, tiny_folder, begin):
    """27 batches of 6; each attempt is killed a random while after its first new batch or two."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    chance, counts = random.Random(0), []
    for _ in range(5):
        process, said = begin(tiny_folder, killed)
        counts.append(said.recv())  # what was there
        for _ in range(chance.randint(1, 2)):
            said.recv()
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert counts[0] == 0
    assert counts == sorted(set(counts))  # each found more than the one before it
    assert not (killed / "groups.parquet").exists()
    for folder in (killed, undisturbed):
        process, said = begin(tiny_folder, folder)
        total = sum(iter(said.recv, "done"))
        process.join()
        assert (process.exitcode, total) == (0, 160)
    assert set(outputs(killed)) == {"groups.parquet", "summary.json"}
    assert outputs(killed) == outputs(undisturbed)


@pytest.fixture
def sampler(tiny_model, tiny_tokenizer):
    return TransformersSampler(tiny_model, tiny_tokenizer, batch_size=6, name="tiny")


def test_the_groups_are_those_of_the_sampler(sampler, tmp_path):
    counts = []
    what = sample(sampler, ROWS[:7], SETTINGS, tmp_path, counts.append)
    assert read_table(tmp_path / "groups.parquet") == sampler.sample(
        [row.prompt for row in ROWS[:7]], SETTINGS, [row.source for row in ROWS[:7]]
    )
    assert counts == [0, 6, 6, 6, 6, 4]
    assert what.startswith("7 prompts x 4 completions, ")


def test_rows_that_are_missing_are_drawn_with_the_batch_that_they_stood_in(sampler, tmp_path):
    whole = list(Drawn(sampler, ROWS[:7], SETTINGS, tmp_path))
    file = next(tmp_path.glob("rows.sqlite"))
    made_with = Drawn(sampler, ROWS[:7], SETTINGS, tmp_path).made_with
    with Finished(file, made_with) as done:
        done._connection.execute("DELETE FROM finished WHERE (prompt + k) % 3 = 0")
        left = len(done.keys())
    counts = []
    assert list(Drawn(sampler, ROWS[:7], SETTINGS, tmp_path, counts.append)) == whole
    assert counts[0] == left < sum(counts) == 28


@pytest.mark.parametrize("change", ["settings", "prompts", "weights", "batch"])
def test_what_was_made_with_something_else_is_not_used(sampler, tmp_path, change):
    list(Drawn(sampler, ROWS[:3], SETTINGS, tmp_path))
    rows, settings = ROWS[:3], SETTINGS
    if change == "settings":
        settings = SamplingSettings(k=4)
    elif change == "prompts":
        rows = ROWS[1:4]
    elif change == "weights":
        sampler.model.lm_head.weight.data[0, 0] += 1
    else:
        sampler.batch_size = 4
    counts = []
    drawn = Drawn(sampler, rows, settings, tmp_path, counts.append)
    assert counts[0] == 0
    assert list(drawn) == sampler.sample([r.prompt for r in rows], settings, [r.source for r in rows])


def test_the_summary_counts_what_the_groups_hold(sampler, tmp_path):
    sample(sampler, ROWS[:10], SETTINGS, tmp_path)
    groups = read_table(tmp_path / "groups.parquet")
    summary = json.loads((tmp_path / "summary.json").read_text())
    numbers = {number["label"]: number["value"] for number in summary["numbers"]}
    finish = [f for group in groups for f in group.provenance["finish"]]
    lengths = [len(ids) for group in groups for ids in group.completion_ids]
    assert numbers == {
        "prompts": 10,
        "completions a prompt": 4,
        "ended by themselves": finish.count("stop") / 40,
        "ended at a stop string": finish.count("stop_string") / 40,
        "cut at the limit": finish.count("length") / 40,
        "mean length": pytest.approx(sum(lengths) / 40),
        "distinct completions a prompt": pytest.approx(sum(len(set(g.completion_ids)) for g in groups) / 10),
    }
    assert summary["histograms"][0]["series"] == [{"name": "completions", "values": lengths}]
    assert summary["texts"][0]["rows"][2] == {"label": groups[2].prompt, "text": groups[2].completions[0]}


def test_a_long_histogram_is_thinned_evenly(sampler, tmp_path):
    sampler.batch_size = 1400
    sample(sampler, ROWS[:3], SamplingSettings(k=1400, max_new_tokens=1), tmp_path)  # 4,200: every third is kept
    (series,) = json.loads((tmp_path / "summary.json").read_text())["histograms"][0]["series"]
    assert len(series["values"]) == 1400


def test_a_sections_settings():
    section = SampleSection(k=3, temperature=0.5, top_p=0.9, top_k=7, stop=["\n"], max_new_tokens=9)
    assert settings_of(section, k=5, seed=2) == SamplingSettings(5, 0.5, 0.9, 9, 2, 7, ("\n",))


@pytest.mark.parametrize(
    ("value", "message"), [(["a", ""], "holds an empty text"), (["a", "b", "a"], "a text stands twice")]
)
def test_stop_strings_that_cannot_be(value, message):
    with pytest.raises(ValueError, match=message):
        SampleSection(stop=value)


# The command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, tiny_folder):
    """`exoalign sample` of the tiny model, in a folder with `p.jsonl`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": row.prompt}) for row in ROWS))

    def run(*arguments):
        monkeypatch.setattr(
            "sys.argv", ["exoalign", "sample", "--model", str(tiny_folder), "--prompts", "p.jsonl", *arguments]
        )
        capsys.readouterr()  # what fixtures have said
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


OPTIONS = ["--k", "3", "--temperature", "0.8", "--top-p", "0.9", "--top-k", "40", "--stop", "e", "--stop", "\n"]
OPTIONS += ["--max-new-tokens", "6", "--seed", "4", "--limit", "5", "--precision", "float32"]


def test_the_command_writes_groups(command, tmp_path, sampler):
    code, out, err = command("--out", "runs/s", *OPTIONS)
    assert (code, err) == (0, "")
    file = tmp_path / "runs" / "s" / "sample" / "groups.parquet"
    assert out.splitlines()[1] == "groups: runs/s/sample/groups.parquet"
    groups = read_table(file)
    settings = SamplingSettings(3, 0.8, 0.9, 6, 4, 40, ("e", "\n"))
    expected = sampler.sample([row.prompt for row in ROWS[:5]], settings)
    assert [group.completions for group in groups] == [group.completions for group in expected]
    assert groups[0].provenance["source"] == "p.jsonl:1"
    file.with_name("marker").touch()
    code, out, _ = command("--out", "runs/s", *OPTIONS, "--json")
    assert code == 0
    assert json.loads(out)["groups"] == "runs/s/sample/groups.parquet"
    assert {"label": "prompts", "value": 5} in json.loads(out)["numbers"]
    assert file.with_name("marker").exists()  # done before, not again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "it is 0; expected more than 0"),
        (["--top-p", "1.5"], "it is 1.5; expected more than 0, and at most 1"),
        (["--precision", "half"], "it is 'half'; expected auto, float32, bfloat16"),
        (["--backend", "sglang"], "it is 'sglang'; expected transformers, vllm"),
        (["--stop", ""], "every completion would end at once"),
        (["--max-new-tokens", "600"], "p.jsonl:1: the prompt has 8 tokens"),
        (["--backend", "vllm"], "pip install 'exoalign[vllm]'"),
    ],
)
def test_wrong_options_are_told(command, arguments, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    code, out, err = command("--out", "o", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_other_settings_in_the_same_folder_are_refused(command):
    assert command("--out", "o", *OPTIONS)[0] == 0
    code, _, err = command("--out", "o", *OPTIONS, "--seed", "5")
    assert code == 2
    assert "sample.seed was 4 and is 5" in err


def test_the_other_columns_of_a_prompts_row_stay_with_its_completions(tmp_path, tiny_folder):
    rows = [PromptRow("a", "p:1", {"answer": "4"}), PromptRow("b", "p:2")]
    sampler = TransformersSampler(load_model(str(tiny_folder), device="cpu"), load_tokenizer(str(tiny_folder)))
    sample(sampler, rows, SamplingSettings(k=2, max_new_tokens=2), tmp_path)
    first, second = read_table(tmp_path / "groups.parquet")
    assert first.provenance["row"] == {"answer": "4"}
    assert "row" not in second.provenance


def test_the_command_of_the_documentation_runs(command, monkeypatch, tmp_path, tiny_folder):
    root = Path(__file__).parents[1]
    (line,) = re.findall(r"^exoalign (sample .*)$", (root / "docs" / "sampling.md").read_text(), re.MULTILINE)
    (tmp_path / "recipes").mkdir()
    rows = (root / "recipes" / "demo_train.jsonl").read_text().splitlines()[:3]
    (tmp_path / "recipes" / "demo_train.jsonl").write_text("\n".join(rows))
    assert command(*shlex.split(line)[1:], "--model", str(tiny_folder))[0] == 0  # the last one given counts
    groups = read_table(tmp_path / "runs" / "samples" / "sample" / "groups.parquet")
    assert [group.k for group in groups] == [8, 8, 8]
