"""Reading ViTDet checkpoints, against a plain computation with the official tensors as Detectron2 does it."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.core.errors import WeightsError
from pipeline.detect import load_any_detector
from pipeline.detect.detectron2 import official_settings, read_official
from tests.pipeline.detect import official

CANVAS = official.CELLS * official.PATCH


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return official.official_tensors()


@pytest.fixture
def checkpoint(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """As the official files are: a pickle of numpy arrays under ``model``."""
    path = tmp_path / "model_final.pkl"
    content = {"model": {name: value.numpy() for name, value in tensors.items()}, "__author__": "made"}
    path.write_bytes(pickle.dumps(content))
    return path


def plain_norm(values: Tensor, tensors: dict[str, Tensor], stem: str, dim: int) -> Tensor:
    values = values.movedim(dim, -1)
    spread = (values.var(dim=-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    normed = (values - values.mean(dim=-1, keepdim=True)) / spread
    return (normed * tensors[f"{stem}.weight"] + tensors[f"{stem}.bias"]).movedim(-1, dim)


def plain_attention(tokens: Tensor, tensors: dict[str, Tensor], stem: str) -> Tensor:
    """Attention over one window ``(h, w, C)``, key by key, with the relative positions of its rows and columns."""
    height, width, _ = tokens.shape
    qkv = tokens.reshape(height * width, -1) @ tensors[f"{stem}qkv.weight"].T + tensors[f"{stem}qkv.bias"]
    heads = qkv.reshape(height * width, 3, official.HEADS, -1)
    mixed = torch.zeros(height * width, official.HEADS, heads.shape[-1])
    for query in range(height * width):
        for head in range(official.HEADS):
            own = heads[query, 0, head]
            logits = torch.zeros(height * width)
            for key in range(height * width):
                down, across = query // width - key // width, query % width - key % width
                logits[key] = own @ heads[key, 1, head] / math.sqrt(len(own))
                logits[key] += own @ tensors[f"{stem}rel_pos_h"][down + height - 1]
                logits[key] += own @ tensors[f"{stem}rel_pos_w"][across + width - 1]
            mixed[query, head] = logits.softmax(0) @ heads[:, 2, head]
    out = mixed.flatten(1) @ tensors[f"{stem}proj.weight"].T + tensors[f"{stem}proj.bias"]
    return out.reshape(height, width, -1)


def plain_backbone(image: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """``(C, h, w)`` of ViTDet's ViT for one normalized image."""
    net = {name.removeprefix("backbone.net."): value for name, value in tensors.items()}
    x = F.conv2d(image[None], net["patch_embed.proj.weight"], net["patch_embed.proj.bias"], stride=official.PATCH)
    side = official.PRETRAINED
    position = net["pos_embed"][:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    x = x + F.interpolate(position, size=x.shape[-2:], mode="bicubic", align_corners=False)
    tokens = x[0].permute(1, 2, 0)
    for block in range(official.DEPTH):
        stem = f"blocks.{block}."
        window = official.CELLS if block in official.GLOBAL else official.WINDOW
        normed, attended = plain_norm(tokens, net, f"{stem}norm1", -1), torch.zeros_like(tokens)
        for top in range(0, official.CELLS, window):
            for left in range(0, official.CELLS, window):
                place = slice(top, top + window), slice(left, left + window)
                attended[place] = plain_attention(normed[place], net, f"{stem}attn.")
        tokens = tokens + attended
        hidden = plain_norm(tokens, net, f"{stem}norm2", -1) @ net[f"{stem}mlp.fc1.weight"].T
        hidden = F.gelu(hidden + net[f"{stem}mlp.fc1.bias"])
        tokens = tokens + hidden @ net[f"{stem}mlp.fc2.weight"].T + net[f"{stem}mlp.fc2.bias"]
    return tokens.permute(2, 0, 1)


def plain_level_2(values: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """``simfp_2`` of a map ``(1, C, h, w)``."""
    own = {n.removeprefix("backbone.simfp_2."): v for n, v in tensors.items() if ".simfp_2." in n}
    x = F.conv_transpose2d(values, own["0.weight"], own["0.bias"], stride=2)
    x = F.gelu(plain_norm(x, own, "1", 1))
    x = F.conv_transpose2d(x, own["3.weight"], own["3.bias"], stride=2)
    x = plain_norm(F.conv2d(x, own["4.weight"]), own, "4.norm", 1)
    return plain_norm(F.conv2d(x, own["5.weight"], padding=1), own, "5.norm", 1)


def test_the_architecture_follows_from_the_shapes(tensors: dict[str, Tensor]) -> None:
    settings = official_settings(tensors, "made")
    assert settings.windowed is not None
    assert settings.windowed.global_blocks == official.GLOBAL
    assert (settings.windowed.num_heads, settings.windowed.window_cells) == (official.HEADS, official.WINDOW)
    assert settings.canvas_hw == (CANVAS, CANVAS)
    assert (settings.rpn_convs, settings.box_convs, settings.mask_convs) == (2, 4, 4)
    named = official_settings(official.official_tensors(classes=80), "made")
    assert (named.categories[0], named.category_ids[79], named.categories[79]) == ("person", 90, "toothbrush")


def test_a_checkpoint_gives_the_numbers_of_detectron2s_arithmetic(
    tensors: dict[str, Tensor], checkpoint: Path
) -> None:
    detector = load_any_detector(checkpoint, device="cpu").detector
    assert detector.strides == [4, 8, 16, 32, 64]
    image = torch.randn(3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = detector.feature_maps(image[None])
        levels = detector.pyramid(maps)
        objectness, _ = detector.proposals.head(list(levels.values()))
    torch.testing.assert_close(maps[0], plain_backbone(image, tensors), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(levels["0"], plain_level_2(maps, tensors), rtol=1e-3, atol=1e-4)
    rpn = {n.removeprefix("proposal_generator.rpn_head."): v for n, v in tensors.items()}
    hidden = levels["2"]
    for conv in (0, 1):
        hidden = F.relu(F.conv2d(hidden, rpn[f"conv.conv{conv}.weight"], rpn[f"conv.conv{conv}.bias"], padding=1))
    expected = F.conv2d(hidden, rpn["objectness_logits.weight"], rpn["objectness_logits.bias"])
    torch.testing.assert_close(objectness[2], expected, rtol=1e-3, atol=1e-4)
    boxes = torch.randn(5, official.CHANNELS, 7, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, regression = detector.heads.box_predictor(detector.heads.box_head(boxes))
        masks = detector.heads.mask_predictor(detector.heads.mask_head(boxes))
    box, mask = boxes, boxes
    for conv in range(1, 5):
        for kind, values in (("box_head.conv", box), ("mask_head.mask_fcn", mask)):
            stem = f"roi_heads.{kind}{conv}"
            values = F.relu(
                plain_norm(F.conv2d(values, tensors[f"{stem}.weight"], padding=1), tensors, f"{stem}.norm", 1)
            )
            box, mask = (values, mask) if kind.startswith("box") else (box, values)
    heads = {name.removeprefix("roi_heads."): value for name, value in tensors.items()}
    fc = F.relu(box.flatten(1) @ heads["box_head.fc1.weight"].T + heads["box_head.fc1.bias"])
    scores = fc @ heads["box_predictor.cls_score.weight"].T + heads["box_predictor.cls_score.bias"]
    torch.testing.assert_close(logits[:, 1:], scores[:, :-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits[:, 0], scores[:, -1], rtol=1e-3, atol=1e-4)
    moved = fc @ heads["box_predictor.bbox_pred.weight"].T + heads["box_predictor.bbox_pred.bias"]
    torch.testing.assert_close(regression[:, 4:], moved, rtol=1e-3, atol=1e-4)
    mask = F.relu(
        F.conv_transpose2d(mask, heads["mask_head.deconv.weight"], heads["mask_head.deconv.bias"], stride=2)
    )
    mask = F.conv2d(mask, heads["mask_head.predictor.weight"], heads["mask_head.predictor.bias"])
    torch.testing.assert_close(masks[:, 1:], mask, rtol=1e-3, atol=1e-4)


def test_pth_and_safetensors_hold_the_same_as_the_pickle(
    tensors: dict[str, Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    torch.save({"model": tensors, "iteration": 3}, tmp_path / "model.pth")
    save_file(tensors, tmp_path / "model.safetensors")
    expected = read_official(checkpoint)
    for name in ("model.pth", "model.safetensors"):
        torch.testing.assert_close(read_official(tmp_path / name), expected)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = [load_any_detector(tmp_path / n, device="cpu").detector.detect([image])[0] for n in ("model.pth",)]
    assert all(len(own) <= 100 for own in found)


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


def test_a_pickle_that_calls_a_function_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pkl").write_bytes(pickle.dumps({"model": {"a": _Attack()}}))
    with pytest.raises(WeightsError, match="mkdir, and only numpy arrays are read"):
        read_official(Path("bad.pkl"))
    assert not Path("attacked").exists()
    objects = np.empty(1, dtype=object)
    objects[0] = _Attack()
    Path("bad.pkl").write_bytes(pickle.dumps({"model": {"a": objects}}))
    with pytest.raises(WeightsError, match="only numpy arrays are read"):
        read_official(Path("bad.pkl"))
    assert not Path("attacked").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi_heads.box_head.0.fc1.weight": (3, 3)}, "Cascade"),
        ({"backbone.net.blocks.0.residual.conv1.weight": (3, 3)}, "residual"),
        ({"roi_heads.keypoint_head.conv1.weight": (3, 3)}, "keypoint_head"),
    ],
)
def test_other_models_are_refused_with_the_reason(
    tensors: dict[str, Tensor], tmp_path: Path, change: dict[str, tuple[int, ...]], message: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": {**tensors, **{name: torch.zeros(shape) for name, shape in change.items()}}}, path)
    with pytest.raises(WeightsError, match=message):
        load_any_detector(path, device="cpu")


def test_a_file_without_a_pyramid_or_positions_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for left_out, message in ((".simfp_", "no simple feature pyramid"), ("rel_pos_h", "relative positions")):
        torch.save({n: v for n, v in tensors.items() if left_out not in n}, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=message):
            load_any_detector(tmp_path / "other.pth", device="cpu")
