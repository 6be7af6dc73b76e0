"""TL;DR (Stiennon et al. 2020): comparisons of two summaries, and the filtered posts with their authors' summaries.

The prompt is "SUBREDDIT: r/...\\n\\nTITLE: ...\\n\\nPOST: ...\\n\\nTL;DR:", as in the paper's code. The comparisons' summaries
begin with a space; the posts' do not, and get one. News articles, which are among the comparisons of the validation split, have
no post: their prompt is "Article:\\n...\\n\\nTL;DR:\\n".
"""

from __future__ import annotations

from exoalign.data.adapters.schema import FIRST_OR_SECOND, Adapter, Row
from exoalign.errors import DataError

_COMPARISON = {
    "info": ({"post": str, "title": str, "subreddit": str}, {"article": str}),
    "summaries": [{"text": str}],
    "choice": FIRST_OR_SECOND,
}
_POST = {"subreddit": str, "title": str, "post": str, "summary": str}


def _prompt(post: Row) -> str:
    return f"SUBREDDIT: r/{post['subreddit']}\n\nTITLE: {post['title']}\n\nPOST: {post['post']}\n\nTL;DR:"


def _comparison(row: Row, where: str) -> list[Row]:
    info, summaries, choice = row["info"], row["summaries"], int(row["choice"])
    if len(summaries) != 2:
        raise DataError(f"{where}: `summaries` holds {len(summaries)}; expected the 2 that were compared")
    prompt = f"Article:\n{info['article']}\n\nTL;DR:\n" if info.get("post") is None else _prompt(info)
    return [{"prompt": prompt, "chosen": summaries[choice]["text"], "rejected": summaries[1 - choice]["text"]}]


def _text(row: Row, where: str) -> list[Row]:
    return [{"prompt": _prompt(row), "completion": f" {row['summary']}"}]


def _prompt_only(row: Row, where: str) -> list[Row]:
    return [{"prompt": _prompt(row)}]


_POSTS = "vwxyzjn/summarize_from_feedback_tldr_3_filtered"
ADAPTERS = [
    Adapter("tldr", "openai/summarize_from_feedback", "pairs of text (subset comparisons)", _COMPARISON, _comparison),
    Adapter("tldr_sft", _POSTS, "prompt and completion: a post and its author's summary", _POST, _text),
    Adapter("tldr_prompts", _POSTS, "prompts: a post to summarise", _POST, _prompt_only, unread=("summary",)),
]
