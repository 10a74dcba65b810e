"""Damaged videos and folders: nothing lost in silence, nothing given up that FFmpeg decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.bench.fuzz import (
    CLIPS,
    NUM_FRAMES,
    Clip,
    count_decodable,
    damage,
    damaged_files,
    examine_all,
    make_clip,
    outcome_table,
    shown_index,
)
from pipeline.core.config import load_config
from pipeline.core.records import Frame
from pipeline.core.state import load_state, save_state
from stages.decode import Damage, DecodeConfig, Decoder, Gap, probe
from stages.decode.damage import MAX_GAPS, DamageLog


def decode(path: Path, **values: object) -> tuple[Decoder, list[Frame]]:
    config = load_config(DecodeConfig, values)
    decoder = Decoder(config, probe(path, config))
    return decoder, list(decoder())


def clip_of(suffix: str) -> Clip:
    return next(clip for clip in CLIPS if clip.suffix == suffix)


@pytest.mark.timeout(300)
def test_random_damage_loses_nothing_in_silence_and_nothing_that_ffmpeg_decodes(tmp_path: Path) -> None:
    outcomes = list(examine_all(damaged_files(tmp_path, CLIPS, 26, seed=7)))
    assert len(outcomes) >= 200
    unknown = [outcome for outcome in outcomes if outcome.status not in ("done", "damaged", "refused")]
    assert unknown == []
    assert [outcome for outcome in outcomes if outcome.given_up or outcome.lost_in_silence] == []
    assert {row["container"] for row in outcome_table(outcomes)} == {clip.suffix for clip in CLIPS}


@pytest.mark.timeout(120)
def test_random_damage_of_real_files(shared_dir: Path, tmp_path: Path) -> None:
    paths = []
    rng = np.random.default_rng(3)
    for source in sorted((shared_dir / "data" / "nasty").glob("*.mp4")):
        if source.stat().st_size < 300_000:
            for number in range(3):
                kind, content = damage(source.read_bytes(), rng)
                paths.append(tmp_path / f"{kind}_{number}_{source.name}")
                paths[-1].write_bytes(content)
    outcomes = list(examine_all(paths))
    assert len(outcomes) >= 20
    assert [outcome for outcome in outcomes if outcome.status not in ("done", "damaged", "refused")] == []
    assert [outcome for outcome in outcomes if outcome.given_up] == []


@pytest.fixture(params=["mp4", "mkv", "ts", "avi", "webm", "flv"])
def holed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A clip with 2,000 zeroed bytes in its middle."""
    path = make_clip(tmp_path / f"holed.{request.param}", clip_of(request.param))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    return path


def test_frames_after_a_hole_keep_their_index(holed: Path) -> None:
    decoder, frames = decode(holed)
    assert len(frames) >= count_decodable(holed)
    for frame in frames[-5:]:
        assert shown_index(frame.image) in (frame.index, None)
        assert frame.pts_seconds == pytest.approx(frame.index / 25, abs=2e-3)
    found = decoder.damage
    if len(frames) == NUM_FRAMES:
        assert found is None
        assert "filled in" in decoder.warnings[0]
    else:
        assert found is not None
        assert found.frames_missing == NUM_FRAMES - len(frames)
        missing = {index for gap in found.gaps for index in range(gap.first_index, gap.last_index + 1)}
        assert missing | {frame.index for frame in frames} == set(range(NUM_FRAMES))
        assert f"of {NUM_FRAMES} could not be decoded" in found.summary()
        assert decoder.report()["gaps"][0]["from"] == found.gaps[0].first_index


@pytest.mark.parametrize("count", [1, 12, 24, 29, 31, 40])
def test_a_damaged_video_goes_on_bit_for_bit_after_a_restore(holed: Path, tmp_path: Path, count: int) -> None:
    whole_decoder, whole = decode(holed)
    info = probe(holed, DecodeConfig())
    first = Decoder(DecodeConfig(), info)
    stream = first()
    before = [next(stream) for _ in range(count)]
    save_state(tmp_path, "decode", first.state())
    second = Decoder(DecodeConfig(), info)
    second.restore(load_state(tmp_path, "decode"))
    got = [*before, *second()]
    assert [(f.index, f.pts_seconds) for f in got] == [(f.index, f.pts_seconds) for f in whole]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(got, whole, strict=True))
    assert second.damage == whole_decoder.damage
    assert second.report() == whole_decoder.report()


def test_reading_stops_at_damage_where_the_config_says_so(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", clip_of("mkv"))
    content = bytearray(path.read_bytes())
    content[20000:23000] = bytes(3000)
    path.write_bytes(content)
    _, whole = decode(path)
    decoder, frames = decode(path, on_damage="stop")
    found = decoder.damage
    assert found is not None
    assert found.stopped
    assert [f.index for f in frames] == [f.index for f in whole if f.index < found.gaps[0].first_index]
    assert "stopped" in str(decoder.broken)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi", "flv", "ts", "mpg"])
def test_a_cut_file_says_that_its_end_is_missing(tmp_path: Path, suffix: str) -> None:
    path = make_clip(tmp_path / f"a.{suffix}", clip_of(suffix))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3 + 1])
    decoder, frames = decode(path)
    found = decoder.damage
    assert found is not None
    assert found.ends_early == f"breaks off after frame {frames[-1].index}"
    if suffix in ("mkv", "webm", "avi", "flv"):
        assert found.frames_missing == NUM_FRAMES - len(frames)


def test_a_part_of_a_damaged_video_reports_only_its_own_gaps(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", clip_of("mkv"))
    content = bytearray(path.read_bytes())
    content[20000:23000] = bytes(3000)
    path.write_bytes(content)
    gap = decode(path)[0].damage.gaps[0]  # type: ignore[union-attr]
    after = (gap.last_index + 3) / 25
    decoder, frames = decode(path, start_seconds=after)
    assert (decoder.damage, frames[0].index) == (None, gap.last_index + 3)
    before, frames = decode(path, end_seconds=(gap.first_index - 1) / 25)
    assert (before.damage, frames[-1].index) == (None, gap.first_index - 2)
    inside, _ = decode(path, end_seconds=(gap.first_index + 2) / 25)
    assert inside.damage is not None
    assert inside.damage.frames_missing == 2


def _write_images(folder: Path, broken: set[int]) -> Path:
    for number in range(8):
        path = folder / f"{number:02d}.png"
        image = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        image[0, 0] = number
        Image.fromarray(image).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[: 20 if number % 2 else 500])
    return folder


def test_an_image_that_cannot_be_read_is_a_missing_frame(tmp_path: Path) -> None:
    decoder, frames = decode(_write_images(tmp_path, {3, 7}))
    assert [frame.index for frame in frames] == [0, 1, 2, 4, 5, 6]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2, 4, 5, 6]
    assert decoder.damage is not None
    assert [(gap.first_index, gap.last_index) for gap in decoder.damage.gaps] == [(3, 3), (7, 7)]
    assert decoder.damage.summary() == "2 frames of 8 could not be decoded, in 2 gaps"
    assert "03.png" in decoder.warnings[0]
    stopped, frames = decode(tmp_path, on_damage="stop")
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert stopped.damage is not None


def test_a_folder_may_begin_with_a_broken_image(tmp_path: Path) -> None:
    decoder, frames = decode(_write_images(tmp_path, {0}))
    assert [frame.index for frame in frames] == list(range(1, 8))
    assert decoder.damage is not None
    assert decoder.damage.summary() == "1 frame of 8 could not be decoded, at the start"


def test_the_record_of_damage_is_bounded() -> None:
    log = DamageLog()
    for number in range(1000):
        log.add(Gap(10 * number, 10 * number + 4, 0.0, None))
        log.warn(f"line {number}")
    found = log.damage(10_000)
    assert found is not None
    assert (found.num_gaps, len(found.gaps), found.frames_missing) == (1000, MAX_GAPS, 5000)
    assert len(log.warnings) == MAX_GAPS


def test_damage_in_words() -> None:
    gaps = (Gap(5, 9, 0.2, 0.4),)
    assert Damage(5, 250, gaps, 1).summary() == "5 frames of 250 could not be decoded, after frame 4"
    ended = Damage(5, 10, gaps, 1, "breaks off after frame 4").summary()
    assert ended == "breaks off after frame 4; 5 frames of 10 could not be decoded, after frame 4"
