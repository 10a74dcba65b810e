"""The tracks of a video: matching a frame's boxes to them, births, losses and returns.

Invariant of :class:`TrackBook`: an id is given once and belongs to one object for ever; a track is tentative (not
shown yet), confirmed, or lost (no longer expected anywhere, it returns by its looks alone), and forgotten after
that. At most ``max_lost`` lost tracks of ``gallery_size`` descriptors are kept, so the state does not grow with
time.

Sources: two rounds, sure boxes before weak ones, as in ByteTrack (Zhang et al. 2022, section 3); overlap and
appearance in one cost as in BoT-SORT (Aharon et al. 2022, section 3.3).

Differs from the reference: times are in seconds and noise grows with them; cosines are read against how alike
*different* objects of this video look, measured between the boxes of one frame, so that one setting fits facets
and backbones whose cosines live on different scales; a track that misses its box for a moment is shown at its
predicted place only while the features there still look like it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_areas, box_intersection, box_iou
from pipeline.core.records import Detections, Track
from stages.track import kalman
from stages.track.association import FORBIDDEN, assign, same_category, widen
from stages.track.config import AssociationConfig
from stages.track.entry import Entry, FrameBoxes, show
from stages.track.gallery import Gallery, appearance
from stages.track.kalman import Restlessness

Describe = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]


class TrackBook:
    """All tracks of one video and the rules by which they live.

    Args:
        config: The rules.
        first_id: The smallest id to give out.
    """

    def __init__(self, config: AssociationConfig, *, first_id: int = 1) -> None:
        self.config = config
        self.num_tracks = 0
        self.num_returns = 0
        self._restlessness = Restlessness(config.restlessness_rate, config.restlessness_limit)
        self._next_id = first_id
        self._used: set[int] = set()
        self._entries: list[Entry] = []
        self._seconds: float | None = None
        self._unlike = config.unlike_cosine

    def step(
        self,
        found: Detections,
        descriptors: npt.NDArray[np.float32] | None,
        summary: npt.NDArray[np.float32] | None,
        seconds: float,
        image_hw: tuple[int, int],
        *,
        claims: npt.NDArray[np.int64] | None = None,
        describe: Describe | None = None,
    ) -> tuple[Track, ...]:
        """Take the boxes of the next frame.

        Args:
            found: The boxes.
            descriptors: float32 ``(N, D)``, unit length, what boxes are compared by; None compares by place only.
            summary: float32 ``(N, C)``, what a track shows as its embedding.
            seconds: The frame's time; not before the last one's.
            image_hw: The frame's size in pixels.
            claims: ``(N,)``, the id a track born from the box should get; 0 for the next free one.
            describe: Gives descriptors for other boxes of this frame, to look where a missing track should be.

        Returns:
            The tracks to show in this frame, by id.
        """
        frame = FrameBoxes(found, descriptors, summary, claims)
        self._advance(seconds)
        self._measure_unlike(frame)
        free = self._match(frame, seconds)
        self._bear(frame, free, seconds)
        self._retire(seconds)
        return self._shown(seconds, image_hw, describe)

    def follow(
        self, found: Detections, summary: npt.NDArray[np.float32] | None, seconds: float
    ) -> tuple[Track, ...]:
        """Take boxes whose ``object_ids`` say which track they are: no matching, the id is the object's."""
        known = {entry.track_id: entry for entry in self._entries}
        shown = []
        for n, object_id in enumerate(found.object_ids.tolist()):
            motion = kalman.initiate(found.xyxy[n : n + 1], self.config.noise)
            entry = known.get(object_id)
            if entry is None:
                entry = Entry(
                    object_id, "", "confirmed", motion, self._gallery(), None, 0.0, seconds, found.xyxy[n]
                )
                self._entries.append(entry)
                self.num_tracks += 1
            entry.motion, entry.score, entry.seen_seconds, entry.missed = (
                motion,
                float(found.scores[n]),
                seconds,
                -1,
            )
            entry.summary = None if summary is None else summary[n]
            shown.append(show(entry, found.xyxy[n], confidence=float(found.scores[n])))
        for entry in self._entries:
            entry.age += 1
            entry.missed += 1
        return tuple(sorted(shown, key=lambda track: track.track_id))

    def _gallery(self) -> Gallery:
        return Gallery(self.config.gallery_size, self.config.gallery_redundant)

    def _advance(self, seconds: float) -> None:
        """Predict every track that is expected somewhere to ``seconds``."""
        elapsed = 0.0 if self._seconds is None else seconds - self._seconds
        if elapsed < 0:
            raise ValueError(f"frames must come in order of time, got {seconds} s after {self._seconds} s")
        self._seconds = seconds
        noise = self._restlessness.applied(self.config.noise)
        for entry in self._entries:
            entry.age += 1
            entry.missed += 1
            if entry.state != "lost":
                entry.motion = kalman.predict(entry.motion, elapsed, noise)

    def _measure_unlike(self, frame: FrameBoxes) -> None:
        """Follow the cosine of different objects: that of boxes of one frame that hardly overlap."""
        if frame.descriptors is None or len(frame.found) < 2:
            return
        apart = np.triu(box_iou(frame.found.xyxy, frame.found.xyxy) < 0.1, 1)
        apart &= (frame.found.scores >= self.config.sure_score)[:, None]
        if apart.any():
            typical = float(np.median((frame.descriptors @ frame.descriptors.T)[apart]))
            self._unlike += 0.1 * (typical - self._unlike)

    def _match(self, frame: FrameBoxes, seconds: float) -> list[int]:
        """The rounds of matching; returns the boxes left over, sure ones only."""
        config = self.config
        scores = frame.found.scores
        sure = np.flatnonzero(scores >= config.sure_score).tolist()
        weak = np.flatnonzero((scores >= config.min_score) & (scores < config.sure_score)).tolist()
        pools = {
            state: [e for e in self._entries if e.state == state] for state in ("confirmed", "tentative", "lost")
        }
        sure, waiting = self._round(pools["confirmed"], sure, frame, seconds, config.min_similarity)
        _, waiting = self._round(waiting, weak, frame, seconds, config.min_similarity_weak)
        sure, _ = self._round(pools["tentative"], sure, frame, seconds, config.min_similarity)
        absent = [*waiting, *pools["lost"]]
        sure, _ = self._round(absent, sure, frame, seconds, config.min_similarity_return, by_place=False)
        return sure

    def _round(
        self,
        entries: list[Entry],
        boxes: list[int],
        frame: FrameBoxes,
        seconds: float,
        minimum: float,
        *,
        by_place: bool = True,
    ) -> tuple[list[int], list[Entry]]:
        """Match ``boxes`` to ``entries``; returns the boxes and the entries that stay unmatched."""
        if not entries or not boxes:
            return boxes, entries
        if frame.descriptors is None and not by_place:
            return boxes, entries
        similarity = self._similarity(entries, boxes, frame, seconds, by_place=by_place)
        pairs = assign(similarity, minimum)
        for row, column in pairs:
            self._continue(entries[row], boxes[column], frame, seconds, moved=not by_place)
        rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
        return (
            [box for n, box in enumerate(boxes) if n not in columns],
            [entry for n, entry in enumerate(entries) if n not in rows],
        )

    def _similarity(
        self, entries: list[Entry], boxes: list[int], frame: FrameBoxes, seconds: float, *, by_place: bool
    ) -> npt.NDArray[np.float64]:
        """Similarity ``(entries, boxes)`` in [0, 1], :data:`FORBIDDEN` where a pair is impossible."""
        config = self.config
        categories = [frame.found.categories[n] for n in boxes]
        allowed = same_category([entry.category for entry in entries], categories)
        likeness = self._likeness([entry.gallery for entry in entries], frame.take(boxes), seconds)
        if not by_place:
            assert likeness is not None
            return np.where(allowed, likeness, FORBIDDEN)
        predicted = np.concatenate([entry.motion.xyxy for entry in entries])
        last_seen = np.stack([entry.seen_xyxy for entry in entries])
        seen = widen(frame.found.xyxy[boxes], config.widen)
        # The last place as well as the predicted one: at a few frames a second a velocity is a guess.
        overlap = np.maximum(
            box_iou(widen(predicted, config.widen), seen), box_iou(widen(last_seen, config.widen), seen)
        )
        allowed &= overlap > 0
        total = overlap
        if likeness is not None:
            total = config.appearance_weight * likeness + (1 - config.appearance_weight) * overlap
        return np.where(allowed, total, FORBIDDEN)

    def _likeness(
        self, galleries: list[Gallery], descriptors: npt.NDArray[np.float32] | None, seconds: float
    ) -> npt.NDArray[np.float64] | None:
        """Cosines rescaled so that different objects are at 0 and a perfect match is at 1, ``(N, M)``."""
        if descriptors is None:
            return None
        cosines = appearance(galleries, descriptors, seconds, self.config.forgetting)
        likeness: npt.NDArray[np.float64] = ((cosines - self._unlike) / (1 - self._unlike)).clip(0, 1)
        return likeness

    def _continue(self, entry: Entry, box: int, frame: FrameBoxes, seconds: float, *, moved: bool) -> None:
        """Box ``box`` is ``entry``'s in this frame; ``moved`` where it was found by its looks alone."""
        config, found = self.config, frame.found
        xyxy = found.xyxy[box : box + 1]
        innovation = None
        if moved:
            self.num_returns += 1
            entry.motion = kalman.initiate(xyxy, config.noise)
            entry.state = "confirmed"
        else:
            entry.motion, innovations = kalman.update(entry.motion, xyxy, config.noise)
            innovation = innovations[0]
            if entry.innovation is not None and entry.missed == 1:
                self._restlessness.learn(entry.innovation, innovation)
        entry.innovation = innovation
        entry.hits += 1
        entry.missed = 0
        entry.seen_seconds, entry.seen_xyxy = seconds, found.xyxy[box]
        entry.score = float(found.scores[box])
        entry.category = entry.category or found.categories[box]
        self._remember(entry, box, frame, seconds)
        if entry.hits >= config.confirm_hits:
            entry.state = "confirmed"

    def _remember(self, entry: Entry, box: int, frame: FrameBoxes, seconds: float) -> None:
        if frame.descriptors is not None:
            entry.gallery.add(frame.descriptors[box], seconds)
        entry.summary = None if frame.summary is None else frame.summary[box]

    def _bear(self, frame: FrameBoxes, boxes: list[int], seconds: float) -> None:
        """New tracks from sure boxes nothing claimed, unless they double a box that a track has just taken."""
        config, found = self.config, frame.found
        taken = [entry.motion.xyxy for entry in self._entries if entry.missed == 0]
        for box in boxes:
            xyxy = found.xyxy[box : box + 1]
            doubled = bool(taken) and float(box_iou(np.concatenate(taken), xyxy).max()) >= config.duplicate_iou
            if found.scores[box] < config.birth_score or doubled:
                continue
            confirmed = config.confirm_hits <= 1 or found.scores[box] >= config.confirm_score
            entry = Entry(
                self._new_id(int(frame.claims[box])),
                found.categories[box],
                "confirmed" if confirmed else "tentative",
                kalman.initiate(xyxy, self.config.noise),
                self._gallery(),
                None,
                float(found.scores[box]),
                seconds,
                found.xyxy[box],
            )
            self._remember(entry, box, frame, seconds)
            self._entries.append(entry)
            taken.append(entry.motion.xyxy)

    def _new_id(self, claimed: int) -> int:
        self.num_tracks += 1
        if claimed and claimed not in self._used:
            self._used.add(claimed)
            return claimed
        given = self._next_id
        self._next_id += 1
        return given

    def _retire(self, seconds: float) -> None:
        """Tracks unseen for too long become lost, then forgotten."""
        config = self.config
        kept: list[Entry] = []
        for entry in self._entries:
            unseen = seconds - entry.seen_seconds
            if entry.state == "tentative" and unseen > config.tentative_age_seconds:
                continue
            if entry.state == "confirmed" and unseen > config.max_age_seconds:
                entry.state = "lost"
            if unseen <= config.max_age_seconds + config.memory_seconds:
                kept.append(entry)
        lost = sorted((e for e in kept if e.state == "lost"), key=lambda e: e.seen_seconds)
        dropped = {e.track_id for e in lost[: max(len(lost) - config.max_lost, 0)]}
        self._entries = [entry for entry in kept if entry.track_id not in dropped]

    def _shown(self, seconds: float, image_hw: tuple[int, int], describe: Describe | None) -> tuple[Track, ...]:
        """Confirmed tracks seen in this frame, and those missing for a moment that still look to be there."""
        seen = [e for e in self._entries if e.state == "confirmed" and e.missed == 0]
        coasting = self._coasting(seen, seconds, image_hw, describe)
        height, width = image_hw
        limit = np.array([width, height, width, height], np.float64)
        shown = [show(e, np.clip(e.motion.xyxy[0], 0, limit)) for e in (*seen, *coasting)]
        return tuple(sorted(shown, key=lambda track: track.track_id))

    def _coasting(
        self, seen: list[Entry], seconds: float, image_hw: tuple[int, int], describe: Describe | None
    ) -> list[Entry]:
        config = self.config
        waiting = [
            e
            for e in self._entries
            if e.state == "confirmed"
            and e.missed > 0
            and e.hits >= config.confirm_hits
            and seconds - e.seen_seconds <= config.coast_seconds + 1e-6
        ]
        if not waiting:
            return []
        boxes = np.concatenate([e.motion.xyxy for e in waiting])
        height, width = image_hw
        inside = box_intersection(boxes, [[0, 0, width, height]])[:, 0] / box_areas(boxes)
        keep = inside > 0.5
        descriptors = None if describe is None else describe(boxes.astype(np.float32))
        if descriptors is not None:
            likeness = self._likeness([e.gallery for e in waiting], descriptors, seconds)
            assert likeness is not None
            keep &= np.diagonal(likeness) >= config.coast_similarity
        return [e for e, good in zip(waiting, keep, strict=True) if good]
