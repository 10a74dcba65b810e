from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError, WeightsError
from pipeline.training.defect_survey import DefectSurvey, LayerSurvey
from pipeline.training.repair import Repairer, RepairSettings, save_backbone
from stages.extract.backbone.backbone import load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.repair.sinder import defect_loss
from stages.extract.repair.singular_directions import defect_directions

LAST = [parse_facet("token@-1")]
IDENTITY = {"weights": "abc"}


def survey(planted: Any, directions: Tensor) -> list[LayerSurvey]:
    counter = DefectSurvey(directions, num_prefix_tokens=1)
    planted.backbone.token_hook = counter
    with torch.no_grad():
        planted.backbone(planted.images, LAST)
    planted.backbone.token_hook = None
    return counter.result()


def make_repairer(planted: Any, **settings: Any) -> Repairer:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    chosen = RepairSettings(**{"window": 8, **settings})
    return Repairer(planted.backbone, lambda layer, tokens: defect_loss(tokens, directions[layer]), chosen)


def shifts_of(repairer: Repairer) -> list[float]:
    """Largest move of a singular value, block by block."""
    return [max(float(p.detach().abs().max()) for p in block.values()) for block in repairer._shifts]


def test_repair_removes_planted_defects_and_norm_outliers(planted: Any) -> None:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    before = survey(planted, directions)
    others = planted.backbone(planted.images, LAST).maps["token@-1"]
    repairer = make_repairer(planted, learning_rate=0.05)
    outcomes = []
    while not repairer.finished:
        step = repairer.step(planted.images[repairer.iterations % 4][None])
        outcomes.append(step.outcome)
        assert repairer.iterations < 100
    repairer.fold()
    after = survey(planted, directions)
    assert outcomes[0] == "trained"
    assert before[1].tokens >= 3 * len(planted.images)
    assert sum(entry.tokens for entry in after) < sum(entry.tokens for entry in before) / 4
    for old, new in zip(before[1:], after[1:], strict=True):
        assert new.largest_norm_ratio < old.largest_norm_ratio / 4
    repaired = planted.backbone(planted.images, LAST).maps["token@-1"]
    marked = torch.zeros(14, 14, dtype=torch.bool)
    for row, column in planted.cells:
        marked[row, column] = True
    # The rest of the picture is not paid for it.
    assert torch.cosine_similarity(others, repaired, dim=1)[:, ~marked].mean() > 0.9


def test_gradients_equal_those_of_one_full_backward(planted: Any) -> None:
    directions = defect_directions(planted.backbone.vit.blocks, fit="exact")
    repairer = make_repairer(planted, learning_rate=1.0, momentum=0.0)
    parameters = repairer._named_shifts()
    tokens, rope, _ = planted.backbone.embed(planted.images[:1])
    for layer in range(2):
        tokens = planted.backbone.run_block(layer, tokens, rope)
    loss = defect_loss(tokens[:, 1:].reshape(1, 14, 14, -1), directions[1])
    assert loss is not None
    names = [name for name in parameters if name.startswith(("0.", "1."))]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    step = repairer.step(planted.images[:1])
    assert (step.outcome, step.layer) == ("trained", 1)
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(parameters[name].detach(), -gradient, rtol=1e-4, atol=1e-6)


def test_only_the_last_blocks_up_to_the_defective_one_move(planted: Any) -> None:
    repairer = make_repairer(planted, limit_layers=1)
    repairer.step(planted.images[:1])
    moved = shifts_of(repairer)
    assert moved[1] > 0
    assert [moved[0], moved[2], moved[3]] == [0, 0, 0]
    assert [entry["block"] for entry in repairer.shift_summary()] == [1]


def test_an_image_without_defects_is_skipped_and_counts_towards_the_stop(planted: Any) -> None:
    repairer = make_repairer(planted, window=4, stop_share=0.75)
    clean = 0.3 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(9))
    outcomes = [repairer.step(image).outcome for image in (planted.images[:1], clean, clean)]
    assert outcomes == ["trained", "skipped", "skipped"]
    assert not repairer.finished
    assert repairer.step(clean).outcome == "skipped"
    assert repairer.skipped_share == 0.75
    assert repairer.finished


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing(planted: Any, poison: str) -> None:
    def loss(layer: int, tokens: Tensor) -> Tensor | None:
        if layer < 1:
            return None
        total = tokens.sum()
        # The square root at zero has a finite value and no finite slope.
        return total * float("nan") if poison == "loss" else (total - total).sqrt()

    repairer = Repairer(planted.backbone, loss, RepairSettings(window=2))
    assert repairer.step(planted.images[:1]).outcome == "not_finite"
    assert shifts_of(repairer) == [0, 0, 0, 0]
    assert repairer.skipped_share == 0


def test_an_interrupted_repair_goes_on_as_if_nothing_had_happened(planted: Any, tmp_path: Path) -> None:
    file = tmp_path / "state.unfinished"
    weights = {name: value.clone() for name, value in planted.backbone.vit.state_dict().items()}
    straight = make_repairer(planted, learning_rate=0.002)
    for index in range(4):
        straight.step(planted.images[index][None])
        if index == 1:
            straight.save_progress(file, IDENTITY)
    expected = {name: p.detach().clone() for name, p in straight._named_shifts().items()}
    straight.fold()
    planted.backbone.vit.load_state_dict(weights)
    again = make_repairer(planted, learning_rate=0.002)
    again.load_progress(file, IDENTITY)
    assert again.iterations == 2
    for index in (2, 3):
        again.step(planted.images[index][None])
    assert again.skipped_share == straight.skipped_share
    for name, parameter in again._named_shifts().items():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert shifts_of(again)[1] > 0


def test_progress_of_another_run_is_refused(planted: Any, tmp_path: Path) -> None:
    file = tmp_path / "state.unfinished"
    repairer = make_repairer(planted)
    repairer.save_progress(file, IDENTITY)
    with pytest.raises(WeightsError, match="other weights, images or settings"):
        repairer.load_progress(file, {"weights": "other"})
    file.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot read the unfinished repair"):
        repairer.load_progress(file, IDENTITY)


def test_saved_weights_are_read_by_the_loader(planted: Any, tmp_path: Path) -> None:
    repairer = make_repairer(planted)
    repairer.step(planted.images[:1])
    repairer.fold()
    file = tmp_path / "new" / "repaired.safetensors"
    save_backbone(planted.backbone, file, {"made_by": "repair"})
    loaded = load_backbone("vit_tiny_patch16_224", weights=file, overrides={"depth": 4})
    expected = planted.backbone(planted.images, LAST).maps["token@-1"]
    assert torch.equal(loaded(planted.images, LAST).maps["token@-1"], expected)
    assert [path.name for path in file.parent.iterdir()] == ["repaired.safetensors"]


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": 0.0}, {"momentum": 1.0}, {"limit_layers": 0}, {"window": 0}, {"stop_share": 0.0}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="repair needs"):
        RepairSettings(**settings)


@pytest.mark.parametrize(
    ("name", "overrides", "layers"),
    [
        ("dinov2_vitg14", {"embed_dim": 48, "num_heads": 3, "img_size": 56}, 4),
        ("dinov2_vits14_reg", {"embed_dim": 48, "num_heads": 3, "img_size": 56}, 4),
        ("dinov3_vits16plus", {"embed_dim": 48, "num_heads": 3}, 5),
    ],
)
def test_packed_and_split_gates_registers_and_rotary_embeddings_can_be_repaired(
    name: str, overrides: dict[str, Any], layers: int
) -> None:
    backbone = load_backbone(name, weights="random", overrides={"depth": 2, **overrides})
    with torch.no_grad():
        for key, parameter in backbone.vit.named_parameters():
            if "gamma" in key:
                parameter.fill_(1.0)
    directions = defect_directions(backbone.vit.blocks, fit="exact")
    assert directions.shape == (2, 48)
    side = 4 * backbone.patch_px
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    def loss(layer: int, tokens: Tensor) -> Tensor | None:
        assert tokens.shape == (1, 4, 4, 48)
        return tokens.square().mean() if layer == 1 else None

    repairer = Repairer(backbone, loss, RepairSettings(learning_rate=0.5))
    losses = [repairer.step(image).loss or 0.0 for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert [len(block) for block in repairer._shifts] == [layers, layers]
    with torch.no_grad():
        before = backbone(image, LAST).maps["token@-1"]
        repairer.fold()
        assert torch.equal(backbone(image, LAST).maps["token@-1"], before)
