"""Write for streams: the results in segments that are whole when they appear, and the oldest of them removed.

::

    OUT/segments/000012/            one rename makes it appear, one removal takes it away
        annotated.mp4 masks/ parts/ tracks.txt objects.csv files.sha256
                                    the frames of the segment, as a run of its own would write them
        segment.json                its first and last frame, its times, when it was begun and finished

At the end of the run the segments that are still there become the usual folder of a run: the videos are joined
without encoding again, the tables appended to each other, masks and parts moved. A segment that another program
has moved away by then is left out.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.errors import OutputError
from pipeline.core.files import path_inside, whole_file, write_json_whole
from pipeline.core.records import Packet, VideoInfo
from stages.write.config import WriteConfig
from stages.write.folder import CHECKPOINT, FILE_LIST, RECORD, SEGMENT, SEGMENTS, take_over
from stages.write.stage import OBJECTS, TRACKS, Writer, listed
from stages.write.tables import OBJECT_COLUMNS, GrowingText
from stages.write.video import TIME_BASE, join_videos

_HEADERS = {TRACKS: "", OBJECTS: ",".join(OBJECT_COLUMNS) + "\n"}


@dataclass(slots=True)
class Segment:
    """A segment.

    Attributes:
        number: Segments count from 0.
        first_frame: Index of its first frame.
        last_frame: Index of its last frame.
        frames: How many it has.
        start_seconds: Presentation time of its first frame.
        end_seconds: Presentation time of its last frame, with its duration.
        begun_at: UTC, ISO 8601.
        finished_at: The same; empty while it is written.
    """

    number: int
    first_frame: int
    last_frame: int
    frames: int
    start_seconds: float
    end_seconds: float
    begun_at: str
    finished_at: str = ""

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.number:06d}"


class SegmentWriter:
    """Writes every packet that passes and hands it on, as :class:`~stages.write.stage.Writer` does.

    Invariant: what is in ``segments`` is whole; with ``keep_last_seconds`` it covers no more than these and one
    segment. Nothing is touched before the first packet. Used for one run.

    Args:
        config: ``segment_seconds`` must be set.
        folder: The output folder.
        info: Facts about the stream.

    Attributes:
        frames_written: Packets written so far, those of removed segments included.
        current_index: Index of the frame being written.
    """

    def __init__(self, config: WriteConfig, folder: Path, info: VideoInfo) -> None:
        self.config = config
        self.folder = folder
        self.info = info
        self.frames_written = 0
        self.current_index: int | None = None
        self.warnings: list[str] = []
        self._writer: Writer | None = None
        self._open: Segment | None = None
        self._kept: deque[Segment] = deque()
        self._removed_segments = self._removed_frames = 0
        self._begun = self._published = False

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """The same packets, after their files are written."""
        try:
            for packet in packets:
                yield self.step(packet)
        finally:
            self._close_writer()
        self.publish()

    def step(self, packet: Packet) -> Packet:
        """Write one packet's files; ends the segment before it once that is long enough."""
        assert self.config.segment_seconds is not None
        self.current_index = packet.index
        self._published = False
        self.begin()
        seconds = packet.frame.pts_seconds
        if self._open is not None and seconds - self._open.start_seconds >= self.config.segment_seconds:
            self.end_segment()
        if self._open is None or self._writer is None:
            self._open = Segment(
                self._removed_segments + len(self._kept), packet.index, packet.index, 0, seconds, seconds, _now()
            )
            self._writer = Writer(self.config, self.folder / CHECKPOINT / self._open.name, self.info)
        self._writer.step(packet)
        self._open.last_frame, self._open.frames = packet.index, self._open.frames + 1
        self._open.end_seconds = seconds + (packet.frame.duration_seconds or float(1 / self.info.frame_rate))
        self.frames_written += 1
        return packet

    def end_segment(self) -> None:
        """Make the segment that is being written appear, and remove those that are too old now."""
        segment, writer = self._open, self._writer
        if segment is None or writer is None:
            return
        writer.publish()
        writer.discard_checkpoint()
        segment.finished_at = _now()
        (writer.folder / RECORD).unlink(missing_ok=True)
        write_json_whole(writer.folder / SEGMENT, asdict(segment))
        target = path_inside(self.folder, SEGMENTS, segment.name)
        try:
            target.parent.mkdir(exist_ok=True)
            os.replace(writer.folder, target)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
        self._open = self._writer = None
        self._kept.append(segment)
        self._remove_old(segment.end_seconds)

    def publish(self) -> None:
        """End the last segment and turn all that are kept into the folder of a run.

        Raises:
            OutputError: There is no room, or the folder cannot be written; the segments stay then.
        """
        if not self._begun or self._published:
            return
        self.end_segment()
        folders = [path for segment in self._kept if (path := self._path(segment)).is_dir()]
        # Named in the checkpoint's list before they appear, so that --overwrite knows them after a kill.
        files = GrowingText(self.folder / CHECKPOINT / FILE_LIST)
        files.write(self._join(folders))
        for folder in folders:
            for kind in ("masks", "parts"):
                if (folder / kind).is_dir():
                    self._move(folder, kind, files)
            shutil.rmtree(folder)
        files.close()
        if files.path.is_file():
            os.replace(files.path, self.folder / FILE_LIST)
        segments = self.folder / SEGMENTS
        if segments.is_dir() and not any(segments.iterdir()):
            segments.rmdir()
        self._published = True

    def begin(self) -> None:
        """Take over the folder, once, when the first frame is there."""
        if self._begun:
            return
        take_over(self.folder)
        self._begun = True

    def has_begun(self) -> bool:
        """Whether the folder is taken over."""
        return self._begun

    def discard_checkpoint(self) -> None:
        """Remove the folder of unfinished files."""
        shutil.rmtree(self.folder / CHECKPOINT, ignore_errors=True)

    def unfinished(self) -> Path:
        """Where the segments lie."""
        return self.folder / SEGMENTS

    def paths(self) -> list[Path]:
        """What was written, folders for the files of every frame."""
        names = ("annotated.mp4", "masks", "parts", TRACKS, OBJECTS, SEGMENTS)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {
            "frames_written": self.frames_written,
            "segments": self._removed_segments + len(self._kept),
            "segments_removed": self._removed_segments,
            "frames_removed": self._removed_frames,
        }

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _path(self, segment: Segment) -> Path:
        return path_inside(self.folder, SEGMENTS, segment.name)

    def _remove_old(self, now_seconds: float) -> None:
        """Remove the segments that end before the time that is kept."""
        keep = self.config.keep_last_seconds
        while keep is not None and self._kept and self._kept[0].end_seconds <= now_seconds - keep:
            segment = self._kept.popleft()
            shutil.rmtree(self._path(segment), ignore_errors=True)
            self._removed_segments += 1
            self._removed_frames += segment.frames

    def _join(self, folders: list[Path]) -> str:
        """Write the video and the tables of all segments; their lines for the list of files."""
        by_name = {segment.name: segment for segment in self._kept}
        start = by_name[folders[0].name].start_seconds if folders else 0.0
        videos = [
            (folder / "annotated.mp4", round((by_name[folder.name].start_seconds - start) / TIME_BASE))
            for folder in folders
            if (folder / "annotated.mp4").is_file()
        ]
        lines = ""
        if videos:
            join_videos(videos, self.folder / "annotated.mp4")
            lines += listed(self.folder, "annotated.mp4")
        for name, header in _HEADERS.items():
            tables = [folder / name for folder in folders if (folder / name).is_file()]
            if not tables:
                continue
            with whole_file(self.folder / name) as partial, partial.open("wb") as target:
                target.write(header.encode())
                for table in tables:
                    with table.open("rb") as source:
                        source.seek(len(header))
                        shutil.copyfileobj(source, target)
            lines += listed(self.folder, name)
        return lines

    def _move(self, folder: Path, kind: str, files: GrowingText) -> None:
        """Move a segment's masks or parts."""
        (self.folder / kind).mkdir(exist_ok=True)
        lines = (folder / FILE_LIST).read_text(encoding="utf-8").splitlines(keepends=True)
        own = [line for line in lines if f"  {kind}/" in line]
        files.write("".join(own))
        for line in own:
            name = line.rstrip("\n").rpartition("/")[2]
            os.replace(path_inside(folder, kind, name), path_inside(self.folder, kind, name))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
