"""The shapes of a data set that memory and time depend on: how many groups, how long, how many completions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exoalign.errors import ConfigError
from exoalign.groups import Group


@dataclass(frozen=True)
class DataShape:
    """Groups and their tokens; memory depends on the longest, time on the sums.

    Attributes:
        groups: in the data set.
        prompt: tokens of the longest prompt.
        k: completions of the largest group.
        completion: tokens of the longest completion.
        longest: tokens of a prompt with the longest of its completions, at most.
        completions: of all groups together.
        tokens: in packed rows, all groups together: prompts once, and completions without their last token.
        targets: completion tokens of all groups together.
        counted: those among them that count and are predicted: all but the other turns of trajectories.
    """

    groups: int
    prompt: int
    k: int
    completion: int
    longest: int
    completions: int
    tokens: int
    targets: int
    counted: int

    @property
    def largest_group(self) -> int:
        """Tokens of a packed group that has the longest prompt, the most completions and the longest of those."""
        return self.prompt + self.k * max(self.completion - 1, 1)


def even_shape(*, groups: int = 1000, prompt: int = 512, k: int = 8, completion: int = 256) -> DataShape:
    """A data set whose prompts are of one length, and its completions too."""
    return DataShape(
        groups=groups,
        prompt=prompt,
        k=k,
        completion=completion,
        longest=prompt + completion,
        completions=groups * k,
        tokens=groups * (prompt + k * (completion - 1)),
        targets=groups * k * completion,
        counted=groups * k * completion,
    )


def shape_of(groups: Iterable[Group]) -> DataShape:
    """The shape of groups that have their token ids; they are gone through once."""
    prompts, lengths, counted = list[int](), list[list[int]](), 0
    for group in groups:
        prompts.append(len(group.prompt_ids or ()))
        lengths.append([len(ids) for ids in group.completion_ids or ()])
        counted += sum(group.counted_tokens)
    every = [n for row in lengths for n in row]
    return DataShape(
        groups=len(prompts),
        prompt=max(prompts),
        k=max(map(len, lengths)),
        completion=max(every),
        longest=max(prompt + max(row) for prompt, row in zip(prompts, lengths, strict=True)),
        completions=len(every),
        tokens=sum(prompts) + sum(every) - len(every),
        targets=sum(every),
        counted=counted,
    )


def parse_shape(text: str) -> DataShape:
    """Read `groups=1000,prompt=512,k=64,completion=256`; what is left out is 1000, 512, 8 and 256.

    Raises:
        ConfigError: naming the part that cannot be read.
    """
    names, found = ("groups", "prompt", "k", "completion"), dict[str, int]()
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        least = 2 if name == "k" else 1
        if name not in names or not value.isdecimal() or int(value) < least or name in found:
            raise ConfigError(
                f"--shape: {part!r}; expected each of {', '.join(names)} at most once, with a whole number (k from 2"
                " on), for example groups=1000,prompt=512,k=64,completion=256"
            )
        found[name] = int(value)
    return even_shape(**found)
