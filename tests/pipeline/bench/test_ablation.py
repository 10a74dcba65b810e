from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.bench.ablation import ROWS as BUNDLED
from pipeline.bench.ablation import read_rows, score_row, store_features
from pipeline.bench.ablation_clips import Clip, ObjectScorer, open_composites
from pipeline.core.errors import ConfigError, MediaError
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.flow import stream
from pipeline.formats.davis import open_davis
from run_pipeline import main
from stages.extract import Extractor


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Clip:
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
    return Clip.of_davis(open_davis(root, "2016", sequences=["square"])[0])


ROWS = "dino: {preset: dino}\nfewer: {preset: dino, propagate: {top_k: 3}}\n"


def test_a_row_scores_what_the_flow_scores(sequence: Clip, tmp_path: Path) -> None:
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
    score = score_row(rows[0].config, sequence, tmp_path)["square"]
    got = score.J, score.F
    assert min(got) > 50
    masks = dict(sequence.given)
    flow = flow.only("propagate")
    measured = []
    for packet in stream(sequence.frames_dir, flow, masks=masks, extractor=extractor):
        assert packet.labels is not None
        ours, truth = packet.labels.index_mask > 0, sequence.annotation(packet.index) == 1
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


def test_composites_give_an_object_when_it_is_large_enough(tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    (folder / "img1").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text("1,1,1,1,40,40,1,1,1\n", encoding="utf-8")
    (folder / "seqinfo.ini").write_text("[Sequence]\nname=pair\nimDir=img1\nframeRate=24\n", encoding="utf-8")
    for index in range(3):
        mask = np.zeros((60, 90), np.uint8)
        mask[:40, :40] = 1
        mask[20:, 45 : 55 + 15 * index] = 2  # 400, 1000, 1600 px
        Image.fromarray(mask).save(folder / "img1" / f"{index + 1:06d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{index + 1:06d}.png")
    (clip,) = open_composites(tmp_path)
    assert {index: np.unique(mask).tolist() for index, mask in clip.given.items()} == {0: [0, 1], 1: [0, 2]}
    assert np.unique(clip.annotation(1)).tolist() == [0, 1, 2]
    (folder / "masks" / "000002.png").unlink()
    with pytest.raises(MediaError, match="000002.png"):
        open_composites(tmp_path)


def test_scores_of_an_object_that_is_lost_and_goes_over_to_another() -> None:
    def stripe(*columns: int) -> np.ndarray:
        mask = np.zeros((20, 40), np.uint8)
        for number, column in enumerate(columns, start=1):
            mask[:, column : column + 10] = number
        return mask

    scorer = ObjectScorer(1)
    scorer.add(stripe(0, 20), stripe(0, 20), 0.9)
    scorer.add(stripe(5, 20), stripe(0, 20), 0.7)  # half of it
    scorer.add(stripe(20), stripe(0, 20), 0.1)  # on the other
    score = scorer.score(0.25)
    assert score is not None
    assert score.J == pytest.approx(100 * (1 + 1 / 3 + 0) / 3)
    assert score.rank_correlation == pytest.approx(1.0)
    assert (score.swaps, score.seconds) == (1, 0.25)

    scorer = ObjectScorer(1)
    empty = np.zeros((20, 40), np.uint8)
    assert scorer.score(0.0) is None
    for index in range(6):
        scorer.add(empty, empty, 0.3 if index == 5 else 0.0, scored=index == 0)
    score = scorer.score(0.0)
    assert score is not None
    assert (score.J, score.gone, score.gone_confident, score.rank_correlation) == (100.0, 2, 1, None)


def test_ablation_needs_one_data_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "ablation", "--features", str(tmp_path)]) == 2
    assert "either --root or --composites" in capsys.readouterr().err
