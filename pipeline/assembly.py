"""The table of the stages, and what follows from it: the config of a run and the stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from pipeline.core.config import StrictModel, load_config, load_yaml, parse_overrides
from pipeline.core.device_stream import DeviceStreams, HostStreams, WaitListener
from pipeline.core.errors import ConfigError
from pipeline.core.locations import CONFIGS
from pipeline.core.records import Detections, Frame, Packet, VideoInfo
from pipeline.core.stage_stream import Item, StageClock, on_own_stream
from pipeline.core.threads import in_stage_thread
from stages.annotate import AnnotateConfig, Annotator
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.decode import DecodeConfig, Decoder, StreamDecoder, probe
from stages.extract import ExtractConfig, Extractor
from stages.propagate import PropagateConfig, Propagator
from stages.track import TrackConfig, Tracker
from stages.write import SegmentWriter, WriteConfig, Writer

Masks = Mapping[int, npt.NDArray[np.uint8]]
"""Annotations by frame index: uint8 ``(H, W)`` of object ids, 0 is background, 255 is void."""
DetectionSource = Mapping[int, Detections] | Callable[[Frame], Detections]
"""Boxes by frame index, or a detector that is called with every frame."""
PacketStage = Callable[[Iterable[Packet]], Iterator[Packet]]
"""A further stage that a caller puts into the flow."""


class StageEntry(NamedTuple):
    """A row of the table of stages."""

    name: str
    config: type[StrictModel]
    stage: type
    reads_features: bool = False


STAGES: tuple[StageEntry, ...] = (
    StageEntry("decode", DecodeConfig, Decoder),
    StageEntry("extract", ExtractConfig, Extractor),
    StageEntry("cosegment", CosegmentConfig, Cosegmenter, reads_features=True),
    StageEntry("propagate", PropagateConfig, Propagator, reads_features=True),
    StageEntry("track", TrackConfig, Tracker, reads_features=True),
    StageEntry("annotate", AnnotateConfig, Annotator),
    StageEntry("write", WriteConfig, Writer),
)
"""The stages in the order of the flow."""

FEATURE_READERS = tuple(entry.name for entry in STAGES if entry.reads_features)


class FlowConfig(StrictModel):
    """The config of a run: one section per stage, and the depth of the queues between them."""

    queue_depth: int = Field(4, ge=1)
    decode: DecodeConfig = DecodeConfig()
    extract: ExtractConfig = ExtractConfig()
    cosegment: CosegmentConfig = CosegmentConfig()
    propagate: PropagateConfig = PropagateConfig()
    track: TrackConfig = TrackConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    write: WriteConfig = WriteConfig()

    def only(self, *stages: str, **changes: Mapping[str, object]) -> FlowConfig:
        """The config with just the named stages on; extract stays on where one of them reads features.

        Args:
            stages: Names of stages; decode is always on.
            changes: Values to set in a section, for example ``decode={"every": 2}``.

        >>> config = FlowConfig().only("propagate", decode={"every": 2})
        >>> config.extract.enabled, config.track.enabled, config.decode.every
        (True, False, 2)
        """
        names = [entry.name for entry in STAGES]
        if unknown := [name for name in (*stages, *changes) if name not in names]:
            raise ConfigError(f"there is no stage '{unknown[0]}'; stages: {', '.join(names)}")
        values: dict[str, dict[str, object]] = {name: dict(changes.get(name, {})) for name in names}
        for name in names[1:]:
            needed = name == "extract" and any(reader in stages for reader in FEATURE_READERS)
            values[name]["enabled"] = name in stages or needed
        sections = {name: getattr(self, name).model_copy(update=values[name]) for name in names}
        return self.model_copy(update=sections)


def load_flow_config(path: Path | None = None, overrides: Iterable[str] = (), *, live: bool = False) -> FlowConfig:
    """The config of a file with ``key=value`` overrides laid over it; the defaults without a file.

    Args:
        path: A YAML file.
        overrides: Assignments, which win over the file.
        live: Lay both over ``configs/live.yaml``, which prefers the newest frame to every frame.

    Raises:
        ConfigError: Unknown keys (the nearest is suggested), wrong types, impossible values.
    """
    layers = [load_yaml(CONFIGS / "live.yaml")] if live else []
    layers += [load_yaml(path)] if path else []
    origin = str(path) if path else "config"
    return load_config(FlowConfig, *layers, parse_overrides(overrides), origin=origin)


class ReportingStage(Protocol):
    """What every stage offers beside its generator."""

    warnings: list[str]

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""


@dataclass(slots=True)
class Stages:
    """The stages of one run, None where switched off. Made by :func:`make_stages`, used once.

    Attributes:
        keep_features: Leave the features in the packets for the caller, at the price of memory.
        further: Stages of the caller's, by name; they come after annotate and before write.
        clocks: Of the device's work, by stage; empty on the CPU.
    """

    info: VideoInfo
    decode: Decoder | StreamDecoder
    extract: Extractor | None = None
    cosegment: Cosegmenter | None = None
    propagate: Propagator | None = None
    track: Tracker | None = None
    annotate: Annotator | None = None
    write: Writer | SegmentWriter | None = None
    keep_features: bool = False
    further: Sequence[tuple[str, PacketStage]] = ()
    extra_warnings: list[str] = field(default_factory=list)
    clocks: dict[str, StageClock] = field(default_factory=dict)

    @property
    def streams(self) -> DeviceStreams:
        """The streams of the device that features are on."""
        return HostStreams() if self.extract is None else self.extract.streams

    @property
    def batch_size(self) -> int:
        """Frames that go through the backbone together, and that the queues around it must hold."""
        return 1 if self.extract is None else self.extract.batch_size

    def on_device(
        self,
        name: str,
        stage: Callable[[Iterator[Item]], Iterator[Packet]],
        items: Iterator[Item],
        waited: WaitListener,
    ) -> Iterator[Packet]:
        """A stage's packets, on a card by a stream of its own; see ``on_own_stream``."""
        if not self.streams.is_asynchronous:
            return stage(items) if name == "extract" else in_stage_thread(stage(items))
        return on_own_stream(stage, items, self.streams, self.clocks.setdefault(name, StageClock()), waited)

    def present(self) -> dict[str, Any]:
        """The stages that are on, by name, in the order of the flow."""
        return {entry.name: stage for entry in STAGES if (stage := getattr(self, entry.name)) is not None}

    def last_feature_reader(self) -> str | None:
        """The stage after which features leave the packets; None where they stay."""
        if self.keep_features or self.extract is None:
            return None
        return [name for name in self.present() if name == "extract" or name in FEATURE_READERS][-1]

    def reports(self) -> dict[str, dict[str, Any]]:
        """The facts each stage has for ``run.json``."""
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
    stream: StreamDecoder | None = None,
    keep_features: bool = False,
    extractor: Extractor | None = None,
    further: Sequence[tuple[str, PacketStage]] = (),
) -> Stages:
    """Load models and check everything that can be checked before the first frame.

    Args:
        source: A video file or a folder of images.
        config: The run's config.
        masks: Annotations by frame index.
        detections: Boxes by frame index, or a callable that finds them in a frame, for example an
            :class:`~pipeline.image_detector.ImageDetector`.
        output: Folder for the files; nothing is written without one.
        info: The input's facts, where the caller has probed it already.
        stream: An open stream, which is read instead of ``source``.
        keep_features: Keep ``Packet.features`` to the end of the flow.
        extractor: One made earlier, so that several inputs share a loaded backbone.
        further: Stages of the caller's, by name, between annotate and write.

    Raises:
        InputError: Anything wrong with the input, the config or the weights.
    """
    info = stream.info if stream is not None else info or probe(source, config.decode)
    if stream is None and config.write.segment_seconds is not None:
        raise ConfigError("write.segment_seconds is for streams; a file's results appear when it is finished")
    readers = [name for name in FEATURE_READERS if getattr(config, name).enabled]
    reads_features = keep_features or bool(readers)
    if reads_features and not config.extract.enabled:
        raise ConfigError(
            f"extract.enabled is false, but {', '.join(readers) or 'the caller'} needs features; switch it off too"
        )
    if extractor is not None:
        extractor.reset()
    elif reads_features:
        extractor = Extractor(config.extract)
    if extractor is not None:
        extractor.sends_features = config.cosegment.enabled
    return Stages(
        info=info,
        decode=stream or Decoder(config.decode, info),
        extract=extractor if reads_features else None,
        cosegment=_cosegmenter(config) if config.cosegment.enabled else None,
        propagate=_propagator(config, masks, extractor) if config.propagate.enabled else None,
        track=_tracker(config, detections, extractor) if config.track.enabled else None,
        annotate=Annotator(config.annotate) if config.annotate.enabled else None,
        write=_writer(config, output, info),
        keep_features=keep_features,
        further=further,
    )


def _writer(config: FlowConfig, output: Path | None, info: VideoInfo) -> Writer | SegmentWriter | None:
    if output is None or not config.write.enabled:
        return None
    if config.write.segment_seconds is None:
        return Writer(config.write, output, info)
    return SegmentWriter(config.write, output, info)


def check_live(config: FlowConfig) -> None:
    """Refuse settings that a stream, or the newest frame of it, cannot have.

    Raises:
        ConfigError: A stage that reads the input twice, or holds frames back.
    """
    if config.cosegment.enabled and config.cosegment.mode == "two_pass":
        raise ConfigError("cosegment.mode two_pass reads the input twice, which a stream does not allow")
    if not config.decode.live.enabled:
        return
    extract = config.extract
    if extract.enabled and extract.batch_size != 1:
        raise ConfigError("extract.batch_size must be 1 with decode.live: a batch waits for its last frame")
    if extract.drop_high_variance and extract.high_variance_indices is None:
        raise ConfigError("extract.drop_high_variance needs extract.high_variance_indices with decode.live")
    if config.cosegment.enabled and config.cosegment.hold_back:
        raise ConfigError("cosegment.hold_back must be false with decode.live: it waits for several frames")


def _cosegmenter(config: FlowConfig) -> Cosegmenter:
    return Cosegmenter(config.cosegment, descriptors=f"{config.extract.backbone} {config.extract.facets[0]}")


def _tracker(config: FlowConfig, detections: DetectionSource | None, extractor: Extractor | None) -> Tracker:
    """A detector that takes several frames gets as many as the backbone does."""
    size = 1 if extractor is None else extractor.batch_size
    return Tracker(config.track, detections=detections, batch_size=size)


def _propagator(config: FlowConfig, masks: Masks | None, extractor: Extractor | None) -> Propagator:
    dtype = torch.float32 if extractor is None else search_dtype(extractor.device, extractor.precision)
    parts = 1 if extractor is None else extractor.cells_per_patch
    return Propagator(config.propagate, masks=masks, search_dtype=dtype, cells_per_patch=parts)


def search_dtype(device: torch.device, precision: torch.dtype) -> torch.dtype:
    """In which precision propagation compares features; those computed in fp32 are compared in fp32.

    On a CPU features computed in bf16 are compared in bf16, and the best of them again in fp32. On a card fp16 is
    as fast as bf16 and rounds unit descriptors eight times more finely, so nothing is compared again.

    >>> search_dtype(torch.device("cpu"), torch.bfloat16), search_dtype(torch.device("cpu"), torch.float32)
    (torch.bfloat16, torch.float32)
    >>> search_dtype(torch.device("cuda"), torch.bfloat16), search_dtype(torch.device("cuda"), torch.float32)
    (torch.float16, torch.float32)
    """
    if precision == torch.float32:
        return torch.float32
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if precision == torch.bfloat16 else torch.float32
