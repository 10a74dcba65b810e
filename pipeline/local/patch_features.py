"""Features of patches: several facets, with LiFT or bilinear upsampling, from whole images or from tiles.

Tiles are those of Analyzing Local Representations of Self-supervised Vision Transformers (2024): an image is cut
into rows and columns of tiles, every tile goes through the model at its training size, and their patches are put
together again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.core.arrays import FloatArray
from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.options import names_in
from pipeline.images.image_sets import describe, image_extractor
from pipeline.local.labeled_set import Image
from stages.extract import Extractor
from stages.extract.backbone.facets import parse_facet
from stages.extract.backbone.registry import find_entry
from stages.extract.lift.choice import require_lift
from stages.extract.resize import model_input_size, resize_image

_UPSAMPLINGS = ("", "lift", "bilinear")


@dataclass(frozen=True, slots=True)
class FeatureName:
    """What is taken from a backbone.

    Attributes:
        facet: Such as ``key@11`` or ``token@-1:norm``.
        upsampling: ``lift``, ``bilinear`` (twice the size, the baseline of LiFT) or empty.
        lift: The LiFT file; ``auto`` is the bundled one.
    """

    facet: str
    upsampling: str = ""
    lift: str = "auto"

    def __str__(self) -> str:
        return f"{self.facet}+{self.upsampling}" if self.upsampling else self.facet


def parse_feature(text: str) -> FeatureName:
    """Read ``facet@layer[:norm][+lift[=FILE]|+bilinear]``.

    >>> str(parse_feature("key@11+lift"))
    'key@11+lift'

    Raises:
        ConfigError: A facet or an upsampling that does not exist.
    """
    facet, _, upsampling = text.partition("+")
    upsampling, _, lift = upsampling.partition("=")
    if upsampling not in _UPSAMPLINGS or (lift and upsampling != "lift"):
        raise ConfigError(f"feature '{text}': after + comes lift, lift=FILE or bilinear")
    return FeatureName(str(parse_facet(facet)), upsampling, lift or "auto")


@dataclass(frozen=True, slots=True)
class BackboneName:
    """A backbone and where its weights are.

    Attributes:
        name: In the table of backbones, or timm's.
        weights: None for the bundled file or timm's hub.
    """

    name: str
    weights: str | None = None


def parse_backbone(text: str) -> BackboneName:
    """Read ``name`` or ``name=weights``.

    >>> parse_backbone("mae_vitb16=mae.pth")
    BackboneName(name='mae_vitb16', weights='mae.pth')

    Raises:
        ConfigError: An unknown backbone.
    """
    name, _, weights = text.partition("=")
    find_entry(name)
    return BackboneName(name, weights or None)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image goes through the model.

    Attributes:
        rows: Rows of tiles; 0 for the whole image.
        columns: Columns of tiles; 0 for the whole image.
        side_px: Short side of the whole image, or side of a tile, at the model.
    """

    rows: int
    columns: int
    side_px: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns} of {self.side_px}" if self.rows else f"whole, {self.side_px}"

    def input_hw(self, image_hw: tuple[int, int], patch_px: int) -> tuple[int, int]:
        """Size of the whole image at the model, in whole patches.

        Raises:
            ConfigError: It leaves no patch.
        """
        if not self.rows:
            return model_input_size(image_hw, self.side_px, patch_px)
        side = self.side_px // patch_px * patch_px
        if not side:
            raise ConfigError(f"tiles of {self.side_px} px leave no patch of {patch_px} px")
        return self.rows * side, self.columns * side


def parse_tilings(text: str, *, short_side: int, tile_side: int) -> list[Tiling]:
    """Read a comma-separated list of ``whole`` and ``ROWSxCOLUMNS``.

    >>> [str(tiling) for tiling in parse_tilings("whole,2x4", short_side=448, tile_side=224)]
    ['whole, 448', '2x4 of 224']

    Raises:
        ConfigError: Something else.
    """
    found = []
    for name in names_in(text):
        match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", name)
        if match is None and name != "whole":
            raise ConfigError(f"--tiles {text}: give whole or ROWSxCOLUMNS such as 2x4")
        found.append(Tiling(int(match[1]), int(match[2]), tile_side) if match else Tiling(0, 0, short_side))
    if not found:
        raise ConfigError("--tiles: give whole or ROWSxCOLUMNS such as 2x4")
    return found


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """The patches of one image.

    Attributes:
        rows: float32 ``(h * w, C)``, row-major.
        grid: Where they lie on the image as it was given.
    """

    rows: FloatArray
    grid: PatchGrid


class Describer:
    """A backbone that describes the patches of images of any size, image by image."""

    def __init__(
        self, backbone: BackboneName, features: Sequence[FeatureName], tiling: Tiling, device: str = "auto"
    ) -> None:
        """Load the backbone.

        Raises:
            ConfigError: A layer or facet that the backbone does not have; no LiFT for a facet that asks for it.
            WeightsError: Weights that are missing or do not fit.
        """
        self.backbone, self.tiling = backbone, tiling
        self.features = tuple(features)
        plain = tuple(dict.fromkeys(f.facet for f in features if f.upsampling != "lift"))
        lifted = {f.facet: f.lift for f in features if f.upsampling == "lift"}
        options = {
            "backbone": backbone.name, "weights": backbone.weights, "short_side": None, "saliency": "none",
            "facets": plain or tuple(lifted)[:1], "device": device,
        }  # fmt: skip
        self._plain = image_extractor(options, origin="features")
        self._lifted = {facet: self._with_lift(facet, lift) for facet, lift in lifted.items()}
        self._facets = plain

    def tiled(self, tiling: Tiling) -> Describer:
        """The same models with another tiling."""
        other = copy.copy(self)
        other.tiling = tiling
        return other

    def _with_lift(self, facet: str, lift: str) -> Extractor:
        require_lift(lift, self._plain.backbone, parse_facet(facet))
        config = self._plain.config.model_copy(update={"facets": (facet,), "lift": lift})
        return Extractor(config, backbone=self._plain.backbone)

    @property
    def patch_px(self) -> int:
        """Side of a patch at the model, in pixels."""
        return self._plain.backbone.patch_px

    @property
    def channels(self) -> int:
        """Channels of every feature."""
        return self._plain.backbone.embed_dim

    def resized(self, image: Image) -> Image:
        """An image at the size the model sees, tiles still together."""
        input_hw = self.tiling.input_hw((image.shape[0], image.shape[1]), self.patch_px)
        return resize_image(image, input_hw, "area")

    def __call__(
        self, image: Image, change: Callable[[Image], Image] | None = None
    ) -> dict[FeatureName, PatchFeatures]:
        """Patches of an image by feature.

        Args:
            image: uint8 ``(H, W, 3)``.
            change: Applied to the image as the model sees it, of the same size.
        """
        seen = self.resized(image)
        if change is not None:
            seen = change(seen)
        tiles = self._cut(seen)
        image_hw = (image.shape[0], image.shape[1])
        found: dict[FeatureName, PatchFeatures] = {}
        maps: dict[str, FloatArray] = {}
        if self._facets:
            maps = self._maps(tiles, self._plain, self._facets)
        for feature in self.features:
            if feature.upsampling == "lift":
                values = self._maps(tiles, self._lifted[feature.facet], (feature.facet,))[feature.facet]
            elif feature.upsampling == "bilinear":
                values = _doubled(maps[feature.facet])
            else:
                values = maps[feature.facet]
            found[feature] = _as_rows(self._joined(values), image_hw)
        return found

    def _cut(self, image: Image) -> list[Image]:
        if not self.tiling.rows:
            return [image]
        bands = np.split(image, self.tiling.rows, axis=0)
        return [
            np.ascontiguousarray(tile) for band in bands for tile in np.split(band, self.tiling.columns, axis=1)
        ]

    def _maps(self, tiles: list[Image], extractor: Extractor, facets: Sequence[str]) -> dict[str, FloatArray]:
        """Maps ``(tiles, C, h, w)`` by facet; the first one is the extractor's main facet."""
        described = describe([(str(n), tile) for n, tile in enumerate(tiles)], extractor)
        main, *further = facets
        return {main: np.stack([d.descriptors for d in described])} | {
            facet: np.stack([d.extra(facet) for d in described]) for facet in further
        }

    def _joined(self, maps: FloatArray) -> FloatArray:
        """Maps of tiles ``(tiles, C, h, w)`` as one map ``(C, H, W)``."""
        rows, columns = max(1, self.tiling.rows), max(1, self.tiling.columns)
        _, channels, height, width = maps.shape
        grid = maps.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
        return grid.reshape(channels, rows * height, columns * width)


def _doubled(maps: FloatArray) -> FloatArray:
    return np.asarray(F.interpolate(torch.from_numpy(maps), scale_factor=2.0, mode="bilinear").numpy(), np.float32)


def _as_rows(values: FloatArray, image_hw: tuple[int, int]) -> PatchFeatures:
    """A map that covers the image, row by row. Inputs are whole patches at their own stride, so cells tile it."""
    rows = np.ascontiguousarray(values.reshape(values.shape[0], -1).T)
    return PatchFeatures(rows, PatchGrid.covering(image_hw, (values.shape[1], values.shape[2])))
