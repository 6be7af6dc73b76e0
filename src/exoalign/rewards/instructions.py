"""Instructions that a program verifies (IFEval, Zhou et al. 2023; IFBench, Pyatkin et al. 2025): the package `if-verifiable`.

A row of prompts says what is asked for, in the columns of those data sets:

    {"prompt": "Name a fruit in at most 3 words.", "instruction_id_list": ["length_constraints:number_words"],
     "kwargs": [{"num_words": 4, "relation": "less than"}]}
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from exoalign.errors import RewardError

BENCHMARKS = ("ifeval", "ifbench")


def if_verifiable(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    rows: Sequence[Mapping[str, Any]],
    benchmark: str = "ifeval",
    loose: bool = False,
) -> list[float]:
    """1 where the completion follows all instructions of its row, 0 otherwise.

    Args:
        prompts, completions: the texts.
        rows: of each completion the other columns of its prompt's row, `instruction_id_list` and `kwargs` among them.
        benchmark: `ifeval` or `ifbench`: where the instructions are defined.
        loose: forgive a first and a last line and asterisks, as the data sets' own loose scores do.

    Raises:
        RewardError: if the package is missing, or a row has no instructions, an unknown one, or lacks an argument of one: the
            package would then draw one at random.
    """
    if benchmark not in BENCHMARKS:
        raise RewardError(f"`benchmark` is {benchmark!r}; expected {' or '.join(BENCHMARKS)}")
    try:
        from if_verifiable import IFBenchSample, IFEvalSample, evaluate_output_for_sample
        from langdetect import DetectorFactory
    except ImportError as error:
        raise RewardError("if_verifiable needs its package; run: pip install 'exoalign[rewards]'") from error
    known = _known(benchmark)
    DetectorFactory.seed = 0  # or the language of a short text is guessed by chance
    values = []
    for prompt, completion, row in zip(prompts, completions, rows, strict=True):
        ids, arguments = _asked(row, known)
        sample: Any = (
            IFEvalSample(0, prompt, ids, arguments)
            if benchmark == "ifeval"
            else IFBenchSample("", prompt, ids, arguments)
        )
        state = random.getstate()
        random.seed(0)  # some checks draw what they were not told
        try:
            _, scores = evaluate_output_for_sample(benchmark, sample, completion)
        except LookupError as error:
            raise RewardError(
                f"{', '.join(ids)}: word lists of nltk are missing; run: python -m nltk.downloader punkt punkt_tab stopwords"
                " averaged_perceptron_tagger_eng"
            ) from error
        finally:
            random.setstate(state)
        values.append(float(scores.binary_loose if loose else scores.binary_strict))
    return values


def _known(benchmark: str) -> Mapping[str, Any]:
    if benchmark == "ifeval":
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    else:
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    return dict(INSTRUCTION_DICT)


def _asked(row: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The instructions of a row, checked, with their arguments."""
    ids, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not ids:
        raise RewardError(
            "the row has no instructions; expected the columns `instruction_id_list` and `kwargs` beside `prompt`, where"
            " the completions are sampled for"
        )
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise RewardError(
            f"`kwargs` is {str(arguments)[:60]}; expected a list with an object for each of {len(ids)} ids"
        )
    for name, given in zip(ids, arguments, strict=True):
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise RewardError(f"no instruction {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        needed = known[name](name).get_instruction_args_keys()
        missing = [key for key in needed if (given or {}).get(key) is None]
        if missing:
            raise RewardError(f"instruction {name} has no `{missing[0]}` in `kwargs`; expected {', '.join(needed)}")
    return [str(name) for name in ids], [dict(given or {}) for given in arguments]
