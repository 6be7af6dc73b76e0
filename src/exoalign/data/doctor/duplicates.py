"""Rows and prompts that stand twice, prompts that nearly do, prompts of the test set, and pairs that contradict each other.

Only digests are kept, and 64 numbers for each different prompt. Near-duplicates by MinHash (Broder, On the Resemblance and
Containment of Documents, 1997): the share of equal numbers in two sketches estimates the Jaccard similarity of the sets of
8-byte shingles, with a standard deviation of at most 1/16. Candidates come from 16 bands of 4 numbers; each prompt is compared
with the first one and the one before it in its bucket, so a prompt that resembles only others of a crowded bucket is missed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from exoalign.data.doctor.findings import Finding, counted, finding
from exoalign.data.set_aside import Tally

SHINGLE, NUMBERS, BANDS = 8, 64, 16
SIMILAR = 0.8
"""Prompts count as near-duplicates from this share of equal numbers on."""
MANY = 0.1
"""More than this share of near-duplicates is a warning, less a note."""
_AT_ONCE = 1 << 14  # shingles hashed at a time, so that a long text needs no more memory than a short one
_GENERATOR = np.random.default_rng(0)
_MASKS = _GENERATOR.integers(0, 1 << 32, size=(NUMBERS, 1), dtype=np.uint32)
_FACTORS = _GENERATOR.integers(0, 1 << 31, size=(NUMBERS, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Duplicates:
    """Fed with every group, then asked for findings."""

    def __init__(self, *, near: bool = True, noun: str = "prompt") -> None:
        self.noun = noun
        self._near = near
        self._first: dict[bytes, int] = {}  # digest of a prompt -> its place in `_where`
        self._where: list[str] = []
        self._sketches: list[NDArray[np.uint32]] = []
        self._rows: dict[bytes, tuple[str, bytes | None]] = {}  # prompt and completions -> where, the preferred one
        self.repeated, self.same_rows, self.contradictions = Tally(), Tally(), Tally()

    @property
    def different(self) -> int:
        """How many different prompts were seen."""
        return len(self._where)

    def add(self, where: str, prompt: str, completions: Iterable[str] = (), preferred: int | None = None) -> None:
        """Count one group; `preferred` is the better completion of a pair."""
        key = digest(prompt)
        place = self._first.setdefault(key, len(self._where))
        new = place == len(self._where)
        if new:
            self._where.append(where)
            if self._near:
                self._sketches.append(sketch(prompt))
        replies = [digest(text) for text in completions]
        if not replies:
            if not new:
                self.repeated.add(f"{where} (as {self._where[place]})")
            return
        better = None if preferred is None else replies[preferred]
        row = b"".join([key, *sorted(replies)])
        if row not in self._rows:
            self._rows[row] = where, better
            if not new:
                self.repeated.add(f"{where} (as {self._where[place]})")
            return
        earlier, choice = self._rows[row]
        if choice is not None and better is not None and choice != better:
            self.contradictions.add(f"{where} (against {earlier})")
        else:
            self.same_rows.add(f"{where} (as {earlier})")

    def findings(self, test: Duplicates | None = None) -> list[Finding]:
        """What was seen, against itself and against the prompts of a test set."""
        noun = self.noun
        found = finding(
            "contradictions",
            self.contradictions,
            f"{counted(self.contradictions.count, 'pair')} against an earlier one: A over B there, B over A here",
            "keep one of each, or both as the label noise that they are (a larger epsilon)",
        )
        found += finding(
            "duplicate_rows",
            self.same_rows,
            f"{counted(self.same_rows.count, 'row')} with the prompt and the completions of an earlier one",
            "remove them: they count double in training, and in both parts of a split by row",
        )
        found += finding(
            "repeated_prompts",
            self.repeated,
            f"{counted(self.repeated.count, 'row')} with the {noun} of an earlier one",
            "split by prompt, never by row; that one prompt has several groups does no harm"
            if noun == "prompt"
            else "remove them: they count double",
            "note",
        )
        if self._near:
            found += self._near_findings()
        return found + ([] if test is None else self._leaks(test))

    def _near_findings(self) -> list[Finding]:
        tally = Tally()
        for i, j in enumerate(resembling(self._stacked())):
            if i != j:
                tally.add(f"{self._where[i]} (like {self._where[j]})")
        return finding(
            "near_duplicate_prompts",
            tally,
            f"{tally.count} of {counted(self.different, self.noun)} nearly as an earlier one, by an estimated similarity of"
            f" {SIMILAR} or more",
            "look whether they are one template or copies; keep copies on one side of a split",
            "warning" if tally.count > MANY * self.different else "note",
        )

    def _leaks(self, test: Duplicates) -> list[Finding]:
        same, near = Tally(), Tally()
        for key, place in self._first.items():
            if key in test._first:
                same.add(f"{self._where[place]} (as {test._where[test._first[key]]})")
        if self._near and self._sketches and test._sketches:
            n = len(test._sketches)
            both = resembling(np.concatenate([test._stacked(), self._stacked()]), among=n)
            exact = {place for key, place in self._first.items() if key in test._first}
            for i, j in enumerate(both[n:]):
                if j < n and i not in exact:
                    near.add(f"{self._where[i]} (like {test._where[j]})")
        found = finding(
            "test_leak",
            same,
            f"{same.count} of {counted(self.different, self.noun)} in the test data too",
            "take them out of one of the two: what is measured on them is memory",
            "error",
        )
        return found + finding(
            "near_test_leak",
            near,
            f"{near.count} of {counted(self.different, self.noun)} nearly as one of the test data, by an estimated"
            f" similarity of {SIMILAR} or more",
            "look whether they are copies; take those out of one of the two",
        )

    def _stacked(self) -> NDArray[np.uint32]:
        return np.array(self._sketches, dtype=np.uint32).reshape(len(self._sketches), NUMBERS)


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def sketch(text: str) -> NDArray[np.uint32]:
    """The MinHash of a text's 8-byte shingles, case and white space aside: [64]."""
    raw = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass").ljust(SHINGLE)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(raw, dtype=np.uint8), SHINGLE)
    shingles = np.ascontiguousarray(windows).view(np.uint64).ravel()
    hashes = ((shingles * _MIX) >> np.uint64(32)).astype(np.uint32)
    parts = [hashes[start : start + _AT_ONCE] for start in range(0, len(hashes), _AT_ONCE)]
    smallest: NDArray[np.uint32] = np.min([((part ^ _MASKS) * _FACTORS).min(axis=1) for part in parts], axis=0)
    return smallest


def resembling(sketches: NDArray[np.uint32], among: int | None = None) -> NDArray[np.int64]:
    """For each sketch [n, 64] an earlier one (of the first `among`) that it resembles, else itself: [n]."""
    n = len(sketches)
    found = np.arange(n)
    for band in np.split(sketches, BANDS, axis=1):
        keys = np.ascontiguousarray(band).view(np.dtype((np.void, band.dtype.itemsize * band.shape[1]))).ravel()
        first, bucket = np.unique(keys, return_index=True, return_inverse=True)[1:]
        order = np.argsort(bucket, kind="stable")
        before = np.arange(n)
        before[order[1:]] = np.where(bucket[order[1:]] == bucket[order[:-1]], order[:-1], order[1:])
        for candidates in (first[bucket], before):
            open_ = np.flatnonzero((found == np.arange(n)) & (candidates < np.arange(n)))
            if among is not None:
                open_ = open_[candidates[open_] < among]
            alike = (sketches[open_] == sketches[candidates[open_]]).mean(axis=1) >= SIMILAR
            found[open_[alike]] = candidates[open_[alike]]
    return found
