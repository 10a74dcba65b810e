"""What to read from a Vision Transformer: a facet of a layer, with or without the final norm.

A facet (Amir et al. 2021, section 3) is one of four vectors of a block per token: the ``query``, ``key`` and
``value`` that its attention projects from the normalized input, and the ``token`` that it outputs.

A spec is written ``facet@layer`` or ``facet@layer:norm``: ``key@11``, ``token@-1:norm``. Layers count from 0;
negative ones count from the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

from pipeline.core.errors import ConfigError

Facet = Literal["query", "key", "value", "token"]

FACETS: Final[tuple[Facet, ...]] = ("query", "key", "value", "token")
"""The valid facets. The first three are also the order of the thirds of a fused ``qkv`` projection."""

_SPEC = re.compile(r"(?P<facet>[a-z_]+)@(?P<layer>-?\d+)(?P<norm>:norm)?")


@dataclass(frozen=True, slots=True)
class FacetSpec:
    """One facet of one layer.

    Attributes:
        facet: ``query``, ``key`` and ``value`` are the plain projections (before any
            query/key norm, rotary embedding or scaling), ``token`` is the block's output.
        layer: 0-based block; negative values count from the end.
        norm: Apply the model's final norm; for tokens only.
    """

    facet: Facet
    layer: int
    norm: bool = False

    def __post_init__(self) -> None:
        if self.facet not in FACETS:
            raise ConfigError(f"facet '{self.facet}' does not exist; valid: {', '.join(FACETS)}")
        if self.norm and self.facet != "token":
            raise ConfigError(f"facet '{self}': the final norm is defined for tokens only, drop ':norm'")

    def __str__(self) -> str:
        return f"{self.facet}@{self.layer}{':norm' if self.norm else ''}"

    def resolved(self, num_layers: int) -> FacetSpec:
        """The same spec with its layer counted from 0.

        >>> str(FacetSpec("token", -1, True).resolved(12))
        'token@11:norm'

        Raises:
            ConfigError: The model has no such layer.
        """
        if not -num_layers <= self.layer < num_layers:
            raise ConfigError(
                f"facet '{self}': layer {self.layer} is out of range, this model has {num_layers} layers; "
                f"valid: 0 to {num_layers - 1}, or -{num_layers} to -1"
            )
        return replace(self, layer=self.layer % num_layers)


def parse_facet(text: str) -> FacetSpec:
    """Read ``facet@layer`` or ``facet@layer:norm``; a bare facet is the last layer's.

    >>> parse_facet("key@11")
    FacetSpec(facet='key', layer=11, norm=False)
    >>> str(parse_facet("token@-1:norm"))
    'token@-1:norm'

    Raises:
        ConfigError: The text is not a facet spec, or names a facet that does not exist.
    """
    compact = text.strip().lower()
    match = _SPEC.fullmatch(
        compact
        if "@" in compact
        else compact.replace(":norm", "") + "@-1" + (":norm" if compact.endswith(":norm") else "")
    )
    if match is None:
        raise ConfigError(
            f"facet '{text}' is not written facet@layer or facet@layer:norm; facets: {', '.join(FACETS)}; "
            "for example key@11 or token@-1:norm"
        )
    return FacetSpec(cast(Facet, match["facet"]), int(match["layer"]), match["norm"] is not None)
