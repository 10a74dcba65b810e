"""Propagate: object masks carried from frame to frame by the similarity of dense features.

Objects come from given masks (of any frame; later ones add objects or correct them) or, without any, from the
foreground that co-segmentation found. The defaults are DINO's DAVIS protocol (Caron et al. 2021, section 4.2.2):
the first frame and the 7 before, radius 12, top-5, temperature 0.1.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.records import Features, LabelMap, Packet, PatchGrid
from pipeline.formats.masks import object_ids
from stages.propagate.config import PropagateConfig, at_distance, make_windows
from stages.propagate.discovery import find_objects
from stages.propagate.label_maps import (
    decode_labels,
    encode_mask,
    pack_cells,
    refine_labels,
    subdivided,
    unpack_cells,
)
from stages.propagate.label_memory import LabelMemory, Memory, merge_channels
from stages.propagate.propagation import Window, propagate_labels

IndexMask = npt.NDArray[np.uint8]
MAX_WARNINGS = 50
FOUND_REFERENCES = 2
"""Frames with found masks that are kept: the first, and the latest, which is the better one."""


@dataclass(slots=True)
class _Objects:
    """The objects known so far; an object's place in ``ids`` plus 1 is its channel, for ever."""

    ids: tuple[int, ...] = ()

    def channels(self, ids: Iterable[int]) -> frozenset[int]:
        return frozenset(self.ids.index(number) + 1 for number in ids)


@dataclass(frozen=True, slots=True)
class _Carried:
    """Labels of a frame ``(K + 1, h s, w s)`` on the subdivided grid, its index mask, a confidence an object."""

    fine: Tensor
    index_mask: IndexMask
    confidence: tuple[float, ...] = ()


class Propagator:
    """Carries the masks of one video forward. Ids never change; a new video needs a new Propagator.

    Args:
        config: How.
        masks: uint8 ``(H, W)`` index masks by 0-based frame index. None takes objects from ``packet.parts``.
    """

    def __init__(self, config: PropagateConfig, *, masks: Mapping[int, IndexMask] | None = None) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._masks = masks
        self._objects = _Objects()
        references = config.max_references if masks is not None else min(config.max_references, FOUND_REFERENCES)
        self._memory = LabelMemory(
            config.context_frames, max_references=references, prefix_copies=config.prefix_copies
        )
        self._window, self._reference_window = make_windows(config)
        self._last_discovery: int | None = None
        self._started_at: dict[int, int] = {}
        self._confidence: dict[int, array[float]] = {}

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Add ``labels`` to every packet.

        Raises:
            ConfigError: Packets without features, or without a facet the config asks for.
        """
        waiting = set(self._masks or ())
        for packet in packets:
            waiting.discard(packet.index)
            yield replace(packet, labels=self._step(packet))
        if waiting:
            listed = ", ".join(str(index) for index in sorted(waiting)[:8]) + ", ..." * (len(waiting) > 8)
            self._warn(f"no frame came for the masks of {listed}; they were not used")

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``: ids, the frame each began at, and the confidence in every frame since."""
        return {
            "objects": [
                {
                    "id": number,
                    "first_frame": self._started_at[number],
                    "confidence": [round(value, 3) for value in self._confidence[number]],
                }
                for number in self._objects.ids
                if number in self._started_at
            ],
            "references": [memory.frame_index for memory in self._memory.references],
        }

    def _step(self, packet: Packet) -> LabelMap:
        if packet.features is None:
            raise ConfigError("propagate needs features: switch extract on")
        grid = packet.features.grid
        descriptors = self._descriptors(packet.features)
        labels = self._carry(packet, descriptors, grid)
        given = self._given(packet, labels)
        if given is not None:
            labels = self._take(packet.index, descriptors, labels, given, grid)
        elif not self._memory.empty:
            self._memory.push(Memory(packet.index, descriptors, labels.fine))
        for number, value in zip(self._objects.ids, labels.confidence, strict=True):
            self._confidence[number].append(value)
        probs = F.avg_pool2d(labels.fine, self.config.label_cells) if self.config.label_cells > 1 else labels.fine
        return LabelMap(probs, self._objects.ids, labels.index_mask, labels.confidence)

    def _descriptors(self, features: Features) -> Tensor:
        """The facets to compare, each L2-normalised and all together again: ``(C, h, w)``, channels last."""
        maps = [features.data]
        if self.config.facets:
            missing = [name for name in self.config.facets if name not in features.extra and name != "data"]
            if missing:
                raise ConfigError(
                    f"propagate.facets: '{missing[0]}' is not extracted; there are: data, "
                    f"{', '.join(sorted(features.extra)) or 'no others'} (see extract.facets)"
                )
            maps = [features.data if name == "data" else features.extra[name] for name in self.config.facets]
        joint = torch.cat([F.normalize(values.to(torch.float32), dim=0) for values in maps])
        if len(maps) > 1:
            joint = joint / len(maps) ** 0.5
        return joint.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def _carry(self, packet: Packet, descriptors: Tensor, grid: PatchGrid) -> _Carried:
        """Labels of a frame from the memory alone; without memory all is background."""
        if self._memory.empty:
            fine = torch.ones((1, *subdivided(grid, self.config.label_cells).grid_hw), device=descriptors.device)
            return _Carried(fine, np.zeros(grid.image_hw, np.uint8))
        windows = [self._reference_window] * len(self._memory.references)
        for memory in self._memory.recent:
            windows.append(at_distance(self.config, self._window, packet.index - memory.frame_index))
        fine = self._propagate(descriptors, self._memory.entries(), windows)
        mask = self._decode(fine, packet.frame.image, grid)
        return _Carried(fine, mask, _confidence(fine))

    def _propagate(self, target: Tensor, entries: Sequence[Memory], windows: Window | Sequence[Window]) -> Tensor:
        parts = self.config.label_cells
        packed = propagate_labels(
            target,
            [memory.descriptors for memory in entries],
            [pack_cells(memory.labels, parts) for memory in entries],
            windows=windows,
            top_k=self.config.top_k,
            temperature=self.config.temperature,
            keep_ties=self.config.keep_ties,
            max_bytes=self.config.max_bytes,
        ).labels
        return unpack_cells(packed, parts)

    def _decode(self, fine: Tensor, image: npt.NDArray[np.uint8], grid: PatchGrid) -> IndexMask:
        refine, stretch = self.config.refine, self.config.stretch
        if refine.enabled:
            fine = refine_labels(
                fine,
                image,
                grid,
                cell_px=refine.cell_px,
                radius_px=refine.radius_px,
                epsilon=refine.epsilon,
                stretch=stretch,
            )
            stretch = "none"
        return decode_labels(
            fine,
            self._objects.ids,
            _covering(grid, fine) if refine.enabled else subdivided(grid, self.config.label_cells),
            stretch=stretch,
            object_weight=self.config.object_weight,
            upsample_factor=None if refine.enabled else self.config.upsample_factor,
        )

    def _given(self, packet: Packet, carried: _Carried) -> IndexMask | None:
        """The mask to take for this frame, None where there is none or it has no object."""
        if self._masks is not None:
            mask = self._masks.get(packet.index)
            return mask if mask is not None and object_ids(mask) else None
        return self._discover(packet, carried)

    def _take(
        self, index: int, descriptors: Tensor, carried: _Carried, given: IndexMask, grid: PatchGrid
    ) -> _Carried:
        """Lay a given mask over the carried labels and keep the frame as a reference."""
        ids = object_ids(given)
        fresh_ids = tuple(number for number in ids if number not in self._objects.ids)
        self._objects.ids += fresh_ids
        channels = self._objects.channels(ids)
        fine_grid = subdivided(grid, self.config.label_cells)
        encoded = encode_mask(given, ids, fine_grid, sampling=self.config.first_labels, device=descriptors.device)
        for number in encoded.rescued:
            self._warn(f"frame {index}: object {number} is smaller than a cell of the grid; kept at its best cell")
        self._memory.widen(len(self._objects.ids) + 1)
        fresh = torch.zeros((len(self._objects.ids) + 1, *fine_grid.grid_hw), device=descriptors.device)
        fresh[0] = encoded.labels[0]
        for position, number in enumerate(ids):
            fresh[self._objects.ids.index(number) + 1] = encoded.labels[position + 1]
        before = F.pad(carried.fine, (0, 0, 0, 0, 0, len(fresh) - len(carried.fine)))
        fine = merge_channels(before, fresh, channels)
        reference = Memory(index, descriptors, fine, channels)
        self._back_fill(reference)
        dropped = self._memory.add_reference(reference)
        if dropped is not None and self._masks is not None:
            limit = self.config.max_references
            self._warn(f"frame {index}: more than {limit} given masks; forgot that of frame {dropped}")
        mask = np.where(np.isin(carried.index_mask, ids), np.uint8(0), carried.index_mask)
        mask = np.where(np.isin(given, ids), given, mask)
        for number in fresh_ids:
            self._started_at[number] = index
            self._confidence[number] = array("f")
        sure = tuple(
            1.0 if number in ids else carried.confidence[position]
            for position, number in enumerate(self._objects.ids)
        )
        return _Carried(fine, mask, sure)

    def _back_fill(self, reference: Memory) -> None:
        """Label the objects given now in the frames remembered from before.

        Without it the old frames, in which nobody knew the object, would vote it away again at once.
        """
        changed = []
        for memory in self._memory.entries():
            channels = reference.given - memory.given
            if channels:
                fresh = self._propagate(memory.descriptors, [reference], self._window)
                memory = replace(memory, labels=merge_channels(memory.labels, fresh, channels))
            changed.append(memory)
        self._memory.replace_all(tuple(changed))

    def _discover(self, packet: Packet, carried: _Carried) -> IndexMask | None:
        """Objects from the foreground: at the first frame that has one, then every ``discover_every`` frames.

        Later looks find new objects and correct the masks of those found before.
        """
        every = self.config.discover_every
        due = self._last_discovery is None or (every > 0 and packet.index - self._last_discovery >= every)
        if packet.parts is None or packet.features is None or not due:
            return None
        next_id = max(self._objects.ids, default=0) + 1
        fresh = find_objects(packet.parts, packet.features, carried.index_mask, next_id)
        if fresh is not None or self._last_discovery is not None:
            self._last_discovery = packet.index
        return fresh

    def _warn(self, message: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(message)


def _covering(grid: PatchGrid, maps: Tensor) -> PatchGrid:
    """The grid of maps ``(K, h, w)`` that tile the frame."""
    height, width = maps.shape[1:]
    stride = (grid.image_hw[0] / height, grid.image_hw[1] / width)
    return PatchGrid(grid.image_hw, (height, width), stride, (stride[0] / 2, stride[1] / 2))


def _confidence(probs: Tensor) -> tuple[float, ...]:
    """For each object the mean share of the votes it has in the cells it wins; 0 where it wins none."""
    winners = probs.argmax(0)
    values = []
    for channel in range(1, probs.shape[0]):
        won = winners == channel
        values.append(float(probs[channel][won].mean()) if bool(won.any()) else 0.0)
    return tuple(values)
