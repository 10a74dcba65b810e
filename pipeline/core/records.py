"""The records that flow between the stages.

Frozen dataclasses with slots, checked when they are made, whose ``repr`` shows shapes and never pixels. A
stage never changes a record: it makes a new one with :func:`dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.core.device_stream import Event
from pipeline.core.grid import PatchGrid
from pipeline.core.host_copy import HostFeatures
from pipeline.core.video_info import Color, VideoInfo

__all__ = [
    "Color",
    "Detections",
    "Features",
    "Frame",
    "LabelMap",
    "Packet",
    "PartMap",
    "PatchGrid",
    "Track",
    "VideoInfo",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame.

    Attributes:
        image: uint8 ``(H, W, 3)``, RGB.
        index: 0-based position in the input; frames that are skipped or cannot be decoded are counted.
        pts_seconds: Presentation time in seconds, 0 for frame 0.
        duration_seconds: How long the frame is shown, None if the input does not say.
        on_device: The same image on the card that decoded it, None where the CPU did.
    """

    image: npt.NDArray[np.uint8] = field(repr=False)
    index: int
    pts_seconds: float
    duration_seconds: float | None = None
    on_device: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = self.image.shape
        if self.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"Frame.image must be uint8 (H, W, 3), got {self.image.dtype} {shape}")
        if self.index < 0:
            raise ValueError(f"Frame.index must not be negative, got {self.index}")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def __repr__(self) -> str:
        height, width = self.image_hw
        return f"Frame(index={self.index}, pts_seconds={self.pts_seconds:.3f}, image={height}x{width})"


@dataclass(frozen=True, slots=True)
class Features:
    """Dense features of one frame.

    Attributes:
        data: ``(C, h, w)`` on the model's device, not normalized.
        grid: Where the cells lie on the frame.
        saliency: ``(h, w)`` in [0, 1], or None where the backbone gives none.
        cls: ``(C,)``, the CLS descriptor.
        extra: Further facets on the same grid by name (for example ``"token@11"``), each ``(C', h, w)``.
        host: The data and the saliency on their way to the host, where extract has sent them there.
        before_lift: The main facet and the saliency on the backbone's grid, given to LiFT; None without it.
    """

    data: Tensor
    grid: PatchGrid
    saliency: Tensor | None = None
    cls: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    host: HostFeatures | None = field(default=None, repr=False, compare=False)
    before_lift: Features | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or tuple(self.data.shape[1:]) != self.grid.grid_hw:
            raise ValueError(
                f"Features.data must be (C, h, w) with h, w = {self.grid.grid_hw}, got {tuple(self.data.shape)}"
            )
        for name, values in (("saliency", self.saliency), *self.extra.items()):
            if values is not None and tuple(values.shape[-2:]) != self.grid.grid_hw:
                raise ValueError(f"Features {name} must lie on {self.grid.grid_hw}, got {tuple(values.shape)}")

    @property
    def coarse(self) -> Features:
        """The features on the backbone's grid: those before LiFT, itself without LiFT."""
        return self if self.before_lift is None else self.before_lift

    def data_on_host(self) -> npt.NDArray[np.float32]:
        """The data as float32 ``(C, h, w)``; waits for the device where it must be copied."""
        return self.data.detach().float().cpu().numpy() if self.host is None else self.host.data()

    def saliency_on_host(self) -> npt.NDArray[np.float32] | None:
        """The saliency as float32 ``(h, w)``; None where there is none."""
        if self.saliency is None:
            return None
        return self.saliency.detach().float().cpu().numpy() if self.host is None else self.host.saliency()

    def tensors(self) -> list[Tensor]:
        """All its tensors."""
        own = [value for value in (self.data, self.saliency, self.cls, *self.extra.values()) if value is not None]
        return own if self.before_lift is None else own + self.before_lift.tensors()

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.data.shape)
        return f"Features(data={shape}, saliency={self.saliency is not None}, extra={sorted(self.extra)})"


@dataclass(frozen=True, slots=True)
class PartMap:
    """Parts of the foreground of one frame.

    Attributes:
        part_ids: uint8 ``(h, w)`` on the backbone's grid, 0 is background; None unless ``cosegment.part_ids``.
        num_parts: Number of parts in the codebook; ids go up to it.
        index_mask: uint8 ``(H, W)`` at the frame's size.
        foreground: float32 ``(h, w)`` in [0, 1], how sure the cell is foreground.
        proposals: uint8 ``(h, w)``, regions that may be objects, from 1 by falling area, 0 is none of them; None
            where none were looked for in this frame.
    """

    part_ids: npt.NDArray[np.uint8] | None
    num_parts: int
    index_mask: npt.NDArray[np.uint8]
    foreground: npt.NDArray[np.float32]
    proposals: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.foreground.ndim != 2 or self.index_mask.ndim != 2:
            raise ValueError(
                f"PartMap needs (h, w) and (H, W), got {self.foreground.shape} and {self.index_mask.shape}"
            )
        if self.proposals is not None and self.proposals.shape != self.foreground.shape:
            raise ValueError(f"PartMap.foreground {self.foreground.shape} != proposals {self.proposals.shape}")
        if self.part_ids is None:
            return
        if self.foreground.shape != self.part_ids.shape:
            raise ValueError(f"PartMap.foreground {self.foreground.shape} != part_ids {self.part_ids.shape}")
        if self.part_ids.size and int(self.part_ids.max()) > self.num_parts:
            raise ValueError(f"PartMap holds id {int(self.part_ids.max())} of {self.num_parts} parts")

    def __repr__(self) -> str:
        return f"PartMap(index_mask={self.index_mask.shape}, num_parts={self.num_parts})"


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Propagated object labels of one frame.

    Attributes:
        probs: float32 ``(K + 1, h, w)`` on the feature grid; channel 0 is background.
        object_ids: The K object ids, in the order of the channels 1..K.
        index_mask: uint8 ``(H, W)`` at the frame's size; the pixel's object id, 0 is background.
        confidence: One number in [0, 1] an object: how sure its mask is (1 where the mask was given).
    """

    probs: Tensor
    object_ids: tuple[int, ...]
    index_mask: npt.NDArray[np.uint8]
    confidence: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.probs.ndim != 3 or self.probs.shape[0] != len(self.object_ids) + 1:
            raise ValueError(
                f"LabelMap.probs must be ({len(self.object_ids)} + 1, h, w), got {tuple(self.probs.shape)}"
            )
        if self.index_mask.ndim != 2 or self.index_mask.dtype != np.uint8:
            raise ValueError(
                f"LabelMap.index_mask must be uint8 (H, W), got {self.index_mask.dtype} {self.index_mask.shape}"
            )
        if self.confidence and len(self.confidence) != len(self.object_ids):
            raise ValueError(f"{len(self.confidence)} confidences for {len(self.object_ids)} objects")

    def __repr__(self) -> str:
        return f"LabelMap(object_ids={self.object_ids}, index_mask={self.index_mask.shape})"


@dataclass(frozen=True, slots=True)
class Detections:
    """The boxes a detector found in one frame.

    Attributes:
        xyxy: float32 ``(N, 4)``: left, top, right, bottom in frame pixels, continuous, 0-based.
        scores: float32 ``(N,)``.
        categories: N category names or numbers as text; empty text where unknown.
        object_ids: int64 ``(N,)``: the propagated object a box came from; 0 where it came from a detector.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    categories: tuple[str, ...]
    object_ids: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.categories)
        if self.xyxy.shape != (count, 4) or self.scores.shape != (count,) or self.object_ids.shape != (count,):
            raise ValueError(
                f"Detections of {count} categories need xyxy ({count}, 4), scores and object_ids ({count},), got "
                f"{self.xyxy.shape}, {self.scores.shape}, {self.object_ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.categories)

    @classmethod
    def empty(cls) -> Detections:
        """No boxes.

        >>> len(Detections.empty())
        0
        """
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), (), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Track:
    """One tracked box in one frame.

    Attributes:
        track_id: Positive, never changes and is never used twice.
        xyxy: Left, top, right, bottom in frame pixels; continuous coordinates.
        score: Detection score, in [0, 1] for scores that are probabilities.
        category: Category name or number as text; empty where unknown.
        embedding: float32 ``(C,)``, L2-normalized, or None.
        age: Frames since the track was born.
        time_since_update: Frames since its last detection; 0 when seen in this frame.
        confidence: For a box from a propagated mask, that mask's confidence; 1 otherwise.
    """

    track_id: int
    xyxy: tuple[float, float, float, float]
    score: float
    category: str = ""
    embedding: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    age: int = 0
    time_since_update: int = 0
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if self.track_id < 1:
            raise ValueError(f"Track.track_id must be positive, got {self.track_id}")
        left, top, right, bottom = self.xyxy
        if right < left or bottom < top:
            raise ValueError(f"Track.xyxy must be left, top, right, bottom, got {self.xyxy}")


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame and what the stages have made of it so far.

    Attributes:
        frame: The decoded frame.
        features: Set by extract; dropped after the last stage that reads them.
        parts: Set by cosegment.
        labels: Set by propagate.
        tracks: Set by track; None until then, empty where nothing is tracked.
        annotated: uint8 ``(H', W', 3)`` RGB, set by annotate.
        ready: After the device's work on the packet so far; None where there is no device but the CPU.
    """

    frame: Frame
    features: Features | None = None
    parts: PartMap | None = None
    labels: LabelMap | None = None
    tracks: tuple[Track, ...] | None = None
    annotated: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    ready: Event | None = field(default=None, repr=False, compare=False)

    @property
    def index(self) -> int:
        """The frame's index, by which the runner names a packet."""
        return self.frame.index
