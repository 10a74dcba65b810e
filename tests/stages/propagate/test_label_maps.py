from __future__ import annotations

import resource
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.core.records import PatchGrid
from stages.propagate.label_maps import (
    decode_labels,
    encode_mask,
    pack_cells,
    refine_labels,
    resize_nearest,
    stretch_channel,
    unpack_cells,
)
from stages.propagate.label_memory import LabelMemory, Memory

GRID = PatchGrid((30, 44), (5, 11), (6.0, 4.0), (3.0, 2.0))


def random_mask(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 4, GRID.image_hw).astype(np.uint8)


def test_nearest_labels_are_pillows() -> None:
    """At DAVIS's size too, where the center of some cells falls between two pixels."""
    davis = PatchGrid.from_input((480, 854), (476, 840), patch_px=14, stride_px=14)
    for grid in (GRID, davis):
        mask = np.random.default_rng(0).integers(0, 4, grid.image_hw).astype(np.uint8)
        resized = np.asarray(Image.fromarray(mask).resize(grid.grid_hw[::-1], Image.Resampling.NEAREST))
        labels = encode_mask(mask, [1, 2, 3], grid, sampling="nearest").labels
        np.testing.assert_array_equal(labels.argmax(0).numpy(), resized)


def test_area_labels_are_the_covered_share() -> None:
    mask = random_mask()
    labels = encode_mask(mask, [1, 2, 3], GRID, sampling="area").labels
    for number in range(4):
        shares = (mask == number).reshape(5, 6, 11, 4).mean(axis=(1, 3))
        np.testing.assert_allclose(labels[number].numpy(), shares, atol=1e-6)


def test_void_counts_for_no_object() -> None:
    mask = np.full(GRID.image_hw, 255, np.uint8)
    mask[:3, :4] = 2  # half of the first cell, the rest of it void
    labels = encode_mask(mask, [2], GRID, sampling="area").labels
    assert float(labels[1, 0, 0]) == pytest.approx(1.0)


def test_bilinear_labels_interpolate_at_the_centers() -> None:
    mask = random_mask()
    want = F.interpolate(torch.from_numpy(mask == 2)[None, None].float(), size=(5, 11), mode="bilinear")[0, 0]
    torch.testing.assert_close(encode_mask(mask, [1, 2, 3], GRID, sampling="bilinear").labels[2], want)


@pytest.mark.parametrize("sampling", ["nearest", "bilinear", "area"])
def test_labels_on_overlapping_patches_lie_at_true_centers(
    sampling: Literal["nearest", "bilinear", "area"],
) -> None:
    """At stride 7 the cells do not reach the frame's border: a plain resize is wrong by up to half a patch."""
    strided = PatchGrid.from_input((140, 140), (140, 140), patch_px=14, stride_px=7)
    mask = np.zeros((140, 140), np.uint8)
    mask[:35] = 1
    rows = encode_mask(mask, [1], strided, sampling=sampling).labels[1, :, 0]
    centers = strided.cell_centers()[:, 0, 1]
    assert torch.equal(rows[centers < 31], torch.ones(int((centers < 31).sum())))
    assert not rows[centers > 39].any()


@pytest.mark.parametrize("factor", [None, 7, 14])
def test_maps_of_overlapping_patches_end_where_their_mask_did(factor: int | None) -> None:
    """DINO's upsampling by the patch too: its map covers the cells, which is less than the frame at stride 7."""
    strided = PatchGrid.from_input((140, 140), (140, 140), patch_px=14, stride_px=7)
    mask = np.zeros((140, 140), np.uint8)
    mask[:35], mask[105:] = 1, 2
    labels = encode_mask(mask, [1, 2], strided, sampling="area").labels
    decoded = decode_labels(labels, [1, 2], strided, upsample_factor=factor)
    assert np.count_nonzero(decoded != mask) <= 140 * 2


def test_many_objects_are_encoded_without_a_stack_at_the_frames_size() -> None:
    """Labels of 200 objects: K x H x W in float64 would be 1.6 GB here."""
    grid = PatchGrid.covering((1000, 1000), (50, 50))
    mask = (np.arange(1000)[:, None] // 72 * 14 + np.arange(1000) // 72 + 1).astype(np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    labels = encode_mask(mask, list(range(1, 197)), grid, sampling="area").labels
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    torch.testing.assert_close(labels.sum(0), torch.ones(50, 50))


def test_two_objects_in_one_cell_get_a_cell_each() -> None:
    mask = np.zeros(GRID.image_hw, np.uint8)
    mask[0, 0], mask[0, 3] = 1, 2
    encoded = encode_mask(mask, [1, 2], GRID, sampling="nearest")
    assert encoded.rescued == (1, 2)
    assert [int(channel.sum()) for channel in encoded.labels[1:]] == [1, 1]
    torch.testing.assert_close(encoded.labels.sum(0), torch.ones(5, 11))


def test_nearest_resizing_is_pillows() -> None:
    values = random_mask()
    for size in ((7, 9), (30, 44), (61, 100)):
        want = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
        np.testing.assert_array_equal(resize_nearest(torch.from_numpy(values), size).numpy(), want)


def test_dinos_output_step() -> None:
    """Upsampled by the patch, each channel stretched, the largest, nearest to the frame: in one go."""
    labels = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)).softmax(0)
    maps = F.interpolate(labels[None], scale_factor=8, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    winners = np.array([0, 4, 9], np.uint8)[((maps - low) / (high - low)).argmax(0).numpy()]
    want = np.asarray(Image.fromarray(winners).resize((44, 30), Image.Resampling.NEAREST))
    got = decode_labels(labels, [4, 9], GRID, stretch="channel", upsample_factor=8)
    np.testing.assert_array_equal(got, want)


def test_an_object_whose_map_is_zero_has_no_pixels() -> None:
    labels = torch.zeros(3, 5, 11)
    labels[0], labels[1, 2, 3] = 1.0, 0.2
    assert set(np.unique(decode_labels(labels, [1, 2], GRID, stretch="channel"))) <= {0, 1}


def test_constant_maps_are_not_stretched() -> None:
    assert torch.equal(stretch_channel(torch.full((2, 2), 0.5)), torch.full((2, 2), 0.5))
    assert torch.equal(stretch_channel(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_the_object_weight_moves_the_border() -> None:
    labels = torch.stack([torch.full((5, 11), 0.52), torch.full((5, 11), 0.48)])
    assert not decode_labels(labels, [1], GRID).any()
    assert decode_labels(labels, [1], GRID, object_weight=1.13).all()


def test_packed_cells_unpack_again() -> None:
    labels = torch.rand(3, 15, 33)
    packed = pack_cells(labels, 3)
    assert packed.shape == (27, 5, 11)
    torch.testing.assert_close(packed[:9, 0, 0], labels[0, :3, :3].flatten())
    torch.testing.assert_close(unpack_cells(packed, 3), labels)


def test_refined_maps_follow_the_edge_of_the_frame() -> None:
    """An object's border lies within a cell; the frame says where."""
    image = np.zeros((30, 44, 3), np.uint8)
    image[:, 22:] = 200
    soft = torch.linspace(0, 1, 11).expand(5, 11)
    labels = torch.stack([1 - soft, soft])
    refined = refine_labels(labels, image, GRID, cell_px=4, radius_px=4, epsilon=1e-4)
    assert refined.shape == (2, 20, 44)
    torch.testing.assert_close(refined.sum(0), torch.ones(20, 44))
    plain = GRID.upsample(labels, (20, 44))
    step, plain_step = (maps[1, :, 22] - maps[1, :, 21] for maps in (refined, plain))
    assert float(step.min()) > 3 * float(plain_step.max())


def memory(index: int, *given: int) -> Memory:
    return Memory(index, torch.zeros(1, 1, 1), torch.zeros(4, 1, 1), frozenset(given))


def test_memory_keeps_the_first_and_the_latest_frames() -> None:
    kept = LabelMemory(3)
    kept.add_reference(memory(0, 1))
    for index in range(1, 10):
        kept.push(memory(index))
    assert [entry.frame_index for entry in kept.entries()] == [0, 7, 8, 9]


def test_memory_drops_the_reference_that_newer_ones_cover() -> None:
    kept = LabelMemory(3, max_references=3)
    for index, given in enumerate([(1,), (2,), (1, 2)]):
        assert kept.add_reference(memory(index, *given)) is None
    assert kept.add_reference(memory(3, 3)) == 1
    assert kept.add_reference(memory(4, 3)) == 3
    assert [entry.frame_index for entry in kept.references] == [0, 2, 4]


def test_memory_starts_with_copies_of_the_first_frame() -> None:
    kept = LabelMemory(4, prefix_copies=4)
    kept.add_reference(memory(0, 1))
    kept.push(memory(1))
    assert [entry.frame_index for entry in kept.entries()] == [0, 0, 0, 0, 1]
