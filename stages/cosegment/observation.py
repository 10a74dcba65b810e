"""What co-segmentation keeps of a frame: descriptors, saliency and motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Packet
from pipeline.core.state import State
from stages.cosegment.cosegmentation import relative_saliency
from stages.cosegment.motion import dense_flow, object_motion
from stages.cosegment.part_space import PartSpace


@dataclass(frozen=True, slots=True)
class Observation:
    """What the codebook needs of a frame.

    Attributes:
        rows: float32 ``(N, C)``, L2-normalized descriptors, row-major over the feature grid.
        saliency: float32 ``(N,)``, relative to the frame's mean; zeros where there is none.
        motion_px: float32 ``(N,)``, motion relative to the camera; None for the first frame of a shot.
        gray: uint8 ``(H', W')``, a small copy of the frame; None where no motion is needed.
        flow: float32 ``(H', W', 2)`` to the previous frame; None for the first frame of a shot.
        part_rows: float32 ``(N, d)``, unit rows that parts are clustered on; None where those are ``rows``.
    """

    rows: FloatArray
    saliency: FloatArray
    motion_px: FloatArray | None
    gray: npt.NDArray[np.uint8] | None = None
    flow: FloatArray | None = None
    part_rows: FloatArray | None = None

    @property
    def for_parts(self) -> FloatArray:
        """The rows that parts are clustered on."""
        return self.rows if self.part_rows is None else self.part_rows

    def state(self) -> State:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def features_of(packet: Packet) -> Features:
    """The packet's features on the backbone's grid, on which evidence is collected with and without LiFT.

    Raises:
        ValueError: It has none.
    """
    if packet.features is None:
        raise ValueError(f"frame {packet.index} has no features; cosegment comes after extract")
    return packet.features.coarse


def observe(
    packet: Packet,
    gray: npt.NDArray[np.uint8] | None,
    previous_gray: npt.NDArray[np.uint8] | None,
    space: PartSpace | None = None,
) -> Observation:
    """Descriptors, saliency and motion of a packet's frame.

    Args:
        packet: With features.
        gray: Small gray copy of its frame.
        previous_gray: That of the previous frame; without either there is no motion.
        space: What parts are clustered in; None = the descriptors themselves.

    Raises:
        ValueError: The packet has no features, or they hold NaN or infinite values.
    """
    features = features_of(packet)
    rows = _unit_rows(packet, features)
    saliency = np.zeros(len(rows), np.float32)
    on_host = features.saliency_on_host()
    if on_host is not None:
        saliency = relative_saliency(on_host.ravel())
    motion, flow = None, None
    if gray is not None and previous_gray is not None and gray.shape == previous_gray.shape:
        flow = dense_flow(gray, previous_gray)
        motion = object_motion(flow, features.grid).ravel()
    return Observation(rows, saliency, motion, gray, flow, None if space is None else space(rows))


@dataclass(frozen=True, slots=True)
class LabelCells:
    """The cells whose labels become those of pixels: LiFT's where there is one, else the backbone's.

    Attributes:
        grid: Where they lie; each of the backbone's cells is ``factor`` by ``factor`` of them.
        rows: float32 ``(N, C)``, L2-normalized descriptors.
        part_rows: float32 ``(N, d)``, what parts are clustered on.
        factor: Cells along each side of one of the backbone's.
    """

    grid: PatchGrid
    rows: FloatArray
    part_rows: FloatArray
    factor: int = 1


def label_cells(packet: Packet, seen: Observation, space: PartSpace | None = None) -> LabelCells:
    """The cells of a packet's frame that are labeled.

    Args:
        packet: With features.
        seen: What :func:`observe` found in it.
        space: As for :func:`observe`.

    Raises:
        ValueError: The lifted features hold NaN or infinite values.
    """
    coarse, lifted = features_of(packet), packet.features
    if lifted is None or lifted is coarse:
        return LabelCells(coarse.grid, seen.rows, seen.for_parts)
    rows = _unit_rows(packet, lifted)
    factor = lifted.grid.grid_hw[0] // coarse.grid.grid_hw[0]
    return LabelCells(lifted.grid, rows, rows if space is None else space(rows), factor)


def _unit_rows(packet: Packet, features: Features) -> FloatArray:
    data = features.data_on_host()
    try:
        return normalize_rows(data.reshape(data.shape[0], -1).T)
    except ValueError as error:
        raise ValueError(f"frame {packet.index}: the main facet (extract.facets[0]): {error}") from error


def motion_of(window: Sequence[Observation]) -> list[FloatArray]:
    """Motion of every frame; the first frame of a shot has none and takes that of the next."""
    motions: list[FloatArray] = []
    for place, seen in enumerate(window):
        later = window[place + 1].motion_px if place + 1 < len(window) else None
        found = seen.motion_px if seen.motion_px is not None else later
        motions.append(
            found if found is not None and len(found) == len(seen.rows) else np.zeros_like(seen.saliency)
        )
    return motions
