"""Weights files in the official layouts, made here from random values, and files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pipeline.core.torchvision_ops  # noqa: F401  (before timm)
from pipeline.core.errors import WeightsError
from pipeline.core.files import sha256_of
from stages.extract.backbone import weights
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.backbone.registry import BACKBONES, BackboneEntry

SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 3}
State = dict[str, Tensor]


def reference(name: str) -> Backbone:
    """A small backbone whose every parameter is a different random value."""
    backbone = load_backbone(name, weights="random", overrides=dict(SMALL))
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.parameters():
        parameter.normal_(std=0.1, generator=generator)
    return backbone


def state_of(backbone: Backbone) -> State:
    return {name: value.clone() for name, value in backbone.vit.state_dict().items()}


def assert_same(first: Backbone, second: Backbone) -> None:
    own, other = first.vit.state_dict(), second.vit.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.allclose(own[name], other[name], atol=1e-6) for name in own)


def load(name: str, path: Path) -> Backbone:
    return load_backbone(name, weights=path, overrides=dict(SMALL))


def dino_teacher(state: State) -> Any:
    head = {"module.head.mlp.0.weight": torch.zeros(3), "module.head.last_layer.weight_g": torch.zeros(3)}
    teacher = {f"module.backbone.{k}": v for k, v in state.items()} | head
    return {"student": {"x": torch.zeros(1)}, "teacher": teacher, "epoch": 100}


def dino_plain(state: State) -> Any:
    return state


def ibot_state(state: State) -> Any:
    return {"state_dict": state | {"masked_embed": torch.zeros(1, 96), "head.mlp.0.weight": torch.zeros(2)}}


def mae_pretrained(state: State) -> Any:
    decoder = {"decoder_pos_embed": torch.zeros(1, 197, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    return {"model": state | decoder | {"mask_token": torch.zeros(1, 1, 8)}}


def moco_checkpoint(state: State) -> Any:
    base = {f"module.base_encoder.{k}": v for k, v in state.items()}
    momentum = {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in state.items()}
    heads = {"module.base_encoder.head.0.weight": torch.zeros(2), "module.predictor.0.weight": torch.zeros(2)}
    return {"epoch": 300, "state_dict": base | momentum | heads}


def dinov2_hub(state: State) -> Any:
    return state | {"mask_token": torch.zeros(1, 96)}


def dinov2_chunked(state: State) -> Any:
    chunked = {k.replace("blocks.", "blocks.0.") if k.startswith("blocks.") else k: v for k, v in state.items()}
    teacher = {f"backbone.{k}": v for k, v in chunked.items()}
    return {"teacher": teacher | {"dino_head.mlp.0.weight": torch.zeros(2)}}


def dinov2_swiglu(state: State) -> Any:
    return {k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in state.items()}


def dinov3_hub(state: State) -> Any:
    official: State = {"mask_token": torch.zeros(1, 96), "rope_embed.periods": torch.zeros(8)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            stem = key.removesuffix("q_bias")
            # The key third is whatever training left there: it is masked to zero in the forward.
            parts = [value, torch.full_like(value, 7.0), state[stem + "v_bias"]]
            official[stem + "qkv.bias"] = torch.cat(parts)
            official[stem + "qkv.bias_mask"] = torch.ones(3 * len(value))
        elif not key.endswith("v_bias"):
            name = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            name = name.replace("fc1_g.", "w1.").replace("fc1_x.", "w2.")
            name = name.replace("mlp.fc2.", "mlp.w3.") if "fc1_g" in str(state.keys()) else name
            official[name.replace("reg_token", "storage_tokens")] = value
    return official


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("dino_vits16", dino_plain),
        ("dino_vits16", dino_teacher),
        ("dino_vitb8", dino_teacher),
        ("ibot_vits16", ibot_state),
        ("mae_vitb16", mae_pretrained),
        ("mocov3_vits16", moco_checkpoint),
        ("dinov2_vits14", dinov2_hub),
        ("dinov2_vits14", dinov2_chunked),
        ("dinov2_vitg14", dinov2_swiglu),
        ("dinov3_vits16", dinov3_hub),
        ("dinov3_vits16plus", dinov3_hub),
        ("vit_tiny_patch16_224", dino_plain),
    ],
)
def test_official_layouts_load(tmp_path: Path, name: str, layout: Callable[[State], Any]) -> None:
    original = reference(name)
    path = tmp_path / "official.pth"
    torch.save(layout(state_of(original)), path)
    loaded = load(name, path)
    assert_same(original, loaded)
    assert loaded.weights_sha256 == sha256_of(path)


def test_registers_keep_their_meaning(tmp_path: Path) -> None:
    # The official model adds the position to CLS and patches and puts the registers between them afterwards.
    original = reference("dinov2_vits14_reg")
    state = state_of(original)
    cls_position = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(3))
    official = {k: v for k, v in state.items() if k not in ("reg_token", "pos_embed")}
    official["register_tokens"] = state["reg_token"]
    official["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    official["cls_token"] = state["cls_token"] - cls_position
    torch.save(official, tmp_path / "reg.pth")
    assert_same(original, load("dinov2_vits14_reg", tmp_path / "reg.pth"))


def test_safetensors_in_half_precision_load(tmp_path: Path) -> None:
    original = reference("dino_vits16")
    save_file({k: v.half() for k, v in state_of(original).items()}, tmp_path / "half.safetensors")
    loaded = load("dino_vits16", tmp_path / "half.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    torch.testing.assert_close(loaded.vit.cls_token, original.vit.cls_token, atol=1e-3, rtol=1e-3)


def test_another_pretraining_size_is_accepted(tmp_path: Path) -> None:
    state = state_of(reference("dino_vits16"))
    state["pos_embed"] = torch.randn(1, 1 + 24 * 24, 96)
    save_file(state, tmp_path / "large.safetensors")
    backbone = load("dino_vits16", tmp_path / "large.safetensors")
    assert backbone.vit.pos_embed.shape == (1, 577, 96)
    assert backbone(torch.zeros(1, 3, 64, 32), [parse_facet("token@1")]).maps["token@1"].shape == (1, 96, 4, 2)


def test_a_wrong_file_lists_what_did_not_fit(tmp_path: Path) -> None:
    state = state_of(reference("dino_vits16"))
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["blocks.0.mlp.fc1.weight"] = torch.zeros(8, 96)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsError) as caught:
        load("dino_vits16", tmp_path / "wrong.safetensors")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("wrong.safetensors", "norm.weight", "extra.weight", "fc1.weight (8, 96) instead of (384, 96)"):
        assert part in message


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    save_file(state_of(reference("dinov2_vits14")), tmp_path / "dinov2.safetensors")
    with pytest.raises(WeightsError, match="ls1.gamma"):
        load("dino_vits16", tmp_path / "dinov2.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.pth", b"not a checkpoint"), ("cut.safetensors", b"\x10\0\0"), ("empty.pth", b"")],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        weights.read_weights(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save({"model": Path("x")}, path)
    with pytest.raises(WeightsError, match="code.pth"):
        weights.read_weights(path)


def test_a_cyclic_file_is_refused(tmp_path: Path) -> None:
    cyclic: dict[str, Any] = {"epoch": 1}
    cyclic["model"] = {"state_dict": cyclic}
    torch.save(cyclic, tmp_path / "cyclic.pth")
    with pytest.raises(WeightsError, match="cyclic.pth: holds no tensors"):
        weights.read_weights(tmp_path / "cyclic.pth")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(96, dtype=torch.complex64),
        torch.zeros(()),
    ],
    ids=["sparse", "complex", "scalar"],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, value: Tensor) -> None:
    state = state_of(reference("dino_vits16"))
    state["norm.weight"] = value
    torch.save(state, tmp_path / "kind.pth")
    with pytest.raises(WeightsError, match="norm.weight"):
        load("dino_vits16", tmp_path / "kind.pth")


def test_registers_without_a_position_embedding_are_refused(tmp_path: Path) -> None:
    torch.save({"register_tokens": torch.zeros(1, 4, 96)}, tmp_path / "half.pth")
    with pytest.raises(WeightsError, match="not in the layout 'dinov2_reg'"):
        load("dinov2_vits14_reg", tmp_path / "half.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_end_in_one_clear_error(tmp_path: Path, suffix: str) -> None:
    original = tmp_path / f"whole{suffix}"
    tensors = {"a": torch.arange(40.0), "b": torch.zeros(2, 3)}
    if suffix == ".pth":
        torch.save(tensors, original)
    else:
        save_file(tensors, original)
    content, messages = original.read_bytes(), list[str]()
    random = np.random.default_rng(0)
    for turn in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 1 + turn % 8):
            damaged[place] = random.integers(0, 256)
        if turn % 3 == 0:
            del damaged[int(random.integers(0, len(damaged))) :]
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged)
        try:
            weights.read_weights(path)
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("\n" not in message and f"damaged{suffix}: " in message for message in messages)


def test_a_missing_file_and_a_file_without_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        weights.read_weights(tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        weights.read_weights(tmp_path / "nothing.pth")


def test_changed_bundled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ASSETS", tmp_path)
    entry = BACKBONES["dinov2_vits14"]
    with pytest.raises(WeightsError, match="missing"):
        weights.bundled_path(entry)
    (tmp_path / entry.bundled).write_bytes(b"changed")
    with pytest.raises(WeightsError, match="sha256"):
        weights.bundled_path(entry)


def test_the_bundled_weights_have_a_notice() -> None:
    entry = BACKBONES["dinov2_vits14"]
    assert entry.sha256 in (weights.ASSETS / "NOTICE").read_text()
    assert weights.bundled_path(entry) == weights.ASSETS / entry.bundled


@pytest.mark.parametrize("entry", BACKBONES.values(), ids=lambda entry: entry.name)
def test_every_entry_names_a_timm_model_and_its_weights(entry: BackboneEntry) -> None:
    import timm

    assert timm.is_model(entry.timm_name)
    if entry.tag:
        assert timm.is_model_pretrained(f"{entry.timm_name}.{entry.tag}")
        config = timm.get_pretrained_cfg(f"{entry.timm_name}.{entry.tag}")
        assert config.mean == entry.mean
        assert config.std == entry.std


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match="give a local file"):
        load_backbone("dino_vits16")
