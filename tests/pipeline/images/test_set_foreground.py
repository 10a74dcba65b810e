from __future__ import annotations

import numpy as np

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.images.image_cosegmentation import SetImage, SetOptions, cosegment_images
from pipeline.images.set_foreground import fit_shared_foreground, object_evidence
from stages.cosegment.cosegmentation import KmeansOptions

HW = (12, 12)


def picture(seed: int) -> tuple[FloatArray, np.ndarray]:
    """Unit descriptors ``(N, 16)`` of an object on a ground of two kinds, and its cells."""
    random = np.random.default_rng(seed)
    kinds = np.zeros(HW, int)
    kinds[:, 6:] = 1
    top, left = random.integers(2, 5, size=2)
    kinds[top : top + 5, left : left + 5] = 2
    rows = np.eye(16, dtype=np.float32)[kinds.ravel()] + random.normal(0, 0.05, (kinds.size, 16))
    return normalize_rows(rows.astype(np.float32)), kinds.ravel() == 2


def maps(rows: FloatArray) -> FloatArray:
    return np.ascontiguousarray(rows.T.reshape(-1, *HW))


def test_what_is_learned_from_the_set_holds_for_an_image_without_evidence() -> None:
    pictures = [picture(seed) for seed in range(4)]
    evidence = [object_evidence(maps(rows), truth.reshape(HW).astype(np.float32)) for rows, truth in pictures]
    evidence[3] = np.zeros_like(evidence[3])
    learned = fit_shared_foreground([rows for rows, _ in pictures], evidence)
    assert learned is not None
    for rows, truth in (*pictures, picture(9)):
        assert np.mean((learned(rows) > 0) == truth) > 0.97


def test_evidence_is_standardized_and_flat_where_nothing_differs() -> None:
    rows, truth = picture(0)
    evidence = object_evidence(maps(rows), truth.reshape(HW).astype(np.float32))
    assert abs(float(evidence.mean())) < 1e-5
    np.testing.assert_allclose(evidence.std(), 1.0, atol=1e-5)
    assert evidence[truth].min() > evidence[~truth].mean()
    assert not object_evidence(np.ones((4, *HW), np.float32), np.full(HW, 0.3, np.float32)).any()


def test_equal_cells_have_no_foreground() -> None:
    rows = np.tile(np.eye(16, dtype=np.float32)[:1], (144, 1))
    assert fit_shared_foreground([rows], [np.zeros(144, np.float32)]) is None
    grid = PatchGrid.from_input((48, 48), (48, 48), patch_px=4, stride_px=4)
    nothing = np.zeros(144, np.float32)
    flat = SetImage(np.zeros((48, 48, 3), np.uint8), grid, rows, nothing, evidence=nothing)
    options = SetOptions(KmeansOptions(sample_interval=1), method="discriminant", crf=False)
    (result,) = cosegment_images([flat], options)
    assert not result.foreground.any()
    assert not result.parts.any()


def test_parts_are_clustered_on_their_own_rows() -> None:
    """Rows that tell left from right in the object divide it there; the foreground's own rows do not."""
    images, lefts = [], []
    grid = PatchGrid.from_input((48, 48), (48, 48), patch_px=4, stride_px=4)
    for seed in range(3):
        rows, truth = picture(seed)
        columns = np.indices(HW)[1].ravel()
        left = truth & (columns < columns[truth].min() + 2)
        image = np.zeros((48, 48, 3), np.uint8)
        evidence = object_evidence(maps(rows), truth.reshape(HW).astype(np.float32))
        part_rows = np.eye(4, dtype=np.float32)[np.where(left, 1, 0)]
        images.append(SetImage(image, grid, rows, 0 * evidence, evidence=evidence, part_rows=part_rows))
        lefts.append((left.reshape(HW), truth.reshape(HW)))
    options = SetOptions(
        KmeansOptions(sample_interval=1), method="discriminant", num_parts=2, crf=False, grabcut=False
    )
    numbers = set()
    for result, (left, truth) in zip(cosegment_images(images, options), lefts, strict=True):
        cells = result.parts[2::4, 2::4]
        for cell_mask in (left, truth & ~left):
            found = cells[cell_mask]
            assert len(set(found[found > 0].tolist())) == 1
            assert (found > 0).any()  # pixels at the edge are interpolated
        numbers.add((int(cells[left].max()), int(cells[truth & ~left].max())))
    assert len(numbers) == 1  # the same numbers in all images
    assert len(set(numbers.pop())) == 2
