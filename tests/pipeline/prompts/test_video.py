from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import FlowConfig, Point, stream
from pipeline.core.errors import ConfigError, InputError
from pipeline.prompts import masks_from_prompts
from stages.decode import DecodeConfig
from stages.extract import Extractor

pytestmark = pytest.mark.usefixtures("coarse_prompts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of a disk on noise, moving right."""
    path = tmp_path_factory.mktemp("frames")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:112, :168]
    for index in range(3):
        image = generator.integers(90, 130, (112, 168, 3)).astype(np.uint8)
        image[(x - 60 - 4 * index) ** 2 + (y - 56) ** 2 < 26**2] = (220, 60, 40)
        Image.fromarray(image).save(path / f"{index:05d}.png")
    return path


CONFIG = FlowConfig().only("propagate", extract={"short_side": 112})


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(CONFIG.extract)


def test_prompts_become_masks_of_the_frames_at_their_times(folder: Path, extractor: Extractor) -> None:
    prompts = [Point(60, 56), Point(68, 56, 2, at_seconds=2 / 24)]
    masks = masks_from_prompts(folder, DecodeConfig(), prompts, extractor)
    assert list(masks) == [0, 2]
    assert masks[0].shape == (112, 168)
    assert masks[0][56, 60] == 1
    assert masks[2][56, 68] == 2


def test_a_prompt_after_the_end_is_an_error(folder: Path, extractor: Extractor) -> None:
    with pytest.raises(InputError, match="no frame at or after 9 s"):
        masks_from_prompts(folder, DecodeConfig(), [Point(60, 56, at_seconds=9.0)], extractor)


def test_a_stream_takes_prompts(folder: Path, extractor: Extractor) -> None:
    packets = list(stream(folder, CONFIG, prompts=[Point(60, 56, 4)], extractor=extractor))
    assert len(packets) == 3
    for packet in packets:
        assert packet.labels is not None
        assert packet.labels.object_ids == (4,)


def test_prompts_without_propagation_are_an_error(folder: Path, extractor: Extractor) -> None:
    with pytest.raises(ConfigError, match=r"propagate\.enabled"):
        next(stream(folder, CONFIG.only("extract"), prompts=[Point(60, 56)], extractor=extractor))


def test_prompts_and_a_mask_for_one_frame_are_an_error(folder: Path, extractor: Extractor) -> None:
    masks = {0: np.ones((112, 168), np.uint8)}
    with pytest.raises(InputError, match="frame 0 has a given mask and prompts"):
        next(stream(folder, CONFIG, prompts=[Point(60, 56)], masks=masks, extractor=extractor))
