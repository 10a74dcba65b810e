"""Exports read back, atomic, and flat in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import OutputError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet
from pipeline.formats.feature_export import ExportFormat, FeatureExporter

GRID = PatchGrid.from_input((40, 60), (40, 60), patch_px=10, stride_px=10)
IMAGE = np.zeros((40, 60, 3), np.uint8)


def packets(count: int, channels: int = 8) -> Iterator[Packet]:
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        data = torch.randn(channels, 4, 6, generator=generator)
        features = Features(data, GRID, data[0].abs(), data[:, 0, 0], {"token@1": data[:3]})
        yield Packet(Frame(IMAGE, 2 * index, index / 12.5), features)


def export(path: Path, kind: ExportFormat, count: int = 5, **options: Any) -> FeatureExporter:
    with FeatureExporter(path, kind, backbone="tiny", **options) as exporter:
        for packet in packets(count):
            exporter.write(packet)
    return exporter


def read_zarr(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """The documented layout, read without any library."""
    about = json.loads((folder / name / ".zarray").read_text())
    assert about["zarr_format"] == 2
    assert about["compressor"] is None
    rows = []
    for row in range(about["shape"][0]):
        chunk = ".".join(str(n) for n in (row, *[0] * (len(about["shape"]) - 1)))
        rows.append(np.frombuffer((folder / name / chunk).read_bytes(), about["dtype"]).reshape(about["chunks"]))
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", ["npz", "zarr"])
def test_what_was_written_reads_back(tmp_path: Path, kind: ExportFormat) -> None:
    path = tmp_path / f"features.{kind}"
    export(path, kind)
    source = list(packets(5))
    features = [packet.features for packet in source if packet.features is not None]
    if kind == "npz":
        found = dict(np.load(path))
        assert json.loads(str(found["facts"])) == {"backbone": "tiny"}
        geometry = {name: found[name].tolist() for name in ("image_hw", "grid_hw", "stride_px", "offset_px")}
    else:
        names = ("data", "token@1", "saliency", "cls", "frame_index", "pts_seconds")
        found = {name: read_zarr(path, name) for name in names}
        geometry = json.loads((path / ".zattrs").read_text())
        assert geometry.pop("backbone") == "tiny"
    assert geometry == {
        "image_hw": [40, 60], "grid_hw": [4, 6], "stride_px": [10.0, 10.0], "offset_px": [5.0, 5.0]
    }  # fmt: skip
    assert np.array_equal(found["data"], np.stack([f.data.half().numpy() for f in features]))
    assert np.array_equal(found["token@1"], found["data"][:, :3])
    assert found["saliency"].shape == (5, 4, 6)
    assert found["cls"].shape == (5, 8)
    assert found["frame_index"].tolist() == [0, 2, 4, 6, 8]
    assert found["pts_seconds"].tolist() == [packet.frame.pts_seconds for packet in source]


@pytest.mark.parametrize("kind", ["npz", "zarr"])
def test_an_export_that_fails_leaves_nothing(tmp_path: Path, kind: ExportFormat) -> None:
    with pytest.raises(RuntimeError), FeatureExporter(tmp_path / "features", kind) as exporter:
        exporter.write(next(packets(1)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["npz", "zarr"])
def test_what_exists_is_replaced_only_when_asked(tmp_path: Path, kind: ExportFormat) -> None:
    path = tmp_path / f"features.{kind}"
    export(path, kind)
    with pytest.raises(OutputError, match="--overwrite"):
        export(path, kind)
    export(path, kind, count=2, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert len(np.load(path)["data"] if kind == "npz" else read_zarr(path, "data")) == 2


def test_values_beyond_half_precision_are_counted(tmp_path: Path) -> None:
    data = torch.full((2, 4, 6), 1e6)
    with FeatureExporter(tmp_path / "f.npz", "npz") as exporter:
        exporter.write(Packet(Frame(IMAGE, 0, 0.0), Features(data, GRID)))
    assert exporter.clipped_values == data.numel()
    assert np.isfinite(np.load(tmp_path / "f.npz")["data"]).all()


def test_frames_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other facets"), FeatureExporter(tmp_path / "f.npz", "npz") as exporter:
        exporter.write(next(packets(1)))
        exporter.write(Packet(Frame(IMAGE, 1, 0.0), Features(torch.zeros(8, 4, 6), GRID)))


@pytest.mark.parametrize("kind", ["npz", "zarr"])
def test_memory_does_not_grow_with_the_video(tmp_path: Path, kind: ExportFormat) -> None:
    peaks = []
    for count in (10, 100):
        tracemalloc.start()
        with FeatureExporter(tmp_path / f"{count}", kind) as exporter:
            for packet in packets(count, channels=256):
                exporter.write(packet)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A frame is 25 kB on disk: 90 more would be 2.2 MB.
    assert peaks[1] < peaks[0] + 200_000
