"""Instance retrieval across a gap of frames: how well features tell objects apart.

Paper: Analyzing Local Representations of Self-supervised Vision Transformers, 2024, the section on object
retrieval. For every object of frame ``t`` the nearest object descriptor of frame ``t + gap`` is looked up.
Instance accuracy is the share that is the same object, category accuracy the share of the same category.

What the paper leaves open, and what is done here: queries look forward in time; a query whose object is absent
from the later frame cannot be answered, so it is left out of the instance accuracy (``instance_all`` counts it
as wrong) and kept in the category accuracy; a later frame without any object is skipped;
the distance is Euclidean, cosine on request. Accuracies are pooled over all queries of all videos.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True, slots=True)
class FrameObjects:
    """The objects of one frame.

    Attributes:
        index: 0-based frame index.
        descriptors: float32 ``(N, D)``.
        ids: int64 ``(N,)``, identity within the video.
        categories: N names.
    """

    index: int
    descriptors: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.categories)
        if self.descriptors.ndim != 2 or len(self.descriptors) != count or self.ids.shape != (count,):
            shapes = f"descriptors {self.descriptors.shape}, ids {self.ids.shape}"
            raise ValueError(f"FrameObjects of {count} categories got {shapes}")


@dataclass(slots=True)
class GapCounts:
    """Answers over one gap.

    Attributes:
        queries: All queries.
        answerable: Those whose object is in the later frame.
        same_instance: Those answered with the same object.
        same_category: Those answered with an object of the same category.
    """

    queries: int = 0
    answerable: int = 0
    same_instance: int = 0
    same_category: int = 0

    @property
    def instance(self) -> float:
        """Instance accuracy over the answerable queries, in [0, 1]; NaN without any."""
        return self.same_instance / self.answerable if self.answerable else float("nan")

    @property
    def instance_all(self) -> float:
        """Instance accuracy over all queries, absent objects counted as wrong."""
        return self.same_instance / self.queries if self.queries else float("nan")

    @property
    def category(self) -> float:
        """Category accuracy over all queries."""
        return self.same_category / self.queries if self.queries else float("nan")


@dataclass(slots=True)
class RetrievalScore:
    """Counts by gap, filled video by video.

    At most the longest gap's frames are kept, whatever the length of a video.

    Attributes:
        gaps: In frames, positive.
        metric: The distance.
        counts: One per gap.
    """

    gaps: Sequence[int]
    metric: Metric = "euclidean"
    counts: dict[int, GapCounts] = field(init=False)

    def __post_init__(self) -> None:
        if not self.gaps or min(self.gaps) < 1:
            raise ValueError(f"RetrievalScore.gaps must be positive, got {list(self.gaps)}")
        self.counts = {gap: GapCounts() for gap in self.gaps}

    def add_video(self, frames: Iterable[FrameObjects]) -> None:
        """Take the frames of one video, in order; every frame of the video must come, also without objects."""
        feed = self.start_video()
        for frame in frames:
            feed(frame)

    def start_video(self) -> Callable[[FrameObjects], None]:
        """Begin a video: a function that takes its frames one by one, as :meth:`add_video` does."""
        recent: deque[FrameObjects] = deque(maxlen=max(self.gaps) + 1)

        def feed(frame: FrameObjects) -> None:
            recent.append(frame)
            for gap, counts in self.counts.items():
                if len(recent) > gap:
                    self._ask(counts, recent[-1 - gap], frame)

        return feed

    def _ask(self, counts: GapCounts, query: FrameObjects, later: FrameObjects) -> None:
        if not len(query.ids) or not len(later.ids):
            return
        nearest = nearest_rows(query.descriptors, later.descriptors, self.metric)
        counts.queries += len(query.ids)
        counts.answerable += int(np.isin(query.ids, later.ids).sum())
        counts.same_instance += int((later.ids[nearest] == query.ids).sum())
        pairs = zip(query.categories, nearest.tolist(), strict=True)
        counts.same_category += sum(category == later.categories[n] for category, n in pairs)


def nearest_rows(
    queries: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32], metric: Metric
) -> npt.NDArray[np.int64]:
    """The candidate nearest to every query: ``(N,)`` row numbers, the first of equals.

    >>> ones = np.array([[1.0, 1.0]], np.float32)
    >>> rows = np.array([[9.0, 9.0], [1.0, 0.5]], np.float32)
    >>> nearest_rows(ones, rows, "euclidean").tolist(), nearest_rows(ones, rows, "cosine").tolist()
    ([1], [0])
    """
    first, second = queries.astype(np.float64), candidates.astype(np.float64)
    if metric == "cosine":
        first, second = (
            rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second)
        )
    # |a - b|^2 without |a|^2, which is the same for every candidate.
    distance = (second**2).sum(axis=1)[None] - 2 * first @ second.T
    nearest: npt.NDArray[np.int64] = distance.argmin(axis=1)
    return nearest
