"""``run``: inputs through the flow into output folders. ``demo``: the same on the bundled clip."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.commands.live import Outputs, first_signal_ends_the_stream, live_settings, notice
from pipeline.core.errors import InputError, LiftstreamError, RunInterrupted
from pipeline.core.files import path_inside
from pipeline.core.locations import DEMO_CLIP
from pipeline.core.records import Packet
from pipeline.flow import FlowConfig, RunResult, load_flow_config
from pipeline.flow import run as run_flow
from pipeline.formats.object_names import parse_names
from pipeline.formats.track_lines import STANDARD_OUTPUT
from pipeline.image_detector import ImageDetector, load_image_detector
from pipeline.prompts.prompt import Prompt, parse_prompts
from pipeline.report import write_index
from pipeline.run_record import stream_line, summary_table
from stages.decode import Decoder, probe, stream_address
from stages.extract import Extractor

EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Video files, folders of images, or one stream: an address, - or a camera."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; gets one folder per input.")],
    config: Annotated[Path | None, typer.Option(help="YAML file, see configs/default.yaml.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A config value, e.g. extract.short_side=476."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Indexed PNG of the first frame, or a folder of them named by frame.")
    ] = None,
    detections: Annotated[
        Path | None, typer.Option(help="Boxes to track: MOTChallenge text, BDD100K or COCO JSON.")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION[:ARGUMENT]", help="Boxes to track from a detector; see docs/detectors.md."
        ),
    ] = None,
    points: Annotated[
        list[str] | None, typer.Option("--point", metavar="X,Y[:OBJECT]", help="A click on an object.")
    ] = None,
    nots: Annotated[
        list[str] | None, typer.Option("--not", metavar="X,Y[:OBJECT]", help="A click on what it is not.")
    ] = None,
    boxes: Annotated[
        list[str] | None, typer.Option("--box", metavar="X0,Y0,X1,Y1[:OBJECT]", help="A box around an object.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", metavar="ID=NAME", help="What an object is called, e.g. 1=bear.")
    ] = None,
    at: Annotated[
        float | None, typer.Option("--at", help="Seconds; the frame of --point, --not and --box.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds; where to begin.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds; where to stop.")] = None,
    every: Annotated[int | None, typer.Option(help="Take every N-th frame.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Process the newest frame; drop what comes meanwhile.")
    ] = False,
    max_latency: Annotated[
        float | None, typer.Option(help="Seconds; with --live, how old a frame may become.")
    ] = None,
    reconnect: Annotated[
        int | None, typer.Option(help="How often in a row a stream that broke is opened again.")
    ] = None,
    segment_seconds: Annotated[
        float | None, typer.Option(help="Of a stream: results appear in segments of this length.")
    ] = None,
    keep_last: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Of a stream: remove older segments; 90s, 10m, 2h.")
    ] = None,
    preview: Annotated[
        str | None, typer.Option(metavar="[ADDRESS]:PORT", help="Show the annotated video in a browser meanwhile.")
    ] = None,
    tracks_to: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Tracks as JSON lines, one per frame, as they come.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's files.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last checkpoint; skip what is finished.")
    ] = False,
) -> None:
    """Masks, parts and tracks of videos: an annotated video, and files that other tools read."""
    decode = {"start_seconds": start, "end_seconds": end, "every": every}
    given = [f"decode.{key}={value}" for key, value in decode.items() if value is not None]
    given += live_settings(max_latency, reconnect, segment_seconds, keep_last)
    flow_config = load_flow_config(config, [*(overrides or []), *given], live=live)
    prompts = tuple(parse_prompts(points or (), nots or (), boxes or (), at))
    if prompts and len(inputs) > 1:
        raise InputError("--point, --not and --box belong to one input; run the others without them")
    found = _load_detector(detector, detections, flow_config)
    requests = plan(inputs, output, masks, detections)
    object_names = parse_names(names or [])
    requests = [replace(r, prompts=prompts, detector=found, names=object_names) for r in requests]
    outputs = Outputs(preview, tracks_to)
    if (preview or tracks_to) and len(inputs) > 1:
        raise InputError("--preview and --tracks-to belong to one input; run the others without them")
    raise typer.Exit(run_all(requests, flow_config, outputs, overwrite=overwrite, resume=resume))


def _load_detector(text: str | None, detections: Path | None, config: FlowConfig) -> ImageDetector | None:
    if text is None:
        return None
    if detections is not None:
        raise InputError("--detections and --detector both say where boxes come from; give one of them")
    check_detector(config)
    return load_image_detector(text)


def check_detector(config: FlowConfig) -> None:
    """Refuse a detector whose boxes nothing would read.

    Raises:
        InputError: Tracking is off.
    """
    if not config.track.enabled:
        raise InputError("--detector finds boxes to track, but track.enabled is false")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("outputs/demo"),
) -> None:
    """The whole flow on the bundled clip; replaces the files of an earlier demo."""
    raise typer.Exit(run_all([Request(DEMO_CLIP, output / DEMO_CLIP.stem)], FlowConfig(), overwrite=True))


@dataclass(frozen=True, slots=True)
class Request:
    """One input, where its results go, and the files that belong to it."""

    source: str | Path
    folder: Path
    masks: Path | None = None
    detections: Path | None = None
    prompts: tuple[Prompt, ...] = ()
    detector: ImageDetector | None = None
    names: Mapping[int, str] = field(default_factory=dict)


def plan(inputs: list[str], output: Path, masks: Path | None, detections: Path | None) -> list[Request]:
    """One request per input; several inputs take theirs from folders with an entry named after each.

    Raises:
        InputError: Two inputs of one name, several inputs with a stream among them, or an entry that is missing.
    """
    if len(inputs) > 1 and (streams := [address for text in inputs if (address := stream_address(text))]):
        raise InputError(f"{streams[0].shown}: a stream is run on its own")
    names = [_name_of(text) for text in inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two inputs are named '{twice[0]}' and would share a folder; run them one at a time")
    if len(inputs) == 1:
        return [Request(inputs[0], path_inside(output, names[0]), masks, detections)]
    return [
        Request(text, path_inside(output, name), _entry(masks, name, ".png"), _entry(detections, name, ".txt"))
        for text, name in zip(inputs, names, strict=True)
    ]


def _name_of(text: str) -> str:
    """The name of an input's folder of results."""
    if (address := stream_address(text)) is not None:
        return address.name
    path = Path(text)
    return path.resolve().name if path.is_dir() else path.stem


def _entry(folder: Path | None, name: str, suffix: str) -> Path | None:
    if folder is None:
        return None
    for candidate in (folder / name, folder / f"{name}{suffix}"):
        if candidate.exists():
            return candidate
    raise InputError(f"{folder}: with several inputs it needs an entry '{name}' or '{name}{suffix}'")


def run_all(
    requests: list[Request],
    config: FlowConfig,
    outputs: Outputs | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> int:
    """Run every request; a failure does not stop the next ones.

    Args:
        requests: The inputs.
        config: The config of all of them.
        outputs: Where else results go; nowhere if None.
        overwrite: Replace earlier runs of ours.
        resume: Go on after the last checkpoints.

    Returns:
        The exit code: the first that is not 0, failures during a run before bad input.
    """
    outputs = outputs or Outputs()
    console = Console(soft_wrap=True, stderr=outputs.tracks == STANDARD_OUTPUT)
    extractors = SharedExtractor(config)
    codes = []
    with sigterm_as_interrupt():
        for request in requests:
            try:
                result = _run_one(request, config, extractors, outputs, overwrite=overwrite, resume=resume)
                print_result(console, result)
                codes.append(EXIT_FAILED if result.status == "damaged" else EXIT_DONE)
            except LiftstreamError as error:
                complain(str(error))
                codes.append(error.exit_code)
            except RunInterrupted as interrupted:
                complain(str(interrupted))
                return EXIT_INTERRUPTED
            except KeyboardInterrupt:
                complain("interrupted")
                return EXIT_INTERRUPTED
    if len(requests) > 1:
        console.print(f"{codes.count(EXIT_DONE)} of {len(requests)} inputs done")
        write_overview(console, requests[0].folder.parent, config)
    return EXIT_FAILED if EXIT_FAILED in codes else max(codes)


def write_overview(console: Console, folder: Path, config: FlowConfig) -> None:
    """Write ``index.html`` over the runs in a folder, where reports are wanted and there is a run."""
    if not config.write.report:
        return
    try:
        console.print(f"wrote {write_index(folder)}", markup=False, highlight=False)
    except InputError as error:
        complain(f"no overview: {error}")


class SharedExtractor:
    """Loads the extractor when it is first needed, and gives the same one from then on."""

    def __init__(self, config: FlowConfig) -> None:
        self._config = config
        self._extractor: Extractor | None = None

    def get(self) -> Extractor | None:
        """The extractor; None where extraction is switched off."""
        if self._extractor is None and self._config.extract.enabled:
            self._extractor = Extractor(self._config.extract)
        return self._extractor


def _run_one(
    request: Request,
    config: FlowConfig,
    extractors: SharedExtractor,
    outputs: Outputs,
    *,
    overwrite: bool,
    resume: bool,
) -> RunResult:
    is_stream = config.decode.live.enabled or stream_address(request.source) is not None
    total = None
    if not is_stream:
        total = Decoder(config.decode, probe(Path(request.source), config.decode)).expected_frames()
    bar = tqdm(total=total, desc=request.folder.name, unit="frame", file=sys.stderr, mininterval=0.5)

    def advance(packet: Packet) -> None:
        bar.update()
        outputs.write(packet)

    with bar, outputs.opened(), first_signal_ends_the_stream(is_stream) as stop:
        return run_flow(
            request.source,
            request.folder,
            config,
            masks=request.masks,
            prompts=request.prompts,
            names=request.names,
            detections=request.detector or request.detections,
            extractor=extractors.get(),
            overwrite=overwrite,
            resume=resume,
            on_packet=advance,
            on_start=outputs.start,
            on_notice=notice,
            stop=stop,
        )


def print_result(console: Console, result: RunResult) -> None:
    """The summary of a run: the table of stages, warnings, and what was written."""
    name = result.source.name
    if result.was_done:
        console.print(f"{name}: finished before ({result.frames} frames); nothing to do", markup=False)
        return
    frames = result.frames - result.resumed_at
    rate = frames / result.seconds if result.seconds else 0.0
    resumed = f", after {result.resumed_at} of an earlier run" if result.resumed_at else ""
    title = f"{name}: {frames} frames in {result.seconds:.1f} s ({rate:.1f} fps){resumed}"
    console.print(summary_table(title, result.statistics, result.bottleneck))
    if (line := stream_line(result.reports.get("decode", {}))) is not None:
        console.print(line, markup=False, highlight=False)
    for line in result.warnings:
        console.print(f"warning: {line}", markup=False, highlight=False)
    for path in result.paths:
        console.print(f"wrote {path}", markup=False, highlight=False)
    if result.problem:
        complain(result.problem)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that what was written is closed; restored afterwards."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def complain(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
