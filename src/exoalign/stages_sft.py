"""The stage of supervised fine-tuning: its data, the training, and what the model predicts of held-out texts then."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, set_seed

from exoalign import adapters
from exoalign.config import ModelSection
from exoalign.config_sft import SftSection
from exoalign.data import token_cache
from exoalign.data.contents import Commits
from exoalign.data.prepare import Prepared, Sides, prepare
from exoalign.data.show import render_group
from exoalign.errors import ConfigError
from exoalign.evaluate.heldout import spread
from exoalign.evaluate.perplexity import compare_losses, text_losses
from exoalign.evaluate.sft_summary import sft_summary
from exoalign.files import write_text
from exoalign.groups import Group
from exoalign.merging import merge
from exoalign.models import identity, load_model
from exoalign.progress import Progress
from exoalign.train.adapter import check_lora, lora_compute_type, lora_settings
from exoalign.train.arguments import arguments_of
from exoalign.train.checkpoints import train_resumably
from exoalign.train.preflight import say_estimate
from exoalign.train.progress_callback import StepProgress
from exoalign.train.sft import SftConfig, SftTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL, METRICS, HISTORY, SUMMARY = "model", "metrics.json", "history.json", "summary.json"
EVALUATED = 512
"""Held-out texts that are evaluated at most, before and after, in float32: all of a large data set would take long."""


@dataclass(frozen=True)
class SftData(Sides):
    """Examples to train on and those held out (None where there are none), what was done to read them, and what to mind."""

    lines: list[str]
    notes: list[str]


def read_sft_data(
    section: SftSection, tokenizer: PreTrainedTokenizerBase, *, context: int | None, seed: int
) -> SftData:
    """Both sides of the section's data, tokenised by the model's tokenizer for its context of so many tokens.

    Raises:
        DataError: naming the row, the data set or the setting.
    """
    cache = token_cache.default_folder()
    commits = Commits(cache)

    def side(name: Any) -> Prepared | None:
        return prepare(
            section.data,
            name,
            tokenizer,
            context=context,
            seed=seed,
            cache=cache,
            commits=commits,
            loss_on=section.loss_on,
        )

    train, heldout = side("train"), side("heldout")
    assert train is not None
    sides = {"train": train, **({"heldout": heldout} if heldout else {})}
    lines = [f"{name}: {line}" for name, part in sides.items() for line in part.lines]
    notes = [note for part in sides.values() for note in part.notes]
    if heldout is None:
        notes.append("nothing is held out, so what was learnt is not measured; set data.holdout or data.evaluation")
    elif section.data.holdout is None:  # a split shares none
        notes += _shared_note(train.groups, heldout.groups)
    return SftData(train, heldout, lines, notes)


def sft_arguments(section: SftSection, *, seed: int, bf16: bool, output_dir: str = "trainer_output") -> SftConfig:
    """The trainer's settings that a section asks for.

    Raises:
        ConfigError: naming the key of `sft.trainer` that is unknown, or that the section has a setting of its own for.
    """
    ours: dict[str, Any] = {
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": section.rows_per_step,
        "max_tokens_per_pass": None if section.max_tokens_per_pass == "auto" else section.max_tokens_per_pass,
        "bf16": bf16,
        "seed": seed,
        "output_dir": output_dir,
    }
    return arguments_of(SftConfig, ours, section.trainer, section="sft")


def check_sft(section: SftSection, model: ModelSection, *, seed: int, bf16: bool) -> None:
    """Refuse settings that are wrong before any work.

    Raises:
        ConfigError: naming the setting.
        ModelError: if the model cannot be found, or a package is missing.
    """
    sft_arguments(section, seed=seed, bf16=bf16)
    check_lora(section.lora, model, name="sft.lora")


def made_from(section: SftSection, data: SftData, model: ModelSection, *, seed: int, bf16: bool) -> dict[str, Any]:
    """All that the stage's files depend on, as JSON values."""
    return {
        "model": identity(model.path, model.revision),
        "sft": section.model_dump(exclude={"data", "checkpoint_minutes"}),
        "data": data.made_from,
        "seed": seed,
        "bf16": bf16,
    }


def sft(
    section: SftSection,
    data: SftData,
    folder: Path,
    *,
    model: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    bf16: bool,
    show: bool = True,
    say: Callable[[str], None] = lambda line: None,
    allow_inexact: bool = False,
) -> str:
    """Fine-tune a model -> model/, history.json, summary.json, and where something is held out metrics.json.

    What an interrupted attempt left in `folder/checkpoints` is gone on from, to the same bytes.

    Args:
        section: the settings.
        data: of `read_sft_data`.
        folder: the stage's.
        model: what to fine-tune.
        tokenizer: the model's.
        seed: of the order of the examples, the adapter's weights and the bootstrap.
        bf16: compute under bfloat16 autocast; held-out texts are measured in float32.
        show: show progress.
        say: takes a line for the user.
        allow_inexact: go on although a file of the checkpoint's optimizer or random numbers is gone.

    Returns:
        A few words on what was done.

    Raises:
        Interrupted: after SIGTERM or SIGINT, when a checkpoint is saved.
        ExoalignError: where data, model and settings do not fit.
    """
    examples = data.train.groups
    for line in render_group(examples[0], tokenizer).split("\n"):
        say(f"  {line}")
    heldout = spread(data.heldout.groups, EVALUATED, seed=seed) if data.heldout else []
    loaded = load_model(
        model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        quantize=lora_compute_type(section.lora, bf16=bf16),
    )
    before = _measured(heldout, loaded, "held-out before", show=show)
    arguments = sft_arguments(section, seed=seed, bf16=bf16, output_dir=str(folder))
    set_seed(seed)  # an adapter's weights are drawn before the trainer sets its own
    try:
        trainer = SftTrainer(
            loaded, arguments, examples, processing_class=tokenizer, peft_config=lora_settings(section.lora)
        )
    except (TypeError, ValueError, RuntimeError, ImportError) as error:  # what only transformers can tell
        raise ConfigError(f"sft.trainer: {error}") from error
    say_estimate(trainer.model, arguments, trainer.train_dataset, tokens=trainer.tokens_per_pass, show=show)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepProgress(enabled=show))
    train_resumably(
        trainer,
        folder,
        made_from=made_from(section, data, model, seed=seed, bf16=bf16),
        minutes=section.checkpoint_minutes,
        allow_inexact=allow_inexact,
    )
    after = _measured(heldout, trainer.model, "held-out after", show=show)
    steps = [step for step in trainer.state.log_history if "loss" in step]
    unmerged = not section.merge or (section.lora is not None and section.lora.quantize is not None)
    as_it_is = unmerged or not adapters.is_adapted(trainer.model)
    trainer.save_model(str(folder / (MODEL if as_it_is else "adapter")))
    if not as_it_is:
        del trainer, loaded
        gc.collect()
        merge(str(folder / "adapter"), folder / MODEL, trust_remote_code=model.trust_remote_code)
        shutil.rmtree(folder / "adapter")
    # sorted, as what comes out of a checkpoint is
    write_text(folder / HISTORY, json.dumps({"steps": steps, "warnings": []}, indent=1, sort_keys=True))
    metrics: dict[str, Any] | None = None
    if data.heldout:
        metrics = {**compare_losses(heldout, before, after, seed=seed), "of": len(data.heldout.groups)}
        write_text(folder / METRICS, json.dumps({"heldout": metrics}, indent=1))
    summary = sft_summary(examples, steps, heldout, before, after, metrics)
    write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    what = f"{len(steps)} steps of {section.rows_per_step} rows"
    if metrics is None:
        return what
    old, new = (metrics[name]["perplexity"]["mean"] for name in ("before", "after"))
    return f"{what}, perplexity of {len(heldout)} held-out rows {old:.4g} before, {new:.4g} after"


def _measured(examples: Sequence[Group], model: Any, label: str, *, show: bool) -> list[float]:
    if not examples:
        return []
    with Progress(label, len(examples), enabled=show) as progress:
        return text_losses(examples, model, bf16=False, report=progress.advance)


def _shared_note(train: Iterable[Group], heldout: Iterable[Group]) -> list[str]:
    """What to mind where held-out examples are trained on too. Of each Python's hash is kept: 64 bits tell millions apart."""

    def key(example: Group) -> int:
        return hash((example.prompt, example.completions))

    known = {key(example) for example in train}
    shared = [example for example in heldout if key(example) in known]
    if not shared:
        return []
    return [
        f"{len(shared)} held-out rows are training rows too ({shared[0].where}, ...): the evaluation is not of unseen texts"
    ]
