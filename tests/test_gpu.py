"""The steps of every stage on a real card, where any wait that is not in the table is an error.

``python run_pipeline.py bench gpu`` runs these tests, and everything else marked ``gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.core.device_stream import streams_of
from pipeline.core.host_copy import fetch, send
from stages.propagate.kernel_choice import has_triton
from tests.host_waits import CASES, FRAMES, Case, Place

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device; run bench gpu on a machine with one"
    ),
]

CARD = torch.device("cuda", 0)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """Every operation that makes the host wait raises, but waits for events."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place(kernel: str, folder: Path) -> Place:
    return Place(CARD, lambda values: values.to(CARD), "auto", kernel, folder)


def test_a_wait_that_is_not_in_the_table_is_found() -> None:
    values = torch.ones(3, device=CARD)
    with waits_are_errors():
        with pytest.raises(RuntimeError, match="synchronizing"):
            values.sum().item()
        with pytest.raises(RuntimeError, match="synchronizing"):
            values.nonzero()


def test_copies_through_the_streams_are_allowed() -> None:
    streams = streams_of(CARD)
    with waits_are_errors():
        on_card = send(streams, torch.arange(6.0).numpy())
        (found,) = fetch(streams, [on_card * 2])
    assert found.tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("kernel", ["triton", "tiled"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_no_stage_waits_in_a_frame(case: Case, kernel: str, tmp_path: Path) -> None:
    if kernel == "triton" and not has_triton():
        pytest.skip("needs the package triton")
    if kernel == "triton" and not case.name.startswith("propagate"):
        pytest.skip("the kernel is propagate's alone")
    step = case.make(place(kernel, tmp_path))
    for number in range(case.warm):
        step(number)
    with waits_are_errors():
        for number in range(case.warm, case.warm + FRAMES):
            step(number)
