"""The views of ``features --view``: how a packet becomes a picture.

Everything that scales colors (the basis of ``pca``, the mean descriptor and the ranges of ``norm`` and
``similarity``) is fixed from a sample of frames over the whole video before the first picture is drawn, so a color
means the same in every frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from itertools import islice

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm import tqdm

from pipeline.core.colors import PART_COLORS
from pipeline.core.errors import ConfigError
from pipeline.core.records import Features, Packet
from pipeline.flow import Stages
from stages.annotate.drawing import outline, tint
from stages.decode import Decoder
from stages.extract import view_legend, views

Image = npt.NDArray[np.uint8]
Painter = Callable[[Packet], Image]

_SAMPLE_FRAMES = 24


class View(StrEnum):
    """What to draw."""

    pca = "pca"
    saliency = "saliency"
    similarity = "similarity"
    norm = "norm"
    parts = "parts"


def make_painter(view: View, stages: Stages, xy: tuple[float, float] | None, first_component: int) -> Painter:
    """The function that draws a packet, with everything that scales colors fixed.

    Args:
        view: What to draw.
        stages: Of the run that the packets will come from.
        xy: The pixel of the first frame for ``similarity``.
        first_component: First of the three components of ``pca``, 0-based.

    Raises:
        ConfigError: A point outside the frame, no saliency to show, too few channels.
    """
    if view == View.pca:
        pca = views.JointPca(first_component)
        _fit(pca, stages)
        return lambda packet: views.paint_colors(pca.colors(_of(packet).data), _of(packet).grid)
    if view == View.parts:
        return _parts_picture
    if view == View.saliency:
        if stages.extract is not None and stages.extract.cue == "none":
            raise ConfigError("--view saliency: extract.saliency is none; set it to auto")
        return _saliency_picture
    if view == View.similarity:
        assert xy is not None  # the command has checked it
        views.check_point(xy, stages.info.image_hw)
    sample = views.CenteredSample()
    _fit(sample, stages)
    if xy is not None:
        return _SimilarityPainter(sample, xy)
    return lambda packet: _heat(
        packet, sample.norms(_of(packet)), sample.norm_range, "distance from the mean descriptor"
    )


class _SimilarityPainter:
    """Cosines to the descriptor at a pixel of the first frame, which is shown in a corner from then on."""

    def __init__(self, sample: views.CenteredSample, xy: tuple[float, float]) -> None:
        self._sample, self._xy = sample, xy
        self._descriptor: Tensor | None = None

    def __call__(self, packet: Packet) -> Image:
        centered = self._sample.centered(_of(packet))
        is_first = self._descriptor is None
        if self._descriptor is None:
            self._descriptor = views.descriptor_at(centered, self._xy)
            self._range = self._sample.similarity_range(self._descriptor)
            self._inset = view_legend.clicked_inset(packet.frame.image, self._xy)
        values = views.similarity_map(centered, self._descriptor)
        picture = _heat(packet, values, self._range, "cosine to the clicked point")
        if is_first:
            view_legend.point_mark(picture, self._xy)
        else:
            view_legend.paste_inset(picture, self._inset)
        return picture


def _of(packet: Packet) -> Features:
    assert packet.features is not None  # keep_features
    return packet.features


def _saliency_picture(packet: Packet) -> Image:
    saliency = _of(packet).saliency
    assert saliency is not None  # the cue is not none
    return _heat(packet, saliency, (0.0, 1.0), "saliency")


def _parts_picture(packet: Packet) -> Image:
    """The parts tinted and outlined over the frame in gray, with their numbers."""
    parts = packet.parts
    assert parts is not None  # cosegment is on
    picture = tint(views.gray(packet.frame.image), parts.index_mask, PART_COLORS, 0.6)
    outline(picture, parts.index_mask, PART_COLORS, max(1, picture.shape[0] // 360))
    ids = range(1, parts.num_parts + 1)
    view_legend.color_names(picture, PART_COLORS[1 : parts.num_parts + 1], [f"part {number}" for number in ids])
    return picture


def _heat(packet: Packet, values: Tensor, low_high: tuple[float, float], title: str) -> Image:
    picture = views.paint_heat(views.stretch(values, low_high), _of(packet).grid, packet.frame.image)
    view_legend.color_bar(picture, low_high, title)
    return picture


def _fit(statistics: views.JointPca | views.CenteredSample, stages: Stages) -> None:
    """Fix a view's colors from frames spread over the video; from its first ones where the length is unknown."""
    expected = stages.decode.expected_frames()
    step = 1 if expected is None else -(-expected // _SAMPLE_FRAMES)
    sampled = stages.decode.config.model_copy(update={"every": stages.decode.config.every * step})
    frames = islice(Decoder(sampled, stages.info)(), _SAMPLE_FRAMES)
    assert stages.extract is not None
    for packet in tqdm(stages.extract(frames), desc="sample", unit="frame", file=sys.stderr, mininterval=0.5):
        statistics.update(_of(packet).data)
    statistics.fit()
