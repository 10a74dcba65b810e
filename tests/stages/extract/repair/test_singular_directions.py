from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipeline.core.torchvision_ops  # noqa: F401  (before timm)
from pipeline.core.errors import ConfigError
from stages.extract.repair.singular_directions import defect_directions, expected_fit, linearize_block, sampled_fit

timm = pytest.importorskip("timm")
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402

WIDTH = 24
MLPS = {
    "gelu": Mlp,
    "swiglu_packed": SwiGLUPacked,
    "gate_last": GluMlp,
    "swiglu_split": SwiGLU,
}


def randomised(module: nn.Module, scale: float = 0.4) -> nn.Module:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_mlp(kind: str) -> nn.Module:
    return randomised(MLPS[kind](WIDTH, 32))


def make_block(mlp_layer: Any = Mlp) -> nn.Module:
    return randomised(Block(WIDTH, 3, qkv_bias=True, init_values=0.3, mlp_layer=mlp_layer))


def hidden_by_hand(mlp: Any, kind: str, x: Tensor) -> Any:
    """What each kind of MLP computes before its last layer, from its definition."""
    if kind == "gelu":
        z = x @ mlp.fc1.weight.T + mlp.fc1.bias
        return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    if kind == "swiglu_split":
        u, v = (x @ f.weight.T + f.bias for f in (mlp.fc1_g, mlp.fc1_x))
        return u * torch.sigmoid(u) * v
    first, second = (x @ mlp.fc1.weight.T + mlp.fc1.bias).chunk(2, dim=-1)
    if kind == "gate_last":
        return first * torch.sigmoid(second)
    return first * torch.sigmoid(first) * second


@pytest.mark.parametrize("kind", MLPS)
def test_sampled_fit_is_the_least_squares_solution(kind: str) -> None:
    mlp = make_mlp(kind)
    found = sampled_fit(mlp, samples=5000, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    x = torch.cat([torch.randn(n, WIDTH, generator=generator) for n in (4096, 904)])
    with torch.no_grad():
        expected = torch.linalg.lstsq(x.double(), hidden_by_hand(mlp, kind, x).double()).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", MLPS)
def test_exact_fit_is_what_more_and_more_samples_tend_to(kind: str) -> None:
    mlp = make_mlp(kind)
    exact = expected_fit(mlp)
    errors = [
        float(
            (sampled_fit(mlp, samples=n, generator=torch.Generator().manual_seed(1)) - exact).norm() / exact.norm()
        )
        for n in (2_000, 200_000)
    ]
    # The regression's noise falls with the root of the samples: by 10 here.
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 5


def test_exact_fit_of_a_gelu_unit_has_its_known_slope() -> None:
    mlp: Any = Mlp(1, 1).eval()
    with torch.no_grad():
        mlp.fc1.weight.fill_(1.0)
        mlp.fc1.bias.zero_()
    # E[x GELU(x)] = E[x^2 Phi(x)] = 1/2 by symmetry.
    assert expected_fit(mlp).item() == pytest.approx(0.5, abs=1e-6)


def test_a_block_is_linearized_as_the_paper_writes_it() -> None:
    block: Any = make_block()
    found = linearize_block(block, fit="exact", samples=0, generator=torch.Generator())
    identity, ones = torch.eye(WIDTH), torch.ones(WIDTH, WIDTH)
    center = identity - ones / WIDTH
    value = block.attn.qkv.weight[2 * WIDTH :]
    attention = (
        identity
        + torch.diag(block.ls1.gamma) @ block.attn.proj.weight @ value @ torch.diag(block.norm1.weight) @ center
    )
    mlp = (
        identity
        + torch.diag(block.ls2.gamma)
        @ block.mlp.fc2.weight
        @ expected_fit(block.mlp)
        @ torch.diag(block.norm2.weight)
        @ center
    )
    torch.testing.assert_close(found, (mlp @ attention).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mlp_layer", [Mlp, SwiGLUPacked, partial(SwiGLU)])
def test_directions_lead_the_product_of_the_blocks_so_far(mlp_layer: Any) -> None:
    blocks = [make_block(mlp_layer) for _ in range(3)]
    found = defect_directions(blocks, fit="exact")
    product = torch.eye(WIDTH, dtype=torch.float64)
    for block, direction in zip(blocks, found, strict=True):
        matrix = linearize_block(block, fit="exact", samples=0, generator=torch.Generator())
        product = matrix.double() @ product
        values, vectors = torch.linalg.eigh(product @ product.T)
        assert values[-1] > values[-2]
        assert abs(float(vectors[:, -1] @ direction.double())) == pytest.approx(1, abs=1e-4)
    assert found.shape == (3, WIDTH)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_forty_strong_blocks_stay_inside_float32() -> None:
    block: Any = make_block()
    with torch.no_grad():
        block.mlp.fc2.weight.mul_(300)
    found = defect_directions([block] * 40, fit="exact")
    assert bool(torch.isfinite(found).all())


def test_the_same_seed_gives_the_same_directions() -> None:
    blocks = [make_block()]
    first, again, other = (defect_directions(blocks, samples=500, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_linear_fit_leaves_the_model_untouched() -> None:
    mlp: Any = make_mlp("gelu")
    sampled_fit(mlp, samples=100, generator=torch.Generator())
    assert not mlp.fc2._forward_pre_hooks


def test_blocks_of_another_form_and_too_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="a Linear has no 'attn'"):
        defect_directions([nn.Linear(3, 3)])
    with pytest.raises(ConfigError, match="at least 24 samples, got 10"):
        defect_directions([make_block()], samples=10)
    normed = Mlp(WIDTH, 32, norm_layer=nn.LayerNorm)
    with pytest.raises(ConfigError, match="fit='sampled'"):
        expected_fit(normed)
