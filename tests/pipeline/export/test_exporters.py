"""Every format is read back by a library of the tool it is for, pixel for pixel where the format allows it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.core.errors import ConfigError, LiftstreamError, OutputError
from pipeline.export import FORMATS, ExportRequest, LabeledRun, export_run
from pipeline.export.mask_video import write_mask_video
from pipeline.export.polygons import mask_polygon
from pipeline.flow import FlowConfig
from pipeline.flow import run as run_flow
from pipeline.formats.object_names import names_beside, parse_names, write_names
from pipeline.formats.rle import decode_mask, mask_counts
from pipeline.formats.run_folder import RunFolder
from tests.run_folders import COUNT, RATE, SIZE, confidence, index_mask, make_run, part_mask, picture
from tests.videos import write_video


def fill_polygon(polygon: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """The mask of a polygon whose corners are pixels of the outline, as the tools that read one fill it."""
    mask = np.zeros(image_hw, np.uint8)
    cv2.fillPoly(mask, [np.rint(polygon).astype(np.int32).reshape(-1, 1, 2)], 1)
    return mask.astype(bool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "square")
    write_video(tmp_path / "square.mp4", [picture(frame) for frame in range(COUNT)], options={"crf": "10"})
    return tmp_path / "square"


@pytest.fixture
def run(folder: Path) -> LabeledRun:
    return LabeledRun(RunFolder(folder), {1: "bear"})


def expected() -> dict[tuple[int, int], np.ndarray]:
    """Masks by frame and object."""
    found = {(frame, number): index_mask(frame) == number for frame in range(COUNT) for number in (1, 2)}
    return {key: mask for key, mask in found.items() if mask.any()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_is_read_by_pycocotools(run: LabeledRun) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools (extra test)")
    path = export_run(run, ExportRequest("coco"))
    assert path.name == "square_coco.json"
    dataset = coco.COCO(str(path))
    read = {}
    for annotation in dataset.loadAnns(dataset.getAnnIds()):
        key = (annotation["frame_index"], annotation["track_id"])
        read[key] = dataset.annToMask(annotation).astype(bool)
        assert annotation["area"] == read[key].sum()
        assert annotation["score"] == confidence(*key)
        assert annotation["video_id"] == 1
        left, top, width, height = annotation["bbox"]
        assert read[key][top : top + height, left : left + width].sum() == annotation["area"]
    assert read.keys() == expected().keys()
    for key, mask in expected().items():
        np.testing.assert_array_equal(read[key], mask)
    names = {entry["id"]: entry["name"] for entry in dataset.loadCats(dataset.getCatIds())}
    assert names == {1: "bear", 2: "object"}
    assert [image["frame_index"] for image in dataset.loadImgs(dataset.getImgIds())] == list(range(COUNT))


def test_coco_and_its_images_are_read_by_supervision(run: LabeledRun, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    path = export_run(run, ExportRequest("coco", tmp_path / "data" / "labels.json", images=True))
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(path.parent / "images"), annotations_path=str(path), force_masks=True
    )
    assert len(dataset) == COUNT
    read = 0
    for image_path, _, detections in dataset:
        frame = int(Path(image_path).stem)
        for mask in detections.mask if detections.mask is not None else ():
            assert any((mask == (index_mask(frame) == number)).all() for number in (1, 2))
            read += 1
    assert read == len(expected())


def test_yolo_labels_are_read_by_supervision(run: LabeledRun, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    path = export_run(run, ExportRequest("yolo-seg", tmp_path / "yolo", images=True))
    dataset = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(path / "images" / "train"),
        annotations_directory_path=str(path / "labels" / "train"),
        data_yaml_path=str(path / "data.yaml"),
        force_masks=True,
    )
    assert dataset.classes == ["bear", "object"]
    assert len(dataset) == COUNT
    count = 0
    for image_path, _, detections in dataset:
        frame = int(Path(image_path).stem)
        for class_id, mask in zip(detections.class_id, detections.mask, strict=True):
            true = index_mask(frame) == (1 if class_id == 0 else 2)
            # Object 1 is one piece: exact. Object 2 loses its hole, and its pieces are joined by a line.
            overlap = (mask & true).sum() / (mask | true).sum()
            assert overlap >= (0.99 if class_id == 0 else 0.8)
            count += 1
    assert count == len(expected())


def test_a_polygon_of_one_piece_gives_the_same_pixels_back() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 9, 25):
        mask = np.zeros((40, 50), bool)
        top, left = random.integers(0, 40 - size), random.integers(0, 50 - size)
        mask[top : top + size, left : left + size] = True
        mask[top : top + size // 2 + 1, left : left + 2 * size] = True
        np.testing.assert_array_equal(fill_polygon(mask_polygon(mask), (40, 50)), mask)


def test_the_pieces_of_an_object_are_joined_in_one_polygon() -> None:
    mask = np.zeros((30, 40), bool)
    mask[2:10, 3:12] = mask[20:28, 30:38] = mask[4:7, 30:33] = True
    filled = fill_polygon(mask_polygon(mask), (30, 40))
    assert filled[mask].all()
    assert (filled & ~mask).sum() <= 45


def test_mots_text_is_read_by_trackeval_and_the_pngs_agree(run: LabeledRun, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval", reason="needs trackeval (extra test)")
    path = export_run(run, ExportRequest("mots", tmp_path / "mots"))
    reader = trackeval.datasets.MOTSChallenge.__new__(trackeval.datasets.MOTSChallenge)
    read, _ = reader._load_simple_text_file(
        str(path / "instances_txt" / "square.txt"), force_delimiters=" ", convert_filter={}, crowd_ignore_filter={}
    )
    masks = {}
    for time, rows in read.items():
        for row in rows:
            size = (int(row[3]), int(row[4]))
            assert row[2] == "2"
            masks[int(time) - 1, int(row[1]) - 2000] = decode_mask(row[5], size)
    assert masks.keys() == expected().keys()
    for key, mask in expected().items():
        np.testing.assert_array_equal(masks[key], mask)
    for frame in range(COUNT):
        with Image.open(path / "instances" / "square" / f"{frame + 1:06d}.png") as image:
            values = np.asarray(image).astype(int)
        np.testing.assert_array_equal(np.where(values > 0, values - 2000, 0), index_mask(frame))


def test_mots_scores_itself_perfectly_in_trackeval(run: LabeledRun, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval", reason="needs trackeval (extra test)")
    path = export_run(run, ExportRequest("mots", tmp_path / "mots"))
    text = (path / "instances_txt" / "square.txt").read_text()
    truth = tmp_path / "gt" / "MOTS-train" / "square"
    results = tmp_path / "trackers" / "MOTS-train" / "ours" / "data"
    for parent in (truth / "gt", results, tmp_path / "gt" / "seqmaps"):
        parent.mkdir(parents=True)
    (truth / "gt" / "gt.txt").write_text(text)
    (results / "square.txt").write_text(text)
    (truth / "seqinfo.ini").write_text(f"[Sequence]\nname=square\nseqLength={COUNT}\n")
    (tmp_path / "gt" / "seqmaps" / "MOTS-train.txt").write_text("name\nsquare\n")
    data = trackeval.datasets.MOTSChallenge(
        {"GT_FOLDER": str(tmp_path / "gt"), "TRACKERS_FOLDER": str(tmp_path / "trackers"), "PRINT_CONFIG": False}
    )
    evaluator = trackeval.Evaluator({"PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False,
                                     "OUTPUT_SUMMARY": False, "OUTPUT_DETAILED": False, "PLOT_CURVES": False,
                                     "LOG_ON_ERROR": None, "BREAK_ON_ERROR": True})  # fmt: skip
    scores, _ = evaluator.evaluate([data], [trackeval.metrics.HOTA({"PRINT_CONFIG": False})])
    hota = scores["MOTSChallenge"]["ours"]["square"]["pedestrian"]["HOTA"]["HOTA"]
    np.testing.assert_allclose(hota, 1.0)


def test_youtube_vis_holds_a_mask_or_null_for_every_frame(run: LabeledRun) -> None:
    content = json.loads(export_run(run, ExportRequest("youtube-vis")).read_text())
    (video,) = content["videos"]
    assert video["length"] == COUNT == len(video["file_names"])
    assert [annotation["track_id"] for annotation in content["annotations"]] == [1, 2]
    for annotation in content["annotations"]:
        for frame in range(COUNT):
            mask, segmentation = index_mask(frame) == annotation["track_id"], annotation["segmentations"][frame]
            if segmentation is None:
                assert not mask.any()
                assert annotation["bboxes"][frame] is annotation["areas"][frame] is None
            else:
                np.testing.assert_array_equal(decode_mask(segmentation["counts"], SIZE), mask)
                assert annotation["areas"][frame] == mask.sum()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_youtube_vis_is_read_and_scored_by_trackeval(run: LabeledRun, tmp_path: Path) -> None:
    """As a tracker's results, against a truth in the uncompressed form that TrackEval expects of it."""
    trackeval = pytest.importorskip("trackeval", reason="needs trackeval (extra test)")
    truth, results = (
        tmp_path / "gt" / "youtube_vis_val",
        tmp_path / "results" / "youtube_vis_val" / "ours" / "data",
    )
    truth.mkdir(parents=True)
    results.mkdir(parents=True)
    content = json.loads(export_run(run, ExportRequest("youtube-vis", tmp_path / "export.json")).read_text())
    (results / "results.json").write_text(json.dumps(content["annotations"]))
    for annotation in content["annotations"]:
        masks = [expected().get((frame, annotation["track_id"])) for frame in range(COUNT)]
        annotation["segmentations"] = [
            None if mask is None else {"size": list(SIZE), "counts": mask_counts(mask).tolist()} for mask in masks
        ]
    (truth / "truth.json").write_text(json.dumps(content))
    folders = {"GT_FOLDER": f"{tmp_path / 'gt'}/", "TRACKERS_FOLDER": f"{tmp_path / 'results'}/"}
    data = trackeval.datasets.YouTubeVIS({**folders, "SPLIT_TO_EVAL": "val", "PRINT_CONFIG": False})
    (sequence,) = data.seq_list
    raw = data.get_raw_seq_data("ours", sequence)
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra test)")
    for frame in range(COUNT):
        found = zip(raw["tracker_classes"][frame], raw["tracker_dets"][frame], strict=True)
        read = {int(category): coco.decode(mask) for category, mask in found}
        assert read.keys() == {number for at, number in expected() if at == frame}
        for number, mask in read.items():
            np.testing.assert_array_equal(mask.astype(bool), expected()[frame, number])
    hota = trackeval.metrics.HOTA({"PRINT_CONFIG": False})
    for category in ("bear", "object"):
        scores = hota.eval_sequence(data.get_preprocessed_seq_data(raw, category))
        np.testing.assert_allclose(scores["HOTA"], 1.0)


def test_cvat_polygons_are_read_by_datumaro(run: LabeledRun, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="needs datumaro, which asks for older pandas and Pillow")
    export_run(run, ExportRequest("cvat-video", tmp_path / "annotations.xml"))
    read = {}
    for item in datumaro.Dataset.import_from(str(tmp_path), "cvat"):
        for found in item.annotations:
            if not found.attributes["outside"]:
                read[item.attributes["frame"], found.attributes["track_id"]] = found
    assert read.keys() == expected().keys()
    for (frame, number), found in read.items():
        assert found.label == number - 1
        if number == 1:
            polygon = np.reshape(found.points, (-1, 2))
            np.testing.assert_array_equal(fill_polygon(polygon, SIZE), expected()[frame, number])


@pytest.mark.parametrize("shape", ["polygon", "mask"])
def test_cvat_tracks_hold_every_frame_and_end_outside(shape: str, run: LabeledRun) -> None:
    path = export_run(run, ExportRequest("cvat-video", shape="mask" if shape == "mask" else "polygon"))
    root = ElementTree.parse(path).getroot()
    assert root.findtext("version") == "1.1"
    assert root.findtext("meta/task/original_size/width") == str(SIZE[1])
    assert [track.get("label") for track in root.iter("track")] == ["bear", "object"]
    for track in root.iter("track"):
        number = int(track.get("id", ""))
        visible = [element for element in track if element.get("outside") == "0"]
        assert [int(e.get("frame", "")) for e in visible] == [f for f, n in expected() if n == number]
        for element in visible:
            true = index_mask(int(element.get("frame", ""))) == number
            read = read_cvat(element)
            if shape == "mask" or number == 1:
                np.testing.assert_array_equal(read, true)
            else:
                assert read[true].all()
        gone = [int(e.get("frame", "")) for e in track if e.get("outside") == "1"]
        assert gone == ([] if number == 1 else [7])


def read_cvat(element: ElementTree.Element) -> np.ndarray:
    """The mask of an element, as CVAT's format page describes it."""
    if element.tag == "polygon":
        points = [[float(v) for v in pair.split(",")] for pair in element.get("points", "").split(";")]
        return fill_polygon(np.array(points), SIZE)
    counts = [int(text) for text in element.get("rle", "").split(",")]
    left, top, width, height = (int(element.get(name, "")) for name in ("left", "top", "width", "height"))
    mask = np.zeros(SIZE, bool)
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return mask


def frames_of(path: Path, pixel_format: str) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = stream.codec_context
        if stream.codec_context.name == "vp9":
            # FFmpeg's own decoder leaves the alpha channel out.
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            decoder.extradata = stream.codec_context.extradata
        frames = []
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                frames.append((float(frame.pts * stream.time_base), frame.to_ndarray(format=pixel_format)))
        return frames


def test_a_matte_is_white_where_an_object_is(run: LabeledRun, tmp_path: Path) -> None:
    path = export_run(run, ExportRequest("mask-video", tmp_path / "matte.mp4", object_ids=[1]))
    frames = frames_of(path, "gray")
    assert [time for time, _ in frames] == pytest.approx([n / RATE for n in range(COUNT)], abs=1e-3)
    for frame, (_, gray) in enumerate(frames):
        np.testing.assert_array_equal(gray > 127, index_mask(frame) == 1)


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_a_video_with_alpha_is_opaque_where_an_object_is(suffix: str, run: LabeledRun, tmp_path: Path) -> None:
    write_mask_video(run, tmp_path / f"cut{suffix}")
    frames = frames_of(tmp_path / f"cut{suffix}", "rgba")
    assert len(frames) == COUNT
    for frame, (_, rgba) in enumerate(frames):
        inside = index_mask(frame) > 0
        wrong = (rgba[..., 3] > 127) != inside
        assert wrong.sum() <= (0 if suffix == ".mov" else 12)
        assert np.abs(rgba[25:35, 8 + 2 * frame : 12 + 2 * frame, :3].astype(int) - (220, 60, 40)).mean() < 12


def test_parquet_holds_a_row_per_object_and_frame_with_its_parts(run: LabeledRun) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (extra test)")
    table = parquet.read_table(export_run(run, ExportRequest("parquet"))).to_pydict()
    assert len(table["frame"]) == COUNT + COUNT - 2
    for row, (frame, number) in enumerate(zip(table["frame"], table["object_id"], strict=True)):
        mask = index_mask(frame) == number
        assert table["area_px"][row] == mask.sum()
        assert (table["left"][row] is None) == (not mask.any())
        assert table["category"][row] == {1: "bear", 2: "object"}[number]
        for part in (1, 2):
            assert table[f"part_{part}_px"][row] == (mask & (part_mask(frame) == part)).sum()


def test_the_command_writes_every_format(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    for name in FORMATS:
        assert run_pipeline.main(["export", str(folder), "--format", name, "--name", "2=a <b> & c"]) == 0
        assert "wrote" in capsys.readouterr().out
    assert run_pipeline.main(["export", str(folder), "--format", "coco"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    labels = ElementTree.parse(tmp_path / "square_cvat.xml").getroot().iter("label")
    assert [label.findtext("name") for label in labels] == ["a <b> & c", "object"]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (ExportRequest("tiff"), ConfigError, "there is no format 'tiff'"),
        (ExportRequest("mots", images=True), ConfigError, "no place for the frames"),
        (ExportRequest("mask-video", Path("x.avi")), ConfigError, r"ends in \.mp4"),
        (ExportRequest("mask-video", object_ids=[9]), ConfigError, "no such object"),
        (ExportRequest("coco", images=True, source=Path("nowhere.mp4")), OutputError, "--source"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    request_: ExportRequest, error: type[LiftstreamError], message: str, run: LabeledRun
) -> None:
    with pytest.raises(error, match=message):
        export_run(run, request_)


def test_names_are_checked(folder: Path) -> None:
    assert parse_names(["1=bear cub"]) == {1: "bear cub"}
    with pytest.raises(ConfigError, match="ID=NAME"):
        parse_names(["bear"])
    with pytest.raises(ConfigError, match="object 7 does not exist"):
        LabeledRun(RunFolder(folder), {7: "bear"})
    with pytest.raises(ConfigError, match="not printable"):
        LabeledRun(RunFolder(folder), {1: "a\nb"})


def test_names_of_the_run_are_used_unless_others_are_given(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["object_names"] = {"1": "bear", "2": "cub", "9": "never seen"}
    (folder / "run.json").write_text(json.dumps(record))
    assert LabeledRun(RunFolder(folder)).categories == ["bear", "cub"]
    path = tmp_path / "named.json"
    arguments = ["export", str(folder), "--format", "coco", "--name", "2=fox", "-o", str(path)]
    assert run_pipeline.main(arguments) == 0
    assert [entry["name"] for entry in json.loads(path.read_text())["categories"]] == ["bear", "fox"]
    record["object_names"] = {"1": 5}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match=r"run\.json: names: object 1"):
        LabeledRun(RunFolder(folder))


def test_a_run_records_the_names_it_is_given(tmp_path: Path) -> None:
    video = write_video(tmp_path / "square.mp4", [picture(frame) for frame in range(2)])
    write_names(tmp_path, {1: "bear", 3: "cub"})
    assert names_beside(tmp_path) == {1: "bear", 3: "cub"}
    assert names_beside(tmp_path / "square.mp4") == {}
    run_flow(video, tmp_path / "out", FlowConfig().only("annotate", "write"), names={3: " fox ", 2: ""})
    assert json.loads((tmp_path / "out" / "run.json").read_text())["object_names"] == {"3": "fox"}
    assert RunFolder(tmp_path / "out").object_names == {3: "fox"}
