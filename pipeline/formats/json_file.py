"""JSON files that come from users: read whole, with an error that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import LabelFileError

LARGEST_INTEGER = 2**53
"""Identities beyond this are refused; every float holds the others exactly."""
LARGEST_FRAME = 10_000_000
"""Frame numbers beyond this, four days of video, are refused before memory is taken for them."""


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LabelFileError: The file is missing, is not JSON (the message has the line), is nested too deeply, or has a
            number with too many digits.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: is not a text file; expected JSON") from error
    except json.JSONDecodeError as error:
        raise LabelFileError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise LabelFileError(f"{path}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # more digits than Python converts
        raise LabelFileError(f"{path}: not valid JSON: a number has too many digits") from error


def is_index(value: object) -> bool:
    """Whether a JSON value can be the number of a frame.

    >>> [is_index(value) for value in (0, 7, -1, True, 1.0, 10**30)]
    [True, True, False, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_FRAME


def shorten(value: object, length: int = 60) -> str:
    """A value for an error message.

    >>> shorten("a" * 100, 8)
    "'aaaaaaa..."
    """
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
