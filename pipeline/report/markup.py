"""HTML made safely: everything that comes from files is escaped here, and nowhere else is markup put together."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

Markup = str
"""Text that is HTML already."""

_VOID = frozenset({"br", "img", "input"})
"""Elements that have no end tag."""


def text(value: object) -> Markup:
    """A value as HTML text, also inside a quoted attribute.

    >>> text('<b class="x">&')
    '&lt;b class=&quot;x&quot;&gt;&amp;'
    """
    return html.escape(str(value), quote=True)


def element(name: str, *inner: Markup, **attributes: object) -> Markup:
    """An element; ``data_t`` becomes ``data-t``, ``class_`` ``class``; attributes that are None are left out.

    >>> element("a", text("x < y"), href="#t=1", class_="jump", data_t=1.5, title=None)
    '<a href="#t=1" class="jump" data-t="1.5">x &lt; y</a>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{''.join(inner)}</{name}>"


def section(title: str, *inner: Markup, note: str = "", id_: str | None = None) -> Markup:
    """A section with a heading and, under it, a line that explains what is seen."""
    explanation = element("p", text(note), class_="note") if note else ""
    return element("section", element("h2", text(title)), explanation, *inner, id_=id_)


def table(head: Sequence[str], rows: Iterable[Sequence[Markup]], class_: str | None = None) -> Markup:
    """A table from cells that are HTML already; it scrolls sideways where the screen is narrow."""
    header = element("tr", *(element("th", text(name), scope="col") for name in head))
    body = "".join(element("tr", *(element("td", cell) for cell in row)) for row in rows)
    inner = element("table", element("thead", header), element("tbody", body), class_=class_)
    return element("div", inner, class_="wide")


def color_or(value: object, default: str) -> str:
    """A color of the form ``#rrggbb``, else the default.

    >>> color_or("#12ab34", "#000000"), color_or("red;}", "#000000")
    ('#12ab34', '#000000')
    """
    return value if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value) else default


def embedded_json(values: Any) -> Markup:
    """Values for a script on the page; no text in them can end the script."""
    content = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="data">{content}</script>'


def data_address(kind: str, content: bytes) -> str:
    """Bytes as a ``data:`` address, for pictures inside a page; ``kind`` is such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def document(
    title: str, body: Markup, *, style: str, script: str = "", data: Any = None, media_beside: bool = False
) -> str:
    """A whole page that needs no network.

    The content security policy allows the page's own script and embedded pictures, and nothing else.

    Args:
        title: Of the window.
        body: HTML.
        style: CSS.
        script: JavaScript, or empty.
        data: What the script reads.
        media_beside: Also allow pictures and videos in files beside the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    media = "img-src data: file: 'self'; media-src 'self' file:" if media_beside else "img-src data:"
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = (
        f"default-src 'none'; {media}; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{style}</style>"
    )
    payload = "" if data is None else embedded_json(data)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>'
        f"<body>{body}{payload}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def asset(name: str, package: str = "pipeline.report") -> str:
    """A file of a package's ``assets`` that goes into a page."""
    return resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")


def report_document(title: str, body: Markup, *, data: Any = None, script: str = "report.js") -> str:
    """A page in the style of the reports, with the files of a run beside it."""
    return document(title, body, style=asset("report.css"), script=asset(script), data=data, media_beside=True)
