"""A folder name for each video: readable, unique in the batch, the same in every run, never leading out of OUT."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_MAX_BYTES = 120
_RESERVED = re.compile(r"batch(-.*)?\.json|index\.html", re.IGNORECASE)


def unique_names(wanted: Sequence[str], keys: Sequence[str]) -> list[str]:
    """One name per video; where two would share one, each gets a hash of its key.

    A name depends on the set of videos and not on their order. Names that differ only in case, or in how an accent
    is encoded, count as shared: not every file system tells them apart.

    Args:
        wanted: The preferred names.
        keys: What makes each video itself (its path and range); no two are equal.

    >>> unique_names(["cam", "street"], ["/a/cam.mp4", "/a/street.mp4"])
    ['cam', 'street']
    >>> [name[:4] for name in unique_names(["cam", "cam"], ["/a/cam.mp4", "/b/cam.mp4"])]
    ['cam-', 'cam-']
    """
    safe = [safe_name(name) for name in wanted]
    counts = Counter(_folded(name) for name in safe)
    names: list[str] = []
    taken = {_folded(name) for name in safe if counts[_folded(name)] == 1}
    for name, key in zip(safe, keys, strict=True):
        if counts[_folded(name)] > 1:
            name = _with_hash(name, key, taken)
            taken.add(_folded(name))
        names.append(name)
    return names


def safe_name(name: str) -> str:
    """A name as one path component that every file system takes.

    >>> safe_name("../..//etc"), safe_name("a:b"), safe_name("..")
    ('etc', 'a_b', 'video-5ec1f7e7')
    """
    name = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    clean = re.sub(r'[\x00-\x1f\x7f\ud800-\udfff<>:"|?*]', "_", name).strip(" .")
    too_long = len(clean.encode()) > _MAX_BYTES
    if clean and not too_long and not _RESERVED.fullmatch(clean):
        return clean
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem = clean.encode()[: _MAX_BYTES - 9].decode("utf-8", "ignore").strip(" .") if clean else "video"
    return f"{stem}-{digest}"


def _with_hash(name: str, key: str, taken: set[str]) -> str:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    for length in range(8, len(digest) + 1):
        candidate = f"{name}-{digest[:length]}"
        if _folded(candidate) not in taken:
            return candidate
    return f"{name}-{digest}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
