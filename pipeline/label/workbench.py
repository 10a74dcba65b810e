"""What the page works on: frames of one video, masks from prompts, saved masks, and a run from them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.colors import OBJECT_COLORS
from pipeline.core.errors import InputError, LiftstreamError, RunInterrupted
from pipeline.core.files import list_images, path_inside
from pipeline.core.records import Frame, Packet
from pipeline.flow import FlowConfig, run
from pipeline.formats.image_folder import load_image
from pipeline.formats.object_names import write_names
from pipeline.formats.palette import write_indexed_png
from pipeline.prompts import FrameSegmenter, describers
from pipeline.prompts.features import FrameDescription
from pipeline.prompts.prompt import Prompt
from pipeline.prompts.segmentation import IndexMask
from stages.decode import Decoder, probe
from stages.extract import Extractor
from stages.write.folder import REPORT

_KEPT_FRAMES = 32
_KEPT_SEGMENTERS = 8
_FRAMES_AHEAD = 2
"""How many frames after the one on the page are prepared while nothing else is computed."""
_JPEG_QUALITY = 90


@dataclass(slots=True)
class RunProgress:
    """How far "Run from here" is.

    Attributes:
        running: Whether it is going on.
        frames: Frames done.
        total: Frames to do, None if unknown.
        error: What went wrong.
        picture: JPEG of the last annotated frame.
        video: The result, once it is there.
        stopping: Whether it was told to stop; it then ends after the frame in work.
        stopped: Whether it ended before the last frame because of that.
    """

    running: bool = False
    frames: int = 0
    total: int | None = None
    error: str | None = None
    picture: bytes | None = field(default=None, repr=False)
    video: Path | None = None
    stopping: bool = False
    stopped: bool = False


class Workbench:
    """One video on the page. Its methods may be called from several threads.

    Args:
        source: A video file or a folder of images.
        masks_folder: Where masks are saved.
        run_folder: Where "Run from here" writes.
        config: Of the run.

    Raises:
        InputError: The video or the weights cannot be read.
    """

    def __init__(self, source: Path, masks_folder: Path, run_folder: Path, config: FlowConfig) -> None:
        self.info = probe(source, config.decode)
        self.num_frames = self.info.num_frames or 1
        self.masks_folder = masks_folder
        self.progress = RunProgress()
        self._run_folder = run_folder
        self._config = config
        self._extractor = Extractor(config.extract)
        self._describe_whole, self._describe_part = describers(self._extractor)
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._segmenters: dict[int, FrameSegmenter] = {}
        # Masks are answered while features of another frame or a window are computed, or a run goes on.
        self._decoding, self._extracting, self._answering, self._refining = (threading.Lock() for _ in range(4))
        self._shown: int | None = None
        self._ahead: threading.Thread | None = None

    def frame(self, index: int) -> Frame:
        """A frame by its index in the video.

        Raises:
            InputError: There is no such frame.
        """
        with self._decoding:
            if index not in self._frames:
                self._frames[index] = self._decode(index)
                if len(self._frames) > _KEPT_FRAMES:
                    self._frames.popitem(last=False)
            self._frames.move_to_end(index)
            return self._frames[index]

    def picture(self, index: int) -> bytes:
        """A frame as JPEG."""
        return _jpeg(self.frame(index).image)

    def prepare(self, index: int) -> None:
        """Compute what clicks on a frame are answered from; the next frames follow in the background."""
        self._shown = index
        self._segmenter(index)
        if self._ahead is None or not self._ahead.is_alive():
            self._ahead = threading.Thread(target=self._prepare_ahead, daemon=True)
            self._ahead.start()

    def _prepare_ahead(self) -> None:
        """Prepare the frames after the one that is shown, as long as it is the same or moves on."""
        done: set[int] = set()
        while (index := self._next_to_prepare(done)) is not None:
            done.add(index)
            try:
                self._segmenter(index)
            except LiftstreamError:
                return  # whoever goes to that frame is told why

    def _next_to_prepare(self, done: set[int]) -> int | None:
        if self._shown is None or self.progress.running:
            return None
        ahead = range(self._shown + 1, min(self._shown + 1 + _FRAMES_AHEAD, self.num_frames))
        return next((index for index in ahead if index not in done and index not in self._segmenters), None)

    def first_mask(self, index: int, prompts: Sequence[Prompt]) -> IndexMask:
        """The index mask of a frame at once, from the features of the whole frame alone.

        Raises:
            InputError: As :meth:`mask`.
        """
        segmenter = self._segmenter(index)
        with self._answering:
            return segmenter.index_mask(prompts, fine=False)

    def mask(self, index: int, prompts: Sequence[Prompt]) -> IndexMask:
        """The index mask of a frame, for which windows of it are looked at more finely.

        Raises:
            InputError: Prompts from which no mask can be made, or no such frame.
        """
        segmenter = self._segmenter(index)
        with self._refining:
            return segmenter.index_mask(prompts)

    def save(self, prompts: Mapping[int, Sequence[Prompt]], names: Mapping[int, str] | None = None) -> list[Path]:
        """Write the masks of frames into the masks folder, named as ``--masks`` reads them.

        Names of the objects in them go to ``names.json`` beside them, for ``export --names``.

        Raises:
            InputError: As :meth:`mask`, or the folder cannot be written.
        """
        masks = {index: self.mask(index, own) for index, own in sorted(prompts.items()) if own}
        if not masks:
            raise InputError("there is nothing to save yet: click an object first")
        self.masks_folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for index, mask in masks.items():
            name = self.info.frame_names[index] if self.info.frame_names else f"{index:05d}"
            paths.append(path_inside(self.masks_folder, f"{name}.png"))
            write_indexed_png(paths[-1], mask)
        present = {int(number) for mask in masks.values() for number in np.unique(mask)}
        if named := {number: name for number, name in (names or {}).items() if number in present}:
            paths.append(write_names(self.masks_folder, named))
        return paths

    def start_run(
        self, start: int, prompts: Mapping[int, Sequence[Prompt]], names: Mapping[int, str] | None = None
    ) -> None:
        """Run the flow from a frame on with the masks of that frame and later ones, in a thread.

        Raises:
            InputError: A run is going on, or there is no mask from that frame on.
        """
        masks = {index: self.mask(index, own) for index, own in prompts.items() if own and index >= start}
        if not masks:
            raise InputError("click an object on this frame or a later one first")
        if self.progress.running:
            raise InputError("a run is going on; wait for its end")
        seconds = max(0.0, self.frame(start).pts_seconds - 1e-4)
        decode = self._config.decode.model_copy(update={"start_seconds": seconds})
        config = self._config.model_copy(update={"decode": decode})
        total = Decoder(decode, self.info).expected_frames()
        self.progress = RunProgress(running=True, total=total)
        threading.Thread(target=self._run, args=(config, masks, names or {}, self.progress), daemon=True).start()

    def stop_run(self) -> None:
        """End the run that is going on, if there is one; the frames that are done are kept."""
        self.progress.stopping = True

    def result_file(self, name: str) -> Path:
        """A file of the finished run, for the report and what it links to.

        Raises:
            InputError: There is no such file in the run's folder.
        """
        path = path_inside(self._run_folder, *name.split("/"))
        if self.progress.running or self.progress.video is None or not path.is_file():
            raise InputError(f"there is no result {name}")
        return path

    def has_report(self) -> bool:
        """Whether the last run wrote a report."""
        return self.progress.video is not None and (self._run_folder / REPORT).is_file()

    def _run(
        self, config: FlowConfig, masks: Mapping[int, IndexMask], names: Mapping[int, str], progress: RunProgress
    ) -> None:
        def on_packet(packet: Packet) -> None:
            progress.frames += 1
            if packet.annotated is not None:
                progress.picture = _jpeg(packet.annotated)
            if progress.stopping:
                raise KeyboardInterrupt  # how a run is ended with its results kept

        try:
            with self._extracting:
                run(
                    self.info.path, self._run_folder, config, masks=masks, names=names, overwrite=True,
                    extractor=self._extractor, on_packet=on_packet,
                )  # fmt: skip
        except LiftstreamError as error:
            progress.error = str(error)
        except RunInterrupted:
            progress.stopped = True
        finally:
            video = self._run_folder / "annotated.mp4"
            progress.video = video if progress.error is None and video.is_file() else None
            progress.running = False

    def _segmenter(self, index: int) -> FrameSegmenter:
        if (known := self._segmenters.get(index)) is not None:
            return known
        frame = self.frame(index)
        with self._extracting:
            if (known := self._segmenters.get(index)) is not None:
                return known
            made = FrameSegmenter(self._describe_whole(frame.image), self._describe_window)
            self._segmenters[index] = made
            if len(self._segmenters) > _KEPT_SEGMENTERS:
                farthest = max(self._segmenters, key=lambda other: abs(other - (self._shown or index)))
                del self._segmenters[farthest]
            return made

    def _describe_window(self, image: npt.NDArray[np.uint8]) -> FrameDescription:
        with self._extracting:
            return self._describe_part(image)

    def _decode(self, index: int) -> Frame:
        rate = float(self.info.frame_rate)
        if not 0 <= index < self.num_frames:
            raise InputError(f"there is no frame {index}; frames are 0 to {self.num_frames - 1}")
        if self.info.path.is_dir():
            return Frame(load_image(list_images(self.info.path)[index]), index, index / rate)
        # A variable frame rate may put the frame before its nominal time: then from the start.
        for start in (max(0.0, (index - 1) / rate), 0.0):
            decode = self._config.decode.model_copy(
                update={"start_seconds": start, "end_seconds": None, "every": 1}
            )
            with closing(Decoder(decode, self.info)()) as frames:  # type: ignore[type-var]
                found = next((frame for frame in frames if frame.index >= index), None)
            if found is not None and found.index == index:
                return found
        raise InputError(f"frame {index} of {self.info.path.name} cannot be decoded")


def overlay(mask: IndexMask) -> bytes:
    """An index mask as a PNG with the objects' colors, transparent elsewhere."""
    rgb = OBJECT_COLORS[mask]
    border = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    alpha = np.where(mask > 0, np.where(border, 255, 115), 0).astype(np.uint8)
    encoded, data = cv2.imencode(".png", np.dstack([rgb[..., ::-1], alpha]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert encoded
    return data.tobytes()


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    encoded, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    assert encoded
    return data.tobytes()
