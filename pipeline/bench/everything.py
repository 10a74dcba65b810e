"""``bench all``: the benchmarks one after the other, each in a process of its own, on one page.

Every section of the page names its command, and has its output as it is. Outputs are kept in the folder: a call
that was broken off goes on with the commands that are missing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import ConfigError, LiftstreamError
from pipeline.core.files import write_bytes_whole, write_json_whole
from pipeline.core.threads import usable_cores
from stages.extract.backbone.cpu_precision import bf16_instructions

BEGIN, END = "<!-- bench all -->", "<!-- end of bench all -->"
_COLUMNS = "160"
_RAW = ("--set", "extract.lift=none")
_SHORT = ("--set", "decode.end_seconds=2")


@dataclass(frozen=True, slots=True)
class Entry:
    """One command of the page.

    Attributes:
        title: Of its section.
        command: Words after ``bench``; ``{davis}``, ``{mot}`` and ``{output}`` stand for folders.
        quick: The same for ``--quick``; None leaves it out.
    """

    title: str
    command: tuple[str, ...]
    quick: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed.

    Attributes:
        title: Of its section.
        command: All its words, from ``bench`` on.
        output: Its standard output, or the end of its errors where it failed.
        seconds: How long it ran.
        day: When.
        failed: Whether it ended with an error.
    """

    title: str
    command: tuple[str, ...]
    output: str
    seconds: float
    day: str
    failed: bool = False


ENTRIES: tuple[Entry, ...] = (
    Entry("The whole flow", ("run",), ("run", *_SHORT)),
    Entry("The whole flow without LiFT", ("run", *_RAW), ("run", *_RAW, *_SHORT)),
    Entry("Stages", ("stages",), ("stages", "--frames", "40")),
    Entry("Stages without LiFT", ("stages", *_RAW), ("stages", *_RAW, "--frames", "40")),
    Entry("Thread pools", ("threads",)),
    Entry("The runner", ("runner",), ("runner",)),
    Entry("Memory", ("memory",)),
    Entry("Growth", ("scaling", "-o", "{output}/scaling"), ("scaling", "--quick", "-o", "{output}/scaling")),
    Entry("Engines", ("engines",), ("engines", "--repeats", "1", "--batch", "2")),
    Entry("Extraction", ("extraction",)),
    Entry("Label propagation", ("propagation", "--stream-frames", "20000")),
    Entry("ROIAlign", ("roi",), ("roi",)),
    Entry("Many videos", ("batch",)),
    Entry(
        "Precision",
        ("precision", "--root", "{davis}", "--split", "dev", "--mot", "{mot}", "-o", "{output}/precision"),
    ),
    Entry("Parts", ("parts", "--root", "{davis}")),
    Entry("LiFT", ("lift", "--root", "{davis}", "--facet", "token@11:norm", "--size", "112", "--size", "224")),
    Entry("Tracking", ("tracking", "--root", "{mot}")),
)
"""The page, in order."""


def bench_all(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for outputs and benchmarks.md.")],
    quick: Annotated[bool, typer.Option("--quick/--full", help="The short ones, or everything.")] = True,
    davis: Annotated[Path | None, typer.Option(help="DAVIS folder, for the commands that read it.")] = None,
    mot: Annotated[Path | None, typer.Option(help="MOTChallenge folder, for the commands that read it.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="A page in which the part between the marks is replaced, too.")
    ] = None,
) -> None:
    """Run the benchmarks and write one page with machine and date; each number stands under its command."""
    if page is not None:
        _check_marks(page)
    folders = {"davis": davis, "mot": mot, "output": output}
    chosen, missing = plan(ENTRIES, folders, quick=quick)
    console = Console(soft_wrap=True)
    for title in missing:
        console.print(f"left out, as its folder is not given: {title}")
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for number, (title, command) in enumerate(tqdm(chosen, desc="bench all", unit="command")):
        kept = output / "outputs" / f"{number:02d}-{command[1]}.json"
        result = _read(kept, command) or _run(title, command)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(kept, asdict(result))
        results.append(result)
        write_bytes_whole(output / "benchmarks.md", as_page(results).encode())
    if page is not None:
        write_bytes_whole(page, replaced(page.read_text(encoding="utf-8"), as_page(results)).encode())
    console.print(f"wrote {output / 'benchmarks.md'}")
    if failed := [result.title for result in results if result.failed]:
        raise LiftstreamError(f"these failed, see {output / 'benchmarks.md'}: {', '.join(failed)}")


def plan(
    entries: Sequence[Entry], folders: dict[str, Path | None], *, quick: bool
) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """Titles and commands to run, and the titles of those whose folder is not given.

    >>> entries = (Entry("A", ("a", "--root", "{davis}"), ("a",)), Entry("B", ("b",)))
    >>> plan(entries, {"davis": None}, quick=True)
    ([('A', ('bench', 'a'))], [])
    >>> plan(entries, {"davis": None}, quick=False)
    ([('B', ('bench', 'b'))], ['A'])
    """
    chosen, missing = [], []
    for entry in entries:
        words = entry.quick if quick else entry.command
        if words is None:
            continue
        if any("{" + name + "}" in word for word in words for name, folder in folders.items() if folder is None):
            missing.append(entry.title)
            continue
        values = {name: str(folder) for name, folder in folders.items()}
        chosen.append((entry.title, ("bench", *(word.format(**values) for word in words))))
    return chosen, missing


def as_page(results: Sequence[Result]) -> str:
    """The page as markdown."""
    lines = [f"Machine: {machine()}.", ""]
    for result in results:
        lines += [f"## {result.title}", "", f"    python run_pipeline.py {' '.join(result.command)}", ""]
        lines += [f"{result.day}, {result.seconds:.0f} s." + " It failed:" * result.failed, ""]
        lines += ["```text", *(line.rstrip() for line in result.output.strip("\n").splitlines()), "```", ""]
    return "\n".join(lines)


def replaced(text: str, content: str) -> str:
    """A page with the part between the marks replaced.

    >>> replaced(f"a {BEGIN} old {END} b", "new").splitlines()[2]
    'new'
    """
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{content}\n{END}{rest.split(END, 1)[1]}"


def machine() -> str:
    """Processor, cores that may be used, memory, GPU, and the versions that matter."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    bf16 = bf16_instructions() or "no bf16 instructions"
    return (
        f"{name}, {usable_cores()} cores, {bf16}, {memory:.0f} GiB, {gpu}; {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _check_marks(page: Path) -> None:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        raise ConfigError(f"--page {page}: the page needs the marks {BEGIN} and {END}, one after the other")


def _read(path: Path, command: tuple[str, ...]) -> Result | None:
    """A result that is there from before, unless it failed or is another command's."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        result = Result(**{**values, "command": tuple(values["command"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if result.failed or result.command != command else result


def _run(title: str, command: tuple[str, ...]) -> Result:
    script = Path(__file__).resolve().parents[2] / "run_pipeline.py"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": _COLUMNS},
        check=False,
    )
    output = done.stdout
    if done.returncode:
        output += "\n".join(done.stderr.splitlines()[-5:])
    today = date.today().isoformat()
    return Result(title, command, output, time.perf_counter() - started, today, done.returncode != 0)
