"""Classifiers of patches: nearest neighbors, and a linear layer with or without batch normalization.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), few-shot patch
classification: 1-NN and linear probes on frozen features. What the paper leaves open, and what is done here: the
distance is Euclidean; the linear layer is trained with AdamW (learning rate 1e-2, falling to zero along a cosine,
no weight decay) in batches of 256, for 10 passes over the patches and at least 1000 steps; batch normalization has
no parameters of its own, as in MAE's linear probing (He et al. 2021, appendix A.1).
"""

from __future__ import annotations

import math
from typing import Final, Literal, Protocol

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.errors import ConfigError

Metric = Literal["euclidean", "cosine"]
HeadKind = Literal["knn", "linear", "linear_bn"]
HEAD_KINDS: Final[tuple[HeadKind, ...]] = ("knn", "linear", "linear_bn")

_EPOCHS, _MIN_STEPS, _BATCH, _LEARNING_RATE = 10, 1000, 256, 1e-2


class Head(Protocol):
    """A fitted classifier."""

    def predict(self, rows: FloatArray) -> IntArray:
        """Classes ``(N,)`` of descriptors ``(N, C)``."""


class KnnHead:
    """The majority of the k nearest training patches; the nearest of them decides between equals."""

    def __init__(self, rows: FloatArray, labels: IntArray, *, k: int = 1, metric: Metric = "euclidean") -> None:
        """Keep the training patches.

        Args:
            rows: float32 ``(N, C)``.
            labels: int64 ``(N,)``, at least 0.
            k: Neighbors; fewer training patches are all asked.
            metric: The distance.
        """
        if not len(rows) or len(rows) != len(labels):
            raise ValueError(f"k-NN needs as many labels as rows, got {len(rows)} and {len(labels)}")
        self._labels, self._metric = np.asarray(labels, np.int64), metric
        self._k = min(k, len(rows))
        self._index = exact_index(rows, metric)

    def predict(self, rows: FloatArray) -> IntArray:
        """See :class:`Head`."""
        near = self._labels[search(self._index, rows, self._k, self._metric)]
        votes = np.stack([(near == near[:, [place]]).sum(axis=1) for place in range(self._k)], axis=1)
        return np.asarray(near[np.arange(len(near)), votes.argmax(axis=1)], np.int64)


def exact_index(rows: FloatArray, metric: Metric) -> faiss.Index:
    """A FAISS index that compares with every row."""
    index = faiss.IndexFlatIP(rows.shape[1]) if metric == "cosine" else faiss.IndexFlatL2(rows.shape[1])
    index.add(_comparable(rows, metric))
    return index


def search(
    index: faiss.Index, rows: FloatArray, k: int, metric: Metric, *, without: range | None = None
) -> IntArray:
    """The k nearest rows of an index, nearest first: int64 ``(N, k)``; -1 where there are fewer.

    Args:
        index: From :func:`exact_index`.
        rows: float32 ``(N, C)``.
        k: Neighbors.
        metric: The distance the index was made for.
        without: Rows of the index that are left out.
    """
    options = None
    if without is not None:
        left_out = faiss.IDSelectorRange(without.start, without.stop)
        options = faiss.SearchParameters(sel=faiss.IDSelectorNot(left_out))  # type: ignore[call-arg]
    return np.asarray(index.search(_comparable(rows, metric), k, params=options)[1], np.int64)


def _comparable(rows: FloatArray, metric: Metric) -> FloatArray:
    return normalize_rows(rows) if metric == "cosine" else np.ascontiguousarray(rows, np.float32)


class LinearHead:
    """A linear layer on the descriptors, after batch normalization if wanted."""

    def __init__(
        self,
        rows: FloatArray,
        labels: IntArray,
        num_classes: int,
        *,
        batch_norm: bool,
        seed: int = 0,
    ) -> None:
        """Train on patches.

        Args:
            rows: float32 ``(N, C)``.
            labels: int64 ``(N,)``, from 0 to ``num_classes - 1``.
            num_classes: Number of classes.
            batch_norm: Normalize every channel by its mean and variance first.
            seed: Of the order of patches and the first weights.
        """
        if not len(rows) or len(rows) != len(labels):
            raise ValueError(f"a linear probe needs as many labels as rows, got {len(rows)} and {len(labels)}")
        generator = torch.Generator().manual_seed(seed)
        linear = nn.Linear(rows.shape[1], num_classes)
        nn.init.normal_(linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(linear.bias)
        norm = (
            nn.BatchNorm1d(rows.shape[1], affine=False, eps=1e-6)
            if batch_norm and len(rows) > 1
            else nn.Identity()
        )
        self._model = nn.Sequential(norm, linear)
        self._fit(torch.from_numpy(np.asarray(rows, np.float32)), torch.from_numpy(labels), generator)
        self._model.eval()

    def _fit(self, rows: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
        batch = min(_BATCH, len(rows))
        # Without enough steps the bias cannot follow the shares of the classes when the channels have no mean.
        steps = max(_MIN_STEPS, _EPOCHS * (len(rows) // batch))
        order = torch.randperm(len(rows), generator=generator)
        start = 0
        for step in range(steps):
            if start + batch > len(rows):
                order, start = torch.randperm(len(rows), generator=generator), 0
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            picked = order[start : start + batch]
            start += batch
            optimizer.zero_grad()
            loss = F.cross_entropy(self._model(rows[picked]), labels[picked])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def predict(self, rows: FloatArray) -> IntArray:
        """See :class:`Head`."""
        return np.asarray(self._model(torch.from_numpy(rows)).argmax(dim=1).numpy(), np.int64)


def fit_head(
    kind: HeadKind,
    rows: FloatArray,
    labels: IntArray,
    num_classes: int,
    *,
    k: int = 1,
    metric: Metric = "euclidean",
    seed: int = 0,
) -> Head:
    """A head of a kind, fitted to the rows whose label is not negative.

    Raises:
        ConfigError: No row has a label.
    """
    known = labels >= 0
    if not known.any():
        raise ConfigError("no training patch has a label; give more training images")
    rows, labels = np.ascontiguousarray(rows[known]), labels[known]
    if kind == "knn":
        return KnnHead(rows, labels, k=k, metric=metric)
    return LinearHead(rows, labels, num_classes, batch_norm=kind == "linear_bn", seed=seed)
