from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.core.errors import MediaError
from stages.decode import stream_address


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("rtsp://camera:554/live/main", "network", "camera-554-live-main"),
        ("rtmp://host/app/key", "network", "host-app-key"),
        ("https://host/a/live.m3u8", "playlist", "host-a-live"),
        ("-", "pipe", "stdin"),
    ],
)
def test_addresses_have_a_kind_and_a_name_for_a_folder(text: str, kind: str, name: str) -> None:
    address = stream_address(text)
    assert address is not None
    assert (address.kind, address.name) == (kind, name)


def test_a_password_is_in_no_text_but_the_address_that_is_opened() -> None:
    address = stream_address("rtsp://admin:hunter2@10.0.0.7/stream?token=abc")
    assert address is not None
    assert "hunter2" in address.url
    for text in (address.shown, address.name, repr(address)):
        assert "hunter2" not in text
        assert "abc" not in text


def test_a_playlist_from_the_network_may_not_name_a_file() -> None:
    address = stream_address("http://host/live.m3u8")
    assert address is not None
    assert "file" not in address.protocols.split(",")


def test_files_are_streams_only_when_read_live(clip: Path, tmp_path: Path) -> None:
    assert stream_address(clip) is None
    assert stream_address(tmp_path) is None
    assert stream_address(tmp_path / "nothing.mp4", live=True) is None
    address = stream_address(clip, live=True)
    assert address is not None
    assert (address.kind, address.name) == ("file", "bigbuckbunny")


def test_a_named_pipe_and_a_device_are_streams(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "camera.ts")
    pipe, device = stream_address(tmp_path / "camera.ts"), stream_address("/dev/null")
    assert pipe is not None
    assert device is not None
    assert (pipe.kind, pipe.name, device.kind) == ("pipe", "camera", "camera")


def test_other_schemes_are_refused_with_those_that_are_read() -> None:
    with pytest.raises(MediaError, match="gopher://host/x: addresses can begin with rtsp"):
        stream_address("gopher://me:secret@host/x")
