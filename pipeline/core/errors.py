"""The errors a user can meet, as one tree.

::

    LiftstreamError
    ├── InputError              bad input, config or usage; exit code 2
    │   ├── ConfigError         an unknown key, a wrong type, an impossible value
    │   ├── MediaError          a path that is neither a video nor a folder of images
    │   ├── MaskError           an annotation that cannot be used
    │   ├── LabelFileError      a detections or label file with a bad line
    │   ├── WeightsError        weights whose hash, names or shapes do not fit
    │   ├── OutputError         an output folder that exists or cannot be written
    │   └── CheckpointError     a checkpoint that is damaged or belongs to another run
    ├── StageError              a stage failed during a run; exit code 1
    ├── DetectorError           a detector of the user's failed during a run; exit code 1
    ├── DamagedError            parts of the input could not be decoded; the rest was processed; exit code 1
    │   └── TruncatedError      the input broke off before its end
    └── WriteError              the disk is full or cannot be written during a run; exit code 1
    KeyboardInterrupt
    └── RunInterrupted          Ctrl-C or SIGTERM during a run; exit code 130

An :class:`InputError` is one line that names the file (or the key) and how to fix it.
"""

from __future__ import annotations


class LiftstreamError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line returns."""

    exit_code: int = 1


class InputError(LiftstreamError):
    """The input, the config or the usage is wrong, and the message says how to fix it."""

    exit_code = 2


class ConfigError(InputError):
    """An unknown config key, a wrong type or an impossible value."""


class MediaError(InputError):
    """A path that cannot be read as a video or as a folder of images."""


class MaskError(InputError):
    """An annotation mask that cannot be used with this input."""


class LabelFileError(InputError):
    """A detections, ground-truth or results file with a bad line or a frame that does not exist."""


class WeightsError(InputError):
    """Weights whose hash, key names or shapes do not fit the model."""


class OutputError(InputError):
    """The output folder exists already, or cannot be written."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or that belongs to another input, config, version or weights."""


class StageError(LiftstreamError):
    """A stage failed. The cause is chained (``__cause__``).

    Attributes:
        stage: Name of the stage, as given to ``Pipeline.buffer``.
        frame_index: 0-based index of the last frame the stage had taken, or None before the first.
    """

    def __init__(self, stage: str, frame_index: int | None, cause: BaseException) -> None:
        where = "before its first frame" if frame_index is None else f"at frame {frame_index}"
        super().__init__(f"stage '{stage}' failed {where}: {type(cause).__name__}: {cause}")
        self.stage = stage
        self.frame_index = frame_index


class DetectorError(LiftstreamError):
    """A detector of another package failed, or returned what cannot be used; the message names it."""


class DamagedError(LiftstreamError):
    """Parts of the input could not be decoded; everything that could be was processed and written."""


class TruncatedError(DamagedError):
    """The input broke off before its end; everything decoded until then was processed and written."""


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted; the message says how many frames are written and where."""


class WriteError(LiftstreamError):
    """A result could not be written during a run: the disk is full, read-only or over a quota."""
