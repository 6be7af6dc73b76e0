"""A task whose optimum is known: after the prompt "a" a tiny model writes up to 3 symbols of 4, one of which is the end.

Its 40 completions are all enumerated, so J = E[r] - beta KL(pi || pi_ref) of any model, and the best there is, J* = beta log Z
with Z = sum of pi_ref exp(r / beta), are exact.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from exoalign import Group, collate
from exoalign.data.formats import PromptRow
from exoalign.logprobs.rows import completion_logprobs

LENGTH, END = 3, 0
PROMPTS = [PromptRow("a", f"row {i + 1}") for i in range(8)]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<eos>": END, "a": 1, "b": 2, "c": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")), eos_token="<eos>", pad_token="<eos>"
    )


def model() -> GPT2LMHeadModel:
    """The same weights each time: half of its completions end by themselves, and none has more than a sixth of the mass."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=4, n_embd=32, n_layer=1, n_head=2, n_positions=8, bos_token_id=END, eos_token_id=END,
        initializer_range=0.1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def completions() -> list[tuple[int, ...]]:
    """All that can be drawn: up to the end symbol, or 3 symbols without it."""
    found = []
    for length in range(1, LENGTH + 1):
        for ids in itertools.product(range(4), repeat=length):
            if END not in ids[:-1] and (ids[-1] == END or length == LENGTH):
                found.append(ids)
    return found


def rewards() -> dict[tuple[int, ...], float]:
    """A reward for each: random, and so of many modes."""
    values = torch.rand(len(completions()), generator=torch.Generator().manual_seed(1)).tolist()
    return dict(zip(completions(), values, strict=True))


def score(groups: Sequence[Group]) -> list[Group]:
    table = rewards()
    return [replace(group, rewards=tuple(table[ids] for ids in group.completion_ids)) for group in groups]


@torch.no_grad()
def log_probs(policy: torch.nn.Module) -> torch.Tensor:
    """log pi(y|x) of all completions, in float64."""
    ids = completions()
    group = Group("a", ("",) * len(ids), prompt_ids=(1,), completion_ids=tuple(ids))
    found = completion_logprobs(policy, collate([group]))[0].double()
    assert math.isclose(float(found.exp().sum()), 1.0, abs_tol=1e-5)  # nothing is missing, nothing is twice
    return found


def objective(policy: torch.nn.Module, reference: torch.nn.Module, beta: float) -> float:
    """J."""
    logp, ref, r = log_probs(policy), log_probs(reference), torch.tensor(list(rewards().values())).double()
    return float((logp.exp() * (r - beta * (logp - ref))).sum())


def optimum(reference: torch.nn.Module, beta: float) -> float:
    """J* = beta log Z."""
    r = torch.tensor(list(rewards().values())).double()
    return float(beta * (log_probs(reference) + r / beta).logsumexp(0))
