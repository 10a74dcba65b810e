"""Files that lie in a folder or behind an fsspec URL (``s3://``, ``gs://``, ``https://``, ``memory://``)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from pipeline.core.errors import InputError, LiftstreamError, OutputError
from pipeline.core.files import path_inside, write_bytes_whole
from stages.write.folder import FILE_LIST, RECORD


class TransferError(LiftstreamError):
    """A file could not be copied from or to a storage; trying again may help."""


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path.

    >>> is_url("s3://bucket/a.mp4"), is_url("a:b.mp4")
    (True, False)
    """
    return _SCHEME.match(text) is not None


def local_path(text: str) -> Path | None:
    """The path that a text stands for; None for a URL of another machine.

    >>> local_path("file:///data/a.mp4").as_posix()
    '/data/a.mp4'
    """
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if is_url(text) else Path(text)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises:
        InputError: The scheme is unknown, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {_reason(error)}") from error


@contextmanager
def explained(url: str, doing: str, kind: type[LiftstreamError]) -> Iterator[None]:
    """Turn whatever a storage library raises into one line."""
    try:
        yield
    except LiftstreamError:
        raise
    except Exception as error:
        raise kind(f"{url}: {doing} ({_reason(error)})") from error


def size_of(text: str) -> tuple[int, int] | None:
    """Bytes and modification time (ns, 0 where unknown) of a file; None where it cannot be asked.

    A folder has the size 0 and its own modification time.
    """
    path = local_path(text)
    if path is not None:
        try:
            stat = path.stat()
        except (OSError, ValueError):
            return None
        return (0 if path.is_dir() else stat.st_size), stat.st_mtime_ns
    try:
        with explained(text, "cannot be asked for its size", InputError):
            system, inner = filesystem(text)
            size = system.info(inner).get("size")
    except InputError:
        return None
    return None if size is None else (int(size), 0)


def read_text(text: str) -> str:
    """The content of a text file in UTF-8.

    Raises:
        InputError: It is missing, cannot be read or is not text.
    """
    path = local_path(text)
    try:
        if path is not None:
            return path.read_text(encoding="utf-8-sig")
        with explained(text, "cannot be read", InputError):
            system, inner = filesystem(text)
            content: bytes = system.cat_file(inner)
            return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{text}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{text}: is not a text file in UTF-8") from error


def fetch(text: str, folder: Path) -> Path:
    """A local copy of a file or folder; a local path as it is.

    Args:
        text: Path or URL.
        folder: Gets the copy, under its own name.

    Raises:
        TransferError: It cannot be copied.
    """
    path = local_path(text)
    if path is not None:
        return path
    system, inner = filesystem(text)
    name = PurePosixPath(inner.rstrip("/").partition("?")[0]).name
    target = path_inside(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    with explained(text, "cannot be copied to this machine", TransferError):
        if system.isdir(inner):
            system.get(inner.rstrip("/") + "/", f"{target}/", recursive=True)
        else:
            system.get_file(inner, str(target))
    return target


class Place:
    """The folder OUT, here or behind a URL: small files in it by name.

    Args:
        root: Path or URL.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") if is_url(root) else root
        self.path = local_path(root)
        """OUT as a folder of this machine; None behind a URL."""

    def read(self, *names: str) -> bytes | None:
        """A file's content; None where there is no such file."""
        try:
            if self.path is not None:
                return path_inside(self.path, *names).read_bytes()
            system, inner = filesystem(self._url(*names))
            content: bytes = system.cat_file(inner)
            return content
        except (OSError, OutputError):
            return None

    def write(self, content: bytes, *names: str) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        if self.path is not None:
            write_bytes_whole(path_inside(self.path, *names), content, sync=True)
            return
        url = self._url(*names)
        with explained(url, "cannot be written", OutputError):
            system, inner = filesystem(url)
            system.makedirs(inner.rpartition("/")[0], exist_ok=True)
            system.pipe_file(inner, content)

    def remove(self, *names: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if self.path is not None:
            path_inside(self.path, *names).unlink(missing_ok=True)
            return
        system, inner = filesystem(self._url(*names))
        with explained(self._url(*names), "cannot be removed", OutputError):
            if system.exists(inner):
                system.rm_file(inner)

    def put_folder(self, folder: Path, name: str) -> None:
        """Upload the results of a run, ``run.json`` last, which makes them count; then remove ``folder``.

        Raises:
            TransferError: The storage refuses it; ``folder`` stays.
        """
        self._remove_old(name)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        paths = [path.relative_to(folder).parts for path in files]
        for parts in [*(parts for parts in paths if parts != (RECORD,)), (RECORD,)]:
            url = self._url(name, *parts)
            with explained(url, "cannot be written", TransferError):
                system, inner = filesystem(url)
                system.makedirs(inner.rpartition("/")[0], exist_ok=True)
                system.put_file(str(folder.joinpath(*parts)), inner)
        shutil.rmtree(folder, ignore_errors=True)

    def _remove_old(self, name: str) -> None:
        """Remove the files of an earlier run, the record first; only what its list names."""
        if self.read(name, RECORD) is None:
            return
        listed = (self.read(name, FILE_LIST) or b"").decode("utf-8", "replace")
        self.remove(name, RECORD)
        for line in listed.splitlines():
            self.remove(name, *line.partition("  ")[2].split("/"))

    def _url(self, *names: str) -> str:
        path_inside(Path(), *names)
        return "/".join([self.root, *names])


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
