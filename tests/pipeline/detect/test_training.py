from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.core.errors import OutputError
from pipeline.detect.coco_data import read_coco
from pipeline.detect.feature_maps import build_maps
from pipeline.detect.map_sources import CachedMaps, LiveMaps
from pipeline.detect.model import Detector
from pipeline.detect.settings import DetectorSettings
from pipeline.detect.training import Trainer, TrainSettings, training_samples
from tests.pipeline.detect.squares import BACKBONE, write_set

SETTINGS = TrainSettings(epochs=2, batch_size=2, box_samples=8)


def make_trainer(root: Path, checkpoint: str, settings: TrainSettings = SETTINGS) -> Trainer:
    """A trainer on four images; the detector always starts with the same weights."""
    labels = root / "set" / "labels.json"
    if not labels.exists():
        write_set(root / "set", 4)
    data = read_coco(labels, labels.parent / "images")
    architecture = DetectorSettings(
        categories=("square", "disk"), category_ids=(3, 6), backbone=BACKBONE, facet="token@-1",
        canvas_hw=(64, 96), channels=16, box_hidden=16, mask_convs=1,
    )  # fmt: skip
    maps = build_maps(architecture, weights="random", overrides={"depth": 1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Detector(architecture, maps).eval()
    samples = training_samples(data, mirror=settings.mirror)
    cache = CachedMaps(root / "cache", detector, data, samples)
    cache.fill()
    return Trainer(settings, detector, data, samples, cache, root / checkpoint)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path, "whole.pt")
    whole.run()
    first = make_trainer(tmp_path, "parts.pt")
    first.run(stop_after=3)
    second = make_trainer(tmp_path, "parts.pt")
    assert second.step == 3
    second.run()
    assert second.history == whole.history
    torch.testing.assert_close(second.detector.state_dict(), whole.detector.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, "a.pt").run(stop_after=1)
    with pytest.raises(OutputError, match="other learning_rate"):
        make_trainer(tmp_path, "a.pt", TrainSettings(epochs=2, batch_size=2, box_samples=8, learning_rate=1.0))
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(OutputError, match="cannot be read as a checkpoint"):
        make_trainer(tmp_path, "a.pt")


def test_the_backbone_stays_as_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "a.pt")
    before = {name: value.clone() for name, value in trainer.detector.maps.state_dict().items()}
    trainer.run(stop_after=2)
    torch.testing.assert_close(dict(trainer.detector.maps.state_dict()), before, rtol=0, atol=0)


def test_cached_maps_are_the_live_ones_and_survive_a_kill(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "a.pt")
    cached, samples = trainer.source, trainer.samples
    assert isinstance(cached, CachedMaps)
    live = LiveMaps(trainer.detector, trainer.data, with_gradient=False)
    stored, places = cached.batch(samples[3:6])
    fresh, expected = live.batch(samples[3:6])
    torch.testing.assert_close(stored, fresh, rtol=2e-3, atol=2e-3)
    assert places == expected
    cached._done[2] = False
    again = CachedMaps(tmp_path / "cache", trainer.detector, trainer.data, samples)
    assert again.missing == [samples[2]]
