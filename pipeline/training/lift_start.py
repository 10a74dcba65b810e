"""Initial weights for LiFT's training that compute bilinear interpolation.

From random weights LiFT needs tens of thousands of steps to reach plain interpolation, which is feasible with
ImageNet and a GPU and not with a thousand images on a CPU. The architecture can represent bilinear interpolation
up to its bottleneck, so the weights can be computed:

- the transposed convolution projects centered features on their first principal components, scaled to unit
  variance, and repeats each cell 2 x 2;
- the first 3 x 3 convolution is the tent (1/4, 1/2, 1/4) along both axes per channel, which turns repeated cells
  into exactly the bilinear ones away from the border; the second is the identity;
- batch norms keep each channel's standard deviation and add three of them, so that ReLU passes nearly all values;
- the last convolution maps components back to features.

All other weights keep a tenth of their random values, and some channels stay random and free for training.
Not in the paper; names and shapes are untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.extract.lift.network import Lift

LIFTED_BY = 3.0
"""Deviations added before ReLU: a Gaussian channel loses 0.1 % of its values."""

NOISE = 0.1
FREE_SHARE = 1 / 6
"""Share of the bottleneck's channels with random initial weights."""


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of features.

    Attributes:
        mean: ``(C,)``.
        basis: ``(C, K)``, orthonormal, by decreasing deviation.
        deviation: ``(K,)``: standard deviation of the features along each component.
        smooth_deviation: ``(K,)``: of bilinearly doubled features, in units of ``deviation``.
    """

    mean: Tensor
    basis: Tensor
    deviation: Tensor
    smooth_deviation: Tensor


def find_components(maps: Tensor, count: int) -> Components:
    """The first principal components of ``(B, C, h, w)`` features over all cells."""
    cells = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).to(torch.float64)
    mean = cells.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov(cells.T))
    basis = basis.flip(1)[:, :count]
    deviation = variance.flip(0)[:count].clamp(min=1e-12).sqrt()
    scaled = torch.einsum("bchw,ck->bkhw", maps.to(torch.float64) - mean.view(1, -1, 1, 1), basis / deviation)
    smooth = F.interpolate(scaled, scale_factor=2, mode="bilinear", align_corners=False).std(dim=(0, 2, 3))
    return Components(*(v.to(torch.float32) for v in (mean, basis, deviation, smooth.clamp(min=1e-6))))


@torch.no_grad()
def start_as_bilinear(model: Lift, maps: Tensor) -> None:
    """Write the weights described above into a new LiFT.

    Args:
        model: With random weights.
        maps: ``(B, C, h, w)``, a sample of features at training scale, on any device.
    """
    half = model.channels // 2
    count = min(half - round(FREE_SHARE * half), maps.shape[1])
    found = find_components(maps.cpu(), count)
    _project(model.up1.up, found, count)
    first, first_norm, _, second, second_norm, _ = model.up1.conv_1.double_conv
    tent = torch.tensor([0.25, 0.5, 0.25])
    for layer, kernel in ((first, torch.outer(tent, tent)), (second, F.pad(torch.ones(1, 1), (1, 1, 1, 1)))):
        assert isinstance(layer, nn.Conv2d)
        layer.weight[:count] *= NOISE
        for channel in range(count):
            layer.weight[channel, channel] = kernel.to(layer.weight)
    for norm, mean in ((first_norm, 0.0), (second_norm, LIFTED_BY)):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.weight[:count] = found.smooth_deviation
        norm.bias[:count] = LIFTED_BY * found.smooth_deviation
        norm.running_mean[:count] = mean * found.smooth_deviation
        norm.running_var[:count] = found.smooth_deviation.square()
    back = found.basis * found.deviation
    model.outc.weight *= NOISE
    model.outc.weight[:, :count, 0, 0] = back.to(model.outc.weight)
    assert model.outc.bias is not None
    model.outc.bias.copy_(found.mean - back @ (LIFTED_BY * found.smooth_deviation))


def _project(layer: nn.ConvTranspose2d, found: Components, count: int) -> None:
    """Centered features on components of unit variance, the same in each of the four new cells."""
    forward = found.basis / found.deviation
    channels = forward.shape[0]
    layer.weight[:, :count] *= NOISE
    layer.weight[:channels, :count] = forward[:, :, None, None].expand(-1, -1, 2, 2).to(layer.weight)
    assert layer.bias is not None
    layer.bias[:count] = -(found.mean @ forward).to(layer.bias)
