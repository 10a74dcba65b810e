"""LiFT files: header, published checkpoints, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import WeightsError
from pipeline.core.files import sha256_of
from stages.extract.backbone.facets import parse_facet
from stages.extract.backbone.weights import ASSETS
from stages.extract.lift.module import Lift, LiftMetadata, LoadedLift, find_bundled, load_lift, save_lift

OWN = LiftMetadata("dinov2_vits14", "key@11", 14, "abc", {"steps": 3})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "lift.safetensors"
    save_lift(Lift(8, patch_px=14), OWN, path)
    return path


def test_a_file_gives_back_its_metadata_and_weights_in_half_precision(saved: Path) -> None:
    loaded = load_lift(saved)
    assert loaded.metadata == OWN
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    stored = load_file(saved)
    assert stored["outc.weight"].dtype == torch.float16
    torch.testing.assert_close(loaded.module.outc.weight.half(), stored["outc.weight"])
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_published_checkpoint_loads_by_its_names_with_or_without_the_module_prefix(tmp_path: Path) -> None:
    module = Lift(384, patch_px=8)
    path = tmp_path / "lift_dino_vits8.pth"
    torch.save({f"module.{name}": value for name, value in module.state_dict().items()}, path)
    loaded = load_lift(path)
    assert (loaded.metadata.backbone, loaded.metadata.facet, loaded.metadata.patch_px) == (
        "dino_vits8",
        "key@11",
        8,
    )
    torch.testing.assert_close(loaded.module.state_dict(), module.state_dict())


def test_a_state_dict_without_a_known_name_needs_the_patch(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(Lift(8, patch_px=16).state_dict(), path)
    with pytest.raises(WeightsError, match="does not say for which backbone"):
        load_lift(path)
    assert load_lift(path, patch_px=16).module.cell_px == 16


def _match(lift: LoadedLift, **changes: object) -> None:
    use: dict[str, object] = {
        "backbone": "dinov2_vits14",
        "facet": parse_facet("key@11"),
        "num_layers": 12,
        "patch_px": 14,
        "weights_sha256": "abc",
    }
    lift.require_match(**(use | changes))  # type: ignore[arg-type]


def test_a_lift_fits_what_it_was_trained_for_however_the_layer_is_counted(saved: Path) -> None:
    lift = load_lift(saved)
    _match(lift)
    _match(lift, facet=parse_facet("key@-1"))
    _match(lift, weights_sha256="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "dinov2_vitb14"}, r"backbone dinov2_vitb14 \(trained for dinov2_vits14\)"),
        ({"facet": parse_facet("key@9")}, r"facet key@9 \(trained for key@11\)"),
        ({"facet": parse_facet("token@11")}, r"facet token@11 \(trained for key@11\)"),
        ({"patch_px": 16}, r"patch 16 \(trained for 14\)"),
        ({"weights_sha256": "other"}, r"backbone weights other\.\.\. \(trained for abc"),
    ],
)
def test_a_mismatch_is_refused_with_its_reason(saved: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        _match(load_lift(saved), **changes)


def test_other_files_are_refused(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        load_lift(tmp_path / "none.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(2)}, bare)
    with pytest.raises(WeightsError, match="does not say what this LiFT was trained for"):
        load_lift(bare)
    save_file({"a": torch.zeros(2)}, bare, metadata=OWN.to_header())
    with pytest.raises(WeightsError, match="outc.bias"):
        load_lift(bare)
    tensors = load_file(saved)
    tensors["up1.up.bias"] = torch.zeros(3)
    del tensors["image_convs_2.0.bias"]
    save_file(tensors, bare, metadata=OWN.to_header())
    with pytest.raises(WeightsError, match=r"shape \(up1.up.bias \(3,\) .*1 missing \(image_convs_2.0.bias\)"):
        load_lift(bare)


def test_prepared_gives_the_same_features(saved: Path) -> None:
    lift = load_lift(saved)
    images, features = torch.randn(1, 3, 42, 28), torch.randn(1, 8, 3, 2)
    with torch.no_grad():
        expected = lift.module(images, features, iterations=2)
    torch.testing.assert_close(lift.prepared("cpu").upsample(images, features, 2), expected, rtol=1e-4, atol=1e-5)


def test_weights_stored_in_bf16_change_nothing_under_autocast(saved: Path) -> None:
    lift = load_lift(saved)
    images, features = torch.randn(1, 3, 42, 28), torch.randn(1, 8, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = lift.prepared("cpu").upsample(images, features)
        found = lift.prepared("cpu", torch.bfloat16).upsample(images, features)
    assert torch.equal(found, expected)


def test_no_bundled_lift_for_other_layers_or_backbones() -> None:
    assert find_bundled("dinov2_vits14", parse_facet("key@3")) is None
    assert find_bundled("dino_vitb8", parse_facet("key@11")) is None


BUNDLED = sorted(ASSETS.glob("lift_*.safetensors"))


def test_a_lift_is_bundled() -> None:
    assert BUNDLED


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_lift_is_found_fits_the_bundled_backbone_and_beat_bilinear_on_held_out_images(
    path: Path,
) -> None:
    lift = load_lift(path)
    spec = parse_facet(lift.metadata.facet)
    assert find_bundled("dinov2_vits14", spec) == path
    lift.require_match(
        backbone="dinov2_vits14",
        facet=spec,
        num_layers=12,
        patch_px=14,
        weights_sha256=sha256_of(ASSETS / "dinov2_vits14.fp16.safetensors"),
    )
    held_out = lift.metadata.training["held_out_cosine"]
    assert held_out["lift_1"] > held_out["bilinear_1"]
    assert held_out["lift_2"] > held_out["bilinear_2"]
