from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra 'label'")
pytest.importorskip("httpx", reason="needs httpx for starlette's test client")

from starlette.testclient import TestClient

from pipeline import FlowConfig
from pipeline.core.errors import LabelFileError
from pipeline.formats.object_names import read_names
from pipeline.formats.palette import read_indexed_png
from pipeline.label.app import MAX_BODY_BYTES, make_app
from pipeline.label.workbench import Workbench
from pipeline.prompts import Point
from pipeline.prompts.features import FrameDescription

TOKEN = "test-token"
CLICK = {"x": 60, "y": 56, "object": 2, "positive": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("label") / "frames"
    path.mkdir()
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:112, :168]
    for index in range(2):
        image = generator.integers(90, 130, (112, 168, 3)).astype(np.uint8)
        image[(x - 60) ** 2 + (y - 56) ** 2 < 26**2] = (220, 60, 40)
        Image.fromarray(image).save(path / f"shot{index}.png")
    return path


@pytest.fixture(scope="module")
def client(folder: Path, coarse_prompts: None) -> TestClient:
    config = FlowConfig().only("propagate", "annotate", "write", extract={"short_side": 112})
    workbench = Workbench(folder, folder.parent / "masks", folder.parent / "masks_run", config)
    return TestClient(make_app(workbench, TOKEN), base_url="http://127.0.0.1:8000")


def test_the_page_and_its_facts(client: TestClient) -> None:
    assert "<canvas" in client.get(f"/{TOKEN}/").text
    facts = client.get(f"/{TOKEN}/facts").json()
    assert (facts["width"], facts["height"], facts["frames"]) == (168, 112, 2)


@pytest.mark.parametrize("path", ["/", "/facts", "/wrong/facts", "/test-toke/facts", f"/{TOKEN}"])
def test_nothing_is_there_without_the_token(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "", "10.0.0.5:8000"])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get(f"/{TOKEN}/facts", headers={"host": host}).status_code == 403


def test_other_origins_are_refused_and_none_is_invited(client: TestClient) -> None:
    headers = {"origin": "http://example.org"}
    assert client.post(f"/{TOKEN}/save", json={"frames": {}}, headers=headers).status_code == 403
    answer = client.get(f"/{TOKEN}/facts", headers={"origin": "http://127.0.0.1:8000"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["frames/../../etc/passwd", "frames/%2e%2e%2fx", "frames/-1", "run/video/../x"])
def test_paths_that_are_no_frame_numbers_find_nothing(client: TestClient, path: str) -> None:
    assert client.get(f"/{TOKEN}/{path}").status_code == 404


def test_frames_that_do_not_exist_are_an_error(client: TestClient) -> None:
    answer = client.get(f"/{TOKEN}/frames/9")
    assert answer.status_code == 400
    assert "frames are 0 to 1" in answer.json()["error"]


@pytest.mark.parametrize(
    "prompts",
    ["x", [1], [{}], [{"x": 1, "y": "a", "object": 1, "positive": True}], [{"box": [1, 2], "object": 1}], []],
)
def test_prompts_of_another_shape_are_an_error(client: TestClient, prompts: object) -> None:
    assert client.post(f"/{TOKEN}/frames/0/mask", json={"prompts": prompts}).status_code == 400


def test_a_body_that_is_too_long_or_not_json_is_an_error(client: TestClient) -> None:
    assert client.post(f"/{TOKEN}/save", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 400
    assert client.post(f"/{TOKEN}/save", content=b"{").status_code == 400
    assert client.post(f"/{TOKEN}/save", json={"frames": {"../x": [CLICK]}}).status_code == 400


def test_a_click_gives_an_overlay_and_saving_writes_the_mask(client: TestClient, folder: Path) -> None:
    for fine in (False, True):
        answer = client.post(f"/{TOKEN}/frames/1/mask", json={"prompts": [CLICK], "fine": fine})
        assert answer.headers["content-type"] == "image/png"
    saved = client.post(f"/{TOKEN}/save", json={"frames": {"1": [CLICK], "0": []}}).json()["saved"]
    assert saved == [str(folder.parent / "masks" / "shot1.png")]
    mask = read_indexed_png(Path(saved[0]))
    assert mask.shape == (112, 168)
    assert mask[56, 60] == 2
    assert mask[5, 5] == 0


def test_nothing_to_save_is_an_error(client: TestClient) -> None:
    assert client.post(f"/{TOKEN}/save", json={"frames": {"0": []}}).status_code == 400


def test_a_run_that_is_stopped_keeps_the_frames_that_are_done(client: TestClient, folder: Path) -> None:
    assert client.post(f"/{TOKEN}/run", json={"start": 0, "frames": {"0": [CLICK]}}).status_code == 200
    assert client.post(f"/{TOKEN}/run/stop", json={}).status_code == 200
    for _ in range(600):
        now = client.get(f"/{TOKEN}/run").json()
        if not now["running"]:
            break
        time.sleep(0.1)
    assert (now["stopped"], now["error"], now["frames"], now["video"]) == (True, None, 1, True)
    assert json.loads((folder.parent / "masks_run" / "run.json").read_text())["status"] == "interrupted"
    assert client.get(f"/{TOKEN}/run/video").status_code == 200
    assert not now["report"]  # an interrupted run has none
    (folder.parent / "masks_run" / "report.html").write_text("<html>")
    assert client.get(f"/{TOKEN}/run").json()["report"]
    assert "<html" in client.get(f"/{TOKEN}/run/files/report.html").text
    for path in ("../masks/shot1.png", "%2e%2e/masks/shot1.png", "missing", "", "/etc/passwd"):
        assert client.get(f"/{TOKEN}/run/files/{path}").status_code in (400, 404)


def test_names_are_saved_beside_the_masks_and_read_back(client: TestClient, folder: Path) -> None:
    body = {"frames": {"1": [CLICK]}, "names": {"2": " rabbit ", "3": "not in a mask", "1": ""}}
    saved = client.post(f"/{TOKEN}/save", json=body).json()["saved"]
    assert Path(saved[-1]) == folder.parent / "masks" / "names.json"
    assert read_names(folder.parent / "masks") == read_names(Path(saved[-1])) == {2: "rabbit"}


@pytest.mark.parametrize("names", [[], {"0": "a"}, {"x": "a"}, {"1": 5}, {"1": "a\n"}, {"1": "a" * 101}])
def test_other_names_are_an_error(client: TestClient, names: object, tmp_path: Path) -> None:
    answer = client.post(f"/{TOKEN}/save", json={"frames": {"1": [CLICK]}, "names": names})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("names")
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(LabelFileError, match="names.json: names"):
        read_names(tmp_path)


def test_the_next_frames_are_prepared_and_first_masks_do_not_wait_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[int] = []
    go_on = threading.Event()
    config = FlowConfig().only("propagate", extract={"short_side": 112})
    workbench = Workbench(folder, folder.parent / "masks", folder.parent / "masks_run", config)
    describe = workbench._describe_whole

    def describe_slowly(image: npt.NDArray[np.uint8]) -> FrameDescription:
        index = 0 if image is workbench.frame(0).image else 1
        described.append(index)
        if index > 0:
            assert go_on.wait(20)
        return describe(image)

    monkeypatch.setattr(workbench, "_describe_whole", describe_slowly)
    workbench.prepare(0)
    while described != [0, 1]:
        time.sleep(0.01)
    assert set(np.unique(workbench.first_mask(0, [Point(60, 56, 2)]))) == {0, 2}
    go_on.set()
    workbench.prepare(1)
    assert described == [0, 1]


def test_the_final_mask_looks_at_a_window_and_is_the_one_that_is_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = FlowConfig().only("propagate", extract={"short_side": 112})
    workbench = Workbench(folder, tmp_path / "masks", tmp_path / "masks_run", config)
    sizes: list[tuple[int, ...]] = []
    describe = workbench._describe_part

    def counted(image: npt.NDArray[np.uint8]) -> FrameDescription:
        sizes.append(image.shape)
        return describe(image)

    monkeypatch.setattr(workbench, "_describe_part", counted)
    prompts = [Point(60, 56, 2)]
    workbench.first_mask(0, prompts)
    assert not sizes
    final = workbench.mask(0, prompts)
    assert sizes == [(56, 84, 3)]
    saved = workbench.save({0: prompts})
    assert np.array_equal(read_indexed_png(saved[0]), final)
    assert len(sizes) == 1
