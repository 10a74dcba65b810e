"""From described images to what a set is co-segmented by."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pipeline.core.arrays import normalize_rows
from pipeline.images.image_cosegmentation import SetImage
from pipeline.images.image_sets import DescribedImage
from pipeline.images.set_foreground import object_evidence
from stages.cosegment.part_space import find_part_space

SetMethod = Literal["vote", "discriminant"]

_BORDER_FACET = "token@-1"


def choose_set_method(method: Literal["auto", "vote", "discriminant"], backbone: str) -> SetMethod:
    """The method to use; ``auto`` lets DINO's attention vote and learns a discriminant for other backbones."""
    if method != "auto":
        return method
    return "vote" if backbone.startswith("dino_") else "discriminant"


def extract_options(method: SetMethod, facet: str) -> dict[str, Any]:
    """The extraction stage's facets and saliency that a method reads."""
    if method == "vote":
        return {"facets": (facet,), "saliency": "cls_attention"}
    return {"facets": tuple(dict.fromkeys((facet, _BORDER_FACET))), "saliency": "ncut"}


def to_set_image(
    described: DescribedImage, method: SetMethod, *, backbone: str, facet: str, original: bool = True
) -> SetImage:
    """An image of a set.

    Args:
        described: By an extractor with :func:`extract_options`.
        method: How foreground is found.
        backbone: Name of the backbone.
        facet: The descriptors.
        original: See :attr:`SetImage.original`.
    """
    rows = normalize_rows(described.rows)
    cls = described.features.cls
    space, evidence = None, None
    if method == "discriminant":
        tokens = described.descriptors if facet == _BORDER_FACET else described.extra(_BORDER_FACET)
        evidence = object_evidence(tokens, described.saliency)
        space = find_part_space(f"{backbone} {facet}")
    return SetImage(
        described.image,
        described.grid,
        rows,
        described.saliency.ravel(),
        None if cls is None else np.asarray(cls.numpy(), np.float32),
        original,
        evidence,
        None if space is None else space(rows),
    )
