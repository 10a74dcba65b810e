"""Tracks of propagated objects, which need no association: a track is an object's box under the object's id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.records import Detections, Track
from pipeline.core.state import State


class ObjectTracks:
    """Turns the boxes of propagated objects into tracks. State: the first frame of each object, at most 255."""

    def __init__(self) -> None:
        self._frames = 0
        self._started: dict[int, int] = {}

    @property
    def num_tracks(self) -> int:
        """Objects seen so far."""
        return len(self._started)

    def step(self, found: Detections, embeddings: npt.NDArray[np.float32] | None) -> tuple[Track, ...]:
        """The tracks of the next frame, by id.

        Args:
            found: Boxes whose ``object_ids`` are the track ids and whose scores are the confidences of the masks.
            embeddings: float32 ``(N, C)``, passed on in ``Track.embedding``.
        """
        tracks = []
        for n, object_id in enumerate(found.object_ids.tolist()):
            started = self._started.setdefault(object_id, self._frames)
            left, top, right, bottom = found.xyxy[n].tolist()
            tracks.append(
                Track(
                    track_id=object_id,
                    xyxy=(left, top, right, bottom),
                    score=float(found.scores[n]),
                    embedding=None if embeddings is None else embeddings[n],
                    age=self._frames - started,
                    confidence=float(found.scores[n]),
                )
            )
        self._frames += 1
        return tuple(sorted(tracks, key=lambda track: track.track_id))

    def state(self) -> State:
        """Everything needed to go on."""
        return {"frames": self._frames, "started": {str(key): frame for key, frame in self._started.items()}}

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self._frames = state["frames"]
        self._started = {int(key): frame for key, frame in state["started"].items()}
