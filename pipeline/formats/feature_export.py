"""Features on disk, written frame by frame: one ``.npz`` file or one Zarr (version 2) folder.

Both hold, for N frames: ``data`` and every further facet ``(N, C, h, w)``, ``saliency`` ``(N, h, w)`` and ``cls``
``(N, C)`` in float16; ``frame_index`` and ``pts_seconds`` ``(N,)``; and the geometry of the grid, ``image_hw``,
``grid_hw``, ``stride_px``, ``offset_px``, as arrays in the npz and as attributes in Zarr. The center of cell
(row, column) lies at ``offset_px + (row, column) * stride_px`` in pixels of the frame.

Memory holds one frame at a time. The file or folder gets its name once it is complete.
"""

from __future__ import annotations

import json
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pipeline.core.errors import OutputError
from pipeline.core.files import move_folder, scratch_folder, whole_file
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Packet

ExportFormat = Literal["npz", "zarr"]

_HEADER_SPACE: Final = 128
_FLOAT16_MAX: Final = 65504.0


class FeatureExporter:
    """Streams the features of packets to disk. Use as a context manager: leaving it completes the file.

    Invariant: if the block is left by an exception, nothing new stays on disk.
    """

    def __init__(self, path: Path, kind: ExportFormat, *, overwrite: bool = False, **facts: Any) -> None:
        """Prepare an export.

        Args:
            path: The ``.npz`` file or Zarr folder to write.
            kind: Which of the two.
            overwrite: Replace an existing export.
            facts: JSON-ready facts to keep with the features, such as the backbone's name.

        Raises:
            OutputError: ``path`` exists and ``overwrite`` is off.
        """
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; use --overwrite or another folder")
        self.path = path
        self.num_frames = 0
        self.clipped_values = 0
        self._kind = kind
        self._facts = facts
        self._grid: PatchGrid | None = None
        self._stack = ExitStack()
        self._scratch = Path()
        self._arrays: dict[str, _GrowingArray] = {}

    def __enter__(self) -> FeatureExporter:
        self._scratch = self._stack.enter_context(scratch_folder(self.path))
        return self

    def write(self, packet: Packet) -> None:
        """Append a packet's features.

        Raises:
            ValueError: The packet has none, or their grid or facets differ from the frames before.
        """
        features = packet.features
        if features is None:
            raise ValueError(f"frame {packet.index} has no features to export")
        self._grid = self._grid or features.grid
        if features.grid != self._grid:
            raise ValueError(f"frame {packet.index} has another grid than the frames before it")
        fields: dict[str, Any] = {"data": features.data, **features.extra}
        fields |= {"saliency": features.saliency, "cls": features.cls}
        rows = {name: self._half(values) for name, values in fields.items() if values is not None}
        rows["frame_index"] = np.asarray(packet.index, np.int64)
        rows["pts_seconds"] = np.asarray(packet.frame.pts_seconds, np.float64)
        if self._arrays and rows.keys() != self._arrays.keys():
            raise ValueError(f"frame {packet.index} has other facets than the frames before it")
        for name, row in rows.items():
            if name not in self._arrays:
                make = _GrowingNpy if self._kind == "npz" else _GrowingZarr
                self._arrays[name] = make(self._scratch, name, row)
            self._arrays[name].append(row)
        self.num_frames += 1

    def _half(self, values: Any) -> npt.NDArray[np.float16]:
        """As float16; values outside its range are clipped and counted."""
        exact = values.float().cpu().numpy()
        beyond = int((np.abs(exact) > _FLOAT16_MAX).sum())
        self.clipped_values += beyond
        half: npt.NDArray[np.float16] = np.clip(exact, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        return half

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            for array in self._arrays.values():
                array.close()
            if exc_type is None and self._grid is not None:
                self._complete(self._grid)

    def _complete(self, grid: PatchGrid) -> None:
        geometry: dict[str, Any] = {
            name: list(getattr(grid, name)) for name in ("image_hw", "grid_hw", "stride_px", "offset_px")
        }
        if self._kind == "zarr":
            (self._scratch / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
            (self._scratch / ".zattrs").write_text(json.dumps(geometry | self._facts, indent=1))
            move_folder(self._scratch, self.path)
            return
        with (
            whole_file(self.path) as archive,
            zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, allowZip64=True) as target,
        ):
            for name in self._arrays:
                target.write(self._scratch / f"{name}.npy", f"{name}.npy")
            for name, values in geometry.items():
                with target.open(f"{name}.npy", "w") as entry:
                    np.save(entry, np.asarray(values))
            with target.open("facts.npy", "w") as entry:
                np.save(entry, np.asarray(json.dumps(self._facts)))


class _GrowingArray:
    """An array on disk that grows row by row."""

    def append(self, row: npt.NDArray[Any]) -> None:
        """Append one row."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what depends on the number of rows."""
        raise NotImplementedError


class _GrowingNpy(_GrowingArray):
    """One ``.npy`` file, whose header is written again at the end, padded to the same length."""

    def __init__(self, folder: Path, name: str, row: npt.NDArray[Any]) -> None:
        self._file: BinaryIO = (folder / f"{name}.npy").open("wb")
        self._row_shape, self._dtype, self._rows = row.shape, row.dtype, 0
        self._write_header()

    def append(self, row: npt.NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(row).tobytes())
        self._rows += 1

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        """Version 1 of the format: magic, length, a dict padded with spaces to a fixed end."""
        shape = (self._rows, *self._row_shape)
        text = repr({"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape})
        header = text.encode("latin1").ljust(_HEADER_SPACE - 11) + b"\n"
        self._file.write(npy.magic(1, 0) + len(header).to_bytes(2, "little") + header)


class _GrowingZarr(_GrowingArray):
    """An uncompressed Zarr array with one chunk per row."""

    def __init__(self, folder: Path, name: str, row: npt.NDArray[Any]) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._row_shape, self._dtype, self._rows = row.shape, row.dtype, 0

    def append(self, row: npt.NDArray[Any]) -> None:
        chunk = ".".join(str(n) for n in (self._rows, *[0] * len(self._row_shape)))
        (self._folder / chunk).write_bytes(np.ascontiguousarray(row).tobytes())
        self._rows += 1

    def close(self) -> None:
        description = {
            "zarr_format": 2,
            "shape": [self._rows, *self._row_shape],
            "chunks": [1, *self._row_shape],
            "dtype": self._dtype.str,
            "compressor": None,
            "fill_value": 0,
            "order": "C",
            "filters": None,
        }
        (self._folder / ".zarray").write_text(json.dumps(description))
