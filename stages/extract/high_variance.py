"""Dropping the few feature channels whose variance dominates the rest.

In features of MAE-like models a small set of channels varies far more than all others, and not with the content;
nearest neighbors in the full space then depend on little else. Dropping the most variable channels (200 of 768
for MAE ViT-B) recovers most of the loss; DINO, DINOv2 and supervised models neither gain nor lose.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), high-variance features.
Differs from the reference: the variance is estimated from the first frames of a video (or the indices are
given), because a stream has no data set; the paper finds the index sets of two data sets nearly equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.records import Packet
from pipeline.core.state import State, packet_from_state, packet_state


class ChannelVariance:
    """Per-channel variance over any number of feature maps, one map at a time.

    Mean and sum of squared deviations are merged map by map in float64 (Chan's pairwise update), so the result
    is that of one pass over all patches together, and memory is two vectors.

    >>> variance = ChannelVariance()
    >>> variance.update(torch.tensor([[[0.0, 2.0]], [[5.0, 5.0]]]))
    >>> variance.update(torch.tensor([[[4.0, 6.0]], [[5.0, 5.0]]]))
    >>> variance.value().tolist()
    [5.0, 0.0]
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add a map ``(C, ...)``; every position is one patch.

        Raises:
            ValueError: The number of channels changed.
        """
        patches = features.detach().flatten(1).to(torch.float64)
        count = patches.shape[1]
        if count == 0:
            return
        mean = patches.mean(dim=1)
        squares = (patches - mean[:, None]).square().sum(dim=1)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean, squares
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features of {mean.shape[0]} channels after {self._mean.shape[0]}")
        total = self.count + count
        delta = mean - self._mean
        self._squares += squares + delta.square() * (self.count * count / total)
        self._mean += delta * (count / total)
        self.count = total

    def value(self) -> Tensor:
        """The population variance of every channel, float64 ``(C,)``.

        Raises:
            ValueError: Nothing was added yet.
        """
        if self._squares is None:
            raise ValueError("no features were added: there is no variance yet")
        return self._squares / self.count

    def state(self) -> State:
        """The sums so far."""
        return {"count": self.count, "mean": self._mean, "squares": self._squares}

    def restore(self, state: State, device: torch.device | str = "cpu") -> None:
        """Go on from :meth:`state`, with the sums on ``device``."""
        self.count = state["count"]
        self._mean, self._squares = (
            None if state[name] is None else state[name].to(device) for name in ("mean", "squares")
        )


def highest_variance(variance: Tensor, drop: int) -> list[int]:
    """Indices of the ``drop`` largest entries of ``variance`` ``(C,)``, ascending; ties go to the lower index.

    >>> highest_variance(torch.tensor([1.0, 9.0, 3.0, 9.0]), 2)
    [1, 3]
    """
    order = torch.argsort(variance, descending=True, stable=True)
    return sorted(order[:drop].tolist())


def kept_channels(channels: int, dropped: Sequence[int]) -> Tensor:
    """The channels that are left, int64, ascending.

    >>> kept_channels(4, [1, 2]).tolist()
    [0, 3]

    Raises:
        ConfigError: An index does not exist, or no channel would be left.
    """
    wrong = [index for index in dropped if not 0 <= index < channels]
    if wrong:
        raise ConfigError(f"high_variance_indices: no channel {wrong[0]}, the features have 0 to {channels - 1}")
    keep = torch.ones(channels, dtype=torch.bool)
    keep[list(dropped)] = False
    if not bool(keep.any()):
        raise ConfigError(f"dropping {channels} of {channels} channels leaves no features")
    return keep.nonzero()[:, 0]


class HighVarianceFilter:
    """A stream of packets with the most variable channels of ``Features.data`` dropped.

    Without given indices, the first ``sample_frames`` packets are held back, their variance chooses the
    channels, and then all are passed on, so every packet of a video has the same channels. Only the main facet
    (``Features.data``) changes: the indices mean nothing to another facet.

    Invariant: packets leave in the order they came, and none is lost; at most ``sample_frames`` are held. The
    choice stays until :meth:`reset`.

    Attributes:
        indices: The dropped channels, ascending; None until they are known.
    """

    def __init__(
        self,
        drop: int,
        *,
        indices: Sequence[int] | None = None,
        sample_frames: int = 16,
        channels: int | None = None,
    ) -> None:
        """Choose by variance, or take the given indices.

        Args:
            drop: How many channels to drop; 0 with ``indices`` takes their number.
            indices: Channels to drop; None estimates them.
            sample_frames: From how many frames they are estimated, at least 1.
            channels: How many channels the features will have, where that is known: wrong indices and counts are
                then found now and not at the first frame.

        Raises:
            ConfigError: A negative count, repeated indices, a count that contradicts the indices, or one of
                them beyond the channels.
        """
        if drop < 0:
            raise ConfigError(f"drop_high_variance must not be negative, got {drop}")
        if sample_frames < 1:
            raise ConfigError(f"the sample for high-variance channels needs at least 1 frame, got {sample_frames}")
        if indices is not None:
            if len(set(indices)) != len(indices):
                raise ConfigError("high_variance_indices holds an index twice")
            if drop not in (0, len(indices)):
                raise ConfigError(
                    f"drop_high_variance is {drop}, but high_variance_indices has {len(indices)}: give one of them"
                )
        self.drop = len(indices) if indices is not None else drop
        self.sample_frames = sample_frames
        self.indices: list[int] | None = None if indices is None else sorted(indices)
        self._given = self.indices
        self.reset()
        if channels is not None and self.indices is not None:
            kept_channels(channels, self.indices)
        if channels is not None:
            self._require_some_left(channels)

    def reset(self) -> None:
        """Forget the sample and what was chosen from it; given indices stay."""
        self.indices = self._given
        self._held: list[Packet] = []
        self._variance = ChannelVariance()
        self._sampled = 0
        self._share: float | None = None
        self._kept: Tensor | None = None

    def state(self) -> State:
        """The held packets, their variance, and the choice."""
        return {
            "held": [packet_state(packet) for packet in self._held],
            "variance": self._variance.state(),
            "sampled": self._sampled,
            "share": self._share,
            "indices": self.indices,
        }

    def restore(self, state: State, device: torch.device | str = "cpu") -> None:
        """Go on from :meth:`state`, with the features on ``device``."""
        self.reset()
        self._held = [packet_from_state(packet, device) for packet in state["held"]]
        self._variance.restore(state["variance"], device)
        self._sampled, self._share = state["sampled"], state["share"]
        self.indices = None if state["indices"] is None else list(state["indices"])

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Drop the channels of every packet that has features; see :meth:`take`."""
        for packet in packets:
            yield from self.take(packet)
        yield from self.flush()

    def take(self, packet: Packet) -> list[Packet]:
        """Take the next packet; returns what can go on: nothing while the sample grows, then all of it.

        Raises:
            ConfigError: The features have too few channels, or a given index does not exist.
        """
        if self.indices is not None or not self.drop:
            return [self._apply(packet)]
        self._held.append(packet)
        if packet.features is not None:
            self._variance.update(packet.features.data)
            self._sampled += 1
        return self.flush() if len(self._held) >= self.sample_frames else []

    def flush(self) -> list[Packet]:
        """Choose from the sample as it is, at the end of a video or of the sample, and return what was held."""
        if self._sampled and self.indices is None:
            self._choose(self._variance.value())
        held, self._held, self._variance = self._held, [], ChannelVariance()
        return [self._apply(packet) for packet in held]

    def _require_some_left(self, channels: int) -> None:
        if self.drop >= channels:
            raise ConfigError(
                f"drop_high_variance: {self.drop} of {channels} channels would leave no features; valid: 0 to "
                f"{channels - 1}"
            )

    def _choose(self, variance: Tensor) -> None:
        self._require_some_left(variance.numel())
        self.indices = highest_variance(variance, self.drop)
        total = float(variance.sum())
        self._share = float(variance[self.indices].sum()) / total if total else 0.0

    def _apply(self, packet: Packet) -> Packet:
        if packet.features is None or not self.indices:
            return packet
        data = packet.features.data
        if self._kept is None or self._kept.device != data.device:
            self._kept = kept_channels(data.shape[0], self.indices).to(data.device)
        before = packet.features.before_lift
        if before is not None:
            before = dataclasses.replace(before, data=before.data[self._kept])
        features = dataclasses.replace(packet.features, data=data[self._kept], before_lift=before)
        return dataclasses.replace(packet, features=features)

    def report(self) -> dict[str, Any]:
        """What was dropped, JSON-ready: given or estimated, from how many frames, and the indices.

        ``variance_share`` is the share of the sample's total variance that was in the dropped channels.
        """
        return {
            "dropped": len(self.indices or ()),
            "source": "estimated" if self._given is None else "given",
            "sampled_frames": self._sampled,
            "variance_share": self._share,
            "indices": self.indices,
        }
