"""What figures are drawn from: images, one backbone, and features, computed when a figure asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor

from pipeline.core.options import listed_numbers
from pipeline.images.image_sets import DescribedImage, describe, image_extractor
from pipeline.local.image_source import Named
from pipeline.local.patch_features import BackboneName
from stages.extract import Extractor
from stages.extract.backbone.facets import FACETS, FacetSpec, parse_facet
from stages.extract.lift.choice import choose_lift

_NUM_LAYERS: Final = 4


@dataclass(frozen=True, slots=True)
class FigureSettings:
    """What the figures show.

    Attributes:
        layers: Layers side by side, from 0 or from the end; None takes four, evenly spread up to the last.
        short_side: Short side of the images at the model, in pixels.
        parts: Number of parts.
        clusters: Number of clusters of k-means.
        lift: ``auto`` (the bundled LiFT, if there is one), ``none``, or a file.
        lift_facet: The facet that the LiFT was trained for.
        device: auto, cpu or cuda.
    """

    layers: tuple[int, ...] | None = None
    short_side: int = 224
    parts: int = 4
    clusters: int = 6
    lift: str = "auto"
    lift_facet: str = "key@-1"
    device: str = "auto"


class Material:
    """Images and what one backbone says of them.

    Invariant: features are computed once, at the first use.

    Attributes:
        named: The images with their names.
        settings: What the figures show.
        backbone: Name and weights.
        layers: The layers side by side, from 0, ascending.
        lift_facet: The facet that is lifted, with its layer from 0.
        has_lift: Whether there is a LiFT for it.
    """

    def __init__(self, named: Sequence[Named], backbone: BackboneName, settings: FigureSettings) -> None:
        """Load the backbone; nothing is computed yet.

        Args:
            named: At least one image.
            backbone: Name and weights.
            settings: What the figures show.

        Raises:
            ConfigError: A layer or facet that the backbone does not have.
            WeightsError: Weights or a LiFT that are missing or do not fit.
        """
        self.named, self.backbone, self.settings = tuple(named), backbone, settings
        self._extractor = self.extractor_with({})
        self.model = self._extractor.backbone
        count = self.model.num_layers
        layers = settings.layers or tuple(round(count * n / _NUM_LAYERS) - 1 for n in range(1, _NUM_LAYERS + 1))
        self.layers = tuple(sorted({FacetSpec("token", layer).resolved(count).layer for layer in layers}))
        lifted = parse_facet(settings.lift_facet).resolved(count)
        self.lift_facet = str(lifted)
        self.has_lift = settings.lift != "none" and choose_lift(settings.lift, self.model, lifted) is not None

    @property
    def last(self) -> int:
        """The last layer."""
        return self.model.num_layers - 1

    @property
    def has_cls(self) -> bool:
        """Whether there is a CLS token, and so its attention."""
        return self.model.has_cls

    def facets(self, facet: str) -> list[str]:
        """A facet at every layer that is shown.

        Raises:
            ConfigError: No such facet.
        """
        return [str(parse_facet(f"{facet}@{layer}")) for layer in self.layers]

    @property
    def key_facet(self) -> str:
        """The last layer's keys, the descriptors of parts."""
        return f"key@{self.last}"

    @property
    def token_facet(self) -> str:
        """The last layer's tokens, before the final norm."""
        return f"token@{self.last}"

    @property
    def cut_facet(self) -> str:
        """The keys that the normalized cut compares: those of the layer before the last one."""
        return f"key@{max(self.last - 1, 0)}"

    @cached_property
    def described(self) -> list[DescribedImage]:
        """All images with every facet of every layer shown, and the CLS attention where there is one."""
        wanted = [name for facet in FACETS for name in self.facets(facet)]
        single = (self.key_facet, self.token_facet, f"{self.token_facet}:norm", self.cut_facet, self.lift_facet)
        facets = tuple(dict.fromkeys([*single, *wanted]))
        return self._describe({"facets": facets, "saliency": "cls_attention" if self.has_cls else "none"})

    def maps(self, facet: str) -> list[Tensor]:
        """A facet of all images, float32 ``(C, h, w)`` each, by a name that this object gave."""
        return _maps(self.described, facet, main=self.key_facet)

    @cached_property
    def lifted(self) -> list[Tensor]:
        """Lifted features of all images, ``(C, 2 h, 2 w)`` each; only where :attr:`has_lift`."""
        return self.lifted_at(self.settings.short_side)

    def lifted_at(self, short_side: int) -> list[Tensor]:
        """Lifted features of the images with another short side."""
        options = {"facets": (self.lift_facet,), "lift": self.settings.lift, "short_side": short_side}
        return [image.features.data for image in self._describe(options)]

    def at_scale(self, short_side: int, facets: Sequence[str]) -> dict[str, list[Tensor]]:
        """Facets of the images with another short side."""
        described = self._describe({"facets": tuple(facets), "short_side": short_side})
        return {facet: _maps(described, facet, main=facets[0]) for facet in facets}

    def repaired(self, facet: str) -> tuple[list[Tensor], dict[str, Any]]:
        """A facet with defective tokens smoothed inside the forward, and what was smoothed."""
        try:
            extractor = self._shared({"facets": (facet,), "repair": "smooth"})
            maps = [image.features.data for image in self._run(extractor)]
            return maps, dict(extractor.report()["repair"])
        finally:
            self.model.token_hook = None  # the backbone is shared: other figures show it as it is

    def extractor_with(self, options: dict[str, Any]) -> Extractor:
        """An extractor with a backbone of its own, for options that change the backbone."""
        fixed: dict[str, Any] = {
            "backbone": self.backbone.name, "weights": self.backbone.weights, "saliency": "none",
            "facets": ("key@-1",), "short_side": self.settings.short_side, "device": self.settings.device,
        }  # fmt: skip
        return image_extractor({**fixed, **options}, origin="figures")

    def _shared(self, options: dict[str, Any]) -> Extractor:
        return Extractor(self._extractor.config.model_copy(update=options), backbone=self.model)

    def _describe(self, options: dict[str, Any]) -> list[DescribedImage]:
        return self._run(self._shared(options))

    def _run(self, extractor: Extractor) -> list[DescribedImage]:
        return [image for one in self.named for image in describe([one], extractor)]


def _maps(described: Sequence[DescribedImage], facet: str, *, main: str) -> list[Tensor]:
    return [image.features.data if facet == main else image.features.extra[facet] for image in described]


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Read a comma-separated list of layers; empty is None.

    >>> parse_layers("2, 5,-1")
    (2, 5, -1)

    Raises:
        ConfigError: Something else.
    """
    if not text.strip():
        return None
    return listed_numbers("--layers", text, int)


def doubled(maps: Tensor) -> Tensor:
    """A map ``(C, h, w)`` at twice the size, bilinear."""
    return F.interpolate(maps[None], scale_factor=2.0, mode="bilinear")[0]
