from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import MaskError, MediaError
from pipeline.core.records import VideoInfo
from pipeline.formats.davis import open_davis
from pipeline.formats.masks import load_masks
from pipeline.formats.palette import davis_palette, read_indexed_png, write_indexed_png

INFO = VideoInfo(Path("clip.mp4"), 4, 6, Fraction(24), 10, Fraction(1, 24))


def gray(path: Path, values: list[int], shape: tuple[int, int] = (4, 6)) -> Path:
    mask = np.zeros(shape, np.uint8)
    mask.flat[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def make_root(root: Path, *, frames: int = 4, first: list[int] | None = None, year: str = "2017") -> Path:
    for name in ("bear", "cat"):
        for index in range(frames):
            picture = root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg"
            gray(picture, [])
            gray(root / "Annotations" / "480p" / name / f"{index:05d}.png", [1, 2] if first is None else first)
    (root / "ImageSets" / year).mkdir(parents=True)
    (root / "ImageSets" / year / "val.txt").write_text("bear\ncat\n", encoding="utf-8")
    return root


def test_the_palette_is_that_of_davis() -> None:
    palette = davis_palette()
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[9].tolist() == [191, 0, 0]  # where PASCAL VOC has 192
    assert palette[20:22].tolist() == [[0, 64, 128], [128, 64, 128]]
    assert palette[22].tolist() == [22, 22, 22]
    assert palette[255].tolist() == [255, 255, 255]


def test_written_masks_read_back_as_indices(tmp_path: Path) -> None:
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    write_indexed_png(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert (image.getpalette() or [])[:6] == [0, 0, 0, 128, 0, 0]
    np.testing.assert_array_equal(read_indexed_png(tmp_path / "m.png"), mask)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_one_mask_belongs_to_the_first_frame(tmp_path: Path) -> None:
    path = gray(tmp_path / "first.png", [3])
    assert {index: int(mask.max()) for index, mask in load_masks(path, INFO).items()} == {0: 3}
    assert list(load_masks(path, INFO, first_index=5)) == [5]


def test_black_and_white_is_one_object(tmp_path: Path) -> None:
    assert np.unique(load_masks(gray(tmp_path / "m.png", [255]), INFO)[0]).tolist() == [0, 1]
    with_void = load_masks(gray(tmp_path / "v.png", [255, 2]), INFO)[0]
    assert np.unique(with_void).tolist() == [0, 2, 255]


def test_a_folder_is_read_by_frame(tmp_path: Path) -> None:
    for name in ("00000", "00007"):
        gray(tmp_path / f"{name}.png", [1])
    assert list(load_masks(tmp_path, INFO)) == [0, 7]
    named = VideoInfo(Path("pics"), 4, 6, Fraction(24), 2, Fraction(1, 24), ("a", "00000"))
    (tmp_path / "00007.png").rename(tmp_path / "a.png")
    assert list(load_masks(tmp_path, named)) == [0, 1]


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    empty = tmp_path / "nothing"
    empty.mkdir()
    gray(tmp_path / "late" / "00010.png", [1])
    gray(tmp_path / "odd" / "mask_one.png", [1])
    cases = {
        tmp_path / "rgb.png": "RGB image; it must be indexed",
        tmp_path / "text.png": "cannot be read",
        tmp_path / "missing.png": "no such mask",
        empty: "no PNG masks",
        tmp_path / "late": r"mask for frame 10, but clip.mp4 has 10 frames \(0 to 9\)",
        tmp_path / "odd": "name is not a frame",
        gray(tmp_path / "small.png", [1], (2, 3)): "the mask is 3 x 2 pixels, the frames are 6 x 4",
        gray(tmp_path / "zero.png", [0]): "has no object",
    }
    for path, message in cases.items():
        with pytest.raises(MaskError, match=message):
            load_masks(path, INFO)


def test_both_years_read_their_masks(tmp_path: Path) -> None:
    root = make_root(tmp_path, first=[1, 2, 255])
    assert [s.name for s in open_davis(root, "2017")] == ["bear", "cat"]
    two = open_davis(root, "2017", sequences=["cat"])[0]
    assert np.unique(two.first_mask()).tolist() == [0, 1, 2, 255]
    one = open_davis(root, "2016", sequences=["cat"])[0]
    assert np.unique(one.first_mask()).tolist() == [0, 1]
    binary = make_root(tmp_path / "binary", first=[255], year="2016")
    assert np.unique(open_davis(binary, "2016")[0].first_mask()).tolist() == [0, 1]
    with pytest.raises(MaskError, match="use --year 2016"):
        open_davis(binary, "2017", sequences=["bear"])


def test_a_list_of_the_2016_release_is_understood(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (root / "ImageSets" / "480p").mkdir()
    pairs = [f"/JPEGImages/480p/cat/{i:05d}.jpg /Annotations/480p/cat/{i:05d}.png" for i in range(4)]
    (root / "ImageSets" / "480p" / "val.txt").write_text("\n".join(pairs), encoding="utf-8")
    assert [sequence.name for sequence in open_davis(root, "2016")] == ["cat"]


def test_a_root_that_is_not_davis_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a DAVIS root: no folder JPEGImages/480p; expected"):
        open_davis(tmp_path, "2016")


def test_what_a_sequence_lacks_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    with pytest.raises(MediaError, match="no such list of sequences; there are: val"):
        open_davis(root, "2017", split="train")
    with pytest.raises(MediaError, match="no such sequence; there are: bear, cat"):
        open_davis(root, "2017", sequences=["dog"])
    (root / "Annotations" / "480p" / "bear" / "00002.png").unlink()
    with pytest.raises(MaskError, match="1 annotations are missing for sequence 'bear': 00002"):
        open_davis(root, "2017")
    (root / "JPEGImages" / "480p" / "bear" / "00002.jpg").unlink()
    (root / "JPEGImages" / "480p" / "bear" / "00003.jpg").unlink()
    with pytest.raises(MaskError, match="1 frames are missing for sequence 'bear': 00003"):
        open_davis(root, "2017")


def test_a_first_mask_without_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="the first mask has no object"):
        open_davis(make_root(tmp_path, first=[0]), "2017")
