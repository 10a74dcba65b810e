"""One parquet table: a row per object and frame, with the pixels of every part inside the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError
from pipeline.core.files import whole_file
from pipeline.export.labeled_run import LabeledRun
from pipeline.formats.palette import read_indexed_png
from pipeline.formats.run_folder import OBJECT_COLUMNS


def write_parquet(run: LabeledRun, path: Path) -> None:
    """Write the columns of ``objects.csv``, ``category``, and ``part_N_px`` for every part N.

    Raises:
        ConfigError: pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("parquet needs the package pyarrow: pip install 'liftstream[export]'") from error
    table = run.table
    columns: dict[str, npt.NDArray[np.generic] | list[str]] = dict(
        zip(
            OBJECT_COLUMNS,
            (table.frames, table.pts_seconds, table.object_ids, table.areas_px, *table.xyxy.T, *table.centroids.T,
             table.confidence),
            strict=True,
        )
    )  # fmt: skip
    columns["category"] = [run.category(number) for number in table.object_ids.tolist()]
    columns |= {f"part_{number}_px": areas for number, areas in part_areas(run).items()}
    arrays = {name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()}
    with whole_file(path) as partial:
        parquet.write_table(pyarrow.table(arrays), str(partial), compression="zstd")


def part_areas(run: LabeledRun) -> dict[int, npt.NDArray[np.int64]]:
    """Pixels of each part inside the object of every row of the run's table, by part number."""
    parts = run.run.index_masks("parts")
    table = run.table
    rows = {
        (frame, number): row
        for row, (frame, number) in enumerate(zip(table.frames.tolist(), table.object_ids.tolist(), strict=True))
    }
    areas: dict[int, npt.NDArray[np.int64]] = {}
    for frame in run:
        if frame.index not in parts:
            continue
        part_mask = read_indexed_png(parts[frame.index])
        for found in frame.objects:
            numbers, counts = np.unique(part_mask[found.mask], return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if number and (frame.index, found.object_id) in rows:
                    column = areas.setdefault(number, np.zeros(len(table), np.int64))
                    column[rows[frame.index, found.object_id]] = count
    return dict(sorted(areas.items()))
