"""``names.json``: the names of objects beside their masks, as ``{"1": "bear"}``; and ``ID=NAME`` options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.core.errors import ConfigError, InputError, LabelFileError
from pipeline.core.files import write_json_whole
from pipeline.formats.json_file import load_json

NAMES_FILE: Final = "names.json"
_LARGEST_OBJECT = 254
_LONGEST_NAME = 100


def check_names(values: object) -> dict[int, str]:
    """Names by object id from JSON values; empty names are left out.

    Raises:
        InputError: Not an object with ids (1 to 254) as keys and printable text of up to 100 characters as values.
    """
    if not isinstance(values, Mapping):
        raise InputError('names must be an object such as {"1": "bear"}')
    names: dict[int, str] = {}
    for key, name in values.items():
        text = str(key)
        if not (text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= _LARGEST_OBJECT):
            raise InputError(f"names: {text[:20]!r} is not the number of an object (1 to {_LARGEST_OBJECT})")
        if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise InputError(f"names: object {text} needs printable text of up to {_LONGEST_NAME} characters")
        if name.strip():
            names[int(text)] = name.strip()
    return names


def read_names(path: Path) -> dict[int, str]:
    """The names in a file, or in ``names.json`` of a folder.

    Raises:
        LabelFileError: It cannot be read or holds something else; the message names the file.
    """
    file = path / NAMES_FILE if path.is_dir() else path
    try:
        return check_names(load_json(file))
    except LabelFileError:
        raise
    except InputError as error:
        raise LabelFileError(f"{file}: {error}") from error


def write_names(folder: Path, names: Mapping[int, str]) -> Path:
    """Write ``names.json`` into a folder."""
    path = folder / NAMES_FILE
    write_json_whole(path, {str(number): name for number, name in sorted(names.items())})
    return path


def names_beside(masks: object) -> dict[int, str]:
    """The names in ``names.json`` of a folder of masks; none where ``masks`` is not a folder that has one.

    Raises:
        LabelFileError: The file cannot be read or holds something else.
    """
    return read_names(masks) if isinstance(masks, Path) and (masks / NAMES_FILE).is_file() else {}


def parse_names(texts: Sequence[str]) -> dict[int, str]:
    """Categories from ``ID=NAME`` options.

    Raises:
        ConfigError: An option of another form.

    >>> parse_names(["1=bear", "2=cub"])
    {1: 'bear', 2: 'cub'}
    """
    names: dict[int, str] = {}
    for text in texts:
        number, equals, name = text.partition("=")
        if not equals or not number.strip().isdecimal():
            raise ConfigError(f"--name {text}: write it as ID=NAME, for example 1=bear")
        names[int(number)] = name.strip()
    return names
