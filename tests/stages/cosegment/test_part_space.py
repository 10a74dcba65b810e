from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.arrays import FloatArray, normalize_rows
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.cosegment.part_space import find_part_space, fit_part_space, load_part_space
from tests.stages.cosegment.scenes import FAST, moving_square


def views(count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Cells of four kinds (channels 0 to 3) seen twice; channels 4 to 7 differ between the views."""
    rng = np.random.default_rng(seed)
    kinds = np.eye(4)[rng.integers(0, 4, count)]
    first, second = (
        normalize_rows(np.concatenate([kinds, rng.standard_normal((count, 4))], axis=1)) for _ in range(2)
    )
    return first, second


def test_what_changes_between_views_is_left_out(tmp_path: Path) -> None:
    space = fit_part_space([views(400, 0), views(400, 1)], 3)
    first, second = views(400, 2)
    plain = np.einsum("nc,nc->n", first, second).mean()
    assert np.einsum("nc,nc->n", space(first), space(second)).mean() > 0.9 > 0.6 > plain
    space.save(tmp_path / "space.safetensors")
    loaded = load_part_space(tmp_path / "space.safetensors")
    np.testing.assert_allclose(loaded(first), space(first), atol=0.02)


def test_a_space_is_bundled_for_the_default_descriptors_only() -> None:
    space = find_part_space("dinov2_vits14 key@11")
    assert space is not None
    assert space.axes.shape == (384, 32)
    assert find_part_space("dino_vits8 key@11") is None


def test_parts_are_clustered_in_the_space() -> None:
    stage = Cosegmenter(CosegmentConfig.model_validate(FAST))
    stage._space = fit_part_space([views_of_scene()], 6)
    stage.reset()
    packets = list(stage(moving_square(8)))
    assert all(packet.parts is not None and packet.parts.index_mask.any() for packet in packets)
    assert stage.state()["codebook"]["parts"].shape == (2, 6)


def views_of_scene() -> tuple[FloatArray, FloatArray]:
    frames = []
    for packet in moving_square(2):
        assert packet.features is not None
        frames.append(normalize_rows(packet.features.data.flatten(1).T.numpy()))
    return frames[0], frames[1]
