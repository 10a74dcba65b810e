"""``extract.compile``: the same features, full batches alone, and an error that says what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError
from pipeline.core.state import load_state, save_state
from stages.extract import ExtractConfig, Extractor
from stages.extract.lift.module import LiftMetadata, save_lift
from stages.extract.lift.network import Lift
from tests.stages.extract.test_stage import BASE, features_of, frames, tiny

SETTINGS: dict[str, Any] = BASE | {"batch_size": 2, "short_side": 64, "saliency": "ncut", "compile": True}


def make(**settings: Any) -> Extractor:
    return Extractor(load_config(ExtractConfig, SETTINGS | settings), backbone=tiny())


def lift_file(folder: Path) -> str:
    path = folder / "lift.safetensors"
    save_lift(Lift(48, patch_px=16), LiftMetadata("vit_tiny_patch16_224", "key@1", 16), path)
    return str(path)


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In place of the compiler the function itself; the list gets the sizes of the batches that come to it."""
    sizes: list[int] = []

    def stand_in(function: Callable[[torch.Tensor], Any], **options: Any) -> Callable[[torch.Tensor], Any]:
        assert options == {"mode": "default", "dynamic": False}

        def run(images: torch.Tensor) -> Any:
            sizes.append(len(images))
            return function(images)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    return sizes


def test_full_batches_are_compiled_and_others_are_not(compiled_sizes: list[int]) -> None:
    extractor = make()
    assert len(list(extractor(frames(5)))) == 5
    assert compiled_sizes == [2, 2]
    assert extractor.report()["compiled"] is True
    assert make(compile=False).report()["compiled"] is False


def test_which_batches_are_compiled_does_not_depend_on_where_a_run_began(
    compiled_sizes: list[int], tmp_path: Path
) -> None:
    first, states = make(), []

    def feed() -> Any:
        yield from frames(5)[:3]
        states.append(first.state())

    for _ in first(feed()):
        if states:
            break
    save_state(tmp_path, "extract", states[0])
    compiled_sizes.clear()
    second = make()
    second.restore(load_state(tmp_path, "extract"))
    list(second(frames(5)[3:]))
    assert compiled_sizes == [2]


def test_a_forward_that_cannot_be_compiled_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **options: Any) -> Any:
        def run(images: torch.Tensor) -> Any:
            raise torch._dynamo.exc.InternalTorchDynamoError("no C++ compiler\nmore")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"cannot be compiled for cpu \(no C\+\+ compiler\).*compile to false"):
        list(make()(frames(2)))


def test_smoothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="extract.compile cannot be used with extract.repair"):
        make(repair="smooth")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("saliency", ["ncut", "cls_attention", "first_pc"])
def test_compiled_features_are_those_of_the_plain_forward(saliency: str, precision: str, tmp_path: Path) -> None:
    save_lift(
        Lift(48, patch_px=16), LiftMetadata("vit_tiny_patch16_224", "key@1", 16), tmp_path / "lift.safetensors"
    )
    settings = {"precision": precision, "saliency": saliency, "lift": lift_file(tmp_path), "cls": "facet"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        found = list(make(**settings)(frames(5)))
    wanted = list(make(**settings, compile=False)(frames(5)))
    rtol, atol = (1e-3, 1e-4) if precision == "fp32" else (0.05, 0.05)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(features_of(one).data, features_of(other).data, rtol=rtol, atol=atol)
        torch.testing.assert_close(features_of(one).cls, features_of(other).cls, rtol=rtol, atol=atol)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("saliency", ["ncut", "cls_attention", "first_pc"])
def test_the_forward_is_one_graph(saliency: str, tmp_path: Path) -> None:
    """A break in it would split the CUDA graph, and bring the host back between its parts."""
    save_lift(
        Lift(48, patch_px=16), LiftMetadata("vit_tiny_patch16_224", "key@1", 16), tmp_path / "lift.safetensors"
    )
    model = make(saliency=saliency, lift=lift_file(tmp_path), compile=False).model
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        model.backbone.prepare((64, 96))
        explained = torch._dynamo.explain(model._compute)(images)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
