"""``davis``: the flow over DAVIS sequences, then their scores. ``davis-score``: only the scores."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.commands.davis_sequences import davis_config, run_sequences, summarize_timing
from pipeline.core.config import load_config, parse_overrides
from pipeline.core.files import write_json_whole
from pipeline.core.locations import CONFIGS
from pipeline.core.options import names_in
from pipeline.core.presets import load_preset
from pipeline.evaluation.davis import score_results
from pipeline.flow import FlowConfig
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.report import write_index
from pipeline.run_record import versions

PRESETS = CONFIGS / "davis.yaml"


class DavisYear(StrEnum):
    """Which year's task: 2016 has one object per sequence, 2017 several."""

    single = "2016"
    multiple = "2017"


Root = Annotated[Path, typer.Option(help="Folder with JPEGImages, Annotations and ImageSets.")]
YearOption = Annotated[DavisYear, typer.Option(help="2016: one object per sequence; 2017: several.")]
Split = Annotated[str, typer.Option(help="List under ImageSets/YEAR.")]
Sequences = Annotated[str | None, typer.Option(help="Names separated by commas, instead of a split.")]


def davis(
    root: Root,
    year: YearOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Gets <sequence>/00000.png and davis.json.")],
    split: Split = "val",
    sequences: Sequences = None,
    config: Annotated[Path, typer.Option(help="YAML file, with or without presets.")] = PRESETS,
    preset: Annotated[str | None, typer.Option(help="A preset of the config file, e.g. dino or best.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value, e.g. propagate.top_k=10.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished sequences again.")] = False,
) -> None:
    """Carry DAVIS first masks through their sequences, write the masks and score them.

    A run that was interrupted goes on after the last finished sequence.
    """
    flow = load_config(
        FlowConfig, load_preset(config, preset), parse_overrides(overrides or []), origin=str(config)
    )
    flow = davis_config(flow)
    opened = _open(root, year, split, sequences)
    output.mkdir(parents=True, exist_ok=True)
    with _Progress(sum(len(sequence.frame_names) for sequence in opened)) as progress:
        records = run_sequences(opened, flow, output, overwrite=overwrite, progress=progress)
    report = score_results(opened, output)
    report |= {
        "year": year.value,
        "preset": preset,
        "timing": summarize_timing(records),
        "runs": records,
        "config": flow.model_dump(mode="json"),
        "versions": versions(),
    }
    write_json_whole(output / "davis.json", report)
    write_index(output)
    _show(report, f"DAVIS {year.value}, {preset or config.name}")
    _show_timing(report["timing"], records, output / "davis.json")


def davis_score(
    root: Root,
    year: YearOption,
    results: Annotated[Path, typer.Option(help="Folder with <sequence>/00000.png.")],
    split: Split = "val",
    sequences: Sequences = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the scores.")] = None,
) -> None:
    """Score a folder of index masks by the official rules: J and F, mean, recall and decay."""
    report = score_results(_open(root, year, split, sequences), results)
    report["year"] = year.value
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(output, report)
    _show(report, f"DAVIS {year.value}, {results}")
    if output is not None:
        _say(f"wrote {output}")


def _open(root: Path, year: DavisYear, split: str, sequences: str | None) -> list[DavisSequence]:
    names = names_in(sequences) if sequences else None
    return open_davis(root, year.value, split=split, sequences=names)


class _Progress:
    """A progress bar over the frames of all sequences, named after the current one."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="frame", file=sys.stderr, mininterval=0.5)

    def __call__(self, name: str, frames: int) -> None:
        self._bar.set_description(name, refresh=False)
        self._bar.update(frames)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *unused: object) -> None:
        self._bar.close()


def _show(report: dict[str, Any], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("sequence")
    columns = [f"{measure} {name}" for measure in "JF" for name in ("mean", "recall", "decay")]
    for name in ("frames", "objects", *columns, "J&F"):
        table.add_column(name, justify="right")
    for name, scores in report["sequences"].items():
        table.add_row(name, str(scores["frames"]), str(scores["objects"]), *_numbers(scores))
    table.add_section()
    total = report["sequences"].values()
    frames, objects = (str(sum(scores[key] for scores in total)) for key in ("frames", "objects"))
    table.add_row("all", frames, objects, *_numbers(report["global"]))
    console = Console()
    # rich assumes 80 columns for a file or a pipe and would cut the table off.
    (console if console.is_terminal else Console(width=120)).print(table)


def _numbers(scores: dict[str, Any]) -> list[str]:
    cells = [f"{scores[measure][name]:.3f}" for measure in "JF" for name in ("mean", "recall", "decay")]
    return [*cells, f"{scores['J&F']:.3f}"]


def _show_timing(timing: dict[str, Any], records: dict[str, dict[str, Any]], path: Path) -> None:
    _say(
        f"{timing['frames']} frames in {timing['seconds']:.1f} s: {timing['fps']:.2f} fps "
        f"({timing['fps_scope']}); peak memory {timing['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    if timing["resumed"]:
        _say(f"taken from an earlier run: {', '.join(timing['resumed'])}")
    for name, record in records.items():
        for line in record["warnings"]:
            _say(f"warning: {name}: {line}")
    _say(f"wrote {path}")


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
