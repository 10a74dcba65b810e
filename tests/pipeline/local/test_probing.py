from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.arrays import FloatArray
from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.local.labeled_set import Image
from pipeline.local.layouts import read_cityscapes, read_folder
from pipeline.local.patch_features import (
    BackboneName,
    Describer,
    FeatureName,
    PatchFeatures,
    Tiling,
    parse_backbone,
    parse_feature,
    parse_tilings,
)
from pipeline.local.patches import Confusion, class_counts, majority
from pipeline.local.perturbations import Photometric
from pipeline.local.probing import CLEAN, Probe, ProbeKey, ProbeSettings, make_trials
from tests.pipeline.local.layouts import make_cityscapes, make_folder

FEATURE, COLORS = FeatureName("token@0"), BackboneName("colors")


@dataclass
class MeanColors:
    """Stands for a backbone: a patch's features are its mean color and its contrast."""

    features: tuple[FeatureName, ...] = (FEATURE,)
    backbone: BackboneName = COLORS
    channels: int = 4

    def __call__(self, image: Image, change: object = None) -> dict[FeatureName, PatchFeatures]:
        seen = image if change is None else change(image)  # type: ignore[operator]
        patches = seen.reshape(4, 14, 6, 14, 3).transpose(0, 2, 1, 3, 4).reshape(24, 196, 3).astype(np.float32)
        rows = np.concatenate([patches.mean(axis=1), patches.std(axis=1).mean(axis=1, keepdims=True)], axis=1)
        return {FEATURE: PatchFeatures(rows, PatchGrid.covering((56, 84), (4, 6)))}


def run_probe(
    root: Path, settings: ProbeSettings, groups: int = 1, trials: int = 1
) -> dict[ProbeKey, list[Confusion]]:
    data = read_folder(root)
    describer: Any = MeanColors()
    return Probe(describer, make_trials(data, data, groups, trials, 0), settings).run().confusions


def test_the_scores_are_those_of_a_naive_probe(tmp_path: Path) -> None:
    data = read_folder(make_folder(tmp_path))
    describe, train, test = MeanColors(), data.of_groups(["g0"]), data.of_groups(["g1", "g2"])
    rows: list[FloatArray] = []
    labels: list[int] = []
    for image in train.images:
        pixels, truth = image.load()
        found = describe(pixels)[FEATURE]
        rows.extend(found.rows)
        labels.extend(majority(class_counts(truth, found.grid, 2)).tolist())
    hits = union = right = total = 0
    for image in test.images:
        pixels, truth = image.load()
        for cell, row in enumerate(describe(pixels)[FEATURE].rows):
            nearest = int(np.argmin([np.sum((row - other) ** 2) for other in rows]))
            y, x = 14 * (cell // 6), 14 * (cell % 6)
            patch = truth[y : y + 14, x : x + 14]
            right, total = right + int((patch == labels[nearest]).sum()), total + patch.size
            hits += int((patch == 1).sum()) if labels[nearest] == 1 else 0
            union += patch.size if labels[nearest] == 1 else int((patch == 1).sum())
    (confusion,) = run_probe(tmp_path, ProbeSettings(heads=("knn",)))[ProbeKey("token@0", "knn", 0, CLEAN)]
    assert confusion.pixel_accuracy == pytest.approx(right / total)
    assert confusion.iou[1] == pytest.approx(hits / union)
    assert confusion.pixel_accuracy > 0.9


def test_every_combination_is_scored_and_noise_hurts(tmp_path: Path) -> None:
    noise = Photometric("noise", 2.0)
    settings = ProbeSettings(heads=("knn", "linear"), removed=(0, 1), changes=(noise,))
    found = run_probe(make_folder(tmp_path), settings, groups=2, trials=2)
    assert {(k.head, k.removed, k.change) for k in found} == {
        (head, removed, change)
        for head in ("knn", "linear")
        for removed in (0, 1)
        for change in (CLEAN, "noise 2")
    }
    assert all(len(trials) == 2 for trials in found.values())
    clean, noisy = (found[ProbeKey("token@0", "knn", 0, change)][0] for change in (CLEAN, "noise 2"))
    assert noisy.mean_iou < clean.mean_iou - 0.05
    assert clean.table.sum() == noisy.table.sum() == 2 * 56 * 84


def test_what_trains_never_tests(tmp_path: Path) -> None:
    data = read_folder(make_folder(tmp_path, groups=4))
    trials = make_trials(data, data, 2, 5, 0)
    assert trials[0].train.groups == ("g0", "g1")
    assert len({trial.train.groups for trial in trials}) > 1
    for trial in trials:
        assert set(trial.train.groups) | set(trial.test.groups) == {"g0", "g1", "g2", "g3"}
        assert not {i.path for i in trial.train.images} & {i.path for i in trial.test.images}
    with pytest.raises(ConfigError, match="one has to be left"):
        make_trials(data, data, 4, 1, 0)
    with pytest.raises(ConfigError, match="--train-groups"):
        make_trials(data, data, None, 1, 0)


def test_splits_need_no_groups(tmp_path: Path) -> None:
    data = read_cityscapes(make_cityscapes(tmp_path))
    train, test = data.of_split("train"), data.of_split("val")
    (trial,) = make_trials(train, test, None, 1, 0)
    assert (trial.train, trial.test) == (train, test)
    (few,) = make_trials(train, test, 1, 1, 0)
    assert (few.train.groups, few.test) == (("aachen",), test)


def test_more_channels_than_there_are_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="features of 4 channels"):
        run_probe(make_folder(tmp_path), ProbeSettings(removed=(4,)))


def test_tiles_are_put_together_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of a plain color has patches of one value, at the tile's place."""
    features = (parse_feature("token@0"), parse_feature("token@0+bilinear"))
    describer = Describer(BackboneName("dinov2_vits14", "random"), features, Tiling(2, 4, 28), "cpu")
    image = np.zeros((120, 200, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            image[60 * row : 60 * row + 60, 50 * column : 50 * column + 50] = 20 + 25 * (4 * row + column)
    found = describer(image)
    plain, doubled = (found[feature] for feature in features)
    assert plain.grid.grid_hw == (4, 8)
    assert plain.grid.image_hw == (120, 200)
    assert doubled.grid.grid_hw == (8, 16)
    cells = plain.rows.reshape(4, 8, -1)
    alone = Describer(BackboneName("dinov2_vits14", "random"), features[:1], Tiling(0, 0, 28), "cpu")
    for row in range(2):
        for column in range(4):
            tile = np.ascontiguousarray(image[60 * row : 60 * row + 50, 50 * column : 50 * column + 50])
            expected = alone(tile)[features[0]].rows.reshape(2, 2, -1)
            got = cells[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_allclose(got, expected, atol=2e-4)


def test_names_are_read_and_wrong_ones_refused() -> None:
    assert parse_feature("key@11+lift=a.safetensors") == FeatureName("key@11", "lift", "a.safetensors")
    assert parse_backbone("dino_vits16=w.pth") == BackboneName("dino_vits16", "w.pth")
    assert parse_tilings("2x4", short_side=448, tile_side=224)[0].input_hw((1024, 2048), 16) == (448, 896)
    for wrong in ("keys@11", "key@11+up", "key@11+bilinear=a"):
        with pytest.raises(ConfigError):
            parse_feature(wrong)
    with pytest.raises(ConfigError, match="2x4"):
        parse_tilings("2,4", short_side=448, tile_side=224)
    with pytest.raises(ConfigError, match="no patch"):
        parse_tilings("2x4", short_side=448, tile_side=10)[0].input_hw((100, 100), 14)
