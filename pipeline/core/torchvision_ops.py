"""Makes ``import torchvision`` work beside a torch build its compiled ops do not fit.

A torchvision built for CUDA cannot load its operators into a CPU-only torch, and its import then fails with
"operator torchvision::nms does not exist" because it registers shape functions for operators that were never
declared. Declaring the schemas of the two is enough for the import. Nothing here calls them: ROIAlign has its
own implementation for that case (``stages/ops/roi_align.py``).

Import this module before the first import of torchvision or timm.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _load_compiled() -> bool:
    """Load torchvision's compiled operators the way it does itself; False where they do not fit."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return all(hasattr(torch.ops.torchvision, name) for name in (*_SCHEMAS, "roi_align"))


def _declare_schemas() -> torch.library.Library | None:
    """Declare the missing schemas; the library must stay referenced for the declarations to live."""
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in missing:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


HAS_COMPILED_OPS: bool = _load_compiled()
"""Whether torchvision's own operators (``nms``, ``roi_align``, ...) can be called."""


def has_roi_align(device_type: str) -> bool:
    """Whether torchvision's ROIAlign has a kernel for a type of device, such as ``cuda``."""
    if not HAS_COMPILED_OPS:
        return False
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type, device_type.upper())
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::roi_align", key))


_library = None if HAS_COMPILED_OPS else _declare_schemas()
