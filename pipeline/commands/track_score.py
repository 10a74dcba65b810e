"""``track-score``: CLEAR, IDF1 and HOTA of results on disk against ground truth on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "FP", "FN", "IDSW", "MT", "ML", "Frag")
OFFICIAL_COLUMNS = ("MOTA", "IDF1", "MOTP", "FP", "FN", "IDSw", "MT", "PT", "ML", "FM")


def track_score(
    gt: Annotated[Path, typer.Option(help="Ground truth: a file, a sequence, or a folder of them.")],
    results: Annotated[Path, typer.Option(help="Results: a file, or a folder with one for each sequence.")],
    data_format: Annotated[Literal["mot", "bdd"], typer.Option("--format", help="Format of both.")] = "mot",
    classes: Annotated[str, typer.Option(help="Only these classes, comma separated.")] = "",
    benchmark: Annotated[
        Literal["auto", "plain", "MOT15", "MOT16", "MOT17", "MOT20"],
        typer.Option(help="Whose rules for classes and distractors; auto goes by the sequences' names."),
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file (or folder) for the scores.")
    ] = None,
) -> None:
    """Score tracking results: HOTA, CLEAR and IDF1, with the rules of MOTChallenge or BDD100K."""
    from pipeline.evaluation.track_scoring import score_bdd, score_mot

    console = Console()
    names = [name.strip() for name in classes.split(",") if name.strip()]
    if data_format == "bdd":
        bdd = score_bdd(gt, results, classes=names)
        content = bdd.as_dict()
        for warning in bdd.warnings:
            typer.echo(f"warning: {warning}", err=True)
        console.print(score_table("BDD100K, official", content["official"], OFFICIAL_COLUMNS))
        console.print(score_table("BDD100K, as TrackEval scores it", content["trackeval"], COLUMNS))
    else:
        content = score_mot(gt, results, benchmark=benchmark, classes=names).as_dict()
        rows = content["sequences"] | {"COMBINED": content["COMBINED"]}
        console.print(score_table("MOTChallenge", rows, COLUMNS))
    if output is not None:
        console.print(f"scores: {write_scores(output, content)}")


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
    import json

    from pipeline.core.files import write_text_whole

    path = output if output.suffix.lower() == ".json" else output / "scores.json"
    write_text_whole(path, json.dumps(content, indent=2) + "\n")
    return path
