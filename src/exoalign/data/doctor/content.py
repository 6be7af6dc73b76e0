"""Characters and words in prompts and completions that another program may take for a command, and completions without text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from exoalign.data.doctor.findings import Finding, counted, finding
from exoalign.data.set_aside import Tally
from exoalign.progress import CONTROL

COMMON = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
)
"""Special tokens of widespread chat templates, looked for where no tokenizer is given."""

_CONTROL = re.compile(f"[{''.join(sorted(CONTROL))}]")
NAMES = {"\x00": "NUL", "\x08": "backspace", "\x1b": "ESC", "\x7f": "DEL"}


class Content:
    """Fed with every text, then asked for findings."""

    def __init__(self, special: Sequence[str] | None = None) -> None:
        self._special: dict[str, list[str]] = {}  # by their first two characters: a model may have hundreds
        for token in COMMON if special is None else special:
            self._special.setdefault(token[:2], []).append(token)
        self._own = special is not None
        self._controls: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self.control, self.token = Tally(), Tally()

    def add(self, where: str, texts: Iterable[str]) -> None:
        """Look through the texts of one group."""
        controls: set[str] = set()
        tokens: set[str] = set()
        for text in texts:
            controls.update(_CONTROL.findall(text))
            for start, likely in self._special.items():
                if start in text:
                    tokens.update(token for token in likely if token in text)
        if controls:
            self._controls.update(controls)
            self.control.add(where)
        if tokens:
            self._tokens.update(tokens)
            self.token.add(where)

    def findings(self) -> list[Finding]:
        """Which control characters and special tokens there are, the most frequent first."""
        characters = ", ".join(f"{name_of(c)} in {n}" for c, n in _most(self._controls))
        tokens = ", ".join(f"{token} in {n}" for token, n in _most(self._tokens))
        kind = "the tokenizer's special tokens" if self._own else "special tokens of common chat templates"
        found = finding(
            "control_characters",
            self.control,
            f"{counted(self.control.count, 'row')} with control characters or direction marks: {characters}",
            "remove them unless the task needs them (right-to-left text has direction marks): a policy learns to write them",
        )
        return found + finding(
            "special_tokens",
            self.token,
            f"{counted(self.token.count, 'row')} with {kind} as text: {tokens}",
            "here they stay plain text; take them out where another template left them, or before another program reads them",
        )


def name_of(character: str) -> str:
    """A control character as people name it: ESC, or U+202E."""
    return NAMES.get(character, f"U+{ord(character):04X}")


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
