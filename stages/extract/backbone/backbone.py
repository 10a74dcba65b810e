"""A frozen Vision Transformer that gives dense features: any facet of any layer, several in one forward.

The forward runs timm's blocks itself and stops at the last output that is asked for: keys of the last layer need
neither that layer's attention nor its projection nor its MLP, and the CLS token's attention is one row, not a
matrix. Queries, keys and values have the interleaved channel order that Amir et al. 2021 use and LiFT is trained
on: channel ``c = dim * num_heads + head``. Tokens keep their natural order.

The stride of the patch embedding may be any divisor of the patch (Amir et al. 2021, section 3.1); the position
embedding follows (``stages.extract.backbone.position``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.core.files import sha256_of
from pipeline.core.grid import PatchGrid
from stages.extract.backbone import blocks
from stages.extract.backbone.cpu_blocks import CpuBlock, is_served, pack_blocks, run_blocks
from stages.extract.backbone.facets import FacetSpec
from stages.extract.backbone.position import resize_position_embedding
from stages.extract.backbone.registry import BackboneEntry, PositionConvention, find_entry
from stages.extract.backbone.request import ClsKind, Request, needed_projections
from stages.extract.backbone.vit import build_vit

TokenHook = Callable[[int, Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True, slots=True)
class BackboneOutput:
    """Dense features of a batch.

    Attributes:
        maps: ``(B, C, h, w)`` by the text of the facet spec as it was asked for.
        saliency: ``(B, h, w)`` in [0, 1]: CLS attention of the last layer, averaged over the backbone's saliency
            heads and scaled to the full range per image; zeros where it is constant. None unless asked for.
        cls: ``(B, C)``, or None unless asked for.
    """

    maps: dict[str, Tensor]
    saliency: Tensor | None = None
    cls: Tensor | None = None


class Backbone(nn.Module):
    """A frozen ViT. Invariant: parameters never require gradients unless a caller switches them on.

    Attributes:
        vit: timm's module, whose weights are used in place.
        name: Name from the table, or timm's.
        patch_px: Side length of a patch in input pixels.
        stride_px: Stride of the patch embedding in input pixels.
        embed_dim: Channels.
        num_heads: Attention heads per block.
        num_layers: Blocks.
        num_prefix_tokens: CLS and register tokens before the patches.
        mean: Per-channel mean that normalizes the input, for pixels in [0, 1].
        std: Per-channel standard deviation.
        weights_sha256: Hash of the weights file, or empty for random and downloaded weights.
        position: Convention of the position embedding.
        token_hook: Called after every block that is run to its end, with (layer, tokens ``(B, N, D)`` with the
            prefix, grid_hw); what it returns replaces the tokens.
    """

    vit: Any

    def __init__(
        self,
        vit: Any,
        entry: BackboneEntry,
        *,
        stride_px: int | None = None,
        position: PositionConvention | None = None,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.entry = entry
        self.name = entry.name
        self.patch_px = int(self.vit.patch_embed.patch_size[0])
        self.stride_px = self._checked_stride(stride_px)
        self.embed_dim = int(self.vit.embed_dim)
        self.num_heads = int(self.vit.blocks[0].attn.num_heads)
        self.num_layers = len(self.vit.blocks)
        self.num_prefix_tokens = int(self.vit.num_prefix_tokens)
        self.has_cls = self.vit.cls_token is not None
        self.mean = entry.mean
        self.std = entry.std
        self.position: PositionConvention = position or entry.position
        self.weights_sha256 = ""
        self.token_hook: TokenHook | None = None
        self._positions: dict[tuple[Any, ...], Tensor] = {}
        self._packed: list[CpuBlock] = []
        self.eval().requires_grad_(False)

    def _checked_stride(self, stride_px: int | None) -> int:
        stride = self.patch_px if stride_px is None else stride_px
        if stride < 1 or self.patch_px % stride:
            valid = [s for s in range(1, self.patch_px + 1) if self.patch_px % s == 0]
            raise ConfigError(f"stride {stride} does not divide the patch of {self.patch_px} px; valid: {valid}")
        return stride

    def grid(self, image_hw: tuple[int, int], input_hw: tuple[int, int]) -> PatchGrid:
        """Where the cells lie on a frame of ``image_hw`` that was resized to ``input_hw``."""
        return PatchGrid.from_input(image_hw, input_hw, patch_px=self.patch_px, stride_px=self.stride_px)

    def forward(
        self,
        images: Tensor,
        facets: Sequence[FacetSpec],
        *,
        saliency: bool = False,
        cls: ClsKind | None = None,
    ) -> BackboneOutput:
        """Features of a batch.

        Args:
            images: ``(B, 3, H, W)``, normalized with :attr:`mean` and :attr:`std`. Pixels at the right and bottom
                that do not fill a patch are ignored.
            facets: What to return; at least one.
            saliency: Also return the CLS attention of the last layer.
            cls: Also return the CLS descriptor: ``"facet"`` for the first facet at the CLS token, ``"final"``
                for the last layer's CLS token after the final norm.

        Raises:
            ConfigError: A layer out of range, an input smaller than a patch, saliency or CLS without a CLS token.
        """
        wanted = self._plan(facets, saliency=saliency, cls=cls)
        tokens, rope, grid_hw = self.embed(images)
        tokens, first = self._run_packed(tokens, wanted)
        for layer in range(first, wanted.last_layer() + 1):
            step = self._run_block(self.vit.blocks[layer], layer, tokens, rope, wanted)
            if step is None:
                break
            tokens = step if self.token_hook is None else self.token_hook(layer, step, grid_hw)
            if wanted.tokens(layer):
                wanted.raw["token", layer] = tokens
            if wanted.final_cls and layer == self.num_layers - 1:
                wanted.cls_token = tokens[:, :1]
        return self._collect(facets, wanted, grid_hw, cls)

    def _plan(self, facets: Sequence[FacetSpec], *, saliency: bool, cls: ClsKind | None) -> Request:
        if not facets:
            raise ConfigError("name at least one facet, for example key@11")
        specs = {str(spec): spec.resolved(self.num_layers) for spec in facets}
        if (saliency or cls is not None) and not self.has_cls:
            raise ConfigError(f"backbone '{self.name}' has no CLS token: no CLS attention, no CLS descriptor")
        layers = [s.layer for s in specs.values() if s.facet != "token"] + [self.num_layers - 1] * (
            saliency or cls == "final"
        )
        for layer in layers:
            if not blocks.is_supported(self.vit.blocks[layer]):
                raise ConfigError(
                    f"backbone '{self.name}': its blocks give tokens only; valid facets: token@LAYER"
                )
        return Request(specs, saliency, cls == "final", self.num_layers)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Tokens before the first block ``(B, N, D)``, the rotary embedding if there is one, and the grid."""
        if min(images.shape[-2:]) < self.patch_px:
            raise ConfigError(
                f"an input of {tuple(images.shape[-2:])} px (h, w) is smaller than one patch of {self.patch_px} px"
            )
        projection = self.vit.patch_embed.proj
        patches = F.conv2d(images, projection.weight, projection.bias, stride=self.stride_px)
        grid_hw = (int(patches.shape[-2]), int(patches.shape[-1]))
        tokens = self.vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        position = self._position(grid_hw, images.shape[-2] == images.shape[-1], tokens)
        learned = (self.vit.cls_token, getattr(self.vit, "reg_token", None))
        prefix = [token.expand(tokens.shape[0], -1, -1) for token in learned if token is not None]
        if position is not None and position.shape[1] == tokens.shape[1]:
            tokens = torch.cat([*prefix, tokens + position], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1)
            if position is not None:
                tokens = tokens + position
        rope_module = getattr(self.vit, "rope", None)
        rope = None if rope_module is None else rope_module.get_embed(shape=list(grid_hw)).to(tokens.device)
        return self.vit.norm_pre(tokens), rope, grid_hw

    def _position(self, grid_hw: tuple[int, int], square: bool, like: Tensor) -> Tensor | None:
        """The position embedding for a grid; cached for the next batch unless it is being trained."""
        embedding = self.vit.pos_embed
        if embedding is None:
            return None
        if torch.compiler.is_compiling():
            return next(iter(self._positions.values()))  # see prepare()
        version = 0 if embedding.is_inference() else embedding._version
        key = (grid_hw, square, embedding.device, embedding.dtype, self.position, version)
        resized = self._positions.get(key)
        if resized is None or embedding.requires_grad:
            # Outside of inference mode, so that a later forward may still take gradients through the sum.
            with torch.inference_mode(False), torch.set_grad_enabled(embedding.requires_grad):
                resized = resize_position_embedding(
                    embedding,
                    grid_hw,
                    num_prefix=0 if self.vit.no_embed_class else self.num_prefix_tokens,
                    square_input=square,
                    convention=self.position,
                )
                self._positions = {key: resized}  # at once: threads may share the model
        return resized

    def pack_for_cpu(self) -> None:
        """Run whole blocks by their bf16 version for CPUs from now on, where there is one for this model.

        To be called before the weights are stored in a lower precision. Changes of the weights after it are not
        seen.
        """
        if not self._packed:
            self._packed = pack_blocks(list(self.vit.blocks))

    def _run_packed(self, tokens: Tensor, wanted: Request) -> tuple[Tensor, int]:
        """Run the layers that run whole, where there is a packed version; the tokens after them, their number."""
        layers = wanted.whole_layers()
        packed = self._packed and not torch.compiler.is_compiling()
        if not (packed and layers and self.token_hook is None and is_served(tokens)):
            return tokens, 0
        return run_blocks(self._packed[:layers], tokens, wanted), layers

    def prepare(self, input_hw: tuple[int, int]) -> None:
        """Make what a forward at a size keeps; before a compiled one, which cannot make it."""
        grid = self.grid(input_hw, input_hw)
        self._position(grid.grid_hw, input_hw[0] == input_hw[1], self.vit.pos_embed)

    def _run_block(
        self, block: nn.Module, layer: int, tokens: Tensor, rope: Tensor | None, wanted: Request
    ) -> Tensor | None:
        """Run one block and store what is wanted from inside it; None where nothing after it is needed."""
        facets = wanted.projections(layer)
        if not blocks.is_supported(block):
            return self.run_block(layer, tokens, rope)
        parts_of: Any = block
        rope = self._rope_of(rope, layer)
        normed = parts_of.norm1(tokens)
        last = layer == wanted.last_layer()
        ends_here = last and not wanted.tokens(layer)
        row = wanted.attention and layer == self.num_layers - 1
        final_cls = wanted.final_cls and layer == self.num_layers - 1
        if not ends_here:
            parts = blocks.project(parts_of.attn, normed, ("query", "key", "value"))
        else:
            parts = needed_projections(parts_of.attn, normed, facets, row=row, final_cls=final_cls)
        for facet in facets:
            wanted.raw[facet, layer] = parts[facet]
        if row:
            wanted.cls_row = blocks.cls_attention(parts_of.attn, parts, rope)
        if not ends_here:
            attended = blocks.attend(parts_of.attn, normed, parts, rope, slice(None))
            return blocks.after_attention(parts_of, tokens, attended)
        if final_cls:
            attended = blocks.attend(parts_of.attn, normed, parts, rope, slice(0, 1))
            wanted.cls_token = blocks.after_attention(parts_of, tokens[:, :1], attended)
        return None

    def run_block(self, layer: int, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """One whole block, ``(B, N, D)`` to the same shape, on the output of :meth:`embed` or a block."""
        block, own = self.vit.blocks[layer], self._rope_of(rope, layer)
        whole: Tensor = block(tokens) if own is None else block(tokens, rope=own)
        return whole

    def _rope_of(self, rope: Tensor | None, layer: int) -> Tensor | None:
        """The rotary embedding of one layer; models with mixed frequencies have one per layer."""
        return rope[layer] if rope is not None and getattr(self.vit, "rope_mixed", False) else rope

    def _collect(
        self, facets: Sequence[FacetSpec], wanted: Request, grid_hw: tuple[int, int], cls: ClsKind | None
    ) -> BackboneOutput:
        maps = {}
        descriptor: Tensor | None = None
        for position, asked in enumerate(facets):
            spec = wanted.specs[str(asked)]
            values = wanted.raw[spec.facet, spec.layer]
            if spec.norm:
                values = self.vit.norm(values)
            maps[str(asked)] = self._as_map(values[:, self.num_prefix_tokens :], spec, grid_hw)
            if position == 0 and cls == "facet":
                descriptor = self._as_map(values[:, :1], spec, (1, 1))[:, :, 0, 0]
        if wanted.cls_token is not None:
            descriptor = self.vit.norm(wanted.cls_token)[:, 0]
        if wanted.cls_row is None:
            return BackboneOutput(maps, cls=descriptor)
        attention = wanted.cls_row[:, :, self.num_prefix_tokens :].reshape(*wanted.cls_row.shape[:2], *grid_hw)
        heads = self.entry.saliency_heads
        chosen = attention if heads is None else attention[:, list(heads)]
        return BackboneOutput(maps, stretch(chosen.mean(dim=1)), descriptor)

    def _as_map(self, values: Tensor, spec: FacetSpec, grid_hw: tuple[int, int]) -> Tensor:
        """``(B, h * w, C)`` to a contiguous ``(B, C, h, w)``; q, k and v change to the interleaved order."""
        batch, cells, channels = values.shape
        if spec.facet != "token":
            by_head = values.reshape(batch, cells, self.num_heads, channels // self.num_heads)
            return by_head.permute(0, 3, 2, 1).reshape(batch, channels, *grid_hw)
        return values.transpose(1, 2).contiguous().reshape(batch, channels, *grid_hw)


def stretch(maps: Tensor) -> Tensor:
    """Scale each of the maps ``(B, h, w)`` to [0, 1] by its minimum and maximum; a constant one to zeros.

    >>> stretch(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])).tolist()
    [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(
        span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps)
    )


def load_backbone(
    name: str = "dinov2_vits14",
    *,
    weights: str | Path | None = None,
    stride_px: int | None = None,
    position: PositionConvention | None = None,
    device: str | torch.device = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> Backbone:
    """A frozen backbone with its weights, in float32.

    Args:
        name: A name of the table (``stages.extract.backbone.registry``), or any timm ViT by its timm name.
        weights: None for the bundled file or else timm's hub; a path to a safetensors or torch file in timm's or
            the official layout; ``"random"`` for values from a fixed seed.
        stride_px: Stride of the patch embedding; a divisor of the patch, which is the default.
        position: Convention of the position embedding; the backbone's reference by default.
        device: Where to put it.
        overrides: Arguments for timm's constructor, for example a smaller ``depth`` in a test.

    Raises:
        ConfigError: An unknown name, a model that is not a ViT, a stride that does not divide the patch.
        WeightsError: Weights that are missing, changed or do not fit.
    """
    entry = find_entry(name)
    source = None if weights is None else str(weights)
    vit, origin = build_vit(entry, source, dict(overrides or {}))
    backbone = Backbone(vit, entry, stride_px=stride_px, position=position)
    if origin is not None:
        backbone.weights_sha256 = entry.sha256 if source is None else sha256_of(origin)
    return backbone.to(device)
