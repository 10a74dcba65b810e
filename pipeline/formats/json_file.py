"""JSON files that come from users: read whole, with an error that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import LabelFileError


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LabelFileError: The file is missing or is not JSON (the message has the line).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: is not a text file; expected JSON") from error
    except json.JSONDecodeError as error:
        raise LabelFileError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
