"""Foreground and parts that keep their numbers through a video, without labels.

A codebook of centroids is fitted on the first frames of a shot and every later frame is assigned to it. At a cut
a new one is fitted and matched to the old, so that a part that is still there keeps its number.

Source: Amir et al. 2021, section 4 (https://arxiv.org/abs/2112.05814), made to stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pipeline.config import StrictModel
from pipeline.records import Features, Packet, PartMap
from stages.ops.cosegmentation import (
    Codebook,
    KmeansOptions,
    fit_clusters,
    fit_parts,
    foreground_evidence,
    relative_saliency,
)
from stages.ops.guided import guided_filter
from stages.ops.kmeans import FloatArray, match_centroids, normalize_rows, squared_distances


class CosegmentConfig(StrictModel):
    """Options of the co-segmentation stage."""

    enabled: bool = True
    warmup_frames: int = Field(16, ge=1, le=256)
    num_parts: int | None = Field(4, ge=1, le=254)
    max_clusters: int = Field(14, ge=2, le=64)
    elbow: float = Field(0.975, gt=0, le=1)
    saliency_threshold: float = Field(2.0, gt=0)
    votes_percent: float = Field(50.0, gt=0, le=100)
    sample_interval: int = Field(8, ge=1)
    kmeans_iterations: int = Field(50, ge=1)
    kmeans_redo: int = Field(3, ge=1)
    refine: Literal["guided", "none"] = "guided"


@dataclass(slots=True)
class _Cells:
    """What the stage needs of a frame: unit descriptors ``(N, C)`` and relative saliency ``(N,)``."""

    rows: FloatArray
    saliency: FloatArray


class Cosegmenter:
    """Adds a :class:`PartMap` to every packet.

    Invariant: a part number, once given, means the same part for the rest of the stream, across refits. At most
    ``warmup_frames`` packets are held back, at the start and after each cut.
    """

    def __init__(self, config: CosegmentConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._options = KmeansOptions(
            elbow=config.elbow,
            max_clusters=config.max_clusters,
            iterations=config.kmeans_iterations,
            redo=config.kmeans_redo,
            sample_interval=config.sample_interval,
        )
        self._codebook: Codebook | None = None
        self._fits: list[dict[str, Any]] = []
        self._parts: dict[int, dict[str, Any]] = {}
        self._next_number = 1

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yield every packet with its parts, in order."""
        waiting: list[Packet] = []
        for packet in packets:
            if self._codebook is not None:
                yield self._labelled(packet)
                continue
            waiting.append(packet)
            if len(waiting) >= self.config.warmup_frames:
                yield from self._start_shot(waiting)
                waiting = []
        if waiting:
            yield from self._start_shot(waiting)

    def report(self) -> dict[str, Any]:
        """Fits and parts, ready for JSON."""
        return {"fits": self._fits, "parts": [self._parts[number] for number in sorted(self._parts)]}

    def _start_shot(self, waiting: list[Packet]) -> Iterator[Packet]:
        self._fit(waiting)
        for packet in waiting:
            yield self._labelled(packet)

    def _fit(self, packets: list[Packet]) -> None:
        cells = [_cells_of(packet) for packet in packets]
        descriptors = [cell.rows for cell in cells]
        clusters, salient = fit_clusters(
            descriptors,
            [cell.saliency for cell in cells],
            options=self._options,
            threshold=self.config.saliency_threshold,
            votes_percent=self.config.votes_percent,
        )
        bare = Codebook(clusters, salient, np.zeros((0, clusters.shape[1]), np.float32), np.zeros(0, np.int64))
        masks = [foreground_evidence(rows, bare) >= 0.5 for rows in descriptors]
        parts = fit_parts(descriptors, masks, num_parts=self.config.num_parts, options=self._options)
        self._codebook = Codebook(clusters, salient, parts, self._numbers(parts))
        self._fits.append(
            {
                "frame": packets[0].index,
                "clusters": len(clusters),
                "salient": int(salient.sum()),
                "parts": len(parts),
            }
        )
        if not len(parts):
            self.warnings.append(f"frame {packets[0].index}: nothing salient, so there are no parts")

    def _numbers(self, parts: FloatArray) -> npt.NDArray[np.int64]:
        old = self._codebook
        numbers = np.full(len(parts), -1, np.int64)
        if old is not None and not old.is_empty:
            matched = match_centroids(old.parts, parts, max_distance=0.5)
            numbers[matched >= 0] = old.numbers[matched[matched >= 0]]
        for index in np.flatnonzero(numbers < 0):
            numbers[index] = self._next_number
            self._next_number += 1
        return numbers

    def _labelled(self, packet: Packet) -> Packet:
        assert self._codebook is not None
        features = _features_of(packet)
        parts = label_cells(packet, features, self._codebook, self.config)
        self._count(packet.index, parts)
        return replace(packet, parts=parts)

    def _count(self, frame: int, parts: PartMap) -> None:
        areas = np.bincount(parts.index_mask.ravel(), minlength=1)
        for number in np.flatnonzero(areas[1:]) + 1:
            entry = self._parts.setdefault(
                int(number), {"number": int(number), "mean_area_px": 0.0, "frames": 0, "first_frame": frame}
            )
            entry["mean_area_px"] += (float(areas[number]) - entry["mean_area_px"]) / (entry["frames"] + 1)
            entry["frames"] += 1
            entry["last_frame"] = frame


def label_cells(packet: Packet, features: Features, codebook: Codebook, config: CosegmentConfig) -> PartMap:
    """The parts of one frame by an existing codebook."""
    grid = features.grid
    height, width = packet.frame.image_hw
    rows = _cells_of(packet).rows
    evidence = foreground_evidence(rows, codebook).reshape(grid.grid_hw)
    num_parts = int(codebook.numbers.max()) if len(codebook.numbers) else 0
    if codebook.is_empty:
        empty = np.zeros(grid.grid_hw, np.uint8)
        return PartMap(empty, num_parts, np.zeros((height, width), np.uint8), np.zeros_like(evidence))
    nearness = -squared_distances(rows, codebook.parts).T.reshape(-1, *grid.grid_hw)
    part_ids = np.where(evidence >= 0.5, codebook.numbers[nearness.argmax(axis=0)], 0).astype(np.uint8)
    soft = grid.upsample(torch.from_numpy(evidence[None]))[0].numpy()
    if config.refine == "guided":
        radius = max(1, round(grid.stride_px[0] / 2))
        soft = guided_filter(packet.frame.image, soft[None], radius_px=radius)[0]
    winners = grid.upsample(torch.from_numpy(np.ascontiguousarray(nearness))).argmax(dim=0).numpy()
    index_mask = np.where(soft >= 0.5, codebook.numbers[winners], 0).astype(np.uint8)
    return PartMap(part_ids, num_parts, index_mask, evidence)


def _features_of(packet: Packet) -> Features:
    if packet.features is None:
        raise ValueError(f"frame {packet.index} has no features; cosegment comes after extract")
    return packet.features


def _cells_of(packet: Packet) -> _Cells:
    features = _features_of(packet)
    data = features.data.detach().float().cpu().numpy()
    rows = normalize_rows(data.reshape(data.shape[0], -1).T)
    if features.saliency is None:
        return _Cells(rows, np.zeros(len(rows), np.float32))
    return _Cells(rows, relative_saliency(features.saliency.detach().float().cpu().numpy().ravel()))
