"""The table of commands, and how one is loaded and run. A command's module is imported when that command runs."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from typing import Any, NamedTuple, NoReturn, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.core.errors import LiftstreamError
from pipeline.core.runner import STAGE_THREAD_PREFIX
from pipeline.core.threads import set_thread_pools


class CommandEntry(NamedTuple):
    """A row of the table of commands: ``module:function``, and the help that lists show."""

    target: str
    help: str


COMMANDS: dict[str, CommandEntry] = {
    name: CommandEntry(f"pipeline.{target}", text)
    for name, target, text in (
        ("run", "commands.run:run", "Masks, parts and tracks of videos."),
        ("batch", "commands.batch:batch", "Many videos, on this machine or on a Ray cluster."),
        ("demo", "commands.run:demo", "The whole flow on the bundled clip."),
        ("label", "commands.label:label", "Click masks on a local page."),
        ("features", "commands.features:features", "Look at dense features, or export them."),
        ("coseg", "commands.coseg:coseg", "Common parts of a set of images."),
        ("match", "commands.match:match", "Corresponding points of two images."),
        ("discover", "commands.discover:discover", "One box per image around its main object."),
        ("spair", "commands.spair:spair", "Keypoint transfer on SPair-71k (PCK)."),
        ("landmarks", "commands.landmarks:landmarks", "Keypoints from part centers on CelebA and CUB."),
        ("review", "commands.review:review", "The report of a run in a browser."),
        ("export", "commands.export:export", "The masks of a run in the formats of other tools."),
        ("davis", "commands.davis:davis", "Label propagation on DAVIS, with scores."),
        ("davis-score", "commands.davis:davis_score", "J and F of masks that are there."),
        ("track-eval", "commands.track_eval:track_eval", "Tracking on MOT or BDD100K, with scores."),
        ("track-score", "commands.track_score:track_score", "Scores of tracks that are there."),
        ("retrieval", "commands.retrieval:retrieval", "Instance retrieval between frames."),
        ("repair", "commands.repair:repair", "Find and repair defective tokens (SINDER)."),
        ("train-lift", "commands.train_lift:train_lift", "Train a LiFT module."),
        ("objectness", "commands.objectness:objectness", "Learn which descriptors belong to objects."),
        ("part-space", "commands.part_space:part_space", "Fit the directions parts are clustered in."),
        ("detect", "commands.detect:detect", "Boxes and masks of objects in images or a video."),
        ("train-detect", "commands.train_detect:train_detect", "Train a detector (ViTDet) on a frozen backbone."),
        ("detect-eval", "commands.detect_eval:detect_eval", "COCO scores of detections."),
        ("lift-report", "commands.lift_report:lift_report", "What a LiFT module does to features."),
        ("probe", "commands.probe:probe", "Few-shot patch classification on frozen features."),
        (
            "retrieve-patches",
            "commands.retrieve_patches:retrieve_patches",
            "Find patches again in changed images.",
        ),
        ("tsne", "commands.tsne:tsne", "Descriptors as points in the plane (t-SNE)."),
        ("figures", "commands.figures:figures", "The papers' figures from a folder of images, on one page."),
        ("bench runner", "bench.run:bench_runner", "Packets per second of the runner alone."),
        ("bench run", "bench.run:bench_run", "The whole flow against its slowest stage."),
        ("bench stages", "bench.stages:bench_stages", "CPU seconds per frame of each stage."),
        ("bench precision", "bench.precision:bench_precision", "Quality in bf16 against fp32."),
        ("bench scaling", "bench.scaling:bench_scaling", "Cost against length, size, objects, tracks."),
        ("bench engines", "bench.engines:bench_engines", "The forward in PyTorch, OpenVINO, ONNX Runtime."),
        ("bench all", "bench.everything:bench_all", "The benchmarks on one page."),
        ("bench threads", "bench.threads:bench_threads", "The flow with other sizes of the thread pools."),
        (
            "bench endurance",
            "bench.endurance:bench_endurance",
            "Hours of video, killed and resumed: memory, cost.",
        ),
        ("bench memory", "bench.run:bench_memory", "Memory late in a long video against early."),
        ("bench batch", "bench.batch:bench_batch", "Videos per second of batch against run."),
        ("bench extraction", "bench.extraction:extraction", "Extraction against timm's forward."),
        ("bench gpu", "bench.gpu:bench_gpu", "Proof and numbers of a card: tests, rates, idle gaps, agreement."),
        ("bench coseg", "bench.coseg:bench_coseg", "coseg on frames of DAVIS against their true masks."),
        ("bench lift", "bench.lift:bench_lift", "LiFT against bilinear and raw features."),
        ("bench parts", "bench.parts:bench_parts", "Foreground, consistency and cost of parts."),
        ("bench discovery", "bench.discovery:bench_discovery", "Boxes of main objects on DAVIS (CorLoc)."),
        ("bench prompts", "bench.prompts:bench_prompts", "Masks from clicks and boxes, beside baselines."),
        (
            "bench prompts-fit",
            "bench.prompts_fit:bench_prompts_fit",
            "Weights that choose masks of clicks and boxes.",
        ),
        (
            "bench parts-equivariance",
            "bench.parts_equivariance:bench_parts_equivariance",
            "Parts in mirrored and enlarged frames.",
        ),
        ("bench objects", "bench.objects:bench_objects", "Objects without labels against exact masks."),
        ("bench gallery", "bench.gallery:bench_gallery", "A contact sheet of annotated videos."),
        ("bench propagation", "bench.propagation:bench_propagation", "Windowed against dense propagation."),
        ("bench ablation", "bench.ablation:ablation", "Variants of propagation on stored features."),
        ("bench leave-out", "bench.leave_out:bench_leave_out", "Rows of bench ablation, each sequence left out."),
        ("bench fuzz", "bench.fuzz:bench_fuzz", "Damaged videos through decode: what comes out, what is lost."),
        ("bench roi", "bench.roi:bench_roi", "ROIAlign against torchvision's operator."),
        ("bench composites", "bench.composites:bench_composites", "A labeled set for detectors, made from DAVIS."),
        ("bench tracking", "bench.tracking:bench_tracking", "Tracking beside other trackers."),
    )
}
"""Every command; a name with a space belongs to a group."""

GROUPS: dict[str, str] = {"bench": "Make the numbers of docs/ again."}
"""The groups of commands and their help."""


class LazyCommand(TyperCommand):
    """Stands for a command in lists; the command itself is loaded when it is called."""

    def __init__(self, name: str, entry: CommandEntry) -> None:
        super().__init__(name, help=entry.help, short_help=entry.help)
        self._target = entry.target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The loaded command's context; the types are those of whichever click typer brings."""
        return self.load().make_context(info_name, args, parent, **extra)

    def load(self) -> Any:
        """Import the command's module and make the command."""
        module, function = self._target.split(":")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(getattr(importlib.import_module(module), function))
        set_thread_pools()  # of the libraries that the module has loaded
        return typer.main.get_command(app)


def build_cli() -> TyperGroup:
    """The command line with every command of the table."""
    cli = TyperGroup(
        name="liftstream",
        help="Stream videos through a frozen Vision Transformer: masks, parts and tracks.",
        no_args_is_help=True,
    )
    groups = {name: TyperGroup(name=name, help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for group in groups.values():
        cli.add_command(group)
    for name, entry in COMMANDS.items():
        owner, _, command = name.rpartition(" ")
        (groups[owner] if owner else cli).add_command(LazyCommand(command, entry))
    return cli


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done; 1 failed during the run; 2 bad input, config or usage; 130 interrupted.
    """
    warnings.showwarning = _show_warning
    try:
        build_cli()(args=arguments)
    except SystemExit as ended:  # click's way to end a command: it has printed usage errors already
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except LiftstreamError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def main_and_exit() -> NoReturn:
    """Run the command line and end the process with its exit code.

    A stage that an interrupt left behind in a long computation would hold up the interpreter's own way to end, so
    the process then ends without it; everything is written and closed at that point.
    """
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name.startswith(STAGE_THREAD_PREFIX) for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"warning: {message}\n" if category is FutureWarning else f"{category.__name__}: {message}\n")
