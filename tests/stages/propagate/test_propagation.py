"""Windowed top-k propagation against a dense version written from the protocol, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.presets import load_preset
from stages.decode import DecodeConfig, Decoder, probe
from stages.extract import ExtractConfig, Extractor
from stages.propagate.config import PropagateConfig, at_distance, make_windows
from stages.propagate.propagation import Window, propagate_labels

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "davis.yaml"


def random_inputs(
    shape: tuple[int, int, int], contexts: int, labels: int, seed: int = 0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    features = [F.normalize(torch.randn(shape, generator=generator), dim=0) for _ in range(contexts + 1)]
    soft = [torch.randn((labels, *shape[1:]), generator=generator).softmax(0) for _ in range(contexts)]
    return features[0], features[1:], soft


def allowed(window: Window, row_offset: int, column_offset: int) -> bool:
    radius = window.radius_cells
    if not radius:
        return True
    if window.shape == "square":
        return abs(row_offset) <= radius and abs(column_offset) <= radius
    distance = (row_offset**2 + column_offset**2) ** 0.5
    return bool(distance <= radius if window.inclusive else distance < radius)


def naive(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    windows: Sequence[Window],
    *,
    top_k: int,
    temperature: float,
    keep_ties: bool,
    motion: Tensor | None = None,
) -> Tensor:
    """Protocol 3.1, steps 2 to 5, cell by cell; videowalk's selection without ``keep_ties``."""
    _, height, width = target.shape
    out = torch.zeros(labels[0].shape[0], height, width)
    for row, column in itertools.product(range(height), range(width)):
        weights: list[Tensor] = []
        votes: list[Tensor] = []
        for context, label, window in zip(contexts, labels, windows, strict=True):
            near = [
                (r, c)
                for r, c in itertools.product(range(height), range(width))
                if allowed(window, r - row, c - column)
            ]
            rows, columns = (torch.tensor(values) for values in zip(*near, strict=True))
            weight = torch.exp((target[:, row, column] @ context[:, rows, columns]) / temperature)
            if window.prior_sigma_cells:
                down, right = (0.0, 0.0) if motion is None else motion[:, row, column].tolist()
                down, right = down * window.prior_frames, right * window.prior_frames
                moved = (rows - row - down) ** 2 + (columns - column - right) ** 2
                squared = torch.minimum(((rows - row) ** 2 + (columns - column) ** 2).float(), moved.float())
                prior = torch.exp(-squared / (2 * window.prior_sigma_cells**2))
                weight = weight * prior.clamp(min=window.prior_floor or 0)
            weights += weight.unbind()
            votes += label[:, rows, columns].unbind(1)
        weight, vote = torch.stack(weights), torch.stack(votes)
        k = min(top_k, len(weight))
        if keep_ties:
            weight = torch.where(weight < weight.sort(descending=True).values[k - 1], 0.0, weight)
        else:
            best = weight.sort(descending=True, stable=True).indices[:k]
            weight, vote = weight[best], vote[best]
        out[:, row, column] = (weight[:, None] * vote).sum(0) / weight.sum()
    return out


SQUARE = Window(3)
DISC = Window(3, "disc")
CASES = {
    "dino": ([SQUARE] * 3, 5, 0.1, True),
    "videowalk, first frame exempt": ([Window(None), DISC, DISC], 10, 0.05, False),
    "dinov3": ([Window(3, "disc", inclusive=True)] * 3, 5, 0.2, True),
    "no window": ([Window(0)] * 3, 5, 0.1, True),
    "motion prior that differs": ([SQUARE, *(Window(3, prior_sigma_cells=s) for s in (2.0, 1.0))], 7, 0.07, True),
    "motion prior with a floor": ([Window(3, prior_sigma_cells=1.5, prior_floor=0.3)] * 3, 7, 0.07, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(7, 11), (3, 3), (1, 9), (17, 10)])
def test_equals_the_naive_version(case: str, size: tuple[int, int]) -> None:
    windows, top_k, temperature, ties = CASES[case]
    target, contexts, labels = random_inputs((8, *size), 3, 3)
    got = propagate_labels(
        target, contexts, labels, windows=windows, top_k=top_k, temperature=temperature, keep_ties=ties
    )
    want = naive(target, contexts, labels, windows, top_k=top_k, temperature=temperature, keep_ties=ties)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(7, 11), (3, 3), (13, 18)])
def test_a_search_in_16_bits_equals_the_naive_version_on_rounded_descriptors(
    case: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    windows, top_k, temperature, ties = CASES[case]
    target, contexts, labels = random_inputs((8, *size), 3, 3)
    target, contexts = target.to(dtype).float(), [context.to(dtype).float() for context in contexts]
    settings: dict[str, Any] = {"top_k": top_k, "temperature": temperature, "keep_ties": ties}
    got = propagate_labels(target, contexts, labels, windows=windows, search_dtype=dtype, **settings)
    want = naive(target, contexts, labels, windows, **settings)
    # Where more cells than are compared again lie within a rounding of each other, another one may be chosen.
    assert ((got - want).abs().amax(0) < 1e-5).float().mean() > 0.99


@pytest.mark.parametrize("size", [(7, 11), (17, 10)])
def test_priors_around_motion_equal_the_naive_version(size: tuple[int, int]) -> None:
    target, contexts, labels = random_inputs((8, *size), 3, 3)
    windows = [SQUARE, *(Window(3, prior_sigma_cells=1.5, prior_floor=0.2, prior_frames=n) for n in (2, 1))]
    motion = 3 * torch.rand(2, *size, generator=torch.Generator().manual_seed(3)) - 1.5
    got = propagate_labels(target, contexts, labels, windows=windows, motion=motion)
    want = naive(target, contexts, labels, windows, top_k=5, temperature=0.1, keep_ties=True, motion=motion)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def real_features(clip: Path) -> list[Tensor]:
    """Tokens of four frames of the bundled clip from the bundled backbone, 6 x 10 cells."""
    extract = ExtractConfig(
        facets=("token@11:norm",), short_side=84, device="cpu", saliency="none", cls="none", lift="none"
    )
    decode = DecodeConfig(every=8, end_seconds=1.2)
    frames = Decoder(decode, probe(clip, decode))()
    packets = Extractor(extract)(itertools.islice(frames, 4))
    return [F.normalize(packet.features.data, dim=0) for packet in packets if packet.features is not None]


@pytest.mark.parametrize("preset", ["dino", "videowalk", "dinov3", "lift", "dino_stride_wide", "best"])
def test_equals_the_naive_version_on_real_features(preset: str, real_features: list[Tensor]) -> None:
    values = load_preset(PRESETS, preset)["propagate"]
    config = PropagateConfig(**values | {"radius_cells": min(values["radius_cells"], 4)})
    recent, reference = make_windows(config)
    windows = [reference, *(at_distance(config, recent, frames) for frames in (2, 1))]
    target, *contexts = real_features
    _, _, labels = random_inputs((1, *target.shape[1:]), 3, 3)
    settings: dict[str, Any] = config.model_dump(include={"top_k", "temperature", "keep_ties"})
    got = propagate_labels(target, contexts, labels, windows=windows, **settings)
    torch.testing.assert_close(got, naive(target, contexts, labels, windows, **settings), atol=1e-5, rtol=0)


@pytest.mark.parametrize("search_dtype", [torch.float32, torch.bfloat16])
def test_all_ties_at_the_threshold_vote(search_dtype: torch.dtype) -> None:
    """Few distinct descriptors, exactly representable: nearly every threshold is shared by many cells."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(3, (4, 9, 12), generator=generator)
    maps = list(F.one_hot(kinds, 3).permute(0, 3, 1, 2).float())
    labels = [torch.rand(2, 9, 12, generator=generator) for _ in range(3)]
    windows = [Window(4), Window(4), Window(None)]
    got = propagate_labels(maps[0], maps[1:], labels, windows=windows, search_dtype=search_dtype)
    want = naive(maps[0], maps[1:], labels, windows, top_k=5, temperature=0.1, keep_ties=True)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_exactly_k_vote_without_ties() -> None:
    """Five equal frames whose labels differ: two votes of equal weight give a mean of exactly two labels."""
    same = F.normalize(torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(2)), dim=0)
    labels = [torch.full((1, 4, 4), float(2**n)) for n in range(5)]
    got = propagate_labels(same, [same] * 5, labels, top_k=2, keep_ties=False)
    pairs = {(a + b) / 2 for a, b in itertools.combinations([1.0, 2.0, 4.0, 8.0, 16.0], 2)}
    assert set(got.flatten().tolist()) <= pairs


def test_fewer_cells_than_k_all_vote() -> None:
    target, contexts, labels = random_inputs((4, 1, 2), 1, 1)
    got = propagate_labels(target, contexts, labels, top_k=5, temperature=1.0)
    weights = torch.einsum("cq,ck->kq", target.flatten(1), contexts[0].flatten(1)).softmax(0)
    torch.testing.assert_close(got.flatten(1), labels[0].flatten(1) @ weights)


@pytest.mark.parametrize("max_bytes", [1, 30_000, 10**9])
def test_the_memory_ceiling_does_not_change_the_result(max_bytes: int) -> None:
    target, contexts, labels = random_inputs((8, 21, 26), 3, 2)
    got = propagate_labels(target, contexts, labels, windows=Window(5), max_bytes=max_bytes)
    torch.testing.assert_close(got, propagate_labels(target, contexts, labels, windows=Window(5)))


def test_with_one_vote_the_label_is_that_of_the_most_similar_cell() -> None:
    target, contexts, labels = random_inputs((8, 5, 6), 2, 2)
    got = propagate_labels(target, contexts, labels, windows=Window(None), top_k=1)
    every = torch.cat([torch.einsum("cq,ck->kq", target.flatten(1), c.flatten(1)) for c in contexts])
    want = torch.cat([label.flatten(1) for label in labels], dim=1)[:, every.argmax(0)]
    torch.testing.assert_close(got.flatten(1), want)


def test_labels_that_sum_to_one_stay_so() -> None:
    target, contexts, labels = random_inputs((8, 13, 9), 4, 5)
    sums = propagate_labels(target, contexts, labels, windows=Window(2)).sum(0)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": []}, "at least one"),
        ({"contexts": [torch.zeros(8, 4, 4)] * 2}, "contexts must be"),
        ({"labels": [torch.zeros(2, 4, 4)] * 2}, "labels must be"),
        ({"windows": [Window()]}, "1 windows for 2 contexts"),
        ({"top_k": 0}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    target, contexts, labels = random_inputs((8, 5, 5), 2, 2)
    arguments: dict[str, object] = {"contexts": contexts, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        propagate_labels(target, **arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_cuda_equals_cpu(case: str) -> None:
    windows, top_k, temperature, ties = CASES[case]
    target, contexts, labels = random_inputs((16, 40, 37), 3, 3)
    want = propagate_labels(
        target, contexts, labels, windows=windows, top_k=top_k, temperature=temperature, keep_ties=ties
    )
    got = propagate_labels(
        target.cuda(),
        [c.cuda() for c in contexts],
        [x.cuda() for x in labels],
        windows=windows,
        top_k=top_k,
        temperature=temperature,
        keep_ties=ties,
    )
    # Another summation order may swap cells whose similarities differ in the last bit.
    difference = (got.cpu() - want).abs().amax(0)
    assert float((difference > 1e-4).float().mean()) < 0.01
