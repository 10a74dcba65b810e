"""The worker: a video job in, an outcome out. It knows of no engine, so any scheduler can call it.

Exactly once: under the video's lock it looks whether the video is finished, runs it or goes on after its last
checkpoint, and the run's ``run.json`` commits it. Results do not depend on the worker, so even where there are no
locks the worst that two workers can do is the same work twice.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.assembly import FlowConfig
from pipeline.batch.inputs import job_config
from pipeline.batch.jobs import Outcome, Status, VideoJob, WorkerSettings
from pipeline.batch.records import (
    Busy,
    PutAside,
    finished_run,
    unfinished_is_other,
    video_lock,
    worker_name,
)
from pipeline.batch.storage import Place, fetch, is_url
from pipeline.core.errors import CheckpointError, InputError, LiftstreamError, OutputError
from pipeline.core.files import path_inside
from pipeline.core.records import Packet
from pipeline.core.threads import default_pools, set_thread_pools
from pipeline.flow import run
from pipeline.image_detector import ImageDetector, find_image_detector
from pipeline.run_record import RunResult, label_identity
from pipeline.session import config_identity
from stages.extract import Extractor
from stages.write.folder import is_finished

MAX_ERROR_CHARACTERS = 400
Progress = Callable[[int], object]


class Worker:
    """Does videos one after the other; the backbone and the detector stay loaded between them.

    Args:
        settings: The same for every video.

    Raises:
        ConfigError: The detector cannot be loaded.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.config = FlowConfig.model_validate(settings.config)
        self.place = Place(settings.output)
        self.name = worker_name()
        self.detector_identity = identify_detector(settings.detector)
        self.put_aside = PutAside(self.place, self.config, self.detector_identity)
        self._extractor: Extractor | None = None
        self._fetched: dict[str, str] = {}
        if settings.threads is not None:
            set_thread_pools(default_pools(settings.threads))
        self._detector = self._load_detector()

    def do(self, job: VideoJob, on_frames: Progress = lambda frames: None) -> Outcome:
        """Do one video.

        Args:
            job: What to do.
            on_frames: Called after every frame with the number of frames done in this attempt; may raise
                ``KeyboardInterrupt`` to stop the run.

        Returns:
            How it ended; errors of the video are outcomes and never raised.
        """
        started = time.perf_counter()
        self._fetched.clear()
        outcome = self._caught(job, on_frames)
        seconds = time.perf_counter() - started
        return replace(outcome, error=self._with_urls(outcome.error), seconds=seconds, worker=self.name)

    def _caught(self, job: VideoJob, on_frames: Progress) -> Outcome:
        try:
            return self._locked(job, on_frames)
        except Busy as busy:
            return Outcome(job.name, "busy", str(busy))
        except InputError as error:
            return Outcome(job.name, "put_aside", one_line(error))
        except LiftstreamError as error:
            self._forget_models()
            return Outcome(job.name, "failed", one_line(error))
        except KeyboardInterrupt as error:
            return Outcome(job.name, "interrupted", one_line(error))
        except Exception as error:  # noqa: BLE001  one video must not end the worker, whatever it does
            self._forget_models()
            return Outcome(job.name, "failed", one_line(error))

    def _forget_models(self) -> None:
        """Load them again for the next video: an error may have left them in any state."""
        self._extractor = self._detector = None

    def _load_detector(self) -> ImageDetector | None:
        name = self.settings.detector
        return None if name is None else find_image_detector(name).load()

    def _locked(self, job: VideoJob, on_frames: Progress) -> Outcome:
        warnings: list[str] = []
        with video_lock(self.place, job.name, warnings):
            skipped = outcome_of_finished(
                self.place, job, self.config, overwrite=self.settings.overwrite, detector=self.detector_identity
            )
            if skipped is not None:
                return skipped
            with tempfile.TemporaryDirectory(prefix="liftstream-input-") as folder:
                return self._run(job, Path(folder), on_frames)

    def _run(self, job: VideoJob, fetched: Path, on_frames: Progress) -> Outcome:
        source = self._fetch(job.source, fetched / "input")
        masks = None if job.masks is None else self._fetch(job.masks, fetched / "masks")
        detections = None if job.detections is None else self._fetch(job.detections, fetched / "detections")
        folder = self._work_folder(job)
        done = 0

        def count(packet: Packet) -> None:
            nonlocal done
            done += 1
            on_frames(done)

        result = self._run_into(folder, job, source, masks, detections, count)
        if self.place.path is None:
            self.place.put_folder(folder, job.name)
        self.put_aside.forget(job)
        status: Status = "damaged" if result.status == "damaged" else "done"
        new_frames = 0 if result.was_done else result.frames - result.resumed_at
        return Outcome(job.name, status, result.problem, result.frames, new_frames)

    def _fetch(self, text: str, folder: Path) -> Path:
        path = fetch(text, folder)
        if is_url(text):
            self._fetched[str(path)] = text
        return path

    def _with_urls(self, error: str | None) -> str | None:
        """An error that names what was asked for, and not its copy on this machine."""
        for path, url in self._fetched.items():
            error = None if error is None else error.replace(path, url)
        return error

    def _run_into(
        self,
        folder: Path,
        job: VideoJob,
        source: Path,
        masks: Path | None,
        detections: Path | None,
        on_packet: Callable[[Packet], None],
    ) -> RunResult:
        """Run, going on after the last checkpoint where that is one of this run.

        Raises:
            OutputError: An unfinished run of another config lies there and ``overwrite`` is off.
        """
        config = job_config(self.config, job)
        keys = unfinished_is_other(folder, config_identity(config))
        if keys and not self.settings.overwrite:
            raise OutputError(
                f"{folder}: the unfinished run there has another config ({', '.join(keys[:4])}); add --overwrite"
            )
        if self._extractor is None and config.extract.enabled:
            self._extractor = Extractor(config.extract)
        self._detector = self._detector or self._load_detector()
        once = partial(
            run, source, folder, config, masks=masks, detections=detections or self._detector,
            extractor=self._extractor, on_packet=on_packet,
        )  # fmt: skip
        if keys or (self.settings.overwrite and is_finished(folder)):
            return once(overwrite=True)
        try:
            return once(resume=True)
        except CheckpointError:
            # Of another device or version, or damaged. What is not committed counts for nothing.
            return once(overwrite=True)

    def _work_folder(self, job: VideoJob) -> Path:
        """Where the run writes: its folder in OUT, or a place on this machine for an OUT behind a URL."""
        if self.place.path is not None:
            return path_inside(self.place.path, job.name)
        digest = hashlib.sha256(self.place.root.encode()).hexdigest()[:12]
        default = Path(tempfile.gettempdir()) / f"liftstream-batch-{digest}"
        return path_inside(Path(self.settings.work) if self.settings.work else default, job.name)


def identify_detector(name: str | None) -> dict[str, Any] | None:
    """The identity of a detector as a run records it, found without loading its model; None without one.

    Raises:
        ConfigError: There is no such detector.
    """
    if name is None:
        return None
    return {key: label_identity(value) for key, value in find_image_detector(name).identity().items()}


def outcome_of_finished(
    place: Place,
    job: VideoJob,
    config: FlowConfig,
    *,
    overwrite: bool,
    detector: Mapping[str, Any] | None = None,
) -> Outcome | None:
    """The outcome of a video that OUT holds already; None where it is to be run. See :func:`finished_run`."""
    found = finished_run(place, job, config, detector)
    if found is None or (found.differences and overwrite):
        return None
    if found.differences:
        shown = "; ".join(found.differences[:4])
        error = f"made with another config or input: {shown}; add --overwrite to do it again"
        return Outcome(job.name, "put_aside", error, found.frames)
    problem = found.problem if found.status == "damaged" else None
    return Outcome(job.name, "skipped", problem, found.frames)


def one_line(error: BaseException) -> str:
    """An error as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, LiftstreamError | KeyboardInterrupt):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."
