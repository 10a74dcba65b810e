"""``label``: a page on this machine on which objects are clicked and masks saved."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.core.errors import ConfigError
from pipeline.flow import load_flow_config


def label(
    video: Annotated[Path, typer.Argument(help="A video file or a folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder the masks are saved in.")] = Path("masks"),
    config: Annotated[Path | None, typer.Option(help="YAML file, for runs started on the page.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 0,
) -> None:
    """Open a local page on which clicks and boxes become masks; saved ones are what --masks of run reads."""
    try:
        import uvicorn

        from pipeline.label.app import make_app
        from pipeline.label.workbench import Workbench
    except ImportError as error:
        raise ConfigError("the page needs starlette and uvicorn: pip install 'liftstream[label]'") from error
    run_folder = output.with_name(f"{output.name}_run")
    workbench = Workbench(video, output, run_folder, load_flow_config(config, overrides or ()))
    token = secrets.token_urlsafe(24)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(f"--port {port}: cannot be used ({error.strerror}); leave it out") from error
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
    Console(soft_wrap=True).print(f"open {address}", markup=False, highlight=False)
    # The address holds the token, so requests are not logged.
    server = uvicorn.Server(uvicorn.Config(make_app(workbench, token), log_level="warning", access_log=False))
    server.run(sockets=[listener])
