"""The simple feature pyramid: all levels from the last map of a plain ViT.

Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, section 3
(https://arxiv.org/abs/2203.16527). Modules have Detectron2's order and names, so that its weights fit.

Differs from the reference: scales below 1/2 are allowed (max pooling over 1 / scale cells), because LiFT doubles
the map and the coarse levels then lie further away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of ``(B, C, h, w)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, values: Tensor) -> Tensor:
        """Same shape."""
        return self.norm(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class NormedConv(nn.Module):
    """A convolution without bias and a layer norm over the channels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = ChannelNorm(out_channels)

    def forward(self, values: Tensor) -> Tensor:
        """``(B, in, h, w)`` to ``(B, out, h, w)``."""
        return self.norm(self.conv(values))  # type: ignore[no-any-return]


class SimplePyramid(nn.Module):
    """Levels at several scales of one map, and a last one at half the resolution of the coarsest for proposals.

    Args:
        in_channels: Channels of the map.
        channels: Channels of the levels.
        scales: Cells per axis of each level by those of the map, finest first; powers of two up to 4.
    """

    def __init__(self, in_channels: int, channels: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(*_layers(in_channels, channels, scale)) for scale in scales)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        """``(B, C, h, w)`` to the levels by name, finest first: ``0``, ``1``, ..., ``pool``."""
        found = {str(place): level(values) for place, level in enumerate(self.levels)}
        found["pool"] = F.max_pool2d(found[str(len(self.levels) - 1)], kernel_size=1, stride=2)
        return found


def _layers(in_channels: int, channels: int, scale: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = in_channels
    if scale == 4.0:
        layers = [
            nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2),
            ChannelNorm(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2),
        ]
        width //= 4
    elif scale == 2.0:
        layers = [nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)]
        width //= 2
    elif scale < 1.0:
        layers = [nn.MaxPool2d(kernel_size=round(1 / scale))]
    elif scale != 1.0:
        raise ValueError(f"a pyramid level of scale {scale:g} is not supported; the largest is 4")
    return [*layers, NormedConv(width, channels, 1), NormedConv(channels, channels, 3)]
