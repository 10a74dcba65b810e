"""One track and the boxes of one frame, as :mod:`stages.track.manager` keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.records import Detections, Track
from pipeline.core.state import State
from stages.track.gallery import Gallery
from stages.track.kalman import MotionState

Status = Literal["tentative", "confirmed", "lost"]


@dataclass(slots=True)
class TrackState:
    """One track.

    Attributes:
        track_id: Its id, never given to another track.
        category: Category of its first detection that has one.
        status: tentative (not shown yet), confirmed, or lost (matched by appearance only).
        motion: One Kalman filter, predicted to the time of the last step.
        gallery: Its last descriptors.
        embedding: float32 ``(C,)`` of its last detection, or None.
        score: Score of its last detection.
        seen_seconds: Time of its last detection.
        seen_xyxy: float32 ``(4,)``, box of its last detection.
        hits: Detections so far.
        age: Frames since it was started.
        missed: Frames since its last detection.
        innovation: float64 ``(4,)`` of the last filter update, in standard deviations; None after a new start.
    """

    track_id: int
    category: str
    status: Status
    motion: MotionState
    gallery: Gallery
    embedding: npt.NDArray[np.float32] | None
    score: float
    seen_seconds: float
    seen_xyxy: npt.NDArray[np.float32]
    hits: int = 1
    age: int = 0
    missed: int = 0
    innovation: npt.NDArray[np.float64] | None = None

    def remember(self, box: int, frame: FrameBoxes, seconds: float) -> None:
        """Keep the descriptor and the embedding of box number ``box``."""
        if frame.descriptors is not None:
            self.gallery.add(frame.descriptors[box], seconds)
        self.embedding = None if frame.embeddings is None else frame.embeddings[box]


class FrameBoxes:
    """The boxes of one frame and what is known about them.

    Args:
        found: N boxes.
        descriptors: float32 ``(N, D)`` of unit length, or None.
        embeddings: float32 ``(N, C)`` of unit length, or None.
        assigned_ids: int64 ``(N,)``, the id for a track started from the box; 0 for the next free one.
    """

    def __init__(
        self,
        found: Detections,
        descriptors: npt.NDArray[np.float32] | None,
        embeddings: npt.NDArray[np.float32] | None,
        assigned_ids: npt.NDArray[np.int64] | None,
    ) -> None:
        self.found = found
        self.descriptors = descriptors
        self.embeddings = embeddings
        self.assigned_ids = np.zeros(len(found), np.int64) if assigned_ids is None else assigned_ids

    def descriptors_of(self, boxes: list[int]) -> npt.NDArray[np.float32] | None:
        """Descriptors of some of the boxes, None without descriptors."""
        return None if self.descriptors is None else self.descriptors[boxes]


def to_track(state: TrackState, xyxy: npt.NDArray[np.floating], confidence: float = 1.0) -> Track:
    """The record that leaves the stage, with the track's box in this frame."""
    left, top, right, bottom = (float(value) for value in xyxy)
    return Track(
        track_id=state.track_id,
        xyxy=(left, top, right, bottom),
        score=state.score,
        category=state.category,
        embedding=state.embedding,
        age=state.age,
        time_since_update=max(state.missed, 0),
        confidence=confidence,
    )


def pack_tracks(tracks: Sequence[TrackState]) -> State:
    """The tracks as a few arrays, one row per track: a checkpoint's form. :func:`unpack_tracks` is the inverse."""
    sizes = [len(track.gallery.entries) for track in tracks]
    descriptors = [entry for track in tracks for entry in track.gallery.entries]
    no_innovation = np.full(4, np.nan)
    innovations = [no_innovation if track.innovation is None else track.innovation for track in tracks]
    embeddings = {
        str(n): np.array(track.embedding) for n, track in enumerate(tracks) if track.embedding is not None
    }
    return {
        "ids": np.array([track.track_id for track in tracks], np.int64),
        "counts": np.array([(t.hits, t.age, t.missed) for t in tracks], np.int64).reshape(-1, 3),
        "categories": [track.category for track in tracks],
        "status": [track.status for track in tracks],
        "scores": np.array([track.score for track in tracks], np.float64),
        "seen_seconds": np.array([track.seen_seconds for track in tracks], np.float64),
        "seen_xyxy": np.array([track.seen_xyxy for track in tracks], np.float32).reshape(-1, 4),
        "means": np.array([track.motion.mean[0] for track in tracks], np.float64).reshape(-1, 4, 2),
        "covariances": np.array([t.motion.covariance[0] for t in tracks], np.float64).reshape(-1, 4, 2, 2),
        "innovations": np.array(innovations, np.float64).reshape(-1, 4),
        "gallery_sizes": np.array(sizes, np.int64),
        "gallery_seconds": np.array([when for track in tracks for when in track.gallery.seconds], np.float64),
        "gallery": np.stack(descriptors) if descriptors else np.zeros((0, 0), np.float32),
        "embeddings": embeddings,
    }


def unpack_tracks(packed: State, *, gallery_size: int, gallery_redundant: float) -> list[TrackState]:
    """The tracks of :func:`pack_tracks`, bit for bit."""
    tracks: list[TrackState] = []
    end = 0
    for n, track_id in enumerate(packed["ids"].tolist()):
        start, end = end, end + int(packed["gallery_sizes"][n])
        hits, age, missed = packed["counts"][n].tolist()
        innovation = packed["innovations"][n].copy()
        tracks.append(
            TrackState(
                track_id=track_id,
                category=packed["categories"][n],
                status=packed["status"][n],
                motion=MotionState(packed["means"][n : n + 1].copy(), packed["covariances"][n : n + 1].copy()),
                gallery=Gallery(
                    gallery_size,
                    gallery_redundant,
                    [entry.copy() for entry in packed["gallery"][start:end]],
                    packed["gallery_seconds"][start:end].tolist(),
                ),
                embedding=packed["embeddings"].get(str(n)),
                score=float(packed["scores"][n]),
                seen_seconds=float(packed["seen_seconds"][n]),
                seen_xyxy=packed["seen_xyxy"][n].copy(),
                hits=hits,
                age=age,
                missed=missed,
                innovation=None if np.isnan(innovation).any() else innovation,
            )
        )
    return tracks
