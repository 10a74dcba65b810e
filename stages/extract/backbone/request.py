"""What one forward of a backbone has to collect, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from stages.extract.backbone import blocks
from stages.extract.backbone.facets import FacetSpec

ClsKind = Literal["facet", "final"]


@dataclass(slots=True)
class Request:
    """What is asked of one forward, and what of it was found so far.

    Attributes:
        specs: The facets by the text they were asked for with; layers count from 0.
        attention: Whether the last layer's CLS attention is wanted.
        final_cls: Whether the last layer's CLS token is wanted.
        num_layers: Blocks of the backbone.
        raw: ``(B, N, D)`` by facet and layer.
        cls_row: The CLS token's attention probabilities ``(B, heads, N)``.
        cls_token: The last layer's CLS token ``(B, 1, D)``.
    """

    specs: dict[str, FacetSpec]
    attention: bool
    final_cls: bool
    num_layers: int
    raw: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    cls_row: Tensor | None = None
    cls_token: Tensor | None = None

    def projections(self, layer: int) -> list[str]:
        """The queries, keys and values wanted from a layer."""
        return [s.facet for s in self.specs.values() if s.layer == layer and s.facet != "token"]

    def tokens(self, layer: int) -> bool:
        """Whether a layer's tokens are wanted."""
        return any(s.layer == layer and s.facet == "token" for s in self.specs.values())

    def last_layer(self) -> int:
        """The last layer that has to run."""
        if self.attention or self.final_cls:
            return self.num_layers - 1
        return max(s.layer for s in self.specs.values())

    def whole_layers(self) -> int:
        """How many layers from the first run to their end, with nothing read from inside their attention."""
        last = self.last_layer()
        reads_last = self.tokens(last) and not self.attention and not self.final_cls
        return last + 1 if reads_last else last


def needed_projections(
    attention: Any, normed: Tensor, facets: Sequence[str], *, row: bool, final_cls: bool
) -> dict[str, Tensor]:
    """Projections of a block that ends the forward; queries of the CLS token alone where that is enough."""
    names = set(facets) | ({"key"} if row or final_cls else set()) | ({"value"} if final_cls else set())
    parts = blocks.project(attention, normed, sorted(names))
    if (row or final_cls) and "query" not in parts:
        parts |= blocks.project(attention, normed[:, :1], ["query"])
    return parts
