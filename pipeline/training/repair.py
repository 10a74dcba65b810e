"""Repair of a ViT's singular defects by training the singular values of its linear layers.

One image at a time: the blocks run until one has defects; the loss at that block, the distance of defective tokens
to the mean of their neighborhood, updates the singular values of the last few blocks up to it by SGD. The
caller defines defects and loss (``stages.extract.repair.sinder``).

Source: Wang, Zhang, Salzmann, SINDER: Repairing the Singular Defects of DINOv2, ECCV 2024: training.
Differs from the reference: the blocks are searched without gradients, and only the trainable ones run again with
them, which gives the same gradients in less memory.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.core.errors import ConfigError, WeightsError
from pipeline.core.files import whole_file
from pipeline.training.singular_values import attach_shifts, fold_shifts
from stages.extract.backbone.backbone import Backbone

Outcome = Literal["trained", "skipped", "not_finite"]


class DefectLoss(Protocol):
    """The loss that training minimizes."""

    def __call__(self, layer: int, tokens: Tensor) -> Tensor | None:
        """The loss of the tokens ``(1, h, w, C)`` after a layer, or None where they have no defects."""


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """Settings of the training; the defaults are the reference's.

    Attributes:
        learning_rate: Learning rate of SGD.
        momentum: Momentum of SGD.
        limit_layers: Only this many blocks up to the defective one are trained.
        window: Number of recent images that the stop rule counts.
        stop_share: Training ends when this share of the window's images showed no defects.
    """

    learning_rate: float = 0.005
    momentum: float = 0.9
    limit_layers: int = 10
    window: int = 1000
    stop_share: float = 0.75

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.momentum < 1:
            raise ConfigError(
                f"repair needs a positive learning rate and a momentum in [0, 1), got {self.learning_rate} and "
                f"{self.momentum}"
            )
        if self.limit_layers < 1 or self.window < 1 or not 0 < self.stop_share <= 1:
            raise ConfigError(
                f"repair needs limit_layers and window of at least 1 and a stop share in (0, 1], got "
                f"{self.limit_layers}, {self.window} and {self.stop_share}"
            )


@dataclass(frozen=True, slots=True)
class RepairStep:
    """The result of one image.

    Attributes:
        outcome: ``trained``; ``skipped`` where there was no defect; ``not_finite`` where loss or gradient was
            not finite and nothing was updated.
        layer: The first block with defects, or None.
        loss: The loss before the step, or None.
    """

    outcome: Outcome
    layer: int | None = None
    loss: float | None = None


class Repairer:
    """Trains the singular values of a backbone's linear layers.

    Invariant: between :meth:`__init__` and :meth:`fold` the backbone's layers are parametrized and its shifts
    are the only trainable parameters; after :meth:`fold` it is a plain frozen backbone again, whose weights hold
    the repair.
    """

    def __init__(self, backbone: Backbone, loss: DefectLoss, settings: RepairSettings | None = None) -> None:
        """Parametrise ``backbone`` in place.

        Raises:
            ConfigError: Blocks that are not those of a plain ViT.
        """
        self.settings = settings or RepairSettings()
        self.iterations = 0
        self._backbone = backbone
        self._loss = loss
        backbone.requires_grad_(False)
        self._shifts = attach_shifts(backbone.vit.blocks)
        parameters = [p for shifts in self._shifts for p in shifts.values()]
        self._optimizer = torch.optim.SGD(
            parameters, lr=self.settings.learning_rate, momentum=self.settings.momentum
        )
        self._skipped: deque[bool] = deque(maxlen=self.settings.window)

    @property
    def skipped_share(self) -> float:
        """Share of the window's images without defects; 0 before the first image."""
        return sum(self._skipped) / len(self._skipped) if self._skipped else 0.0

    @property
    def finished(self) -> bool:
        """Whether the window is full and enough of its images showed no defects."""
        return len(self._skipped) == self.settings.window and self.skipped_share >= self.settings.stop_share

    def step(self, images: Tensor) -> RepairStep:
        """Train on one image, ``(1, 3, H, W)``, normalized for the backbone."""
        result = self._train(images)
        self.iterations += 1
        self._skipped.append(result.outcome == "skipped")
        return result

    def _train(self, images: Tensor) -> RepairStep:
        backbone = self._backbone
        with torch.no_grad():
            tokens, rope, grid_hw = backbone.embed(images)
            layer, inputs = self._first_defective(tokens, rope, grid_hw)
        if layer is None:
            return RepairStep("skipped")
        with torch.enable_grad():
            first, tokens = inputs[0]
            for index in range(first, layer + 1):
                tokens = backbone.run_block(index, tokens, rope)
            loss = self._loss(layer, self._patches(tokens, grid_hw))
        if loss is None:
            return RepairStep("skipped")
        value = float(loss.detach())
        if not math.isfinite(value):
            return RepairStep("not_finite", layer, value)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        moving = [p for shifts in self._shifts for p in shifts.values() if p.grad is not None]
        if not all(bool(torch.isfinite(p.grad).all()) for p in moving if p.grad is not None):
            return RepairStep("not_finite", layer, value)
        # Shifts of earlier blocks have no gradient, and SGD passes over them, their momentum included.
        self._optimizer.step()
        return RepairStep("trained", layer, value)

    def _first_defective(
        self, tokens: Tensor, rope: Tensor | None, grid_hw: tuple[int, int]
    ) -> tuple[int | None, deque[tuple[int, Tensor]]]:
        """The first layer with defects, and the inputs of the blocks that may move, the earliest first."""
        inputs: deque[tuple[int, Tensor]] = deque(maxlen=self.settings.limit_layers)
        for layer in range(self._backbone.num_layers):
            inputs.append((layer, tokens))
            tokens = self._backbone.run_block(layer, tokens, rope)
            if self._loss(layer, self._patches(tokens, grid_hw)) is not None:
                return layer, inputs
        return None, inputs

    def _patches(self, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        return tokens[:, self._backbone.num_prefix_tokens :].reshape(1, *grid_hw, tokens.shape[-1])

    def shift_summary(self) -> list[dict[str, Any]]:
        """For every block whose singular values changed: the mean and the largest change, signed."""
        summary = []
        for index, shifts in enumerate(self._shifts):
            values = torch.cat([p.detach().flatten() for p in shifts.values()])
            if bool((values != 0).any()):
                extreme = values[values.abs().argmax()]
                summary.append({"block": index, "mean": float(values.mean()), "largest": float(extreme)})
        return summary

    def fold(self) -> None:
        """Write the trained singular values into plain weights; ends the training."""
        fold_shifts(self._backbone.vit.blocks)

    def save_progress(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write everything that :meth:`load_progress` needs to continue with identical results.

        Args:
            path: The file; written completely or not at all.
            identity: The run's weights, images and settings; JSON-ready. Only a run with the same identity can
                continue from the file.
        """
        tensors = {"skipped": torch.tensor(list(self._skipped), dtype=torch.uint8)}
        for name, parameter in self._named_shifts().items():
            tensors[f"shift/{name}"] = parameter.detach()
            momentum = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum/{name}"] = momentum
        save_tensors(tensors, path, {"identity": self._identity(identity), "iterations": str(self.iterations)})

    def load_progress(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from :meth:`save_progress`.

        Raises:
            WeightsError: The file cannot be read, or belongs to another run.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: cannot read the unfinished repair ({error}); use --restart") from error
        if metadata.get("identity") != self._identity(identity):
            raise WeightsError(
                f"{path}: is an unfinished repair with other weights, images or settings; repeat its settings to "
                "continue, or use --restart to start over"
            )
        self.iterations = int(metadata["iterations"])
        self._skipped.extend(bool(value) for value in tensors["skipped"].tolist())
        with torch.no_grad():
            for name, parameter in self._named_shifts().items():
                parameter.copy_(tensors[f"shift/{name}"])
                momentum = tensors.get(f"momentum/{name}")
                if momentum is not None:
                    self._optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)

    def _identity(self, identity: Mapping[str, Any]) -> str:
        return json.dumps({**identity, "settings": asdict(self.settings)}, sort_keys=True)

    def _named_shifts(self) -> dict[str, torch.nn.Parameter]:
        return {
            f"{index}.{name}": parameter
            for index, shifts in enumerate(self._shifts)
            for name, parameter in shifts.items()
        }


def save_backbone(backbone: Backbone, path: Path, facts: Mapping[str, str]) -> None:
    """Write a backbone's weights as safetensors in timm's names, which ``load_backbone`` reads.

    Args:
        backbone: A plain backbone (after :meth:`Repairer.fold`).
        path: The file; written completely or not at all.
        facts: Kept in the file's metadata, for example the hash of the weights it was made from.
    """
    save_tensors(dict(backbone.vit.state_dict()), path, {"backbone": backbone.name, **facts})


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name and rename it; missing folders are made."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with whole_file(path) as partial:
        save_file(plain, partial, metadata=dict(metadata))
