"""Detectors of other packages: functions of an image that return ``supervision.Detections``.

``run --detector`` names one as ``module:function``, ``module:function:ARGUMENT`` or by an entry point of the group
``liftstream.detectors``. In the flow it is a source of detections like any other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import supervision as sv

from pipeline.core.errors import ConfigError, DetectorError, LiftstreamError
from pipeline.core.records import Detections, Frame

ENTRY_POINTS: Final = "liftstream.detectors"
"""The group of entry points that installed packages announce detectors in."""

_FORMS = "MODULE:FUNCTION, MODULE:FUNCTION:ARGUMENT or the name of an installed detector"


class ImageDetector:
    """A detector of another package as a source of detections for the tracker.

    Args:
        function: From a uint8 RGB image ``(H, W, 3)`` to ``supervision.Detections`` with boxes in pixels of the
            image. With an attribute ``batched`` that is true it takes a list of images instead and returns a
            list. It gets its own copy of every image.
        name: What error messages call it.
        origin: Files and values that tell it from other detectors, for the identity of a run.

    Attributes:
        batched: Whether it takes several frames at once.
    """

    def __init__(
        self, function: Callable[[Any], Any], name: str, *, origin: dict[str, Path | str] | None = None
    ) -> None:
        self.name = name
        self.batched = bool(getattr(function, "batched", False))
        self._function = function
        self._origin = origin or {}

    def __call__(self, frame: Frame) -> Detections:
        """The boxes of one frame; see :meth:`detect_frames`."""
        return self.detect_frames([frame])[0]

    def detect_frames(self, frames: Sequence[Frame]) -> list[Detections]:
        """The boxes of each of several frames, in one call where the detector is batched.

        Raises:
            DetectorError: It failed, or did not return ``supervision.Detections`` with usable boxes.
        """
        if not self.batched:
            return [self._converted(self._call(frame.image.copy(), frame), frame) for frame in frames]
        found = self._call([frame.image.copy() for frame in frames], frames[0])
        if not isinstance(found, list | tuple) or len(found) != len(frames):
            what = f"{len(found)} results" if isinstance(found, list | tuple) else _article(found)
            raise DetectorError(
                f"detector {self.name}: returned {what} for a list of {len(frames)} images; it is marked as "
                "batched and must return a list with one supervision.Detections per image"
            )
        return [self._converted(own, frame) for own, frame in zip(found, frames, strict=True)]

    def identity(self) -> dict[str, Path | str]:
        """What tells this detector from others; a path stands for the content of the file."""
        return {"detector": self.name, **self._origin}

    def _call(self, images: Any, frame: Frame) -> Any:
        try:
            return self._function(images)
        except Exception as error:
            raise DetectorError(
                f"detector {self.name}: failed at frame {frame.index} with {type(error).__name__}: {error}"
            ) from error

    def _converted(self, found: object, frame: Frame) -> Detections:
        if not isinstance(found, sv.Detections):
            raise self._unusable(frame, f"returned {_article(found)}; it must return supervision.Detections")
        try:
            boxes = np.asarray(found.xyxy, np.float32)
            scores = np.asarray(np.ones(len(boxes)) if found.confidence is None else found.confidence, np.float32)
        except (TypeError, ValueError) as error:
            raise self._unusable(frame, f"boxes and scores are not numbers ({error})") from error
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != (len(boxes),):
            shapes = f"boxes {boxes.shape} and scores {scores.shape}"
            raise self._unusable(frame, f"returned {shapes}; they must be (N, 4) and (N,)")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise self._unusable(frame, "returned a box or a score that is not finite")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise self._unusable(frame, "returned a box that is not left, top, right, bottom")
        categories = _categories(found)
        if len(categories) != len(boxes):
            raise self._unusable(frame, f"returned {len(categories)} classes for {len(boxes)} boxes")
        return Detections(boxes, scores, categories, np.zeros(len(boxes), np.int64))

    def _unusable(self, frame: Frame, problem: str) -> DetectorError:
        return DetectorError(f"detector {self.name}: frame {frame.index}: {problem}")


@dataclass(frozen=True, slots=True)
class NamedDetector:
    """What ``--detector`` names, before any model is loaded.

    Attributes:
        text: The name as given.
        found: The function or class in its module.
        argument: What it is called with; empty for nothing.
        origin: Files and values that tell it from other detectors.
    """

    text: str
    found: Any
    argument: str
    origin: dict[str, Path | str]

    def load(self) -> ImageDetector:
        """Make the detector; where it has an argument, or needs none, this loads its model.

        Raises:
            ConfigError: It cannot be made.
        """
        return ImageDetector(_made(self.found, self.argument, self.text), self.text, origin=self.origin)

    def identity(self) -> dict[str, Path | str]:
        """As :meth:`ImageDetector.identity` of the loaded one."""
        return {"detector": self.text, **self.origin}


def load_image_detector(text: str) -> ImageDetector:
    """The detector that ``--detector`` names.

    The part after the function, if there is one, is given to it in one call, and what it returns is the detector.
    Without it the function is the detector itself, unless it is a class or needs no argument: then it is called
    without any and returns the detector. Modules are also looked for in the current folder.

    Args:
        text: ``MODULE:FUNCTION``, ``MODULE:FUNCTION:ARGUMENT``, or ``NAME`` or ``NAME:ARGUMENT`` of an entry point
            in the group ``liftstream.detectors``.

    Raises:
        ConfigError: There is no such detector, or it cannot be made.
    """
    return find_image_detector(text).load()


def find_image_detector(text: str) -> NamedDetector:
    """Import the module that ``--detector`` names and find the function; see :func:`load_image_detector`.

    Raises:
        ConfigError: There is no such module or function.
    """
    name, _, argument = text.partition(":")
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in entries.names:
        module_name, _, attribute = entries[name].value.partition(":")
    else:
        module_name = name
        attribute, _, argument = argument.partition(":")
    if not module_name or not attribute:
        installed = ", ".join(sorted(entries.names)) or "none"
        raise ConfigError(f"--detector {text}: write {_FORMS}; installed: {installed}")
    module = _imported(module_name, text)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"--detector {text}: module {module_name} has no '{attribute}'")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"--detector {text}: it is {_article(found)}, which cannot be called")
    return NamedDetector(text, found, argument, _origin(module, argument))


def _imported(name: str, text: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]:
            raise ConfigError(
                f"--detector {text}: there is no module '{error.name}', neither installed nor in {here}"
            ) from error
        raise ConfigError(
            f"--detector {text}: importing {name} failed with {type(error).__name__}: {error}"
        ) from error


def _made(found: Callable[..., Any], argument: str, text: str) -> Callable[[Any], Any]:
    """The detector itself, from what was found in the module."""
    function: Callable[[Any], Any] = found
    if not argument and not _makes_detector(found):
        return function
    try:
        function = found(argument) if argument else found()
    except LiftstreamError:
        raise
    except Exception as error:
        raise ConfigError(f"--detector {text}: failed with {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(
            f"--detector {text}: it returned {_article(function)}; called with its argument it must return the "
            "detector, a function of an image"
        )
    return function


def _makes_detector(found: Callable[..., Any]) -> bool:
    """Whether it is called without arguments to get the detector: a class, or a function that needs none."""
    if inspect.isclass(found):
        return True
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # of some functions written in C nothing is known
        return False
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind == inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return False
    return all(p.default is not inspect.Parameter.empty or p.kind in several for p in parameters)


def _origin(module: ModuleType, argument: str) -> dict[str, Path | str]:
    """The module's file and the argument, which may name a file, too."""
    origin: dict[str, Path | str] = {}
    if module.__file__ is not None and Path(module.__file__).is_file():
        origin["module"] = Path(module.__file__)
    if argument:
        path = Path(argument)
        origin["argument"] = path if path.is_file() or path.is_dir() else argument
    return origin


def _categories(found: sv.Detections) -> tuple[str, ...]:
    """Names where there are some, else numbers as text, else nothing."""
    names: npt.ArrayLike | None = found.data.get("class_name")
    if names is None:
        names = found.class_id
    if names is None:
        return ("",) * len(found.xyxy)
    return tuple(str(name) for name in np.asarray(names).reshape(-1))


def _article(value: object) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
