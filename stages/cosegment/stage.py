"""Foreground and parts that keep their numbers through a video, without labels.

A codebook is fitted on the first frames of a shot; every frame, the first ones too, is assigned to it, and it
follows slow change. At a cut, or when the frames stop fitting, it is fitted again and its parts are matched to all
parts seen so far, so that a part that is still there keeps its number and colour.

Source: Amir et al. 2021, "Deep ViT Features as Dense Visual Descriptors", section 4
(https://arxiv.org/abs/2112.05814), made to stream; with ``mode: two_pass`` the whole video is the set of images,
as in the paper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.core.arrays import normalize_rows
from pipeline.core.colors import PART_COLORS
from pipeline.core.config import StrictModel
from pipeline.core.records import Features, Packet, PartMap
from stages.cosegment.codebook import (
    Codebook,
    Cues,
    FitOptions,
    ForegroundMethod,
    Observation,
    fit_codebook,
    without_background,
)
from stages.cosegment.cosegmentation import KmeansOptions, relative_saliency
from stages.cosegment.motion import continuity, dense_flow, object_motion, small_gray
from stages.cosegment.part_maps import PartNumbers, Refinement, TemporalMaps, make_part_map
from stages.cosegment.reservoir import EvenReservoir
from stages.cosegment.spool import PacketSpool
from stages.cosegment.stillness import StillRegion, find_still_cells

_MAX_WARNINGS = 50
_MIN_STILL_FRAMES = 8
_MIN_SHOT = 0.25


class CosegmentConfig(StrictModel):
    """Settings of the co-segmentation stage; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    mode: Literal["streaming", "two_pass"] = "streaming"
    warmup_frames: int = Field(16, ge=1, le=256)
    foreground: ForegroundMethod = "discriminant"
    cues: Cues = "both"
    num_parts: int | None = Field(3, ge=1, le=64)
    three_stage: bool = False
    part_elbow: float = Field(0.94, gt=0, le=1)
    max_clusters: int = Field(14, ge=2, le=64)
    elbow: float = Field(0.975, gt=0, le=1)
    saliency_threshold: float = Field(2.0, gt=0)
    votes_percent: float = Field(50.0, gt=0, le=100)
    sample_interval: int = Field(8, ge=1)
    kmeans_iterations: int = Field(50, ge=1)
    kmeans_redo: int = Field(3, ge=1)
    forgetting: float = Field(0.98, gt=0, le=1)
    cut_similarity: float = Field(0.77, ge=0, le=1)
    cut_drop: float = Field(0.1, ge=0, le=1)
    break_ratio: float = Field(2.0, gt=1)
    break_frames: int = Field(3, ge=1)
    match_distance: float = Field(0.3, gt=0, le=4)
    min_component_share: float = Field(0.05, ge=0, le=1)
    drop_still: bool = True
    foreground_memory: float = Field(0.6, ge=0, lt=1)
    part_memory: float = Field(0.97, ge=0, lt=1)
    refine: Refinement = "guided"
    reservoir_frames: int = Field(48, ge=2, le=1024)
    spool_folder: str | None = None


@dataclass(slots=True)
class _Previous:
    """The frame before, as far as the next one needs it."""

    gray: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.float32]
    usual: float


class Cosegmenter:
    """Adds a :class:`PartMap` to every packet.

    Invariant: a part number, once given, means the same part for the rest of the stream, across refits. While
    streaming at most ``warmup_frames`` packets are held back, at the start and after each cut, and as many
    frames' descriptors are remembered. Used for one stream; make a new one for the next.
    """

    def __init__(self, config: CosegmentConfig) -> None:
        """Take the settings; nothing is loaded."""
        self.config = config
        self.warnings: list[str] = []
        self._options = FitOptions(
            kmeans=KmeansOptions(
                elbow=config.elbow,
                max_clusters=config.max_clusters,
                iterations=config.kmeans_iterations,
                redo=config.kmeans_redo,
                sample_interval=config.sample_interval,
            ),
            foreground=config.foreground,
            cues=config.cues,
            num_parts=config.num_parts,
            three_stage=config.three_stage,
            part_elbow=config.part_elbow,
            saliency_threshold=config.saliency_threshold,
            votes_percent=config.votes_percent,
        )
        self._codebook: Codebook | None = None
        self._numbers = PartNumbers(config.match_distance)
        self._memory = TemporalMaps(config.foreground_memory, config.part_memory)
        self._recent: deque[Observation] = deque(maxlen=config.warmup_frames)
        self._previous: _Previous | None = None
        self._still: StillRegion | None = None
        self._misfits = 0
        self._fits: list[dict[str, Any]] = []
        self._parts: dict[int, dict[str, Any]] = {}

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yield every packet with its parts, in order."""
        return self._two_pass(packets) if self.config.mode == "two_pass" else self._streaming(packets)

    def report(self) -> dict[str, Any]:
        """Fits (with the frame and the reason) and parts, ready for JSON."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        return {"mode": self.config.mode, "fits": self._fits, "parts": parts}

    def _streaming(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        waiting: list[Packet] = []
        reason = "start"
        for packet in packets:
            seen, is_cut = self._observe(packet)
            # A shot of a few frames (a flash, a jump) is too short to fit parts on; it goes with what follows.
            is_flash = 0 < len(waiting) < _MIN_SHOT * self.config.warmup_frames
            if is_cut and not is_flash:
                yield from self._start_shot(waiting, reason)
                waiting, reason, self._codebook = [], "cut", None
                self._recent.clear()
            self._recent.append(seen)
            if self._codebook is not None:
                yield self._follow(packet, seen)
                continue
            waiting.append(packet)
            if len(waiting) >= self.config.warmup_frames:
                yield from self._start_shot(waiting, reason)
                waiting = []
        yield from self._start_shot(waiting, reason)

    def _two_pass(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        folder = Path(self.config.spool_folder) if self.config.spool_folder else None
        reservoir: EvenReservoir[Observation] = EvenReservoir(self.config.reservoir_frames)
        with PacketSpool(folder) as spool:
            before: npt.NDArray[np.uint8] | None = None
            for packet in packets:
                spool.append(packet)
                gray = small_gray(packet.frame.image)
                if reservoir.wants_next():
                    reservoir.add(observe(packet, gray, before))
                else:
                    reservoir.skip()
                before = gray
            if not reservoir.items:
                return
            before = None
            for number, packet in enumerate(spool):
                if number == 0:
                    self._fit(reservoir.items, packet.index, "whole video", _features_of(packet).grid.grid_hw)
                gray = small_gray(packet.frame.image)
                yield self._labelled(packet, observe(packet, gray, before))
                before = gray

    def _observe(self, packet: Packet) -> tuple[Observation, bool]:
        """What the frame shows, and whether a cut lies before it."""
        gray = small_gray(packet.frame.image)
        before = self._previous
        seen = observe(packet, gray, None if before is None else before.gray)
        if before is None or before.rows.shape != seen.rows.shape:
            self._previous = _Previous(gray, seen.rows, 1.0)
            return seen, before is not None
        similarity = continuity(seen.rows, before.rows)
        limit = min(self.config.cut_similarity, before.usual - self.config.cut_drop)
        is_cut = similarity < limit
        usual = before.usual if is_cut else 0.8 * before.usual + 0.2 * similarity
        self._previous = _Previous(gray, seen.rows, usual)
        return (replace(seen, motion_px=None, flow=None) if is_cut else seen), is_cut

    def _start_shot(self, waiting: list[Packet], reason: str) -> Iterator[Packet]:
        if not waiting:
            return
        window = list(self._recent)[-len(waiting) :]
        self._memory.reset()
        self._fit(window, waiting[0].index, reason, _features_of(waiting[0]).grid.grid_hw)
        background = None if self._still is None else self._still.cells()
        for packet, seen in zip(waiting, window, strict=True):
            yield self._labelled(packet, seen, background)

    def _follow(self, packet: Packet, seen: Observation) -> Packet:
        """Label a later frame of a shot, then learn from it; or fit anew when too many did not fit."""
        assert self._codebook is not None
        misfit = self._codebook.error_of(seen.rows) > self.config.break_ratio
        self._misfits = self._misfits + 1 if misfit else 0
        if self._misfits >= self.config.break_frames:
            self._fit(list(self._recent), packet.index, "change", _features_of(packet).grid.grid_hw)
        background = None if self._still is None else self._still.follow(seen.flow, seen.motion_px)
        labelled = self._labelled(packet, seen, background)
        self._codebook = self._codebook.updated(
            seen, self.config.forgetting, background=None if background is None else background.ravel()
        )
        self._numbers.follow(self._codebook.parts)
        return labelled

    def _drop_still_cells(self, window: list[Observation], grid_hw: tuple[int, int]) -> None:
        """Fit the parts again without what never moves while the rest does."""
        assert self._codebook is not None
        self._still = None
        gray = window[-1].gray
        if (
            not self.config.drop_still
            or self._codebook.is_empty
            or gray is None
            or len(window) < _MIN_STILL_FRAMES
        ):
            return
        foreground = np.any([self._codebook.logits(seen.rows) > 0 for seen in window], axis=0).reshape(grid_hw)
        still = find_still_cells([seen.motion_px for seen in window], [seen.flow for seen in window], foreground)
        if still.any():
            self._still = StillRegion(still, gray.shape)
            self._codebook = without_background(self._codebook, window, still.ravel(), self._options)

    def _fit(self, window: list[Observation], frame: int, reason: str, grid_hw: tuple[int, int]) -> None:
        self._codebook = fit_codebook(window, self._options)
        if reason in ("start", "cut"):
            self._drop_still_cells(window, grid_hw)
        codebook = self._codebook
        self._misfits = 0
        kept = self._numbers.assign(codebook.parts, codebook.spread)
        self._fits.append(
            {
                "frame": frame,
                "reason": reason,
                "window_frames": len(window),
                "clusters": len(codebook.clusters),
                "parts": [int(number) for number in self._numbers.current],
                "kept_parts": kept,
            }
        )
        if codebook.is_empty:
            self._warn(f"frame {frame}: nothing salient was found, so there are no parts from here on")
        if self._numbers.exhausted:
            self._warn("more than 255 parts were seen; the oldest numbers are used again")

    def _warn(self, line: str) -> None:
        if line not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(line)

    def _labelled(
        self, packet: Packet, seen: Observation, background: npt.NDArray[np.bool_] | None = None
    ) -> Packet:
        assert self._codebook is not None
        parts = make_part_map(
            packet.frame.image,
            _features_of(packet).grid,
            seen,
            self._codebook,
            self._numbers.current,
            self._memory,
            num_parts=self._numbers.highest,
            refine=self.config.refine,
            min_component_share=self.config.min_component_share,
            background=background,
        )
        self._count(packet.index, parts)
        return replace(packet, parts=parts)

    def _count(self, frame: int, parts: PartMap) -> None:
        areas = np.bincount(parts.index_mask.ravel(), minlength=1)
        for number in np.flatnonzero(areas[1:]) + 1:
            colour = "#" + "".join(f"{int(c):02x}" for c in PART_COLORS[number])
            fresh = {
                "number": int(number),
                "colour": colour,
                "mean_area_px": 0.0,
                "frames": 0,
                "first_frame": frame,
            }
            entry = self._parts.setdefault(int(number), fresh)
            entry["frames"] += 1
            entry["mean_area_px"] += (float(areas[number]) - entry["mean_area_px"]) / entry["frames"]
            entry["last_frame"] = frame


def observe(
    packet: Packet, gray: npt.NDArray[np.uint8] | None, before: npt.NDArray[np.uint8] | None
) -> Observation:
    """Descriptors, saliency and motion of a packet's frame.

    Args:
        packet: With features.
        gray: Small grey copy of its frame.
        before: That of the frame before; without either there is no motion.
    """
    features = _features_of(packet)
    data = features.data.detach().float().cpu().numpy()
    rows = normalize_rows(data.reshape(data.shape[0], -1).T)
    saliency = np.zeros(len(rows), np.float32)
    if features.saliency is not None:
        saliency = relative_saliency(features.saliency.detach().float().cpu().numpy().ravel())
    motion, flow = None, None
    if gray is not None and before is not None and gray.shape == before.shape:
        flow = dense_flow(gray, before)
        motion = object_motion(flow, features.grid.grid_hw).ravel()
    return Observation(rows, saliency, motion, gray, flow)


def _features_of(packet: Packet) -> Features:
    if packet.features is None:
        raise ValueError(f"frame {packet.index} has no features; cosegment comes after extract")
    return packet.features
