"""Every stage's step on a card, and how often the host may wait for it: one table for two tests.

``tests/test_host_waits.py`` counts on a card that is simulated (:mod:`tests.counted_card`);
``tests/test_gpu.py`` runs the same steps on a real one with ``torch.cuda.set_sync_debug_mode("error")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core import device_stream
from pipeline.core.config import load_config
from pipeline.core.grid import PatchGrid
from pipeline.core.host_copy import HostCopy, HostFeatures
from pipeline.core.records import Detections, Features, Frame, LabelMap, Packet
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import load_backbone
from stages.extract.lift.module import LiftMetadata, save_lift
from stages.extract.lift.network import Lift
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig
from stages.track import TrackConfig, Tracker

FRAMES = 4
"""Frames that are counted."""

BATCH = 2
"""Frames per batch of extract."""


@dataclass(frozen=True)
class Place:
    """Where a stage runs.

    Attributes:
        device: As ``extract.device`` names it.
        put: Sends a tensor there.
        precision: ``extract.precision``.
        kernel: ``propagate.kernel``.
        folder: For files.
    """

    device: torch.device
    put: Callable[[Tensor], Tensor]
    precision: str
    kernel: str
    folder: Path


@dataclass(frozen=True)
class Case:
    """A stage with settings.

    Attributes:
        name: For the test's name.
        make: Builds the stage and returns its step.
        downloads: Copies to the host in :data:`FRAMES` steps, none of which waits by itself.
        uploads: Copies from pinned memory, the same way.
        events: Waits for such a copy. Every other wait is an error.
        warm: Steps before: tables that are kept are uploaded then, and the first frames of a shot are held back.
    """

    name: str
    make: Callable[[Place], Callable[[int], object]]
    downloads: int
    uploads: int
    events: int
    warm: int = 4


def _frames(size_hw: tuple[int, int]) -> Iterator[Frame]:
    random = np.random.default_rng(0)
    still = np.kron(random.integers(0, 256, (size_hw[0] // 8, size_hw[1] // 8, 3)), np.ones((8, 8, 1)))
    index = 0
    while True:
        yield Frame(np.roll(still, index, axis=1).astype(np.uint8), index, index / 25)
        index += 1


def _extract(**settings: Any) -> Callable[[Place], Callable[[int], object]]:
    def make(place: Place) -> Callable[[int], object]:
        backbone = load_backbone(
            "vit_tiny_patch16_224",
            weights="random",
            overrides={"embed_dim": 48, "depth": 3, "num_heads": 3},
        )
        if settings.get("lift"):
            settings["lift"] = str(place.folder / "lift.safetensors")
            meta = LiftMetadata("vit_tiny_patch16_224", "key@2", 16)
            save_lift(Lift(48, patch_px=16), meta, Path(settings["lift"]))
        shared = {"short_side": 64, "facets": ["key@2", "token@1:norm"], "batch_size": BATCH}
        config = {**shared, "device": str(place.device), "precision": place.precision, **settings}
        extractor = Extractor(load_config(ExtractConfig, config), backbone=backbone)
        extractor.sends_features = True
        packets = extractor(_frames((80, 96)))
        return lambda number: next(packets)

    return make


GRID = PatchGrid((64, 96), (8, 12), (8.0, 8.0), (4.0, 4.0))
CHANNELS = 16


def _packets(place: Place, *, sent: bool = False) -> Iterator[Packet]:
    """Frames of two patterned objects that wander, with features of the card; also sent to the host if asked."""
    random = np.random.default_rng(1)
    looks = torch.from_numpy(np.linalg.qr(random.standard_normal((CHANNELS, CHANNELS)))[0]).float()
    for frame in _frames(GRID.image_hw):
        kinds = np.zeros(GRID.grid_hw, np.int64)
        left = 1 + frame.index % 4
        kinds[2:6, left : left + 3], kinds[2:6, left + 3 : left + 6] = 1, 2
        noise = torch.from_numpy(random.standard_normal((*GRID.grid_hw, CHANNELS))).float()
        data = (looks[torch.from_numpy(kinds)] + 0.1 * noise).permute(2, 0, 1).contiguous()
        saliency = torch.from_numpy((kinds > 0).astype(np.float32))
        found = Features(place.put(data), GRID, place.put(saliency), extra={"more": place.put(data.flip(0))})
        if sent and found.saliency is not None:
            copy = HostCopy(device_stream.streams_of(place.device), [found.data, found.saliency])
            copy.arrays()
            found = replace(found, host=HostFeatures(copy, 0, 1))
        yield Packet(frame, found)


def _mask(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros(GRID.image_hw, np.uint8)
    left = 8 * (1 + index % 4)
    mask[16:48, left : left + 24], mask[16:48, left + 24 : left + 48] = 1, 2
    return mask


def _propagate(**settings: Any) -> Callable[[Place], Callable[[int], object]]:
    def make(place: Place) -> Callable[[int], object]:
        config = load_config(PropagateConfig, {"kernel": place.kernel, "radius_cells": 3, **settings})
        packets = iter(list(_take(_packets(place), 16)))
        stage = Propagator(config)
        return lambda number: stage.step(next(packets), _mask(0) if number == 0 else None)

    return make


ACCURATE = {
    "context_frames": 2,  # priors are sent again until the memory is full
    "color_weight": 0.1, "prior_sigma_cells": 4, "prior_floor": 0.65, "prior_motion": True, "label_cells": 4,
    "target_model": {"weight": 0.5, "mask_weight": 0.3}, "refine": {"crf_weight": 1.0},
    "object_weight": "confidence", "max_step_cells": 4,
}  # fmt: skip


def _track(
    *, labels: bool = False, boxes: bool = True, **settings: Any
) -> Callable[[Place], Callable[[int], object]]:
    def make(place: Place) -> Callable[[int], object]:
        stage = Tracker(load_config(TrackConfig, settings))
        packets = list(_take(_packets(place), 16))
        if labels:
            packets = [replace(packet, labels=_labels(packet.index, place)) for packet in packets]
        return lambda number: stage.step(packets[number], _boxes(packets[number].index) if boxes else None)

    return make


def _labels(index: int, place: Place) -> LabelMap:
    mask = _mask(index)
    cells = GRID.sample_nearest(torch.from_numpy(mask).long())
    return LabelMap(place.put(F.one_hot(cells, 3).permute(2, 0, 1).float()), (1, 2), mask, (0.9, 0.8))


def _boxes(index: int) -> Detections:
    left = 8.0 * (1 + index % 4)
    xyxy = np.array([[left, 16, left + 24, 48], [left + 24, 16, left + 48, 48]], np.float32)
    return Detections(xyxy, np.full(2, 0.9, np.float32), ("", ""), np.zeros(2, np.int64))


def _cosegment(**settings: Any) -> Callable[[Place], Callable[[int], object]]:
    def make(place: Place) -> Callable[[int], object]:
        fast = {"kmeans_iterations": 5, "kmeans_redo": 1, "sample_interval": 1, "warmup_frames": 4}
        stage = Cosegmenter(load_config(CosegmentConfig, fast | settings))
        packets = stage(iter(list(_take(_packets(place, sent=True), 24))))
        return lambda number: next(packets)

    return make


def _take(packets: Iterator[Packet], count: int) -> Iterator[Packet]:
    for _ in range(count):
        yield next(packets)


BATCHES = FRAMES // BATCH
_OF_EXTRACT = {"downloads": BATCHES, "uploads": BATCHES, "events": 2 * BATCHES}
"""Per batch one copy each way; waits: for the memory of the copy two batches ago, and for the batch's results."""

CASES = [
    Case("extract no cue", _extract(saliency="none"), **_OF_EXTRACT),
    Case("extract cls_attention", _extract(saliency="cls_attention", cls="final"), **_OF_EXTRACT),
    Case("extract first_pc", _extract(saliency="first_pc"), **_OF_EXTRACT),
    Case("extract ncut", _extract(saliency="ncut"), **_OF_EXTRACT),
    Case("extract lift", _extract(saliency="ncut", lift="bundled here"), **_OF_EXTRACT),
    Case("extract smoothing", _extract(saliency="none", repair="smooth"), **_OF_EXTRACT),
    Case("extract bins", _extract(saliency="none", log_bins=2, normalize=True), **_OF_EXTRACT),
    # The frame at the masks' working size goes up, mask and confidence come down together.
    Case("propagate", _propagate(), downloads=FRAMES, uploads=FRAMES, events=FRAMES),
    Case(
        "propagate unrefined",
        _propagate(refine={"enabled": False}, facets=["data", "more"], upsample_factor=8),
        downloads=FRAMES, uploads=0, events=FRAMES,
    ),
    Case(
        "propagate accurate",
        _propagate(**ACCURATE),
        # Also the colors of cells, and of pixels in L*a*b*.
        downloads=FRAMES, uploads=3 * FRAMES, events=FRAMES,
    ),
    # Boxes go up, descriptors come down: of the detections.
    Case("track detections", _track(), downloads=FRAMES, uploads=FRAMES, events=FRAMES),
    Case(
        "track saliency",
        _track(roi={"weighting": "saliency"}, embeddings=True, facet="more"),
        downloads=FRAMES, uploads=FRAMES, events=FRAMES,
    ),
    Case(
        "track masks",
        _track(labels=True, roi={"weighting": "mask"}),
        downloads=FRAMES, uploads=2 * FRAMES, events=FRAMES,  # a copy of its own for each of the two boxes
    ),
    Case(
        "track objects",
        _track(labels=True, boxes=False, embeddings=True),
        downloads=FRAMES, uploads=FRAMES, events=FRAMES,
    ),
    # Codebook with flow, and the picture's small copies, go up; mask and foreground come down together.
    Case("cosegment", _cosegment(), downloads=FRAMES, uploads=2 * FRAMES, events=FRAMES, warm=8),
    Case(
        "cosegment vote",
        _cosegment(foreground="vote", refine="none", part_ids=True),
        downloads=FRAMES, uploads=FRAMES, events=FRAMES, warm=8,
    ),
]  # fmt: skip
