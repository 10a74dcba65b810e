"""Run-length encoding of binary masks, as COCO and MOTS store them.

Pixels are read column by column; the counts alternate between runs of 0 and runs of 1, beginning with 0. In the
compressed form every count is text of 5 bits per character, from the fourth one on as the difference to the count
before the last (https://github.com/cocodataset/cocoapi, ``common/maskApi.c``, ``rleToString`` and
``rleFrString``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FIRST_CHARACTER = 48
_MORE, _SIGN, _BITS = 0x20, 0x10, 0x1F


def mask_counts(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Lengths of the runs of a mask ``(H, W)``, column by column, beginning with a run of False.

    >>> mask_counts(np.array([[True, True], [False, True]])).tolist()
    [0, 1, 1, 2]
    """
    return run_lengths(np.asarray(mask, np.bool_).ravel(order="F"))


def run_lengths(values: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Lengths of the runs in ``(N,)``, beginning with a run of False that may be empty.

    >>> run_lengths(np.array([False, False, True])).tolist()
    [2, 1]
    """
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(values)]])
    lengths = np.diff(bounds)
    if len(values) and values[0]:
        lengths = np.concatenate([[0], lengths])
    return np.asarray(lengths, np.int64)


def compress_counts(counts: npt.NDArray[np.int64]) -> str:
    """Counts as compressed text.

    >>> compress_counts(np.array([6, 1, 40, 4, 5, 4, 5, 4, 21]))
    '61X13mN000`0'
    """
    characters: list[str] = []
    for place, count in enumerate(counts.tolist()):
        value = count - int(counts[place - 2]) if place > 2 else count
        more = True
        while more:
            bits = value & _BITS
            value >>= 5
            more = value != -1 if bits & _SIGN else value != 0
            characters.append(chr((bits | (_MORE if more else 0)) + _FIRST_CHARACTER))
    return "".join(characters)


def decompress_counts(text: str) -> npt.NDArray[np.int64]:
    """Inverse of :func:`compress_counts`.

    >>> decompress_counts("61X13mN000`0").tolist()
    [6, 1, 40, 4, 5, 4, 5, 4, 21]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - _FIRST_CHARACTER
        value |= (bits & _BITS) << shift
        shift += 5
        if bits & _MORE:
            continue
        if bits & _SIGN:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return np.array(counts, np.int64)


def encode_mask(mask: npt.NDArray[np.bool_]) -> dict[str, object]:
    """A mask ``(H, W)`` as COCO's compressed RLE: ``{"size": [H, W], "counts": text}``."""
    return {"size": list(mask.shape), "counts": compress_counts(mask_counts(mask))}


def decode_mask(text: str, image_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask ``(H, W)`` of compressed counts.

    Raises:
        ValueError: The counts do not fill the mask.

    >>> decode_mask("0111", (2, 2)).tolist()
    [[True, True], [False, True]]
    """
    return mask_of_counts(decompress_counts(text), image_hw)


def mask_of_counts(counts: npt.ArrayLike, image_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask ``(H, W)`` of run lengths, column by column, the first of pixels outside.

    Raises:
        ValueError: They are no list, one is negative, or they do not fill the mask.

    >>> mask_of_counts([1, 3], (2, 2)).tolist()
    [[False, True], [True, True]]
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 1 or (counts < 0).any():
        raise ValueError("run lengths must be a list of numbers from 0 on")
    if counts.sum() != image_hw[0] * image_hw[1]:
        raise ValueError(f"the runs cover {counts.sum()} pixels of {image_hw[0]} x {image_hw[1]}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(image_hw, order="F")
