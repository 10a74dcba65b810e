"""``run``: inputs through the flow into output folders. ``demo``: the same on the bundled clip."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.core.files import write_json_whole

CLIP = Path(__file__).resolve().parents[2] / "tests" / "data" / "bigbuckbunny.mp4"

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def run(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Video files or folders of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; gets one folder an input.")],
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
    start: Annotated[float | None, typer.Option(help="Seconds; where to begin.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds; where to stop.")] = None,
    every: Annotated[int | None, typer.Option(help="Take every N-th frame.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run's files.")] = False,
) -> None:
    """Masks, parts and tracks of videos: an annotated video, and files that other tools read."""
    decode = {"start_seconds": start, "end_seconds": end, "every": every}
    given = [f"decode.{key}={value}" for key, value in decode.items() if value is not None]
    requests = _plan(inputs, output, masks, detections)
    code = _run_all(requests, config, [*(overrides or []), *given], overwrite=overwrite)
    raise typer.Exit(code)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("outputs/demo"),
) -> None:
    """The whole flow on the bundled clip; replaces the files of an earlier demo."""
    raise typer.Exit(_run_all([Request(CLIP, output / CLIP.stem)], None, [], overwrite=True))


@dataclass(frozen=True, slots=True)
class Request:
    """One input, where its results go, and the files that belong to it."""

    source: Path
    folder: Path
    masks: Path | None = None
    detections: Path | None = None


def _plan(inputs: list[Path], output: Path, masks: Path | None, detections: Path | None) -> list[Request]:
    """One request an input; several inputs take theirs from folders with an entry named after each."""
    from pipeline.core.errors import InputError

    names = [path.resolve().name if path.is_dir() else path.stem for path in inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two inputs are named '{twice[0]}' and would share a folder; run them one at a time")
    if len(inputs) == 1:
        return [Request(inputs[0], output / names[0], masks, detections)]
    return [
        Request(path, output / name, _entry(masks, name, ".png"), _entry(detections, name, ".txt"))
        for path, name in zip(inputs, names, strict=True)
    ]


def _entry(folder: Path | None, name: str, suffix: str) -> Path | None:
    from pipeline.core.errors import InputError

    if folder is None:
        return None
    for candidate in (folder / name, folder / f"{name}{suffix}"):
        if candidate.exists():
            return candidate
    raise InputError(f"{folder}: with several inputs it needs an entry '{name}' or '{name}{suffix}'")


def _run_all(requests: list[Request], config_path: Path | None, overrides: list[str], *, overwrite: bool) -> int:
    """Run every request; a failure does not stop the next ones. Returns the exit code."""
    from pipeline.core.errors import InputError, LiftstreamError
    from pipeline.flow import load_flow_config
    from stages.extract import Extractor

    console = Console(soft_wrap=True)
    config = load_flow_config(config_path, overrides)
    extractor: Extractor | None = None
    codes = []
    with _sigterm_as_interrupt():
        for request in requests:
            try:
                extractor = _run_one(request, config, console, overwrite=overwrite, extractor=extractor)
                codes.append(EXIT_DONE)
            except LiftstreamError as error:
                _complain(str(error))
                codes.append(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILED)
            except KeyboardInterrupt:
                return EXIT_INTERRUPTED
    if len(requests) > 1:
        console.print(f"{codes.count(EXIT_DONE)} of {len(requests)} inputs done")
    return EXIT_FAILED if EXIT_FAILED in codes else max(codes)


def _run_one(request: Request, config: Any, console: Console, *, overwrite: bool, extractor: Any) -> Any:
    """Run one input to its files; returns the extractor, for the next input to share."""
    from pipeline.core.errors import InputError, StageError, TruncatedError
    from pipeline.flow import make_stages
    from stages.decode import probe
    from stages.write.stage import prepare_output, remove_output

    info = probe(request.source, config.decode)
    masks, detections = _read_labels(request, info, config)
    stages = make_stages(
        request.source, config, masks=masks, detections=detections, output=request.folder, info=info,
        extractor=extractor,
    )  # fmt: skip
    stages.extra_warnings += getattr(detections, "warnings", [])
    prepare_output(request.folder, overwrite=overwrite)
    record = _Record(request, config, stages)
    try:
        record.drain()
    except StageError as error:
        if isinstance(error.__cause__, InputError):
            remove_output(request.folder)
            raise error.__cause__ from error
        record.finish(console, "failed", str(error))
        raise
    except KeyboardInterrupt:
        record.finish(console, "interrupted", f"interrupted after {record.frames_written} frames")
        _complain(f"{request.source}: interrupted; {record.frames_written} frames are written to {request.folder}")
        raise
    broken = stages.decode.broken
    record.finish(console, "broken" if broken else "done", broken)
    if broken:
        raise TruncatedError(f"{broken}; the {record.frames_written} frames before are in {request.folder}")
    return stages.extract


def _read_labels(request: Request, info: Any, config: Any) -> tuple[Any, Any]:
    from pipeline.formats.detections import read_detections
    from pipeline.formats.masks import load_masks
    from stages.decode import Decoder

    masks = None
    if request.masks is not None:
        masks = load_masks(request.masks, info, first_index=Decoder(config.decode, info).first_index())
    detections = read_detections(request.detections, info) if request.detections is not None else None
    return masks, detections


class _Record:
    """One run from its first frame to its ``run.json`` and summary."""

    def __init__(self, request: Request, config: Any, stages: Any) -> None:
        from pipeline.core.runner import Pipeline

        self.request = request
        self.config = config
        self.stages = stages
        self.pipe = Pipeline(config.queue_depth)
        self.seconds = 0.0
        self.frames = 0

    @property
    def frames_written(self) -> int:
        """Frames that went through the last stage."""
        return self.stages.write.frames_written if self.stages.write is not None else self.frames

    def drain(self) -> None:
        """Pull every packet through the flow, with a progress bar."""
        from tqdm import tqdm

        from pipeline.flow import chain

        started = time.perf_counter()
        total = self.stages.decode.expected_frames()
        try:
            with (
                self.pipe,
                tqdm(
                    total=total, desc=self.request.source.name, unit="frame", file=sys.stderr, mininterval=0.5
                ) as bar,
            ):
                for _ in chain(self.pipe, self.stages):
                    self.frames += 1
                    bar.update()
        finally:
            self.seconds = time.perf_counter() - started

    def finish(self, console: Console, status: str, problem: str | None) -> None:
        """Write ``run.json`` and print the summary."""
        from pipeline import run_report

        bottleneck = self.pipe.bottleneck()
        name = bottleneck.name if bottleneck else None
        values = {
            "status": status,
            "problem": problem,
            "input": run_report.describe_input(self.stages.info),
            "frames": self.frames_written,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": run_report.peak_memory_bytes(),
            "bottleneck": name,
            "stages": run_report.describe_statistics(self.pipe.statistics),
            "reports": self.stages.reports(),
            "warnings": self.stages.warnings(),
            "config": self.config.model_dump(mode="json"),
            "versions": run_report.versions(),
        }
        folder = self.request.folder
        write_json_whole(folder / "run.json", values)
        rate = self.frames / self.seconds if self.seconds else 0.0
        title = f"{self.request.source.name}: {self.frames} frames in {self.seconds:.1f} s ({rate:.1f} fps)"
        console.print(run_report.summary_table(title, self.pipe.statistics, name))
        for line in values["warnings"]:
            console.print(f"warning: {line}", markup=False, highlight=False)
        paths = self.stages.write.paths() if self.stages.write is not None else [folder / "run.json"]
        for path in paths:
            console.print(f"wrote {path}", markup=False, highlight=False)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that what was written is closed; restored afterwards."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _complain(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
