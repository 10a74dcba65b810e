"""What explains a picture of features: a color bar, the clicked point, the names of colors."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from stages.extract.views import heat_colors

Image = npt.NDArray[np.uint8]

_SMALLEST_PX = 160
"""Frames with a shorter side have no room for text."""

_WHITE, _DARK = (255, 255, 255), (20, 20, 20)


def color_bar(image: Image, low_high: tuple[float, float], title: str) -> None:
    """Draw the heat map's colors with a title and the values at both ends into the lower right corner."""
    if min(image.shape[:2]) < _SMALLEST_PX:
        return
    text = _Text(image)
    numbers = [f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}" for value in low_high]
    width = max(image.shape[1] // 4, text.width(title), text.width("  ".join(numbers)))
    bar = heat_colors(np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (text.height, 1)))
    area = text.panel(rows=3, width=width, right=True)
    area.write(0, title)
    area.paste(1, bar)
    area.write(2, numbers[0])
    area.write(2, numbers[1], shift=width - text.width(numbers[1]))


def color_names(image: Image, colors: npt.NDArray[np.uint8], names: Sequence[str]) -> None:
    """Draw colors ``(N, 3)`` with their names into the lower left corner; in place."""
    if min(image.shape[:2]) < _SMALLEST_PX or not names:
        return
    text = _Text(image)
    shift = 3 * text.height // 2
    area = text.panel(rows=len(names), width=shift + max(text.width(name) for name in names), right=False)
    for row, (color, name) in enumerate(zip(colors, names, strict=True)):
        area.paste(row, np.full((text.height, text.height, 3), color, np.uint8))
        area.write(row, name, shift=shift)


def point_mark(image: Image, xy: tuple[float, float]) -> None:
    """Mark a pixel by a ring and a cross; in place."""
    size = max(4, image.shape[0] // 45)
    center = (round(xy[0]), round(xy[1]))
    for color, thickness in ((_DARK, max(3, size // 4)), (_WHITE, max(1, size // 8))):
        cv2.circle(image, center, size, color, thickness, cv2.LINE_AA)
        cv2.drawMarker(image, center, color, cv2.MARKER_CROSS, size, thickness, cv2.LINE_AA)


def clicked_inset(image: Image, xy: tuple[float, float]) -> Image:
    """The surroundings of a marked pixel, a quarter of the frame's height on a side, with a white border."""
    side = max(8, image.shape[0] // 4)
    marked = image.copy()
    point_mark(marked, xy)
    top, left = (
        int(min(max(0, round(place) - side // 2), max(0, length - side)))
        for place, length in ((xy[1], image.shape[0]), (xy[0], image.shape[1]))
    )
    inset = marked[top : top + side, left : left + side].copy()
    cv2.rectangle(inset, (0, 0), (inset.shape[1] - 1, inset.shape[0] - 1), _WHITE, max(1, side // 60))
    return inset


def paste_inset(image: Image, inset: Image) -> None:
    """Put :func:`clicked_inset` of the first frame into the upper left corner; in place."""
    image[: inset.shape[0], : inset.shape[1]] = inset


class _Text:
    """Text in a size that fits an image."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.scale = max(0.35, image.shape[0] / 900)
        self.thickness = max(1, round(1.5 * self.scale))
        self.height = self._size("Mg")[1]

    def width(self, text: str) -> int:
        """Pixels that a text takes."""
        return self._size(text)[0]

    def panel(self, *, rows: int, width: int, right: bool) -> _Panel:
        """A dark area in a lower corner, with room for rows of text."""
        pad = self.height // 2
        height, whole = rows * 2 * self.height + pad, width + 2 * pad
        left = self.image.shape[1] - whole if right else 0
        top = self.image.shape[0] - height
        cv2.rectangle(self.image, (left, top), (left + whole, top + height), _DARK, cv2.FILLED)
        return _Panel(self, left + pad, top + pad)

    def _size(self, text: str) -> tuple[int, int]:
        (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, self.scale, self.thickness)
        return width, height + baseline // 2


class _Panel:
    def __init__(self, text: _Text, left: int, top: int) -> None:
        self._text, self._left, self._top = text, left, top

    def write(self, row: int, words: str, shift: int = 0) -> None:
        text = self._text
        origin = (self._left + shift, self._top + row * 2 * text.height + text.height)
        cv2.putText(
            text.image, words, origin, cv2.FONT_HERSHEY_SIMPLEX, text.scale, _WHITE, text.thickness, cv2.LINE_AA
        )

    def paste(self, row: int, picture: Image) -> None:
        top = self._top + row * 2 * self._text.height
        self._text.image[top : top + picture.shape[0], self._left : self._left + picture.shape[1]] = picture
