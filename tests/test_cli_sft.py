"""`exoalign sft` on a tiny model: one stage in a run's folder, and its errors."""

import json

import pytest

from exoalign import cli, load_model


@pytest.fixture
def sft(tiny_folder, tmp_path, monkeypatch, capsys):
    """Runs the command in tmp_path; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"A joy to see, film {i}."}) for i in range(8)))

    def sft(*arguments, data="rows.jsonl", out="runs/tuned"):
        needed = ["--model", str(tiny_folder), "--data", data, "--out", out]
        monkeypatch.setattr("sys.argv", ["exoalign", "sft", *needed, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return sft


def test_a_model_is_tuned_once_and_measured(sft, tmp_path):
    settings = ["--eval-data", "rows.jsonl", "--eval-limit", "4", "sft.learning_rate=0.01", "sft.rows_per_step=4"]
    code, out, err = sft(*settings, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["model"] == "runs/tuned/sft/model"
    assert result["metrics"]["heldout"]["rows"] == 4
    assert result["metrics"]["heldout"]["difference"]["high"] < 0
    assert "rows.jsonl:1: what the model sees" in err
    assert "note: 4 held-out rows are training rows too" in err
    load_model(str(tmp_path / result["model"]), device="cpu")
    manifest = json.loads((tmp_path / "runs/tuned/sft/manifest.json").read_text())
    assert manifest["made_from"]["sft"]["learning_rate"] == 0.01
    assert not (tmp_path / "runs/tuned/sft/checkpoints").exists()

    code, out, err = sft(*settings, "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "model: runs/tuned/sft/model"

    code, out, err = sft(*settings, "sft.loss_on=all", "seed=3")
    assert (code, out) == (2, "")
    assert 'sft.loss_on was "completions" and is "all"' in err or "loss_on" in err
    assert "seed was 0 and is 3" in err
    assert "--redo" in err
    code, out, err = sft(*settings, "seed=3", "--redo", "-q")
    assert code == 0
    assert json.loads((tmp_path / "runs/tuned/sft/manifest.json").read_text())["made_from"]["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft.learning_rat=1"], "'sft.learning_rat=1': unknown key `sft.learning_rat`; did you mean `learning_rate`?"),
        (["sft.data.holdout=2"], "override 'sft.data.holdout=2': `sft.data.holdout` is 2;"),
        (["--limit", "0"], "--limit: `sft.data.limit` is 0;"),
        (["align.beta_r=1"], "unknown key `align`; valid keys: seed, model, sft"),
        (["sft.loss_on=prompts"], "`sft.loss_on` is 'prompts'; expected 'completions' or 'all'"),
        (["--adapter", "hh"], "rows.jsonl:1: no `chosen`; the adapter `hh` expects {chosen: text"),
        (["--eval-data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["sft.lora.r=2", "sft.lora.target_modules=[q_pro]"], "sft.lora: target_modules: LlamaForCausalLM has no module"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_made(sft, tmp_path, arguments, message):
    code, out, err = sft(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_split_of_data_that_is_not_given_is_refused(sft):
    code, _, err = sft("--eval-split", "test")
    assert code == 2
    assert "it is the split of --eval-data, which is missing" in err
