"""Propagate: object masks propagated from frame to frame by the similarity of dense features.

Objects come from given masks (of any frame; later ones add objects or correct them) or, without any, from the
foreground found by co-segmentation. The defaults are DINO's DAVIS protocol (Caron et al. 2021, section 4.2.2):
the first frame and the 7 before, radius 12, top-5, temperature 0.1.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError, MaskError
from pipeline.core.records import LabelMap, Packet, PatchGrid
from pipeline.core.state import State
from pipeline.formats.masks import object_ids
from stages.propagate.config import PropagateConfig, at_distance, make_windows
from stages.propagate.descriptors import add_color, joint_descriptors
from stages.propagate.device_readout import read_out as read_out_on_device
from stages.propagate.discovery import Discovery, ObjectFinder
from stages.propagate.label_maps import (
    FrameLabels,
    IndexMask,
    encode_mask,
)
from stages.propagate.label_memory import LabelMemory, Memory, merge_channels
from stages.propagate.motion import measure_motion
from stages.propagate.objects import ObjectTable
from stages.propagate.part_owners import PartOwners
from stages.propagate.reach import drop_out_of_reach
from stages.propagate.readout import read_out
from stages.propagate.search import LabelSearch
from stages.propagate.target_model import Corrected, TargetModel, correct

MAX_WARNINGS = 50
MAX_LISTED = 8
FOUND_REFERENCES = 2
"""References with found masks: the first, and the latest, which is the better one."""


class Propagator:
    """Propagates the masks of one video forward; :meth:`reset` before the next video. Ids never change.

    Args:
        config: The settings.
        masks: uint8 ``(H, W)`` index masks by 0-based frame index, each read when its frame comes; any mapping
            will do, for example one that reads files. None finds objects in ``packet.parts`` until a mask is
            given to :meth:`step`.
        search_dtype: See :func:`stages.propagate.propagation.propagate_labels`.
        cells_per_patch: See :class:`~stages.propagate.search.LabelSearch`.
    """

    def __init__(
        self,
        config: PropagateConfig,
        *,
        masks: Mapping[int, IndexMask] | None = None,
        search_dtype: torch.dtype = torch.float32,
        cells_per_patch: int = 1,
    ) -> None:
        self.config = config
        self._search = LabelSearch(config, search_dtype=search_dtype, cells_per_patch=cells_per_patch)
        refine = config.refine.model_copy(update={"cell_px": self._search.refine_cell_px})
        self._readout_config = config.model_copy(update={"refine": refine})
        self._window, self._reference_window = make_windows(config)
        self.reset(masks=masks)

    def reset(self, *, masks: Mapping[int, IndexMask] | None = None) -> None:
        """Forget the video and its masks; ``masks`` are those of the next one."""
        self.warnings: list[str] = []
        self._masks = masks
        self._discovers = masks is None
        self._objects = ObjectTable()
        self._memory = LabelMemory(
            self.config.context_frames,
            max_references=self.config.max_references,
            prefix_copies=self.config.prefix_copies,
        )
        if self._discovers:
            self._memory.max_references = min(self.config.max_references, FOUND_REFERENCES)
        self._last_discovery: int | None = None
        self._finder = ObjectFinder(self.config.confirm_sightings)
        self._part_owners = PartOwners()
        self._last_index = -1
        self._skipped_masks: list[int] = []
        self._model: TargetModel | None = None
        self._search.reset()

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Add ``labels`` to every packet: :meth:`step` with the masks of the mapping.

        Raises:
            ConfigError: Packets without features, or without a facet the config asks for.
            MaskError: A mask of another size than its frame.
        """
        with_masks = sorted(self._masks or ())
        for packet in packets:
            skipped = with_masks[
                bisect_right(with_masks, self._last_index) : bisect_left(with_masks, packet.index)
            ]
            self._skip_masks(skipped)
            yield self.step(packet, self._masks.get(packet.index) if self._masks is not None else None)
        self._skip_masks(with_masks[bisect_right(with_masks, self._last_index) :])
        if self._skipped_masks:
            listed = ", ".join(str(index) for index in self._skipped_masks[:MAX_LISTED])
            more = ", ..." * (len(self._skipped_masks) > MAX_LISTED)
            self._warn(f"no frame came for the masks of {listed}{more}; they were not used")

    def step(self, packet: Packet, masks: IndexMask | None = None) -> Packet:
        """Label the next frame of the video.

        Args:
            packet: The frame and its features.
            masks: Index mask of this frame, uint8 ``(H, W)``: it adds objects, and replaces the masks of those it
                shows. 255 is void. From the first one on, no objects are found in ``packet.parts``.

        Returns:
            The packet with ``labels``.

        Raises:
            ValueError: The frame does not come after the one before; see :meth:`reset`.
            ConfigError: The packet lacks features, or a facet the config asks for.
            MaskError: ``masks`` is not uint8 of the frame's size.
        """
        if packet.index <= self._last_index:
            raise ValueError(f"frame {packet.index} after frame {self._last_index}; reset() before another video")
        if packet.features is None:
            raise ConfigError("propagate needs features: switch extract on")
        grid = packet.features.grid
        descriptors = joint_descriptors(packet.features, self.config.facets)
        if self.config.color_weight:
            descriptors = add_color(descriptors, packet.frame.image, grid, weight=self.config.color_weight)
        self._memory.to(descriptors.device)
        labels = self._propagate_frame(packet, descriptors, grid)
        found = self._discover(packet, labels) if masks is None else self._given(packet, masks)
        if found is not None:
            labels = self._insert(packet.index, descriptors, labels, found, grid)
        elif not self._memory.empty:
            self._memory.push(Memory(packet.index, descriptors, labels.fine))
        self._objects.update(packet.index, labels.index_mask, labels.confidence)
        if packet.parts is not None:
            self._part_owners.add(packet.parts.index_mask, labels.index_mask)
        self._last_index = packet.index
        probs = F.avg_pool2d(labels.fine, self.config.label_cells) if self.config.label_cells > 1 else labels.fine
        return replace(packet, labels=LabelMap(probs, self._objects.ids, labels.index_mask, labels.confidence))

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``: objects, whose each part is, and the frames whose given masks are remembered."""
        references = [memory.frame_index for memory in self._memory.references]
        owners = {"parts": parts} if (parts := self._part_owners.report()) else {}
        return {"objects": self._objects.report(), **owners, "references": references, **self._finder.report()}

    def state(self) -> State:
        """Everything but the config and the masks that the next frame's labels depend on."""
        return {
            "warnings": list(self.warnings),
            "discovers": self._discovers,
            "objects": self._objects.state(),
            "memory": self._memory.state(),
            "max_references": self._memory.max_references,
            "last_discovery": self._last_discovery,
            "finder": self._finder.state(),
            "part_owners": self._part_owners.state(),
            "last_index": self._last_index,
            "skipped_masks": list(self._skipped_masks),
        }

    def restore(self, state: State) -> None:
        """Go on after the frame at which :meth:`state` was called; config and masks must be the same."""
        self.warnings = list(state["warnings"])
        self._discovers = state["discovers"]
        self._objects = ObjectTable.from_state(state["objects"])
        self._memory.restore(state["memory"])
        self._memory.max_references = state["max_references"]
        self._last_discovery = state["last_discovery"]
        self._finder.restore(state["finder"])
        self._part_owners.restore(state["part_owners"])
        self._last_index = state["last_index"]
        self._skipped_masks = list(state["skipped_masks"])
        self._model = None  # fitted again from the references

    def _propagate_frame(self, packet: Packet, descriptors: Tensor, grid: PatchGrid) -> FrameLabels:
        """Labels of a frame from the memory alone; all background where the memory is empty."""
        if self._memory.empty:
            fine = torch.ones((1, *grid.subdivided(self.config.label_cells).grid_hw), device=descriptors.device)
            return FrameLabels(fine, np.zeros(grid.image_hw, np.uint8))
        windows = [self._reference_window] * len(self._memory.references)
        for memory in self._memory.recent:
            windows.append(at_distance(self.config, self._window, packet.index - memory.frame_index))
        motion = self._motion(packet.index, descriptors)
        fine = self._search(descriptors, self._memory.entries(), windows, motion)
        fine = self._within_reach(packet.index, fine)
        corrected = self._correct(descriptors, fine)
        fine, shown, estimate = corrected.labels, corrected.mask, corrected.estimate
        make = read_out if fine.is_cpu else read_out_on_device
        image, ids = packet.frame.image, self._objects.ids
        return make(fine, estimate, image, grid, ids, self._readout_config, shown=shown)

    def _within_reach(self, index: int, fine: Tensor) -> Tensor:
        """The labels without what is farther from each object's last place than it can have moved."""
        config, latest = self.config, self._latest()
        if config.max_step_cells is None or len(self._objects) < 2:
            return fine
        step = config.max_step_cells * self._search.cells_per_unit
        frames = index - latest.frame_index
        return drop_out_of_reach(fine, latest.labels, step_cells=step, parts=config.label_cells, frames=frames)

    def _latest(self) -> Memory:
        """The last frame in memory."""
        return max(self._memory.entries(), key=lambda memory: memory.frame_index)

    def _correct(self, descriptors: Tensor, fine: Tensor) -> Corrected:
        """The labels after the target model's corrections."""
        settings = self.config.target_model
        if not settings.weight and not settings.mask_weight:
            return Corrected(fine, fine, fine)
        self._model = self._model or TargetModel.fit(self._memory.references)
        return correct(self._model, descriptors, fine, settings)

    def _motion(self, index: int, descriptors: Tensor) -> Tensor | None:
        """Offset of every cell per frame back ``(2, h, w)``, measured against the latest frame in memory."""
        config = self.config
        if not config.prior_motion or config.prior_sigma_cells is None:
            return None
        latest = self._latest()
        past, window = latest.descriptors, self._search.on_features(self._window)
        offset = measure_motion(descriptors, past, window, max_bytes=config.max_bytes, kernel=config.kernel)
        return offset / (index - latest.frame_index)

    def _given(self, packet: Packet, mask: IndexMask) -> Discovery | None:
        """A mask of the caller, None where it shows no object; from the first one on nothing is discovered."""
        if mask.dtype != np.uint8 or mask.shape != packet.frame.image_hw:
            raise MaskError(
                f"frame {packet.index}: the mask is {mask.dtype} {mask.shape}, it must be uint8 "
                f"{packet.frame.image_hw} like the frame"
            )
        if not object_ids(mask):
            return None
        self._discovers = False
        self._memory.max_references = self.config.max_references
        return Discovery(mask)

    def _insert(
        self, index: int, descriptors: Tensor, labels: FrameLabels, found: Discovery, grid: PatchGrid
    ) -> FrameLabels:
        """Lay a given mask over the propagated labels and keep the frame as a reference."""
        given, ids = found.mask, object_ids(found.mask)
        self._objects.add(ids, index)
        channels = self._objects.channels((*ids, *found.left))
        fresh = self._encode(index, given, ids, grid, descriptors.device)
        self._memory.widen(len(fresh))
        before = F.pad(labels.fine, (0, 0, 0, 0, 0, len(fresh) - len(labels.fine)))
        fine = merge_channels(before, fresh, channels)
        reference = Memory(index, descriptors, fine, channels)
        self._back_fill(reference)
        dropped = self._memory.add_reference(reference)
        self._model = None
        if dropped is not None and not self._discovers:
            limit = self._memory.max_references
            self._warn(f"frame {index}: more than {limit} given masks; dropped that of frame {dropped}")
        mask = np.where(np.isin(labels.index_mask, (*ids, *found.left)), np.uint8(0), labels.index_mask)
        mask = np.where(np.isin(given, ids), given, mask)
        known = dict(zip(self._objects.ids, labels.confidence, strict=False))
        confidence = tuple(1.0 if number in ids else known.get(number, 0.0) for number in self._objects.ids)
        return FrameLabels(fine, mask, confidence)

    def _encode(
        self, index: int, mask: IndexMask, ids: tuple[int, ...], grid: PatchGrid, device: torch.device
    ) -> Tensor:
        """Labels ``(K + 1, h s, w s)`` of a given mask with the channels of all objects known."""
        fine_grid = grid.subdivided(self.config.label_cells)
        encoded = encode_mask(mask, ids, fine_grid, sampling=self.config.first_labels, device=device)
        for number in encoded.rescued:
            self._warn(f"frame {index}: object {number} is smaller than a cell of the grid; kept at its best cell")
        fresh = torch.zeros((len(self._objects) + 1, *fine_grid.grid_hw), device=device)
        fresh[0] = encoded.labels[0]
        for position, number in enumerate(ids):
            fresh[self._objects.ids.index(number) + 1] = encoded.labels[position + 1]
        return fresh

    def _back_fill(self, reference: Memory) -> None:
        """Label the objects given now in the frames remembered from before.

        Without it those frames, in which the object is background, would vote it away in the next frame.
        """
        changed = []
        for memory in self._memory.entries():
            channels = reference.given - memory.given
            if channels:
                fresh = self._search(memory.descriptors, [reference], [self._window])
                memory = replace(memory, labels=merge_channels(memory.labels, fresh, channels))
            changed.append(memory)
        self._memory.replace_all(tuple(changed))

    def _discover(self, packet: Packet, labels: FrameLabels) -> Discovery | None:
        """Objects from proposals, where there are any; else from the foreground, every ``discover_every`` frames.

        Later ones add new objects and correct the masks of those found before.
        """
        if not self._discovers or packet.parts is None or packet.features is None:
            return None
        every, last = self.config.discover_every, self._last_discovery
        due = last is None or (every > 0 and packet.index - last >= every)
        if not self._finder.wants(packet.parts, due=due):
            return None
        found = self._finder.find(packet.parts, packet.features, labels.index_mask, self._objects.ids)
        if not found.is_empty or last is not None:
            self._last_discovery = packet.index
        return None if found.is_empty else found

    def _skip_masks(self, indices: Sequence[int]) -> None:
        self._skipped_masks = [*self._skipped_masks, *indices][: MAX_LISTED + 1]

    def _warn(self, message: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(message)
