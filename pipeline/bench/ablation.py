"""``bench ablation``: every row of the ablation tables of docs/davis.md, on features that are stored once.

The rows are in ``configs/ablation.yaml``: a preset of ``configs/davis.yaml`` and the values of ``propagate`` that
differ from it. All rows read the same features (float16 on disk): a row costs propagation and scoring only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.assembly import FlowConfig
from pipeline.core.config import load_config, load_yaml, merge
from pipeline.core.errors import ConfigError
from pipeline.core.files import whole_file, write_json_whole
from pipeline.core.locations import CONFIGS
from pipeline.core.options import names_in
from pipeline.core.presets import load_preset
from pipeline.core.records import Features, Frame, Packet
from pipeline.core.state import grid_from_state, grid_state
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.flow import stream
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.image_folder import load_image
from stages.extract import Extractor
from stages.propagate import PropagateConfig, Propagator

ROWS = CONFIGS / "ablation.yaml"
PRESETS = CONFIGS / "davis.yaml"
TOLERATED_LOSS = 0.5
"""Points of J&F by which a sequence may fall below the baseline before it counts as worse."""

Scores = dict[str, tuple[float, float]]
"""J and F in percent by sequence."""


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One row: its name, and the settings of propagation."""

    name: str
    config: PropagateConfig


def ablation(
    root: Annotated[Path, typer.Option(help="DAVIS: folder with JPEGImages, Annotations and ImageSets.")],
    features: Annotated[Path, typer.Option(help="Folder for the stored features; read where they are there.")],
    split: Annotated[str, typer.Option(help="List under ImageSets/2016.")] = "val",
    sequences: Annotated[str | None, typer.Option(help="Names separated by commas, instead of a split.")] = None,
    rows: Annotated[Path, typer.Option(help="YAML file of rows.")] = ROWS,
    only: Annotated[str | None, typer.Option(help="Names of rows separated by commas.")] = None,
    score_every: Annotated[int, typer.Option(min=1, help="Score every n-th frame.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """J&F of variants of propagation on DAVIS 2016, on features that are stored once.

    Per row: the mean over sequences, the mean of the worst third, and how many sequences are worse than the first
    row, the baseline, by more than half a point.
    """
    flow, chosen = read_rows(rows, names_in(only) if only else None)
    opened = open_davis(root, "2016", split=split, sequences=names_in(sequences) if sequences else None)
    scores: dict[str, Scores] = {row.name: {} for row in chosen}
    extractor: Extractor | None = None
    for sequence in opened:
        if not _stored(features, sequence, flow):
            extractor = extractor or Extractor(flow.extract)
            store_features(sequence, flow, features, extractor)
        for row in chosen:
            scores[row.name][sequence.name] = score_row(row.config, sequence, features, every=score_every)
            j, f = scores[row.name][sequence.name]
            Console().print(f"{sequence.name}: {row.name}: J {j:.1f}, F {f:.1f}", highlight=False)
    summary = summarize(scores)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        extract = flow.extract.model_dump(mode="json")
        write_json_whole(output, {"rows": summary, "score_every": score_every, "extract": extract})
    _show(summary)


def read_rows(path: Path, only: Sequence[str] | None = None) -> tuple[FlowConfig, list[AblationRow]]:
    """The rows of a file, and the config that all of them extract with.

    Raises:
        ConfigError: A row without a preset or with another extraction than the first; an unknown row in ``only``.
    """
    entries = load_yaml(path)
    if unknown := [name for name in only or () if name not in entries]:
        raise ConfigError(f"{path}: there is no row '{unknown[0]}'; rows: {', '.join(entries)}")
    flows: dict[str, FlowConfig] = {}
    for name in only or entries:
        entry = entries[name]
        if not isinstance(entry, Mapping) or "preset" not in entry:
            raise ConfigError(f"{path}: row '{name}' needs a preset of {PRESETS.name}")
        values = merge(load_preset(PRESETS, str(entry["preset"])), {"propagate": entry.get("propagate") or {}})
        flows[name] = load_config(FlowConfig, values, origin=f"{path}: {name}")
    first = next(iter(flows.values()))
    for name, flow in flows.items():
        if flow.extract != first.extract:
            raise ConfigError(f"{path}: row '{name}' extracts other features than the first row")
    return first, [AblationRow(name, flow.propagate) for name, flow in flows.items()]


def store_features(sequence: DavisSequence, flow: FlowConfig, folder: Path, extractor: Extractor) -> None:
    """Extract a sequence and store its features, float16 ``(T, C, h, w)``, with their grid and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[npt.NDArray[np.float16]] = []
    grid = None
    for packet in stream(sequence.frames_dir, flow.only("extract"), keep_features=True, extractor=extractor):
        assert packet.features is not None
        grid = packet.features.grid
        kept.append(packet.features.data.to("cpu", torch.float16).numpy())
    assert grid is not None
    with whole_file(folder / f"{sequence.name}.npy") as path, path.open("wb") as file:
        np.save(file, np.stack(kept))
    write_json_whole(
        folder / f"{sequence.name}.json",
        {"extract": flow.extract.model_dump(mode="json"), "grid": grid_state(grid)},
    )


def score_row(
    config: PropagateConfig, sequence: DavisSequence, folder: Path, *, every: int = 1
) -> tuple[float, float]:
    """J and F in percent of propagating the first mask; the first and the last frame do not count."""
    propagator = Propagator(config, masks={0: sequence.first_mask()})
    last = len(sequence.frame_names) - 1
    scores = []
    for packet in propagator(_packets(sequence, folder)):
        if packet.index % every or not 0 < packet.index < last:
            continue
        assert packet.labels is not None
        ours = packet.labels.index_mask > 0
        truth = sequence.annotation(sequence.frame_names[packet.index]) == 1
        scores.append((region_similarity(ours, truth), boundary_measure(ours, truth)))
    j, f = 100 * np.mean(scores, axis=0)
    return float(j), float(f)


def summarize(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Per row the J&F of every sequence, their mean, the mean of the worst third, and the comparison with row one.

    >>> table = {"dino": {"a": (50.0, 50.0), "b": (80.0, 80.0)}, "best": {"a": (60.0, 60.0), "b": (78.0, 78.0)}}
    >>> [(row["mean"], row["worst_third"], row["num_worse"]) for row in summarize(table)]
    [(65.0, 50.0, 0), (69.0, 60.0, 1)]
    """
    both = {name: {s: (j + f) / 2 for s, (j, f) in row.items()} for name, row in scores.items()}
    baseline = next(iter(both.values()))
    rows = []
    for name, values in both.items():
        ordered = sorted(values.values())
        gains = {s: values[s] - baseline[s] for s in values}
        worst = min(gains, key=lambda s: gains[s])
        rows.append(
            {
                "name": name,
                "mean": float(np.mean(ordered)),
                "worst_third": float(np.mean(ordered[: max(1, round(len(ordered) / 3))])),
                "num_worse": sum(gain < -TOLERATED_LOSS for gain in gains.values()),
                "worst_change": [worst, gains[worst]],
                "sequences": {s: {"J": scores[name][s][0], "F": scores[name][s][1]} for s in values},
            }
        )
    return rows


def _stored(folder: Path, sequence: DavisSequence, flow: FlowConfig) -> bool:
    record = folder / f"{sequence.name}.json"
    if not record.exists() or not (folder / f"{sequence.name}.npy").exists():
        return False
    return bool(json.loads(record.read_text(encoding="utf-8"))["extract"] == flow.extract.model_dump(mode="json"))


def _packets(sequence: DavisSequence, folder: Path) -> Iterator[Packet]:
    grid = grid_from_state(json.loads((folder / f"{sequence.name}.json").read_text(encoding="utf-8"))["grid"])
    maps = np.load(folder / f"{sequence.name}.npy", mmap_mode="r")
    for index, (name, values) in enumerate(zip(sequence.frame_names, maps, strict=False)):
        image = load_image(sequence.frames_dir / f"{name}.jpg")
        data = torch.from_numpy(values.astype(np.float32))
        yield Packet(Frame(image, index, index / 24), Features(data, grid))


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="J&F in percent", title_justify="left")
    table.add_column("row")
    for name in ("mean", "worst third", "worse", "largest loss", *rows[0]["sequences"]):
        table.add_column(name, justify="right")
    for row in rows:
        each = [f"{(score['J'] + score['F']) / 2:.1f}" for score in row["sequences"].values()]
        loss = f"{row['worst_change'][1]:+.1f} {row['worst_change'][0]}"
        table.add_row(
            row["name"], f"{row['mean']:.1f}", f"{row['worst_third']:.1f}", str(row["num_worse"]), loss, *each
        )
    console = Console()
    # rich assumes 80 columns for a file or a pipe and would cut the table off.
    (console if console.is_terminal else Console(width=220)).print(table)
