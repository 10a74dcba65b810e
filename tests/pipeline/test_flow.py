from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline import FlowConfig, stream
from pipeline.assembly import STAGES, make_stages
from pipeline.core.errors import CheckpointError, ConfigError, TruncatedError
from pipeline.flow import run
from stages.extract import ExtractConfig
from tests.conftest import REPOSITORY
from tests.videos import pattern, write_video

SMALL = FlowConfig(
    extract=ExtractConfig(backbone="vit_tiny_patch16_224", weights="random", short_side=48, facets=("key@11",))
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    return write_video(path, [pattern(i, height=48, width=64) for i in range(12)], options={"crf": "10", "g": "4"})


def test_what_users_import_is_there_and_listed_once() -> None:
    assert len(set(pipeline.__all__)) == len(pipeline.__all__)
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'streem'"):
        _ = pipeline.streem


def test_the_table_of_stages_and_the_config_agree() -> None:
    sections = {name: field.annotation for name, field in FlowConfig.model_fields.items() if name != "queue_depth"}
    assert sections == {entry.name: entry.config for entry in STAGES}


def test_only_switches_the_rest_off() -> None:
    config = FlowConfig().only("propagate", "write", decode={"every": 3}, write={"parts": False})
    on = {entry.name for entry in STAGES[1:] if getattr(config, entry.name).enabled}
    assert on == {"extract", "propagate", "write"}
    assert (config.decode.every, config.write.parts, config.write.masks) == (3, False, True)
    assert not FlowConfig().only("annotate").extract.enabled
    with pytest.raises(ConfigError, match="no stage 'propagation'"):
        FlowConfig().only("propagation")


def test_stages_that_are_off_are_left_out(video: Path) -> None:
    stages = make_stages(video, SMALL.only("propagate"), masks={0: np.ones((48, 64), np.uint8)})
    assert list(stages.present()) == ["decode", "extract", "propagate"]
    assert list(make_stages(video, SMALL.only("annotate")).present()) == ["decode", "annotate"]


def test_features_leave_the_packets_unless_they_are_kept(video: Path) -> None:
    assert all(packet.features is None for packet in stream(video, SMALL.only("cosegment")))
    kept = list(stream(video, SMALL.only("extract"), keep_features=True))
    assert len(kept) == 12
    assert all(packet.features is not None for packet in kept)


def test_a_stream_that_breaks_off_says_so_after_its_last_good_packet(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    # The index is in front, so all frames are promised; the last part of the media data is cut off.
    whole = write_video(
        tmp_path / "front.mp4",
        np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8),
        container_options={"movflags": "faststart"},
    )
    content = whole.read_bytes()
    broken.write_bytes(content[: int(len(content) * 0.6)])
    packets: list[int] = []
    with pytest.raises(TruncatedError):
        packets.extend(packet.index for packet in stream(broken, SMALL.only("annotate")))
    assert packets == list(range(len(packets)))
    assert 5 < len(packets) < 40


def test_two_passes_give_every_frame_with_parts(video: Path) -> None:
    config = SMALL.model_copy(update={"cosegment": SMALL.cosegment.model_copy(update={"mode": "two_pass"})})
    packets = list(stream(video, config.only("cosegment")))
    assert [packet.index for packet in packets] == list(range(12))
    assert all(packet.parts is not None for packet in packets)


def test_run_gives_a_result_that_says_what_was_done(video: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    result = run(video, tmp_path / "out", SMALL, on_packet=lambda packet: seen.append(packet.index))
    assert (result.status, result.problem, result.frames) == ("done", None, 12)
    assert seen == list(range(12))
    assert list(result.reports) == [entry.name for entry in STAGES]
    assert [stage.name for stage in result.statistics] == [entry.name for entry in STAGES]
    assert {path.name for path in result.paths} >= {"annotated.mp4", "masks", "parts"}
    assert not (tmp_path / "out" / "checkpoint").exists()
    again = run(video, tmp_path / "out", SMALL, resume=True)
    assert again.was_done
    assert again.frames == 12


def test_a_run_killed_right_after_its_record_is_tidied_up(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "out", SMALL)
    whole = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    (tmp_path / "out" / "report.html").unlink()
    (tmp_path / "out" / "checkpoint" / "state-000001").mkdir(parents=True)
    assert run(video, tmp_path / "out", SMALL, resume=True).was_done
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == whole


def test_a_run_with_other_masks_is_another_run(video: Path, tmp_path: Path) -> None:
    config = SMALL.only("propagate", "write")
    first, second = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    first[10:30, 10:30] = second[10:30, 10:31] = 1
    run(video, tmp_path / "out", config, masks={0: first})
    assert run(video, tmp_path / "out", config, masks={0: first.copy()}, resume=True).was_done
    with pytest.raises(CheckpointError, match=r"labels\.masks\.sha256"):
        run(video, tmp_path / "out", config, masks={0: second}, resume=True)


@pytest.mark.slow
def test_the_examples_of_the_python_page_run(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/python.md, on a small video and with a small model as the default."""
    write_video(tmp_path / "video.mp4", [pattern(i, height=140, width=182) for i in range(6)])
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), {})
