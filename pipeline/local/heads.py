"""Classifiers of patches: nearest neighbors, and a linear layer with or without batch normalization.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), few-shot patch
classification: 1-NN and linear probes on frozen features. What the paper leaves open, and what is done here: the
distance is Euclidean; the linear probe is logistic regression, fitted to the whole training set by L-BFGS (at most
200 iterations, L2 penalty 1e-4 on the weights); batch normalization has no parameters of its own, as in MAE's
linear probing (He et al. 2021, appendix A.1), and its statistics are those of the training set.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.errors import ConfigError

Metric = Literal["euclidean", "cosine"]
HeadKind = Literal["knn", "linear", "linear_bn"]
HEAD_KINDS: Final[tuple[HeadKind, ...]] = ("knn", "linear", "linear_bn")

_ITERATIONS, _PENALTY, _EPSILON = 200, 1e-4, 1e-6


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
    """Logistic regression on the descriptors, normalized channel by channel if wanted."""

    def __init__(self, rows: FloatArray, labels: IntArray, num_classes: int, *, batch_norm: bool) -> None:
        """Fit to patches.

        Args:
            rows: float32 ``(N, C)``.
            labels: int64 ``(N,)``, from 0 to ``num_classes - 1``.
            num_classes: Number of classes.
            batch_norm: Normalize every channel by its mean and variance first.
        """
        if not len(rows) or len(rows) != len(labels):
            raise ValueError(f"a linear probe needs as many labels as rows, got {len(rows)} and {len(labels)}")
        inputs = torch.from_numpy(np.asarray(rows, np.float32))
        channels = inputs.shape[1]
        self._mean, self._scale = torch.zeros(channels), torch.ones(channels)
        if batch_norm:
            self._mean = inputs.mean(dim=0)
            self._scale = (inputs.var(dim=0, unbiased=False) + _EPSILON).rsqrt()
        self._weight = torch.zeros(num_classes, channels, requires_grad=True)
        self._bias = torch.zeros(num_classes, requires_grad=True)
        self._fit(self._normalized(inputs), torch.from_numpy(np.asarray(labels, np.int64)))

    def _normalized(self, inputs: Tensor) -> Tensor:
        return (inputs - self._mean) * self._scale

    def _fit(self, inputs: Tensor, labels: Tensor) -> None:
        optimizer = torch.optim.LBFGS(
            [self._weight, self._bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = F.linear(inputs, self._weight, self._bias)
            value = F.cross_entropy(logits, labels) + _PENALTY / 2 * self._weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def predict(self, rows: FloatArray) -> IntArray:
        """See :class:`Head`."""
        inputs = self._normalized(torch.from_numpy(np.asarray(rows, np.float32)))
        return np.asarray(F.linear(inputs, self._weight, self._bias).argmax(dim=1).numpy(), np.int64)


def fit_head(
    kind: HeadKind,
    rows: FloatArray,
    labels: IntArray,
    num_classes: int,
    *,
    k: int = 1,
    metric: Metric = "euclidean",
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
    return LinearHead(rows, labels, num_classes, batch_norm=kind == "linear_bn")
