from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.core.records import Packet
from pipeline.formats.palette import davis_palette
from tests.conftest import REPOSITORY
from tests.videos import pattern, write_video

SMALL = ["--set", "extract.short_side=56", "--set", "cosegment.warmup_frames=4"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    return write_video(path, [pattern(i, height=62, width=96) for i in range(10)], options={"crf": "10"})


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_mask(tmp_path_factory.mktemp("mask") / "first.png", (62, 96))


def _save_mask(path: Path, size_hw: tuple[int, int], value: int = 1, mode: str = "P") -> Path:
    values = np.zeros(size_hw, np.uint8)
    values[size_hw[0] // 4 : size_hw[0] * 3 // 4, 4 : 4 + size_hw[1] // 4] = value
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(davis_palette().tobytes())
    image.convert(mode).save(path)
    return path


def run(*arguments: object) -> int:
    return run_pipeline.main(["run", *(str(argument) for argument in arguments)])


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_a_run_writes_what_other_tools_read(video: Path, mask: Path, tmp_path: Path) -> None:
    assert run(video, "--output", tmp_path, "--masks", mask, *SMALL) == 0
    folder = tmp_path / "square"
    with av.open(str(folder / "annotated.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (62, 96)
        times = [frame.time for frame in container.decode(stream)]
    np.testing.assert_allclose(times, np.arange(10) / 25, atol=1e-4)
    content = (folder / "annotated.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "faststart puts the index in front"
    for index in range(10):
        with Image.open(folder / "masks" / f"{index:05d}.png") as image:
            assert image.mode == "P"
            assert image.size == (96, 62)
            assert image.getpalette() == davis_palette().flatten().tolist()
        assert (folder / "parts" / f"{index:05d}.png").exists()
    rows = [line.split(",") for line in (folder / "tracks.txt").read_text().splitlines()]
    assert [int(row[0]) for row in rows] == list(range(1, 11))
    assert {row[1] for row in rows} == {"1"}
    assert all(len(row) == 10 for row in rows)
    report = json.loads((folder / "run.json").read_text())
    assert report["status"] == "done"
    assert report["frames"] == 10
    assert [stage["name"] for stage in report["stages"]] == [
        "decode", "extract", "cosegment", "propagate", "track", "annotate", "write",
    ]  # fmt: skip
    assert all(stage["items"] == 10 for stage in report["stages"])
    assert len(report["reports"]["extract"]["weights_sha256"]) == 64
    assert not list(folder.rglob(".*")), "no partial file is left"


def test_the_mask_follows_the_square(video: Path, mask: Path, tmp_path: Path) -> None:
    only_masks = [
        item for name in ("cosegment", "track", "annotate") for item in ("--set", f"{name}.enabled=false")
    ]
    assert run(video, "--output", tmp_path, "--masks", mask, *only_masks, "--set", "extract.short_side=112") == 0
    assert sorted(p.name for p in (tmp_path / "square").iterdir()) == [
        "files.sha256",
        "masks",
        "objects.csv",
        "report.html",
        "run.json",
    ]
    with Image.open(tmp_path / "square" / "masks" / "00009.png") as image:
        found = np.asarray(image) == 1
    truth = np.zeros_like(found)
    truth[15:46, 22:46] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.6


def test_odd_sizes_are_padded_to_even_and_frames_are_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(pattern(index, height=47, width=63)).save(folder / f"{index:05d}.png")
    assert run(folder, "--output", tmp_path / "out", *SMALL) == 0
    frames = frames_of(tmp_path / "out" / "images" / "annotated.mp4")
    assert [(frame.height, frame.width) for frame in frames] == [(48, 64)] * 3
    with Image.open(tmp_path / "out" / "images" / "masks" / "00000.png") as image:
        assert image.size == (63, 47)


def test_every_and_start_name_files_by_the_frame_in_the_input(video: Path, tmp_path: Path) -> None:
    assert run(video, "--output", tmp_path, "--start", 0.08, "--every", 3, *SMALL) == 0
    assert sorted(p.stem for p in (tmp_path / "square" / "masks").iterdir()) == ["00002", "00005", "00008"]


def test_detections_become_tracks(video: Path, tmp_path: Path) -> None:
    lines = [f"{i + 1},-1,{5 + 2 * i},16,24,31,0.9,-1,-1,-1" for i in range(10)]
    (tmp_path / "det.txt").write_text("\n".join(lines) + "\n")
    assert run(video, "--output", tmp_path, "--detections", tmp_path / "det.txt", *SMALL) == 0
    rows = [line.split(",") for line in (tmp_path / "square" / "tracks.txt").read_text().splitlines()]
    assert len({row[1] for row in rows}) == 1
    assert len(rows) >= 8


def test_a_davis_2016_mask_is_one_object(video: Path, tmp_path: Path) -> None:
    mask = _save_mask(tmp_path / "first.png", (62, 96), value=255, mode="L")
    assert run(video, "--output", tmp_path, "--masks", mask, *SMALL) == 0
    with Image.open(tmp_path / "square" / "masks" / "00001.png") as image:
        assert set(np.unique(np.asarray(image))) == {0, 1}


def _bad(kind: str, tmp_path: Path, video: Path) -> list[object]:
    if kind == "mask size":
        return [video, "--masks", _save_mask(tmp_path / "m.png", (20, 30))]
    if kind == "rgb mask":
        return [video, "--masks", _save_mask(tmp_path / "m.png", (62, 96), mode="RGB")]
    if kind in ("bad line", "beyond"):
        line = "1,-1,a,2,3,4,0.5" if kind == "bad line" else "99,-1,1,2,3,4,0.5"
        (tmp_path / "det.txt").write_text(f"1,-1,1,2,3,4,0.5\n{line}\n")
        return [video, "--detections", tmp_path / "det.txt"]
    if kind == "weights":
        (tmp_path / "w.safetensors").write_bytes(b"nothing")
        return [video, "--set", f"extract.weights={tmp_path / 'w.safetensors'}"]
    (tmp_path / "config.yaml").write_text("extract:\n  short_sid: 56\n")
    simple: dict[str, list[object]] = {
        "missing": [tmp_path / "absent.mp4"],
        "config file": [video, "--config", tmp_path / "config.yaml"],
        "wrong type": [video, "--set", "extract.short_side=wide"],
        "every 0": [video, "--every", 0],
        "start after end": [video, "--start", 2, "--end", 1],
        "features off": [video, "--set", "extract.enabled=false"],
    }
    return simple[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "absent.mp4: no such file"),
        ("mask size", "30 x 20 pixels, the frames are 96 x 62"),
        ("rgb mask", "index"),
        ("bad line", "det.txt:2"),
        ("beyond", "99"),
        ("config file", "did you mean 'extract.short_side'"),
        ("wrong type", "extract.short_side"),
        ("every 0", "decode.every"),
        ("start after end", "end_seconds"),
        ("features off", "needs features"),
        ("weights", "w.safetensors"),
    ],
)
def test_bad_input_ends_with_2_one_line_and_nothing_written(
    kind: str, message: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _bad(kind, tmp_path, video)
    before = sorted(tmp_path.iterdir())
    assert run(*arguments, "--output", tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_no_run_wrote_is_never_replaced(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "square"
    (folder / "masks").mkdir(parents=True)
    (folder / "masks" / "old.png").write_bytes(b"old")
    assert run(video, "--output", tmp_path, *SMALL) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(video, "--output", tmp_path, *SMALL, "--overwrite") == 2
    assert "not written by liftstream" in capsys.readouterr().err
    assert [path.name for path in folder.rglob("*")] == ["masks", "old.png"]


def test_an_existing_output_folder_is_kept_unless_overwrite(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "square"
    assert run(video, "--output", tmp_path, *SMALL) == 0
    (folder / "masks" / "mine.png").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    assert run(video, "--output", tmp_path, *SMALL) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(video, "--output", tmp_path, *SMALL, "--overwrite", "--start", "99") == 2
    assert (folder / "masks" / "00009.png").exists(), "nothing is replaced before the first frame is there"
    assert run(video, "--output", tmp_path, *SMALL, "--overwrite", "--end", "0.2") == 0
    assert not (folder / "masks" / "00009.png").exists()
    assert (folder / "masks" / "mine.png").read_bytes() == b"mine"
    assert (folder / "notes.txt").read_text() == "mine"


def test_one_bad_input_of_several_does_not_stop_the_others(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "absent.mp4", video, "--output", tmp_path, *SMALL) == 2
    assert (tmp_path / "square" / "annotated.mp4").exists()
    assert "1 of 2 inputs done" in capsys.readouterr().out


def test_a_cut_video_is_written_as_far_as_it_goes_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(40)]
    whole = write_video(tmp_path / "whole.mp4", images, container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert run(cut, "--output", tmp_path / "out", *SMALL) == 1
    report = json.loads((tmp_path / "out" / "cut" / "run.json").read_text())
    assert report["status"] == "damaged"
    assert "breaks off after frame" in report["problem"]
    assert "breaks off after frame" in capsys.readouterr().err
    assert len(frames_of(tmp_path / "out" / "cut" / "annotated.mp4")) == report["frames"] > 5


def test_a_stage_that_fails_leaves_a_playable_video_and_ends_with_1(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages.annotate import Annotator

    step: Callable[..., Packet] = Annotator.step

    def fail(self: Annotator, packet: Packet) -> Packet:
        if packet.index == 6:
            raise RuntimeError("out of paint")
        return step(self, packet)

    monkeypatch.setattr(Annotator, "step", fail)
    assert run(video, "--output", tmp_path, *SMALL) == 1
    assert "stage 'annotate' failed at frame 6: RuntimeError: out of paint" in capsys.readouterr().err
    report = json.loads((tmp_path / "square" / "run.json").read_text())
    assert report["status"] == "failed"
    written = report["frames"]
    assert written <= 6
    if written:
        assert len(frames_of(tmp_path / "square" / "annotated.mp4")) == written


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_end_with_130_and_say_how_many_frames_are_written(sent: signal.Signals, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "long.mp4", [pattern(i % 20) for i in range(600)], options={"preset": "ultrafast"}
    )
    command = [sys.executable, "run_pipeline.py", "run", str(path), "--output", str(tmp_path / "out"), *SMALL]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    masks = tmp_path / "out" / "long" / "masks"
    deadline = time.monotonic() + 90
    while not (masks.exists() and len(list(masks.glob("*.png"))) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads((tmp_path / "out" / "long" / "run.json").read_text())
    assert report["status"] == "interrupted"
    assert f"interrupted; {report['frames']} frames are written" in errors.decode()
    assert len(frames_of(tmp_path / "out" / "long" / "annotated.mp4")) == report["frames"]


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run"], ["run", "x", "--outptu", "y"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert run_pipeline.main(arguments) == 2


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pipeline.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in run_pipeline.COMMANDS:
        assert name.split()[0] in shown


SLOW_ANNOTATOR = """
import time
from stages.annotate import Annotator
step = Annotator.step
def slow(self, packet):
    if packet.index == 4:
        time.sleep(100)
    return step(self, packet)
Annotator.step = slow
from pipeline.commands.cli import main_and_exit
main_and_exit()
"""


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_an_interrupt_ends_a_run_that_is_inside_one_long_computation(signals: int, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "long.mp4", [pattern(i % 20) for i in range(40)], options={"preset": "ultrafast"}
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_ANNOTATOR, "run", str(path), "--output", str(tmp_path / "out"), *SMALL],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    masks = tmp_path / "out" / "long" / "masks"
    deadline = time.monotonic() + 90
    while not (masks.exists() and len(list(masks.glob("*.png"))) >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    record = json.loads((tmp_path / "out" / "long" / "run.json").read_text())
    assert record["status"] in ("interrupted", "running")
