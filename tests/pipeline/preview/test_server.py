from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.core.errors import InputError, OutputError
from pipeline.preview import Preview, parse_bind


def picture(value: int) -> Any:
    return np.full((48, 64, 3), (value, 0, 0), np.uint8)


def get(preview: Preview, path: str, host: str = "localhost") -> tuple[int, bytes, str]:
    port = int(preview.address.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.getheader("Content-Type", "")


def test_the_newest_picture_and_the_counts() -> None:
    with Preview("127.0.0.1", 0, lambda: {"dropped": 4}) as preview:
        preview.show(picture(40), 3, 0.12)
        preview.show(picture(200), 9, 0.36)
        status, jpeg, kind = get(preview, "/frame.jpg")
        assert (status, kind) == (200, "image/jpeg")
        image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert abs(float(image[:, :, 2].mean()) - 200) < 4
        values = json.loads(get(preview, "/status.json")[1])
        assert (values["frame"], values["seconds"], values["dropped"]) == (9, 0.36, 4)
        assert b"stream.mjpg" in get(preview, "/")[1]
        assert get(preview, "/../run.json")[0] == 404


def test_a_viewer_gets_pictures_as_they_come_and_a_slow_one_only_the_newest() -> None:
    with Preview("127.0.0.1", 0) as preview:
        capture: list[Any] = []

        def watch() -> None:
            stream = cv2.VideoCapture(preview.address + "stream.mjpg", cv2.CAP_FFMPEG)
            while len(capture) < 3:
                good, image = stream.read()
                if not good:
                    return
                capture.append(image)
            stream.release()

        viewer = threading.Thread(target=watch, daemon=True)
        viewer.start()
        deadline = time.monotonic() + 15
        index = 0
        while viewer.is_alive() and time.monotonic() < deadline:
            preview.show(picture(100), index, index / 25)
            index += 1
            time.sleep(0.01)
        viewer.join(1)
    assert len(capture) == 3
    assert capture[0].shape == (48, 64, 3)


def test_a_viewer_that_does_not_read_holds_nobody_back() -> None:
    with Preview("127.0.0.1", 0) as preview:
        port = int(preview.address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /stream.mjpg HTTP/1.0\r\nHost: localhost\r\n\r\n")
            noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
            started = time.monotonic()
            for index in range(200):
                preview.show(noise, index, index / 25)
            assert time.monotonic() - started < 2


def test_another_host_in_a_request_is_refused() -> None:
    with Preview("127.0.0.1", 0) as preview:
        preview.show(picture(0), 0, 0.0)
        assert get(preview, "/frame.jpg", host="evil.example")[0] == 403


def test_only_this_machine_unless_asked_for() -> None:
    assert parse_bind(":8088") == ("127.0.0.1", 8088)
    assert parse_bind("8088") == ("127.0.0.1", 8088)
    assert parse_bind("0.0.0.0:8088") == ("0.0.0.0", 8088)
    assert parse_bind("[::1]:80") == ("::1", 80)
    for wrong in ("abc", ":70000", "somewhere:80", "http://x:80"):
        with pytest.raises(InputError, match="--preview"):
            parse_bind(wrong)


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match="cannot listen there"):
            Preview("127.0.0.1", taken.getsockname()[1])
