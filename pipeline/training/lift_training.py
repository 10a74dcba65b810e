"""Training LiFT: predict the features at twice the scale from the features at one scale.

Suri et al., LiFT, ECCV 2024, section 3.2: with x at 448 px and a frozen ViT f, the loss is
d(LiFT(x/2, f(x/2)), f(x)) + d(LiFT(x/4, f(x/4)), f(x/2)), d the mean cosine distance over all cells.

Differs from the reference, because a small image set on a CPU allows few steps: training starts from bilinear
interpolation with fixed batch norm statistics (``--start random`` for the reference), and the learning rate
follows a half cosine (it is constant there). L1 and L2 are offered as in the paper's ablation. Cached views may be
mirrored together with their features, which gives new pairs without another forward of the ViT.

Invariant: the state after step n depends on the settings and the data alone. The order of samples and every
random choice come from generators seeded with (seed, epoch), so a run that was killed and continued
from its checkpoint ends, on the same machine, with bit-identical weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.checkpoint_file import (
    half_cosine_rate,
    load_checkpoint,
    refuse_other_training,
    save_checkpoint,
)
from pipeline.training.lift_data import Batch, FeatureCache
from pipeline.training.lift_start import start_as_bilinear
from pipeline.training.lift_statistics import LEVELS, evaluate, hold_batch_norms, match_norms, settle_batch_norms
from stages.extract.lift.network import Lift

Loss = Literal["cosine", "l1", "l2"]
Schedule = Literal["cosine", "constant"]
Start = Literal["bilinear", "random"]
START_SAMPLES = 200
WARM_UP_STEPS = 40


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of the training.

    Attributes:
        epochs: Passes over the training views.
        batch_size: Views per step.
        learning_rate: Initial learning rate of Adam.
        schedule: "cosine" has a short warm-up and falls to zero at the last step; "constant" is the reference.
        weight_decay: Of AdamW; 0 is Adam.
        loss: Distance to the target.
        views: Number of cached views of each image to use.
        mirror: Mirror cached views and features with probability 1/2.
        extra_blocks: Blocks on the doubled grid that the published modules do not have.
        start: "bilinear" starts from bilinear interpolation (``pipeline.training.lift_start``), "random" is the
            reference.
        bf16: Run convolutions in bfloat16 (autocast); weights and the loss stay float32.
        seed: Seed of the initial weights and all random choices.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 3e-4
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0
    loss: Loss = "cosine"
    views: int = 1
    mirror: bool = False
    extra_blocks: int = 0
    start: Start = "bilinear"
    bf16: bool = False
    seed: int = 0


@dataclass
class History:
    """The training log.

    Attributes:
        losses: Training loss of every step.
        epochs: For every finished epoch the held-out cosines, see :func:`evaluate`.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)


def distance(lifted: Tensor, target: Tensor, kind: Loss) -> Tensor:
    """Mean distance over all cells of ``(B, C, h, w)`` maps, a scalar.

    >>> distance(torch.ones(1, 2, 1, 1), 3 * torch.ones(1, 2, 1, 1), "cosine").abs().item() < 1e-6
    True
    """
    if kind == "l1":
        return (lifted - target).abs().mean()
    if kind == "l2":
        return (lifted - target).square().mean()
    return 1 - F.cosine_similarity(lifted, target, dim=1).mean()


class Trainer:
    """Trains one LiFT on a cache.

    Args:
        settings: The settings.
        cache: Its first ``settings.views`` views are complete.
        patch_px: Patch of the backbone.
        checkpoint: File of the state between runs; read at the start where it exists.
        device: The device to train on.

    Raises:
        OutputError: The checkpoint belongs to other settings or other data.
    """

    def __init__(
        self,
        settings: TrainSettings,
        cache: FeatureCache,
        *,
        patch_px: int,
        checkpoint: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.cache = cache
        self.device = torch.device(device)
        self.checkpoint = checkpoint
        self.history = History()
        self.step = 0
        self._samples = cache.samples(settings.views)
        channels = cache.batch(self._samples[:1]).features[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = Lift(channels, patch_px=patch_px, extra_blocks=settings.extra_blocks)
        if settings.start == "bilinear" and not checkpoint.exists():
            chosen = self._some_samples()
            start_as_bilinear(model, torch.cat([cache.batch([sample]).features[1] for sample in chosen]))
            settle_batch_norms(model, (cache.batch([sample]) for sample in chosen))
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        if checkpoint.exists():
            self._resume()

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; the samples that do not fill one are skipped, others in every epoch."""
        return max(1, len(self._samples) // self.settings.batch_size)

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
        on_epoch: Callable[[dict[str, float]], None] = lambda scores: None,
    ) -> Lift:
        """Train to the end, or for ``stop_after`` steps.

        Args:
            save_every: Steps between checkpoints; one is written after every epoch too.
            stop_after: Return after so many steps of this call, for tests and time limits.
            on_step: Called with the number of steps done and the last loss.
            on_epoch: Called with the held-out cosines.

        Returns:
            The model, in eval mode.
        """
        last = self.total_steps if stop_after is None else min(self.total_steps, self.step + stop_after)
        while self.step < last:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            loss = self._train_step(epoch, position)
            self.step += 1
            self.history.losses.append(loss)
            on_step(self.step, loss)
            ended = self.step % self.steps_per_epoch == 0
            if ended:
                if self.step == self.total_steps and self.settings.loss == "cosine":
                    match_norms(self.model, (self.cache.batch([s], self.device) for s in self._some_samples()))
                scores = evaluate(self.model, self.cache, device=self.device, bf16=self.settings.bf16)
                self.history.epochs.append(scores)
                on_epoch(scores)
            if ended or self.step % save_every == 0:
                self.save()
        return self.model.eval()

    def _some_samples(self) -> list[tuple[int, int]]:
        """Training samples spread evenly, for statistics."""
        return self._samples[:: max(1, len(self._samples) // START_SAMPLES)][:START_SAMPLES]

    def _train_step(self, epoch: int, position: int) -> float:
        self.model.train()
        if self.settings.start == "bilinear":
            hold_batch_norms(self.model)
        batch = self._batch(epoch, position)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        for level in LEVELS:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                lifted = self.model(batch.images[level - 1], batch.features[level])
            total = total + distance(lifted.float(), batch.features[level - 1], self.settings.loss)
        return total

    def _learning_rate(self) -> float:
        rate = self.settings.learning_rate
        if self.settings.schedule == "constant":
            return rate
        # Adam's first steps have full length whatever the gradient is: without warm-up they destroy the start.
        return half_cosine_rate(rate, self.step, self.total_steps, WARM_UP_STEPS)

    def _batch(self, epoch: int, position: int) -> Batch:
        rng = np.random.default_rng([self.settings.seed, epoch])
        order = rng.permutation(len(self._samples))
        mirrored = rng.random(len(self._samples)) < 0.5
        chosen = order[position * self.settings.batch_size : (position + 1) * self.settings.batch_size]
        batch = self.cache.batch([self._samples[i] for i in chosen], self.device)
        if not self.settings.mirror:
            return batch
        pick = torch.from_numpy(mirrored[chosen]).to(self.device)[:, None, None, None]
        fine, coarse = (torch.where(pick, t.flip(-1), t) for t in batch.images)
        whole, half, quarter = (torch.where(pick, t.flip(-1), t) for t in batch.features)
        return Batch((fine, coarse), (whole, half, quarter))

    def save(self) -> None:
        """Write the checkpoint, complete or not at all."""
        state = {
            "settings": asdict(self.settings),
            "cache": self.cache.key.digest(),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": asdict(self.history),
        }
        save_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        keys = ("settings", "cache", "step", "model", "optimizer", "history")
        state = load_checkpoint(self.checkpoint, keys, self.device)
        other = [k for k, v in asdict(self.settings).items() if state["settings"].get(k) != v]
        if state["cache"] != self.cache.key.digest():
            other.append("the images or the backbone")
        refuse_other_training(self.checkpoint, other)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self.history = History(**state["history"])
