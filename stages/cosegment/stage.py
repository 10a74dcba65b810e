"""Foreground and parts that keep their numbers through a video, without labels.

A codebook is fitted on the first frames of a shot; every frame, the first ones too, is assigned to it, and it
follows slow change. At a cut, or when the frames stop fitting, it is fitted again and its parts are matched to all
parts seen so far, so that a part that is still there keeps its number and color.

Source: Amir et al. 2021, "Deep ViT Features as Dense Visual Descriptors", section 4
(https://arxiv.org/abs/2112.05814), made to stream; with ``mode: two_pass`` the whole video is the set of images,
as in the paper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Packet
from pipeline.core.state import State, packet_from_state, packet_state
from stages.cosegment.codebook import (
    Codebook,
    fit_codebook,
    foreground_rows,
    with_given_parts,
    without_background,
)
from stages.cosegment.config import CosegmentConfig
from stages.cosegment.labeler import FrameLabeler
from stages.cosegment.observation import Observation, features_of
from stages.cosegment.part_numbers import PartNumbers
from stages.cosegment.part_space import find_part_space
from stages.cosegment.part_statistics import PartStatistics
from stages.cosegment.proposals import Proposer
from stages.cosegment.shots import ShotDetector
from stages.cosegment.stillness import StillRegion, find_still_cells
from stages.cosegment.survey import Survey

_MAX_WARNINGS = 50
_MAX_FITS_REPORTED = 200
_MIN_STILL_FRAMES = 8
_MIN_SHOT = 0.25


class Cosegmenter:
    """Adds a :class:`PartMap` to every packet.

    Invariant: a part number, once assigned, means the same part for the rest of the video, across refits. While
    streaming at most ``warmup_frames`` packets are held back, at the start and after each cut, and the descriptors
    of as many frames are remembered. With ``hold_back: false`` none is held back: a shot's parts are fitted on its
    first frame, and again when there are ``warmup_frames`` of it. One object is used for one video; call
    :meth:`reset` before the next.

    With ``mode: two_pass`` the video is read twice: :meth:`survey` looks at every packet, :meth:`finish_survey`
    fits one codebook on an even sample of them, and the call labels the packets of the second reading one by one.
    A call without a survey before it does both, and therefore needs packets that can be iterated twice, such as a
    list.

    Attributes:
        warnings: One line each, at most 50.
        surveyed: Whether the first of two passes is done.
        current_index: Index of the frame being worked on, which with held-back packets is not always the last one
            read; None before the first.
    """

    def __init__(self, config: CosegmentConfig, *, descriptors: str = "") -> None:
        """Take the settings.

        Args:
            config: The settings.
            descriptors: Backbone and facet of :attr:`Features.data`, such as ``dinov2_vits14 key@11``; with
                ``part_space: auto`` the bundled space of these is used.
        """
        self.config = config
        self._space = find_part_space(descriptors) if config.part_space == "auto" else None
        self._options = config.fit_options()
        self.reset()

    def reset(self) -> None:
        """Forget the video; the next call starts another one."""
        config = self.config
        self.warnings: list[str] = []
        self.current_index: int | None = None
        self._used = False
        self._survey = Survey(config.reservoir_frames, self._space)
        self.surveyed = False
        self._codebook: Codebook | None = None
        self._numbers = PartNumbers(config.match_distance)
        self._labeler = FrameLabeler(config, self._space)
        self._shots = ShotDetector(config.cut_similarity, config.cut_drop, self._space)
        self._waiting: list[Packet] = []
        self._reason = "start"
        self._recent: deque[Observation] = deque(maxlen=config.warmup_frames)
        self._still: StillRegion | None = None
        self._misfits = 0
        self._fitted_on = 0
        self._fits: list[dict[str, Any]] = []
        self._num_fits = 0
        self._statistics = PartStatistics()
        self._proposer = Proposer(config.objects_every)

    def state(self) -> State:
        """All that the packets to come depend on, the packets held back included."""
        return {
            "warnings": list(self.warnings),
            "survey": self._survey.state(),
            "surveyed": self.surveyed,
            "codebook": None if self._codebook is None else self._codebook.state(),
            "numbers": self._numbers.state(),
            "memory": self._labeler.state(),
            "shots": self._shots.state(),
            "waiting": [packet_state(packet) for packet in self._waiting],
            "device": str(features_of(self._waiting[0]).data.device) if self._waiting else "cpu",
            "reason": self._reason,
            "recent": [seen.state() for seen in self._recent],
            "still": None if self._still is None else self._still.state(),
            "misfits": self._misfits,
            "fitted_on": self._fitted_on,
            "fits": [dict(fit) for fit in self._fits],
            "num_fits": self._num_fits,
            "parts": self._statistics.entries(),
            "proposer": self._proposer.state(),
        }

    def restore(self, state: State) -> None:
        """Continue from the :meth:`state` of a stage with the same settings, as if nothing had happened."""
        self.reset()
        self.warnings = list(state["warnings"])
        self._survey.restore(state["survey"])
        self.surveyed = state["surveyed"]
        self._codebook = None if state["codebook"] is None else Codebook.from_state(state["codebook"])
        self._numbers.restore(state["numbers"])
        self._labeler.restore(state["memory"])
        self._shots.restore(state["shots"])
        device = state["device"] if torch.cuda.is_available() else "cpu"
        self._waiting = [packet_from_state(packet, device) for packet in state["waiting"]]
        self._reason = state["reason"]
        self._recent.extend(Observation(**seen) for seen in state["recent"])
        self._still = None if state["still"] is None else StillRegion.from_state(state["still"])
        self._misfits = state["misfits"]
        self._fitted_on = state["fitted_on"]
        self._fits = [dict(fit) for fit in state["fits"]]
        self._num_fits = state["num_fits"]
        self._statistics.restore(state["parts"])
        self._proposer.restore(state["proposer"])

    def report(self) -> dict[str, Any]:
        """Fits (the first 200, with their frame and reason) and parts, ready for JSON."""
        return {
            "mode": self.config.mode,
            "num_fits": self._num_fits,
            "fits": [dict(fit) for fit in self._fits],
            "parts": self._statistics.entries(),
            "proposals": self._proposer.report(),
        }

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yield every packet with its parts, in order.

        Args:
            packets: With features. In two passes without an earlier :meth:`survey` they are iterated twice.

        Raises:
            RuntimeError: The stage was used before; call :meth:`reset` for another video.
            ValueError: Two passes over an iterator that can be read only once.
        """
        if self._used:
            raise RuntimeError(
                "this Cosegmenter has already been used for a video; call reset() before the next one"
            )
        self._used = True
        if self.config.mode == "streaming":
            return self._streaming(packets)
        if not self.surveyed and iter(packets) is packets:
            raise ValueError(
                "cosegment.mode two_pass reads the packets twice, but was given an iterator that can be read only "
                "once; pass a list, or call survey() with every packet and finish_survey() first"
            )
        return self._two_pass(packets)

    def survey(self, packet: Packet) -> None:
        """Look at the next packet in the first of two passes."""
        self.current_index = packet.index
        self._survey.add(packet)

    def finish_survey(self) -> None:
        """Fit the codebook on what :meth:`survey` has seen; the next call labels packets with it."""
        self.surveyed = True
        window, index, grid = self._survey.window, self._survey.first_index, self._survey.grid
        if index is not None and grid is not None:
            self.current_index = index
            self._fit(window, index, "whole video", grid)
        self._survey = Survey(self.config.reservoir_frames, self._space)

    def _two_pass(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        if not self.surveyed:
            for packet in packets:
                self.survey(packet)
            self.finish_survey()
        for packet in packets:
            self.current_index = packet.index
            seen = self._shots.observe(packet)
            self._recent.append(seen)
            yield self._labeled(packet, list(self._recent), len(self._recent) - 1)

    def _streaming(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        held_back = self.config.warmup_frames if self.config.hold_back else 1
        for packet in packets:
            self.current_index = packet.index
            seen, is_cut = self._shots.observe_and_compare(packet)
            # A shot of a few frames (a flash, a jump) is too short to fit parts on; it joins the next one.
            is_flash = 0 < len(self._waiting) < _MIN_SHOT * held_back
            if is_cut and not is_flash:
                yield from self._start_shot()
                self._reason, self._codebook = "cut", None
                self._recent.clear()
            self._recent.append(seen)
            if self._codebook is not None:
                yield self._follow(packet, seen)
                continue
            self._waiting.append(packet)
            if len(self._waiting) >= held_back:
                yield from self._start_shot()
        yield from self._start_shot()

    def _start_shot(self) -> Iterator[Packet]:
        """Fit on the packets held back and label them."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        window = list(self._recent)[-len(waiting) :]
        self._labeler.reset()
        self.current_index = waiting[0].index
        self._fit(window, waiting[0].index, self._reason, features_of(waiting[0]).grid)
        background = None if self._still is None else self._still.cells()
        self._proposer.start_shot()
        for place, packet in enumerate(waiting):
            yield self._labeled(packet, window, place, background)

    def _follow(self, packet: Packet, seen: Observation) -> Packet:
        """Label a later frame of a shot, then learn from it; fit again when too many did not fit."""
        assert self._codebook is not None
        misfit = self._codebook.error_of(seen.rows) > self.config.break_ratio
        self._misfits = self._misfits + 1 if misfit else 0
        if self._misfits >= self.config.break_frames:
            self._fit(list(self._recent), packet.index, "change", features_of(packet).grid)
        elif not self.config.hold_back and self._fitted_on < len(self._recent) == self.config.warmup_frames:
            self._fit(list(self._recent), packet.index, "warm", features_of(packet).grid)
        background = None if self._still is None else self._still.follow(seen.flow, seen.motion_px)
        labeled = self._labeled(packet, list(self._recent), len(self._recent) - 1, background)
        self._codebook = self._codebook.updated(
            seen, self.config.forgetting, background=None if background is None else background.ravel()
        )
        self._numbers.follow(self._codebook.parts)
        return labeled

    def _drop_still_cells(self, window: list[Observation], grid: PatchGrid) -> None:
        """Fit the parts again without what never moves while the rest does."""
        assert self._codebook is not None
        self._still = None
        gray = window[-1].gray
        if (
            not self.config.drop_still
            or self._codebook.is_empty
            or gray is None
            or len(window) < _MIN_STILL_FRAMES
        ):
            return
        foreground = np.any([self._codebook.logits(seen.rows) > 0 for seen in window], axis=0)
        still = find_still_cells(
            [seen.motion_px for seen in window], [seen.flow for seen in window], foreground.reshape(grid.grid_hw)
        )
        if still.any():
            self._still = StillRegion(still, grid, (gray.shape[0], gray.shape[1]))
            self._codebook = without_background(self._codebook, window, still.ravel(), self._options)

    def _fit(self, window: list[Observation], index: int, reason: str, grid: PatchGrid) -> None:
        self._codebook = fit_codebook(window, self._options)
        self._fitted_on = max(len(window), 0 if reason in ("start", "cut") else self._fitted_on)
        if reason in ("start", "cut", "warm"):
            self._drop_still_cells(window, grid)
        codebook = self._codebook
        rows = foreground_rows(codebook, window)
        recalled = self._numbers.recall(rows, codebook.parts)
        if recalled is not codebook.parts:
            self._codebook = codebook = with_given_parts(codebook, rows, recalled)
        self._misfits = 0
        kept = self._numbers.assign(codebook.parts, codebook.spread)
        self._num_fits += 1
        if len(self._fits) < _MAX_FITS_REPORTED:
            self._fits.append(
                {
                    "frame": index,
                    "reason": reason,
                    "window_frames": len(window),
                    "clusters": len(codebook.clusters),
                    "parts": [int(number) for number in self._numbers.current],
                    "kept_parts": kept,
                }
            )
        if codebook.is_empty:
            self._warn(f"frame {index}: nothing salient was found, so there are no parts from here on")
        if self._numbers.exhausted:
            self._warn("more than 255 parts were seen; the oldest numbers are used again")

    def _warn(self, line: str) -> None:
        if line not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(line)

    def _labeled(
        self,
        packet: Packet,
        window: list[Observation],
        place: int,
        background: npt.NDArray[np.bool_] | None = None,
    ) -> Packet:
        assert self._codebook is not None
        self.current_index, grid = packet.index, features_of(packet).grid
        parts = self._labeler(
            packet,
            window[place],
            self._codebook,
            self._numbers.current,
            num_parts=self._numbers.highest,
            background=background,
        )
        self._statistics.count(packet.index, parts)
        proposals = self._proposer.propose(window, place, grid, self._codebook, parts.foreground > 0.5)
        return replace(packet, parts=replace(parts, proposals=proposals))
