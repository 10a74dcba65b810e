from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.arrays import normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.guided_filter import fast_guided_filter
from pipeline.core.kmeans import fit_kmeans
from pipeline.images.correspondences import best_buddies, find_correspondences, nearest_neighbors
from pipeline.images.grabcut import grabcut
from pipeline.images.image_cosegmentation import SetImage, SetOptions, cosegment_images
from pipeline.images.tokencut import normalized_cut
from stages.cosegment.cosegmentation import KmeansOptions, common_labels, fit_parts, three_stage_parts
from stages.cosegment.crf import CrfOptions, dense_crf
from stages.cosegment.foreground import Moments, fit_discriminant, saliency_weight
from stages.cosegment.motion import continuity, dense_flow, moving_evidence, object_motion, small_gray
from stages.cosegment.part_numbers import PartNumbers
from stages.cosegment.reservoir import EvenReservoir
from stages.propagate.instances import split_instances


def scene(size: int = 12, channels: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A square of one kind on a background of another: unit rows and the true mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), bool)
    mask[3:8, 4:9] = True
    directions = np.eye(2, channels)
    rows = directions[mask.astype(int).ravel()] + 0.1 * rng.standard_normal((size * size, channels))
    return normalize_rows(rows), mask


def test_discriminant_learns_the_object_from_noisy_cues() -> None:
    rng = np.random.default_rng(0)
    frames = [scene(seed=s) for s in range(4)]
    rows = [r for r, _ in frames]
    saliency = [(np.where(m.ravel(), 3.0, 0.5) + rng.uniform(0, 2, m.size)).astype(np.float32) for _, m in frames]
    still = [np.zeros(m.size, np.float32) for _, m in frames]
    learnt = fit_discriminant(rows, saliency, still)
    assert learnt is not None
    for r, m in frames:
        assert ((learnt.logits(r) > 0) == m.ravel()).all()


@pytest.mark.parametrize("case", ["constant descriptors", "constant cues", "one cell"])
def test_discriminant_says_none_where_there_is_nothing_to_tell_apart(case: str) -> None:
    rows, mask = scene()
    saliency = mask.ravel().astype(np.float32)
    if case == "constant descriptors":
        rows = np.tile(rows[:1], (len(rows), 1))
    elif case == "constant cues":
        saliency = np.zeros_like(saliency)
    else:
        rows, saliency = rows[:1], saliency[:1]
    assert fit_discriminant([rows], [saliency], [np.zeros_like(saliency)]) is None


def test_fisher_discriminant_matches_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    points = rng.standard_normal((200, 3)).astype(np.float32)
    labels = (points[:, 0] + 0.3 * rng.standard_normal(200) > 0.5).astype(np.float32)
    points -= points.mean(axis=0)
    weights, bias = Moments.of(points, labels).discriminant(0.0)
    one, zero = points[labels > 0], points[labels == 0]
    within = ((one - one.mean(0)).T @ (one - one.mean(0)) + (zero - zero.mean(0)).T @ (zero - zero.mean(0))) / 200
    expected = np.linalg.solve(within, one.mean(0) - zero.mean(0))
    assert np.allclose(weights, expected, rtol=1e-3)
    share = labels.mean()
    middle = -0.5 * (one.mean(0) + zero.mean(0)) @ expected + 0.5 * np.log(share / (1 - share))
    assert np.isclose(bias, middle, atol=1e-3)


def test_object_motion_ignores_the_camera() -> None:
    rng = np.random.default_rng(0)
    import cv2

    texture = cv2.GaussianBlur(rng.integers(0, 255, (300, 400), np.uint8).astype(np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    first, second = texture[20:260, 20:380].copy(), texture[22:262, 23:383].copy()
    first[80:140, 100:180] = texture[200:260, 10:90]
    second[84:144, 108:188] = texture[200:260, 10:90]
    motion = object_motion(
        dense_flow(first, second), PatchGrid.from_input((240, 360), (240, 360), patch_px=10, stride_px=10)
    )
    inside = motion[9:13, 12:16]
    outside = np.concatenate([motion[:5].ravel(), motion[-5:].ravel()])
    assert inside.min() > 3
    assert np.median(outside) < 0.7
    assert moving_evidence(motion)[10, 13] > 0.7


def test_continuity_falls_at_a_cut_and_not_with_motion() -> None:
    rows, _ = scene(channels=32)
    other = normalize_rows(np.random.default_rng(5).standard_normal(rows.shape))
    assert continuity(np.roll(rows, 3, axis=0), rows) > 0.99
    assert continuity(other, rows) < 0.7


def test_small_gray_shrinks_only() -> None:
    assert small_gray(np.zeros((720, 1280, 3), np.uint8)).shape == (240, 427)
    assert small_gray(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60)


def test_parts_without_foreground_are_none() -> None:
    rows, mask = scene()
    options = KmeansOptions(sample_interval=1, iterations=5, redo=1)
    assert fit_parts([rows], [np.zeros(mask.size, bool)], num_parts=4, options=options).shape == (0, rows.shape[1])
    empty = three_stage_parts([rows], [np.zeros(mask.size, bool)], num_parts=4, options=options)
    assert len(empty) == 0


def test_parts_do_not_outnumber_cells() -> None:
    rows, mask = scene()
    few = np.zeros(mask.size, bool)
    few[:2] = True
    options = KmeansOptions(sample_interval=100, iterations=5, redo=1)
    assert len(fit_parts([rows], [few], num_parts=4, options=options)) == 2


def test_three_stages_drop_what_one_frame_lacks() -> None:
    rng = np.random.default_rng(0)
    kinds = np.eye(3, 8)
    first = normalize_rows(np.repeat(kinds, 20, axis=0) + 0.02 * rng.standard_normal((60, 8)))
    second = normalize_rows(np.repeat(kinds[:2], 20, axis=0) + 0.02 * rng.standard_normal((40, 8)))
    options = KmeansOptions(sample_interval=1, iterations=20, redo=3)
    parts = three_stage_parts(
        [first, second], [np.ones(60, bool), np.ones(40, bool)], num_parts=2, options=options, part_elbow=0.9
    )
    assert np.abs(parts @ kinds[2]).max() < 0.2
    assert common_labels([np.array([0, 1, 2]), np.array([0, 1])], 3).tolist() == [True, True, False]


def test_crf_matches_a_naive_one_without_the_bilateral_kernel() -> None:
    rng = np.random.default_rng(0)
    energy = rng.uniform(0, 1, (2, 6, 7)).astype(np.float32)
    image = np.zeros((6, 7, 3), np.uint8)
    options = CrfOptions(smooth_sxy_px=1.0, smooth_weight=2.0, edge_weight=0.0, iterations=3)
    y, x = np.mgrid[0:6, 0:7].reshape(2, -1)
    kernel = np.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 2.0)
    degree = kernel.sum(axis=1)
    kernel = kernel / np.sqrt(degree[:, None] * degree[None])
    flat = energy.reshape(2, -1)
    q = np.exp(-flat) / np.exp(-flat).sum(axis=0)
    for _ in range(3):
        score = 2.0 * (q @ kernel) - flat
        q = np.exp(score) / np.exp(score).sum(axis=0)
    assert np.allclose(dense_crf(energy, image, options).reshape(2, -1), q, atol=0.02)


def test_crf_moves_a_border_to_the_edge_of_the_image() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, 20:] = 255
    energy = np.zeros((2, 30, 40), np.float32)
    energy[0, :, 17:] = 0.2
    energy[1, :, :17] = 0.2
    labels = dense_crf(energy, image, CrfOptions(smooth_weight=1.0)).argmax(axis=0)
    assert labels[:, 21:].min() == 1
    assert labels[:, :15].max() == 0
    with pytest.raises(ValueError, match="do not lie"):
        dense_crf(energy, image[:-1])


def test_guided_filter_follows_the_edge_and_keeps_constants() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 42:] = 200
    soft = np.zeros((1, 6, 8), np.float32)
    soft[:, :, 4:] = 1
    out = fast_guided_filter(image, soft, radius_px=8)[0]
    assert out[:, 43:].min() > out[:, :41].max()
    flat = fast_guided_filter(image, np.full((1, 6, 8), 0.3, np.float32), radius_px=8)
    assert np.allclose(flat, 0.3, atol=1e-3)


def test_instances_are_joined_over_a_gap_when_alike_and_kept_apart_when_not() -> None:
    foreground = np.zeros((8, 12), np.float32)
    foreground[2:6, 1:5] = foreground[2:6, 7:11] = 1
    alike = np.ones((2, 8, 12), np.float32)
    assert split_instances(foreground, alike).max() == 1
    different = alike.copy()
    different[0, :, 6:] = -1
    found = split_instances(foreground, different)
    assert sorted(np.unique(found).tolist()) == [0, 1, 2]
    assert split_instances(np.zeros((8, 12)), alike).max() == 0


def test_part_numbers_survive_reordering_absence_and_return() -> None:
    numbers = PartNumbers(match_distance=0.5)
    looks = np.eye(4, 8, dtype=np.float32)
    assert numbers.assign(looks[:3]) == 0
    assert numbers.current.tolist() == [1, 2, 3]
    assert numbers.assign(looks[[3, 1]]) == 1
    assert numbers.current.tolist() == [4, 2]
    assert numbers.assign(looks[[2, 0]]) == 2
    assert numbers.current.tolist() == [3, 1]


def test_known_parts_are_used_again_where_they_fit() -> None:
    """A new fit on the same things would divide them differently and change the numbers."""
    rng = np.random.default_rng(0)
    rows = normalize_rows(np.repeat(np.eye(4, 8), 30, axis=0) + 0.05 * rng.standard_normal((120, 8)))
    numbers = PartNumbers(match_distance=0.05)
    numbers.assign(rows[::30])
    other = fit_kmeans(rows, 4, iterations=20, redo=2)
    recalled = numbers.recall(rows, other)
    assert numbers.assign(recalled) == 4
    assert sorted(numbers.current.tolist()) == [1, 2, 3, 4]
    strange = normalize_rows(np.repeat(np.eye(2, 8, 5), 30, axis=0) + 0.05 * rng.standard_normal((60, 8)))
    fitted = fit_kmeans(strange, 2, iterations=20, redo=2)
    assert numbers.recall(strange, fitted) is fitted


def test_part_numbers_stay_within_what_an_indexed_image_holds() -> None:
    numbers = PartNumbers(match_distance=1e-6)
    for start in range(0, 400, 4):
        numbers.assign(np.eye(4, 400, start, dtype=np.float32))
    assert numbers.exhausted
    assert numbers.current.max() <= 255
    assert len(set(numbers.current.tolist())) == 4


def test_reservoir_is_bounded_and_even() -> None:
    reservoir: EvenReservoir[int] = EvenReservoir(8)
    for number in range(1000):
        if reservoir.wants_next():
            reservoir.add(number)
        else:
            reservoir.skip()
        assert len(reservoir.items) <= 8
    steps = np.diff(reservoir.items)
    assert (steps == reservoir.stride).all()
    assert reservoir.items[-1] >= 1000 - reservoir.stride - 128


def test_neighbors_in_chunks_match_the_whole() -> None:
    rng = np.random.default_rng(0)
    a, b = (normalize_rows(rng.standard_normal((n, 6))) for n in (23, 17))
    whole = a @ b.T
    forward, backward = nearest_neighbors(a, b, chunk=5)
    assert (forward == whole.argmax(axis=1)).all()
    assert (backward == whole.argmax(axis=0)).all()
    first, second = best_buddies(a, b)
    assert all(whole[i].argmax() == j and whole[:, j].argmax() == i for i, j in zip(first, second, strict=True))


def test_correspondences_are_foreground_buddies_and_may_be_none() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 8)).astype(np.float32)
    order = rng.permutation(30)
    salient = np.linspace(0, 1, 30).astype(np.float32)
    found = find_correspondences((rows, rows[order]), (salient, salient[order]), num_pairs=5, threshold=0.5)
    assert len(found.first) == 5
    assert (order[found.second] == found.first).all()
    assert (salient[found.first] > 0.5).all()
    assert (np.diff(found.score) <= 0).all()
    none = find_correspondences((rows, rows), (0 * salient, 0 * salient))
    assert len(none.first) == 0


def test_normalized_cut_finds_the_square() -> None:
    rows, mask = scene()
    cut = normalized_cut(rows.T.reshape(-1, *mask.shape), threshold=0.5)
    assert cut.box_cells == (4, 3, 9, 8)
    assert (cut.foreground == mask).all()


def test_normalized_cut_of_a_constant_map_is_everything() -> None:
    assert normalized_cut(np.ones((4, 3, 5))).box_cells == (0, 0, 5, 3)


def test_grabcut_grows_to_the_colour_and_leaves_hopeless_masks() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[15:45, 15:45] = (255, 0, 0)
    mask = np.zeros((60, 60), bool)
    mask[18:42, 18:42] = True
    found = grabcut(image, mask)
    assert found[16:44, 16:44].all()
    assert found.sum() <= 32 * 32
    assert not grabcut(image, np.zeros((60, 60), bool)).any()


def make_set(count: int = 3) -> list[SetImage]:
    images = []
    for seed in range(count):
        rows, mask = scene(seed=seed)
        grid = PatchGrid.from_input((48, 48), (48, 48), patch_px=4, stride_px=4)
        picture = np.kron(mask, np.ones((4, 4))).astype(np.uint8)[..., None] * np.array([200, 90, 30], np.uint8)
        images.append(SetImage(picture.astype(np.uint8), grid, rows, mask.ravel().astype(np.float32), rows[0]))
    return images


OPTIONS = KmeansOptions(sample_interval=1, iterations=20, redo=2, max_clusters=4)


@pytest.mark.parametrize("method", ["vote", "discriminant"])
def test_image_set_shares_foreground_and_parts(method: str) -> None:
    options = SetOptions(OPTIONS, method=method, num_parts=2, crf=False)  # type: ignore[arg-type]
    results = cosegment_images(make_set(), options)
    for result in results:
        truth = np.zeros((48, 48), bool)
        truth[12:32, 16:36] = True
        assert (result.foreground & truth).sum() / (result.foreground | truth).sum() > 0.9
        assert set(np.unique(result.parts)) <= {0, 1, 2}


def test_outliers_come_back_empty_and_in_place() -> None:
    images = make_set()
    odd = images[1]
    images[1] = SetImage(odd.image, odd.grid, odd.rows, odd.saliency, -odd.rows[0])
    results = cosegment_images(images, SetOptions(OPTIONS, num_parts=2, crf=False, outlier_cosine=0.3))
    assert [result.outlier for result in results] == [False, True, False]
    assert not results[1].foreground.any()
    assert results[2].foreground.any()


def test_set_with_nothing_salient_gives_empty_masks() -> None:
    images = [SetImage(i.image, i.grid, i.rows, 0 * i.saliency, i.cls) for i in make_set()]
    for result in cosegment_images(images, SetOptions(OPTIONS)):
        assert not result.foreground.any()
        assert not result.parts.any()


def test_augmentations_do_not_come_back() -> None:
    images = make_set(2)
    copies = [SetImage(i.image, i.grid, i.rows, i.saliency, i.cls, original=False) for i in images]
    assert len(cosegment_images([images[0], *copies, images[1]], SetOptions(OPTIONS, num_parts=2, crf=False))) == 2


def test_the_discriminant_learns_what_is_known_to_be_background() -> None:
    """Two clusters look salient; told that one of them is background, only the other stays foreground."""
    random = np.random.default_rng(3)
    axes = np.eye(8, dtype=np.float32)
    kinds = np.repeat([0, 1, 2], [300, 40, 40])
    rows = normalize_rows((axes[kinds] + 0.1 * random.normal(size=(380, 8))).astype(np.float32))
    saliency = np.where(kinds > 0, 4.0, 0.5).astype(np.float32)
    motion = np.zeros(380, np.float32)
    learnt = fit_discriminant([rows], [saliency], [motion])
    assert learnt is not None
    assert (learnt.logits(rows)[kinds == 1] > 0).all()
    assert (learnt.logits(rows)[kinds == 2] > 0).all()
    for _ in range(4):
        learnt = learnt.updated(rows, saliency, motion, 0.0, background=kinds == 2)
    assert (learnt.logits(rows)[kinds == 1] > 0).all()
    assert not (learnt.logits(rows)[kinds != 1] > 0).any()


def test_saliency_counts_less_where_a_clear_motion_contradicts_it() -> None:
    moving = np.repeat(np.array([1.0, 0.0], np.float32), 50)
    elsewhere = 1.0 - moving
    unrelated = np.tile(np.array([1.0, 0.0], np.float32), 50)
    assert saliency_weight(moving, moving) == 1.0
    assert saliency_weight(unrelated, moving) == pytest.approx(0.05)
    assert saliency_weight(elsewhere, moving) == pytest.approx(0.05)
    assert saliency_weight(elsewhere, np.zeros_like(moving)) == 1.0
    assert saliency_weight(elsewhere, 0.3 * moving) == pytest.approx(0.5)  # a faint motion is half a witness
