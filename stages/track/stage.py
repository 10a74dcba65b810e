"""Stage: boxes become tracks, by their appearance and by where they were expected.

Detections (from a file, a detector, or the propagated objects) get one descriptor each by ROIAlign over the
features and are matched to tracks by descriptor and by overlap with a motion-predicted box. The method is
tracking by instance retrieval with frozen features (Analyzing Local Representations of Self-supervised Vision
Transformers, 2024, section on object retrieval) inside the usual two-round association (ByteTrack, Zhang et al.
2022, https://arxiv.org/abs/2110.06864; BoT-SORT, Aharon et al. 2022, https://arxiv.org/abs/2206.14651).

Read on in :mod:`stages.track.descriptors` (what describes a box), :mod:`stages.track.manager` (the life of a
track), :mod:`stages.track.similarity` (what is compared) and :mod:`stages.track.kalman` (the motion model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import normalize_rows
from pipeline.core.records import Detections, Frame, Packet, Track
from pipeline.core.state import State, packet_from_state, packet_state
from stages.track.boxes import boxes_of_objects, clip_to_frame, matching_objects, unlabeled_boxes
from stages.track.config import TrackConfig
from stages.track.descriptors import describe_boxes
from stages.track.manager import TrackManager
from stages.track.objects import ObjectTracks

DetectionSource = Mapping[int, Detections] | Callable[[Frame], Detections]


@runtime_checkable
class FramesDetector(Protocol):
    """A detector that may take several frames at once."""

    batched: bool

    def detect_frames(self, frames: Sequence[Frame]) -> list[Detections]:
        """The boxes of each of several frames."""


class Tracker:
    """Follows boxes through the frames of one video. One pass, no look-ahead.

    Invariant: a track's id belongs to one object for ever. What is kept is bounded by the sizes in the config, not
    by the length of the video. Call :meth:`reset` before another video.

    Args:
        config: ``configs/tracking.yaml`` explains every field.
        detections: Boxes by frame index, or a function that finds them in a frame. Without it, and as long as
            :meth:`step` is given none, the boxes are those of the propagated objects, and a track's id is the
            object's.
        batch_size: Frames that a detector which takes several gets at once.

    Attributes:
        current_index: Index of the frame being worked on, or of the last one; None before the first.
    """

    def __init__(
        self, config: TrackConfig, *, detections: DetectionSource | None = None, batch_size: int = 1
    ) -> None:
        self.config = config
        self._detections = detections
        is_batched = isinstance(detections, FramesDetector) and detections.batched
        self._batch_size = batch_size if is_batched else 1
        self.reset()

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Add the tracks of each frame; every packet that goes in comes out, in order."""
        for packet in packets:
            self._waiting.append(packet)
            if len(self._waiting) >= self._batch_size:
                yield from self._step_waiting()
        yield from self._step_waiting()

    def reset(self) -> None:
        """Forget the video; the config and the source of detections stay."""
        self.current_index: int | None = None
        self._waiting: list[Packet] = []
        self._frames = 0
        self._boxes = 0
        self._best_score = -np.inf
        self._has_detections = self._detections is not None
        self._objects = ObjectTracks()
        self._manager = TrackManager(self.config.association)

    def step(self, packet: Packet, detections: Detections | None = None) -> Packet:
        """Track the boxes of the next frame.

        Args:
            packet: The frame with its features (without them boxes are matched by place only) and its propagated
                objects, if any.
            detections: The boxes of this frame; None takes those of the source given to the constructor. Once
                detections have been given, a frame without any has no boxes.

        Returns:
            The packet with ``tracks``.

        Raises:
            ValueError: The frame does not come after the last one.
            ConfigError: The features do not hold ``track.facet``.
        """
        if self.current_index is not None and packet.index <= self.current_index:
            raise ValueError(
                f"frame {packet.index} comes after frame {self.current_index}; call reset() before another video"
            )
        self.current_index = packet.index
        self._frames += 1
        self._has_detections = self._has_detections or detections is not None
        found = clip_to_frame(self._boxes_in(packet, detections), packet.frame.image_hw)
        self._boxes += len(found)
        if not self._has_detections:
            return replace(packet, tracks=self._objects.step(found, self._describe(packet, found)[1]))
        self._best_score = max(self._best_score, float(found.scores.max(initial=-np.inf)))
        return replace(packet, tracks=self._associate(packet, found))

    def state(self) -> State:
        """Everything needed to go on with the next packet exactly as if nothing had happened."""
        return {
            "current_index": self.current_index,
            "waiting": [packet_state(packet) for packet in self._waiting],
            "devices": [_device(packet) for packet in self._waiting],
            "frames": self._frames,
            "boxes": self._boxes,
            "best_score": None if np.isinf(self._best_score) else self._best_score,
            "has_detections": self._has_detections,
            "objects": self._objects.state(),
            "manager": self._manager.state(),
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`, made by a tracker with the same config."""
        self.reset()
        self.current_index = state["current_index"]
        self._waiting = [
            packet_from_state(packet, device)
            for packet, device in zip(state["waiting"], state["devices"], strict=True)
        ]
        self._frames, self._boxes = state["frames"], state["boxes"]
        self._best_score = -np.inf if state["best_score"] is None else state["best_score"]
        self._has_detections = state["has_detections"]
        self._objects.restore(state["objects"])
        self._manager.restore(state["manager"])

    @property
    def warnings(self) -> list[str]:
        """What the user should know, one line each."""
        minimum = self.config.association.min_score
        if not self._has_detections or not self._boxes or self._best_score >= minimum:
            return []
        return [
            f"all {self._boxes} detections score below track.association.min_score = {minimum:g} (the best has "
            f"{self._best_score:.3g}), so nothing was tracked; lower min_score, high_score and start_score"
        ]

    def report(self) -> dict[str, Any]:
        """Counts for ``run.json``."""
        return {
            "frames": self._frames,
            "detections": self._boxes,
            "tracks": self._objects.num_tracks + self._manager.num_tracks,
            "returns": self._manager.num_returns,
        }

    def _step_waiting(self) -> Iterator[Packet]:
        packets, self._waiting = self._waiting, []
        if len(packets) == 1 or not isinstance(self._detections, FramesDetector):
            yield from (self.step(packet) for packet in packets)
        elif packets:
            found = self._detections.detect_frames([packet.frame for packet in packets])
            yield from (self.step(packet, own) for packet, own in zip(packets, found, strict=True))

    def _boxes_in(self, packet: Packet, detections: Detections | None) -> Detections:
        if detections is not None:
            return detections
        if callable(self._detections):
            return self._detections(packet.frame)
        if self._detections is not None:
            return self._detections.get(packet.index, Detections.empty())
        if self._has_detections or packet.labels is None:
            return Detections.empty()
        return boxes_of_objects(packet.labels)

    def _associate(self, packet: Packet, found: Detections) -> tuple[Track, ...]:
        """Match detections to tracks; a track started from a box that shows an object gets the object's id."""
        assigned_ids = None
        if packet.labels is not None:
            self._manager.reserve_object_ids()
            assigned_ids = matching_objects(found, packet.labels)
        descriptors, embeddings = self._describe(packet, found)
        return self._manager.step(
            found,
            descriptors,
            embeddings,
            packet.frame.pts_seconds,
            packet.frame.image_hw,
            assigned_ids=assigned_ids,
            describe=lambda xyxy: self._describe(packet, unlabeled_boxes(xyxy))[0],
        )

    def _describe(
        self, packet: Packet, found: Detections
    ) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
        """Unit descriptors for matching ``(N, C * bins * bins)``, and embeddings ``(N, C)`` if asked for."""
        config = self.config
        if packet.features is None or not (self._has_detections or config.embeddings):
            return None, None
        values = describe_boxes(
            packet.features, packet.labels, found, config.roi, config.facet, center=config.center
        )
        # The size is spelled out because -1 is ambiguous for a frame without boxes.
        flat = values.reshape(len(found), int(np.prod(values.shape[1:])))
        embeddings = normalize_rows(values.mean(axis=(2, 3))) if config.embeddings else None
        return normalize_rows(flat), embeddings


def _device(packet: Packet) -> str:
    return "cpu" if packet.features is None else str(packet.features.data.device)
