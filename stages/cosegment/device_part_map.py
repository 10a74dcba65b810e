"""The part map of a frame made on a card: discriminant, parts and their average over time.

The same numbers as ``part_maps.make_part_map`` and ``temporal_maps.TemporalMaps``, to float rounding, from
features that are on the card. The only wait is for the result. The codebook and the flow go to the card in one
copy, the small copies of the picture in another; the index mask comes back as uint8. What the codebook learns from
a frame is small and stays on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.device_filter import DeviceGuidedFilter, apply_fit
from pipeline.core.device_stream import DeviceStreams, streams_of
from pipeline.core.grid import PatchGrid
from pipeline.core.guided_filter import fast_guides
from pipeline.core.host_copy import fetch, send_all, send_like
from pipeline.core.records import Features, PartMap
from pipeline.core.state import State
from stages.cosegment import part_maps, temporal_maps
from stages.cosegment.codebook import Codebook
from stages.cosegment.cosegmentation import CERTAIN_LOGIT, VOTE_SHARPNESS
from stages.cosegment.device_maps import gaussian_blur, remap_linear, resize_linear, resize_nearest, small_pieces
from stages.cosegment.observation import Observation
from stages.cosegment.part_space import PartSpace

_EPSILON = 1e-4


class DeviceLabeler:
    """Labels frame after frame of a video on a card; call :meth:`reset` at a cut.

    Args:
        memory: Share of the past in the foreground's average, in [0, 1).
        part_memory: The same for the parts in it.
        space: What parts are clustered in; None = the descriptors themselves.
    """

    def __init__(self, memory: float, part_memory: float, space: PartSpace | None) -> None:
        self._memory, self._part_memory = memory, part_memory
        self._space = space
        self._space_there: tuple[Tensor, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._maps: dict[int, Tensor] = {}
        self._rows: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is remembered."""
        return self._rows is None

    def state(self) -> State:
        """All that later frames depend on, as ``TemporalMaps.state`` gives it."""
        maps = [[number, values.cpu().numpy()] for number, values in self._maps.items()]
        return {"maps": maps, "rows": None if self._rows is None else self._rows.cpu().numpy()}

    def restore(self, state: State, like: Tensor) -> None:
        """Continue from a :meth:`state`, on the device of a tensor."""
        self._maps = {number: send_like(torch.from_numpy(values), like) for number, values in state["maps"]}
        self._rows = None if state["rows"] is None else send_like(torch.from_numpy(state["rows"]), like)

    def __call__(
        self,
        image: npt.NDArray[np.uint8],
        cells: Features,
        coarse: Features,
        seen: Observation,
        codebook: Codebook,
        numbers: IntArray,
        *,
        num_parts: int,
        guided: bool,
        min_component_share: float,
        part_ids: bool = False,
        background: npt.NDArray[np.bool_] | None = None,
        streams: DeviceStreams | None = None,
    ) -> PartMap:
        """The parts of one frame; see ``part_maps.make_part_map``.

        Args:
            image: uint8 ``(H, W, 3)``.
            cells: The features whose cells are labeled.
            coarse: Those on the backbone's grid; ``cells`` itself without LiFT.
            seen: The frame's flow and gray copy.
            codebook: Of the frame's shot; not empty.
            numbers: int64 ``(P,)``, the number of each of the codebook's parts.
            num_parts: Largest number assigned so far.
            guided: Whether outlines follow the picture's edges.
            min_component_share: Smaller pieces of foreground, next to the largest, are dropped.
            part_ids: Also make :attr:`PartMap.part_ids`.
            background: bool ``(h, w)`` on the backbone's grid, cells known to be background.
            streams: The device's; found from the features if None.
        """
        streams = streams or streams_of(cells.data.device)
        known = np.zeros(coarse.grid.grid_hw, bool) if background is None else background
        weights, offset = _foreground_weights(codebook)
        flow = np.zeros((0, 0, 2), np.float32) if seen.flow is None else seen.flow
        arrays = [weights, offset, codebook.parts, numbers, known, flow]
        sent = send_all(streams, [np.asarray(array, np.float32) for array in arrays])
        rows = _unit_rows(cells)
        coarse_rows = rows if coarse is cells else _unit_rows(coarse)
        factor = cells.grid.grid_hw[0] // coarse.grid.grid_hw[0]
        logits = _logits(rows, sent[0], sent[1], codebook).clamp(-part_maps.MAX_LOGIT, part_maps.MAX_LOGIT)
        logits = logits.view(cells.grid.grid_hw)
        logits = torch.where(_repeated(sent[4] > 0, factor), -part_maps.MAX_LOGIT, logits)
        if min_component_share > 0:
            small = small_pieces(logits > 0, min_component_share)
            logits = torch.where(small, -part_maps.MAX_LOGIT, logits)
        distances = _squared_distances(self._in_space(rows, streams), sent[2]).T.reshape(-1, *cells.grid.grid_hw)
        soft = _soft_parts(logits, distances, part_maps.PART_BLUR_PATCHES * factor)
        soft = cells.grid.upsample(soft, coarse.grid.grid_hw if seen.gray is None else seen.gray.shape)
        soft = self._blend(soft, numbers, coarse_rows, None if seen.flow is None else sent[5], coarse.grid)
        foreground = coarse.grid.sample_area(1 - soft[:1])[0].clamp(0, 1)
        ids = sent[3].to(torch.uint8)
        mask = _pixel_labels(image, coarse.grid, soft, ids, guided=guided, streams=streams)
        cell_ids = _cell_parts(coarse.grid, soft, foreground, ids) if part_ids else ids[:0]
        flat = torch.cat([mask.flatten(), foreground.flatten().view(torch.uint8), cell_ids.flatten()])
        found = fetch(streams, [flat])[0]
        pixels, cells_end = mask.numel(), mask.numel() + 4 * foreground.numel()
        return PartMap(
            found[cells_end:].reshape(coarse.grid.grid_hw) if part_ids else None,
            num_parts,
            found[:pixels].reshape(mask.shape),
            np.frombuffer(found[pixels:cells_end].tobytes(), np.float32).reshape(coarse.grid.grid_hw),
        )

    def _in_space(self, rows: Tensor, streams: DeviceStreams) -> Tensor:
        """The rows that parts are clustered on, ``(N, d)``."""
        if self._space is None:
            return rows
        if self._space_there is None or self._space_there[0].device != rows.device:
            mean, axes = send_all(streams, [self._space.mean, self._space.axes])
            self._space_there = mean, axes
        mean, axes = self._space_there
        return F.normalize((rows - mean) @ axes, dim=1)

    def _blend(
        self, maps: Tensor, numbers: IntArray, rows: Tensor, flow: Tensor | None, grid: PatchGrid
    ) -> Tensor:
        """``TemporalMaps.blend``."""
        keys = [0, *(int(number) for number in numbers)]
        if self._rows is not None and self._rows.shape == rows.shape and flow is not None:
            agreement = _agreement(rows, self._rows, flow, grid)
            maps = self._blended(maps, keys, flow, agreement)
        self._maps, self._rows = dict(zip(keys, maps, strict=True)), rows
        return maps

    def _blended(self, maps: Tensor, keys: Sequence[int], flow: Tensor, agreement: Tensor) -> Tensor:
        nothing = torch.zeros_like(maps[0])
        past = remap_linear(torch.stack([self._maps.get(key, nothing) for key in keys]), _targets(flow))
        share = self._memory * _ramp(agreement, temporal_maps.FOREGROUND_COSINE)
        background = maps[0] + share * (past[0] - maps[0])
        share = self._part_memory * _ramp(agreement, temporal_maps.PART_COSINE)
        joint = (1 - share) * maps[1:] + share * past[1:]
        joint = joint * ((1 - background) / joint.sum(0).clamp(min=1e-6))
        return torch.cat([background[None], joint])


def _unit_rows(features: Features) -> Tensor:
    """Descriptors float32 ``(N, C)``, L2-normalized, in the order in memory that a checkpoint gives them."""
    return F.normalize(features.data.float().flatten(1).T, dim=1).contiguous()


def _foreground_weights(codebook: Codebook) -> tuple[FloatArray, FloatArray]:
    """What tells foreground: the discriminant's direction and offset, or salient and other clusters."""
    learned = codebook.discriminant
    if learned is None:
        return codebook.clusters[codebook.salient], codebook.clusters[~codebook.salient]
    direction = learned.basis @ learned.weights
    offset = np.array([learned.bias - float(learned.mean @ direction)], np.float32)
    return np.asarray(direction, np.float32), offset


def _logits(rows: Tensor, weights: Tensor, offset: Tensor, codebook: Codebook) -> Tensor:
    """``Codebook.logits`` of rows ``(N, C)``."""
    if codebook.discriminant is not None:
        return rows @ weights + offset
    if not len(weights) or not len(offset):
        return torch.full_like(rows[:, 0], CERTAIN_LOGIT if len(weights) else -CERTAIN_LOGIT)
    margin = _squared_distances(rows, offset).amin(1) - _squared_distances(rows, weights).amin(1)
    return VOTE_SHARPNESS * margin


def _squared_distances(rows: Tensor, centroids: Tensor) -> Tensor:
    norms = (rows * rows).sum(1)[:, None] + (centroids * centroids).sum(1)
    return (norms - 2 * (rows @ centroids.T)).clamp(min=0)


def _repeated(cells: Tensor, factor: int) -> Tensor:
    """Each cell ``(h, w)`` as ``factor`` by ``factor`` of them."""
    height, width = cells.shape
    return cells[:, None, :, None].expand(-1, factor, -1, factor).reshape(height * factor, width * factor)


def _soft_parts(logits: Tensor, distances: Tensor, blur_cells: float) -> Tensor:
    """Probabilities ``(P + 1, h, w)`` of background and each part."""
    foreground = torch.sigmoid(logits)
    weight = foreground + 1e-3
    blurred = gaussian_blur(torch.cat([weight[None], distances * weight]), blur_cells)
    distances = blurred[1:] / blurred[:1]
    nearness = torch.exp(-part_maps.PART_ODDS * (distances - distances.amin(0)))
    return torch.cat([1 - foreground[None], foreground * nearness / nearness.sum(0)])


def _pixel_labels(
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    soft: Tensor,
    ids: Tensor,
    *,
    guided: bool,
    streams: DeviceStreams,
) -> Tensor:
    """Foreground and likeliest part at every pixel, uint8 ``(H, W)``."""
    size = (image.shape[0], image.shape[1])
    foreground = 1 - soft[0]
    if guided:
        guides = fast_guides(image)
        small, large = (part.permute(2, 0, 1) / 255 for part in send_all(streams, [guides.small, guides.large]))
        radius = max(1, round(part_maps.edge_reach_px(grid) * guides.scale))
        smooth = DeviceGuidedFilter(small, radius_px=radius, epsilon=_EPSILON)
        resized = resize_linear(foreground[None], (small.shape[1], small.shape[2]))[0]
        fit = resize_linear(smooth.fit(resized), (large.shape[1], large.shape[2]))
        foreground = apply_fit(fit, large)
    inside = resize_linear(foreground[None], size)[0] >= 0.5
    best = resize_nearest(ids[soft[1:].argmax(0)], size)
    return torch.where(inside, best, 0)


def _cell_parts(grid: PatchGrid, soft: Tensor, foreground: Tensor, ids: Tensor) -> Tensor:
    likeliest = grid.sample_area(soft[1:]).argmax(0)
    return torch.where(foreground >= 0.5, ids[likeliest], 0)


def _targets(flow: Tensor) -> Tensor:
    """Where the flow ``(H, W, 2)`` leads from every pixel, as (x, y)."""
    height, width = flow.shape[:2]
    x = torch.arange(width, device=flow.device).expand(height, width)
    y = torch.arange(height, device=flow.device)[:, None].expand(height, width)
    return flow + torch.stack([x, y], dim=-1)


def _agreement(rows: Tensor, previous: Tensor, flow: Tensor, grid: PatchGrid) -> Tensor:
    """Cosine of each cell to the one the flow says it came from, at the flow's size; -1 from outside."""
    height, width = grid.grid_hw
    moved = grid.sample_area(flow.permute(2, 0, 1))
    per_px = [grid.image_hw[axis] / flow.shape[axis] / grid.stride_px[axis] for axis in (1, 0)]
    column = torch.round(torch.arange(width, device=rows.device) + moved[0] * per_px[0]).long()
    row = torch.round(torch.arange(height, device=rows.device)[:, None] + moved[1] * per_px[1]).long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    source = previous.index_select(0, place.flatten())
    center = previous.mean(0)
    cosine = (F.normalize(rows - center, dim=1) * F.normalize(source - center, dim=1)).sum(1)
    cosine = torch.where(inside, cosine.view(height, width), -1.0)
    return grid.upsample(cosine[None], (flow.shape[0], flow.shape[1]))[0]


def _ramp(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return ((values - limits[0]) / (limits[1] - limits[0])).clamp(0, 1)
