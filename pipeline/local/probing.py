"""Few-shot patch classification: heads fitted on the patches of a few images, scored on the pixels of others.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), few-shot patch
classification, high-variance features and robustness. Cityscapes: the training set is 4 images of each of the 18
training cities.

Training patches are kept in memory; test images pass one by one, so any number of them can be scored. Images are
changed (blur, noise) for testing only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.errors import ConfigError
from pipeline.local.heads import Head, HeadKind, Metric, fit_head
from pipeline.local.labeled_set import LabeledImage, LabeledSet
from pipeline.local.patch_features import Describer, FeatureName
from pipeline.local.patches import Confusion, Counts, class_counts, majority
from pipeline.local.perturbations import Photometric
from stages.extract.high_variance import ChannelVariance, highest_variance, kept_channels

CLEAN: Final = "clean"


@dataclass(frozen=True, slots=True)
class Trial:
    """Which images train and which test.

    Attributes:
        train: Few.
        test: Others.
    """

    train: LabeledSet
    test: LabeledSet


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What is measured.

    Attributes:
        heads: Kinds of classifiers.
        k: Neighbors of k-NN.
        metric: Distance of k-NN.
        removed: Numbers of high-variance channels that are left out, 0 included if wanted.
        changes: Perturbations of the test images, beside the clean ones.
    """

    heads: tuple[HeadKind, ...] = ("knn", "linear", "linear_bn")
    k: int = 1
    metric: Metric = "euclidean"
    removed: tuple[int, ...] = (0,)
    changes: tuple[Photometric, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """What a score belongs to.

    Attributes:
        feature: The feature's name.
        head: Kind of classifier.
        removed: Channels left out.
        change: ``clean``, or a perturbation.
    """

    feature: str
    head: HeadKind
    removed: int
    change: str


@dataclass(slots=True)
class ProbeResult:
    """Scores of one backbone and tiling.

    Attributes:
        confusions: By what they belong to, one per trial.
        variances: The variance of every channel by feature, float64 ``(C,)``, over the training patches of the
            first trial.
        train_patches: Labeled training patches of the first trial by feature.
    """

    confusions: dict[ProbeKey, list[Confusion]] = field(default_factory=dict)
    variances: dict[str, FloatArray] = field(default_factory=dict)
    train_patches: dict[str, int] = field(default_factory=dict)


def make_trials(
    train_pool: LabeledSet, test_pool: LabeledSet, groups: int | None, trials: int, seed: int
) -> list[Trial]:
    """Draws of training groups; what is in one of them never tests in the same trial.

    Args:
        train_pool: Images that may train.
        test_pool: Images that may test; the same set where the data has no splits.
        groups: How many groups of the pool train; None takes all, once.
        trials: Number of draws.
        seed: Of the draws; the first draw is the first groups in their order.

    Raises:
        ConfigError: More groups than there are, or none left to test on.
    """
    shared = {image.path for image in train_pool.images} & {image.path for image in test_pool.images}
    names = train_pool.groups
    if groups is None:
        if shared:
            raise ConfigError("the data has no splits: choose the groups to train on with --train-groups")
        return [Trial(train_pool, test_pool)]
    if groups > len(names) - bool(shared):
        left = " and one has to be left to test on" if shared else ""
        raise ConfigError(f"--train-groups {groups}: the data has {len(names)} groups{left}")
    rng = np.random.default_rng(seed)
    draws = [names[:groups]] + [
        tuple(names[n] for n in rng.permutation(len(names))[:groups]) for _ in range(trials - 1)
    ]
    others = [[name for name in test_pool.groups if not shared or name not in draw] for draw in draws]
    return [
        Trial(train_pool.of_groups(draw), test_pool.of_groups(rest))
        for draw, rest in zip(draws, others, strict=True)
    ]


@dataclass(slots=True)
class _Described:
    """One image's patches by feature."""

    rows: dict[FeatureName, FloatArray]
    counts: dict[FeatureName, Counts]


@dataclass(slots=True)
class _Fitted:
    """One head, and what it reads."""

    key: ProbeKey
    feature: FeatureName
    trial: int
    kept: IntArray | None
    head: Head

    def predict(self, rows: FloatArray) -> IntArray:
        return self.head.predict(rows if self.kept is None else np.ascontiguousarray(rows[:, self.kept]))


class Probe:
    """Fits and scores every head on one backbone and tiling."""

    def __init__(self, describer: Describer, trials: Sequence[Trial], settings: ProbeSettings) -> None:
        """Prepare; nothing is read yet.

        Args:
            describer: Gives the features.
            trials: At least one.
            settings: What is measured.

        Raises:
            ConfigError: More channels to remove than there are.
        """
        self._describer, self._trials, self._settings = describer, trials, settings
        self._on_image: Callable[[], object] = lambda: None
        self._num_classes = len(trials[0].train.classes)
        self._tested = [{image.name for image in trial.test.images} for trial in trials]
        most = max(settings.removed)
        if most >= describer.channels:
            raise ConfigError(
                f"--remove {most}: {describer.backbone.name} has features of {describer.channels} channels"
            )

    @staticmethod
    def count_images(trials: Sequence[Trial], settings: ProbeSettings) -> int:
        """How often an image will be described."""
        train = {image.name for trial in trials for image in trial.train.images}
        test = {image.name for trial in trials for image in trial.test.images}
        return len(train) + len(test) * (1 + len(settings.changes))

    def run(self, on_image: Callable[[], object] = lambda: None) -> ProbeResult:
        """Fit on the training images, score on the test images.

        Args:
            on_image: Called after every image that was described.

        Raises:
            InputError: An image or its labels cannot be read.
        """
        self._on_image = on_image
        result = ProbeResult()
        heads = self._fit(result)
        changes: tuple[Photometric | None, ...] = (None, *self._settings.changes)
        for image in _union([trial.test for trial in self._trials]):
            own = [h for h in heads if image.name in self._tested[h.trial]]
            for change in changes:
                described = self._describe(image, change)
                for fitted in own:
                    self._score(result, fitted, described, CLEAN if change is None else str(change))
        return result

    def _describe(self, image: LabeledImage, change: Photometric | None = None) -> _Described:
        pixels, labels = image.load()
        found = self._describer(pixels, None if change is None else lambda seen: change(seen, image.name))
        self._on_image()
        counts: dict[tuple[int, int], Counts] = {}
        for patches in found.values():
            if patches.grid.grid_hw not in counts:
                counts[patches.grid.grid_hw] = class_counts(labels, patches.grid, self._num_classes)
        return _Described(
            {feature: patches.rows for feature, patches in found.items()},
            {feature: counts[patches.grid.grid_hw] for feature, patches in found.items()},
        )

    def _fit(self, result: ProbeResult) -> list[_Fitted]:
        described = {image.name: self._describe(image) for image in _union([t.train for t in self._trials])}
        fitted: list[_Fitted] = []
        for number, trial in enumerate(self._trials):
            chosen = [described[image.name] for image in trial.train.images]
            for feature in self._describer.features:
                rows = np.concatenate([one.rows[feature] for one in chosen])
                labels = np.concatenate([majority(one.counts[feature]) for one in chosen])
                variance = channel_variance(rows)
                if number == 0:
                    result.variances[str(feature)] = variance.numpy()
                    result.train_patches[str(feature)] = int((labels >= 0).sum())
                fitted.extend(self._heads(feature, number, rows, labels, variance))
        return fitted

    def _heads(
        self, feature: FeatureName, trial: int, rows: FloatArray, labels: IntArray, variance: torch.Tensor
    ) -> Iterator[_Fitted]:
        settings = self._settings
        for removed in settings.removed:
            kept = kept_after(variance, removed)
            some = rows if kept is None else np.ascontiguousarray(rows[:, kept])
            for kind in settings.heads:
                head = fit_head(kind, some, labels, self._num_classes, k=settings.k, metric=settings.metric)
                yield _Fitted(ProbeKey(str(feature), kind, removed, CLEAN), feature, trial, kept, head)

    def _score(self, result: ProbeResult, fitted: _Fitted, described: _Described, change: str) -> None:
        key = ProbeKey(fitted.key.feature, fitted.key.head, fitted.key.removed, change)
        by_trial = result.confusions.setdefault(key, [Confusion(self._num_classes) for _ in self._trials])
        predicted = fitted.predict(described.rows[fitted.feature])
        by_trial[fitted.trial].add(described.counts[fitted.feature], predicted)


def channel_variance(rows: FloatArray) -> torch.Tensor:
    """The variance of every channel of ``(N, C)``, float64 ``(C,)``."""
    variance = ChannelVariance()
    variance.update(torch.from_numpy(rows).T)
    return variance.value()


def kept_after(variance: torch.Tensor, removed: int) -> IntArray | None:
    """The channels left without the ``removed`` most variable ones; None for all.

    Raises:
        ConfigError: No channel would be left.
    """
    if not removed:
        return None
    return np.asarray(kept_channels(variance.numel(), highest_variance(variance, removed)).numpy(), np.int64)


def _union(sets: Sequence[LabeledSet]) -> list[LabeledImage]:
    """Every image once, in order of first appearance."""
    return list({image.name: image for images in sets for image in images.images}.values())
