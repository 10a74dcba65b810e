"""Pages that need no other file and no network: the figures, and the points of an embedding."""

from __future__ import annotations

import base64
import hashlib
import io
from importlib import resources
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow

from pipeline.local.labeled_set import Image
from pipeline.report.markup import Markup, element, embedded_json, text

_JPEG_QUALITY = 80
_PICTURE_QUALITY = 90


def page(title: str, body: Markup, *, script: str = "", data: Any = None) -> str:
    """A whole page; its content policy allows its own script and embedded images, and nothing else.

    Args:
        title: Of the window.
        body: HTML.
        script: A file in this package's assets, or empty.
        data: What the script reads.
    """
    code = asset(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    allowed = f"'sha256-{digest}'" if code else "'none'"
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{asset('page.css')}</style>"
    )
    payload = "" if data is None else embedded_json(data)
    end = f"<script>{code}</script>" if code else ""
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>'
        f"<body>{element('main', body)}{payload}{end}</body></html>\n"
    )


def asset(name: str) -> str:
    """A file that goes into a page."""
    return resources.files("pipeline.local").joinpath("assets", name).read_text(encoding="utf-8")


def picture_address(content: bytes) -> str:
    """A PNG as a ``data:`` address: as it is, or as JPEG where that is smaller (photographs)."""
    buffer = io.BytesIO()
    with Pillow.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").save(buffer, format="JPEG", quality=_PICTURE_QUALITY)
    if len(content) <= buffer.tell():
        return _address("image/png", content)
    return _address("image/jpeg", buffer.getvalue())


def thumbnail(image: Image, side_px: int = 160) -> str:
    """A small JPEG of an image as a ``data:`` address."""
    scale = min(1.0, side_px / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(small).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return _address("image/jpeg", buffer.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")
