from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.core.errors import MaskError
from pipeline.evaluation.davis import score_results
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.palette import write_indexed_png


def annotate(folder: Path, masks: list[npt.NDArray[np.uint8]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        write_indexed_png(folder / f"{index:05d}.png", mask)


def scene(left: int, *, second: bool = True) -> npt.NDArray[np.uint8]:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, left : left + 10] = 1
    if second:
        mask[20:28, 20:30] = 2
    return mask


@pytest.fixture
def sequence(tmp_path: Path) -> DavisSequence:
    pictures = tmp_path / "JPEGImages" / "480p" / "toy"
    pictures.mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (40, 30)).save(pictures / f"{index:05d}.jpg")
    annotate(tmp_path / "Annotations" / "480p" / "toy", [scene(4 + t) for t in range(6)])
    return open_davis(tmp_path, "2017", sequences=["toy"])[0]


def test_a_perfect_result_scores_one(sequence: DavisSequence, tmp_path: Path) -> None:
    annotate(tmp_path / "results" / "toy", [scene(4 + t) for t in range(6)])
    report = score_results([sequence], tmp_path / "results")
    assert report["global"]["J&F"] == 1.0
    assert report["sequences"]["toy"]["frames"] == 6
    assert set(report["sequences"]["toy"]["per_object"]) == {"1", "2"}


def test_the_first_and_the_last_frame_do_not_count(sequence: DavisSequence, tmp_path: Path) -> None:
    masks = [scene(4 + t) for t in range(6)]
    masks[0] = masks[-1] = np.zeros((30, 40), np.uint8)
    annotate(tmp_path / "results" / "toy", masks)
    assert score_results([sequence], tmp_path / "results")["global"]["J&F"] == 1.0


def test_an_object_missing_from_the_result_counts_as_empty(sequence: DavisSequence, tmp_path: Path) -> None:
    annotate(tmp_path / "results" / "toy", [scene(4 + t, second=False) for t in range(6)])
    report = score_results([sequence], tmp_path / "results")
    assert report["sequences"]["toy"]["per_object"]["2"]["J"]["mean"] == 0.0
    assert report["global"]["J"]["mean"] == 0.5


def test_void_in_the_truth_is_background(sequence: DavisSequence, tmp_path: Path) -> None:
    truth = scene(6)
    truth[0, :] = 255
    write_indexed_png(sequence.masks_dir / "00002.png", truth)
    annotate(tmp_path / "results" / "toy", [scene(4 + t) for t in range(6)])
    assert score_results([sequence], tmp_path / "results")["global"]["J&F"] == 1.0


def test_more_objects_than_the_truth_are_refused(sequence: DavisSequence, tmp_path: Path) -> None:
    masks = [scene(4 + t) for t in range(6)]
    masks[3][0, 0] = 3
    annotate(tmp_path / "results" / "toy", masks)
    with pytest.raises(MaskError, match=r"00003.png: object 3 in the result, but 'toy' has 2 .*official rule"):
        score_results([sequence], tmp_path / "results")


def test_results_that_lack_frames_are_named(sequence: DavisSequence, tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such folder of results"):
        score_results([sequence], tmp_path / "results")
    annotate(tmp_path / "results" / "toy", [scene(4 + t) for t in range(6)])
    (tmp_path / "results" / "toy" / "00004.png").unlink()
    with pytest.raises(MaskError, match=r"lack frames of toy: 00004.png"):
        score_results([sequence], tmp_path / "results")
    with pytest.raises(MaskError, match=r"toy \(all 6 frames\)"):
        score_results([sequence], tmp_path)


def test_a_result_of_another_size_says_both(sequence: DavisSequence, tmp_path: Path) -> None:
    annotate(tmp_path / "results" / "toy", [np.zeros((15, 20), np.uint8)] * 6)
    with pytest.raises(MaskError, match="the result is 20 x 15 pixels, the annotation 40 x 30"):
        score_results([sequence], tmp_path / "results")
