"""The whole frame and windows of it as views, and the raster on which regions of different views are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray
from pipeline.prompts.features import FrameDescription
from pipeline.prompts.prompt import Box, Point, Prompt

BoolArray = npt.NDArray[np.bool_]

RASTER_ROWS = 120
"""Short side of the raster in its own pixels."""
WINDOW_SHARE = 0.5
"""Height and width of the window around a click, in shares of the frame's."""
BOX_MARGIN = 0.25
"""What is added to a box on each side for its window, in shares of the box's sides."""
SPREAD_MARGIN = 0.15
LARGEST_WINDOW_SHARE = 0.8
"""A window that covers more of both sides shows nothing that the frame does not."""
SMALLEST_WINDOW_PX = 64


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a frame in whole pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    def contains(self, point: Point) -> bool:
        """Whether a point lies in it."""
        return self.left <= point.x < self.left + self.width and self.top <= point.y < self.top + self.height

    def crop(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Its part of an image of the frame."""
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        return np.ascontiguousarray(image[rows, columns])


@dataclass(frozen=True, slots=True)
class View:
    """The cells of a window, which may be the whole frame.

    Attributes:
        cells: Their description, in the window's own pixels.
        window: Where the window lies.
        frame_hw: Size of the frame.
    """

    cells: FrameDescription
    window: Window
    frame_hw: tuple[int, int]

    @property
    def is_window(self) -> bool:
        """Whether it is a part of the frame."""
        return (self.window.height, self.window.width) != self.frame_hw

    def cell(self, point: Point) -> int:
        """The cell nearest to a point of the frame."""
        return self.cells.cell(point.x - self.window.left, point.y - self.window.top)

    def cells_in(self, box: Box) -> BoolArray:
        """The cells whose centers lie in a box of the frame, ``(N,)``; at least the one at its center."""
        centers = self.cells.grid.cell_centers().numpy().reshape(-1, 2)
        x, y = centers[:, 0] + self.window.left, centers[:, 1] + self.window.top
        inside: BoolArray = np.array(x > box.left)
        inside &= (x < box.right) & (y > box.top) & (y < box.bottom)
        inside[self.cell(Point((box.left + box.right) / 2, (box.top + box.bottom) / 2))] = True
        return inside

    def extents(self, masks: BoolArray) -> npt.NDArray[np.float64]:
        """The boxes ``(K, 4)`` around regions of cells ``(K, N)``, in pixels of the frame."""
        grid = self.cells.grid
        shaped = masks.reshape(-1, *grid.grid_hw)
        rows = np.asarray(shaped.any(axis=2), np.bool_)
        columns = np.asarray(shaped.any(axis=1), np.bool_)
        first = np.stack([columns.argmax(axis=1), rows.argmax(axis=1)], axis=1)
        last = np.stack(
            [columns.shape[1] - columns[:, ::-1].argmax(axis=1), rows.shape[1] - rows[:, ::-1].argmax(axis=1)],
            axis=1,
        )
        corners = torch.from_numpy(np.stack([first, last], axis=1).astype(np.float32))
        pixels = grid.cells_to_pixels(corners).numpy().reshape(-1, 4).astype(np.float64)
        return np.asarray(pixels + np.array([self.window.left, self.window.top] * 2), np.float64)

    def inner_sides(self) -> tuple[bool, bool, bool, bool]:
        """Whether the frame goes on beyond the window's top, bottom, left and right."""
        place = self.window
        return (
            place.top > 0,
            place.top + place.height < self.frame_hw[0],
            place.left > 0,
            place.left + place.width < self.frame_hw[1],
        )


@dataclass(frozen=True, slots=True)
class Raster:
    """A grid of about square pixels over a window of a frame.

    Attributes:
        window: What it covers.
        shape: Rows and columns.
    """

    window: Window
    shape: tuple[int, int]

    @classmethod
    def over(cls, window: Window) -> Raster:
        """The raster of a window, its short side ``RASTER_ROWS``, or the window's own pixels if they are fewer."""
        scale = min(1.0, RASTER_ROWS / min(window.height, window.width))
        return cls(window, (max(1, round(window.height * scale)), max(1, round(window.width * scale))))

    def from_cells(self, view: View, masks: BoolArray) -> BoolArray:
        """Regions of a view's cells, bool ``(K, N)``, on the raster: bool ``(K, rows * columns)``.

        Values between centers of cells are bilinear; outside the view nothing is set.
        """
        x, y = self._centers()
        inside = (x > view.window.left) & (x < view.window.left + view.window.width)
        inside = inside[None, :] & ((y > view.window.top) & (y < view.window.top + view.window.height))[:, None]
        grid = view.cells.grid
        columns = (x - view.window.left - grid.offset_px[1]) / grid.stride_px[1]
        rows = (y - view.window.top - grid.offset_px[0]) / grid.stride_px[0]
        maps = [np.ascontiguousarray(np.broadcast_to(m, self.shape), np.float32) for m in (columns, rows[:, None])]
        found = np.empty((len(masks), *self.shape), np.bool_)
        for index, mask in enumerate(masks):
            values = cv2.remap(
                mask.reshape(grid.grid_hw).astype(np.float32), maps[0], maps[1], cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )  # fmt: skip
            found[index] = (values > 0.5) & inside
        return found.reshape(len(masks), -1)

    def from_pixels(self, mask: BoolArray) -> BoolArray:
        """A mask ``(H, W)`` of the frame on the raster, bool ``(rows * columns,)``."""
        part = self.window.crop(mask.astype(np.uint8)).astype(np.float32)
        return np.asarray(cv2.resize(part, self.shape[::-1], interpolation=cv2.INTER_AREA).ravel() > 0.5, np.bool_)

    def to_pixels(self, soft: FloatArray, frame_hw: tuple[int, int]) -> FloatArray:
        """Values ``(rows * columns,)`` at every pixel of the frame, ``(H, W)``; 0 outside the window."""
        place = self.window
        pixels = np.zeros(frame_hw, np.float32)
        size = (place.width, place.height)
        resized = cv2.resize(soft.reshape(self.shape).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        pixels[place.top : place.top + place.height, place.left : place.left + place.width] = resized
        return pixels

    def _centers(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The columns' x and the rows' y in pixels of the frame."""
        place = self.window
        x = place.left + (np.arange(self.shape[1]) + 0.5) * place.width / self.shape[1]
        y = place.top + (np.arange(self.shape[0]) + 0.5) * place.height / self.shape[0]
        return x, y


def region_of_pixels(view: View, mask: BoolArray) -> BoolArray:
    """The cells ``(N,)`` of a view that lie mostly in a mask ``(H, W)`` of the frame."""
    part = view.window.crop(mask.astype(np.uint8)).astype(np.float32)
    cells = cv2.resize(part, view.cells.grid.grid_hw[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(cells.ravel() > 0.5, np.bool_)


def whole(frame_hw: tuple[int, int]) -> Window:
    """The window that is the frame."""
    return Window(0, 0, *frame_hw)


def window_for(prompts: Sequence[Prompt], frame_hw: tuple[int, int]) -> Window | None:
    """The window in which an object is looked at again, more finely.

    Half the frame in height and width around the first positive click, as long as all positive clicks are in it,
    else around all of them; around a box with a margin. Windows are moved into the frame.

    Args:
        prompts: Of one object: a box, or at least one positive point.
        frame_hw: Size of the frame.

    Returns:
        The window, or None where it would cover nearly the whole frame.
    """
    boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
    points = [prompt for prompt in prompts if isinstance(prompt, Point) and prompt.positive]
    least = (frame_hw[0] * WINDOW_SHARE, frame_hw[1] * WINDOW_SHARE)
    if boxes:
        left, top, right, bottom = boxes[0].xyxy
        center, size = ((left + right) / 2, (top + bottom) / 2), (bottom - top, right - left)
        size = size[0] * (1 + 2 * BOX_MARGIN), size[1] * (1 + 2 * BOX_MARGIN)
        # About the frame's shape: a thin box alone would be a strip of cells.
        side = max(size[0] / frame_hw[0], size[1] / frame_hw[1], SMALLEST_WINDOW_PX / min(frame_hw))
        return _placed(center, (side * frame_hw[0], side * frame_hw[1]), frame_hw)
    first = _placed((points[0].x, points[0].y), least, frame_hw)
    if first is None or all(first.contains(point) for point in points):
        return first
    xs, ys = [point.x for point in points], [point.y for point in points]
    center = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    spread = (
        max(ys) - min(ys) + 2 * SPREAD_MARGIN * frame_hw[0],
        max(xs) - min(xs) + 2 * SPREAD_MARGIN * frame_hw[1],
    )
    return _placed(center, (max(least[0], spread[0]), max(least[1], spread[1])), frame_hw)


def _placed(center: tuple[float, float], size: tuple[float, float], frame_hw: tuple[int, int]) -> Window | None:
    height, width = (min(int(side), whole_side) for side, whole_side in zip(size, frame_hw, strict=True))
    if height >= LARGEST_WINDOW_SHARE * frame_hw[0] and width >= LARGEST_WINDOW_SHARE * frame_hw[1]:
        return None
    if min(height, width) < 1:
        return None
    left = int(np.clip(center[0] - width / 2, 0, frame_hw[1] - width))
    top = int(np.clip(center[1] - height / 2, 0, frame_hw[0] - height))
    return Window(top, left, height, width)
