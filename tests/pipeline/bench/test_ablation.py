from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.bench.ablation import ROWS as BUNDLED
from pipeline.bench.ablation import read_rows, score_row, store_features
from pipeline.core.errors import ConfigError
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.flow import stream
from pipeline.formats.davis import DavisSequence, open_davis
from stages.extract import Extractor


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> DavisSequence:
    """Five frames of a bright square that moves over noise, in DAVIS's layout."""
    root = tmp_path_factory.mktemp("davis")
    noise = np.random.default_rng(0).integers(0, 90, (70, 98, 3)).astype(np.uint8)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / "square").mkdir(parents=True)
    for index in range(5):
        mask = np.zeros((70, 98), np.uint8)
        mask[14:42, 14 + 7 * index : 42 + 7 * index] = 255
        picture = np.where(mask[..., None] > 0, np.uint8(230), noise)
        Image.fromarray(picture).save(root / "JPEGImages" / "480p" / "square" / f"{index:05d}.jpg", quality=95)
        Image.fromarray(mask).save(root / "Annotations" / "480p" / "square" / f"{index:05d}.png")
    return open_davis(root, "2016", sequences=["square"])[0]


ROWS = "dino: {preset: dino}\nfewer: {preset: dino, propagate: {top_k: 3}}\n"


def test_a_row_scores_what_the_flow_scores(sequence: DavisSequence, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(ROWS, encoding="utf-8")
    flow, rows = read_rows(path)
    assert [(row.name, row.config.top_k) for row in rows] == [("dino", 5), ("fewer", 3)]
    flow = flow.model_copy(update={"extract": flow.extract.model_copy(update={"short_side": 70, "device": "cpu"})})
    extractor = Extractor(flow.extract)
    store_features(sequence, flow, tmp_path, extractor)
    record = json.loads((tmp_path / "square.json").read_text(encoding="utf-8"))
    assert record["extract"]["short_side"] == 70
    assert np.load(tmp_path / "square.npy").shape == (5, 384, 5, 7)
    got = score_row(rows[0].config, sequence, tmp_path)
    masks = {0: sequence.first_mask()}
    flow = flow.only("propagate")
    measured = []
    for packet in stream(sequence.frames_dir, flow, masks=masks, extractor=extractor):
        assert packet.labels is not None
        ours, truth = packet.labels.index_mask > 0, sequence.annotation(sequence.frame_names[packet.index]) == 1
        measured.append((region_similarity(ours, truth), boundary_measure(ours, truth)))
    want = 100 * torch.tensor(measured[1:-1]).mean(dim=0)
    torch.testing.assert_close(torch.tensor(got), want.float(), atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("rows", "only", "message"),
    [
        (ROWS, ["many"], "there is no row 'many'; rows: dino, fewer"),
        ("a: {propagate: {top_k: 3}}\n", None, "row 'a' needs a preset"),
        ("a: {preset: dino}\nb: {preset: lift}\n", None, "row 'b' extracts other features"),
        ("a: {preset: dino, propagate: {topk: 3}}\n", None, "topk"),
    ],
)
def test_bad_rows_are_named(rows: str, only: list[str] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(rows, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_rows(path, only)


def test_the_bundled_rows_are_valid() -> None:
    _, rows = read_rows(BUNDLED)
    assert [row.name for row in rows[:2]] == ["dino", "best"]
