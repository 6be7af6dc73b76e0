"""The stage that trains a reward model, and measures it on what it has not learnt from."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from exoalign import adapters
from exoalign.config import ModelSection
from exoalign.config_reward_model import RewardModelSection
from exoalign.data.contents import Commits
from exoalign.data.group_table import build
from exoalign.data.prepare import Sides
from exoalign.data.reward_data import as_ranking, reward_data
from exoalign.data.token_cache import default_folder
from exoalign.errors import ConfigError
from exoalign.evaluate.heldout import spread
from exoalign.evaluate.reward_model import classifier_metrics, ranking_metrics
from exoalign.evaluate.reward_summary import reward_summary
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.models import identity, load_tokenizer
from exoalign.progress import Progress
from exoalign.rewards.inputs import RewardInputs, laid_out, longest_input
from exoalign.rewards.load import load_reward_model
from exoalign.rewards.model import RewardModel
from exoalign.rewards.padding import set_padding
from exoalign.train.arguments import arguments_of
from exoalign.train.checkpoints import train_resumably
from exoalign.train.progress_callback import StepProgress
from exoalign.train.reward import LABELS, RewardConfig, RewardTrainer

MODEL, METRICS, HISTORY, SUMMARY = "model", "metrics.json", "history.json", "summary.json"
EVALUATED = 512
"""Training groups that are evaluated at most, where nothing is held out."""


@dataclass(frozen=True)
class RewardData(Sides):
    """What a reward model is trained and measured on; both sides are read and checked before any work."""

    @property
    def notes(self) -> list[str]:
        """What the user should mind."""
        if self.heldout is None:
            return [
                *self.train.notes,
                "nothing is held out, so the reward model is measured on what it has learnt from",
            ]
        known = {_known_by(group) for group in self.train.groups}
        shared = [group.where for group in self.heldout.groups if _known_by(group) in known]
        told = f"{len(shared)} held-out groups have prompts of the training data ({', '.join(shared[:2])}, ...)"
        return [*self.train.notes, *self.heldout.notes, *([told] if shared else [])]


def _known_by(group: Group) -> int:
    """A prompt, of labelled texts the text; Python's hash tells millions apart."""
    return hash(group.prompt or group.completions)


def read_reward_data(section: RewardModelSection, *, seed: int) -> RewardData:
    """Both sides of a section's data.

    Raises:
        DataError: naming the row, the group or the data set that cannot be used.
    """
    cache = default_folder()
    commits = Commits(cache)
    train = reward_data(section, "train", seed=seed, cache=cache, commits=commits)
    assert train is not None
    return RewardData(train, reward_data(section, "heldout", seed=seed, cache=cache, commits=commits))


def reward_arguments(section: RewardModelSection, *, seed: int, bf16: bool, output_dir: str) -> RewardConfig:
    """The trainer's settings that a section asks for.

    Raises:
        ConfigError: naming the key of `reward_model.trainer` that is unknown, or that the section has a setting of its own for.
    """
    ours: dict[str, Any] = {
        "kind": section.kind,
        "margin": section.margin,
        "centring": section.centring,
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": section.groups_per_step,
        "max_tokens_per_pass": None if section.max_tokens_per_pass == "auto" else section.max_tokens_per_pass,
        "bf16": bf16,
        "seed": seed,
        "output_dir": output_dir,
    }
    return arguments_of(RewardConfig, ours, section.trainer, section="reward_model")


def begins_with(section: RewardModelSection, model: ModelSection) -> ModelSection:
    """What training begins with: the model that the section names (whose own code is never run), else the run's."""
    return model if section.model is None else ModelSection(path=section.model)


def made_from(
    section: RewardModelSection, data: RewardData, model: ModelSection, *, seed: int, bf16: bool
) -> dict[str, Any]:
    """All that the stage's files depend on, as JSON values."""
    begin = begins_with(section, model)
    return {
        "model": identity(begin.path, begin.revision),
        "reward_model": section.model_dump(exclude={"data", "model", "checkpoint_minutes"}),
        "data": data.made_from,
        "seed": seed,
        "bf16": bf16,
    }


def reward_model(
    section: RewardModelSection,
    data: RewardData,
    folder: Path,
    *,
    model: ModelSection,
    seed: int,
    bf16: bool,
    show: bool = True,
    allow_inexact: bool = False,
) -> str:
    """Train a reward model -> model/ (a standard sequence classification model), metrics.json, history.json, summary.json.

    Interrupted, it goes on from the last of the `checkpoints/` that it keeps there.

    Args:
        section: the settings.
        data: of `read_reward_data`.
        folder: the stage's.
        model: the run's model, which is begun with unless the section names one.
        seed: of the head, the adapter's weights, the order of the data and the bootstrap.
        bf16: compute under bfloat16 autocast; what is measured is measured so too.
        show: show progress.
        allow_inexact: go on from a checkpoint that has lost its optimizer or random state, too.

    Returns:
        A few words on what was done.

    Raises:
        Interrupted: after a signal, when a checkpoint is saved.
        ExoalignError: where data, model and settings do not fit.
    """
    record = made_from(section, data, model, seed=seed, bf16=bf16)
    begin = begins_with(section, model)
    history, notes = _train(
        section, data.train.groups, folder, begin, record, seed=seed, bf16=bf16, show=show, allow_inexact=allow_inexact
    )
    gc.collect()
    heldout = data.heldout.groups if data.heldout else spread(data.train.groups, EVALUATED, seed=seed)
    with Progress("reward held-out", len(heldout), enabled=show) as progress:
        scorer = RewardModel(
            str(folder / MODEL), bf16=bf16, trust_remote_code=begin.trust_remote_code, report=progress.advance
        )
        rewards = scorer(heldout)
    measure = ranking_metrics if section.kind == "ranking" else classifier_metrics
    metrics = {"heldout" if data.heldout else "train": measure(heldout, rewards, seed=seed)}
    (found,) = metrics.values()
    write_text(folder / METRICS, json.dumps(metrics, indent=1))
    # sorted, as transformers sorts what it keeps of the steps before an interruption
    write_text(folder / HISTORY, json.dumps({"steps": history, "warnings": notes}, indent=1, sort_keys=True))
    on = "held-out" if data.heldout else "training"
    summary = reward_summary(heldout, rewards, found, history, ranking=section.kind == "ranking", on=on)
    write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    accuracy = found["accuracy"]
    return (
        f"{len(history)} steps of {section.groups_per_step}, accuracy {accuracy['mean']:.3f}"
        f" ({accuracy['low']:.3f} to {accuracy['high']:.3f}) on {len(heldout)} {on} groups"
    )


def _train(
    section: RewardModelSection,
    groups: Sequence[Group],
    folder: Path,
    begin: ModelSection,
    record: dict[str, Any],
    *,
    seed: int,
    bf16: bool,
    show: bool,
    allow_inexact: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Train and save; returns the steps' metrics and what the user should mind."""
    remote: dict[str, Any] = {"revision": begin.revision, "trust_remote_code": begin.trust_remote_code}
    arguments = reward_arguments(section, seed=seed, bf16=bf16, output_dir=str(folder))
    base: Any = load_reward_model(begin.path, fresh_labels=LABELS[section.kind], seed=seed, **remote)
    tokenizer = load_tokenizer(begin.path, **remote)
    pad_id = set_padding(base, tokenizer)
    longest = longest_input(base, tokenizer)
    # the placeholder is no input, but the trainer counts it
    most = min(filter(None, (section.max_tokens, longest and longest - 1)), default=None)
    if most is not None:
        tokenizer.model_max_length = most  # it is saved: whoever applies the model cuts as it was trained
    inputs = RewardInputs(tokenizer, max_tokens=most)
    pairs = section.kind == "classifier" or all(group.winner is not None for group in groups)
    with tempfile.TemporaryDirectory() as name:
        table = build(
            (laid_out(group if pairs else as_ranking(group), inputs, pad_id) for group in groups),
            Path(name) / "ids.arrow",
        )
        set_seed(seed)  # an adapter's weights are drawn before the trainer sets its own
        try:
            trainer = RewardTrainer(base, arguments, table, processing_class=tokenizer, peft_config=_adapter(section))
        except (TypeError, ValueError, RuntimeError, ImportError) as error:  # what only transformers can tell
            raise ConfigError(f"reward_model.trainer: {error}") from error
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(StepProgress(enabled=show))
        train_resumably(
            trainer,
            folder,
            made_from=record,
            minutes=section.checkpoint_minutes,
            allow_inexact=allow_inexact,
        )
        trained: Any = trainer.model
    if section.lora is not None:
        trained = trained.merge_and_unload()
    trained.save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    return [step for step in trainer.state.log_history if "loss" in step], inputs.lines()


def _adapter(section: RewardModelSection) -> Any:
    lora = section.lora
    if lora is None:
        return None
    return adapters.lora_config(
        r=lora.r, alpha=lora.alpha, dropout=lora.dropout, target_modules=lora.target_modules, task_type="SEQ_CLS"
    )
