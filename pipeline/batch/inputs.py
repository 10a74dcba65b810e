"""From what the command line names (videos, folders, patterns, lists, URLs) to the jobs of a batch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.assembly import FlowConfig
from pipeline.batch.jobs import VideoJob
from pipeline.batch.manifest import Entry, is_manifest, read_manifest
from pipeline.batch.names import unique_names
from pipeline.batch.storage import explained, filesystem, is_url, local_path
from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, InputError
from pipeline.core.files import IMAGE_SUFFIXES, natural_key
from stages.decode import DecodeConfig
from stages.write.folder import RECORD, is_ours

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .wmv .flv .3gp .ogv .mxf .vob .h264 .hevc".split()
)
_PATTERN = "*?["


def collect_jobs(inputs: Sequence[str], output: str, config: FlowConfig) -> list[VideoJob]:
    """The jobs of a batch, in the order of the inputs, each video once.

    Args:
        inputs: Videos, folders, patterns, lists and URLs.
        output: OUT, to refuse one that lies inside an input.
        config: Checked against the ranges in the lists.

    Raises:
        InputError: Nothing is found; an input, a mask or a line of a list is wrong; OUT lies in an input folder.
    """
    entries: dict[str, Entry] = {}
    for entry in _entries(inputs, output):
        _check(entry, config)
        entries.setdefault(_key(entry), entry)
    if not entries:
        raise InputError(f"no videos in {', '.join(inputs)}; suffixes: {' '.join(sorted(VIDEO_SUFFIXES))}")
    names = unique_names([entry.name or _own_name(entry.source) for entry in entries.values()], list(entries))
    return [
        VideoJob(name, e.source, e.masks, e.detections, e.start_seconds, e.end_seconds)
        for name, e in zip(names, entries.values(), strict=True)
    ]


def take_shard(jobs: Sequence[VideoJob], shard: str | None) -> list[VideoJob]:
    """Every N-th job from the I-th on, for ``I/N``; all of them for None.

    Raises:
        ConfigError: Not two whole numbers with 1 <= I <= N.
    """
    if shard is None:
        return list(jobs)
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {shard}: write it as I/N with 1 <= I <= N, for example 3/16")
    return list(jobs[int(index) - 1 :: int(count)])


def _entries(inputs: Sequence[str], output: str) -> Iterator[Entry]:
    for text in inputs:
        if is_url(text) and local_path(text) is None:
            yield from _remote(text)
            continue
        path = local_path(text)
        assert path is not None
        if path.is_dir():
            yield from (Entry(str(found)) for found in _in_folder(path, output))
        elif path.exists():
            yield from read_manifest(text) if is_manifest(text) else [Entry(str(path))]
        elif any(character in text for character in _PATTERN):
            yield from _matching(str(path), output)
        else:
            raise InputError(f"{text}: no such file or folder")


def _matching(pattern: str, output: str) -> Iterator[Entry]:
    found = sorted(glob.glob(pattern, recursive=True), key=natural_key)
    if not found:
        raise InputError(f"{pattern}: nothing matches")
    lists = is_manifest(pattern)
    for text in found:
        path = Path(text)
        if path.is_dir():
            if not path.resolve().is_relative_to(Path(output).resolve()):
                yield from (Entry(str(inner)) for inner in _in_folder(path, output))
        elif lists and is_manifest(text):
            yield from read_manifest(text)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield Entry(text)


def _in_folder(folder: Path, output: str) -> list[Path]:
    """Videos in a folder and below; where there are none, the folders that hold images."""
    target = local_path(output)
    if target is not None and target.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: lies inside the input folder {folder}; choose an --output outside of it")
    videos, image_folders = [], []
    for where, folders, files in os.walk(folder, followlinks=False):
        here = Path(where)
        if RECORD in files and is_ours(here):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".")]
        suffixes = {PurePosixPath(name).suffix.lower() for name in shown}
        videos += [here / name for name in shown if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
        if suffixes & IMAGE_SUFFIXES:
            image_folders.append(here)
    return _in_order(videos or image_folders)


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (natural_key(path.as_posix()), path.as_posix()))


def _remote(url: str) -> Iterator[Entry]:
    if is_manifest(url):
        yield from read_manifest(url)
        return
    is_pattern = any(character in url for character in _PATTERN) and not url.startswith(("http:", "https:"))
    if not (url.endswith("/") or is_pattern):
        yield Entry(url)
        return
    with explained(url, "cannot be listed", InputError):
        system, inner = filesystem(url)
        found = system.glob(inner) if is_pattern else system.find(inner)
        for path in sorted(found, key=natural_key):
            if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES:
                yield Entry(system.unstrip_protocol(path))


def _check(entry: Entry, config: FlowConfig) -> None:
    """Check what a list says beside the input itself: a missing input is put aside later, alone."""
    where = f"{entry.origin}: " if entry.origin else ""
    for kind, text in (("masks", entry.masks), ("detections", entry.detections)):
        path = None if text is None else local_path(text)
        if path is not None and not path.exists():
            raise InputError(f"{where}{kind} '{path}': no such file or folder")
    if entry.start_seconds is not None or entry.end_seconds is not None:
        try:
            decode_config(config, entry.start_seconds, entry.end_seconds)
        except ConfigError as error:
            raise InputError(f"{where}{error}") from error


def decode_config(config: FlowConfig, start_seconds: float | None, end_seconds: float | None) -> DecodeConfig:
    """The settings of decode with a video's own range.

    Raises:
        ConfigError: The end is not after the start.
    """
    given = {"start_seconds": start_seconds, "end_seconds": end_seconds}
    values = {key: value for key, value in given.items() if value is not None}
    return load_config(DecodeConfig, config.decode.model_dump(), values, origin="decode")


def job_config(config: FlowConfig, job: VideoJob) -> FlowConfig:
    """The config of a batch with a video's own range."""
    if job.start_seconds is None and job.end_seconds is None:
        return config
    return config.model_copy(update={"decode": decode_config(config, job.start_seconds, job.end_seconds)})


def _key(entry: Entry) -> str:
    """What makes a video itself: where it lies, and its range."""
    path = local_path(entry.source)
    where = entry.source if path is None else os.path.abspath(path)
    given = replace(entry, origin="", source=where)
    extra = (given.start_seconds, given.end_seconds, given.masks, given.detections, given.name)
    return where if extra == (None, None, None, None, "") else f"{where} {extra}"


def _own_name(source: str) -> str:
    """As ``run`` names it: a folder's name, a file's without its suffix."""
    path = local_path(source)
    if path is None:
        return PurePosixPath(source.rstrip("/").partition("?")[0]).stem
    return path.resolve().name if path.is_dir() else path.stem
