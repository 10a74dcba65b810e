"""LiFT: a small network that doubles the resolution of a frozen ViT's features, guided by the image.

Suri, Walmer, Gupta, Shrivastava, "LiFT: A Surprisingly Simple Lightweight Feature Transform for Dense ViT
Descriptors", ECCV 2024, section 3 (https://arxiv.org/abs/2403.14625). For patches of 8 and 16 px the layers,
their names and their arithmetic are the paper's, so published checkpoints load by their key names.

Differs from the reference:

- *Other patch sizes.* The image branch only halves the resolution, so it fits grids with cells of 8 or 16 px. For
  every other patch the image is resampled (bilinear, one affine map per axis) to 16 px per cell, such that the two
  outputs of the branch lie exactly on the doubled and on the original grid. A stride-2 convolution with a padding
  of 1 is centered on the *first* of its two input pixels, so a plain resize would leave the first output 1.5 px
  and the second 5.5 px to the upper left of the cells they are concatenated to.
- *Reduced strides and recursion.* The image is resampled to the same number of pixels per cell whatever
  the spacing of the cells is. For one recursion of patches 8 and 16 that is the reference's bilinear doubling.
- *Sizes that are not a multiple of the patch.* The branch gets the same pixels as the patch embedding: the rest at
  the right and the bottom is cut off (the reference has a hard-coded crop of 2 px per side for 56 px).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGE_CHANNELS = 32
REFERENCE_PATCHES = (8, 16)
"""Patch sizes whose image branch is the reference's, shifts of its stride-2 convolutions included."""

BRANCH_SHIFT_PX = 1.5
"""Shift of the branch's first output to the upper left of its cell's center, in pixels of the branch's input."""


class DoubleConv(nn.Module):
    """Two times: a 3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, values: Tensor) -> Tensor:
        """``(B, in, h, w)`` to ``(B, out, h, w)``."""
        return self.double_conv(values)  # type: ignore[no-any-return]


class ExtraBlock(nn.Module):
    """A residual block on the doubled grid: 3x3 convolution, batch norm, ReLU, 3x3 convolution, batch norm.

    The paper's appendix has one block more for the 768 channels of a ViT-B in a detector; its layers are not
    published. This one starts as the identity (its last norm is 0), so a LiFT with it starts where one without it
    does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            last,
        )

    def forward(self, values: Tensor) -> Tensor:
        """``(B, C, h, w)`` to the same shape."""
        return values + self.convs(values)  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Doubles the grid with a transposed convolution and concatenates the finer image map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        joined = channels + IMAGE_CHANNELS
        self.up = nn.ConvTranspose2d(joined, joined // 2, kernel_size=2, stride=2)
        self.conv_1 = DoubleConv(joined // 2 + IMAGE_CHANNELS, channels // 2)

    def forward(self, coarse: Tensor, image_map: Tensor) -> Tensor:
        """``(B, C + 32, h, w)`` and ``(B, 32, 2h, 2w)`` to ``(B, C / 2, 2h, 2w)``."""
        return self.conv_1(torch.cat([self.up(coarse), image_map], dim=1))  # type: ignore[no-any-return]


class Lift(nn.Module):
    """The LiFT network for one backbone, facet and layer.

    Args:
        channels: Channels of the features, even.
        patch_px: Patch size of the backbone. 8 and 16 have the reference's geometry, others the exact one.
        extra_blocks: Further blocks on the doubled grid; the published modules have none.

    Attributes:
        cell_px: Side of a cell of the original grid at the image branch's input in pixels.
    """

    def __init__(self, channels: int, *, patch_px: int, extra_blocks: int = 0) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"LiFT needs an even number of channels, got {channels}")
        if patch_px < 1:
            raise ValueError(f"patch_px must be positive, got {patch_px}")
        self.channels = channels
        self.patch_px = patch_px
        self.cell_px = 8 if patch_px == 8 else 16
        self.image_convs_1 = nn.Sequential(*_halving(3), *_halving(IMAGE_CHANNELS))
        self.image_convs_2 = nn.Sequential(*_halving(IMAGE_CHANNELS))
        self.up1 = UpBlock(channels)
        self.extra = nn.Sequential(*(ExtraBlock(channels // 2) for _ in range(extra_blocks)))
        self.outc = nn.Conv2d(channels // 2, channels, kernel_size=1)

    @staticmethod
    def count_extra_blocks(names: Iterable[str]) -> int:
        """How many extra blocks a state dict with these names has.

        >>> Lift.count_extra_blocks(["outc.bias", "extra.0.convs.0.weight", "extra.0.convs.1.bias"])
        1
        """
        return len({name.split(".")[1] for name in names if name.startswith("extra.")})

    @property
    def exact_geometry(self) -> bool:
        """Whether the branch's maps are registered on the grids exactly (patches other than 8 and 16)."""
        return self.patch_px not in REFERENCE_PATCHES

    def forward(
        self, images: Tensor, features: Tensor, *, stride_px: float | None = None, iterations: int = 1
    ) -> Tensor:
        """Features at ``2 ** iterations`` times the resolution.

        Args:
            images: ``(B, 3, H, W)``, the normalized input of the ViT.
            features: ``(B, C, h, w)``, its features, not normalized.
            stride_px: Distance of neighboring cells in pixels of ``images``; the patch by default.
            iterations: Number of passes; each but the first is applied to the output of the previous one.

        Returns:
            ``(B, C, h * 2**n, w * 2**n)``; cell ``(2i, 2j)`` is the upper left quarter of cell ``(i, j)``.

        Raises:
            ValueError: Shapes that do not fit together, or no iteration.
        """
        stride = float(self.patch_px if stride_px is None else stride_px)
        offset = self.patch_px / 2
        self._check(images, features, stride)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        for _ in range(iterations):
            features = self._double(images, features, stride, offset)
            offset -= stride / 4
            stride /= 2
        return features

    def _double(self, images: Tensor, features: Tensor, stride: float, offset: float) -> Tensor:
        fine, coarse = self.image_maps(images, (features.shape[-2], features.shape[-1]), stride, offset)
        joined = torch.cat([features, coarse.to(features.dtype)], dim=1)
        return self.outc(self.extra(self.up1(joined, fine)))  # type: ignore[no-any-return]

    def image_maps(
        self, images: Tensor, grid_hw: tuple[int, int], stride_px: float, offset_px: float
    ) -> tuple[Tensor, Tensor]:
        """The image branch on the doubled and on the original grid.

        Args:
            images: ``(B, 3, H, W)``, normalized.
            grid_hw: The original grid's rows and columns.
            stride_px: Distance of its cells in pixels.
            offset_px: Position of the center of its first cell in pixels (continuous, pixel 0 is [0, 1)).

        Returns:
            ``(B, 32, 2h, 2w)`` and ``(B, 32, h, w)``.
        """
        shift = BRANCH_SHIFT_PX if self.exact_geometry else 0.0
        step = stride_px / self.cell_px
        # Branch pixel j is centered at j + 0.5 and the first cell's center at cell_px / 2.
        first = offset_px + (0.5 + shift - self.cell_px / 2) * step
        images = resample(images, (grid_hw[0] * self.cell_px, grid_hw[1] * self.cell_px), first, step)
        if images.is_cpu:
            images = images.contiguous(memory_format=torch.channels_last)
        fine = self.image_convs_1(images)
        if self.cell_px == 16:
            fine = F.max_pool2d(fine, kernel_size=2)
        coarse = self.image_convs_2(_between_cells(fine) if self.exact_geometry else fine)
        return fine, coarse

    def _check(self, images: Tensor, features: Tensor, stride: float) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if features.ndim != 4 or features.shape[1] != self.channels or len(features) != len(images):
            raise ValueError(
                f"features must be ({len(images)}, {self.channels}, h, w), got {tuple(features.shape)}"
            )
        expected = tuple(1 + int((n - self.patch_px) // stride) for n in images.shape[-2:])
        if tuple(features.shape[-2:]) != expected:
            raise ValueError(
                f"a patch of {self.patch_px} px every {stride:g} px of {tuple(images.shape[-2:])} gives a grid of "
                f"{expected}, the features have {tuple(features.shape[-2:])}"
            )

    def fused(self) -> Lift:
        """A copy for inference with the batch norms folded into the convolutions before them."""
        copy = Lift(self.channels, patch_px=self.patch_px, extra_blocks=len(self.extra))
        copy.load_state_dict(self.state_dict())
        copy.to(next(self.parameters()).device).eval()
        extra = [block.convs for block in copy.extra if isinstance(block, ExtraBlock)]
        for convs in (copy.image_convs_1, copy.image_convs_2, copy.up1.conv_1.double_conv, *extra):
            for index, layer in enumerate(convs):
                following = convs[index + 1] if index + 1 < len(convs) else None
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    convs[index] = fuse_conv_bn_eval(layer, following)
                    convs[index + 1] = nn.Identity()
        return copy.requires_grad_(False)


def _halving(in_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, IMAGE_CHANNELS, 3, stride=2, padding=1),
        nn.BatchNorm2d(IMAGE_CHANNELS),
        nn.ReLU(inplace=True),
    ]


def _between_cells(maps: Tensor) -> Tensor:
    """``maps`` half a cell further right and down: the mean of each 2x2 block, the border repeated.

    The stride-2 convolution that follows is centered on every second cell; half a cell further is the middle
    between the two cells that it covers.
    """
    # Joined by hand: the gradient of replicate padding is not deterministic on CUDA.
    maps = torch.cat([maps, maps[..., -1:]], dim=-1)
    maps = torch.cat([maps, maps[..., -1:, :]], dim=-2)
    return F.avg_pool2d(maps, kernel_size=2, stride=1)


def resample(images: Tensor, size_hw: tuple[int, int], first: float, step: float) -> Tensor:
    """:func:`resample_axis` of rows and columns ``(B, C, H, W)``.

    For inference on a CPU both at once, at a quarter of the cost.
    """
    moves = step != 1.0 or first != 0.5
    if moves and images.is_cpu and not torch.is_grad_enabled():
        grid = _sampling_grid((images.shape[-2], images.shape[-1]), size_hw, first, step)
        grid = grid.to(images.dtype).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    for dim, size in zip((-2, -1), size_hw, strict=True):
        images = resample_axis(images, dim, size, first, step)
    return images


@lru_cache(maxsize=8)
def _sampling_grid(input_hw: tuple[int, int], size_hw: tuple[int, int], first: float, step: float) -> Tensor:
    """Positions of :func:`resample` as ``grid_sample`` takes them, ``(1, *size_hw, 2)``."""
    with torch.inference_mode(False):
        rows, columns = (
            (torch.arange(size, dtype=torch.float64) * step + first) * 2 / length - 1
            for size, length in zip(size_hw, input_hw, strict=True)
        )
        down, right = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack((right, down), dim=-1).float()[None]


def resample_axis(values: Tensor, dim: int, size: int, first: float, step: float) -> Tensor:
    """Linear interpolation along one axis at evenly spaced positions, the border repeated.

    Args:
        values: Any shape, floating point.
        dim: The axis.
        size: Number of positions.
        first: The first position, continuous: the center of element ``i`` is at ``i + 0.5``.
        step: Distance between positions in elements.

    Returns:
        ``values`` with ``size`` elements along ``dim``; ``values`` itself where nothing moves.

    >>> resample_axis(torch.tensor([0.0, 1.0, 2.0]), 0, 3, first=1.0, step=1.0)
    tensor([0.5000, 1.5000, 2.0000])
    """
    length = values.shape[dim]
    if step == 1.0 and first == 0.5 and size <= length:
        return values.narrow(dim, 0, size)
    positions = torch.arange(size, dtype=torch.float64, device=values.device) * step + (first - 0.5)
    positions = positions.clamp(0, length - 1)
    below = positions.floor().long().clamp(max=max(length - 2, 0))
    shape = [1] * values.ndim
    shape[dim] = size
    weight = (positions - below).to(values.dtype).reshape(shape)
    above = (below + 1).clamp(max=length - 1)
    return torch.lerp(values.index_select(dim, below), values.index_select(dim, above), weight)
