"""The maps a detector is trained on: cached from a frozen backbone, or computed in every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.errors import MediaError, OutputError
from pipeline.core.files import sha256_of
from pipeline.detect.coco_data import CocoImage, CocoSet
from pipeline.detect.model import Detector, Image, Placement
from pipeline.formats.image_folder import load_image

_MAPS, _DONE = "maps.npy", "done.npy"
_LARGEST_CACHE: Final = 64 << 30


@dataclass(frozen=True, slots=True)
class Sample:
    """One training view: an image of the set, as it is or mirrored left to right."""

    image: int
    mirrored: bool


def read_view(image: CocoImage, *, mirrored: bool) -> Image:
    """The pixels of a view.

    Raises:
        MediaError: The file cannot be read, or has another size than its entry.
    """
    pixels = load_image(image.path)
    if pixels.shape[:2] != image.image_hw:
        raise MediaError(f"{image.path}: is {pixels.shape[:2]} (h, w), its COCO entry says {image.image_hw}")
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


class LiveMaps:
    """Runs the backbone for every batch; needed where it is trained."""

    def __init__(self, detector: Detector, data: CocoSet, *, with_gradient: bool) -> None:
        self._detector = detector
        self._data = data
        self._with_gradient = with_gradient

    def batch(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Placement]]:
        """Maps ``(B, C, h, w)`` of some samples, and where the images lie in the input."""
        views = [read_view(self._data.images[s.image], mirrored=s.mirrored) for s in samples]
        inputs, places = self._detector.place(views)
        with torch.set_grad_enabled(self._with_gradient):
            return self._detector.feature_maps(inputs), places


class CachedMaps:
    """Maps of a frozen backbone as float16 in a file, computed once.

    Invariant: an entry whose flag is set is complete; a killed run goes on with the rest.

    Args:
        folder: Where the caches are.
        detector: In eval mode; its backbone and LiFT make the maps.
        data: The images.
        samples: All views.
    """

    def __init__(self, folder: Path, detector: Detector, data: CocoSet, samples: Sequence[Sample]) -> None:
        self._detector = detector
        self._data = data
        self._rows = {sample: row for row, sample in enumerate(samples)}
        self.folder = folder / _digest(detector, data, samples)
        canvas = detector.settings.canvas_hw
        cells = [round(side / detector.stride_px) for side in canvas]
        shape = (len(samples), detector.maps.channels, cells[0], cells[1])
        size = 2 * int(np.prod(shape, dtype=np.int64))
        if size > _LARGEST_CACHE:
            raise OutputError(
                f"{self.folder}: the cache would take {size >> 30} GiB, the limit is {_LARGEST_CACHE >> 30}; "
                "use --no-cache"
            )
        self._maps = _open(self.folder / _MAPS, shape, np.float16)
        self._done = _open(self.folder / _DONE, (len(samples),), np.bool_)

    @property
    def missing(self) -> list[Sample]:
        """The views that are not computed yet."""
        return [sample for sample, row in self._rows.items() if not self._done[row]]

    def fill(self, *, batch_size: int = 2, on_rows: Callable[[int], Any] = lambda count: None) -> None:
        """Compute what is missing."""
        live = LiveMaps(self._detector, self._data, with_gradient=False)
        missing = self.missing
        for start in range(0, len(missing), batch_size):
            chosen = missing[start : start + batch_size]
            maps, _ = live.batch(chosen)
            rows = [self._rows[sample] for sample in chosen]
            self._maps[rows] = maps.cpu().numpy().astype(np.float16)
            self._maps.flush()
            self._done[rows] = True
            self._done.flush()
            on_rows(len(chosen))

    def batch(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Placement]]:
        """See :meth:`LiveMaps.batch`."""
        rows = [self._rows[sample] for sample in samples]
        canvas = self._detector.settings.canvas_hw
        places = [Placement.fit(self._data.images[sample.image].image_hw, canvas) for sample in samples]
        maps = torch.from_numpy(np.asarray(self._maps[rows], np.float32))
        return maps.to(self._detector.device), places


MapSource = LiveMaps | CachedMaps


def _open(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.memmap[Any, Any]:
    """A memory-mapped array, made with zeros where it does not exist."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            stored: npt.NDArray[Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
            if isinstance(stored, np.memmap) and stored.shape == shape and stored.dtype == dtype:
                return stored
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: the cache cannot be used ({error}); delete it or name another --cache"
        ) from error


def _digest(detector: Detector, data: CocoSet, samples: Sequence[Sample]) -> str:
    """A name for everything that the maps depend on."""
    lift = detector.lift
    key = {
        "backbone": detector.maps.name,
        "facet": detector.maps.facet,
        "weights": detector.maps.weights_sha256,
        "lift": None if lift is None else sha256_of(lift.path),
        "canvas": detector.settings.canvas_hw,
        "files": [[str(image.path.resolve()), image.path.stat().st_size] for image in data.images],
        "samples": [[sample.image, sample.mirrored] for sample in samples],
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
