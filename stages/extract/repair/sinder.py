"""Finding the singular defects among the tokens of an image, and replacing them.

A token is defective where its alignment with the block's singular-defect direction
(``singular_directions.py``) is an outlier among the tokens of its image. The weighted mean of its neighborhood,
in which defective cells weigh little, is the learning target: the repair trains towards it, and smoothing at
inference writes it in place of the token.

Source: Wang, Zhang, Salzmann, SINDER: Repairing the Singular Defects of DINOv2, ECCV 2024: detection, learning
target and loss.
Differs from the reference: smoothing tokens during inference, without training, is ours; so is working on
batches. The statistics of a detection are taken over all tokens of the image, its border included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.state import State

TEMPERATURE: Final = 0.1
"""How fast a neighbor's weight falls with its own alignment."""

_GAUSSIANS: Final = {
    3: ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
    5: ((1, 4, 7, 4, 1), (4, 16, 26, 16, 4), (7, 26, 41, 26, 7), (4, 16, 26, 16, 4), (1, 4, 7, 4, 1)),
}


@dataclass(frozen=True, slots=True)
class DetectionRule:
    """When a token counts as defective.

    Attributes:
        mu: Standard deviations above the image's mean from which an alignment is an outlier.
        kernel: Width of the neighborhood in cells, 3 or 5; a border of ``kernel // 2`` cells is excluded.
        minimum: An image (at one block) with fewer defective tokens is left unchanged.
    """

    mu: float = 4.0
    kernel: int = 3
    minimum: int = 3

    def __post_init__(self) -> None:
        if self.kernel not in _GAUSSIANS:
            raise ConfigError(f"the neighborhood of a defective token is 3 or 5 cells wide, got {self.kernel}")


DEFAULT_RULE: Final = DetectionRule()
"""The reference's values."""


def alignment(tokens: Tensor, direction: Tensor) -> Tensor:
    """How far each token points along a direction: the absolute value of the cosine.

    Args:
        tokens: ``(..., C)``, floating point.
        direction: ``(C,)``.

    Returns:
        float32 ``(...)`` in [0, 1]; 0 for a token of norm 0.

    >>> alignment(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), torch.tensor([1.0, 0.0])).tolist()
    [0.6000000238418579, 1.0]
    """
    direction = F.normalize(direction.to(tokens.device, torch.float32), dim=0)
    with torch.autocast(tokens.device.type, enabled=False):  # a rounded cosine moves the threshold
        return (F.normalize(tokens.float(), dim=-1) @ direction).abs()


def detect_defects(scores: Tensor, *, mu: float = DEFAULT_RULE.mu, border: int = 1) -> Tensor:
    """Which tokens are defective: alignment more than ``mu`` standard deviations above the image's mean.

    Args:
        scores: ``(B, h, w)`` from :func:`alignment`.
        mu: The threshold; one-sided, with the unbiased standard deviation of the image.
        border: Cells along the border that never count, because their neighborhood is not complete.

    Returns:
        bool ``(B, h, w)``.
    """
    flat = scores.flatten(1)
    if flat.shape[1] < 2:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.mean(dim=1) + mu * flat.std(dim=1)
    found = scores > threshold[:, None, None]
    inner = torch.zeros_like(found)
    inner[:, border : scores.shape[1] - border, border : scores.shape[2] - border] = True
    return found & inner


def neighborhood_target(tokens: Tensor, scores: Tensor, where: Tensor, *, kernel: int = 3) -> Tensor:
    """What defective tokens should be: the weighted mean of their ``kernel`` x ``kernel`` neighborhood.

    A neighbor weighs exp(-score / 0.1) times a Gaussian, so that well-behaved cells decide; the token itself
    takes part.

    Args:
        tokens: ``(B, h, w, C)``.
        scores: ``(B, h, w)``.
        where: bool ``(B, h, w)``; true cells lie at least ``kernel // 2`` cells from the border.
        kernel: 3 or 5.

    Returns:
        float32 ``(n, C)`` for the n true cells, in row-major order; no gradient.
    """
    weights = torch.tensor(_GAUSSIANS[kernel], dtype=torch.float32, device=tokens.device)
    image, row, column = where.nonzero(as_tuple=True)
    reach = torch.arange(kernel, device=tokens.device) - kernel // 2
    rows = row[:, None, None] + reach[:, None]
    columns = column[:, None, None] + reach[None, :]
    images = image[:, None, None].expand(-1, kernel, kernel)
    around = tokens.detach()[images, rows, columns].float()
    share = torch.softmax(-scores.detach()[images, rows, columns].float().flatten(1) / TEMPERATURE, dim=1)
    share = share * weights.flatten()
    share = share / share.sum(dim=1, keepdim=True)
    return torch.einsum("nk,nkc->nc", share, around.flatten(1, 2))


def all_targets(tokens: Tensor, scores: Tensor, *, kernel: int = 3) -> Tensor:
    """:func:`neighborhood_target` of every cell, float32 ``(B, h, w, C)``; those near the border mean nothing."""
    height, width = scores.shape[1:]
    reach = kernel // 2
    around_cell = torch.arange(-reach, reach + 1, device=tokens.device)
    steps = [
        (torch.arange(length, device=tokens.device)[:, None] + around_cell).clamp(0, length - 1)
        for length in (height, width)
    ]
    values = tokens.detach().float()
    around = [-(scores.detach().float() / TEMPERATURE)[:, steps[0][:, i]][:, :, steps[1][:, j]]
              for i in range(kernel) for j in range(kernel)]  # fmt: skip
    share = torch.softmax(torch.stack(around), dim=0)
    gaussian = [float(weight) for row in _GAUSSIANS[kernel] for weight in row]
    weighted = torch.stack([part * weight for part, weight in zip(share, gaussian, strict=True)])
    weighted = weighted / weighted.sum(dim=0)
    total = torch.zeros_like(values)
    for place, part in enumerate(weighted):
        i, j = divmod(place, kernel)
        total = total + part[..., None] * values[:, steps[0][:, i]][:, :, steps[1][:, j]]
    return total


def find_defects(tokens: Tensor, direction: Tensor, rule: DetectionRule = DEFAULT_RULE) -> tuple[Tensor, Tensor]:
    """Scores and defective cells of a batch; images with fewer than ``rule.minimum`` of them have none.

    Args:
        tokens: ``(B, h, w, C)``, a block's output without the final norm.
        direction: ``(C,)``, the block's singular-defect direction.
        rule: When a token is defective.

    Returns:
        ``(B, h, w)`` float32 scores and ``(B, h, w)`` bool.
    """
    scores = alignment(tokens.detach(), direction)
    found = detect_defects(scores, mu=rule.mu, border=rule.kernel // 2)
    enough = found.flatten(1).sum(dim=1) >= rule.minimum
    return scores, found & enough[:, None, None]


def defect_loss(tokens: Tensor, direction: Tensor, rule: DetectionRule = DEFAULT_RULE) -> Tensor | None:
    """The repair's loss on one image: mean distance of defective tokens to their targets.

    The distance is divided by the mean token norm over the interior, which carries no gradient, so that the
    loss does not depend on the scale of the residual stream.

    Args:
        tokens: ``(1, h, w, C)``, with a gradient if wanted.
        direction: ``(C,)``.
        rule: When a token is defective.

    Returns:
        A scalar, or None where the image has fewer than ``rule.minimum`` defective tokens.
    """
    scores, found = find_defects(tokens, direction, rule)
    if not bool(found.any()):
        return None
    target = neighborhood_target(tokens, scores, found, kernel=rule.kernel)
    border = rule.kernel // 2
    interior = tokens.detach()[:, border : tokens.shape[1] - border, border : tokens.shape[2] - border].float()
    distance: Tensor = torch.linalg.vector_norm(tokens[found].float() - target, dim=1).mean()
    norm: Tensor = torch.linalg.vector_norm(interior, dim=-1).mean()
    return distance / norm


def smooth_defects(tokens: Tensor, direction: Tensor, rule: DetectionRule = DEFAULT_RULE) -> tuple[Tensor, Tensor]:
    """A batch with its defective tokens replaced by the repair's targets; everything else unchanged.

    Args:
        tokens: ``(B, h, w, C)``, a block's output without the final norm.
        direction: ``(C,)``.
        rule: When a token is defective.

    Returns:
        The tokens, in their dtype (the input itself where nothing was found), and the replaced cells, bool
        ``(B, h, w)``.
    """
    scores, found = find_defects(tokens, direction, rule)
    if not tokens.is_cpu:  # a card is not asked what was found: every cell's target is made
        targets = all_targets(tokens, scores, kernel=rule.kernel)
        return torch.where(found[..., None], targets.to(tokens.dtype), tokens), found
    if not bool(found.any()):
        return tokens, found
    smoothed = tokens.clone()
    smoothed[found] = neighborhood_target(tokens, scores, found, kernel=rule.kernel).to(tokens.dtype)
    return smoothed, found


def patch_tokens(tokens: Tensor, num_prefix_tokens: int, grid_hw: tuple[int, int]) -> Tensor:
    """The patches among a block's tokens ``(B, prefix + h * w, C)``, as ``(B, h, w, C)``."""
    return tokens[:, num_prefix_tokens:].reshape(tokens.shape[0], *grid_hw, tokens.shape[-1])


class DefectSmoother:
    """Replaces defective tokens inside a forward pass, without training.

    Called after every block (it is a ``Backbone.token_hook``), it checks the patch tokens against the block's
    direction and replaces the defective ones before the next block reads them. Blocks that a forward does not
    run are not checked.

    Invariant: images are independent, and an image without defects passes unchanged. The counts of
    :meth:`report` grow over all forwards since :meth:`reset`.
    """

    def __init__(self, directions: Tensor, *, num_prefix_tokens: int, rule: DetectionRule = DEFAULT_RULE) -> None:
        """Smooth along these directions.

        Args:
            directions: ``(blocks, C)`` from ``defect_directions``.
            num_prefix_tokens: CLS and register tokens before the patch tokens; never changed.
            rule: When a token is defective.
        """
        self._directions = directions
        self._prefix = num_prefix_tokens
        self._rule = rule
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero."""
        self._tokens_by_block = [0] * len(self._directions)
        self._images_by_block = [0] * len(self._directions)
        self._pending: list[Tensor | None] = [None] * len(self._directions)

    def _settle(self) -> None:
        """Add up what the device has counted."""
        for layer, counts in enumerate(self._pending):
            if counts is not None:
                tokens, images = counts.tolist()
                self._tokens_by_block[layer] += tokens
                self._images_by_block[layer] += images
        self._pending = [None] * len(self._directions)

    def state(self) -> State:
        """The counts."""
        self._settle()
        return {"tokens_by_block": list(self._tokens_by_block), "images_by_block": list(self._images_by_block)}

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self._tokens_by_block = list(state["tokens_by_block"])
        self._images_by_block = list(state["images_by_block"])

    def __call__(self, layer: int, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """The tokens ``(B, prefix + h * w, C)`` after block ``layer``, the defective patches replaced."""
        patches = patch_tokens(tokens, self._prefix, grid_hw)
        with torch.autocast(tokens.device.type, enabled=False):  # means and deviations of rounded values are off
            smoothed, found = smooth_defects(patches, self._directions[layer], self._rule)
        if smoothed is patches:
            return tokens
        counts = torch.stack([found.sum(), found.flatten(1).any(dim=1).sum()])
        before = self._pending[layer]
        self._pending[layer] = counts if before is None else before + counts
        if found.is_cpu:
            self._settle()
        return torch.cat([tokens[:, : self._prefix], smoothed.flatten(1, 2)], dim=1)

    def report(self) -> dict[str, Any]:
        """How many tokens, in how many images, were replaced after which block; JSON-ready."""
        self._settle()
        counts = zip(self._images_by_block, self._tokens_by_block, strict=True)
        return {
            "smoothed_tokens": sum(self._tokens_by_block),
            "by_block": [
                {"block": index, "images": images, "tokens": tokens}
                for index, (images, tokens) in enumerate(counts)
                if images
            ],
        }
