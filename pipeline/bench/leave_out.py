"""``bench leave-out``: what choosing between rows of ``bench ablation`` gives on sequences not used in the choice.

For each sequence the row is chosen by the scores of all the others, and scored on the one left out: the mean of
these scores estimates what this way of choosing gives on a new sequence. The best row's own mean does not: it was
chosen by the same scores. Objects of one composite are left out together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import InputError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in

TOLERATED_LOSS = 0.5
"""Points of J&F by which a sequence may fall below the baseline before it counts as worse."""

Criterion = Literal["mean", "worst-third"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The objects of one sequence, scored by the row that the other sequences chose.

    Attributes:
        sequence: The one left out.
        chosen: The row that is best on all others.
        scores: J&F of the chosen row in percent, by object (DAVIS: the sequence itself).
        baseline: The same of the baseline.
        best: The row that is best on this sequence, and its mean J&F: what no choice can exceed.
    """

    sequence: str
    chosen: str
    scores: dict[str, float]
    baseline: dict[str, float]
    best: tuple[str, float]


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """The summary over all sequences, each scored by the row that the others chose.

    Attributes:
        mean: Mean J&F of the chosen rows.
        worst_third: Mean of the worst third of the objects.
        num_worse: Objects that are more than half a point below the baseline.
        baseline_mean: Mean J&F of the baseline.
        choices: How often each row was chosen.
        sequences: One by one.
    """

    mean: float
    worst_third: float
    num_worse: int
    baseline_mean: float
    choices: dict[str, int]
    sequences: tuple[LeftOut, ...]


def leave_out(scores: Mapping[str, Mapping[str, float]], *, by: Criterion = "mean") -> LeaveOut:
    """Choose a row for each sequence by the others.

    Args:
        scores: J&F by row and by object; the first row is the baseline. "river 2" is object 2 of ``river``.
        by: What the row is best in: the mean over the objects, or the mean of their worst third. Of equal rows the
            first is taken.

    Raises:
        InputError: Fewer than two rows or sequences, or rows with different objects.

    >>> rows = {"dino": {"a": 50, "b": 60, "c": 70}, "x": {"a": 90, "b": 61, "c": 71}}
    >>> rows["y"] = {"a": 52, "b": 65, "c": 75}
    >>> result = leave_out(rows)
    >>> [(part.sequence, part.chosen) for part in result.sequences]
    [('a', 'y'), ('b', 'x'), ('c', 'x')]
    >>> round(result.mean, 2)
    61.33
    """
    baseline = next(iter(scores.values()), {})
    sequences = list(dict.fromkeys(_sequence_of(name) for name in baseline))
    if len(scores) < 2 or len(sequences) < 2:
        raise InputError(f"leaving out needs two rows and two sequences; got {len(scores)} and {len(sequences)}")
    for name, row in scores.items():
        if differing := sorted(set(row) ^ set(baseline)):
            raise InputError(f"row '{name}' has other sequences than the first row: {differing[0]}")
    parts = tuple(_leave_one_out(scores, sequence, by) for sequence in sequences)
    held_out = {name: value for part in parts for name, value in part.scores.items()}
    chosen = [part.chosen for part in parts]
    return LeaveOut(
        mean=float(np.mean(list(held_out.values()))),
        worst_third=worst_third(held_out.values()),
        num_worse=sum(value - baseline[name] < -TOLERATED_LOSS for name, value in held_out.items()),
        baseline_mean=float(np.mean(list(baseline.values()))),
        choices={name: chosen.count(name) for name in scores if name in chosen},
        sequences=parts,
    )


def worst_third(values: Iterable[float]) -> float:
    """The mean of the lowest third, of at least one.

    >>> worst_third([80, 50, 70, 60, 90, 100])
    55.0
    """
    ordered = sorted(values)
    return float(np.mean(ordered[: max(1, round(len(ordered) / 3))]))


def read_scores(paths: Sequence[Path], only: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """J&F by row and by object of the files of ``bench ablation --output``, the rows they have in common.

    Files may hold other sequences (the scores are put together), or other rows of the same sequences.

    Raises:
        InputError: A file that is not one of ``bench ablation``, or a row in ``only`` that is in none.
    """
    scores: dict[str, dict[str, float]] = {}
    for path in paths:
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            for row in rows:
                each = {name: (score["J"] + score["F"]) / 2 for name, score in row["sequences"].items()}
                scores.setdefault(str(row["name"]), {}).update(each)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a file of 'bench ablation --output' ({error})") from error
    if unknown := [name for name in only or () if name not in scores]:
        raise InputError(f"there is no row '{unknown[0]}'; rows: {', '.join(scores)}")
    return {name: scores[name] for name in only} if only else scores


def bench_leave_out(
    files: Annotated[list[Path], typer.Argument(help="JSON files of 'bench ablation --output'.")],
    only: Annotated[
        str | None, typer.Option(help="Names of rows separated by commas, the baseline first; instead of all.")
    ] = None,
    by: Annotated[Criterion, typer.Option(help="What a row is chosen by.")] = "mean",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """The scores of rows of 'bench ablation' that were chosen without the sequence they are scored on.

    Each sequence is left out in turn, the row that is best on all others is scored on it.
    """
    result = leave_out(read_scores(files, names_in(only) if only else None), by=by)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(output, {"by": by, **asdict(result)})
    _show(result)


def _leave_one_out(scores: Mapping[str, Mapping[str, float]], sequence: str, by: Criterion) -> LeftOut:
    def quality(row: Mapping[str, float]) -> float:
        others = [value for name, value in row.items() if _sequence_of(name) != sequence]
        return float(np.mean(others)) if by == "mean" else worst_third(others)

    def own(row: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in row.items() if _sequence_of(name) == sequence}

    means = {name: float(np.mean(list(own(row).values()))) for name, row in scores.items()}
    chosen = max(scores, key=lambda name: quality(scores[name]))
    best = max(means, key=lambda name: means[name])
    return LeftOut(
        sequence, chosen, own(scores[chosen]), own(next(iter(scores.values()))), best=(best, means[best])
    )


def _sequence_of(name: str) -> str:
    """The clip of an object: "river 2" is object 2 of ``river``."""
    stem, _, number = name.rpartition(" ")
    return stem if stem and number.isdigit() else name


def _show(result: LeaveOut) -> None:
    table = Table(title="J&F in percent, each sequence left out of the choice", title_justify="left")
    for name in ("sequence", "row chosen by the others", "J&F", "baseline", "difference", "best row here"):
        table.add_column(name, justify="left" if "row" in name or name == "sequence" else "right")
    for part in result.sequences:
        score, baseline = (float(np.mean(list(values.values()))) for values in (part.scores, part.baseline))
        best = f"{part.best[0]} {part.best[1]:.1f}"
        table.add_row(
            part.sequence, part.chosen, f"{score:.1f}", f"{baseline:.1f}", f"{score - baseline:+.1f}", best
        )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    choices = ", ".join(f"{name} {count}" for name, count in result.choices.items())
    Console(soft_wrap=True).print(
        f"mean {result.mean:.1f} (baseline {result.baseline_mean:.1f}), worst third {result.worst_third:.1f}, "
        f"worse than the baseline {result.num_worse}; chosen: {choices}",
        highlight=False,
    )
