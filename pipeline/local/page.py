"""Pages that need no other file and no network: the figures, and the points of an embedding."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow

from pipeline.local.labeled_set import Image
from pipeline.report.markup import Markup, asset, data_address, document, element

_PACKAGE = "pipeline.local"
_JPEG_QUALITY = 80
_PICTURE_QUALITY = 90


def page(title: str, body: Markup, *, script: str = "", data: Any = None) -> str:
    """A whole page in the style of this package; ``script`` is a file of its assets that reads ``data``."""
    return document(
        title,
        element("main", body),
        style=asset("page.css", _PACKAGE),
        script=asset(script, _PACKAGE) if script else "",
        data=data,
    )


def picture_address(content: bytes) -> str:
    """A PNG as a ``data:`` address: as it is, or as JPEG where that is smaller (photographs)."""
    buffer = io.BytesIO()
    with Pillow.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").save(buffer, format="JPEG", quality=_PICTURE_QUALITY)
    if len(content) <= buffer.tell():
        return data_address("image/png", content)
    return data_address("image/jpeg", buffer.getvalue())


def thumbnail(image: Image, side_px: int = 160) -> str:
    """A small JPEG of an image as a ``data:`` address."""
    scale = min(1.0, side_px / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(small).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return data_address("image/jpeg", buffer.getvalue())
