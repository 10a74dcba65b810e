"""Annotate: draws what the other stages found onto the frame.

Two layouts. ``overlay``: parts tinted, objects outlined, boxes with ids and trails, all on the frame.
``grid``: input, parts, objects and tracks in four panels. Sizes of lines and text follow the frame's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import supervision as sv
from pydantic import Field

from pipeline.core.colors import OBJECT_COLORS, PART_COLORS
from pipeline.core.config import StrictModel
from pipeline.core.records import LabelMap, Packet, PartMap, Track
from stages.annotate.drawing import caption, fit_panel, outline, tint

Image = npt.NDArray[np.uint8]


class AnnotateConfig(StrictModel):
    """What is drawn; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    layout: Literal["overlay", "grid"] = "overlay"
    part_opacity: float = Field(0.45, ge=0, le=1)
    object_opacity: float = Field(0.30, ge=0, le=1)
    outline_objects: bool = True
    trail_frames: int = Field(30, ge=0)


class Annotator:
    """Sets ``Packet.annotated``. Keeps only the trails of the last ``trail_frames`` frames; use once a video."""

    def __init__(self, config: AnnotateConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._tracks: _TrackDrawer | None = None

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Packets with ``annotated`` set: uint8 RGB of the frame's size."""
        for packet in packets:
            yield replace(packet, annotated=self.draw(packet))

    def draw(self, packet: Packet) -> Image:
        """The annotated picture of one packet; call it in the order of the frames."""
        image = packet.frame.image
        if self._tracks is None:
            self._tracks = _TrackDrawer(packet.frame.image_hw, self.config.trail_frames)
        if self.config.layout == "grid":
            return self._grid(packet)
        picture = self._objects(self._parts(image, packet.parts), packet.labels, packet.parts)
        return self._tracks.draw(picture, packet.tracks or ())

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
        fill = mask if parts is None else np.where(parts.index_mask > 0, 0, mask).astype(np.uint8)
        picture = tint(image, fill, OBJECT_COLORS, self.config.object_opacity)
        if self.config.outline_objects:
            outline(picture, mask, OBJECT_COLORS, line_thickness(image.shape[:2]))
        return picture

    def _grid(self, packet: Packet) -> Image:
        assert self._tracks is not None
        image = packet.frame.image
        panels = {
            "input": image,
            "parts": self._parts(image, packet.parts),
            "objects": self._objects(image.copy(), packet.labels, None),
            "tracks": self._tracks.draw(image.copy(), packet.tracks or ()),
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


def line_thickness(image_hw: tuple[int, ...]) -> int:
    """Thickness in pixels of lines that are legible at this size: 2 at 360 and 480 rows, 6 at 2160."""
    return max(2, round(min(image_hw[:2]) / 360))


class _TrackDrawer:
    """Boxes, ids and trails with supervision's annotators, coloured by track id."""

    def __init__(self, image_hw: tuple[int, int], trail_frames: int) -> None:
        thickness = line_thickness(image_hw)
        # supervision draws on BGR pictures; ours are RGB, so its colours go in backwards.
        palette = sv.ColorPalette([sv.Color(*(int(c) for c in row[::-1])) for row in OBJECT_COLORS])
        lookup = sv.ColorLookup.INDEX
        self._box = sv.BoxAnnotator(color=palette, thickness=thickness, color_lookup=lookup)
        self._label = sv.LabelAnnotator(
            color=palette,
            text_color=sv.Color.BLACK,
            text_scale=max(0.45, min(image_hw) / 900),
            text_thickness=max(1, round(min(image_hw) / 700)),
            text_padding=max(3, thickness * 2),
            color_lookup=lookup,
            smart_position=True,
        )
        self._trail = (
            sv.TraceAnnotator(color=palette, thickness=thickness, trace_length=trail_frames, color_lookup=lookup)
            if trail_frames
            else None
        )

    def draw(self, image: Image, tracks: Iterable[Track]) -> Image:
        """Draw the tracks onto ``image``, which is changed and returned."""
        shown = [track for track in tracks if track.time_since_update == 0]
        if not shown:
            return image
        ids = np.array([track.track_id for track in shown])
        detections = sv.Detections(
            xyxy=np.array([track.xyxy for track in shown], dtype=np.float32),
            tracker_id=ids,
            class_id=np.zeros(len(shown), dtype=int),
        )
        colours = (ids - 1) % 255 + 1
        labels = [_label(track) for track in shown]
        if self._trail is not None:
            image = self._trail.annotate(image, detections, custom_color_lookup=colours)
        image = self._box.annotate(image, detections, custom_color_lookup=colours)
        image = self._label.annotate(image, detections, labels=labels, custom_color_lookup=colours)
        return np.asarray(image, dtype=np.uint8)


def _label(track: Track) -> str:
    text = f"#{track.track_id}"
    if track.category and not track.category.lstrip("-").isdigit():
        text += f" {track.category}"
    return text if track.confidence >= 0.995 else f"{text} {track.confidence:.2f}"
