"""How the stage compares a frame with those it remembers: by which search, in which precision, in whose cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.propagate.coarse_to_fine import CoarseToFine
from stages.propagate.config import PropagateConfig
from stages.propagate.label_maps import pack_cells, unpack_cells
from stages.propagate.label_memory import Memory
from stages.propagate.propagation import Window, propagate_labels


class LabelSearch:
    """Propagates labels between frames as the config says.

    Remembers what it has made of the frames, never anything that results depend on.

    Args:
        config: The settings.
        search_dtype: See :func:`stages.propagate.propagation.propagate_labels`.
        cells_per_patch: Cells of the features' grid along each side of one of the backbone's: LiFT doubles them.
    """

    def __init__(self, config: PropagateConfig, *, search_dtype: torch.dtype, cells_per_patch: int = 1) -> None:
        self._config = config
        self._dtype = search_dtype
        self.cells_per_patch = cells_per_patch
        self.reset()

    def reset(self) -> None:
        """Forget the frames."""
        self._converted: dict[int, tuple[Tensor, Tensor]] = {}
        self._coarse = CoarseToFine(self.cells_per_patch, search_dtype=self._dtype)

    @property
    def refine_cell_px(self) -> int:
        """Pixels per cell of the features' grid at which masks are refined."""
        return -(-self._config.refine.cell_px // self.cells_per_patch)

    @property
    def cells_per_unit(self) -> int:
        """Cells of the features' grid along what the config's distances count (``radius_unit``)."""
        return self.cells_per_patch if self._config.radius_unit == "patch" else 1

    def on_features(self, window: Window) -> Window:
        """A window of the config in cells of the features' grid."""
        return window.scaled(self.cells_per_unit)

    def __call__(
        self,
        target: Tensor,
        entries: Sequence[Memory],
        windows: Sequence[Window],
        motion: Tensor | None = None,
    ) -> Tensor:
        """Labels ``(K + 1, h s, w s)`` of a frame.

        Args:
            target: float32 ``(C, h, w)``, normalized, channels last in memory.
            entries: The frames to take labels from.
            windows: One per entry, in the config's units.
            motion: float32 ``(2, h, w)``: offset of each cell per frame back, in cells of the features' grid.
        """
        config, parts = self._config, self._config.label_cells
        contexts = [memory.descriptors for memory in entries]
        labels = [pack_cells(memory.labels, parts) for memory in entries]
        windows = [self.on_features(window) for window in windows]
        is_coarse = config.search == "coarse" or (config.search == "auto" and target.is_cpu)
        if self.cells_per_patch > 1 and is_coarse:
            packed = self._coarse(
                target,
                contexts,
                labels,
                windows=[window.scaled(1 / self.cells_per_patch) for window in windows],
                top_k=config.top_k,
                temperature=config.temperature,
                keep_ties=config.keep_ties,
                motion=motion,
                max_bytes=config.max_bytes,
            )
            return unpack_cells(packed, parts)
        packed = propagate_labels(
            *self._in_search_dtype(target, contexts),
            labels,
            windows=windows,
            top_k=config.top_k,
            temperature=config.temperature,
            keep_ties=config.keep_ties,
            motion=motion,
            search_dtype=self._dtype,
            max_bytes=config.max_bytes,
            kernel=config.kernel,
        )
        return unpack_cells(packed, parts)

    def _in_search_dtype(self, target: Tensor, contexts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The frames in the precision of the search, each converted once while it is in use."""
        kept = {}
        for frame in (target, *contexts):
            known = self._converted.get(id(frame))
            kept[id(frame)] = known if known is not None and known[0] is frame else (frame, frame.to(self._dtype))
        self._converted = kept
        return kept[id(target)][1], [kept[id(frame)][1] for frame in contexts]
