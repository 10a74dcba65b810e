"""Tables and files of tracking scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.core.files import write_text_whole

COLUMNS = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "FP", "FN", "IDSW", "MT", "ML", "Frag")
OFFICIAL_COLUMNS = ("MOTA", "IDF1", "MOTP", "FP", "FN", "IDSw", "MT", "PT", "ML", "FM")


def score_table(title: str, rows: Mapping[str, Mapping[str, float]], columns: tuple[str, ...]) -> Table:
    """Scores as a table: ratios in percent with one decimal, counts whole."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        values = (row[column] for column in columns)
        style = "bold" if name in ("COMBINED", "OVERALL") else None
        table.add_row(name, *(f"{v:.1f}" if isinstance(v, float) else str(v) for v in values), style=style)
    return table


def write_scores(output: Path, content: Mapping[str, Any]) -> Path:
    """Write scores as JSON to a file, or to ``scores.json`` in a folder; returns where."""
    path = output if output.suffix.lower() == ".json" else output / "scores.json"
    write_text_whole(path, json.dumps(content, indent=2) + "\n")
    return path
