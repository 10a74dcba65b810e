from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.core.errors import OutputError
from pipeline.flow import FlowConfig, run
from pipeline.formats.palette import write_indexed_png
from pipeline.formats.run_folder import RunFolder
from pipeline.report import write_index, write_report
from pipeline.report.pictures import MAX_MASKS, packed_masks, thumbnails, unpacked_masks
from pipeline.report.strips import Clock
from stages.extract import ExtractConfig
from tests.run_folders import COUNT, SIZE, index_mask, make_run, picture
from tests.videos import pattern, write_video

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.found if name in (attributes.get("class") or "").split()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "square")


def test_names_of_objects_are_shown_and_escaped(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "square", object_names={"2": "cub " + EVIL[:90]})).read_text()
    assert "#2 cub &lt;/script&gt;" in page
    assert EVIL[:90] not in page


def test_the_page_shows_what_the_run_found(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    elements = Elements(page)
    assert [float(card["data-t"] or "") for card in elements.of_class("card")][:2] == pytest.approx([0.16, 0.28])
    assert len(elements.of_class("card")) == 8
    assert [toggle["value"] for toggle in elements.of_class("toggle")] == ["1", "2"]
    assert len(elements.of_class("track")) == 2
    assert ("video", "annotated.mp4") in [(tag, attributes.get("src")) for tag, attributes in elements.found]
    for expected in ("extract", "bottleneck", "All settings are the defaults", "torch 2.13.0", "#f2a45c"):
        assert expected in page


def test_problems_come_first_and_changed_settings_are_listed(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    gap = {"from": 3, "to": 9, "frames": 7, "start_seconds": 0.12, "end_seconds": None}
    record |= {"status": "damaged", "problem": "7 frames could not be decoded", "warnings": ["low scores"]}
    record["reports"]["decode"] = {"num_gaps": 1, "gaps": [gap]}
    record["identity"]["config"]["extract"]["short_side"] = 476
    (folder / "run.json").write_text(json.dumps(record))
    page = write_report(folder).read_text()
    assert page.index("7 frames could not be decoded") < page.index("<video")
    assert "gap: 7 frames missing, from 3 to 9 (0.12 s to the end)" in page
    assert "warning: low scores" in page
    assert re.search(r"extract\.short_side</code></td><td>476</td><td>280", page)


def test_texts_from_files_are_escaped(tmp_path: Path) -> None:
    """Names, warnings and colors are data: the page has no element and no script that they bring."""
    folder = make_run(tmp_path / "x", name=EVIL, problem=EVIL, warnings=[EVIL], status=EVIL, bottleneck=EVIL)
    record = json.loads((folder / "run.json").read_text())
    record["reports"]["cosegment"]["parts"][0] |= {"color": f"red;{EVIL}", "frames": EVIL}
    record["identity"]["versions"]["torch"] = EVIL
    record["identity"]["config"][EVIL] = {EVIL: EVIL}
    (folder / "run.json").write_text(json.dumps(record))
    page = write_report(folder).read_text()
    plain = Elements(write_report(make_run(tmp_path / "plain")).read_text())
    elements = Elements(page)
    assert [tag for tag, _ in elements.found if tag == "script"] == ["script", "script"]
    assert "alert(1)<" not in page
    assert len([tag for tag, _ in elements.found if tag == "img"]) == len(plain.of_class("card"))
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "red;" not in page.replace("&lt;", "<").split("</style>")[1].split("<script")[0]


def test_the_page_needs_no_other_file_and_no_network(folder: Path) -> None:
    page = write_report(folder).read_text()
    for tag, attributes in Elements(page).found:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address == "annotated.mp4" or address.startswith("data:"), (tag, address)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_thumbnails_show_the_frames_asked_for(folder: Path) -> None:
    run = RunFolder(folder)
    pictures = thumbnails(run, [7, 1, 4], Clock(run, run.frames()))
    assert sorted(pictures) == [1, 4, 7]
    for frame, address in pictures.items():
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
        assert image.shape == (240, 320, 3)
        expected = cv2.resize(picture(frame), (320, 240))
        assert np.abs(image.astype(int) - expected).mean() < 6


def test_masks_for_the_overlay_come_back_as_they_were(folder: Path) -> None:
    run = RunFolder(folder)
    packed = packed_masks(run, Clock(run, run.frames()))
    assert packed is not None
    assert (packed["height"], packed["width"], packed["step"]) == (*SIZE, 1)
    for frame, mask in enumerate(unpacked_masks(packed)):
        np.testing.assert_array_equal(mask, index_mask(frame))


def test_the_overlay_is_bounded_for_long_videos(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "long", count=1, frames=2 * MAX_MASKS)
    noise = np.random.default_rng(0)
    for index in range(2 * MAX_MASKS):
        write_indexed_png(folder / "masks" / f"{index:05d}.png", noise.integers(0, 9, (108, 192), np.uint8))
    run = RunFolder(folder)
    packed = packed_masks(run, Clock(run, run.frames()))
    assert packed is not None
    assert packed["step"] == 2
    assert len(packed["seconds"]) == MAX_MASKS
    assert sum(map(len, packed["chunks"])) <= 2_000_000


def test_a_run_of_boxes_alone_has_strips_of_scores(folder: Path) -> None:
    (folder / "objects.csv").unlink()
    for path in (folder / "masks").iterdir():
        path.unlink()
    page = write_report(folder).read_text()
    assert "Score of each tracked box" in page
    assert not Elements(page).of_class("toggle")
    assert len(Elements(page).of_class("card")) == 8


def test_a_run_that_wrote_little_still_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "square", reports={}, stages=[], identity={}, frames=0)
    for name in ("annotated.mp4", "objects.csv", "tracks.txt"):
        (folder / name).unlink()
    page = write_report(folder).read_text()
    assert "wrote no annotated video" in page


def test_the_index_lists_the_most_doubtful_run_first(tmp_path: Path) -> None:
    make_run(tmp_path / "b <i>", status="failed", problem="broken")
    make_run(tmp_path / "a")
    good = make_run(tmp_path / "c")
    lines = (good / "objects.csv").read_text().splitlines()
    (good / "objects.csv").write_text("\n".join([lines[0], *(f"{x.rsplit(',', 1)[0]},0.95" for x in lines[1:])]))
    (tmp_path / "d").mkdir()
    page = write_index(tmp_path).read_text()
    order = [page.index(name) for name in ("b &lt;i&gt;</a>", ">a</a>", ">c</a>")]
    assert order == sorted(order)
    assert "b%20%3Ci%3E/#t=0.1600" in page
    write_report(tmp_path / "a")
    assert 'href="a/report.html#t=0.1600"' in write_index(tmp_path).read_text()


def test_the_index_lists_what_a_batch_has_put_aside(tmp_path: Path) -> None:
    videos = [
        {"name": "a", "status": "put_aside", "error": "<b> is not a video"},
        {"name": "b", "status": "put_aside", "error": "done again since then"},
        {"name": "c", "status": "done", "error": None},
        "nonsense",
    ]
    (tmp_path / "batch-1-of-2.json").write_text(json.dumps({"videos": videos}))
    (tmp_path / "batch-2-of-2.json").write_text('{"videos": 5}')
    assert "put aside</span> &lt;b&gt; is not a video" in write_index(tmp_path).read_text()
    make_run(tmp_path / "b")
    page = write_index(tmp_path).read_text()
    assert page.index("is not a video") < page.index(">b</a>")
    assert "done again" not in page


def test_the_index_lists_scored_sequences_the_worst_first(tmp_path: Path) -> None:
    scores = {"good": 0.9, "bad": 0.4, "../evil": 0.5}
    (tmp_path / "bad").mkdir()
    sequences = {
        name: {"J&F": value, "J": {"mean": value}, "F": {"mean": value}, "frames": 5, "objects": 1}
        for name, value in scores.items()
    }
    (tmp_path / "davis.json").write_text(json.dumps({"sequences": sequences}))
    page = write_index(tmp_path).read_text()
    assert page.index("bad</a>") < page.index("../evil") < page.index(">good")
    assert 'href="bad"' in page
    assert 'href=".' not in page
    tracking = tmp_path / "tracking"
    tracking.mkdir()
    rows = {"one": {"HOTA": 80.5, "IDF1": 90.0, "IDSW": 3}, "two": {"HOTA": 60.0, "IDF1": 70.0, "IDSW": 9}}
    (tracking / "scores.json").write_text(json.dumps({"sequences": rows}))
    (tracking / "timeline_two.png").write_bytes(b"")
    page = write_index(tracking).read_text()
    assert page.index("timeline_two.png") < page.index("80.500")


def test_the_command_writes_the_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs" / "a")
    assert run_pipeline.main(["review", str(tmp_path / "runs"), "--no-open"]) == 0
    assert (tmp_path / "runs" / "a" / "report.html").is_file()
    assert (tmp_path / "runs" / "index.html").is_file()
    assert run_pipeline.main(["review", str(tmp_path / "runs" / "a"), "--no-open"]) == 0
    assert re.search(r"report\.html in \d\.\d\d s of processor time, [\d.]+ % of", capsys.readouterr().out)
    assert run_pipeline.main(["review", str(tmp_path / "nowhere"), "--no-open"]) == 2


def test_the_page_of_another_folder_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rerun_recording_holds_every_frame(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk (extra test)")
    assert run_pipeline.main(["review", str(folder), "--rrd", str(tmp_path / "out.rrd")]) == 0
    rerun = [sys.executable, "-m", "rerun", "rrd"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
    environment = {**os.environ, "HOME": str(tmp_path)}  # where its first start leaves a note
    verified = subprocess.run([*rerun, "verify", str(tmp_path / "out.rrd")], env=environment, **options)
    assert "1 file verified without error" in verified.stdout + verified.stderr
    shown = subprocess.run([*rerun, "print", str(tmp_path / "out.rrd")], env=environment, **options).stdout
    kinds = "SegmentationImage|Boxes2D|Scalars|VideoFrameReference"
    chunks = re.findall(rf"with (\d+) rows .* - /(\S+) - data columns: \[({kinds}):", shown)
    rows: Counter[tuple[str, str]] = Counter()
    for count, path, kind in chunks:  # one or several of the same path, by when they were sent
        rows[path, kind] += int(count)
    assert rows == {
        ("video", "VideoFrameReference"): COUNT,
        ("video/masks", "SegmentationImage"): COUNT,
        ("video/parts", "SegmentationImage"): COUNT,
        ("video/tracks", "Boxes2D"): COUNT,
        ("confidence/1", "Scalars"): COUNT,
        ("confidence/2", "Scalars"): 5,
    }


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return write_video(path, [pattern(index) for index in range(6)])


TINY = FlowConfig(
    extract=ExtractConfig(backbone="vit_tiny_patch16_224", weights="random", short_side=48, facets=("key@3",))
)


def test_every_run_ends_with_its_report_unless_it_is_switched_off(video: Path, tmp_path: Path) -> None:
    result = run(video, tmp_path / "with", TINY)
    assert result.paths[-1] == tmp_path / "with" / "report.html"
    page = result.paths[-1].read_text()
    assert page.count("bottleneck") == 1
    assert "extract.short_side" in page
    silent = TINY.model_copy(update={"write": TINY.write.model_copy(update={"report": False})})
    run(video, tmp_path / "with", silent, overwrite=True)
    assert not (tmp_path / "with" / "report.html").exists()


def test_a_page_that_cannot_be_made_does_not_fail_the_run(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> Path:
        raise ValueError("no ink")

    monkeypatch.setattr("pipeline.session.write_report", fail)
    result = run(video, tmp_path / "out", TINY)
    assert result.status == "done"
    assert "no report: no ink" in result.warnings
