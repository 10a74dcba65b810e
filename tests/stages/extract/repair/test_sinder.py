from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.training.defect_survey import DefectSurvey, defective_layers
from stages.extract.backbone.facets import parse_facet
from stages.extract.repair.sinder import (
    DefectSmoother,
    DetectionRule,
    alignment,
    all_targets,
    defect_loss,
    detect_defects,
    find_defects,
    neighborhood_target,
    smooth_defects,
)
from stages.extract.repair.singular_directions import defect_directions

LAST = [parse_facet("token@-1")]
GAUSSIAN_5 = [[1, 4, 7, 4, 1], [4, 16, 26, 16, 4], [7, 26, 41, 26, 7], [4, 16, 26, 16, 4], [1, 4, 7, 4, 1]]


def tokens_with_outliers(cells: list[tuple[int, int]], seed: int = 0, size: int = 14) -> tuple[Tensor, Tensor]:
    """``(1, size, size, 8)`` random tokens in which some point strongly along a direction, and the direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    tokens = torch.randn(1, size, size, 8, generator=generator)
    tokens -= (tokens @ direction)[..., None] * direction * 0.9
    for row, column in cells:
        tokens[0, row, column] = 40 * direction
    return tokens, direction


def naive_target(tokens: Tensor, scores: Tensor, row: int, column: int, gaussian: list[list[int]]) -> Tensor:
    """The learning target of one token, cell by cell, normalized twice as published."""
    reach = len(gaussian) // 2
    cells = [(dr, dc) for dr in range(-reach, reach + 1) for dc in range(-reach, reach + 1)]
    weights = {cell: math.exp(-float(scores[row + cell[0], column + cell[1]]) / 0.1) for cell in cells}
    total = sum(weights.values())
    mass = sum(sum(line) for line in gaussian)
    weights = {c: w / total * gaussian[c[0] + reach][c[1] + reach] / mass for c, w in weights.items()}
    total = sum(weights.values())
    mean = torch.zeros(tokens.shape[-1])
    for (dr, dc), weight in weights.items():
        mean += weight / total * tokens[row + dr, column + dc]
    return mean


@pytest.mark.parametrize(("kernel", "gaussian"), [(3, [[1, 2, 1], [2, 4, 2], [1, 2, 1]]), (5, GAUSSIAN_5)])
def test_target_equals_a_loop_over_the_neighborhood(kernel: int, gaussian: list[list[int]]) -> None:
    cells = [(3, 4), (3, 5), (9, 9)]
    tokens, direction = tokens_with_outliers(cells)
    scores = alignment(tokens, direction)
    where = torch.zeros(1, 14, 14, dtype=torch.bool)
    for row, column in cells:
        where[0, row, column] = True
    found = neighborhood_target(tokens, scores, where, kernel=kernel)
    expected = torch.stack([naive_target(tokens[0], scores[0], *cell, gaussian) for cell in cells])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_detection_is_one_sided_unbiased_and_leaves_out_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 0.1 * torch.rand(1, 12, 12, generator=generator)
    scores[0, 0, 5] = scores[0, 6, 6] = scores[0, 11, 11] = 0.9
    scores[0, 3, 3] = -0.9
    values = [float(v) for v in scores.flatten()]
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    expected = (scores > mean + 4 * std) & (torch.arange(12) > 0) & (torch.arange(12) < 11)
    expected[0, 0] = expected[0, 11] = False
    assert torch.equal(detect_defects(scores), expected)
    assert detect_defects(scores).nonzero().tolist() == [[0, 6, 6]]
    assert detect_defects(scores, border=0).sum() == 3


def test_images_of_a_batch_are_judged_each_on_its_own() -> None:
    three, direction = tokens_with_outliers([(3, 4), (5, 9), (8, 2)])
    two, _ = tokens_with_outliers([(3, 4), (5, 9)])
    batch = torch.cat([three, two, three.flip(1)])
    _, found = find_defects(batch, direction)
    assert found.flatten(1).sum(dim=1).tolist() == [3, 0, 3]
    for image, mask in zip(batch, found, strict=True):
        assert torch.equal(find_defects(image[None], direction)[1][0], mask)


def test_smoothing_replaces_the_defects_and_nothing_else() -> None:
    tokens, direction = tokens_with_outliers([(3, 4), (5, 9), (8, 2)])
    clean, _ = tokens_with_outliers([], seed=1)
    batch = torch.cat([tokens, clean])
    smoothed, found = smooth_defects(batch, direction)
    assert torch.equal(smoothed[~found], batch[~found])
    assert smoothed[found].norm(dim=1).max() < 4 < batch[found].norm(dim=1).min()
    assert batch[0, 3, 4].norm() > 30  # the input itself is left alone
    same, none = smooth_defects(clean, direction)
    assert same is clean
    assert not none.any()


def test_smoothing_keeps_half_precision() -> None:
    tokens, direction = tokens_with_outliers([(3, 4), (5, 9), (8, 2)])
    smoothed, _ = smooth_defects(tokens.bfloat16(), direction)
    assert smoothed.dtype == torch.bfloat16


def test_loss_is_the_mean_distance_over_the_mean_interior_norm() -> None:
    cells = [(3, 4), (5, 9), (8, 2)]
    tokens, direction = tokens_with_outliers(cells)
    tokens[0, 0, 0] *= 1000  # the border has no part in the mean norm
    tokens.requires_grad_(True)
    loss = defect_loss(tokens, direction)
    assert loss is not None
    scores = alignment(tokens.detach(), direction)[0]
    plain = tokens.detach()[0]
    gaussian = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    distances = [float((plain[r, c] - naive_target(plain, scores, r, c, gaussian)).norm()) for r, c in cells]
    mean_norm = float(plain[1:-1, 1:-1].norm(dim=-1).mean())
    assert float(loss.detach()) == pytest.approx(sum(distances) / 3 / mean_norm, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    # Target and norm are constants: only the defective tokens are pulled.
    moved = tokens.grad[0].norm(dim=-1).nonzero().tolist()
    assert moved == [list(cell) for cell in cells]


def test_too_few_defects_give_no_loss() -> None:
    tokens, direction = tokens_with_outliers([(3, 4), (5, 9)])
    assert defect_loss(tokens, direction) is None
    assert defect_loss(tokens, direction, DetectionRule(minimum=2)) is not None
    assert defect_loss(torch.ones(1, 1, 1, 8), direction) is None


def test_other_kernels_are_refused() -> None:
    tokens, direction = tokens_with_outliers([(3, 4), (5, 9), (8, 2)])
    with pytest.raises(ConfigError, match="3 or 5 cells wide, got 4"):
        defect_loss(tokens, direction, DetectionRule(kernel=4))
    with pytest.raises(ConfigError, match="3 or 5"):
        DefectSmoother(direction[None], num_prefix_tokens=1, rule=DetectionRule(kernel=7))


def test_directions_find_the_planted_one_from_its_block_on(planted: Any) -> None:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    cosines = (directions @ planted.direction).abs()
    assert cosines[0] < 0.5
    assert cosines[1:].min() > 0.9
    sampled = defect_directions(planted.backbone.vit.blocks, samples=20_000)
    assert (sampled[1:] @ planted.direction).abs().min() > 0.9


def test_survey_tells_planted_defects_from_a_clean_model(planted: Any) -> None:
    blocks = planted.backbone.vit.blocks
    survey = DefectSurvey(defect_directions(blocks, fit="exact"), num_prefix_tokens=1)
    planted.backbone.token_hook = survey
    planted.backbone(planted.images, LAST)
    assert survey.num_images == 4
    assert defective_layers(survey.result()) == [1, 2, 3]
    assert survey.result()[1].norm_ratio > 10
    with torch.no_grad():
        blocks[1].mlp.fc2.weight[:, 0] = 0
    clean = DefectSurvey(defect_directions(blocks, fit="exact"), num_prefix_tokens=1)
    planted.backbone.token_hook = clean
    planted.backbone(planted.images, LAST)
    assert defective_layers(clean.result()) == []


def test_survey_changes_nothing(planted: Any) -> None:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    plain = planted.backbone(planted.images, LAST).maps["token@-1"]
    planted.backbone.token_hook = DefectSurvey(directions, num_prefix_tokens=1)
    assert torch.equal(planted.backbone(planted.images, LAST).maps["token@-1"], plain)


def test_smoother_replaces_the_planted_tokens_inside_the_forward(planted: Any) -> None:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    smoother = DefectSmoother(directions, num_prefix_tokens=1)
    plain = planted.backbone(planted.images, LAST).maps["token@-1"]
    planted.backbone.token_hook = smoother
    smoothed = planted.backbone(planted.images, LAST).maps["token@-1"]
    report = smoother.report()
    assert report["by_block"][0]["block"] == 1
    assert report["smoothed_tokens"] == sum(entry["tokens"] for entry in report["by_block"])
    assert report["by_block"][0]["images"] == len(planted.images)
    for before, after in zip(plain.norm(dim=1), smoothed.norm(dim=1), strict=True):
        assert min(before[r, c] / before.median() for r, c in planted.cells) > 50
        assert max(after[r, c] / after.median() for r, c in planted.cells) < 10


@pytest.mark.parametrize("kernel", [3, 5])
def test_targets_of_all_cells_are_those_of_single_ones(kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, scores = torch.randn(2, 7, 8, 6, generator=generator), torch.rand(2, 7, 8, generator=generator)
    where = torch.zeros(2, 7, 8, dtype=torch.bool)
    where[:, kernel // 2 : -(kernel // 2), kernel // 2 : -(kernel // 2)] = True
    everywhere = all_targets(tokens, scores, kernel=kernel)
    torch.testing.assert_close(everywhere[where], neighborhood_target(tokens, scores, where, kernel=kernel))
