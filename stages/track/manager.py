"""The tracks of one video: match the boxes of a frame to them, start, lose, re-identify and forget tracks.

Invariant of :class:`TrackManager`: an id is given once and belongs to one object for ever. A track is tentative
(not shown yet), confirmed, or lost (matched by appearance only), and is forgotten after that. At most ``max_lost``
lost tracks with ``gallery_size`` descriptors each are kept, so the state does not grow with time.

Sources: two rounds, high-score boxes before low-score ones, as in ByteTrack (Zhang et al. 2022, section 3,
https://arxiv.org/abs/2110.06864).

Differs from the reference: times are in seconds and noise grows with them; a track without a detection is shown at
its predicted place for a moment, and only while the features there are similar to it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_iou
from pipeline.core.records import Detections, Track
from pipeline.core.state import State
from stages.track import kalman
from stages.track.association import assign
from stages.track.coasting import Describe, may_coast, still_visible
from stages.track.config import AssociationConfig
from stages.track.gallery import Gallery
from stages.track.kalman import AdaptiveNoise
from stages.track.similarity import Similarity
from stages.track.track_state import FrameBoxes, Status, TrackState, pack_tracks, to_track, unpack_tracks

FIRST_FREE_ID = 256
"""Ids below belong to propagated objects, whose index masks are uint8."""


class TrackManager:
    """All tracks of one video.

    Args:
        config: The rules.
        first_id: The smallest id to give to a track that has no assigned id.
    """

    def __init__(self, config: AssociationConfig, *, first_id: int = 1) -> None:
        self.config = config
        self.num_tracks = 0
        self.num_returns = 0
        self._similarity = Similarity(config)
        self._adaptive_noise = AdaptiveNoise(config.noise_adaptation_rate, config.noise_adaptation_limit)
        self._next_id = first_id
        self._used_object_ids: set[int] = set()
        self._tracks: list[TrackState] = []
        self._seconds: float | None = None

    def step(
        self,
        found: Detections,
        descriptors: npt.NDArray[np.float32] | None,
        embeddings: npt.NDArray[np.float32] | None,
        seconds: float,
        image_hw: tuple[int, int],
        *,
        assigned_ids: npt.NDArray[np.int64] | None = None,
        describe: Describe | None = None,
    ) -> tuple[Track, ...]:
        """Take the boxes of the next frame.

        Args:
            found: The boxes.
            descriptors: float32 ``(N, D)``, unit length, for matching; None matches by place only.
            embeddings: float32 ``(N, C)``, passed on in ``Track.embedding``.
            seconds: Time of the frame; not before that of the last frame.
            image_hw: Size of the frame in pixels.
            assigned_ids: int64 ``(N,)``, the id for a track started from the box; 0 for the next free one.
            describe: Gives descriptors of other boxes of this frame, to check the predicted place of a track.

        Returns:
            The tracks to show in this frame, by id.

        Raises:
            ValueError: The frame lies before the last one.
        """
        frame = FrameBoxes(found, descriptors, embeddings, assigned_ids)
        self._advance(seconds)
        self._similarity.observe(frame)
        unmatched = self._match(frame, seconds)
        self._start(frame, unmatched, seconds)
        self._retire(seconds)
        return self._shown(seconds, image_hw, describe)

    def reserve_object_ids(self) -> None:
        """Give no more ids that a propagated object can have."""
        self._next_id = max(self._next_id, FIRST_FREE_ID)

    def state(self) -> State:
        """Everything needed to go on exactly as if nothing had happened."""
        return {
            "num_tracks": self.num_tracks,
            "num_returns": self.num_returns,
            "next_id": self._next_id,
            "used_object_ids": sorted(self._used_object_ids),
            "seconds": self._seconds,
            "different_cosine": self._similarity.different_cosine,
            "noise_log_factor": self._adaptive_noise.log_factor.copy(),
            "tracks": pack_tracks(self._tracks),
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.num_tracks, self.num_returns = state["num_tracks"], state["num_returns"]
        self._next_id, self._seconds = state["next_id"], state["seconds"]
        self._used_object_ids = set(state["used_object_ids"])
        self._similarity.different_cosine = state["different_cosine"]
        self._adaptive_noise.log_factor = state["noise_log_factor"].copy()
        self._tracks = unpack_tracks(
            state["tracks"],
            gallery_size=self.config.gallery_size,
            gallery_redundant=self.config.gallery_redundant,
        )

    def _advance(self, seconds: float) -> None:
        """Predict all tracks that are not lost to ``seconds``."""
        elapsed = 0.0 if self._seconds is None else seconds - self._seconds
        if elapsed < 0:
            raise ValueError(f"frames must come in order of time, got {seconds} s after {self._seconds} s")
        self._seconds = seconds
        noise = self._adaptive_noise.applied(self.config.noise)
        for track in self._tracks:
            track.age += 1
            track.missed += 1
            if track.status != "lost":
                track.motion = kalman.predict(track.motion, elapsed, noise)

    def _match(self, frame: FrameBoxes, seconds: float) -> list[int]:
        """The rounds of matching; returns the high-score boxes that stay unmatched."""
        config, scores = self.config, frame.found.scores
        high = np.flatnonzero(scores >= config.high_score).tolist()
        low = np.flatnonzero((scores >= config.min_score) & (scores < config.high_score)).tolist()
        confirmed, tentative, lost = (self._with_status(s) for s in ("confirmed", "tentative", "lost"))
        high, missing = self._round(confirmed, high, frame, seconds, config.min_similarity)
        _, missing = self._round(missing, low, frame, seconds, config.min_similarity_low)
        high, _ = self._round(tentative, high, frame, seconds, config.min_similarity)
        return self._reidentify([*missing, *lost], high, frame, seconds)

    def _with_status(self, status: str) -> list[TrackState]:
        return [track for track in self._tracks if track.status == status]

    def _round(
        self, tracks: list[TrackState], boxes: list[int], frame: FrameBoxes, seconds: float, minimum: float
    ) -> tuple[list[int], list[TrackState]]:
        """Match by place and appearance; returns the boxes and the tracks that stay unmatched."""
        if not tracks or not boxes:
            return boxes, tracks
        pairs = assign(self._similarity.by_place_and_appearance(tracks, boxes, frame, seconds), minimum)
        for row, column in pairs:
            self._continue(tracks[row], boxes[column], frame, seconds)
        rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
        return (
            [box for n, box in enumerate(boxes) if n not in columns],
            [track for n, track in enumerate(tracks) if n not in rows],
        )

    def _reidentify(
        self, tracks: list[TrackState], boxes: list[int], frame: FrameBoxes, seconds: float
    ) -> list[int]:
        """Match by appearance alone, wherever the boxes are; returns the boxes that stay unmatched."""
        if not tracks or not boxes or frame.descriptors is None:
            return boxes
        similarity = self._similarity.by_appearance(tracks, boxes, frame, seconds)
        pairs = assign(similarity, self.config.min_similarity_lost)
        for row, column in pairs:
            self._restart(tracks[row], boxes[column], frame, seconds)
        columns = {column for _, column in pairs}
        return [box for n, box in enumerate(boxes) if n not in columns]

    def _continue(self, track: TrackState, box: int, frame: FrameBoxes, seconds: float) -> None:
        """Update ``track`` with a box near its predicted place."""
        xyxy = frame.found.xyxy[box : box + 1]
        track.motion, innovations = kalman.update(track.motion, xyxy, self.config.noise)
        if track.innovation is not None and track.missed == 1:
            self._adaptive_noise.update(track.innovation, innovations[0])
        track.innovation = innovations[0]
        self._take(track, box, frame, seconds)

    def _restart(self, track: TrackState, box: int, frame: FrameBoxes, seconds: float) -> None:
        """Continue ``track`` at a box that was matched by appearance: its motion starts anew."""
        self.num_returns += 1
        track.motion = kalman.initiate(frame.found.xyxy[box : box + 1], self.config.noise)
        track.status = "confirmed"
        track.innovation = None
        self._take(track, box, frame, seconds)

    def _take(self, track: TrackState, box: int, frame: FrameBoxes, seconds: float) -> None:
        found = frame.found
        track.hits += 1
        track.missed = 0
        track.seen_seconds, track.seen_xyxy = seconds, found.xyxy[box]
        track.score = float(found.scores[box])
        track.category = track.category or found.categories[box]
        track.remember(box, frame, seconds)
        if track.hits >= self.config.confirm_hits:
            track.status = "confirmed"

    def _start(self, frame: FrameBoxes, boxes: list[int], seconds: float) -> None:
        """New tracks from unmatched boxes, except duplicates of a box that a track has just taken."""
        config, found = self.config, frame.found
        taken = [track.motion.xyxy for track in self._tracks if track.missed == 0]
        for box in boxes:
            xyxy = found.xyxy[box : box + 1]
            duplicate = bool(taken) and float(box_iou(np.concatenate(taken), xyxy).max()) >= config.duplicate_iou
            if found.scores[box] < config.start_score or duplicate:
                continue
            confirmed = config.confirm_hits <= 1 or found.scores[box] >= config.confirm_score
            track_id = self._new_id(int(frame.assigned_ids[box]))
            track = self._new_track(track_id, "confirmed" if confirmed else "tentative", found, box, seconds)
            track.remember(box, frame, seconds)
            taken.append(track.motion.xyxy)

    def _new_track(self, track_id: int, status: Status, found: Detections, box: int, seconds: float) -> TrackState:
        track = TrackState(
            track_id,
            found.categories[box],
            status,
            kalman.initiate(found.xyxy[box : box + 1], self.config.noise),
            Gallery(self.config.gallery_size, self.config.gallery_redundant),
            None,
            float(found.scores[box]),
            seconds,
            found.xyxy[box],
        )
        self._tracks.append(track)
        return track

    def _new_id(self, assigned: int) -> int:
        """The assigned id if no track has had it, else the next free one."""
        self.num_tracks += 1
        if assigned == 0 or assigned in self._used_object_ids:
            while self._next_id in self._used_object_ids:
                self._next_id += 1
            assigned = self._next_id
            self._next_id += 1
        if assigned < FIRST_FREE_ID:
            self._used_object_ids.add(assigned)
        return assigned

    def _retire(self, seconds: float) -> None:
        """Tracks unseen for too long become lost, then are forgotten."""
        config = self.config
        kept: list[TrackState] = []
        for track in self._tracks:
            unseen = seconds - track.seen_seconds
            if track.status == "tentative" and unseen > config.tentative_age_seconds:
                continue
            if track.status == "confirmed" and unseen > config.max_age_seconds:
                track.status = "lost"
            if unseen <= config.max_age_seconds + config.memory_seconds:
                kept.append(track)
        lost = sorted((t for t in kept if t.status == "lost"), key=lambda t: t.seen_seconds)
        dropped = {t.track_id for t in lost[: max(len(lost) - config.max_lost, 0)]}
        self._tracks = [track for track in kept if track.track_id not in dropped]

    def _shown(self, seconds: float, image_hw: tuple[int, int], describe: Describe | None) -> tuple[Track, ...]:
        """Confirmed tracks seen in this frame, and those that coast."""
        seen = [t for t in self._tracks if t.status == "confirmed" and t.missed == 0]
        missing = [track for track in self._tracks if may_coast(track, seconds, self.config)]
        coasting = still_visible(missing, self._similarity, seconds, image_hw, describe)
        height, width = image_hw
        limit = np.array([width, height, width, height], np.float64)
        shown = [to_track(t, np.clip(t.motion.xyxy[0], 0, limit)) for t in (*seen, *coasting)]
        return tuple(sorted(shown, key=lambda track: track.track_id))
