from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.records import Frame
from pipeline.core.state import load_state, save_state
from stages.decode import DecodeConfig, Decoder, probe
from tests.videos import pattern, rotate_display, write_video


def decode(path: Path, **values: object) -> tuple[Decoder, list[Frame]]:
    config = load_config(DecodeConfig, values)
    decoder = Decoder(config, probe(path, config))
    return decoder, list(decoder())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "pattern.mp4"
    return write_video(path, [pattern(i) for i in range(20)], options={"crf": "10", "g": "5"})


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_every_frame_comes_in_order_with_its_time(video: Path, backend: str) -> None:
    decoder, frames = decode(video, backend=backend)
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], np.arange(20) / 25)
    for index in (0, 7, 19):
        assert np.abs(frames[index].image.astype(int) - pattern(index)).mean() < 4
    assert decoder.broken is None
    assert decoder.expected_frames() == 20


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_start_end_and_every_keep_the_indices_of_the_whole_video(video: Path, backend: str) -> None:
    decoder, frames = decode(video, backend=backend, start_seconds=0.3, end_seconds=0.6, every=3)
    assert [frame.index for frame in frames] == [8, 11, 14]
    assert decoder.first_index() == 8
    assert decoder.expected_frames() == 3
    assert np.abs(frames[0].image.astype(int) - pattern(8)).mean() < 4


def test_variable_frame_rate_keeps_exact_times(tmp_path: Path) -> None:
    pts = [0, 40, 50, 200, 210, 1000]
    path = write_video(
        tmp_path / "vfr.mkv", [pattern(i) for i in range(6)], pts=pts, time_base=Fraction(1, 1000), rate=25
    )
    _, frames = decode(path)
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], np.array(pts) / 1000)


def test_rotation_metadata_turns_the_frames_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", [pattern(0)] * 3, options={"crf": "10"})
    rotate_display(path)
    decoder, frames = decode(path)
    assert decoder.info.image_hw == (64, 48)
    expected = np.rot90(pattern(0), -1)
    assert np.abs(frames[0].image.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("ten_bit.mkv", "libx265", "yuv420p10le"),
        ("gray.mkv", "ffv1", "gray"),
        ("gray16.mkv", "ffv1", "gray16le"),
        ("alpha.mov", "png", "rgba"),
        ("alpha.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_deep_gray_and_alpha_input_becomes_8_bit_rgb(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / name, [pattern(i) for i in range(3)], codec=codec, pix_fmt=pix_fmt)
    _, frames = decode(path)
    assert len(frames) == 3
    expected = pattern(1).astype(float)
    if pix_fmt.startswith("gray"):
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    assert np.abs(frames[1].image - expected).mean() < 6


def test_an_unknown_frame_count_is_fine(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", [pattern(i) for i in range(7)])
    decoder, frames = decode(path)
    assert decoder.info.num_frames is None
    assert decoder.expected_frames() is None
    assert len(frames) == 7


def test_a_video_cut_in_the_middle_gives_its_frames_and_says_where(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "whole.mp4",
        [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(60)],
        container_options={"movflags": "faststart"},
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoder, frames = decode(cut)
    assert 10 < len(frames) < 50
    assert decoder.broken is not None
    assert f"after frame {len(frames) - 1}" in decoder.broken


def test_a_folder_of_images_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        Image.fromarray(np.full((8, 10, 3), number, np.uint8)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    decoder, frames = decode(tmp_path, image_frame_rate=10)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [9, 10, 100]
    assert [frame.pts_seconds for frame in frames] == [0.0, 0.1, 0.2]
    assert decoder.info.frame_names == ("f9", "f10", "f100")


def test_sixteen_bit_gray_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "a.png")
    _, frames = decode(tmp_path)
    assert int(frames[0].image[0, 0, 0]) == 128


def test_frames_are_decoded_no_further_than_they_are_asked_for(video: Path) -> None:
    config = DecodeConfig()
    frames = Decoder(config, probe(video, config))()
    assert next(frames).index == 0
    frames.close()  # type: ignore[attr-defined]


def _assert_same_frames(got: list[Frame], expected: list[Frame]) -> None:
    assert [(frame.index, frame.pts_seconds) for frame in got] == [(f.index, f.pts_seconds) for f in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11, 19])
@pytest.mark.parametrize("values", [{}, {"start_seconds": 0.1, "every": 3}])
def test_a_restored_decoder_goes_on_with_the_next_frame(
    video: Path, tmp_path: Path, count: int, values: dict[str, object]
) -> None:
    _, whole = decode(video, **values)
    config = load_config(DecodeConfig, values)
    first = Decoder(config, probe(video, config))
    stream = first()
    count = min(count, len(whole) - 1)
    before = [next(stream) for _ in range(count)]
    save_state(tmp_path, "decode", first.state())
    second = Decoder(config, probe(video, config))
    second.restore(load_state(tmp_path, "decode"))
    assert second.current_index == (before[-1].index if before else None)
    _assert_same_frames([*before, *second()], whole)


def test_a_restored_decoder_of_images_goes_on_with_the_next_image(tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(np.full((8, 10, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    decoder, whole = decode(tmp_path)
    decoder.reset()
    stream = decoder()
    before = [next(stream) for _ in range(2)]
    state = decoder.state()
    decoder.reset()
    decoder.restore(state)
    _assert_same_frames([*before, *decoder()], whole)


def _write_text(folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("this is no video\n" * 50)
    return path


def _write_sizes(folder: Path) -> Path:
    Image.new("RGB", (10, 8)).save(folder / "0.png")
    Image.new("RGB", (10, 8)).save(folder / "1.png")
    Image.new("RGB", (12, 8)).save(folder / "2.png")
    return folder


def _write_audio(folder: Path) -> Path:
    import av

    path = folder / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _write_broken_image(folder: Path) -> Path:
    (folder / "0.png").write_bytes(b"not a png")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.mp4", "no such file"),
        (lambda folder: folder, "holds no images"),
        (_write_text, "not a video"),
        (_write_audio, "no video stream"),
        (_write_sizes, r"2\.png: is 12x8, but 0\.png is 10x8"),
        (_write_broken_image, "cannot be read as an image"),
    ],
)
def test_bad_input_is_a_media_error_that_names_the_file(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(MediaError, match=message) as caught:
        decode(make(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_nothing_between_start_and_end_is_an_error(video: Path) -> None:
    with pytest.raises(MediaError, match="no frames between"):
        decode(video, start_seconds=100.0)


@pytest.mark.parametrize("values", [{"every": 0}, {"start_seconds": -1}, {"start_seconds": 2, "end_seconds": 1}])
def test_impossible_values_are_config_errors(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_config(DecodeConfig, values)
