"""Labels frame after frame of a video, on the host or on the card that holds the features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import IntArray
from pipeline.core.device_stream import DeviceStreams
from pipeline.core.records import Features, Packet, PartMap
from pipeline.core.state import State
from stages.cosegment.codebook import Codebook
from stages.cosegment.config import CosegmentConfig
from stages.cosegment.device_part_map import DeviceLabeler
from stages.cosegment.observation import Observation, features_of, label_cells
from stages.cosegment.part_maps import make_part_map, no_parts
from stages.cosegment.part_space import PartSpace
from stages.cosegment.temporal_maps import TemporalMaps


def is_on_card(features: Features) -> bool:
    """Whether labels are made where the features are, on a card."""
    return not features.data.is_cpu


class FrameLabeler:
    """The part maps of a video's frames; call :meth:`reset` at a cut.

    Invariant: only one of both ways remembers frames, that of the features so far.

    Args:
        config: Of the stage.
        space: What parts are clustered in; None = the descriptors themselves.
        streams: The card's; found from the features if None.
    """

    def __init__(
        self, config: CosegmentConfig, space: PartSpace | None, streams: DeviceStreams | None = None
    ) -> None:
        self._config, self._space, self._streams = config, space, streams
        self._on_host = TemporalMaps(config.foreground_memory, config.part_memory)
        self._on_card = DeviceLabeler(config.foreground_memory, config.part_memory, space)

    def reset(self) -> None:
        """Forget the past."""
        self._on_host.reset()
        self._on_card.reset()

    def state(self) -> State:
        """All that later frames depend on; the same wherever they are labeled."""
        return self._on_host.state() if self._on_card.is_empty else self._on_card.state()

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self._on_host.restore(state)
        self._on_card.reset()

    def __call__(
        self,
        packet: Packet,
        seen: Observation,
        codebook: Codebook,
        numbers: IntArray,
        *,
        num_parts: int,
        background: npt.NDArray[np.bool_] | None = None,
    ) -> PartMap:
        """The parts of one frame; see :func:`~stages.cosegment.part_maps.make_part_map`."""
        config, features = self._config, features_of(packet)
        if codebook.is_empty:
            self.reset()
            return no_parts(packet.frame.image_hw, features.grid.grid_hw, num_parts, part_ids=config.part_ids)
        if not is_on_card(features) or config.refine == "crf":
            self._on_card.reset()
            return make_part_map(
                packet.frame.image,
                features.grid,
                seen,
                label_cells(packet, seen, self._space),
                codebook,
                numbers,
                self._on_host,
                num_parts=num_parts,
                refine=config.refine,
                min_component_share=config.min_component_share,
                part_ids=config.part_ids,
                background=background,
            )
        if self._on_card.is_empty:
            self._on_card.restore(self._on_host.state(), features.data)
            self._on_host.reset()
        return self._on_card(
            packet.frame.image,
            packet.features or features,
            features,
            seen,
            codebook,
            numbers,
            num_parts=num_parts,
            guided=config.refine == "guided",
            min_component_share=config.min_component_share,
            part_ids=config.part_ids,
            background=background,
            streams=self._streams,
        )
