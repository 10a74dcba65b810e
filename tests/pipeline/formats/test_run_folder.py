from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import LabelFileError, OutputError
from pipeline.formats.run_folder import RunFolder, find_runs, object_table_of_masks, read_objects
from tests.run_folders import COUNT, RATE, SIZE, index_mask, make_run


def test_everything_in_the_folder_is_read_back(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "square"))
    assert (run.name, run.image_hw, float(run.frame_rate)) == ("square.mp4", SIZE, RATE)
    assert [index for index, _ in run.read_masks()] == list(range(COUNT))
    assert all((mask == index_mask(index)).all() for index, mask in run.read_masks())
    assert run.frames() == list(range(COUNT))
    assert run.video_seconds() == pytest.approx([n / RATE for n in range(COUNT)], abs=1e-3)
    assert run.tracks().num_frames == COUNT


def test_the_table_of_the_masks_is_the_one_that_was_written(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "square"))
    written, computed = run.objects(), object_table_of_masks(run)
    seen = written.areas_px > 0
    np.testing.assert_array_equal(written.areas_px[seen], computed.areas_px)
    np.testing.assert_array_equal(written.xyxy[seen], computed.xyxy)
    np.testing.assert_allclose(written.centroids[seen], computed.centroids, atol=0.006)
    assert np.isnan(written.xyxy[~seen]).all()


def test_masks_of_a_folder_of_images_have_the_images_places(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "square")
    for index in range(COUNT):
        (folder / "masks" / f"{index:05d}.png").rename(folder / "masks" / f"img_{index + 1}.png")
    assert list(RunFolder(folder).index_masks()) == list(range(COUNT))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("3,0.1,1", "has 3 columns instead of 11", id="too few columns"),
        pytest.param("x,0,1,1,0,0,1,1,0,0,1", "could not convert", id="not a number"),
        pytest.param("1,0,1,1,0,0,1,1,0,0,7", "out of range", id="confidence above 1"),
        pytest.param("1e300,0,1,1,0,0,1,1,0,0,1", "out of range", id="huge frame"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = make_run(tmp_path / "square") / "objects.csv"
    count = len(path.read_text().splitlines())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(LabelFileError, match=message) as caught:
        read_objects(path)
    assert f"objects.csv:{count + 1}" in str(caught.value)


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"producer": "liftstream"}', "[" * 100_000])
def test_another_folder_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError):
        RunFolder(tmp_path)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "square")
    secret = tmp_path / "secret.csv"
    secret.write_text("x")
    (folder / "objects.csv").unlink()
    (folder / "objects.csv").symlink_to(secret)
    with pytest.raises(OutputError, match="leads out"):
        RunFolder(folder).objects()


def test_runs_are_found_in_a_folder_of_runs(tmp_path: Path) -> None:
    for name in ("b10", "b9"):
        make_run(tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text(json.dumps({"producer": "liftstream", "status": "running"}))
    assert [run.folder.name for run in find_runs(tmp_path)] == ["b9", "b10"]
    with pytest.raises(OutputError, match="holds no output"):
        find_runs(tmp_path / "other")
