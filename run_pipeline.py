"""The command line of liftstream: a thin front over the packages. ``liftstream`` is the same program."""

from __future__ import annotations

import importlib
import sys

import typer

COMMANDS: dict[str, str] = {
    "run": "pipeline.commands.run:run",
    "demo": "pipeline.commands.run:demo",
    "features": "pipeline.commands.features:features",
    "repair": "pipeline.commands.repair:repair",
    "track-eval": "pipeline.commands.track_eval:track_eval",
    "retrieval": "pipeline.commands.retrieval:retrieval",
    "track-score": "pipeline.commands.track_score:track_score",
    "train-lift": "pipeline.commands.train_lift:train_lift",
    "lift-report": "pipeline.commands.lift_report:lift_report",
    "bench lift": "pipeline.bench.lift:bench_lift",
    "coseg": "pipeline.commands.coseg:coseg",
    "match": "pipeline.commands.match:match",
    "discover": "pipeline.commands.discover:discover",
    "spair": "pipeline.commands.spair:spair",
    "bench parts": "pipeline.bench.parts:bench_parts",
    "davis": "pipeline.commands.davis:davis",
    "davis-score": "pipeline.commands.davis:davis_score",
    "bench propagation": "pipeline.bench.propagation:bench_propagation",
    "bench extraction": "pipeline.bench.extraction:extraction",
    "bench runner": "pipeline.bench.run:bench_runner",
    "bench run": "pipeline.bench.run:bench_run",
    "bench memory": "pipeline.bench.run:bench_memory",
    "bench roi": "pipeline.bench.roi:bench_roi",
    "bench tracking": "pipeline.bench.tracking:bench_tracking",
}
"""Every command and the function behind it; a name with a space belongs to a group."""

GROUPS: dict[str, str] = {
    "bench": "Compare and time parts of the project.",
}
"""The groups of commands and their help."""


def build_app() -> typer.Typer:
    """The typer application with every command registered."""
    app = typer.Typer(
        name="liftstream",
        help="Stream videos through a frozen Vision Transformer: masks, parts and tracks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for name, target in COMMANDS.items():
        module, function = target.split(":")
        owner, _, command = name.rpartition(" ")
        (groups[owner] if owner else app).command(command)(getattr(importlib.import_module(module), function))
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done; 1 failed during the run; 2 bad input, config or usage; 130 interrupted.
    """
    from pipeline.core.errors import LiftstreamError

    try:
        build_app()(args=arguments)
    except SystemExit as ended:  # typer's way to end a command: it has printed usage errors already
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except LiftstreamError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
