"""A template as one self-contained HTML file.

Everything that came from a model, a data set or a recipe is data: jinja2 escapes it, control characters are made
visible, and the content security policy runs only the two scripts that carry this page's nonce. The file loads nothing.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from exoalign.files import replacing
from exoalign.progress import CONTROL

HERE = Path(__file__).parent

# C0 (but tab and newline) and DEL as control pictures; C1, direction marks and lone surrogates by their code.
_VISIBLE = {code: f"⟨U+{code:04X}⟩" for code in (*map(ord, CONTROL), 0xFEFF, *range(0xD800, 0xE000))}
_VISIBLE |= {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}


def visible(text: str) -> str:
    """The text with every control character replaced by a mark that can be seen."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def write_template(
    path: Path,
    template: str,
    *,
    styles: Sequence[str] = ("style.css",),
    scripts: Sequence[str] = ("page.js",),
    **values: Any,
) -> Path:
    """Fill a template of this folder, with the style, the scripts and a nonce, write it in one step and return the path.

    Args:
        path: the file to write; its folder must exist.
        template: the name of the template.
        styles, scripts: files of this folder, in their order.
        values: what the template asks for besides `nonce`, `style`, `script` and `plotly`.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            values,
            nonce=secrets.token_urlsafe(16),
            style=Markup("\n".join(map(_asset, styles))),
            script=Markup("\n".join(map(_asset, scripts))),
            plotly=Markup(_plotly()),
        )
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # 0.15 s, which `exoalign --help` need not pay

    source: str = get_plotlyjs()
    if "</script" in source.lower():
        raise AssertionError("plotly.min.js holds '</script', which would end the script element it is inlined in")
    return source
