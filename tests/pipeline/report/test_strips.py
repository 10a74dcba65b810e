from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.formats.boxes import BoxTable
from pipeline.formats.run_folder import RunFolder
from pipeline.report.strips import Clock, Strip, binned, mean_doubt, most_doubtful, object_strips, track_strips
from tests.run_folders import COUNT, RATE, confidence, make_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(make_run(tmp_path / "square"))


def clock_of(run: RunFolder) -> Clock:
    return Clock(run, run.frames())


def test_a_strip_holds_the_frames_in_which_the_object_is_visible(run: RunFolder) -> None:
    first, second = object_strips(run.objects(), clock_of(run))
    assert first.frames.tolist() == list(range(COUNT))
    assert second.frames.tolist() == [2, 3, 4, 5, 6]
    assert second.confidence.tolist() == [confidence(frame, 2) for frame in range(2, 7)]
    np.testing.assert_allclose(second.seconds, second.frames / RATE, atol=1e-3)


def test_the_worst_moments_come_first_and_apart(run: RunFolder) -> None:
    clock = clock_of(run)
    strips = object_strips(run.objects(), clock)
    assert strips[0].worst[0].frame == 7
    assert strips[1].worst[0].frame == 4
    moments = most_doubtful(strips, 12, clock)
    assert [moment.frame for moment in moments[:2]] == [4, 7]
    assert [moment.confidence for moment in moments] == sorted(moment.confidence for moment in moments)
    assert len({moment.frame for moment in moments}) == len(moments)
    # Frames 0 to 1 and 3: object 1 is at 1.0 in frames 0 to 3 and alone in 0 and 1.
    assert not {0, 1} & {moment.frame for moment in moments}


def test_moments_near_a_worse_one_are_left_out(run: RunFolder) -> None:
    clock = clock_of(run)
    clock.duration = 40 * 0.1
    frames = [moment.frame for moment in most_doubtful(object_strips(run.objects(), clock), 12, clock)]
    assert frames[:2] == [4, 7]
    assert 3 not in frames
    assert 8 not in frames


def test_doubt_is_that_of_the_worst_tenth_of_the_frames(run: RunFolder) -> None:
    assert mean_doubt(object_strips(run.objects(), clock_of(run))) == pytest.approx(0.7)
    assert mean_doubt([]) is None


def test_bins_take_the_smallest_confidence_and_leave_gaps_open(run: RunFolder) -> None:
    clock = clock_of(run)
    second = object_strips(run.objects(), clock)[1]
    assert dict(binned(second, clock, COUNT)) == {frame: confidence(frame, 2) for frame in range(2, 7)}
    assert dict(binned(second, clock, 2)) == {0: 0.3, 1: 0.5}


def test_tracks_are_strips_of_their_scores(run: RunFolder) -> None:
    table = BoxTable.make(
        [4, 2, 3], [7, 7, 7], [[0, 0, 4, 4]] * 3, scores=[0.5, 1.5, 0.25], categories=["car"] * 3
    )
    (strip,) = track_strips(table, clock_of(run))
    assert (strip.object_id, strip.category) == (7, "car")
    assert strip.frames.tolist() == [2, 3, 4]
    assert strip.confidence.tolist() == [1.0, 0.25, 0.5]


def test_without_a_video_times_come_from_the_frame_rate(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "square")
    (folder / "annotated.mp4").unlink()
    clock = clock_of(RunFolder(folder))
    assert clock.seconds(5) == pytest.approx(5 / RATE)
    assert clock.duration == pytest.approx(COUNT / RATE)


def test_a_strip_has_its_objects_color() -> None:
    assert (
        Strip(256, "", np.array([0]), np.array([0.0]), np.array([1.0]), ()).color
        == Strip(1, "", np.array([0]), np.array([0.0]), np.array([1.0]), ()).color
    )
