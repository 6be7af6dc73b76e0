"""Anthropic-HH transcripts: `chosen` and `rejected` are whole dialogues that share all but the assistant's last reply."""

from __future__ import annotations

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Split a pair of transcripts where the assistant's last reply begins.

    Args:
        chosen: the preferred transcript, `"\\n\\nHuman: ... \\n\\nAssistant: ..."`.
        rejected: the other one.

    Returns:
        (prompt, chosen reply, rejected reply), the prompt ending with `"\\n\\nAssistant:"` and each reply keeping the space
        that follows it; or None where the two do not share everything before their last reply.

    Example:
        >>> split_transcripts("\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "\\n\\nHuman: Hi\\n\\nAssistant: What?")
        ('\\n\\nHuman: Hi\\n\\nAssistant:', ' Hello!', ' What?')
    """
    cut = chosen.rfind(ASSISTANT)
    if cut < 0 or cut != rejected.rfind(ASSISTANT):
        return None
    cut += len(ASSISTANT)
    if chosen[:cut] != rejected[:cut] or HUMAN in chosen[cut:] or HUMAN in rejected[cut:]:
        return None
    return chosen[:cut], chosen[cut:], rejected[cut:]
