"""Finding ground truth and results on disk, pairing them by name and scoring them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.core.errors import LabelFileError
from pipeline.evaluation.tracking_counts import TrackingScores, total
from pipeline.evaluation.tracking_metrics import score
from pipeline.evaluation.tracking_metrics_bdd import OfficialScores, official_scores
from pipeline.evaluation.tracking_preprocess import (
    BDD_CLASSES,
    Benchmark,
    bdd_categories,
    bdd_targets,
    mot_targets,
)
from pipeline.formats.bdd import BddVideo, read_videos
from pipeline.formats.boxes import BoxTable
from pipeline.formats.mot import read_table
from pipeline.formats.mot_folders import MotSequence, SequenceInfo, find_sequences, is_sequence, load_sequence

BenchmarkChoice = Literal["auto", "plain", "MOT15", "MOT16", "MOT17", "MOT20"]
COMBINED = "COMBINED"


@dataclass(frozen=True, slots=True)
class MotScores:
    """Scores of MOTChallenge results.

    Attributes:
        sequences: Scores by sequence.
        benchmarks: Whose rules each sequence was scored by.
    """

    sequences: dict[str, TrackingScores]
    benchmarks: dict[str, Benchmark]

    @property
    def combined(self) -> TrackingScores:
        """All sequences together."""
        return total(self.sequences.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = {name: found.as_dict() for name, found in self.sequences.items()}
        return {"benchmarks": self.benchmarks, "sequences": rows, COMBINED: self.combined.as_dict()}


@dataclass(frozen=True, slots=True)
class BddScores:
    """Scores of BDD100K results, the official ones and, for HOTA, TrackEval's.

    Attributes:
        official: By py-motmetrics' rules with widths and heights one pixel larger.
        classes: By TrackEval's rules, every class on its own.
        sequences: By TrackEval's rules, every video on its own with its classes added up.
        warnings: What the user should know, one line each.
    """

    official: OfficialScores
    classes: dict[str, TrackingScores]
    sequences: dict[str, TrackingScores]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = {name: found.as_dict() for name, found in self.classes.items()}
        rows[COMBINED] = total(self.classes.values()).as_dict()
        videos = {name: found.as_dict() for name, found in self.sequences.items()}
        return {"official": self.official.as_dict(), "trackeval": rows, "sequences": videos}


def score_mot(
    gt: Path, results: Path, *, benchmark: BenchmarkChoice = "auto", classes: Sequence[str] = ()
) -> MotScores:
    """Score MOTChallenge results.

    Args:
        gt: A ``gt.txt``, a sequence folder, a folder of sequences, or a folder of ``NAME.txt``.
        results: A results file, or a folder that holds one for every sequence: ``NAME.txt``, ``data/NAME.txt`` or
            ``NAME/tracks.txt`` (MOT17's detector suffix may be left out).
        benchmark: Whose rules; ``auto`` detects MOT16, MOT17 and MOT20 from the name, all others are plain.
        classes: Only these classes, with plain rules.

    Raises:
        LabelFileError: Nothing to score, a sequence without results, or a bad line.
    """
    sequences: dict[str, TrackingScores] = {}
    rules: dict[str, Benchmark] = {}
    found = _ground_truth(gt)
    if results.is_file() and len(found) > 1:
        raise LabelFileError(
            f"{results}: is one file for {len(found)} sequences; give a folder with a file for each"
        )
    for sequence, gt_path in found:
        rules[sequence.name] = rules_for(sequence.name, benchmark, classes)
        length = sequence.info.num_frames
        truth = read_table(gt_path, kind="gt", num_frames=length)
        tracks = read_table(_result_file(results, sequence), kind="results", num_frames=length or truth.num_frames)
        targets, kept = mot_targets(truth, tracks, benchmark=rules[sequence.name], classes=classes)
        sequences[sequence.name] = score(targets, kept, length)
    return MotScores(sequences, rules)


def _ground_truth(path: Path) -> list[tuple[MotSequence, Path]]:
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "gt" else path.with_suffix("")
        return [(_sequence_of(folder), path)]
    if path.is_dir() and not is_sequence(path):
        flat = sorted(path.glob("*.txt"))
        if flat:
            return [(_sequence_of(file.with_suffix("")), file) for file in flat]
    found = [(s, s.gt_path) for s in find_sequences(path)]
    missing = [str(p) for _, p in found if not p.is_file()]
    if missing:
        raise LabelFileError(f"{missing[0]}: is missing; only sequences with ground truth can be scored")
    return found


def _sequence_of(folder: Path) -> MotSequence:
    """The sequence a lone ground-truth file belongs to, if its folder is one; else only a name."""
    if folder.is_dir() and is_sequence(folder):
        return load_sequence(folder)
    return MotSequence(folder, SequenceInfo(folder.name), has_ini=False)


def _result_file(results: Path, sequence: MotSequence) -> Path:
    if results.is_file():
        return results
    names = dict.fromkeys((sequence.name, sequence.base_name))
    tried = [results / p for n in names for p in (f"{n}.txt", f"data/{n}.txt", f"{n}/tracks.txt")]
    for path in tried:
        if path.is_file():
            return path
    raise LabelFileError(
        f"{results}: no results for '{sequence.name}' (looked for {tried[0].name} and tracks.txt)"
    )


def rules_for(name: str, benchmark: BenchmarkChoice, classes: Sequence[str]) -> Benchmark:
    """Whose rules a sequence is scored by, from the choice and its name."""
    rules: Benchmark = cast(Benchmark, benchmark)
    if benchmark == "auto":
        prefix = name[:5].upper()
        rules = cast(Benchmark, prefix) if prefix in ("MOT16", "MOT17", "MOT20") and not classes else "plain"
    if classes and rules != "plain":
        raise LabelFileError(f"--classes is for plain rules; {rules} scores what its own rules say")
    return rules


def score_bdd(gt: Path, results: Path, *, classes: Sequence[str] = ()) -> BddScores:
    """Score BDD100K box tracks.

    Args:
        gt: A JSON file, or a folder of them.
        results: The same, with the same videos.
        classes: Other classes than BDD100K's eight.

    Raises:
        LabelFileError: Bad JSON, an unknown category, a video without results, or a frame the video does not have.
    """
    wanted = tuple(classes) or BDD_CLASSES
    truth, tracked = read_videos(gt), read_videos(results)
    if len(truth) == len(tracked) == 1:
        tracked = dict(zip(truth, tracked.values(), strict=True))
    missing = sorted(set(truth) - set(tracked))
    if missing:
        raise LabelFileError(f"{results}: no results for video '{missing[0]}' ({len(missing)} missing in all)")
    extra = sorted(set(tracked) - set(truth))
    warnings = [f"{results}: {len(extra)} videos without ground truth are left out: {extra[0]}"] if extra else []
    tables = {
        name: (
            bdd_categories(video.table, wanted, source=str(gt)),
            _results_table(tracked[name], video, wanted, str(results)),
        )
        for name, video in truth.items()
    }
    return score_bdd_tables(tables, wanted, warnings)


def score_bdd_tables(
    tables: Mapping[str, tuple[BoxTable, BoxTable]], classes: Sequence[str], warnings: Sequence[str] = ()
) -> BddScores:
    """Score ``{video: (ground truth, results)}``, with categories from ``bdd_categories``.

    Args:
        tables: At least one video.
        classes: The classes to score, at least one.
        warnings: For the result.
    """
    counts = {
        name: {category: score(*bdd_targets(*pair_of_tables, category)) for category in classes}
        for name, pair_of_tables in tables.items()
    }
    by_class = {category: total(found[category] for found in counts.values()) for category in classes}
    by_video = {name: total(found.values()) for name, found in counts.items()}
    return BddScores(official_scores(tables, tuple(classes)), by_class, by_video, list(warnings))


def _results_table(found: BddVideo, truth: BddVideo, classes: Sequence[str], source: str) -> BoxTable:
    if found.num_frames > truth.num_frames:
        raise LabelFileError(
            f"{source}: video '{truth.name}' has {found.num_frames} frames in the results, "
            f"but {truth.num_frames} in the ground truth"
        )
    if (found.table.ids < 0).any():
        raise LabelFileError(
            f"{source}: video '{truth.name}' has boxes without an id; results need one for every box"
        )
    return bdd_categories(found.table, classes, source=source)
