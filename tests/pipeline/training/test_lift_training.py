"""LiFT's training: views, the feature cache, resuming, learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import MediaError, OutputError
from pipeline.core.files import list_images
from pipeline.training.lift_data import CacheKey, FeatureCache, hash_files, split_held_out
from pipeline.training.lift_statistics import evaluate, match_norms
from pipeline.training.lift_training import Start, Trainer, TrainSettings, distance
from pipeline.training.lift_views import (
    Augmentation,
    ViewSettings,
    draw_augmentation,
    make_scales,
    make_view,
)
from stages.extract.lift.network import Lift

SETTINGS = TrainSettings(epochs=2, batch_size=3, learning_rate=3e-3, views=2, mirror=True)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def _extract(images: Tensor) -> Tensor:
    """A stand-in for a frozen ViT with patches of 8 px: means of each cell and their squares."""
    cells = F.avg_pool2d(images, 8)
    return torch.cat([cells, cells.square(), torch.ones_like(cells[:, :2])], dim=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(11):
        blocks = rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.kron(blocks, np.ones((6, 6, 1), np.uint8)))
    return folder


def _open(images: Path, root: Path, **settings: object) -> FeatureCache:
    files = list_images(images, recursive=True)
    views = replace(ViewSettings(size_px=64), **settings)  # type: ignore[arg-type]
    return FeatureCache.open(root, CacheKey("toy", "key@0", "", hash_files(files), 3, views), files)


def _filled(images: Path, root: Path, **settings: object) -> FeatureCache:
    cache = _open(images, root, **settings)
    for view in (0, 1):
        cache.fill(view, _extract, MEAN, STD)
    return cache


def test_strided_scales_are_every_second_pixel_and_antialiased_ones_are_means() -> None:
    images = torch.randn(1, 3, 16, 16)
    strided = make_scales(images, "strided")
    assert torch.equal(strided[1], images[..., ::2, ::2])
    assert torch.equal(strided[2], images[..., ::4, ::4])
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    smooth = make_scales(ramp, "antialiased")
    # The position of a pixel's center is kept: pixel j of the half size covers pixels 2j and 2j + 1.
    torch.testing.assert_close(smooth[1][0, 0, 0, 1:-1], (torch.arange(8.0) * 2 + 0.5)[1:-1])
    torch.testing.assert_close(smooth[2][0, 0, 0, 1:-1], (torch.arange(4.0) * 4 + 1.5)[1:-1])


def test_a_view_without_augmentation_is_the_square_image_and_a_flip_mirrors_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    view = make_view(image, Augmentation(), 32)
    torch.testing.assert_close(view, torch.from_numpy(image).permute(2, 0, 1) / 255, atol=1e-5, rtol=0)
    flipped = make_view(image, Augmentation(flip=True), 32)
    torch.testing.assert_close(flipped, view.flip(-1))


def test_augmentations_are_the_same_for_a_seed_and_crop_only_after_the_first_view() -> None:
    settings = ViewSettings()
    assert draw_augmentation(settings, 5, 1) == draw_augmentation(settings, 5, 1)
    assert draw_augmentation(settings, 5, 1) != draw_augmentation(settings, 6, 1)
    assert draw_augmentation(settings, 5, 0).crop == (0.0, 0.0, 1.0, 1.0)
    for index in range(50):
        top, left, height, width = draw_augmentation(settings, index, 1).crop
        assert 0 <= top <= 1 - height
        assert 0 <= left <= 1 - width
        assert height * width >= settings.min_crop * 0.75


def test_the_split_is_fixed_by_the_seed_and_leaves_something_to_train_on() -> None:
    train, held_out = split_held_out(20, 5, seed=1)
    assert sorted(train + held_out) == list(range(20))
    assert (train, held_out) == split_held_out(20, 5, seed=1)
    assert held_out != split_held_out(20, 5, seed=2)[1]
    with pytest.raises(MediaError):
        split_held_out(5, 5, seed=1)


def test_the_cache_holds_what_the_backbone_gives_and_goes_on_where_it_stopped(
    images: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    calls = 0

    def breaking(scale: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise Stop
        return _extract(scale)

    cache = _open(images, tmp_path / "cache")
    with pytest.raises(Stop):
        cache.fill(0, breaking, MEAN, STD, batch_size=3)
    assert len(cache.missing(0)) == 11 - 6
    again = _open(images, tmp_path / "cache")
    counted: list[int] = []
    again.fill(0, _extract, MEAN, STD, batch_size=3, on_rows=counted.append)
    assert sum(counted) == 5
    whole = _filled(images, tmp_path / "other")
    samples = whole.samples(1)
    for found, expected in zip(again.batch(samples).features, whole.batch(samples).features, strict=True):
        assert torch.equal(found, expected)
    batch = whole.batch(whole.held_out_samples())
    assert batch.images[0].shape == (3, 3, 32, 32)
    torch.testing.assert_close(batch.features[1], _extract(batch.images[0]), atol=2e-2, rtol=1e-2)


def test_other_settings_use_another_folder_and_held_out_images_have_no_crops(images: Path, tmp_path: Path) -> None:
    first = _open(images, tmp_path)
    assert _open(images, tmp_path, subsampling="strided").folder != first.folder
    assert set(first.rows(1)) == set(first.train)
    assert len(first.samples(2)) == 2 * len(first.train)


def test_distances_agree_with_their_definitions() -> None:
    found, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    dot = (found * target).sum(1) / (found.norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(distance(found, target, "cosine"), 1 - dot.mean())
    torch.testing.assert_close(distance(found, target, "l1"), (found - target).abs().mean())
    torch.testing.assert_close(distance(found, target, "l2"), ((found - target) ** 2).mean())


def test_training_that_was_killed_ends_in_the_same_bits(images: Path, tmp_path: Path) -> None:
    cache = _filled(images, tmp_path)
    whole = Trainer(SETTINGS, cache, patch_px=8, checkpoint=tmp_path / "whole.pt")
    whole.run()
    broken = Trainer(SETTINGS, cache, patch_px=8, checkpoint=tmp_path / "broken.pt")
    broken.run(stop_after=7, save_every=2)
    resumed = Trainer(SETTINGS, cache, patch_px=8, checkpoint=tmp_path / "broken.pt")
    assert resumed.step == 6, "the last checkpoint is two steps back at most"
    resumed.run()
    assert resumed.step == whole.step == 10
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_other_settings_or_data_is_refused(images: Path, tmp_path: Path) -> None:
    cache = _filled(images, tmp_path)
    path = tmp_path / "lift.pt"
    Trainer(SETTINGS, cache, patch_px=8, checkpoint=path).run(stop_after=1, save_every=1)
    with pytest.raises(OutputError, match="other learning_rate"):
        Trainer(replace(SETTINGS, learning_rate=1.0), cache, patch_px=8, checkpoint=path)
    other = _filled(images, tmp_path, subsampling="strided")
    with pytest.raises(OutputError, match="the images or the backbone"):
        Trainer(SETTINGS, other, patch_px=8, checkpoint=path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(OutputError, match="cannot be read"):
        Trainer(SETTINGS, cache, patch_px=8, checkpoint=path)


@pytest.mark.parametrize(("start", "learning_rate"), [("random", 1e-2), ("bilinear", 2e-3)])
def test_training_beats_its_start_on_features_that_follow_the_image(
    images: Path, tmp_path: Path, start: Start, learning_rate: float
) -> None:
    cache = _filled(images, tmp_path)
    settings = replace(SETTINGS, epochs=25, learning_rate=learning_rate, start=start)
    trainer = Trainer(settings, cache, patch_px=8, checkpoint=tmp_path / "lift.pt")
    before = evaluate(trainer.model, cache, device=torch.device("cpu"))
    trainer.run(save_every=1000)
    after = trainer.history.epochs[-1]
    assert after["bilinear_1"] == pytest.approx(before["bilinear_1"])
    assert after["lift_1"] > before["lift_1"]
    assert np.mean(trainer.history.losses[-10:]) < np.mean(trainer.history.losses[:10])


def test_matched_norms_keep_directions_and_make_lengths_true(images: Path, tmp_path: Path) -> None:
    cache = _filled(images, tmp_path / "cache")
    torch.manual_seed(0)
    model = Lift(8, patch_px=8).eval()
    batch = cache.batch(cache.samples(1)[:4])
    with torch.no_grad():
        before = model(batch.images[0], batch.features[1])
        match_norms(model, [batch])
        after = [model(batch.images[level - 1], batch.features[level]) for level in (1, 2)]
    torch.testing.assert_close(F.normalize(after[0], dim=1), F.normalize(before, dim=1), rtol=1e-4, atol=1e-5)
    found = sum(float(maps.norm(dim=1).mean()) for maps in after)
    wanted = sum(float(batch.features[level].norm(dim=1).mean()) for level in (0, 1))
    assert found == pytest.approx(wanted, rel=1e-4)
