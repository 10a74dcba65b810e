"""What the benchmarks of stages and threads are made of."""

from __future__ import annotations

from pathlib import Path

from pipeline.bench.stages import measure
from pipeline.bench.threads import sensible_pools
from pipeline.core.threads import ThreadPools, default_pools
from pipeline.flow import load_flow_config


def test_every_stage_of_a_run_is_measured_over_the_frames_asked_for(clip: Path, tmp_path: Path) -> None:
    tiny = [
        "extract.backbone=vit_tiny_patch16_224", "extract.weights=random", "extract.short_side=64",
        "extract.device=cpu", "cosegment.enabled=false", "propagate.enabled=false",
    ]  # fmt: skip
    costs = measure(clip, load_flow_config(None, tiny), tmp_path / "out", 3)
    assert [cost.name for cost in costs] == ["decode", "extract", "track", "annotate", "write"]
    assert {cost.frames for cost in costs} == {3}
    assert all(cost.cpu_seconds >= 0 for cost in costs)
    assert costs[1].per_frame == costs[1].cpu_seconds / 3


def test_the_default_and_the_extremes_are_among_the_sensible_sizes() -> None:
    for cores in (1, 2, 8):
        pools = sensible_pools(cores)
        assert pools[0] == default_pools(cores)
        assert ThreadPools(1, 1, 1, 1) in pools
        assert ThreadPools(cores, cores, cores, cores) in pools
        assert len(pools) == len(set(pools)) <= 12
