from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.bench.leave_out import leave_out
from pipeline.core.errors import InputError
from run_pipeline import main

ROWS = {
    "dino": {"a": 50.0, "b": 60.0, "c": 70.0, "d": 80.0},
    "fitted": {"a": 95.0, "b": 58.0, "c": 68.0, "d": 78.0},  # best mean, by one sequence alone
    "even": {"a": 53.0, "b": 63.0, "c": 73.0, "d": 83.0},
}


def test_a_row_that_one_sequence_carries_is_not_chosen_for_it() -> None:
    result = leave_out(ROWS)
    assert [part.chosen for part in result.sequences] == ["even", "fitted", "fitted", "fitted"]
    assert [sum(part.scores.values()) for part in result.sequences] == [53.0, 58.0, 68.0, 78.0]
    assert result.mean == pytest.approx((53 + 58 + 68 + 78) / 4)
    assert result.worst_third == 53.0
    assert (result.num_worse, result.baseline_mean) == (3, 65.0)
    assert result.choices == {"fitted": 3, "even": 1}
    assert result.sequences[0].best == ("fitted", 95.0)


def test_the_choice_equals_that_of_a_naive_loop() -> None:
    names = [f"s{k}" for k in range(9)]
    table = np.random.default_rng(0).normal(70, 10, (5, 9))
    rows = {f"r{r}": dict(zip(names, values.tolist(), strict=True)) for r, values in enumerate(table)}
    for by, lowest in (("mean", 8), ("worst-third", 3)):
        want = []
        for k in range(9):
            others = np.sort(np.delete(table, k, axis=1), axis=1)
            want.append(table[others[:, :lowest].mean(axis=1).argmax(), k])
        assert leave_out(rows, by=by).mean == pytest.approx(np.mean(want))  # type: ignore[arg-type]


def test_objects_of_a_composite_are_left_out_together() -> None:
    rows = {
        "dino": {"river 1": 50.0, "river 2": 50.0, "street 1": 50.0},
        "x": {"river 1": 90.0, "river 2": 90.0, "street 1": 49.0},
    }
    result = leave_out(rows)
    assert [(part.sequence, part.chosen) for part in result.sequences] == [("river", "dino"), ("street", "x")]
    assert result.mean == pytest.approx((50 + 50 + 49) / 3)


def test_what_cannot_be_left_out_is_an_error() -> None:
    with pytest.raises(InputError, match="two rows and two sequences"):
        leave_out({"dino": {"a": 1.0, "b": 2.0}})
    with pytest.raises(InputError, match="row 'x' has other sequences than the first row: b"):
        leave_out({"dino": {"a": 1.0, "b": 2.0}, "x": {"a": 1.0}})


def test_the_command_puts_files_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for half, names in (("one", "ab"), ("two", "cd")):
        rows = [
            {"name": row, "sequences": {s: {"J": values[s] - 1, "F": values[s] + 1} for s in names}}
            for row, values in ROWS.items()
        ]
        (tmp_path / f"{half}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json")]
    output = tmp_path / "out" / "left.json"
    assert main(["bench", "leave-out", *files, "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "mean 64.2 (baseline 65.0), worst third 53.0, worse than the baseline 3" in shown
    assert "chosen: fitted 3, even 1" in shown
    assert json.loads(output.read_text(encoding="utf-8"))["mean"] == pytest.approx(64.25)
    assert main(["bench", "leave-out", *files, "--only", "dino,even"]) == 0
    assert "mean 68.0" in capsys.readouterr().out
    assert main(["bench", "leave-out", *files, "--only", "dino,other"]) == 2
    assert "there is no row 'other'" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    assert main(["bench", "leave-out", str(tmp_path / "bad.json")]) == 2
    assert "not a file of 'bench ablation --output'" in capsys.readouterr().err
