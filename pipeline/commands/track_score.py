"""``track-score``: CLEAR, IDF1 and HOTA of results on disk against ground truth on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipeline.core.options import names_in
from pipeline.evaluation.score_tables import COLUMNS, OFFICIAL_COLUMNS, score_table, write_scores
from pipeline.evaluation.track_scoring import score_bdd, score_mot


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
    console = Console()
    names = names_in(classes)
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
