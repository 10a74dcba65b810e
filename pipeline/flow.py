"""The whole flow in one place: how the stages are chained, and the two ways to use it, ``stream`` and ``run``.

decode -> extract -> cosegment -> propagate -> track -> annotate -> write
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.assembly import (
    STAGES,
    DetectionSource,
    FlowConfig,
    Masks,
    PacketStage,
    Stages,
    check_live,
    load_flow_config,
    make_stages,
)
from pipeline.core.checkpoint import Checkpointer
from pipeline.core.errors import (
    ConfigError,
    DamagedError,
    DetectorError,
    InputError,
    MediaError,
    StageError,
    TruncatedError,
)
from pipeline.core.records import Frame, Packet, VideoInfo
from pipeline.core.runner import Mark, Pipeline
from pipeline.core.stage_stream import for_caller
from pipeline.formats.detections import read_detections
from pipeline.formats.masks import load_masks
from pipeline.formats.object_names import check_names, names_beside
from pipeline.prompts import Prompt, masks_from_prompts, masks_on_frame
from pipeline.run_record import RunResult
from pipeline.session import Session
from stages.annotate import AnnotateConfig
from stages.decode import Decoder, StreamDecoder, probe, stream_address
from stages.extract import Extractor
from stages.write.folder import check_output

__all__ = [
    "STAGES",
    "DetectionSource",
    "FlowConfig",
    "Masks",
    "PacketStage",
    "RunResult",
    "Stages",
    "chain",
    "load_flow_config",
    "make_stages",
    "run",
    "stream",
]


def chain(pipe: Pipeline, stages: Stages, checkpointer: Checkpointer | None = None) -> Iterator[Packet]:
    """The flow: every stage that is on, each in its own thread behind its own queue."""
    packets = decode_and_extract(pipe, stages, checkpointer)
    last_reader = stages.last_feature_reader()
    if last_reader == "extract":
        packets = _without_features(packets)
    following = [(name, stage) for name, stage in stages.present().items() if name not in ("decode", "extract")]
    place = len(following) - (stages.write is not None)
    following[place:place] = stages.further
    for name, stage in following:
        made = stages.on_device(name, stage, packets, pipe.waited)
        packets = pipe.buffer(_without_features(made) if name == last_reader else made, name=name, stage=stage)
    return for_caller(packets, stages.streams)


def decode_and_extract(pipe: Pipeline, stages: Stages, checkpointer: Checkpointer | None) -> Iterator[Packet]:
    """The first two stages, with the marks of checkpoints between the frames."""
    if isinstance(stages.decode, StreamDecoder):
        stages.decode.stop_when(lambda: pipe.stopped)
        stages.decode.report_waits_to(pipe.waited)
    frames = stages.decode()
    marked: Iterator[Frame | Mark] = frames
    if checkpointer is not None and isinstance(stages.decode, Decoder):
        marked = checkpointer.marked(frames, "decode", stages.decode)
    batch = stages.batch_size
    buffered: Iterator[Frame] = pipe.buffer(marked, name="decode", stage=stages.decode, at_least=batch)
    if stages.extract is None:
        return (Packet(frame) for frame in buffered)
    made = stages.on_device("extract", stages.extract, buffered, pipe.waited)
    return pipe.buffer(made, name="extract", stage=stages.extract, at_least=batch)


def stream(
    source: str | Path,
    config: FlowConfig | None = None,
    *,
    masks: Masks | None = None,
    prompts: Sequence[Prompt] = (),
    detections: DetectionSource | None = None,
    keep_features: bool = False,
    extractor: Extractor | None = None,
) -> Iterator[Packet]:
    """Packets of a video as they come out of the flow; needs no files and writes none.

    Closing the iterator, or leaving the loop over it, ends every thread.

    Args:
        source: A video file, a folder of images, or a stream (see docs/live.md).
        config: The defaults if None. ``annotate`` is off unless a config is given.
        masks: Annotations by frame index, uint8 ``(H, W)`` of object ids.
        prompts: Points and boxes that masks are made from, beside ``masks``; see docs/prompts.md.
        detections: Boxes by frame index, or a callable that finds them in a frame.
        keep_features: Keep the features in the packets.
        extractor: A loaded one, to share its backbone between videos.

    Raises:
        InputError: The input, the config or the weights are wrong; raised before the first packet.
        StageError: A stage failed.
        DetectorError: The detector failed.
        TruncatedError: The input broke off; raised after the last good packet.
        DamagedError: Frames in the middle could not be decoded; raised after the last packet.
    """
    if config is None:
        config = FlowConfig(annotate=AnnotateConfig(enabled=False))
    with _opened(source, config) as live:
        path = Path(source)
        if prompts:
            extractor = extractor or Extractor(config.extract)
            masks = _with_prompts(masks, prompts, live or path, config, extractor)
        stages = make_stages(
            path, config, stream=live, masks=masks, detections=detections, keep_features=keep_features,
            extractor=extractor,
        )  # fmt: skip
        try:
            survey(stages, config)
            with Pipeline(config.queue_depth) as pipe:
                for packet in chain(pipe, stages):
                    yield packet
                    _finish(stages, packet)
        except StageError as error:
            cause = error.__cause__
            raise (cause if isinstance(cause, InputError | DetectorError) else error) from cause
    damage = stages.decode.damage
    if damage is not None:
        raise (TruncatedError if damage.ends_early else DamagedError)(stages.decode.broken)


def survey(
    stages: Stages,
    config: FlowConfig,
    checkpointer: Checkpointer | None = None,
    on_packet: Callable[[Packet], object] = lambda packet: None,
) -> None:
    """The first of two passes over the video, where co-segmentation asks for two; nothing otherwise.

    Args:
        stages: Decode, extract and cosegment are run; decode and extract are reset for the second pass.
        config: The run's config.
        checkpointer: Takes snapshots of these stages on the way.
        on_packet: Called with every packet.
    """
    cosegment = stages.cosegment
    if cosegment is None or config.cosegment.mode != "two_pass" or cosegment.surveyed:
        return
    with Pipeline(config.queue_depth) as pipe:
        packets = decode_and_extract(pipe, stages, checkpointer)
        surveyed = stages.on_device("cosegment", partial(_surveyed, stages), packets, pipe.waited)
        for packet in pipe.buffer(surveyed, name="cosegment", stage=cosegment):
            on_packet(packet)
    cosegment.finish_survey()
    if checkpointer is not None:
        checkpointer.restart()
    assert isinstance(stages.decode, Decoder)
    stages.decode.reset()
    if stages.extract is not None:
        stages.extract.reset()


def _surveyed(stages: Stages, packets: Iterator[Packet]) -> Iterator[Packet]:
    for packet in packets:
        if stages.write is not None:
            stages.write.begin()
        if stages.cosegment is not None:
            stages.cosegment.survey(packet)
        yield replace(packet, features=None)


def run(
    source: str | Path,
    output: str | Path,
    config: FlowConfig | None = None,
    *,
    masks: Masks | Path | None = None,
    prompts: Sequence[Prompt] = (),
    names: Mapping[int, str] | None = None,
    detections: DetectionSource | Path | None = None,
    extractor: Extractor | None = None,
    overwrite: bool = False,
    resume: bool = False,
    further: Sequence[tuple[str, PacketStage]] = (),
    on_packet: Callable[[Packet], object] = lambda packet: None,
    on_start: Callable[[Stages], object] = lambda stages: None,
    on_notice: Callable[[str], object] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Run a video through the flow into an output folder.

    Args:
        source: A video file, a folder of images, or a stream (see docs/live.md).
        output: The folder that gets the results; see :mod:`stages.write.stage` for what is in it.
        config: The defaults if None.
        masks: Annotations by frame index, or a file or folder of them (see :mod:`pipeline.formats.masks`).
        prompts: Points and boxes that masks are made from, beside ``masks``; see docs/prompts.md.
        names: Names of objects by id, for the report and exports; beside those in ``names.json`` of a folder of
            masks, and before them.
        detections: Boxes by frame index, a detector, or a file (see :mod:`pipeline.formats.detections`).
        extractor: A loaded one, to share its backbone between videos.
        overwrite: Replace the files of an earlier run of ours.
        resume: Go on after the last checkpoint of the same run; start fresh where there is none.
        further: Stages of the caller's, by name, between annotate and write.
        on_packet: Called with every packet that has passed all stages.
        on_start: Called with the stages before the first frame.
        on_notice: Called with a line for the user when a stream stalls, breaks or comes back.
        stop: Of a stream: whether to stop reading it and finish with what was read; asked ten times a second.

    Returns:
        The result; its status is ``damaged`` where parts of the input could not be decoded.

    Raises:
        InputError: Bad input, config or labels. What was written before stays.
        StageError: A stage failed; what was written is kept and ``run.json`` says what happened.
        WriteError: The disk is full, for example; as for StageError.
        KeyboardInterrupt: Ctrl-C; as for StageError.
    """
    path, output, config = Path(source), Path(output), config or FlowConfig()
    object_names = {**names_beside(masks), **check_names(names or {})}
    with _opened(source, config, output, on_notice, overwrite=overwrite, resume=resume) as live:
        if live is not None:
            live.stop_when(stop)
        info = live.info if live is not None else probe(path, config.decode)
        if live is None:
            check_output(output, path, overwrite=overwrite, resume=resume)
        given = _read_masks(masks, info, config)
        if prompts:
            extractor = extractor or Extractor(config.extract)
            given = _with_prompts(given, prompts, live or path, config, extractor)
        stages = make_stages(
            path, config, info=info, stream=live, output=output, extractor=extractor, further=further,
            masks=given, detections=_read_detections(detections, info),
        )  # fmt: skip
        labels = {"masks": masks, "detections": detections, "prompts": [repr(prompt) for prompt in prompts]}
        session = Session(info.path, output, config, stages, labels=labels, names=object_names)
        if resume and (finished := session.resume()) is not None:
            return finished
        on_start(stages)
        with session:
            survey(stages, config, session.checkpointer)
            with session.pipe:
                for packet in chain(session.pipe, stages, session.checkpointer):
                    on_packet(packet)
                    _finish(stages, packet)
        return session.result


@contextmanager
def _opened(
    source: str | Path,
    config: FlowConfig,
    output: Path | None = None,
    on_notice: Callable[[str], object] = lambda line: None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[StreamDecoder | None]:
    """The open stream that ``source`` names, closed at the end; None for files and folders."""
    address = stream_address(source, live=config.decode.live.enabled)
    if address is None:
        if config.decode.live.enabled:
            raise MediaError(f"{source}: no such file, and not a stream; see docs/live.md for what is one")
        yield None
        return
    if output is not None:
        if resume:
            raise InputError(f"{address.shown}: a stream cannot be read again, so there is nothing to resume")
        check_output(output, Path(source) if address.kind == "file" else None, overwrite=overwrite)
    check_live(config)
    with closing(StreamDecoder(config.decode, address, on_notice)) as decoder:
        yield decoder


def _finish(stages: Stages, packet: Packet) -> None:
    """Make room for another frame of a stream."""
    if isinstance(stages.decode, StreamDecoder):
        stages.decode.finished(packet.index)


def _read_masks(masks: Masks | Path | None, info: VideoInfo, config: FlowConfig) -> Masks | None:
    if not isinstance(masks, Path):
        return masks
    first = 0 if info.address else Decoder(config.decode, info).first_index()
    return load_masks(masks, info, first_index=first)


def _with_prompts(
    masks: Masks | None,
    prompts: Sequence[Prompt],
    source: Path | StreamDecoder,
    config: FlowConfig,
    extractor: Extractor,
) -> Masks:
    """The given masks and those of the prompts together."""
    if not config.propagate.enabled:
        raise ConfigError("propagate.enabled is false, but points and boxes become masks that are propagated")
    if isinstance(source, Path):
        found = masks_from_prompts(source, config.decode, prompts, extractor)
    else:
        found = masks_on_frame(source.first_frame(), prompts, extractor)
    given: Mapping[int, Any] = masks or {}
    if both := [index for index in found if index in given]:
        raise InputError(f"frame {both[0]} has a given mask and prompts; give one of them")
    return ChainMap(found, given)  # type: ignore[arg-type]


def _read_detections(detections: DetectionSource | Path | None, info: VideoInfo) -> DetectionSource | None:
    return read_detections(detections, info) if isinstance(detections, Path) else detections


def _without_features(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Drop the features after their last reader, so that memory does not grow with what waits downstream."""
    with closing(packets):  # type: ignore[type-var]
        for packet in packets:
            yield replace(packet, features=None)
