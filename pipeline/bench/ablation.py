"""``bench ablation``: every row of the ablation tables of docs/davis.md, on features that are stored once.

The rows are in ``configs/ablation.yaml``: a preset of ``configs/davis.yaml`` and the values of ``propagate`` that
differ from it. All rows read the same features (float16 on disk): a row costs propagation and scoring only.
Clips and scores: ``ablation_clips.py``.
"""

from __future__ import annotations

import json
import time
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

from pipeline.assembly import FlowConfig, search_dtype
from pipeline.bench.ablation_clips import Clip, ObjectScorer, Score, open_composites
from pipeline.bench.leave_out import TOLERATED_LOSS, worst_third
from pipeline.core.config import load_config, load_yaml, merge
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.files import whole_file, write_json_whole
from pipeline.core.locations import CONFIGS
from pipeline.core.options import names_in
from pipeline.core.presets import load_preset
from pipeline.core.records import Features, Frame, Packet
from pipeline.core.state import grid_from_state, grid_state
from pipeline.flow import stream
from pipeline.formats.davis import open_davis
from pipeline.formats.image_folder import load_image
from stages.extract import Extractor
from stages.extract.backbone.device import pick_device, pick_precision
from stages.propagate import PropagateConfig, Propagator

ROWS = CONFIGS / "ablation.yaml"
PRESETS = CONFIGS / "davis.yaml"
Scores = dict[str, Score]
"""The scores of a row, by sequence or by object."""


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One row: its name, and the settings of propagation."""

    name: str
    config: PropagateConfig


def ablation(
    features: Annotated[Path, typer.Option(help="Folder for the stored features; read where they are there.")],
    root: Annotated[
        Path | None, typer.Option(help="DAVIS: folder with JPEGImages, Annotations and ImageSets.")
    ] = None,
    composites: Annotated[
        Path | None, typer.Option(help="Instead of DAVIS: MOTChallenge folders with index masks in masks/.")
    ] = None,
    split: Annotated[str, typer.Option(help="List under ImageSets/2016.")] = "val",
    sequences: Annotated[str | None, typer.Option(help="Names separated by commas, instead of a split.")] = None,
    rows: Annotated[Path, typer.Option(help="YAML file of rows.")] = ROWS,
    only: Annotated[str | None, typer.Option(help="Names of rows separated by commas.")] = None,
    score_every: Annotated[int, typer.Option(min=1, help="Score every n-th frame.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """J&F of variants of propagation on DAVIS 2016 or on composites, on features that are stored once.

    Per row: the mean over sequences (composites: over objects), the mean of the worst third, how many are worse
    than the first row, the baseline, by more than half a point, the mean rank correlation of confidence and J
    over the frames of a sequence, and the processor time of propagation per frame.
    """
    flow, chosen = read_rows(rows, names_in(only) if only else None)
    scores: dict[str, Scores] = {row.name: {} for row in chosen}
    extractor: Extractor | None = None
    for clip in _open(root, composites, split, names_in(sequences) if sequences else None):
        if not _stored(features, clip, flow):
            extractor = extractor or Extractor(flow.extract)
            store_features(clip, flow, features, extractor)
        for row in chosen:
            for name, score in score_row(row.config, clip, features, every=score_every).items():
                scores[row.name][name] = score
                rank = "none" if score.rank_correlation is None else f"{score.rank_correlation:.2f}"
                line = f"{name}: {row.name}: J {score.J:.1f}, F {score.F:.1f}, rank correlation {rank}"
                Console(soft_wrap=True).print(line, highlight=False)
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


def store_features(clip: Clip, flow: FlowConfig, folder: Path, extractor: Extractor) -> None:
    """Extract a clip and store its features, float16 ``(T, C, h, w)``, with their grid and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[npt.NDArray[np.float16]] = []
    grid = None
    for packet in stream(clip.frames_dir, flow.only("extract"), keep_features=True, extractor=extractor):
        assert packet.features is not None
        grid = packet.features.grid
        kept.append(packet.features.data.to("cpu", torch.float16).numpy())
    assert grid is not None
    with whole_file(folder / f"{clip.name}.npy") as path, path.open("wb") as file:
        np.save(file, np.stack(kept))
    write_json_whole(
        folder / f"{clip.name}.json",
        {"extract": flow.extract.model_dump(mode="json"), "grid": grid_state(grid)},
    )


def score_row(config: PropagateConfig, clip: Clip, folder: Path, *, every: int = 1) -> Scores:
    """The scores of propagating the given masks, by clip, or by clip and object where it has several.

    The first and the last frame do not count, nor does an object before it is given and in that frame.
    """
    propagator = Propagator(config, masks=clip.given, search_dtype=_search_dtype(folder, clip))
    scorers: dict[int, ObjectScorer] = {}
    seconds = 0.0
    for packet in _packets(clip, folder):
        before = time.process_time()
        labels = propagator.step(packet, clip.given.get(packet.index)).labels
        seconds += time.process_time() - before
        assert labels is not None
        if scorers and packet.index < len(clip.frames) - 1:
            truth = clip.annotation(packet.index)
            confidence = dict(zip(labels.object_ids, labels.confidence, strict=True))
            for number, scorer in scorers.items():
                scored = packet.index % every == 0
                scorer.add(labels.index_mask, truth, confidence[number], scored=scored)
        for number in labels.object_ids:
            scorers.setdefault(number, ObjectScorer(number))
    scores = {number: scorer.score(seconds / len(clip.frames)) for number, scorer in scorers.items()}
    return {
        clip.name if clip.single else f"{clip.name} {number}": score
        for number, score in scores.items()
        if score is not None
    }


def summarize(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Per row the J&F of every sequence, their mean, the mean of the worst third, and the comparison with row one.

    >>> table = {"dino": {"a": Score(50, 50), "b": Score(80, 80)}}
    >>> table["best"] = {"a": Score(60, 60), "b": Score(78, 78)}
    >>> [(row["mean"], row["worst_third"], row["num_worse"]) for row in summarize(table)]
    [(65.0, 50.0, 0), (69.0, 60.0, 1)]
    """
    both = {name: {s: score.mean for s, score in row.items()} for name, row in scores.items()}
    baseline = next(iter(both.values()))
    rows = []
    for name, values in both.items():
        gains = {s: values[s] - baseline[s] for s in values}
        worst = min(gains, key=lambda s: gains[s])
        every = list(scores[name].values())
        ranks = [score.rank_correlation for score in every if score.rank_correlation is not None]
        rows.append(
            {
                "name": name,
                "mean": float(np.mean(list(values.values()))),
                "worst_third": worst_third(values.values()),
                "num_worse": sum(gain < -TOLERATED_LOSS for gain in gains.values()),
                "worst_change": [worst, gains[worst]],
                "rank_correlation": float(np.mean(ranks)) if ranks else None,
                "seconds_per_frame": float(np.mean([score.seconds for score in every])),
                "gone": sum(score.gone for score in every),
                "gone_confident": sum(score.gone_confident for score in every),
                "swaps": sum(score.swaps for score in every),
                "sequences": {s: score.as_dict() for s, score in scores[name].items()},
            }
        )
    return rows


def _open(root: Path | None, composites: Path | None, split: str, names: Sequence[str] | None) -> list[Clip]:
    if (root is None) == (composites is None):
        raise MediaError("bench ablation: give either --root or --composites")
    if composites is not None:
        return open_composites(composites, names)
    assert root is not None
    return [Clip.of_davis(sequence) for sequence in open_davis(root, "2016", split=split, sequences=names)]


def _stored(folder: Path, clip: Clip, flow: FlowConfig) -> bool:
    record = folder / f"{clip.name}.json"
    if not record.exists() or not (folder / f"{clip.name}.npy").exists():
        return False
    return bool(json.loads(record.read_text(encoding="utf-8"))["extract"] == flow.extract.model_dump(mode="json"))


def _search_dtype(folder: Path, clip: Clip) -> torch.dtype:
    """That of a run with the config the features were extracted with."""
    record = json.loads((folder / f"{clip.name}.json").read_text(encoding="utf-8"))["extract"]
    device = pick_device(record["device"])
    return search_dtype(device, pick_precision(record["precision"], device))


def _packets(clip: Clip, folder: Path) -> Iterator[Packet]:
    grid = grid_from_state(json.loads((folder / f"{clip.name}.json").read_text(encoding="utf-8"))["grid"])
    maps = np.load(folder / f"{clip.name}.npy", mmap_mode="r")
    for index, (path, values) in enumerate(zip(clip.frames, maps, strict=True)):
        data = torch.from_numpy(values.astype(np.float32))
        yield Packet(Frame(load_image(path), index, index / 24), Features(data, grid))


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    several = any(row["gone"] or row["swaps"] for row in rows)
    table = Table(title="J&F in percent", title_justify="left")
    table.add_column("row")
    headers = ["mean", "worst third", "worse", "largest loss", "rank corr.", "CPU s/frame"]
    headers += ["gone and confident", "swaps"] * several
    for name in (*headers, *rows[0]["sequences"]):
        table.add_column(name, justify="right")
    for row in rows:
        rank = row["rank_correlation"]
        cells = [f"{row['mean']:.1f}", f"{row['worst_third']:.1f}", str(row["num_worse"])]
        cells += [f"{row['worst_change'][1]:+.1f} {row['worst_change'][0]}", "" if rank is None else f"{rank:.2f}"]
        cells += [f"{row['seconds_per_frame']:.2f}"]
        cells += [f"{row['gone_confident']} of {row['gone']}", str(row["swaps"])] * several
        each = [f"{(score['J'] + score['F']) / 2:.1f}" for score in row["sequences"].values()]
        table.add_row(row["name"], *cells, *each)
    console = Console()
    # rich assumes 80 columns for a file or a pipe and would cut the table off.
    (console if console.is_terminal else Console(width=260)).print(table)
