"""LiFT's layers, names and geometry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.extract.lift.module import LiftMetadata, load_lift, save_lift
from stages.extract.lift.network import Lift, resample, resample_axis


def _published_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint, written out from the paper's architecture."""
    joined, half = channels + 32, channels // 2
    shapes: dict[str, tuple[int, ...]] = {
        "up1.up.weight": (joined, joined // 2, 2, 2),
        "up1.up.bias": (joined // 2,),
        "up1.conv_1.double_conv.0.weight": (half, joined // 2 + 32, 3, 3),
        "up1.conv_1.double_conv.3.weight": (half, half, 3, 3),
        "outc.weight": (channels, half, 1, 1),
        "outc.bias": (channels,),
        "image_convs_1.0.weight": (32, 3, 3, 3),
        "image_convs_1.3.weight": (32, 32, 3, 3),
        "image_convs_2.0.weight": (32, 32, 3, 3),
    }
    for name in ("image_convs_1.0", "image_convs_1.3", "image_convs_2.0"):
        shapes[f"{name}.bias"] = (32,)
    norms = [("up1.conv_1.double_conv.1", half), ("up1.conv_1.double_conv.4", half)]
    norms += [(name, 32) for name in ("image_convs_1.1", "image_convs_1.4", "image_convs_2.1")]
    for name, size in norms:
        shapes |= dict.fromkeys(
            (f"{name}.{p}" for p in ("weight", "bias", "running_mean", "running_var")), (size,)
        )
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


@pytest.mark.parametrize(("channels", "parameters"), [(384, 1_187_280), (768, 4_417_296)])
@pytest.mark.parametrize("patch_px", [8, 14, 16])
def test_names_shapes_and_parameter_count_are_the_published_ones(
    channels: int, parameters: int, patch_px: int
) -> None:
    module = Lift(channels, patch_px=patch_px)
    found = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert found == _published_shapes(channels)
    assert len(found) == 37
    assert sum(p.numel() for p in module.parameters()) == parameters


def _reference_forward(module: Lift, images: Tensor, features: Tensor) -> Tensor:
    """The published forward for patches of 8 and 16, spelled out with functional calls."""
    state = module.state_dict()

    def conv(values: Tensor, name: str, stride: int = 1, pad: int = 1) -> Tensor:
        return F.conv2d(values, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=stride, padding=pad)

    def norm(values: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        values = (values - mean.view(1, -1, 1, 1)) / torch.sqrt(var.view(1, -1, 1, 1) + 1e-5)
        scaled = values * state[f"{name}.weight"].view(1, -1, 1, 1) + state[f"{name}.bias"].view(1, -1, 1, 1)
        rectified: Tensor = scaled.clamp(min=0)
        return rectified

    fine = norm(conv(images, "image_convs_1.0", 2), "image_convs_1.1")
    fine = norm(conv(fine, "image_convs_1.3", 2), "image_convs_1.4")
    if module.patch_px == 16:
        fine = F.max_pool2d(fine, 2)
    coarse = norm(conv(fine, "image_convs_2.0", 2), "image_convs_2.1")
    joined = torch.cat([features, coarse], 1)
    up = F.conv_transpose2d(joined, state["up1.up.weight"], state["up1.up.bias"], stride=2)
    values = torch.cat([up, fine], 1)
    values = norm(conv(values, "up1.conv_1.double_conv.0"), "up1.conv_1.double_conv.1")
    values = norm(conv(values, "up1.conv_1.double_conv.3"), "up1.conv_1.double_conv.4")
    return conv(values, "outc", pad=0)


def _lively(channels: int, patch_px: int) -> Lift:
    """A LiFT whose batch norms do something, as after training."""
    torch.manual_seed(3)
    module = Lift(channels, patch_px=patch_px).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.2, 0.2)
    return module


@pytest.mark.parametrize("patch_px", [8, 16])
def test_patches_of_8_and_16_follow_the_reference_arithmetic(patch_px: int) -> None:
    module = _lively(8, patch_px)
    images, features = torch.randn(2, 3, 4 * patch_px, 6 * patch_px), torch.randn(2, 8, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(module(images, features), _reference_forward(module, images, features))


@pytest.mark.parametrize("patch_px", [8, 16])
def test_a_second_iteration_sees_the_image_doubled_bilinearly(patch_px: int) -> None:
    module = _lively(8, patch_px)
    images, features = torch.randn(1, 3, 3 * patch_px, 2 * patch_px), torch.randn(1, 8, 3, 2)
    with torch.no_grad():
        once = _reference_forward(module, images, features)
        doubled = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        twice = _reference_forward(module, doubled, once)
        torch.testing.assert_close(module(images, features, iterations=2), twice)


@pytest.mark.parametrize(("iterations", "side"), [(1, 8), (2, 16), (3, 32)])
def test_every_iteration_doubles_the_grid(iterations: int, side: int) -> None:
    module = Lift(8, patch_px=14).eval()
    found = module(torch.randn(1, 3, 56, 56), torch.randn(1, 8, 4, 4), iterations=iterations)
    assert found.shape == (1, 8, side, side)


def test_an_image_that_is_no_multiple_of_the_patch_is_seen_as_the_patch_embedding_saw_it() -> None:
    module = _lively(8, 16)
    images, features = torch.randn(1, 3, 56, 60), torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(module(images, features), module(images[..., :48, :48], features))


def test_folding_batch_norms_changes_nothing_but_the_layers() -> None:
    module = _lively(16, 14)
    images, features = torch.randn(1, 3, 42, 56), torch.randn(1, 16, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            module.fused()(images, features), module(images, features), rtol=1e-4, atol=1e-5
        )


def _centroid_branch(patch_px: int) -> Lift:
    """A LiFT whose image branch only averages: every kernel is a centered, symmetric tent of sum 1."""
    module = Lift(8, patch_px=patch_px).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 0.0
    tent = torch.tensor([0.25, 0.5, 0.25])
    with torch.no_grad():
        for convs in (module.image_convs_1, module.image_convs_2):
            for layer in convs:
                if isinstance(layer, torch.nn.Conv2d):
                    layer.weight.zero_()
                    layer.bias.zero_()  # type: ignore[union-attr]
                    layer.weight[:, 0] = torch.outer(tent, tent)
    return module


def _branch_on_ramp(module: Lift, height: int, width: int, stride: float, axis: int) -> tuple[Tensor, Tensor]:
    """Both image maps of an image whose value is the continuous pixel position along ``axis``."""
    positions = torch.arange((height, width)[axis]) + 0.5
    ramp = positions[:, None].expand(height, width) if axis == 0 else positions[None].expand(height, width)
    images = ramp.expand(1, 3, height, width).contiguous()
    grid = (1 + int((height - module.patch_px) // stride), 1 + int((width - module.patch_px) // stride))
    fine, coarse = module.image_maps(images, grid, stride, module.patch_px / 2)
    return fine[0, 0], coarse[0, 0]


@pytest.mark.parametrize(("patch_px", "stride"), [(14, 14.0), (14, 7.0), (14, 2.0), (12, 12.0)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_image_branch_reports_positions_of_the_cells_it_is_joined_to(
    patch_px: int, stride: float, axis: int
) -> None:
    # A linear image read through symmetric kernels gives each output the position it is centered on. Max pooling
    # takes the further of two outputs, 2 px beyond their middle at 16 px a cell.
    module = _centroid_branch(patch_px)
    fine, coarse = _branch_on_ramp(module, 15 * patch_px, 12 * patch_px, stride, axis)
    pooled = 2 * stride / 16
    first = patch_px / 2
    line = (slice(None), fine.shape[1] // 2) if axis == 0 else (fine.shape[0] // 2, slice(None))
    found = fine[line]
    expected = first - stride / 4 + torch.arange(len(found)) * stride / 2 + pooled
    torch.testing.assert_close(found[3:-3], expected[3:-3])
    line = (slice(None), coarse.shape[1] // 2) if axis == 0 else (coarse.shape[0] // 2, slice(None))
    found = coarse[line]
    expected = first + torch.arange(len(found)) * stride + pooled
    torch.testing.assert_close(found[3:-3], expected[3:-3])


@pytest.mark.parametrize("stride", [14.0, 7.0])
def test_an_image_edge_does_not_move(stride: float) -> None:
    # The edge lies between two cells of the doubled grid; what marks it must be mirrored when the image is.
    module = _centroid_branch(14)
    side = 14 * 10
    images = torch.zeros(1, 3, side, side)
    images[..., side // 2 :] = 1.0
    cells = 1 + int((side - 14) // stride)
    fine, coarse = module.image_maps(images, (cells, cells), stride, 7.0)
    for found in (fine[0, 0], coarse[0, 0]):
        row = found[found.shape[0] // 2]
        crossing = int((row < 0.5).sum())
        assert crossing == len(row) // 2, "as many cells before the edge as behind it"
        assert torch.all(row[: crossing - 1] < 0.05)
        assert torch.all(row[crossing + 1 :] > 0.95)


def test_a_plain_resize_would_shift_the_image_branch() -> None:
    # Guards the reason for the exact geometry: with the reference's own arithmetic positions are off.
    module = _centroid_branch(16)
    fine, _ = _branch_on_ramp(module, 16 * 12, 16 * 12, 16.0, 1)
    centers = 4 + torch.arange(24) * 8.0
    torch.testing.assert_close((centers - fine[12])[3:-3], torch.full((18,), 1.5 - 2.0))


def test_resampling_matches_interpolate_for_a_plain_resize() -> None:
    values = torch.randn(1, 2, 7, 5)
    found = resample_axis(resample_axis(values, -2, 14, 0.25, 0.5), -1, 10, 0.25, 0.5)
    torch.testing.assert_close(found, F.interpolate(values, (14, 10), mode="bilinear"))


@pytest.mark.parametrize(
    ("images", "features", "message"),
    [
        ((1, 1, 28, 28), (1, 8, 2, 2), "images must be"),
        ((1, 3, 28, 28), (1, 4, 2, 2), "features must be"),
        ((1, 3, 28, 28), (2, 8, 2, 2), "features must be"),
        ((1, 3, 28, 28), (1, 8, 3, 2), "gives a grid of"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    images: tuple[int, ...], features: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Lift(8, patch_px=14)(torch.zeros(images), torch.zeros(features))


def test_no_iteration_and_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        Lift(8, patch_px=14).eval()(torch.zeros(1, 3, 28, 28), torch.zeros(1, 8, 2, 2), iterations=0)
    with pytest.raises(ValueError, match="even"):
        Lift(7, patch_px=14)


def test_an_extra_block_starts_as_the_identity_and_is_fused_and_stored_as_the_rest(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, features = torch.randn(1, 3, 64, 96, generator=generator), torch.randn(1, 8, 4, 6, generator=generator)
    plain, extended = Lift(8, patch_px=16).eval(), Lift(8, patch_px=16, extra_blocks=2).eval()
    extended.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(extended(images, features), plain(images, features), rtol=0, atol=0)
        for name, value in extended.named_parameters():
            if name.startswith("extra."):
                value.copy_(torch.randn(value.shape, generator=generator))
        expected = extended(images, features)
        assert not torch.allclose(expected, plain(images, features))
        torch.testing.assert_close(extended.fused()(images, features), expected, rtol=1e-4, atol=1e-4)
    save_lift(extended, LiftMetadata("mae_vitb16", "token@11", 16), tmp_path / "lift.safetensors")
    loaded = load_lift(tmp_path / "lift.safetensors")
    assert loaded.num_parameters == sum(p.numel() for p in extended.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images, features), expected, rtol=2e-2, atol=2e-2)
    assert sum(p.numel() for p in Lift(768, patch_px=16, extra_blocks=1).parameters()) == 4_417_296 + 2 * 384 * (
        384 * 9 + 2
    )


@pytest.mark.parametrize(("first", "step"), [(1.75, 0.875), (0.5, 0.5), (3.1, 1.4), (0.5, 1.0), (1.5, 1.0)])
def test_resampling_both_axes_at_once_is_one_after_the_other(first: float, step: float) -> None:
    images = torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    expected = resample_axis(resample_axis(images, -2, 24, first, step), -1, 40, first, step)
    assert torch.equal(resample(images.requires_grad_(True), (24, 40), first, step), expected)
    with torch.inference_mode():
        torch.testing.assert_close(
            resample(images.detach(), (24, 40), first, step), expected.detach(), rtol=0, atol=1e-5
        )
