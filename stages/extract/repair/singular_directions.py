"""Singular-defect directions: the directions in which the weights of a ViT stretch tokens, block by block.

A few tokens of a large ViT leave the manifold of the rest: their norm is many times larger, and they all have the
same direction, whatever the image. That direction is a property of the weights. Linearize every block around the
residual stream; the leading left singular vector of the product of the first ``i + 1`` blocks is the direction
into which the stream after block ``i`` is stretched most, and defective tokens are aligned with it.

With N the width, P = I - 11'/N (LayerNorm's centring; its division is omitted) and every bias of the residual
stream ignored:

* attention, its softmax replaced by the identity: A = I + diag(ls1) W_proj W_v diag(norm1) P
* MLP, its hidden map replaced by a linear fit L:  C = I + diag(ls2) W_out L diag(norm2) P
* block E = C A, running product G_i = E_i ... E_0, direction nu_i = leading left singular vector of G_i.

Source: Wang, Zhang, Salzmann, SINDER: Repairing the Singular Defects of DINOv2, ECCV 2024, the linear
approximation of the network.
Differs from the reference: MLPs with one branch (GELU) are linearized the same way as SwiGLU, and the linear fit
can be its exact expectation, which the regression on random samples approaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError

Fit = Literal["sampled", "exact"]

DEFAULT_SAMPLES = 100_000
"""Samples of x ~ N(0, I) of the regression, as in the reference."""

_SAMPLES_PER_CHUNK = 4096
_QUADRATURE_NODES = 128


def defect_directions(
    blocks: Sequence[nn.Module], *, fit: Fit = "sampled", samples: int = DEFAULT_SAMPLES, seed: int = 0
) -> Tensor:
    """The singular-defect direction after every block.

    Args:
        blocks: The pre-norm transformer blocks of a timm ViT, from the first one on.
        fit: How the MLP's hidden map is linearized: ``sampled`` regresses on random inputs (the reference),
            ``exact`` takes the expectation of the same fit in closed form: no noise, and much faster.
        samples: Number of random inputs of the ``sampled`` fit.
        seed: Their seed; the same seed gives the same directions.

    Returns:
        float32 ``(len(blocks), C)`` on the CPU: unit vectors of arbitrary sign.

    Raises:
        ConfigError: A block cannot be linearized, or there are fewer samples than
            channels.
    """
    generator = torch.Generator().manual_seed(seed)
    product: Tensor | None = None
    directions = []
    for block in blocks:
        matrix = linearize_block(block, fit=fit, samples=samples, generator=generator)
        product = matrix if product is None else matrix @ product
        # Only the direction matters: the rescaling keeps forty stretching blocks inside float32.
        product = product / product.norm() * product.shape[0] ** 0.5
        directions.append(torch.linalg.svd(product).U[:, 0])
    return torch.stack(directions)


@torch.no_grad()
def linearize_block(block: nn.Module, *, fit: Fit, samples: int, generator: torch.Generator) -> Tensor:
    """The matrix E = C A of one block, float32 ``(C, C)`` on the CPU.

    Raises:
        ConfigError: As :func:`defect_directions`.
    """
    value, projection = _attention_weights(block)
    width = value.shape[1]
    center = torch.eye(width) - 1.0 / width
    attention = _scaled(block, "ls1", "gamma_1", projection @ value) * _norm_weight(block, "norm1", width)
    mlp = _part(block, "mlp")
    out = _weight(_part(mlp, "fc2"))
    if fit == "exact":
        hidden = expected_fit(mlp)
    else:
        hidden = sampled_fit(mlp, samples=samples, generator=generator)
    feed_forward = _scaled(block, "ls2", "gamma_2", out @ hidden) * _norm_weight(block, "norm2", width)
    identity = torch.eye(width)
    matrix: Tensor = (identity + feed_forward @ center) @ (identity + attention @ center)
    return matrix


def sampled_fit(mlp: nn.Module, *, samples: int, generator: torch.Generator) -> Tensor:
    """Least-squares linear fit (no intercept) of an MLP's hidden map on ``samples`` draws of N(0, I).

    The hidden map is everything before the MLP's last layer, so the code is the same for GELU and gated MLPs.

    Returns:
        L, float32 ``(hidden, C)``: hidden(x) ~ L x.

    Raises:
        ConfigError: Fewer samples than channels.
    """
    width = _first_layer(mlp).shape[1]
    if samples < width:
        raise ConfigError(f"a linear fit of {width} channels needs at least {width} samples, got {samples}")
    device = _part(mlp, "fc2").weight.device
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, _weight(_part(mlp, "fc2")).shape[1], dtype=torch.float64)
    for start in range(0, samples, _SAMPLES_PER_CHUNK):
        inputs = torch.randn(min(_SAMPLES_PER_CHUNK, samples - start), width, generator=generator)
        hidden = _hidden(mlp, inputs.to(device)).cpu()
        gram += (inputs.T @ inputs).double()
        cross += (inputs.T @ hidden).double()
    solution: Tensor = torch.linalg.solve(gram, cross)
    return solution.T.float()


def expected_fit(mlp: nn.Module) -> Tensor:
    """The limit of :func:`sampled_fit` for many samples, in closed form.

    For x ~ N(0, I) the fit without intercept is E[h(x) x'], and by Stein's lemma that is E of h's Jacobian: row
    ``j`` is E[act'(z_j)] w_j for a plain MLP (z_j = w_j x + b_j), and E[act'(u_j) v_j] a_j + E[act(u_j)] c_j for
    a gated one (u = a x + b, v = c x + d). Given u, v is linear in it on average, so only integrals over one
    Gaussian remain; Gauss-Hermite quadrature does them.

    Returns:
        L, float32 ``(hidden, C)``.

    Raises:
        ConfigError: The MLP normalizes its hidden units, for which there is no closed form.
    """
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        raise ConfigError("an MLP with a norm inside has no closed-form linear fit: use fit='sampled'")
    activation: nn.Module = _part(mlp, "act")
    branches = _branches(mlp)
    weight, bias = (tensor.double() for tensor in branches[0])
    sigma = weight.norm(dim=1).clamp_min(1e-12)
    nodes, masses = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
    t = torch.from_numpy(nodes)
    mass = torch.from_numpy(masses / masses.sum())
    act: Tensor = activation(bias[:, None] + sigma[:, None] * t)
    if len(branches) == 1:
        slopes: Tensor = (act * t) @ mass / sigma
        return (slopes[:, None] * weight).float()
    gated, offset = (tensor.double() for tensor in branches[1])
    along = (weight * gated).sum(dim=1) / sigma
    rise: Tensor = ((act * t) @ mass * offset + (act * (t.square() - 1)) @ mass * along) / sigma
    return (rise[:, None] * weight + (act @ mass)[:, None] * gated).float()


def _hidden(mlp: nn.Module, inputs: Tensor) -> Tensor:
    """The input of the MLP's last layer, read by a hook so that any MLP's own code runs."""
    caught: list[Tensor] = []
    handle = _part(mlp, "fc2").register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        mlp(inputs)
    finally:
        handle.remove()
    return caught[0].detach().float()


def _branches(mlp: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the activated branch and, for a gated MLP, of the linear one; float32 on the CPU."""
    if hasattr(mlp, "fc1_g"):
        layers = [_part(mlp, "fc1_g"), _part(mlp, "fc1_x")]
        return [(_weight(layer), _bias(layer)) for layer in layers]
    first = _part(mlp, "fc1")
    if not hasattr(mlp, "gate_last"):
        return [(_weight(first), _bias(first))]
    weights, biases = _weight(first).chunk(2), _bias(first).chunk(2)
    pairs = list(zip(weights, biases, strict=True))
    return pairs[::-1] if mlp.gate_last else pairs


def _first_layer(mlp: nn.Module) -> Tensor:
    return _branches(mlp)[0][0]


def _attention_weights(block: nn.Module) -> tuple[Tensor, Tensor]:
    """The value and the output projection, float32 on the CPU."""
    attention = _part(block, "attn")
    projection = _weight(_part(attention, "proj"))
    if getattr(attention, "qkv", None) is not None:
        return _weight(attention.qkv).chunk(3)[2], projection
    return _weight(_part(attention, "v_proj")), projection


def _part(module: nn.Module, name: str) -> Any:
    part = getattr(module, name, None)
    if part is None:
        raise ConfigError(
            f"singular defects need timm's pre-norm ViT blocks (norm1, attn, norm2, mlp): a "
            f"{type(module).__name__} has no '{name}'"
        )
    return part


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = _part(layer, "weight")
    return weight.detach().float().cpu()


def _bias(layer: nn.Module) -> Tensor:
    bias = getattr(layer, "bias", None)
    return torch.zeros(_weight(layer).shape[0]) if bias is None else bias.detach().float().cpu()


def _norm_weight(block: nn.Module, name: str, width: int) -> Tensor:
    weight = getattr(_part(block, name), "weight", None)
    return torch.ones(width) if weight is None else weight.detach().float().cpu()


def _scaled(block: nn.Module, module: str, parameter: str, matrix: Tensor) -> Tensor:
    """``matrix`` with its rows times the branch's LayerScale, where there is one (``gamma_*`` in timm's EVA)."""
    gamma = getattr(getattr(block, module, None), "gamma", None)
    gamma = getattr(block, parameter, None) if gamma is None else gamma
    return matrix if gamma is None else gamma.detach().float().cpu()[:, None] * matrix
