"""The forward of a batch, compiled: on a card as a CUDA graph, on the CPU by inductor.

A forward of one size is the same list of kernels every time. A CUDA graph launches them at once, so that the host
does not have to keep up with the card; inductor fuses small operations. Compiling takes from half a minute to
minutes and happens at the first batch.

Invariant: one compiled forward per size of batch and input. Batches of other sizes than the full one, such as the
last of a video, run as they are: which batches are compiled follows from their size alone, so that a run that was
interrupted gives the same values as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Computed:
    """What a batch's forward gives.

    Attributes:
        maps: float32 ``(B, C, h, w)`` by facet.
        saliency: float32 ``(B, h, w)``, or None.
        cls: float32 ``(B, C)``, or None.
        before_lift: The main facet on the backbone's grid, where LiFT made a finer one; else None.
        saliency_before_lift: The saliency on it.
    """

    maps: dict[str, Tensor]
    saliency: Tensor | None
    cls: Tensor | None
    before_lift: Tensor | None = None
    saliency_before_lift: Tensor | None = None


Forward = Callable[[Tensor], Computed]


def compiled(forward: Forward, device: torch.device) -> Forward:
    """A forward that is compiled when it is first called, for every size of its input.

    Args:
        forward: From normalized images ``(B, 3, H, W)``; without a wait for the device, and without state.
        device: Where it runs.

    Returns:
        The same function, to rounding; raises :class:`ConfigError` where it cannot be compiled.
    """
    on_card = device.type == "cuda"
    fast: Callable[[Tensor], tuple[dict[str, Tensor], tuple[Tensor | None, ...]]] = torch.compile(
        lambda images: _fields(forward(images)), mode="reduce-overhead" if on_card else "default", dynamic=False
    )

    def run(images: Tensor) -> Computed:
        if on_card:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            maps, others = fast(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"extract.compile: the forward cannot be compiled for {device} ({_first_line(error)}); it needs a "
                "C++ compiler on the CPU and Triton on a card; set extract.compile to false"
            ) from error
        if on_card:  # A graph's results lie in memory that its next launch overwrites.
            maps = {name: values.clone() for name, values in maps.items()}
            others = tuple(None if values is None else values.clone() for values in others)
        return Computed(maps, *others)

    return run


def _fields(found: Computed) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
    return found.maps, (found.saliency, found.cls, found.before_lift, found.saliency_before_lift)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
