"""The coarse-to-fine search against a dense comparison, and what it may lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.records import Features, Frame, Packet, PatchGrid
from pipeline.core.state import load_state, save_state
from stages.propagate import Propagator
from stages.propagate.coarse_to_fine import CoarseToFine
from stages.propagate.config import PropagateConfig
from stages.propagate.label_memory import Memory
from stages.propagate.search import LabelSearch
from stages.propagate.windows import Window

DEFAULTS: dict[str, Any] = {
    "top_k": 5,
    "temperature": 0.1,
    "keep_ties": True,
    "motion": None,
    "max_bytes": 2**28,
}


def channels_last(values: Tensor) -> Tensor:
    return values.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def random_inputs(
    coarse_hw: tuple[int, int], parts: int, contexts: int = 3, labels: int = 3, channels: int = 8
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (coarse_hw[0] * parts, coarse_hw[1] * parts)
    maps = [torch.randn(channels, *shape, generator=generator) for _ in range(contexts + 1)]
    features = [channels_last(F.normalize(values, dim=0)) for values in maps]
    soft = [torch.randn(labels, *shape, generator=generator).softmax(0) for _ in range(contexts)]
    return features[0], features[1:], soft


def dense(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    windows: Sequence[Window],
    parts: int,
    *,
    top_k: int = 5,
    temperature: float = 0.1,
    motion: Tensor | None = None,
) -> Tensor:
    """All fine cells of all coarse cells inside the windows, cell by cell."""
    _, height, width = target.shape
    out = torch.zeros(len(labels[0]), height, width)
    rows, columns = torch.arange(height) // parts, torch.arange(width) // parts
    if motion is not None:
        motion = F.avg_pool2d(motion, parts) / parts
    for row in range(height):
        for column in range(width):
            similarities = []
            down, right = (rows - row // parts)[:, None].float(), (columns - column // parts).float()
            for context, window in zip(contexts, windows, strict=True):
                similarity = torch.einsum("c,chw->hw", target[:, row, column], context)
                squared = down**2 + right**2
                if motion is not None:
                    moved = motion[:, row // parts, column // parts] * window.prior_frames
                    squared = torch.minimum(squared, (down - moved[0]) ** 2 + (right - moved[1]) ** 2)
                factor, cap = window.prior(temperature)
                similarities.append(similarity + factor * squared.clamp(max=cap) + window.mask(down, right))
            values = torch.stack(similarities).flatten()
            votes = torch.stack(list(labels), dim=1).flatten(1)
            least = values.topk(min(top_k, len(values))).values
            weights = torch.exp((values - least[0]) / temperature)
            weights = weights.masked_fill(values < least[-1], 0)
            out[:, row, column] = (votes * weights).sum(1) / weights.sum()
    return out


CASES = {
    "square": [Window(2)] * 3,
    "disc, references as a whole": [Window(None), Window(2, "disc"), Window(2, "disc")],
    "priors": [Window(2), *(Window(2, prior_sigma_cells=s, prior_floor=0.3) for s in (1.0, 0.5))],
    "no window": [Window(0)] * 3,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("coarse_hw", "parts"), [((5, 7), 2), ((1, 3), 2), ((2, 3), 4), ((9, 9), 2)])
def test_with_every_coarse_cell_as_candidate_it_equals_the_dense_comparison(
    case: str, coarse_hw: tuple[int, int], parts: int
) -> None:
    target, contexts, labels = random_inputs(coarse_hw, parts)
    search = CoarseToFine(parts, search_dtype=torch.float32, candidates=1000)
    got = search(target, contexts, labels, windows=CASES[case], **DEFAULTS)
    want = dense(target, contexts, labels, CASES[case], parts)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_a_prior_around_motion_is_that_of_the_coarse_cells() -> None:
    target, contexts, labels = random_inputs((5, 6), 2)
    windows = [Window(2), *(Window(3, prior_sigma_cells=1, prior_floor=0.2, prior_frames=n) for n in (2, 1))]
    motion = 3 * torch.rand(2, 10, 12, generator=torch.Generator().manual_seed(3)) - 1.5
    search = CoarseToFine(2, search_dtype=torch.float32, candidates=1000)
    got = search(target, contexts, labels, windows=windows, **DEFAULTS | {"motion": motion})
    torch.testing.assert_close(got, dense(target, contexts, labels, windows, 2, motion=motion), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_ties", [True, False])
def test_ties_vote_only_where_they_are_kept(keep_ties: bool) -> None:
    """Few distinct descriptors, exactly representable: nearly every threshold is shared by many cells."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(3, (4, 8, 12), generator=generator)
    maps = [channels_last(values) for values in F.one_hot(kinds, 3).permute(0, 3, 1, 2).float()]
    labels = [torch.full((1, 8, 12), float(2**n)) for n in range(3)]
    search = CoarseToFine(2, search_dtype=torch.float32, candidates=1000)
    settings = DEFAULTS | {"keep_ties": keep_ties, "top_k": 2}
    got = search(maps[0], maps[1:], labels, windows=[Window(2)] * 3, **settings)
    if keep_ties:
        want = dense(maps[0], maps[1:], labels, [Window(2)] * 3, 2, top_k=2)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    else:
        assert set(got.flatten().tolist()) <= {1.0, 1.5, 2.0, 2.5, 3.0, 4.0}


@pytest.mark.parametrize("max_bytes", [1, 20_000])
def test_the_memory_ceiling_does_not_change_which_cells_may_vote(max_bytes: int) -> None:
    target, contexts, labels = random_inputs((10, 13), 2)
    search = CoarseToFine(2, search_dtype=torch.float32, candidates=1000)
    windows = [Window(3)] * 3
    got = search(target, contexts, labels, windows=windows, **DEFAULTS | {"max_bytes": max_bytes})
    torch.testing.assert_close(got, search(target, contexts, labels, windows=windows, **DEFAULTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_texture_is_followed_with_the_default_candidates(dtype: torch.dtype) -> None:
    """A texture with detail below the coarse cells moves by odd numbers of fine ones; each has its own label."""
    generator = torch.Generator().manual_seed(2)
    smooth = F.interpolate(torch.randn(1, 32, 20, 24, generator=generator), size=(60, 72), mode="bicubic")[0]
    texture = F.normalize(smooth + 0.2 * torch.randn(32, 60, 72, generator=generator), dim=0)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(72.0), indexing="ij")
    places = torch.stack([rows, columns])

    def seen(down: int, right: int) -> tuple[Tensor, Tensor]:
        window = (slice(None), slice(10 + down, 42 + down), slice(10 + right, 58 + right))
        return channels_last(texture[window]), places[window]

    target, want = seen(0, 0)
    contexts, labels = zip(*(seen(3 * n, -5 * n) for n in (0, 1, 2)), strict=True)
    search = CoarseToFine(2, search_dtype=dtype)
    got = search(target, contexts, labels, windows=[Window(12)] * 3, **DEFAULTS | {"temperature": 0.01})
    inside = (slice(None), slice(6, None), slice(None, -10))  # what every context shows
    assert float(((got - want)[inside].abs().amax(0) < 0.5).float().mean()) > 0.98


def test_what_is_remembered_of_frames_does_not_change_results() -> None:
    target, contexts, labels = random_inputs((5, 7), 2, contexts=5)
    windows = [Window(2)] * 3
    used = CoarseToFine(2, search_dtype=torch.float32)
    for first in (0, 2, 1, 0):
        chosen = slice(first, first + 3)
        got = used(target, contexts[chosen], labels[chosen], windows=windows, **DEFAULTS)
        fresh = CoarseToFine(2, search_dtype=torch.float32)
        torch.testing.assert_close(
            got, fresh(target, contexts[chosen], labels[chosen], windows=windows, **DEFAULTS), atol=0, rtol=0
        )
        target = contexts[(first + 3) % 5]


def test_a_video_of_another_size_may_follow() -> None:
    search = CoarseToFine(2, search_dtype=torch.float32)
    for coarse_hw in ((5, 7), (3, 4)):
        target, contexts, labels = random_inputs(coarse_hw, 2)
        got = search(target, contexts, labels, windows=[Window(2)] * 3, **DEFAULTS)
        torch.testing.assert_close(got.sum(0), torch.ones(target.shape[1:]))


def test_a_grid_of_broken_coarse_cells_is_refused() -> None:
    target, contexts, labels = random_inputs((3, 3), 1)
    with pytest.raises(ValueError, match="a grid of 3 x 3 is not made of 2 x 2 parts"):
        CoarseToFine(2, search_dtype=torch.float32)(target, contexts, labels, windows=[Window(2)] * 3, **DEFAULTS)


@pytest.mark.parametrize("search", ["exact", "coarse"])
@pytest.mark.parametrize(("unit", "reached"), [("patch", True), ("cell", False)])
def test_a_radius_in_patches_covers_the_same_pixels_on_a_finer_grid(search: str, unit: str, reached: bool) -> None:
    """Something 12 fine cells away, which is 6 patches, is within a radius of 6 patches and not of 6 cells."""
    generator = torch.Generator().manual_seed(4)
    target, context, label = (torch.zeros(4, 8, 32) for _ in range(3))
    target[:] = context[:] = 0.1 * torch.randn(4, 1, 1, generator=generator)
    target[0, 2:4, 4:6] = context[0, 2:4, 16:18] = 5
    label[1, 2:4, 16:18] = 1
    frames = [channels_last(F.normalize(values, dim=0)) for values in (target, context)]
    settings = PropagateConfig(radius_cells=6, radius_unit=unit, search=search, top_k=1)
    labels = LabelSearch(settings, search_dtype=torch.float32, cells_per_patch=2)(
        frames[0], [Memory(0, frames[1], label)], [Window(6)]
    )
    assert bool(labels[1, 2, 4] > 0.9) is reached


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_converted_earlier_give_the_same_labels(dtype: torch.dtype) -> None:
    frames = [random_inputs((4, 5), 2, contexts=5)[1][n] for n in range(5)]
    labels = random_inputs((4, 5), 2, contexts=5)[2]
    search = LabelSearch(PropagateConfig(), search_dtype=dtype)
    for last in (2, 3, 4):
        entries = [Memory(n, frames[n], labels[n]) for n in range(last - 2, last)]
        fresh = LabelSearch(PropagateConfig(), search_dtype=dtype)
        windows = [Window(3)] * 2
        torch.testing.assert_close(
            search(frames[last], entries, windows), fresh(frames[last], entries, windows), atol=0, rtol=0
        )


@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_a_restored_propagator_goes_on_bit_for_bit(done: int, tmp_path: Path) -> None:
    """With LiFT's grid of twice the cells; what the search remembers is not part of the state."""
    generator = torch.Generator().manual_seed(5)
    grid = PatchGrid((48, 64), (12, 16), (4.0, 4.0), (2.0, 2.0))
    mask = np.zeros((48, 64), np.uint8)
    mask[8:24, 12:32] = 1
    texture = torch.randn(16, 12, 40, generator=generator)
    frames = [
        Packet(Frame(np.zeros((48, 64, 3), np.uint8), n, n / 24), Features(texture[:, :, n : n + 16], grid))
        for n in range(10)
    ]

    def run(packets: list[Packet], propagator: Propagator) -> list[Tensor]:
        found = [propagator.step(packet, mask if packet.index in (0, 5) else None) for packet in packets]
        return [packet.labels.probs for packet in found if packet.labels is not None]

    def fresh() -> Propagator:
        return Propagator(PropagateConfig(), masks={}, search_dtype=torch.bfloat16, cells_per_patch=2)

    want = run(frames, fresh())
    broken_off, resumed = fresh(), fresh()
    run(frames[:done], broken_off)
    save_state(tmp_path, "propagate", broken_off.state())
    resumed.restore(load_state(tmp_path, "propagate"))
    for got, expected in zip(run(frames[done:], resumed), want[done:], strict=True):
        assert torch.equal(got, expected)
