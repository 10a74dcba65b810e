"""The Triton kernel against the tiled implementation, in Triton's interpreter where there is no card."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from stages.propagate.kernel_choice import has_triton, pick_kernel
from stages.propagate.propagation import propagate_labels
from stages.propagate.windows import Window
from tests.conftest import REPOSITORY
from tests.stages.propagate.test_propagation import random_inputs

needs_triton = pytest.mark.skipif(not has_triton(), reason="the package triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

CASES: dict[str, tuple[list[Window], int, bool]] = {
    "disc": ([Window(2.5, "disc"), Window(3, "disc", inclusive=True)], 5, True),
    "strict disc": ([Window(3, "disc"), Window(3)], 4, False),
    "whole frame": ([Window(None), Window(2)], 7, True),
    "priors": (
        [Window(3, prior_sigma_cells=1.0), Window(3, prior_sigma_cells=1.5, prior_floor=0.1, prior_frames=2)],
        5,
        True,
    ),
    "few cells": ([Window(1), Window(1)], 31, True),
    "one": ([Window(2), Window(2)], 1, False),
}


def compare(
    windows: list[Window],
    top_k: int,
    keep_ties: bool,
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int] = (8, 7, 6),
    num_labels: int = 3,
    motion: Tensor | None = None,
) -> None:
    target, contexts, labels = random_inputs(shape, len(windows), num_labels)
    moved = None if motion is None else motion.to(DEVICE)
    found = propagate_labels(
        target.to(DEVICE), [c.to(DEVICE) for c in contexts], [x.to(DEVICE) for x in labels],
        windows=windows, top_k=top_k, keep_ties=keep_ties, search_dtype=dtype, motion=moved, kernel="triton",
    )  # fmt: skip
    # Products of rounded descriptors in float32 are what the kernel adds up.
    want = propagate_labels(
        target.to(dtype).float(), [c.to(dtype).float() for c in contexts], labels,
        windows=windows, top_k=top_k, keep_ties=keep_ties, motion=motion, kernel="tiled",
    )  # fmt: skip
    torch.testing.assert_close(found.cpu(), want, rtol=1e-4, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_equals_the_tiled_implementation(dtype: torch.dtype) -> None:
    compare([Window(2)], 5, True, dtype, shape=(8, 4, 5))


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_every_window_and_prior(case: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    windows, top_k, keep_ties = CASES[case]
    motion = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(3)) if case == "priors" else None
    compare(windows, top_k, keep_ties, dtype, motion=motion)


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("num_labels", [1, 70])
def test_any_number_of_labels_and_channels(num_labels: int) -> None:
    compare([Window(2)], 5, True, torch.float32, shape=(130, 5, 5), num_labels=num_labels)


@needs_triton
@pytest.mark.parametrize("keep_ties", [True, False])
def test_ties_count_as_asked(keep_ties: bool) -> None:
    target = torch.ones(1, 1, 4)  # every cell is as similar as every other
    labels = torch.arange(4.0).view(1, 1, 4)
    found = propagate_labels(
        target.to(DEVICE), [target.to(DEVICE)], [labels.to(DEVICE)],
        windows=Window(None), top_k=2, keep_ties=keep_ties, kernel="triton",
    )  # fmt: skip
    # All four vote, or the first two in the order of the cells.
    torch.testing.assert_close(found.cpu(), torch.full((1, 1, 4), 1.5 if keep_ties else 0.5))


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_kernel_compiles_for_cards_that_are_not_here(capability: int, dtype: str) -> None:
    code = (
        "from stages.propagate.triton_kernel import compile_for\n"
        f"assert compile_for({capability}, {dtype!r}).asm['cubin']"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, env=environment, check=True)


def test_a_kernel_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert pick_kernel("auto", cpu) == pick_kernel("tiled", cpu) == pick_kernel("tiled", card) == "tiled"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("stages.propagate.kernel_choice.has_triton", lambda: True)
    assert pick_kernel("auto", card) == "triton"
    with pytest.raises(ConfigError, match="needs a CUDA device, not cpu"):
        pick_kernel("triton", cpu)
    monkeypatch.setattr("stages.propagate.kernel_choice.has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"needs the package triton on cuda; .* set propagate.kernel to tiled"):
        pick_kernel("auto", card)
