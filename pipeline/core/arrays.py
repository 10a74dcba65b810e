"""Array operations that several stages share: unit rows and the overlap of boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def normalize_rows(rows: npt.NDArray[np.floating], eps: float = 1e-12) -> FloatArray:
    """Rows ``(N, C)`` divided by their L2 norm, float32; a zero row stays zero.

    Raises:
        ValueError: A value is NaN or infinite.

    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    values = np.asarray(rows, np.float32)
    squared_norms = np.einsum("nc,nc->n", values, values)
    if not np.isfinite(squared_norms).all():
        bad = int(np.flatnonzero(~np.isfinite(squared_norms))[0])
        raise ValueError(f"row {bad} of {len(values)} holds NaN, infinite or too large values")
    return np.ascontiguousarray(values / np.maximum(np.sqrt(squared_norms), eps)[:, None], np.float32)


def box_areas(xyxy: npt.ArrayLike, *, pixel_extent: float = 0.0) -> npt.NDArray[np.float64]:
    """Areas ``(N,)`` of boxes ``(N, 4)``, in square pixels; see :func:`box_iou` for ``pixel_extent``."""
    boxes = np.asarray(xyxy, np.float64).reshape(-1, 4)
    areas: npt.NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2] + pixel_extent).clip(min=0).prod(axis=1)
    return areas


def box_intersection(
    first: npt.ArrayLike, second: npt.ArrayLike, *, pixel_extent: float = 0.0
) -> npt.NDArray[np.float64]:
    """Shared area of boxes ``(N, 4)`` and ``(M, 4)``: ``(N, M)`` in square pixels."""
    a = np.asarray(first, np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(second, np.float64).reshape(-1, 4)[None]
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + pixel_extent
    shared: npt.NDArray[np.float64] = size.clip(min=0).prod(axis=2)
    return shared


def box_iou(first: npt.ArrayLike, second: npt.ArrayLike, *, pixel_extent: float = 0.0) -> npt.NDArray[np.float64]:
    """Intersection over union of all pairs of boxes.

    Args:
        first: ``(N, 4)`` boxes as left, top, right, bottom.
        second: ``(M, 4)`` boxes.
        pixel_extent: Added to every width and height; 1 where right and bottom name the last pixel (BDD100K).

    Returns:
        float64 ``(N, M)`` in [0, 1]; 0 where neither box has area.

    >>> box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [2, 0, 4, 2]]).round(3).tolist()
    [[0.333, 0.0]]
    """
    shared = box_intersection(first, second, pixel_extent=pixel_extent)
    areas = (box_areas(boxes, pixel_extent=pixel_extent) for boxes in (first, second))
    union = np.add.outer(*areas) - shared
    overlap: npt.NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap
