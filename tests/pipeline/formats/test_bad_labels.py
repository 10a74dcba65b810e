"""Label files and images that are broken or hostile: one line that names the file, and nothing else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import InputError, LabelFileError, MaskError, MediaError
from pipeline.core.records import VideoInfo
from pipeline.formats import bdd, coco, mot
from pipeline.formats.boxes import BoxTable
from pipeline.formats.davis import open_davis
from pipeline.formats.detections import read_detections
from pipeline.formats.image_folder import load_image, probe_folder
from pipeline.formats.json_file import LARGEST_FRAME
from pipeline.formats.masks import load_masks
from pipeline.formats.mot_folders import read_seqinfo
from pipeline.formats.palette import write_indexed_png
from pipeline.formats.spair import read_pair

INFO = VideoInfo(Path("clip.mp4"), 48, 64, Fraction(25), None, Fraction(1, 25))


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("deep.json", "[" * 1_000_000, "nested too deeply"),
        ("deep_object.json", '{"a":' * 1_000_000, "nested too deeply"),
        ("digits.json", '[{"image_id": ' + "9" * 10_000 + ', "bbox": [0, 0, 1, 1]}]', "too many digits"),
        ("huge.json", '[{"image_id": ' + "9" * 400 + ', "bbox": [0, 0, 1, 1]}]', "too large"),
        ("box.json", '[{"image_id": 0, "bbox": [0, 0, ' + "9" * 400 + ", 1]}]", "needs bbox"),
        ("images.json", '{"images": 5, "annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1]}]}', "'images' must"),
        ("lists.json", '{"images": [{"id": [1]}], "annotations": []}', "id must be a number or a name"),
        ("entry.json", '{"annotations": [{"image_id": [1], "bbox": [0, 0, 1, 1]}]}', "image_id must"),
        ("category.json", '[{"image_id": 0, "category_id": {}, "bbox": [0, 0, 1, 1]}]', "category_id must"),
        ("labels.json", '[{"labels": 5}]', "labels must be a list"),
        ("attributes.json", '[{"labels": [{"category": "a", "box2d": {"x1":0,"y1":0,"x2":1,"y2":1}, '
         '"attributes": 3}]}]', "attributes must be"),
        ("corners.json", '[{"labels": [{"category": "a", "box2d": [1, 2]}]}]', "needs numbers"),
        ("name.json", '[{"videoName": "../evil", "labels": []}]', "cannot be the name"),
        ("absolute.json", '[{"videoName": "/etc/evil", "labels": []}]', "cannot be the name"),
        ("index.json", '[{"frameIndex": 100000000000, "labels": []}]', "frameIndex must be"),
        ("id.txt", "1,10000000000000000000,0,0,5,5,1", "too large"),
        ("frame.txt", "300000000,1,0,0,5,5,1", "too large"),
        ("wide.txt", "1,1,0,0,1e308,1e308,1\n1,2,1e308,0,1e308,1,1", "too large"),
    ],
)  # fmt: skip
def test_hostile_detections_are_one_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = _write(tmp_path, name, content)
    with pytest.raises(LabelFileError, match=says) as caught:
        read_detections(path, INFO)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("value", ["null", "{}", "7", "[[1, 2]]"])
def test_images_that_are_not_a_list_of_objects_are_refused(tmp_path: Path, value: str) -> None:
    annotations = [{"image_id": 0, "bbox": [0, 0, 1, 1]}]
    path = _write(tmp_path, "a.json", f'{{"images": {value}, "annotations": {json.dumps(annotations)}}}')
    with pytest.raises(LabelFileError, match="'images' must be a list of objects"):
        read_detections(path, INFO)


def test_memory_grows_with_the_boxes_and_not_with_the_frame_number() -> None:
    table = BoxTable.make([LARGEST_FRAME * 1000, 5], [1, 1], [[0, 0, 4, 4], [1, 1, 3, 3]])
    assert {frame: rows.tolist() for frame, rows in table.rows_by_frame().items()} == {5: [1], 10**10: [0]}


@pytest.mark.parametrize(
    "text", ["seqLength=1e12", "seqLength=1000000000000", "imWidth=1e999999999", "imDir=../../etc", "imDir=/etc"]
)
@pytest.mark.timeout(10)
def test_a_hostile_seqinfo_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabelFileError, match=r"seqinfo\.ini"):
        read_seqinfo(_write(tmp_path, "seqinfo.ini", f"[Sequence]\n{text}\n"))


def test_davis_names_do_not_leave_the_root(tmp_path: Path) -> None:
    for folder in ("JPEGImages/480p", "Annotations/480p", "ImageSets/2017"):
        (tmp_path / folder).mkdir(parents=True)
    _write(tmp_path, "ImageSets/2017/val.txt", "..\n")
    with pytest.raises(MediaError, match="cannot be the name of a sequence"):
        open_davis(tmp_path, "2017")
    with pytest.raises(MediaError, match="cannot be the name of a sequence"):
        open_davis(tmp_path, "2017", sequences=["../evil"])
    _write(tmp_path, "ImageSets/2017/val.txt", b"\xff\xfe\x80")
    with pytest.raises(MediaError, match="list of sequences"):
        open_davis(tmp_path, "2017")


def test_a_first_davis_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    frames, masks = tmp_path / "JPEGImages/480p/a", tmp_path / "Annotations/480p/a"
    frames.mkdir(parents=True)
    masks.mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(frames / "00000.jpg")
    write_indexed_png(masks / "00000.png", np.ones((24, 32), np.uint8))
    with pytest.raises(MaskError, match="the mask is 32 x 24 pixels, the frame is 64 x 48"):
        open_davis(tmp_path, "2017", sequences=["a"])


def test_spair_names_do_not_leave_the_root(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "category": "cat", "src_kps": [[1, 2]], "trg_kps": [[1, 2]], "trg_bndbox": [0, 0, 1, 1],
        "src_imname": "../../../etc/passwd", "trg_imname": "b.jpg",
    }  # fmt: skip
    with pytest.raises(LabelFileError, match="cannot be the name of a file"):
        read_pair(_write(tmp_path, "pair.json", json.dumps(fields)), tmp_path)


def test_masks_are_read_when_their_frame_comes(tmp_path: Path) -> None:
    for index in (0, 3, 7):
        write_indexed_png(tmp_path / f"{index:05d}.png", np.full((48, 64), index + 1, np.uint8))
    masks = load_masks(tmp_path, INFO)
    assert (list(masks), len(masks), 3 in masks, 4 in masks) == ([0, 3, 7], 3, True, False)
    assert np.unique(masks[3]).tolist() == [4]
    (tmp_path / "00007.png").write_bytes(b"gone")
    with pytest.raises(MaskError, match=r"00007\.png: cannot be read"):
        masks[7]


def test_a_mask_of_another_size_is_an_error_before_the_run(tmp_path: Path) -> None:
    write_indexed_png(tmp_path / "00000.png", np.ones((48, 64), np.uint8))
    write_indexed_png(tmp_path / "00009.png", np.ones((8, 8), np.uint8))
    with pytest.raises(MaskError, match=r"00009\.png: the mask is 8 x 8 pixels"):
        load_masks(tmp_path, INFO)


def test_a_jpeg_is_not_a_mask(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 22, (48, 64), np.uint8) * 10
    Image.fromarray(noise).save(tmp_path / "mask.jpg")
    with pytest.raises(MaskError, match=r"mask\.jpg: is a JPEG file.*save masks as PNG"):
        load_masks(tmp_path / "mask.jpg", INFO)


def _bomb(path: Path) -> Path:
    """A PNG whose header says 60,000 x 60,000 pixels."""
    Image.new("L", (8, 8), 1).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    _bomb(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"bomb\.png: cannot be read as an image \(Image size"):
        load_image(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"bomb\.png"):
        probe_folder(tmp_path, Fraction(25))
    with pytest.raises(MaskError, match=r"bomb\.png: cannot be read as a PNG mask"):
        load_masks(tmp_path / "bomb.png", INFO)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=r"a\.tif: floating-point images have no known range"):
        load_image(tmp_path / "a.tif")


def test_dark_sixteen_bit_images_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert int(load_image(tmp_path / "a.png").max()) == 1


def test_images_that_share_a_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(MediaError, match=r"a\.(jpg|png) and a\.(jpg|png) would share"):
        probe_folder(tmp_path, Fraction(25))


def _mot_text() -> bytes:
    lines = [
        f"{frame},{track},{10 * track},{5 + frame},20,30,0.9,1,0.5" for frame in (1, 2, 3) for track in (1, 2)
    ]
    return "\n".join(lines).encode()


def _bdd_json() -> bytes:
    box = {"x1": 1, "y1": 2, "x2": 30, "y2": 40}
    label = {"id": "7", "category": "car", "score": 0.5, "box2d": box, "attributes": {"crowd": False}}
    frames = [{"name": f"{n}.jpg", "videoName": "clip", "frameIndex": n, "labels": [label]} for n in range(3)]
    return json.dumps(frames).encode()


def _coco_json() -> bytes:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    entries = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5} for n in range(3)]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "car"}]}
    return json.dumps(content).encode()


def _spair_json() -> bytes:
    fields = {
        "category": "cat", "src_kps": [[1, 2], [3, 4]], "trg_kps": [[1, 2], [5, 6]], "trg_bndbox": [0, 0, 9, 9],
        "src_imname": "a.jpg", "trg_imname": "b.jpg",
    }  # fmt: skip
    return json.dumps(fields).encode()


def _mask_png(folder: Path) -> bytes:
    path = folder / "source.png"
    write_indexed_png(path, np.tile(np.arange(4, dtype=np.uint8), (48, 16)))
    return path.read_bytes()


_TOKENS = (
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e309",
    b"NaN",
    b"9" * 50,
    b'"x"',
    b"true",
    b"[[1]]",
    b"\x00",
    b"\xff",
    b",",
)


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Content with one to three random edits: tokens put in, pieces cut, doubled, or bits flipped."""
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 24))
        edits = (
            content[:at] + _TOKENS[rng.integers(len(_TOKENS))] + content[at + length :],
            content[:at] + content[at + length :],
            content[:at] + content[at : at + length] + content[at:],
            content[:at]
            + bytes(byte ^ 1 << int(rng.integers(8)) for byte in content[at : at + 2])
            + content[at + 2 :],
        )
        content = edits[rng.integers(len(edits))]
    return content


@pytest.mark.timeout(120)
def test_mutated_label_files_raise_nothing_but_input_errors(tmp_path: Path) -> None:
    readers: list[tuple[str, bytes, Callable[[Path], object]]] = [
        ("det.txt", _mot_text(), lambda path: read_detections(path, INFO)),
        ("gt.txt", _mot_text(), lambda path: mot.read_table(path, kind="gt")),
        ("bdd.json", _bdd_json(), lambda path: read_detections(path, INFO)),
        ("videos.json", _bdd_json(), bdd.read_videos),
        ("coco.json", _coco_json(), lambda path: read_detections(path, INFO)),
        (
            "table.json",
            _coco_json(),
            lambda path: coco.read_table(path, frame_names=("0", "1", "2"), num_frames=3),
        ),
        ("pair.json", _spair_json(), lambda path: read_pair(path, tmp_path)),
        ("seqinfo.ini", b"[Sequence]\nname=a\nimDir=img1\nframeRate=30\nseqLength=9\nimWidth=64\nimHeight=48\n",
         read_seqinfo),
        ("mask.png", _mask_png(tmp_path), lambda path: dict(load_masks(path, INFO))),
        ("image.png", _mask_png(tmp_path), load_image),
    ]  # fmt: skip
    rng = np.random.default_rng(11)
    escaped: list[str] = []
    refused, unnamed = 0, 0
    for name, content, read in readers:
        for number in range(300):
            path = tmp_path / name
            path.write_bytes(_mutated(content, rng))
            try:
                read(path)
            except InputError as error:
                refused += str(path) in str(error)
                unnamed += str(path) not in str(error)
            except Exception as error:  # noqa: BLE001 - what escapes is what is being looked for
                escaped.append(f"{name} {number}: {error!r}")
    assert (escaped, unnamed) == ([], 0)
    assert refused > 1000
