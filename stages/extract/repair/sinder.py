"""Finding the singular defects among the tokens of an image, and mending them.

A token is defective where its angle to the block's singular-defect direction (``singular_directions.py``) is an
outlier among the tokens of its image. Its neighbours show what it should be: the mean of its surroundings, in
which defective cells weigh little. The repair trains towards that mean, and the smoothing at inference puts it
in place at once.

Source: Wang, Zhang, Salzmann, SINDER: Repairing the Singular Defects of DINOv2, ECCV 2024: detection, learning
target and loss.
Differs from the reference: smoothing tokens during inference, without training, is ours; so is working on
batches. The statistics of a detection are taken over all tokens of the image, its border included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError

DEFAULT_MU = 4.0
"""Standard deviations above the image's mean from which an angle counts as an outlier."""

MIN_DEFECTS = 3
"""An image (or block) with fewer defective tokens is left alone."""

TEMPERATURE = 0.1
"""How fast a neighbour's weight falls with its own alignment."""

_GAUSSIANS = {
    3: ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
    5: ((1, 4, 7, 4, 1), (4, 16, 26, 16, 4), (7, 26, 41, 26, 7), (4, 16, 26, 16, 4), (1, 4, 7, 4, 1)),
}


def alignment(tokens: Tensor, direction: Tensor) -> Tensor:
    """How far each token points along a direction: abs of the cosine.

    Args:
        tokens: ``(..., C)``, floating point.
        direction: ``(C,)``.

    Returns:
        float32 ``(...)`` in [0, 1]; 0 for a token of norm 0.

    >>> alignment(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), torch.tensor([1.0, 0.0])).tolist()
    [0.6000000238418579, 1.0]
    """
    direction = F.normalize(direction.to(tokens.device, torch.float32), dim=0)
    return (F.normalize(tokens.float(), dim=-1) @ direction).abs()


def detect_defects(scores: Tensor, *, mu: float = DEFAULT_MU, border: int = 1) -> Tensor:
    """Which tokens are defective: alignment more than ``mu`` standard deviations above the image's mean.

    Args:
        scores: ``(B, h, w)`` from :func:`alignment`.
        mu: The threshold; one-sided, with the unbiased standard deviation of the image.
        border: Cells at the rim that never count, because their neighbourhood is not whole.

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


def neighbourhood_target(tokens: Tensor, scores: Tensor, where: Tensor, *, kernel: int = 3) -> Tensor:
    """What defective tokens should be: the weighted mean of their ``kernel`` x ``kernel`` surroundings.

    A neighbour weighs exp(-score / 0.1) times a Gaussian, so that well-behaved cells decide; the token itself
    takes part.

    Args:
        tokens: ``(B, h, w, C)``.
        scores: ``(B, h, w)``.
        where: bool ``(B, h, w)``; true cells lie at least ``kernel // 2`` from the rim.
        kernel: 3 or 5.

    Returns:
        float32 ``(n, C)`` for the n true cells, in row-major order; no gradient.

    Raises:
        ConfigError: Another kernel size.
    """
    weights = _gaussian(kernel).to(tokens.device)
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


def find_defects(
    tokens: Tensor, direction: Tensor, *, mu: float = DEFAULT_MU, kernel: int = 3, minimum: int = MIN_DEFECTS
) -> tuple[Tensor, Tensor]:
    """Scores and defective cells of a batch; images with fewer than ``minimum`` of them have none.

    Args:
        tokens: ``(B, h, w, C)``, a block's output without the final norm.
        direction: ``(C,)``, the block's singular-defect direction.
        mu: See :func:`detect_defects`.
        kernel: 3 or 5; a rim of ``kernel // 2`` is excluded.
        minimum: Least number of defective cells an image must have.

    Returns:
        ``(B, h, w)`` float32 scores and ``(B, h, w)`` bool.
    """
    scores = alignment(tokens.detach(), direction)
    found = detect_defects(scores, mu=mu, border=kernel // 2)
    enough = found.flatten(1).sum(dim=1) >= minimum
    return scores, found & enough[:, None, None]


def defect_loss(
    tokens: Tensor, direction: Tensor, *, mu: float = DEFAULT_MU, kernel: int = 3, minimum: int = MIN_DEFECTS
) -> Tensor | None:
    """The repair's loss on one image: mean distance of defective tokens to their targets.

    The distance is divided by the mean token norm over the interior, which carries no gradient, so that the
    loss does not depend on the scale of the stream.

    Args:
        tokens: ``(1, h, w, C)``, with a gradient if wanted.
        direction: ``(C,)``.
        mu: See :func:`detect_defects`.
        kernel: 3 or 5.
        minimum: Least number of defective tokens.

    Returns:
        A scalar, or None where the image has fewer than ``minimum`` defective tokens.
    """
    scores, found = find_defects(tokens, direction, mu=mu, kernel=kernel, minimum=minimum)
    if not bool(found.any()):
        return None
    target = neighbourhood_target(tokens, scores, found, kernel=kernel)
    rim = kernel // 2
    interior = tokens.detach()[:, rim : tokens.shape[1] - rim, rim : tokens.shape[2] - rim].float()
    distance: Tensor = torch.linalg.vector_norm(tokens[found].float() - target, dim=1).mean()
    norm: Tensor = torch.linalg.vector_norm(interior, dim=-1).mean()
    return distance / norm


def smooth_defects(
    tokens: Tensor, direction: Tensor, *, mu: float = DEFAULT_MU, kernel: int = 3, minimum: int = MIN_DEFECTS
) -> tuple[Tensor, Tensor]:
    """A batch with its defective tokens replaced by the repair's targets; everything else untouched.

    Args:
        tokens: ``(B, h, w, C)``, a block's output without the final norm.
        direction: ``(C,)``.
        mu: See :func:`detect_defects`.
        kernel: 3 or 5.
        minimum: Least number of defective tokens an image must have.

    Returns:
        The tokens, in their dtype (the input itself where nothing was found), and the replaced cells, bool
        ``(B, h, w)``.
    """
    scores, found = find_defects(tokens, direction, mu=mu, kernel=kernel, minimum=minimum)
    if not bool(found.any()):
        return tokens, found
    mended = tokens.clone()
    mended[found] = neighbourhood_target(tokens, scores, found, kernel=kernel).to(tokens.dtype)
    return mended, found


class DefectSmoother:
    """Mends defective tokens inside a forward pass, without training.

    Called behind every block (it is a ``Backbone.token_hook``), it checks the patch tokens against the block's
    direction and replaces the defective ones before the next block reads them. Blocks that a forward does not
    run are not checked, so nothing is computed that was not asked for.

    Invariant: images are independent, and an image without defects passes unchanged. The counts of
    :meth:`report` grow over all forwards.
    """

    def __init__(
        self,
        directions: Tensor,
        *,
        num_prefix_tokens: int,
        mu: float = DEFAULT_MU,
        kernel: int = 3,
        minimum: int = MIN_DEFECTS,
    ) -> None:
        """Smooth along these directions.

        Args:
            directions: ``(blocks, C)`` from ``defect_directions``.
            num_prefix_tokens: CLS and register tokens in front of the patch tokens; never changed.
            mu: See :func:`detect_defects`.
            kernel: 3 or 5.
            minimum: Least number of defective tokens an image must have at a block.

        Raises:
            ConfigError: Another kernel.
        """
        _gaussian(kernel)
        self._directions = directions
        self._prefix = num_prefix_tokens
        self._mu, self._kernel, self._minimum = mu, kernel, minimum
        self._tokens_by_block = [0] * len(directions)
        self._images_by_block = [0] * len(directions)

    def __call__(self, layer: int, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """The tokens ``(B, prefix + h * w, C)`` behind block ``layer``, the defective patches mended."""
        batch, _, channels = tokens.shape
        patches = tokens[:, self._prefix :].reshape(batch, *grid_hw, channels)
        mended, found = smooth_defects(
            patches, self._directions[layer], mu=self._mu, kernel=self._kernel, minimum=self._minimum
        )
        if mended is patches:
            return tokens
        self._tokens_by_block[layer] += int(found.sum())
        self._images_by_block[layer] += int(found.flatten(1).any(dim=1).sum())
        return torch.cat([tokens[:, : self._prefix], mended.flatten(1, 2)], dim=1)

    def report(self) -> dict[str, Any]:
        """How many tokens, in how many images, were replaced behind which block; JSON-ready."""
        return {
            "smoothed_tokens": sum(self._tokens_by_block),
            "by_block": [
                {"block": index, "images": images, "tokens": tokens}
                for index, (images, tokens) in enumerate(
                    zip(self._images_by_block, self._tokens_by_block, strict=True)
                )
                if images
            ],
        }


def _gaussian(kernel: int) -> Tensor:
    if kernel not in _GAUSSIANS:
        raise ConfigError(f"the neighbourhood of a defective token is 3 or 5 cells wide, got {kernel}")
    return torch.tensor(_GAUSSIANS[kernel], dtype=torch.float32)
