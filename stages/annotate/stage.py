"""Stage: draws what the other stages found onto the frame.

Two layouts. ``overlay``: parts tinted, objects outlined, boxes with ids and trails, all on the frame.
``grid``: input, parts, objects and tracks in four panels. Sizes of lines and text follow the frame's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.colors import OBJECT_COLORS, PART_COLORS
from pipeline.core.records import LabelMap, Packet, PartMap
from pipeline.core.state import State
from stages.annotate.config import AnnotateConfig
from stages.annotate.drawing import caption, fit_panel, outline, tint
from stages.annotate.tracks import TrackLabels, Trails, line_thickness

Image = npt.NDArray[np.uint8]


class Annotator:
    """Sets ``Packet.annotated``. Keeps only the trails of the last ``trail_frames`` frames.

    Call :meth:`reset` before another video.

    Attributes:
        current_index: Index of the frame being worked on, or of the last one; None before the first.
    """

    def __init__(self, config: AnnotateConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.reset()

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Packets with ``annotated`` set: uint8 RGB of the frame's size."""
        for packet in packets:
            yield self.step(packet)

    def reset(self) -> None:
        """Forget the video."""
        self.current_index: int | None = None
        self._trails = Trails(self.config.trail_frames)
        self._labels: TrackLabels | None = None

    def step(self, packet: Packet) -> Packet:
        """The packet with ``annotated`` set: uint8 ``(H, W, 3)`` RGB of the frame's size.

        Raises:
            ValueError: The frame does not come after the last one.
        """
        if self.current_index is not None and packet.index <= self.current_index:
            raise ValueError(
                f"frame {packet.index} comes after frame {self.current_index}; call reset() before another video"
            )
        self.current_index = packet.index
        self._labels = self._labels or TrackLabels(packet.frame.image_hw)
        if self.config.layout == "grid":
            return replace(packet, annotated=self._grid(packet, self._labels))
        picture = self._objects(self._parts(packet.frame.image, packet.parts), packet.labels, packet.parts)
        return replace(packet, annotated=self._tracks(picture, packet, self._labels))

    def state(self) -> State:
        """Everything needed to go on with the next packet exactly as if nothing had happened."""
        return {"current_index": self.current_index, "trails": self._trails.state()}

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.reset()
        self.current_index = state["current_index"]
        self._trails.restore(state["trails"])

    def report(self) -> dict[str, Any]:
        """Nothing to report."""
        return {}

    def _parts(self, image: Image, parts: PartMap | None) -> Image:
        if parts is None:
            return image.copy()
        return tint(image, parts.index_mask, PART_COLORS, self.config.part_opacity)

    def _objects(self, image: Image, labels: LabelMap | None, parts: PartMap | None) -> Image:
        if labels is None:
            return image
        mask = labels.index_mask
        fill = mask if parts is None else cv2.copyTo(mask, cv2.compare(parts.index_mask, 0, cv2.CMP_EQ))
        picture = tint(image, fill, OBJECT_COLORS, self.config.object_opacity)
        if self.config.outline_objects:
            outline(picture, mask, OBJECT_COLORS, line_thickness(image.shape[:2]))
        return picture

    def _tracks(self, image: Image, packet: Packet, labels: TrackLabels) -> Image:
        """Draw the tracks seen in this frame onto ``image``, which is changed and returned."""
        shown = [track for track in packet.tracks or () if track.time_since_update == 0]
        self._trails.add(shown, packet.labels)
        if not shown:
            return image
        if self.config.trail_frames:
            self._trails.draw(image, shown, line_thickness(image.shape[:2]))
        return labels.draw(image, shown)

    def _grid(self, packet: Packet, labels: TrackLabels) -> Image:
        image = packet.frame.image
        panels = {
            "input": image,
            "parts": self._parts(image, packet.parts),
            "objects": self._objects(image.copy(), packet.labels, None),
            "tracks": self._tracks(image.copy(), packet, labels),
        }
        half = (image.shape[0] // 2, image.shape[1] // 2)
        tiles = []
        for name, panel in panels.items():
            tile = fit_panel(panel, half)
            caption(tile, name)
            tiles.append(tile)
        picture = np.zeros_like(image)
        picture[: 2 * half[0], : 2 * half[1]] = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
        return picture
