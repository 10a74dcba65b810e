"""Stage 2: dense features of every frame from a frozen ViT.

Frames are gathered into batches, resized to whole patches, and go through the backbone once, followed by LiFT. One
packet per frame leaves, in order, with its features on the backbone's device.

On a card a batch is given to the device before the packets of the one before it leave, so that the device has work
while frames are gathered, uploaded and consumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.core.device_stream import DeviceStreams
from pipeline.core.errors import CheckpointError
from pipeline.core.host_copy import HostCopy
from pipeline.core.records import Features, Frame, Packet
from pipeline.core.state import State, packet_from_state, packet_state
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.config import ExtractConfig
from stages.extract.finite import first_not_finite
from stages.extract.high_variance import HighVarianceFilter
from stages.extract.log_binning import log_bin
from stages.extract.model import FeatureModel


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that was given to the device: its frames, their features, and the copy that ends with the sums."""

    frames: list[Frame]
    features: list[Features]
    copy: HostCopy


class Extractor:
    """Frames in, packets with features out, in order.

    Invariant: every frame that goes in comes out; at most one batch of frames waits inside, on a card one more
    that is being computed (and the sample that high-variance channels are chosen from). The batch only ever
    shrinks, when the device runs out of memory. With a batch of 1 nothing is held back on a card either.

    A call is one video. The next call, unless it follows :meth:`restore`, is another one and starts with
    :meth:`reset`.

    Attributes:
        current_index: Index of the frame in work, of a batch its first one; None before the first frame.
        batch_size: Frames per forward.
        model: The forward, for measurements.
        warnings: One line each.
        sends_features: Whether a card sends the main facet and the saliency to the host, for stages that read
            them there.
        streams: The device's.
    """

    def __init__(
        self, config: ExtractConfig, *, backbone: Backbone | None = None, streams: DeviceStreams | None = None
    ) -> None:
        """Load the backbone.

        Args:
            config: The settings.
            backbone: One that is loaded already, which then belongs to this object; ``backbone``, ``weights``,
                ``stride_px`` and ``position`` of the config are not read.
            streams: Of the device; those of ``config.device`` if None.

        Raises:
            ConfigError: A device that does not exist; a facet, layer, stride, cue or input size that the model
                does not support.
            WeightsError: Weights that are missing or do not fit.
        """
        self.config = config
        self.backbone = backbone or load_backbone(
            config.backbone, weights=config.weights, stride_px=config.stride_px, position=config.position
        )
        self.model = FeatureModel(config, self.backbone, streams)
        self.streams = self.model.streams
        self.sends_features = False
        self.facets, self.cue = self.model.facets, self.model.cue
        self.device, self.precision = self.model.device, self.model.precision
        self._filter = _channel_filter(config, self.backbone.embed_dim)
        self.batch_size = config.batch_size if config.batch_size != "auto" else _default_batch(self.device)
        self.warnings: list[str] = []
        self.reset()

    @property
    def cells_per_patch(self) -> int:
        """Cells of the features' grid along each side of one of the backbone's."""
        return 1 if self.model.lift is None else 2**self.config.lift_iterations

    def reset(self) -> None:
        """Forget the video; the models, the settings and a batch size that had to shrink stay."""
        self.warnings.clear()
        self.current_index: int | None = None
        self._waiting: list[Frame] = []
        self._in_work: _Batch | None = None
        self._input_hw: tuple[int, int] | None = None
        self._grid_hw: tuple[int, int] | None = None
        self._num_frames = 0
        self._started = False
        self.model.reset()
        if self._filter is not None:
            self._filter.reset()

    def state(self) -> State:
        """Everything that decides about the packets to come: waiting frames, held packets, counts.

        A batch that is being computed counts as waiting: it is computed again.
        """
        waiting = [*(self._in_work.frames if self._in_work else ()), *self._waiting]
        return {
            "waiting": [packet_state(Packet(frame)) for frame in waiting],
            "precision": str(self.precision),
            "batch_size": self.batch_size,
            "current_index": self.current_index,
            "input_hw": self._input_hw,
            "grid_hw": self._grid_hw,
            "num_frames": self._num_frames,
            "warnings": list(self.warnings),
            "model": self.model.state(),
            "filter": None if self._filter is None else self._filter.state(),
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`: the next call continues that video, with the same batches.

        Raises:
            CheckpointError: The features so far were computed in another precision.
        """
        if state["precision"] != str(self.precision):
            raise CheckpointError(
                f"extract: the checkpoint was made with precision {state['precision']}, this run uses "
                f"{self.precision}; set extract.precision accordingly"
            )
        self.reset()
        self._waiting = [packet_from_state(item).frame for item in state["waiting"]]
        self.batch_size = state["batch_size"]
        self.current_index = state["current_index"]
        self._input_hw, self._grid_hw = (
            None if state[name] is None else (state[name][0], state[name][1]) for name in ("input_hw", "grid_hw")
        )
        self._num_frames = state["num_frames"]
        self.warnings.extend(state["warnings"])
        self.model.restore(state["model"])
        if self._filter is not None:
            self._filter.restore(state["filter"], self.device)

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Packet]:
        """Yield a packet with features for every frame of one video."""
        if self._started:
            self.reset()
        self._started = True
        restored, self._waiting = self._waiting, []
        for frame in chain(restored, frames):
            yield from self._take(frame)
        yield from self._extract_waiting()
        yield from self._finish_work()
        for packet in () if self._filter is None else self._filter.flush():
            yield self._finished(packet)

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        facts: dict[str, Any] = {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.weights_sha256,
            "facets": [str(spec) for spec in self.facets],
            "saliency": self.cue,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "precision_choice": self.model.precision_choice,
            "batch_size": self.batch_size,
            "compiled": self.config.compile,
            "stride_px": self.backbone.stride_px,
            "position": self.backbone.position,
            "input_hw": self._input_hw,
            "grid_hw": self._grid_hw,
            "frames": self._num_frames,
        }
        if self.model.lift is not None:
            facts["lift"] = {"iterations": self.config.lift_iterations, **self.model.lift.report()}
        if self.model.smoother is not None:
            facts["repair"] = self.model.smoother.report()
        if self._filter is not None:
            facts["high_variance"] = self._filter.report()
        return facts

    def _take(self, frame: Frame) -> Iterator[Packet]:
        """Put a frame into the batch; yields the packets of batches that are full."""
        self.current_index = frame.index
        if self._waiting and frame.image_hw != self._waiting[0].image_hw:
            yield from self._extract_waiting()
        self._waiting.append(frame)
        if len(self._waiting) >= self.batch_size:
            yield from self._extract_waiting()

    def _extract_waiting(self) -> Iterator[Packet]:
        frames, self._waiting = self._waiting, []
        if frames:
            yield from self._extract(frames)

    def _extract(self, frames: list[Frame]) -> Iterator[Packet]:
        """Give a batch to the device, halved as its memory demands, and yield the packets that are due."""
        batch: _Batch | None = None
        try:
            batch = self._launch(frames)
        except torch.OutOfMemoryError:
            if len(frames) == 1 and self._in_work is None:
                raise
        if batch is not None:
            before, self._in_work = self._in_work, batch
            if before is not None:
                yield from self._packets(before)
            if not self.streams.is_asynchronous or self.batch_size == 1:
                yield from self._finish_work()
            return
        # Not inside the except block: there the traceback keeps the failed batch's tensors alive.
        if self._in_work is not None:  # without it there may be room enough
            yield from self._finish_work()
            self.streams.release_memory()
            yield from self._extract(frames)
            return
        half = (len(frames) + 1) // 2
        if half < self.batch_size:
            self.batch_size = half
            self.warnings.append(
                f"extract: a batch of {len(frames)} frames does not fit on {self.device}; going on with {half}"
            )
        self.streams.release_memory()
        yield from self._extract(frames[:half])
        yield from self._extract(frames[half:])

    def _finish_work(self) -> Iterator[Packet]:
        batch, self._in_work = self._in_work, None
        if batch is not None:
            yield from self._packets(batch)

    def _packets(self, batch: _Batch) -> Iterator[Packet]:
        """The packets of a batch; waits for its sums."""
        if not np.isfinite(batch.copy.arrays()[-1]).all():
            self._refuse_if_not_finite(batch)
        self._num_frames += len(batch.frames)
        for frame, found in zip(batch.frames, batch.features, strict=True):
            packet = Packet(frame=replace(frame, on_device=None), features=found)  # nobody else reads it there
            for chosen in (packet,) if self._filter is None else self._filter.take(packet):
                yield packet if self._filter is None else self._finished(chosen)

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)

    def _launch(self, frames: list[Frame]) -> _Batch:
        """Give frames of one size to the device."""
        self.current_index = frames[0].index
        input_hw, wanted_hw = self.model.input_size(frames[0].image_hw)
        if input_hw != wanted_hw:
            self._warn(
                f"extract: frames of {_size(frames[0].image_hw)} px would be {_size(wanted_hw)} px at the model; "
                f"scaled down to {_size(input_hw)} px to keep within extract.max_cells = {self.config.max_cells}"
            )
        decoded = [frame.on_device for frame in frames]
        is_full = len(frames) == self.batch_size
        launched = self.model.launch([frame.image for frame in frames], input_hw, decoded, is_full=is_full)
        self._input_hw, self._grid_hw = input_hw, launched.features[0].grid.grid_hw
        if self._filter is None:
            launched = replace(launched, features=[self._finish(found) for found in launched.features])
        sent = self.sends_features and self._filter is None
        return _Batch(frames, *self.model.send_to_host(launched, features=sent))

    def _refuse_if_not_finite(self, batch: _Batch) -> None:
        """A sum is not finite: look for the value.

        Raises:
            FloatingPointError: Names the frame and the facet.
        """
        bad = first_not_finite(batch.features, self.model.names)
        if bad is not None:
            self.current_index = index = batch.frames[bad.image].index
            hint = "" if self.precision == torch.float32 else " or set extract.precision to fp32"
            raise FloatingPointError(
                f"frame {index}: {bad.count} of {bad.total} values of {bad.facet} are not finite; check the "
                f"weights{hint}"
            )

    def _finished(self, packet: Packet) -> Packet:
        return packet if packet.features is None else replace(packet, features=self._finish(packet.features))

    @torch.inference_mode()
    def _finish(self, features: Features) -> Features:
        """Log binning and normalization, which see the channels that are left."""
        if not (self.config.log_bins or self.config.normalize):
            return features
        data, extra = features.data, features.extra
        if self.config.log_bins:
            data = log_bin(data, self.config.log_bins)
        if self.config.normalize:
            data = F.normalize(data, dim=0)
            extra = {name: F.normalize(values, dim=0) for name, values in extra.items()}
        before = None if features.before_lift is None else self._finish(features.before_lift)
        return replace(features, data=data, extra=extra, before_lift=before)


def _default_batch(device: torch.device) -> int:
    return 16 if device.type == "cuda" else 4


def _size(height_width: tuple[int, int]) -> str:
    return f"{height_width[0]} x {height_width[1]}"


def _channel_filter(config: ExtractConfig, channels: int) -> HighVarianceFilter | None:
    if not config.drop_high_variance and config.high_variance_indices is None:
        return None
    return HighVarianceFilter(config.drop_high_variance, indices=config.high_variance_indices, channels=channels)
