"""Galleries: the last few descriptors of every track, and their similarity to new boxes.

Source: the appearance gallery of DeepSORT (Wojke et al. 2017, section 2.2, https://arxiv.org/abs/1703.07402),
whose distance is the smallest cosine distance to any kept descriptor.

Differs from the reference: the similarity to an entry falls by ``forgetting`` per second of its age, and a
descriptor that is nearly equal to the newest entry replaces it instead of pushing out an older view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class Gallery:
    """At most ``size`` L2-normalized descriptors of one track, newest last.

    Attributes:
        size: Largest number of entries.
        redundant: A descriptor whose cosine to the newest entry is at least this replaces it.
        entries: The descriptors, float32 ``(D,)`` each.
        seconds: When each was seen.
    """

    size: int
    redundant: float
    entries: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, descriptor: Array, seconds: float) -> None:
        """Keep a descriptor seen at ``seconds``."""
        if len(self.entries) > 1 and float(self.entries[-1] @ descriptor) >= self.redundant:
            self.entries.pop()
            self.seconds.pop()
        self.entries.append(descriptor)
        self.seconds.append(seconds)
        if len(self.entries) > self.size:
            del self.entries[0], self.seconds[0]


def appearance(
    galleries: Sequence[Gallery], descriptors: Array, seconds: float, forgetting: float
) -> npt.NDArray[np.float64]:
    """Largest cosine of each descriptor to each gallery, less ``forgetting`` per second of an entry's age.

    Args:
        galleries: One per track.
        descriptors: float32 ``(M, D)``, L2-normalized.
        seconds: The time now.
        forgetting: Cosine lost per second.

    Returns:
        ``(N, M)``, at most 1; 0 for an empty gallery.
    """
    similarity = np.zeros((len(galleries), descriptors.shape[0]))
    filled = [n for n, gallery in enumerate(galleries) if gallery.entries]
    if not filled or not len(descriptors):
        return similarity
    cosines = np.stack([entry for n in filled for entry in galleries[n].entries]) @ descriptors.T
    ages = seconds - np.array([when for n in filled for when in galleries[n].seconds])
    faded = cosines - forgetting * ages[:, None]
    starts = np.cumsum([0, *(len(galleries[n].entries) for n in filled[:-1])])
    similarity[filled] = np.maximum.reduceat(faded, starts, axis=0)
    return similarity
