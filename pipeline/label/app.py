"""The web application behind the page: who may ask, and what can be asked.

Every address begins with a random token, the Host header must name this machine, a request with an Origin header
must come from the page itself, and no header allows other origins. Requests name frames by number; the only paths
are those of a finished run's files, and they cannot leave its folder.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.core.colors import OBJECT_COLORS
from pipeline.core.errors import InputError, LiftstreamError
from pipeline.formats.object_names import check_names
from pipeline.label.workbench import Workbench, overlay
from pipeline.prompts.prompt import Box, Point, Prompt

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 1 << 20
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self'; connect-src 'self'"
)


class LocalOnly:
    """Refuses requests that another machine, or a page of another origin, could have made.

    Args:
        app: The application.
        token: What every path begins with.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or 404, or pass the request on without the token."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        origin = headers.get("origin")
        token, slash, rest = scope["path"].removeprefix("/").partition("/")
        if _name_of(host) not in _LOCAL_NAMES or (origin is not None and origin != f"http://{host}"):
            await PlainTextResponse("this page is for this machine only", 403)(scope, receive, send)
        elif not slash or not secrets.compare_digest(token.encode(), self._token.encode()):
            await PlainTextResponse("open the address that the command printed", 404)(scope, receive, send)
        else:
            path = f"/{rest}"
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


def _name_of(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def make_app(workbench: Workbench, token: str) -> ASGIApp:
    """The application for one video; see the module."""
    asked = Answers(workbench)
    app = Starlette(
        routes=[
            Route("/", asked.page),
            Route("/facts", asked.facts),
            Route("/frames/{index:int}", asked.frame),
            Route("/frames/{index:int}/prepare", asked.prepare, methods=["POST"]),
            Route("/frames/{index:int}/mask", asked.mask, methods=["POST"]),
            Route("/save", asked.save, methods=["POST"]),
            Route("/run", asked.start_run, methods=["POST"]),
            Route("/run", asked.progress),
            Route("/run/stop", asked.stop_run, methods=["POST"]),
            Route("/run/picture", asked.picture),
            Route("/run/video", asked.video),
            Route("/run/files/{name:path}", asked.result_file),
        ],
        exception_handlers={LiftstreamError: _explain},
    )
    return LocalOnly(_no_store(app), token)


class Answers:
    """The answer to each address."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return Response(PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    async def facts(self, request: Request) -> Response:
        """The video's name, size, length and rate, and the objects' colors."""
        info = self._workbench.info
        colors = [f"#{bytes(color.tolist()).hex()}" for color in OBJECT_COLORS[:255]]
        values = {"name": info.path.name, "width": info.width, "height": info.height, "colors": colors}
        return JSONResponse(
            {**values, "frames": self._workbench.num_frames, "masks": str(self._workbench.masks_folder)}
        )

    async def frame(self, request: Request) -> Response:
        """A frame as JPEG."""
        return Response(await run_in_threadpool(self._workbench.picture, _index(request)), media_type="image/jpeg")

    async def prepare(self, request: Request) -> Response:
        """Answers when clicks on the frame can be answered at once."""
        await run_in_threadpool(self._workbench.prepare, _index(request))
        return JSONResponse({})

    async def mask(self, request: Request) -> Response:
        """The mask of a frame's prompts, as a colored PNG; with ``fine`` the one that is saved."""
        values = await _body(request)
        answer = self._workbench.mask if values.get("fine") else self._workbench.first_mask
        found = await run_in_threadpool(answer, _index(request), _prompts(values.get("prompts")))
        return Response(await run_in_threadpool(overlay, found), media_type="image/png")

    async def save(self, request: Request) -> Response:
        """Write the masks; answers where they are."""
        values = await _body(request)
        names = check_names(values.get("names", {}))
        paths = await run_in_threadpool(self._workbench.save, _by_frame(values.get("frames")), names)
        return JSONResponse({"saved": [str(path) for path in paths]})

    async def start_run(self, request: Request) -> Response:
        """Start the flow from a frame on."""
        values = await _body(request)
        start = values.get("start")
        if not isinstance(start, int):
            raise InputError("start is not a frame number")
        names = check_names(values.get("names", {}))
        await run_in_threadpool(self._workbench.start_run, start, _by_frame(values.get("frames")), names)
        return JSONResponse({})

    async def progress(self, request: Request) -> Response:
        """How far the run is."""
        now = self._workbench.progress
        values = {"running": now.running, "frames": now.frames, "total": now.total, "error": now.error}
        return JSONResponse(
            {
                **values,
                "stopped": now.stopped,
                "video": now.video is not None,
                "report": self._workbench.has_report(),
            }
        )

    async def stop_run(self, request: Request) -> Response:
        """Stop the run after the frame in work."""
        self._workbench.stop_run()
        return JSONResponse({})

    async def picture(self, request: Request) -> Response:
        """The last annotated frame of the run."""
        data = self._workbench.progress.picture
        return PlainTextResponse("no frame yet", 404) if data is None else Response(data, media_type="image/jpeg")

    async def video(self, request: Request) -> Response:
        """The result of the run."""
        path = self._workbench.progress.video
        return PlainTextResponse("no result yet", 404) if path is None else FileResponse(path)

    async def result_file(self, request: Request) -> Response:
        """A file of the run's folder: the report, and what it links to."""
        return FileResponse(self._workbench.result_file(request.path_params["name"]))


def _no_store(app: ASGIApp) -> ASGIApp:
    """Nothing is cached, and addresses (they hold the token) are not told to anybody."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"cache-control", b"no-store"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


async def _explain(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _index(request: Request) -> int:
    return int(request.path_params["index"])


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object a request carries."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise InputError("the request is too long")
    try:
        values = json.loads(data)
    except ValueError as error:
        raise InputError("the request is not JSON") from error
    if not isinstance(values, dict):
        raise InputError("the request is not a JSON object")
    return values


def _by_frame(values: Any) -> dict[int, list[Prompt]]:
    if not isinstance(values, dict) or not all(str(key).isdecimal() for key in values):
        raise InputError("frames is not an object with frame numbers as keys")
    return {int(index): _prompts(prompts) for index, prompts in values.items()}


def _prompts(values: Any) -> list[Prompt]:
    """Prompts as the page sends them: ``{x, y, object, positive}`` or ``{box: [4 numbers], object}``."""
    if not isinstance(values, list):
        raise InputError("prompts is not a list")
    try:
        return [_prompt(value) for value in values]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("a prompt is neither a point nor a box") from error


def _prompt(value: dict[str, Any]) -> Prompt:
    number = int(value["object"])
    if "box" in value:
        left, top, right, bottom = (float(edge) for edge in value["box"])
        return Box(left, top, right, bottom, number)
    return Point(float(value["x"]), float(value["y"]), number, positive=bool(value["positive"]))
