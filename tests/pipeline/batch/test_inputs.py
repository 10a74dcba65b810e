from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.assembly import FlowConfig
from pipeline.batch.inputs import collect_jobs, take_shard
from pipeline.batch.jobs import VideoJob
from pipeline.core.errors import ConfigError, InputError


def collect(*inputs: object, output: object = "/out/none") -> list[VideoJob]:
    return collect_jobs([str(text) for text in inputs], str(output), FlowConfig())


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_is_searched_for_videos(tmp_path: Path) -> None:
    touch(tmp_path, "b10.mp4", "b9.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", ".git/x.mp4", "poster.jpg")
    assert [job.name for job in collect(tmp_path)] == ["b9", "b10", "c"]


def test_a_folder_without_videos_gives_its_folders_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "JPEGImages/park/00000.jpg", "JPEGImages/park/00001.jpg", "JPEGImages/river/00000.jpg")
    jobs = collect(tmp_path)
    assert [(job.name, Path(job.source).name) for job in jobs] == [("park", "park"), ("river", "river")]


def test_results_of_an_earlier_run_are_not_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "old/annotated.mp4")
    (tmp_path / "old" / "run.json").write_text('{"producer": "liftstream", "status": "done"}')
    assert [job.name for job in collect(tmp_path)] == ["a"]


def test_patterns_lists_and_repeated_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c[1].mp4", "sub/d.mp4", "masks/a.png")
    (tmp_path / "list.txt").write_text("# of today\n\na.mp4\nsub/d.mp4\n")
    (tmp_path / "list.csv").write_text("input,start,end,name,masks\nb.mp4,1.5,2,part two,\na.mp4,,,,masks/a.png\n")
    (tmp_path / "list.jsonl").write_text('{"input": "a.mp4", "end": 3}\n\n{"input": "s3://bucket/e.mp4"}\n')
    assert [j.name for j in collect(tmp_path / "*.mp4", tmp_path / "a.mp4")] == ["a", "b", "c[1]"]
    assert [j.name for j in collect(tmp_path / "c[1].mp4")] == ["c[1]"]
    assert [j.name for j in collect(tmp_path / "**" / "d*")] == ["d"]
    assert [j.source for j in collect(tmp_path / "list.txt")] == [f"{tmp_path}/a.mp4", f"{tmp_path}/sub/d.mp4"]
    second, first = collect(tmp_path / "list.csv")
    assert second == VideoJob("part two", f"{tmp_path}/b.mp4", start_seconds=1.5, end_seconds=2.0)
    assert first.masks == f"{tmp_path}/masks/a.png"
    jobs = collect(tmp_path / "list.jsonl")
    assert [(j.source, j.end_seconds) for j in jobs] == [(f"{tmp_path}/a.mp4", 3.0), ("s3://bucket/e.mp4", None)]


def test_files_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "a/cam.mp4", "b/cam.mp4", "c/cam.mp4")
    first = {job.source: job.name for job in collect(tmp_path)}
    assert len(set(first.values())) == 3
    again = {job.source: job.name for job in collect(tmp_path / "c", tmp_path / "b", tmp_path / "a")}
    assert again == first


def test_shards_share_out_every_video_once() -> None:
    jobs = [VideoJob(str(number), "") for number in range(37)]
    shards = [take_shard(jobs, f"{index}/16") for index in range(1, 17)]
    assert sorted(int(job.name) for shard in shards for job in shard) == list(range(37))
    assert [job.name for job in take_shard(jobs, "3/16")] == ["2", "18", "34"]
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4"):
        with pytest.raises(ConfigError, match="--shard"):
            take_shard(jobs, wrong)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a.mp4\n\0\n", r"l\.txt:2: is not a list"),
        ("l.csv", "file,start\na.mp4,1\n", r"l\.csv:1: .*'input'"),
        ("l.csv", "input,start\na.mp4,1\na.mp4\n", r"l\.csv:3: "),
        ("l.csv", "input,begin\na.mp4,1\n", r"l\.csv:2: unknown column 'begin'"),
        ("l.csv", "input,start\na.mp4,soon\n", r"l\.csv:2: 'start'"),
        ("l.csv", "input,start\na.mp4,nan\n", r"l\.csv:2: 'start'"),
        ("l.csv", "input,end\na.mp4,-1\n", r"l\.csv:2: 'end'"),
        ("l.csv", "input,start,end\na.mp4,5,4\n", r"l\.csv:2: .*after start_seconds"),
        ("l.csv", "input,masks\na.mp4,gone.png\n", r"l\.csv:2: masks '.*gone\.png': no such"),
        ("l.csv", "input,detections\na.mp4,gone.txt\n", r"l\.csv:2: detections"),
        ("l.jsonl", '{"input": "a.mp4"}\n{"input": \n', r"l\.jsonl:2: not valid JSON"),
        ("l.jsonl", "[1]\n", r"l\.jsonl:1: must be a JSON object"),
        ("l.jsonl", "[" * 100_000, r"l\.jsonl:1: not valid JSON"),
        ("l.jsonl", '{"input": 5}\n', r"l\.jsonl:1: 'input' must be a text"),
        ("l.jsonl", '{"input": "a.mp4", "start": true}\n', r"l\.jsonl:1: 'start'"),
        ("l.jsonl", '{"name": "x"}\n', r"l\.jsonl:1: has no 'input'"),
        ("l.txt", "# nothing\n", "no videos in"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        collect(tmp_path / name)


def test_bad_inputs_are_one_line_each(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.mp4")
    touch(tmp_path / "empty" / "inner")
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    cases: dict[str, tuple[object, object]] = {
        "no such file": (tmp_path / "gone.mp4", "/out/none"),
        "nothing matches": (tmp_path / "*.mov", "/out/none"),
        "no videos in": (tmp_path / "empty", "/out/none"),
        "lies inside the input folder": (tmp_path / "in", tmp_path / "in" / "out"),
        "not a text file": (tmp_path / "l.csv", "/out/none"),
        "nosuch://": ("nosuch://bucket/", "/out/none"),
    }
    for message, (given, output) in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            collect(given, output=output)
        assert "\n" not in str(caught.value)


def test_urls_are_listed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.mp4", "deep/b.mkv", "c.txt"):
        memory.pipe_file(f"/listed/{name}", b"x")
    memory.pipe_file("/listed/l.csv", b"input,name\na.mp4,first\n")
    assert [j.source for j in collect("memory://listed/")] == [
        "memory:///listed/a.mp4",
        "memory:///listed/deep/b.mkv",
    ]
    assert [j.name for j in collect("memory://listed/*.mp4")] == ["a"]
    assert collect("memory://listed/l.csv")[0].source == "memory://listed/a.mp4"
    assert collect(f"file://{touch(tmp_path, 'a:b.mp4')}/a:b.mp4")[0].name == "a_b"
