"""Write: the output folder of a run, every file whole or not at all.

::

    OUT/annotated.mp4      H.264, yuv420p, faststart, colors tagged; the input's size (made even) and timing from 0
        masks/00000.png    objects as indexed PNG, DAVIS palette, the frame's size
        parts/00000.png    parts as indexed PNG
        tracks.txt         MOTChallenge text: frame, id, left, top, width, height, score, -1, -1, -1
        objects.csv        per object and frame: area, box, centroid, confidence
        files.sha256       the hash of every file above
        checkpoint/        while the run is unfinished: the video's segments, and the files that grow

Files carry the frame's index, or for a folder of images the image's own name. ``run.json`` is written by the
flow, which knows the whole run.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import OutputError
from pipeline.core.files import (
    path_inside,
    sha256_of,
    sync_to_disk,
    whole_file,
    write_bytes_whole,
)
from pipeline.core.records import Packet, VideoInfo
from pipeline.core.state import State
from pipeline.formats.palette import encode_indexed_png
from stages.write.config import WriteConfig
from stages.write.folder import (
    CHECKPOINT,
    FILE_LIST,
    clear_partial_files,
    take_over,
)
from stages.write.tables import OBJECT_COLUMNS, GrowingText, object_lines, track_lines
from stages.write.video import SegmentedVideo, join_segments, segment_files

TRACKS, OBJECTS = "tracks.txt", "objects.csv"
_MAX_NOT_SYNCED = 2000


class Writer:
    """Writes every packet that passes and hands it on.

    Nothing is touched before the first packet. Invariant: ``checkpoint/files.sha256`` names every mask and part
    map before it appears. Used for one run; :meth:`publish` makes the results appear under their names.

    Attributes:
        frames_written: Packets written so far.
        current_index: Index of the frame being written.
    """

    def __init__(
        self, config: WriteConfig, folder: Path, info: VideoInfo, *, video_name: str = "annotated.mp4"
    ) -> None:
        self.config = config
        self.video_name = video_name
        self.folder = folder
        self.info = info
        self.frames_written = 0
        self.current_index: int | None = None
        self.warnings: list[str] = []
        work = folder / CHECKPOINT
        self._work = work
        self._video = SegmentedVideo(work / "video", config, info.frame_rate)
        self._tables = {
            TRACKS: GrowingText(work / TRACKS),
            OBJECTS: GrowingText(work / OBJECTS, ",".join(OBJECT_COLUMNS) + "\n"),
            FILE_LIST: GrowingText(work / FILE_LIST),
        }
        self._not_synced: list[Path] = []
        self._first_seconds: float | None = None
        self._last_duration_seconds = float(1 / info.frame_rate)
        self._begun = self._resumed = self._published = False

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """The same packets, after their files are written; publishes when the last one is through."""
        try:
            for packet in packets:
                yield self.step(packet)
        finally:
            self.close()
        self.publish()

    def step(self, packet: Packet) -> Packet:
        """Write one packet's files."""
        self.current_index = packet.index
        self._published = False
        self.begin()
        if self._first_seconds is None:
            self._first_seconds = packet.frame.pts_seconds
        self._write_masks(packet)
        if self.config.annotated_video and packet.annotated is not None:
            self._video.write(packet.annotated, packet.frame.pts_seconds - self._first_seconds)
            if packet.frame.duration_seconds:
                self._last_duration_seconds = packet.frame.duration_seconds
        if self.config.tracks:
            self._tables[TRACKS].write(track_lines(packet))
        if self.config.objects:
            self._tables[OBJECTS].write(object_lines(packet))
        self.frames_written += 1
        return packet

    def end_segment(self) -> None:
        """End the video's segment: called at places that depend on the number of frames alone."""
        self._video.end_segment()
        if len(self._not_synced) > _MAX_NOT_SYNCED:
            self._sync()

    def state(self) -> State:
        """Lengths of the files that grow; everything up to there is on the disk when this returns."""
        self._sync()
        return {
            "frames_written": self.frames_written,
            "first_seconds": self._first_seconds,
            "last_duration_seconds": self._last_duration_seconds,
            "video": self._video.state(),
            "tables": {name: table.length() for name, table in self._tables.items()},
        }

    def restore(self, state: State) -> None:
        """Cut the files back to where the state was taken."""
        self.frames_written = state["frames_written"]
        self._first_seconds = state["first_seconds"]
        self._last_duration_seconds = state["last_duration_seconds"]
        self._video.restore(state["video"])
        for name, length in state["tables"].items():
            self._tables[name].truncate(length)

    def close(self) -> None:
        """Close the files that are open, whatever happened."""
        try:
            self._video.end_segment()
        finally:
            for table in self._tables.values():
                table.close()

    def publish(self) -> None:
        """Make the video and the tables appear in the output folder; what ``checkpoint`` holds stays there.

        Does nothing where nothing was written since the last call: joining a long video takes a while.

        Raises:
            OutputError: There is no room, or the folder cannot be written.
        """
        if not self._begun or self._published:
            return
        self.close()
        lines = ""
        if segments := segment_files(self._video.folder):
            join_segments(segments, self.folder / self.video_name, self._last_duration_seconds)
            lines += listed(self.folder, self.video_name)
        for name in (TRACKS, OBJECTS):
            if self._tables[name].path.is_file():
                _copy_whole(self._tables[name].path, self.folder / name)
                lines += listed(self.folder, name)
        masks = self._tables[FILE_LIST].path
        with whole_file(self.folder / FILE_LIST) as partial, partial.open("w", encoding="utf-8") as target:
            target.write(lines)
            if masks.is_file():
                with masks.open(encoding="utf-8") as source:
                    shutil.copyfileobj(source, target)
        self._published = True

    def discard_checkpoint(self) -> None:
        """Remove ``checkpoint``, once the run is finished."""
        shutil.rmtree(self._work, ignore_errors=True)

    def unfinished(self) -> Path:
        """Where the video lies while the run is unfinished."""
        return self._video.folder

    def paths(self) -> list[Path]:
        """What was written, folders for the files of every frame."""
        names = (self.video_name, "masks", "parts", TRACKS, OBJECTS)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {"frames_written": self.frames_written}

    def begin(self) -> None:
        """Take over the folder, once: call it when the first frame is there, as an earlier run's files go now."""
        if self._begun:
            return
        take_over(self.folder)
        self._work.mkdir(exist_ok=True)
        self._begun = True

    def has_begun(self) -> bool:
        """Whether the folder is taken over."""
        return self._begun

    def go_on(self) -> None:
        """Take over the folder of a run that is resumed, with what is in it."""
        self._begun = self._resumed = True
        clear_partial_files(self.folder)

    def begin_again(self) -> None:
        """Take over the folder of a run that is resumed from before its first frame was written."""
        self.go_on()
        self._video.clear()
        for table in self._tables.values():
            table.truncate(0)

    def _write_masks(self, packet: Packet) -> None:
        name = self.info.frame_names[packet.index] if self.info.frame_names else f"{packet.index:05d}"
        if self.config.masks and packet.labels is not None:
            self._write_png("masks", name, packet.labels.index_mask)
        if self.config.parts and packet.parts is not None:
            self._write_png("parts", name, packet.parts.index_mask)

    def _write_png(self, kind: str, name: str, mask: npt.NDArray[np.uint8]) -> None:
        path = path_inside(self.folder, kind, f"{name}.png")
        if path.exists() and not self._resumed:
            raise OutputError(f"{path}: exists already and is not a file of this run; it is left as it is")
        content = encode_indexed_png(mask)
        self._tables[FILE_LIST].write(f"{hashlib.sha256(content).hexdigest()}  {kind}/{name}.png\n")
        write_bytes_whole(path, content)
        self._not_synced.append(path)

    def _sync(self) -> None:
        """Wait until the files of the frames so far are on the disk."""
        for path in self._not_synced:
            sync_to_disk(path)
        for folder in {path.parent for path in self._not_synced}:
            sync_to_disk(folder)
        self._not_synced.clear()
        if segments := segment_files(self._video.folder):
            sync_to_disk(segments[-1])


def listed(folder: Path, name: str) -> str:
    """A file's line in the list of files."""
    return f"{sha256_of(folder / name)}  {name}\n"


def _copy_whole(source: Path, target: Path) -> None:
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
