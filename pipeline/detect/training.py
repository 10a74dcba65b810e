"""Training a detector: its pyramid and heads, with the backbone frozen or not.

Li et al. 2022, appendix A.2, scaled down: AdamW, warm-up and a half cosine, Mask R-CNN's five losses.

Differs from the reference: the backbone is frozen unless asked for; views are the image and its mirror image,
without large-scale jitter, so that a frozen backbone has to see every view once only.

Invariant: the state after step n depends on the settings and the data alone. Orders and random choices come from
(seed, epoch) and (seed, step), so a run that was killed and continued from its checkpoint ends with the same
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import LabelFileError
from pipeline.detect.coco_data import CocoSet, make_target
from pipeline.detect.map_sources import MapSource, Sample
from pipeline.detect.model import Detector
from pipeline.training.checkpoint_file import (
    half_cosine_rate,
    load_checkpoint,
    refuse_other_training,
    save_checkpoint,
)

WARM_UP_STEPS = 50
LARGEST_GRADIENT = 5.0
BACKBONE_RATE = 0.1
"""Learning rate of an unfrozen backbone by that of the heads."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of the training.

    Attributes:
        epochs: Passes over all views.
        batch_size: Views per step.
        learning_rate: Highest rate of AdamW.
        weight_decay: Of AdamW.
        box_samples: Boxes per image that the heads are trained on, at most a quarter of them on objects.
        mirror: Also train on the mirror images.
        unfreeze: Train the backbone too, at a tenth of the rate.
        seed: Seed of the initial weights and of all random choices.
    """

    epochs: int = 12
    batch_size: int = 2
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    box_samples: int = 64
    mirror: bool = True
    unfreeze: bool = False
    seed: int = 0


@dataclass
class History:
    """The losses of every step, by name."""

    losses: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a detector on a labeled set.

    Args:
        settings: The settings.
        detector: With its initial weights.
        data: The images and their objects; images without objects are left out.
        samples: The views to train on.
        source: Their maps.
        checkpoint: File of the state between runs; read at the start where it exists.

    Raises:
        OutputError: The checkpoint belongs to other settings or data, or cannot be read.
    """

    def __init__(
        self,
        settings: TrainSettings,
        detector: Detector,
        data: CocoSet,
        samples: list[Sample],
        source: MapSource,
        checkpoint: Path,
    ) -> None:
        self.settings = settings
        self.detector = detector
        self.data = data
        self.samples = samples
        self.source = source
        self.checkpoint = checkpoint
        self.history = History()
        self.step = 0
        detector.heads.fg_bg_sampler.batch_size_per_image = settings.box_samples
        groups: list[dict[str, Any]] = [{"params": _parameters(detector.trained_parts), "scale": 1.0}]
        detector.maps.requires_grad_(settings.unfreeze)
        if settings.unfreeze:
            groups.append({"params": list(detector.maps.parameters()), "scale": BACKBONE_RATE})
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        if checkpoint.exists():
            self._resume()

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return math.ceil(len(self.samples) / self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    def run(
        self,
        *,
        save_every: int = 50,
        stop_after: int | None = None,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        """Train to the end, or for ``stop_after`` steps.

        Args:
            save_every: Steps between checkpoints.
            stop_after: Return after so many steps of this call.
            on_step: Called with the number of steps done and the last loss.
        """
        last = self.total_steps if stop_after is None else min(self.total_steps, self.step + stop_after)
        while self.step < last:
            losses = self._train_step()
            self.step += 1
            self.history.losses.append(losses)
            on_step(self.step, sum(losses.values()))
            if self.step % save_every == 0 or self.step == last:
                self.save()
        self.detector.eval()

    def _train_step(self) -> dict[str, float]:
        settings = self.settings
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(self.samples))
        rows = order[position * settings.batch_size : (position + 1) * settings.batch_size]
        samples = [self.samples[row] for row in rows]
        self.detector.eval()
        for part in self.detector.trained_parts.values():
            part.train()
        maps, places = self.source.batch(samples)
        canvas = self.detector.settings.canvas_hw
        targets = [
            {name: value.to(self.detector.device) for name, value in target.items()}
            for target in (
                make_target(self.data.images[sample.image], place, canvas, mirrored=sample.mirrored)
                for sample, place in zip(samples, places, strict=True)
            )
        ]
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed * 1_000_003 + self.step)  # the heads draw samples
            losses = self.detector.losses(maps, [place.size_hw for place in places], targets)
        total: Tensor = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, LARGEST_GRADIENT)
        self.optimizer.step()
        return {name: round(float(value.detach()), 6) for name, value in losses.items()}

    def _learning_rate(self) -> float:
        return half_cosine_rate(self.settings.learning_rate, self.step, self.total_steps, WARM_UP_STEPS)

    def _key(self) -> dict[str, Any]:
        """Everything the weights depend on, beside the step."""
        lift = self.detector.lift
        return {
            **asdict(self.settings),
            "detector": self.detector.settings.model_dump_json(),
            "lift": "" if lift is None else str(lift.metadata.to_header()),
            "backbone": self.detector.maps.weights_sha256,
            "views": len(self.samples),
            "images": [[image.path.name, len(image.objects)] for image in self.data.images],
        }

    def _trained_state(self) -> dict[str, Tensor]:
        kept = ("pyramid.", "proposals.", "heads.") + (("maps.",) if self.settings.unfreeze else ())
        return {name: value for name, value in self.detector.state_dict().items() if name.startswith(kept)}

    def save(self) -> None:
        """Write the checkpoint, complete or not at all."""
        state = {
            "key": self._key(),
            "step": self.step,
            "model": self._trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.losses,
        }
        save_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoint, ("key", "step", "model", "optimizer", "history"), "cpu")
        other = [name for name, value in self._key().items() if state["key"].get(name) != value]
        refuse_other_training(self.checkpoint, other)
        self.detector.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self.history = History(list(state["history"]))


def _parameters(parts: dict[str, nn.Module]) -> list[nn.Parameter]:
    return [parameter for part in parts.values() for parameter in part.parameters()]


def training_samples(data: CocoSet, *, mirror: bool) -> list[Sample]:
    """The views of a training: every image that has objects, and its mirror image.

    Raises:
        LabelFileError: No image has an object.
    """
    labeled = [number for number, image in enumerate(data.images) if image.objects]
    if not labeled:
        raise LabelFileError(f"{data.path}: no image has an object to train on")
    return [Sample(number, mirrored) for mirrored in ((False, True) if mirror else (False,)) for number in labeled]
