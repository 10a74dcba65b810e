"""Detectors of other packages: how they are named, what they may return, and what errors say."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv

import run_pipeline
from pipeline.core.errors import CheckpointError, ConfigError, DetectorError
from pipeline.core.records import Frame
from pipeline.flow import FlowConfig, run, stream
from pipeline.image_detector import ImageDetector, load_image_detector
from pipeline.run_record import label_identity
from stages.annotate import AnnotateConfig
from stages.extract import ExtractConfig
from stages.write.folder import RECORD
from tests.conftest import REPOSITORY
from tests.videos import pattern, write_video

CONFIG = FlowConfig(
    extract=ExtractConfig(backbone="vit_tiny_patch16_224", weights="random", short_side=48, device="cpu"),
    annotate=AnnotateConfig(enabled=False),
).only("track", "write")

MODULE = '''
import numpy as np
import supervision as sv

SECRET = 3
loaded = []

def find(image):
    """The bright square of tests.videos.pattern."""
    assert image.dtype == np.uint8 and image.shape[2] == 3
    rows, columns = np.nonzero(image[..., 0] > 160)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    image[:] = 0  # what a detector does to its image must not reach the others
    return sv.Detections(np.array([box], np.float32), confidence=np.array([0.9]), class_id=np.array([7]))

def load(argument="none"):
    loaded.append(argument)
    return find

def load_nothing():
    return 5

class Many:
    batched = True

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return [find(image) for image in images]

def broken(image):
    raise ValueError("no such layer")

def fails_to_load(argument):
    raise OSError(f"{argument} is not a model")
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``my_boxes.py`` in the current folder."""
    path = tmp_path / "code" / "my_boxes.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    sys.modules.pop("my_boxes", None)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    return write_video(path, [pattern(i) for i in range(10)], options={"crf": "10", "g": "2"})


def frame(index: int = 0) -> Frame:
    return Frame(pattern(index), index, index / 25)


def loaded() -> list[str]:
    return list(sys.modules["my_boxes"].loaded)


def test_the_function_is_the_detector_unless_it_needs_no_argument() -> None:
    found = load_image_detector("my_boxes:find")(frame(2))
    np.testing.assert_allclose(found.xyxy, [[8, 12, 24, 36]], atol=1)
    assert (found.categories, found.scores.tolist()) == (("7",), [pytest.approx(0.9)])
    assert loaded() == []
    assert len(load_image_detector("my_boxes:load")(frame())) == 1
    assert len(load_image_detector("my_boxes:load:weights.pt:2")(frame())) == 1
    assert loaded() == ["none", "weights.pt:2"]


def test_the_image_of_the_flow_is_not_changed_by_the_detector() -> None:
    mine = frame()
    load_image_detector("my_boxes:find")(mine)
    assert np.array_equal(mine.image, pattern(0))


def test_an_installed_package_gives_its_detector_a_name(tmp_path: Path) -> None:
    info = tmp_path / "site" / "boxes-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boxes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[liftstream.detectors]\nsquares = my_boxes:load\n")
    sys.path.append(str(info.parent))
    assert len(load_image_detector("squares")(frame())) == 1
    load_image_detector("squares:large")
    assert loaded() == ["none", "large"]
    with pytest.raises(ConfigError, match="--detector circles: write .*; installed: .*squares"):
        load_image_detector("circles")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_boxes", "write MODULE:FUNCTION"),
        (":find", "write MODULE:FUNCTION"),
        ("no_such_module:find", "there is no module 'no_such_module', neither installed nor in .*code"),
        ("my_boxes:fnd", "module my_boxes has no 'fnd'"),
        ("my_boxes:SECRET", "a value of type int, which cannot be called"),
        ("my_boxes:load_nothing", "it returned a value of type int"),
        ("my_boxes:fails_to_load:a.pt", "failed with OSError: a.pt is not a model"),
        ("bad_code:find", "importing bad_code failed with NameError"),
        ("pipeline.detect:load_detector", "name the detector's weights"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(text: str, message: str) -> None:
    Path("bad_code.py").write_text("undefined_name")
    with pytest.raises(ConfigError, match=message) as caught:
        load_image_detector(text)
    assert "\n" not in str(caught.value)


BOX = np.array([[1.0, 2.0, 3.0, 4.0]])


def changed(**values: Any) -> sv.Detections:
    """Detections whose arrays were replaced after supervision had checked them."""
    found = sv.Detections(BOX, confidence=np.ones(1))
    for name, value in values.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned nothing; it must return supervision.Detections"),
        ([BOX], "returned a value of type list"),
        (changed(xyxy=BOX[0]), r"boxes \(4,\)"),
        (changed(xyxy=BOX[:, :3]), r"boxes \(1, 3\)"),
        (changed(xyxy="all"), "not numbers"),
        (changed(confidence=np.ones(2)), r"scores \(2,\)"),
        (changed(confidence=np.array([np.nan])), "not finite"),
        (changed(xyxy=BOX * np.inf), "not finite"),
        (changed(xyxy=BOX[:, ::-1]), "left, top, right, bottom"),
        (changed(class_id=np.array([1, 2])), "2 classes for 1 boxes"),
    ],
)
def test_other_results_are_one_line_that_names_detector_and_frame(result: object, message: str) -> None:
    detector = ImageDetector(lambda image: result, "mine:find")
    with pytest.raises(DetectorError, match=f"detector mine:find: frame 4: .*{message}"):
        detector(frame(4))


def test_names_go_before_numbers_and_scores_may_be_missing() -> None:
    named = sv.Detections(BOX, class_id=np.array([2]), data={"class_name": np.array(["dog"])})
    found = ImageDetector(lambda image: named, "")(frame())
    assert (found.categories, found.scores.tolist()) == (("dog",), [1.0])
    assert ImageDetector(lambda image: sv.Detections(BOX), "")(frame()).categories == ("",)
    assert len(ImageDetector(lambda image: sv.Detections.empty(), "")(frame())) == 0


def test_a_batched_detector_gets_as_many_frames_as_the_backbone(video: Path) -> None:
    single = list(stream(video, CONFIG, detections=load_image_detector("my_boxes:find")))
    detector = load_image_detector("my_boxes:Many")
    batched = list(stream(video, CONFIG, detections=detector))
    assert detector._function.sizes == [4, 4, 2]  # type: ignore[attr-defined]
    assert [p.index for p in batched] == list(range(10))
    assert [p.tracks for p in batched] == [p.tracks for p in single]
    assert {t.track_id for p in batched for t in p.tracks or ()} == {1}


@pytest.mark.parametrize("result", [None, [], [sv.Detections.empty()]])
def test_a_batched_detector_returns_as_many_results_as_images(result: object) -> None:
    def detect(images: list[Any]) -> object:
        return result

    detect.batched = True  # type: ignore[attr-defined]
    with pytest.raises(DetectorError, match="detector mine: returned .* for a list of 2 images"):
        ImageDetector(detect, "mine").detect_frames([frame(0), frame(1)])


def test_a_detector_that_fails_ends_the_run_with_its_name(video: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DetectorError, match="detector my_boxes:broken: failed at frame 0 with ValueError: no such"
    ):
        run(video, tmp_path / "out", CONFIG, detections=load_image_detector("my_boxes:broken"))
    with pytest.raises(DetectorError, match="my_boxes:broken"):
        list(stream(video, CONFIG, detections=load_image_detector("my_boxes:broken")))


def test_another_detector_is_another_run(video: Path, module: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(video, output, CONFIG, detections=load_image_detector("my_boxes:find"))
    assert (output / RECORD).is_file()
    again = run(video, output, CONFIG, detections=load_image_detector("my_boxes:find"), resume=True)
    assert again.was_done
    with pytest.raises(CheckpointError, match="labels.detections"):
        run(video, output, CONFIG, detections=load_image_detector("my_boxes:load:x"), resume=True)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    first = label_identity(load_image_detector(f"my_boxes:load:{weights}"))
    weights.write_bytes(b"two")
    second = label_identity(load_image_detector(f"my_boxes:load:{weights}"))
    module.write_text(MODULE + "# changed\n")
    assert (
        len({str(found) for found in (first, second, label_identity(load_image_detector("my_boxes:find")))}) == 3
    )


def options(video: Path, output: Path, *more: str) -> list[str]:
    sets = ("extract.backbone=vit_tiny_patch16_224", "extract.weights=random", "extract.short_side=48")
    return ["run", str(video), "-o", str(output), *more, *(part for text in sets for part in ("--set", text))]


def test_the_command_tracks_what_the_detector_finds(video: Path, tmp_path: Path) -> None:
    assert run_pipeline.main(options(video, tmp_path, "--detector", "my_boxes:find", "--end", "0.2")) == 0
    (tracks,) = (tmp_path / "square").glob("tracks*.txt")
    rows = [line.split(",")[:2] for line in tracks.read_text().splitlines()]
    assert rows == [[f"{number}", "256"] for number in range(1, 6)]  # below are the ids of propagated objects


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--detector", "my_boxes:broken"], 1, "detector my_boxes:broken: failed at frame 0 with ValueError"),
        (["--detector", "my_boxes:fnd"], 2, "has no 'fnd'"),
        (["--detector", "my_boxes:find", "--detections", "det.txt"], 2, "give one of them"),
        (["--detector", "my_boxes:find", "--set", "track.enabled=false"], 2, "track.enabled is false"),
    ],
)
def test_the_commands_errors_are_one_line(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    assert run_pipeline.main(options(video, tmp_path, *more)) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]


def test_this_projects_detector_has_an_entry_point() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for target in project["entry-points"]["liftstream.detectors"].values():
        entry = importlib.metadata.EntryPoint("x", target, "liftstream.detectors")
        assert callable(entry.load())
