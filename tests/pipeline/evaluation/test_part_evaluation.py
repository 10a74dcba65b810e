from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.commands.spair import letterbox
from pipeline.core.errors import InputError, LabelFileError, MediaError, OutputError
from pipeline.evaluation.localization import corloc, read_voc_boxes
from pipeline.evaluation.part_metrics import Consistency, cosegmentation_scores, part_consistency
from pipeline.evaluation.pck import PointErrors, mean_over_categories, nearest_cells, pck, transfer_points
from pipeline.formats.palette import read_indexed_png
from pipeline.formats.spair import list_pairs, read_pair
from pipeline.images.image_sets import claim_folder, contact_sheet, find_images, load_named
from pipeline.images.match_images import draw_matches


def test_jaccard_and_precision_by_hand() -> None:
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    half = np.zeros((4, 4), bool)
    half[0] = True
    jaccard, precision = cosegmentation_scores([half, truth], [truth, truth])
    assert jaccard == pytest.approx((0.5 + 1) / 2)
    assert precision == pytest.approx((0.75 + 1) / 2)
    with pytest.raises(ValueError, match="masks for"):
        cosegmentation_scores([half], [])


def test_consistency_follows_what_moves() -> None:
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (30, 40)), np.ones((4, 4))).astype(np.uint8)
    first = np.repeat(texture[8:100, 8:140, None], 3, axis=2)
    second = np.repeat(texture[8:100, 5:137, None], 3, axis=2)
    parts = np.ones(first.shape[:2], np.uint8)
    parts[:, 60:] = 2
    moved = np.ones_like(parts)
    moved[:, 63:] = 2
    inside = np.zeros(parts.shape, bool)
    inside[20:70, 30:100] = True
    kept = part_consistency((first, second), (parts, moved), inside)
    assert kept.followed > 2000
    assert kept.share > 0.98
    assert part_consistency((first, second), (parts, 3 - moved), inside).share < 0.02
    assert Consistency().share == 1.0
    assert (kept + kept).followed == 2 * kept.followed


def test_pck_definitions_differ_at_the_limit() -> None:
    errors = PointErrors(np.array([10.0, 5.0]), image_side_px=100.0, box_side_px=50.0)
    assert pck([errors], 0.1, "image") == 1.0
    assert pck([errors], 0.1, "box") == 0.0
    other = PointErrors(np.array([0.0]), 100.0, 50.0)
    scores = mean_over_categories({"b": [errors], "a": [other]}, 0.1, "box")
    assert scores == {"a": 1.0, "b": 0.0, "mean": 0.5}
    assert pck([], 0.1, "box") == 0.0


def test_transfer_matches_interpolating_all_channels() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(5, 4, 4), torch.randn(5, 4, 4)
    points = torch.tensor([[3.7, 9.2], [15.0, 0.0]])
    first = F.interpolate(F.normalize(source, dim=0)[None], size=(16, 16), mode="bilinear")[0]
    second = F.interpolate(F.normalize(target, dim=0)[None], size=(16, 16), mode="bilinear")[0]
    expected = []
    for x, y in points.long().tolist():
        best = int(torch.einsum("c,chw->hw", first[:, y, x], second).argmax())
        expected.append([best % 16, best // 16])
    assert transfer_points(source, target, points, 16).tolist() == expected


def test_nearest_cells_finds_itself() -> None:
    torch.manual_seed(0)
    maps = torch.randn(6, 5, 7)
    cells = torch.tensor([[0, 0], [6, 4], [3, 2]])
    assert nearest_cells(maps, 3 * maps, cells).tolist() == cells.tolist()


def test_letterbox_centres_and_scales() -> None:
    square, scale, offset = letterbox(np.full((50, 100, 3), 255, np.uint8), 64)
    assert (square.shape, scale, offset) == ((64, 64, 3), 0.64, (0, 16))
    assert square[16:48].min() == 255
    assert square[:16].max() == 0


def make_spair(root: Path) -> None:
    line = "000001-a-b:cat"
    (root / "Layout/large").mkdir(parents=True)
    (root / "Layout/large/test.txt").write_text(line + "\n")
    (root / "PairAnnotation/test").mkdir(parents=True)
    (root / "JPEGImages/cat").mkdir(parents=True)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (8, 10, 3)), np.ones((14, 14, 1))).astype(np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(image).save(root / "JPEGImages/cat" / name, quality=95)
    content = {
        "category": "cat", "src_imname": "a.jpg", "trg_imname": "b.jpg", "src_kps": [[20, 30], [100, 80]],
        "trg_kps": [[20, 30], [100, 80]], "src_bndbox": [0, 0, 140, 112], "trg_bndbox": [0, 0, 140, 112],
    }  # fmt: skip
    (root / "PairAnnotation/test" / f"{line}.json").write_text(json.dumps(content))


def test_spair_layout_is_read(tmp_path: Path) -> None:
    make_spair(tmp_path)
    pairs = list_pairs(tmp_path)
    assert list(pairs) == ["cat"]
    pair = read_pair(pairs["cat"][0], tmp_path)
    assert pair.source_points.shape == (2, 2)
    assert pair.target_box == (0, 0, 140, 112)
    assert pair.target.is_file()


def test_spair_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"not a SPair-71k folder.*test\.txt"):
        list_pairs(tmp_path)
    make_spair(tmp_path)
    file = list_pairs(tmp_path)["cat"][0]
    file.write_text("{}")
    with pytest.raises(LabelFileError, match="cannot be read as an SPair-71k pair"):
        read_pair(file, tmp_path)


@pytest.mark.parametrize("protocol", ["lift", "amir"])
def test_spair_of_an_image_with_itself_is_nearly_perfect(tmp_path: Path, protocol: str) -> None:
    import run_pipeline

    make_spair(tmp_path)
    output = tmp_path / "scores.json"
    arguments = ["spair", "--root", str(tmp_path), "--protocol", protocol, "--pairs", "1", "--size", "112"]
    assert run_pipeline.main([*arguments, "--output", str(output), "--device", "cpu"]) == 0
    scores = json.loads(output.read_text())
    assert scores["definition"] == ("box" if protocol == "lift" else "image")
    assert scores["scores"]["PCK@0.1"]["mean"] == 1.0


VOC = "<annotation>{}</annotation>"
OBJECT = (
    "<object><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax>{}</bndbox></object>"
)


def test_voc_boxes_and_corloc(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(VOC.format(OBJECT.format(0, "<ymax>30</ymax>") + OBJECT.format(1, "<ymax>31</ymax>")))
    assert read_voc_boxes(file) == [(0, 10, 20, 30), (0, 10, 20, 31)]
    assert len(read_voc_boxes(file, difficult=False)) == 1
    assert corloc([(0, 10, 20, 20)], [[(0, 10, 20, 30)]]) == 1.0
    assert corloc([(0, 10, 20, 19)], [[(0, 10, 20, 30)]]) == 0.0
    file.write_text(VOC.format(OBJECT.format(0, "")))
    with pytest.raises(LabelFileError, match="object 1"):
        read_voc_boxes(file)
    with pytest.raises(LabelFileError, match="Pascal VOC"):
        read_voc_boxes(tmp_path / "missing.xml")


def test_image_paths_are_checked(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError):
            find_images([bad])
    note = tmp_path / "note.txt"
    note.write_text("no image")
    with pytest.raises(MediaError, match="is not an image"):
        find_images([note])
    with pytest.raises(OutputError, match="--overwrite"):
        claim_folder(tmp_path, overwrite=False)
    claim_folder(tmp_path, overwrite=True)


def test_two_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "cat.png")
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(files[-1])
    assert [name for name, _ in load_named(files)] == ["cat", "cat_2"]


def test_pictures_have_the_sizes_they_should() -> None:
    images = [np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)]
    assert contact_sheet(images, columns=1, height_px=20).shape == (48, 30, 3)
    points = np.array([[10.0, 10.0]], np.float32)
    assert draw_matches(images[0], images[1], points, points).shape == (480, 720 + 320, 3)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = rng.integers(90, 110, (96, 112, 3)).astype(np.uint8)
        image[30:70, 40:80] = (220, 60, 40)
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_coseg_writes_what_it_says(pictures: Path, tmp_path: Path) -> None:
    import run_pipeline

    output = tmp_path / "out"
    arguments = [
        "coseg",
        str(pictures),
        "--output",
        str(output),
        "--short-side",
        "98",
        "--parts",
        "2",
        "--augment",
    ]
    assert run_pipeline.main([*arguments, "1", "--sample-interval", "2", "--filter-outliers"]) == 0
    content = json.loads((output / "coseg.json").read_text())
    assert len(content["images"]) == 2
    for name in ("a", "b"):
        assert read_indexed_png(output / "foreground" / f"{name}.png").max() <= 1
        assert read_indexed_png(output / "parts" / f"{name}.png").shape == (96, 112)
    assert run_pipeline.main([*arguments, "0"]) == 2


def test_match_and_discover_write_what_they_say(pictures: Path, tmp_path: Path) -> None:
    import run_pipeline

    a, b = str(pictures / "a.png"), str(pictures / "b.png")
    small = ["--short-side", "98", "--device", "cpu"]
    coarse = [*small, "--stride", "14"]
    assert run_pipeline.main(["match", a, b, "-o", str(tmp_path / "m"), *coarse, "--pairs", "3"]) == 0
    matches = json.loads((tmp_path / "m/matches.json").read_text())["matches"]
    assert len(matches) <= 3
    assert (tmp_path / "m/matches.png").is_file()
    for name in ("a", "b"):
        box = "<object><bndbox><xmin>41</xmin><ymin>31</ymin><xmax>80</xmax><ymax>70</ymax></bndbox></object>"
        (pictures / f"{name}.xml").write_text(VOC.format(box))
    truth = ["--annotations", str(pictures)]
    assert run_pipeline.main(["discover", str(pictures), "-o", str(tmp_path / "d"), *small, *truth]) == 0
    content = json.loads((tmp_path / "d/boxes.json").read_text())
    assert len(content["boxes"]) == 2
    assert 0.0 <= content["corloc"] <= 1.0
    assert run_pipeline.main(["match", a, "nowhere.png", "-o", str(tmp_path / "n")]) == 2
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("how", [["--no-zoom"], ["--zoom", "--stride", "14"]])
def test_given_points_meet_themselves_in_the_same_image(pictures: Path, tmp_path: Path, how: list[str]) -> None:
    import run_pipeline

    a = str(pictures / "a.png")
    small = ["match", a, a, "--short-side", "98", "--device", "cpu", *how]
    given = ["--point", "60,50", "--point", "20.5,70"]
    assert run_pipeline.main([*small, "-o", str(tmp_path / "m"), *given]) == 0
    matches = json.loads((tmp_path / "m/matches.json").read_text())["matches"]
    if "--no-zoom" in how:  # looking again, places are means over windows
        assert [m["a_xy"] for m in matches] == [m["b_xy"] for m in matches]
    for name in ("a_xy", "b_xy"):
        np.testing.assert_allclose([m[name] for m in matches], np.array([[60, 50], [20.5, 70]]), atol=8)
    for wrong in ("9", "9,x", "9,9999"):
        assert run_pipeline.main([*small, "-o", str(tmp_path / "n"), "--point", wrong]) == 2
    assert not (tmp_path / "n").exists()
