"""Descriptors of photographs and where an object may be in them, to learn objectness from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.records import Frame
from pipeline.formats.image_folder import load_image
from stages.cosegment.objectness import border_evidence
from stages.extract import Extractor


def describe_photographs(
    files: Sequence[Path], extractor: Extractor, *, tokens: str, on_photograph: Callable[[], object]
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Unit descriptors ``(N, C)`` and evidence ``(N,)`` of every photograph in which something stands out.

    Args:
        files: The photographs.
        extractor: Gives the descriptors first and ``tokens`` among the further facets, unless it is the same.
        tokens: Name of the facet that is compared with the border.
        on_photograph: Called after each.
    """
    rows, evidence = [], []
    for file in files:
        for packet in extractor([Frame(load_image(file), 0, 0.0)]):
            features = packet.features
            assert features is not None
            found = border_evidence(features.extra.get(tokens, features.data).float().cpu().numpy())
            if found is not None:
                maps = np.asarray(features.data.float().cpu().numpy(), np.float32)
                rows.append(normalize_rows(maps.reshape(maps.shape[0], -1).T))
                evidence.append(found)
        on_photograph()
    return rows, evidence
