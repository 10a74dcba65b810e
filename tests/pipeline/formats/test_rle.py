from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.rle import compress_counts, decode_mask, decompress_counts, encode_mask, mask_counts


def masks() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(1, 1), (7, 5), (48, 64), (200, 3)]
    drawn = [random.random(shape) < share for shape in shapes for share in (0.0, 0.05, 0.5, 1.0)]
    blocks = np.zeros((400, 300), bool)
    blocks[20:380, 10:250] = True
    return [*drawn, blocks]


@pytest.mark.parametrize("number", range(17))
def test_a_mask_comes_back_exactly(number: int) -> None:
    mask = masks()[number]
    encoded = encode_mask(mask)
    assert encoded["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_mask(str(encoded["counts"]), (mask.shape[0], mask.shape[1])), mask)
    counts = mask_counts(mask)
    np.testing.assert_array_equal(decompress_counts(compress_counts(counts)), counts)


@pytest.mark.parametrize("number", range(17))
def test_the_text_is_that_of_pycocotools(number: int) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra test)")
    mask = masks()[number]
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask)["counts"] == expected["counts"].decode("ascii")


def test_runs_that_do_not_fill_the_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="cover 3 pixels of 2 x 2"):
        decode_mask("3", (2, 2))
