"""Whether a model has singular defects at all: a survey over images, with a control.

The detection threshold is relative to the image, so some tokens pass it in any model. Real defects have two
marks: the norms of the detected tokens stand out (an order of magnitude in DINOv2 ViT-g/14), and a random
direction detects far fewer of them than the singular-defect direction does. Both are in Wang, Zhang, Salzmann,
SINDER, ECCV 2024; the thresholds that decide when there is nothing to repair are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.extract.repair.sinder import DEFAULT_RULE, DetectionRule, find_defects, patch_tokens

MIN_NORM_RATIO = 2.0
"""Detected tokens of a real defect have at least this many times the median norm of their image."""

CONTROL_FACTOR = 2.0
"""Real defects are detected in more than this many times as many images as along a random direction."""


@dataclass(frozen=True, slots=True)
class LayerSurvey:
    """What was detected after one block.

    Attributes:
        layer: 0-based.
        images: Images with enough detected tokens (``DetectionRule.minimum``).
        tokens: Detected tokens in those images.
        control_images: The same as ``images``, along a random direction.
        norm_ratio: Mean norm of the detected tokens over the median of their image; 0 without detections.
        largest_norm_ratio: Largest norm of any token over the median of its image, mean over all images.
    """

    layer: int
    images: int
    tokens: int
    control_images: int
    norm_ratio: float
    largest_norm_ratio: float

    @property
    def is_defective(self) -> bool:
        """Whether what was detected has the marks of singular defects."""
        return self.images > CONTROL_FACTOR * self.control_images and self.norm_ratio >= MIN_NORM_RATIO


class DefectSurvey:
    """Counts detections after every block; a ``Backbone.token_hook`` that changes nothing.

    Invariant: counts grow over all forwards; make a new survey for another question.
    """

    def __init__(
        self,
        directions: Tensor,
        *,
        num_prefix_tokens: int,
        rule: DetectionRule = DEFAULT_RULE,
        seed: int = 0,
    ) -> None:
        """Survey along these directions.

        Args:
            directions: ``(blocks, C)`` from ``defect_directions``.
            num_prefix_tokens: CLS and register tokens before the patch tokens.
            rule: When a token counts as defective.
            seed: Of the random control directions, one per block.
        """
        generator = torch.Generator().manual_seed(seed)
        self._directions = directions
        self._control = torch.randn(directions.shape, generator=generator)
        self._prefix = num_prefix_tokens
        self._rule = rule
        layers = len(directions)
        self.num_images = 0
        self._images, self._tokens, self._control_images = [0] * layers, [0] * layers, [0] * layers
        self._ratios, self._largest = [0.0] * layers, [0.0] * layers

    def __call__(self, layer: int, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Count the tokens ``(B, prefix + h * w, C)`` after block ``layer``; returns them as they are."""
        patches = patch_tokens(tokens.detach(), self._prefix, grid_hw)
        norms = torch.linalg.vector_norm(patches.float(), dim=-1)
        ratios = norms / norms.flatten(1).median(dim=1).values[:, None, None].clamp_min(1e-12)
        found = self._found(patches, self._directions[layer])
        self._images[layer] += int(found.flatten(1).any(dim=1).sum())
        self._tokens[layer] += int(found.sum())
        self._ratios[layer] += float(ratios[found].sum())
        self._largest[layer] += float(ratios.flatten(1).amax(dim=1).sum())
        control = self._found(patches, self._control[layer])
        self._control_images[layer] += int(control.flatten(1).any(dim=1).sum())
        if layer == 0:
            self.num_images += len(tokens)
        return tokens

    def _found(self, patches: Tensor, direction: Tensor) -> Tensor:
        return find_defects(patches, direction, self._rule)[1]

    def result(self) -> list[LayerSurvey]:
        """One entry per block, in order."""
        images = max(self.num_images, 1)
        return [
            LayerSurvey(
                layer=layer,
                images=self._images[layer],
                tokens=self._tokens[layer],
                control_images=self._control_images[layer],
                norm_ratio=self._ratios[layer] / max(self._tokens[layer], 1),
                largest_norm_ratio=self._largest[layer] / images,
            )
            for layer in range(len(self._directions))
        ]


def defective_layers(survey: Sequence[LayerSurvey]) -> list[int]:
    """The layers whose detections have the marks of singular defects."""
    return [entry.layer for entry in survey if entry.is_defective]
