"""Files that appear whole or not at all, names that stay inside a folder, and lists of images.

Everything the project writes goes through :func:`whole_file`, and every path made from a name that came out of a
file or from the command line goes through :func:`path_inside`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from pipeline.core.errors import MediaError, OutputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_CHUNK_BYTES = 1 << 20


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` when the block ends without an error.

    Args:
        path: Where the file shall appear; missing folders are made.
        sync: Wait until the content and the new name are on the disk, so that they outlive a power loss.

    Raises:
        OutputError: The file cannot be written.

    On an error nothing is left beside ``path``, and a file that was there before stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if sync:
            sync_to_disk(partial)
        os.replace(partial, path)
        if sync:
            sync_to_disk(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``path`` to prepare it in; removed when the block ends.

    What a killed process left in it is cleared first. :func:`move_folder` gives a finished result its name.

    Raises:
        OutputError: The folder cannot be made.
    """
    scratch = path.with_name(f".{path.name}.scratch.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def move_folder(finished: Path, path: Path) -> None:
    """Rename a finished folder to ``path``, in place of the folder that is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    os.replace(finished, path)


def write_bytes_whole(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file whole or not at all; see :func:`whole_file`."""
    with whole_file(path, sync=sync) as partial:
        partial.write_bytes(content)


def write_text_whole(path: Path, text: str, *, sync: bool = False) -> None:
    """The same for text, as UTF-8 with line feeds."""
    write_bytes_whole(path, text.encode("utf-8"), sync=sync)


def write_json_whole(path: Path, values: Any, *, sync: bool = False) -> None:
    """The same for JSON; what JSON does not know (paths, fractions) is written as text."""
    write_text_whole(path, json.dumps(values, indent=2, default=str) + "\n", sync=sync)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def path_inside(folder: Path, *names: str) -> Path:
    """``folder`` joined with names that may not lead out of it. Every output path is made here.

    Args:
        folder: The output folder.
        names: One path component each; empty names, ``.``, ``..``, separators, drives and control characters
            are refused, and so is a link that leads out of the folder.

    Raises:
        OutputError: A name would leave the folder.

    >>> path_inside(Path("out"), "park", "00001.png").as_posix()
    'out/park/00001.png'
    """
    for name in names:
        if not is_component(name):
            raise OutputError(f"'{_printable(name)}' cannot be the name of a file or folder in {folder}")
    path = folder.joinpath(*names)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{path}: is a link that leads out of {folder}")
    return path


def is_component(name: str) -> bool:
    """Whether a name is that of one file or folder, and of nothing above or beside it.

    >>> [is_component(name) for name in ("clip 1", "a:b", "..", "a/b", "")]
    [True, True, False, False, False]
    """
    is_plain = PurePath(name).name == name and "/" not in name and "\\" not in name
    return is_plain and name not in ("", ".", "..") and not re.search(r"[\x00-\x1f\x7f]", name)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders numbers in names by value.

    >>> sorted(["f10", "f9", "f1"], key=natural_key)
    ['f1', 'f9', 'f10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The image files of a folder in natural order of their paths; hidden files are left out.

    Args:
        folder: Where to look.
        recursive: Look into the folders inside it too.

    Raises:
        MediaError: It is not a folder, or holds no image.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder}: no such folder of images")
    entries = folder.rglob("*") if recursive else folder.iterdir()
    files = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise MediaError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(files, key=lambda path: natural_key(path.relative_to(folder).with_suffix("").as_posix()))


def _printable(name: str) -> str:
    return name.encode("unicode_escape").decode("ascii")[:80]
