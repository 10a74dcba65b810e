"""A run as a Rerun recording: the annotated video, masks, parts, boxes and confidences on one time line.

Needs the package rerun-sdk (extra ``export``); the file opens in the Rerun viewer (https://rerun.io).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.colors import OBJECT_COLORS, PART_COLORS
from pipeline.core.errors import ConfigError
from pipeline.core.files import whole_file
from pipeline.formats.run_folder import VIDEO, RunFolder
from pipeline.report.strips import Clock, object_strips, track_strips


def write_rerun(run: RunFolder, output: Path) -> None:
    """Write the recording.

    Raises:
        ConfigError: rerun-sdk is not installed.
        OutputError: The file cannot be written.
    """
    try:
        import rerun
    except ImportError as error:
        raise ConfigError("--rrd needs the package rerun-sdk: pip install 'liftstream[export]'") from error
    objects, tracks = run.objects(), run.tracks()
    clock = Clock(run, run.frames({"objects": objects.frames, "tracks": tracks.frames}))
    stream = rerun.RecordingStream("liftstream", recording_id=run.folder.name)
    with whole_file(output) as partial:
        stream.save(str(partial))
        _log_video(rerun, stream, run)
        for kind, colors in (("masks", OBJECT_COLORS), ("parts", PART_COLORS)):
            table = [(number, "", tuple(int(c) for c in colors[number])) for number in range(1, 256)]
            path = f"video/{kind}"  # below the video, so that the viewer lays it over the frames
            stream.log(path, rerun.AnnotationContext(table), static=True)
            for frame, mask in run.read_masks(kind):
                stream.set_time("video", duration=clock.seconds(frame))
                stream.log(path, rerun.SegmentationImage(mask))
        _log_boxes(rerun, stream, run, clock)
        for strip in object_strips(objects, clock) or track_strips(tracks, clock):
            for seconds, confidence in zip(strip.seconds.tolist(), strip.confidence.tolist(), strict=True):
                stream.set_time("video", duration=seconds)
                stream.log(f"confidence/{strip.object_id}", rerun.Scalars(confidence))
        stream.flush()
        stream.disconnect()


def _log_video(rerun: Any, stream: Any, run: RunFolder) -> None:
    path = run.file(VIDEO)
    if path is None:
        return
    asset = rerun.AssetVideo(path=path)
    stream.log("video", asset, static=True)
    times = np.asarray(asset.read_frame_timestamps_nanos())
    stream.send_columns(
        "video",
        indexes=[rerun.TimeColumn("video", duration=1e-9 * times)],
        columns=rerun.VideoFrameReference.columns_nanos(times),
    )


def _log_boxes(rerun: Any, stream: Any, run: RunFolder, clock: Clock) -> None:
    tracks = run.tracks()
    for frame, rows in enumerate(tracks.by_frame(tracks.num_frames)):
        if not len(rows):
            continue
        stream.set_time("video", duration=clock.seconds(frame))
        boxes = rerun.Boxes2D(
            array=tracks.xyxy[rows],
            array_format=rerun.Box2DFormat.XYXY,
            class_ids=((tracks.ids[rows] - 1) % 255 + 1).astype(np.uint16),
            labels=[f"#{number}" for number in tracks.ids[rows].tolist()],
        )
        stream.log("video/tracks", boxes)
