"""Resident memory of a process, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is in RAM now; this process by default.

    Raises:
        OSError: There is no such process.
    """
    fields = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
