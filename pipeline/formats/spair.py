"""SPair-71k (Min et al. 2019): pairs of images with corresponding keypoints.

Layout::

    ROOT/Layout/large/test.txt              one pair per line: 000001-2008_002719-2008_004100:aeroplane
    ROOT/PairAnnotation/test/<line>.json    src_imname, trg_imname, src_kps, trg_kps, trg_bndbox, category
    ROOT/JPEGImages/<category>/<name>       the images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.core.files import is_component
from pipeline.formats.json_file import load_json, shorten

Box = tuple[float, float, float, float]
_LARGEST_COORDINATE = 1e6


@dataclass(frozen=True, slots=True)
class SpairPair:
    """One pair; keypoints are those visible in both images.

    Attributes:
        category: Class name.
        source: Path of the source image.
        target: Path of the target image.
        source_points: float32 ``(M, 2)`` as (x, y) in pixels.
        target_points: The same in the target.
        target_box: Left, top, right, bottom of the target's object.
    """

    category: str
    source: Path
    target: Path
    source_points: npt.NDArray[np.float32]
    target_points: npt.NDArray[np.float32]
    target_box: Box


def list_pairs(root: Path, split: str = "test", size: str = "large") -> dict[str, list[Path]]:
    """Annotation files of a split by category; categories and pairs are sorted.

    Raises:
        MediaError: The folder does not have SPair-71k's layout, or the split is empty.
    """
    listing = root / "Layout" / size / f"{split}.txt"
    if not listing.is_file():
        raise MediaError(f"{root}: is not a SPair-71k folder, {listing} is missing")
    pairs: dict[str, list[Path]] = {}
    for line in sorted(listing.read_text(encoding="utf-8").split()):
        if not is_component(line):
            raise MediaError(f"{listing}: {shorten(line)} cannot be the name of a pair")
        category = line.rpartition(":")[2]
        pairs.setdefault(category, []).append(root / "PairAnnotation" / split / f"{line}.json")
    if not pairs:
        raise MediaError(f"{listing}: lists no pairs")
    return dict(sorted(pairs.items()))


def read_pair(path: Path, root: Path) -> SpairPair:
    """One pair.

    Raises:
        LabelFileError: The file is missing or not JSON, or a field is missing or has the wrong shape.
    """
    # Some copies of the data set have "_" in file names for ":", which Windows does not allow.
    file = path if path.is_file() else path.with_name(path.name.replace(":", "_"))
    try:
        fields = load_json(file)
        category = str(fields["category"])
        points = [_points(fields[name]) for name in ("src_kps", "trg_kps")]
        left, top, right, bottom = (float(value) for value in fields["trg_bndbox"])
        names = [str(fields[name]) for name in ("src_imname", "trg_imname")]
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise LabelFileError(f"{path}: cannot be read as an SPair-71k pair ({error!r})") from error
    for name in (category, *names):
        if not is_component(name):
            raise LabelFileError(f"{path}: {shorten(name)} cannot be the name of a file")
    source, target = (root / "JPEGImages" / category / name for name in names)
    if len(points[0]) != len(points[1]):
        raise LabelFileError(f"{path}: {len(points[0])} source and {len(points[1])} target keypoints")
    return SpairPair(category, source, target, points[0], points[1], (left, top, right, bottom))


def _points(values: object) -> npt.NDArray[np.float32]:
    points = np.asarray(values, np.float64).reshape(-1, 2)
    if not (np.abs(points) <= _LARGEST_COORDINATE).all():
        raise ValueError(f"coordinates must be numbers up to {_LARGEST_COORDINATE}")
    return points.astype(np.float32)
