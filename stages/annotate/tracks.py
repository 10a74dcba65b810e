"""Drawing of tracks: a box with a label per track, and the trail behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv

from pipeline.core.colors import OBJECT_COLORS
from pipeline.core.records import LabelMap, Track
from pipeline.core.state import State
from stages.annotate.anchors import SmoothPoint, track_anchors

Image = npt.NDArray[np.uint8]


def line_thickness(image_hw: tuple[int, ...]) -> int:
    """Thickness in pixels of lines that are legible at this size: 2 at 360 and 480 rows, 6 at 2160."""
    return max(2, round(min(image_hw[:2]) / 360))


def color_rows(track_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows of the color table for track ids; ids up to 255 have their object's color.

    >>> color_rows(np.array([1, 255, 256])).tolist()
    [1, 255, 1]
    """
    return (track_ids - 1) % 255 + 1


class Trails:
    """The smoothed positions of every track in the last ``num_frames`` frames.

    Args:
        num_frames: Length of a trail; 0 keeps none.
    """

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._frame = 0
        self._points: dict[int, deque[tuple[int, float, float]]] = {}
        self._smooth: dict[int, SmoothPoint] = {}

    def add(self, tracks: Sequence[Track], labels: LabelMap | None = None) -> None:
        """Take the tracks of the next frame and forget what is older than ``num_frames`` frames.

        Args:
            tracks: Those seen in the frame.
            labels: The objects' masks; a track that comes from one follows its centroid.
        """
        self._frame += 1
        if not self._num_frames:
            return
        for track, anchor in zip(tracks, track_anchors(tracks, labels), strict=True):
            smooth = self._smooth.get(track.track_id)
            if smooth is None:
                smooth = self._smooth[track.track_id] = SmoothPoint(self._frame, *anchor)
            else:
                smooth.follow(self._frame, anchor)
            points = self._points.setdefault(track.track_id, deque())
            points.append((self._frame, smooth.x, smooth.y))
        oldest = self._frame - self._num_frames + 1
        for points in self._points.values():
            while points and points[0][0] < oldest:
                points.popleft()
        self._points = {track_id: points for track_id, points in self._points.items() if points}
        self._smooth = {track_id: smooth for track_id, smooth in self._smooth.items() if track_id in self._points}

    def of(self, track_id: int) -> npt.NDArray[np.float64]:
        """The trail of a track in pixels ``(N, 2)``, oldest first."""
        points = self._points.get(track_id, ())
        return np.array([(x, y) for _, x, y in points], np.float64).reshape(-1, 2)

    def draw(self, image: Image, tracks: Sequence[Track], thickness_px: int) -> None:
        """Draw the trails of the tracks shown; in place."""
        rows = color_rows(np.array([track.track_id for track in tracks], np.int64))
        for track, row in zip(tracks, rows.tolist(), strict=True):
            points = self.of(track.track_id)
            if len(points) > 1:
                color = tuple(int(value) for value in OBJECT_COLORS[row])
                cv2.polylines(image, [points.astype(np.int32)], False, color, thickness_px)

    def state(self) -> State:
        """Everything needed to go on."""
        rows = [(track_id, *point) for track_id, points in self._points.items() for point in points]
        smooth = [(track_id, *point.as_row()) for track_id, point in self._smooth.items()]
        return {
            "frame": self._frame,
            "points": np.array(rows, np.float64).reshape(-1, 4),
            "smooth": np.array(smooth, np.float64).reshape(-1, 7),
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self._frame = state["frame"]
        self._points = {}
        for track_id, frame, x, y in state["points"].tolist():
            self._points.setdefault(int(track_id), deque()).append((int(frame), x, y))
        self._smooth = {int(row[0]): SmoothPoint.from_row(row[1:]) for row in state["smooth"].tolist()}


class TrackLabels:
    """Boxes and labels of tracks by supervision's annotators, sized for one frame size."""

    def __init__(self, image_hw: tuple[int, int]) -> None:
        thickness = line_thickness(image_hw)
        # supervision draws on BGR images and ours are RGB, so its colors are given in reverse order.
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

    def draw(self, image: Image, tracks: Sequence[Track]) -> Image:
        """Draw the tracks onto ``image``, which is changed and returned."""
        ids = np.array([track.track_id for track in tracks], np.int64)
        detections = sv.Detections(
            xyxy=np.array([track.xyxy for track in tracks], np.float32),
            tracker_id=ids,
            class_id=np.zeros(len(tracks), int),
        )
        rows = color_rows(ids)
        image = self._box.annotate(image, detections, custom_color_lookup=rows)
        labels = [track_label(track) for track in tracks]
        image = self._label.annotate(image, detections, labels=labels, custom_color_lookup=rows)
        return np.asarray(image, dtype=np.uint8)


def track_label(track: Track) -> str:
    """The text beside a track: its id, its category if that is a name, its confidence if below 1.

    >>> track_label(Track(7, (0, 0, 1, 1), 0.9, category="car", confidence=0.5))
    '#7 car 0.50'
    """
    text = f"#{track.track_id}"
    if track.category and not track.category.lstrip("-").isdigit():
        text += f" {track.category}"
    return text if track.confidence >= 0.995 else f"{text} {track.confidence:.2f}"
