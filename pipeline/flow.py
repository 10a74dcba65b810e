"""The whole flow in one place: which stages there are, how they are chained, and what a run leaves behind.

    decode -> extract -> cosegment -> propagate -> track -> annotate -> write

This is the one module of ``pipeline``, beside the commands, that knows the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.core.config import StrictModel, load_config, load_yaml, parse_overrides
from pipeline.core.errors import ConfigError
from pipeline.core.records import Detections, Frame, Packet, VideoInfo
from pipeline.core.runner import Pipeline
from stages.annotate import AnnotateConfig, Annotator
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.decode import DecodeConfig, Decoder, probe
from stages.extract import ExtractConfig, Extractor
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig
from stages.track import TrackConfig, Tracker
from stages.write import WriteConfig, Writer

Masks = Mapping[int, npt.NDArray[np.uint8]]
DetectionSource = Mapping[int, Detections] | Callable[[Frame], Detections]
_FEATURE_READERS = ("cosegment", "propagate", "track")


class FlowConfig(StrictModel):
    """The config of a run: one section a stage, and the depth of the queues between them."""

    queue_depth: int = Field(4, ge=1)
    decode: DecodeConfig = DecodeConfig()
    extract: ExtractConfig = ExtractConfig()
    cosegment: CosegmentConfig = CosegmentConfig()
    propagate: PropagateConfig = PropagateConfig()
    track: TrackConfig = TrackConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    write: WriteConfig = WriteConfig()


def load_flow_config(path: Path | None = None, overrides: Iterable[str] = ()) -> FlowConfig:
    """The config of a file with ``key=value`` overrides laid over it; the defaults without a file.

    Raises:
        ConfigError: Unknown keys (the nearest is suggested), wrong types, impossible values.
    """
    layers = [load_yaml(path)] if path else []
    origin = str(path) if path else "config"
    return load_config(FlowConfig, *layers, parse_overrides(overrides), origin=origin)


@dataclass(slots=True)
class Stages:
    """The stages of one run, None where switched off. Made by :func:`make_stages`, used once.

    Attributes:
        keep_features: Leave the features in the packets for the caller, at the price of memory.
    """

    info: VideoInfo
    decode: Decoder
    extract: Extractor | None = None
    cosegment: Cosegmenter | None = None
    propagate: Propagator | None = None
    track: Tracker | None = None
    annotate: Annotator | None = None
    write: Writer | None = None
    keep_features: bool = False
    extra_warnings: list[str] = field(default_factory=list)

    def present(self) -> dict[str, Any]:
        """The stages that are on, by name, in the order of the flow."""
        names = ("decode", "extract", *_FEATURE_READERS, "annotate", "write")
        return {name: stage for name in names if (stage := getattr(self, name)) is not None}

    def reports(self) -> dict[str, Any]:
        """What each stage has to say, for ``run.json``."""
        return {name: stage.report() for name, stage in self.present().items()}

    def warnings(self) -> list[str]:
        """Every stage's warnings, one line each."""
        found = [f"{name}: {line}" for name, stage in self.present().items() for line in stage.warnings]
        return [*self.extra_warnings, *found]


def make_stages(
    source: Path,
    config: FlowConfig,
    *,
    masks: Masks | None = None,
    detections: DetectionSource | None = None,
    output: Path | None = None,
    info: VideoInfo | None = None,
    keep_features: bool = False,
    extractor: Extractor | None = None,
) -> Stages:
    """Load models and check everything that can be checked before the first frame.

    Args:
        source: A video file or a folder of images.
        config: The run's config.
        masks: Annotations by frame index, uint8 ``(H, W)``.
        detections: Boxes by frame index, or a callable that finds them in a frame.
        output: Folder for the files; nothing is written without one.
        info: The input's facts, where the caller has probed it already.
        keep_features: Keep ``Packet.features`` to the end of the flow.
        extractor: One made earlier, so that several inputs share a loaded backbone.

    Raises:
        InputError: Anything wrong with the input, the config or the weights.
    """
    info = info or probe(source, config.decode)
    reads_features = keep_features or any(getattr(config, name).enabled for name in _FEATURE_READERS)
    if reads_features and not config.extract.enabled:
        needs = [name for name in _FEATURE_READERS if getattr(config, name).enabled]
        raise ConfigError(
            f"extract.enabled is false, but {', '.join(needs) or 'the caller'} needs features; switch that off too"
        )
    return Stages(
        info=info,
        decode=Decoder(config.decode, info),
        extract=(extractor or Extractor(config.extract)) if reads_features else None,
        cosegment=Cosegmenter(config.cosegment) if config.cosegment.enabled else None,
        propagate=Propagator(config.propagate, masks=masks) if config.propagate.enabled else None,
        track=Tracker(config.track, detections=detections) if config.track.enabled else None,
        annotate=Annotator(config.annotate) if config.annotate.enabled else None,
        write=Writer(config.write, output, info) if config.write.enabled and output is not None else None,
        keep_features=keep_features,
    )


def chain(pipe: Pipeline, stages: Stages) -> Iterator[Packet]:
    """The flow: every stage that is on, each in its own thread behind its own queue."""
    last_reader = _last_feature_reader(stages)

    def run(name: str, stage: Callable[[Any], Iterator[Packet]], items: Iterable[Any]) -> Iterator[Packet]:
        packets = stage(items)
        if name == last_reader:
            packets = _without_features(packets)
        return pipe.buffer(packets, name=name)

    frames = pipe.buffer(stages.decode(), name="decode")
    if stages.extract is None:
        packets: Iterator[Packet] = (Packet(frame) for frame in frames)
    else:
        packets = run("extract", stages.extract, frames)
    if stages.cosegment is not None:
        packets = run("cosegment", stages.cosegment, packets)
    if stages.propagate is not None:
        packets = run("propagate", stages.propagate, packets)
    if stages.track is not None:
        packets = run("track", stages.track, packets)
    if stages.annotate is not None:
        packets = run("annotate", stages.annotate, packets)
    if stages.write is not None:
        packets = run("write", stages.write, packets)
    return packets


def stream(
    source: str | Path,
    config: FlowConfig | None = None,
    *,
    masks: Masks | None = None,
    detections: DetectionSource | None = None,
    keep_features: bool = False,
    extractor: Extractor | None = None,
) -> Iterator[Packet]:
    """Packets of a video as they come out of the flow; needs no files and writes none.

    Closing the iterator, or leaving the loop over it, ends every thread.

    Args:
        source: A video file or a folder of images.
        config: The defaults if None. ``annotate`` is off unless a config is given.
        masks: Annotations by frame index, uint8 ``(H, W)`` of object ids.
        detections: Boxes by frame index, or a callable that finds them in a frame.
        keep_features: Keep the features in the packets.
        extractor: A loaded one, to share its backbone between videos.

    Raises:
        InputError: The input, the config or the weights are wrong; raised before the first packet.
        StageError: A stage failed.
    """
    if config is None:
        config = FlowConfig(annotate=AnnotateConfig(enabled=False))
    stages = make_stages(
        Path(source), config, masks=masks, detections=detections, keep_features=keep_features, extractor=extractor
    )
    with Pipeline(config.queue_depth) as pipe:
        yield from chain(pipe, stages)


def _last_feature_reader(stages: Stages) -> str | None:
    if stages.keep_features or stages.extract is None:
        return None
    return [name for name in ("extract", *_FEATURE_READERS) if getattr(stages, name) is not None][-1]


def _without_features(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Drop the features behind their last reader, so that memory does not grow with what waits downstream."""
    with closing(packets):  # type: ignore[type-var]
        for packet in packets:
            yield replace(packet, features=None)
