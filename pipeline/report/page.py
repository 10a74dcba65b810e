"""``report.html``: what a run found, where it is doubtful, and what it cost, on one page that needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.files import path_inside, write_text_whole
from pipeline.formats.run_folder import VIDEO, RunFolder
from pipeline.report import facts
from pipeline.report.charts import confidence_strips, name_of, swatch, time_line
from pipeline.report.markup import Markup, element, report_document, section, text
from pipeline.report.pictures import packed_masks, thumbnails
from pipeline.report.strips import Clock, Moment, Strip, most_doubtful, object_strips, track_strips
from stages.write.folder import REPORT

NUM_DOUBTFUL = 12
_MAX_TOGGLES = 60


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the output folder of a run.

    Returns:
        The page.

    Raises:
        OutputError: It is not the folder of a run, or cannot be written.
        LabelFileError: ``objects.csv`` or ``tracks.txt`` is damaged.
    """
    path = path_inside(folder, REPORT)
    write_text_whole(path, report_page(RunFolder(folder)))
    return path


def report_page(run: RunFolder) -> str:
    """The page as HTML."""
    objects, tracks = run.objects(), run.tracks()
    clock = Clock(run, run.frames({"objects": objects.frames, "tracks": tracks.frames}))
    of_objects, of_tracks = object_strips(objects, clock, run.object_names), track_strips(tracks, clock)
    strips = of_objects or of_tracks
    moments = most_doubtful(strips, NUM_DOUBTFUL, clock)
    masks = packed_masks(run, clock)
    body = "".join(
        (
            facts.header(run, clock, len(strips)),
            facts.problems(run) if _has_problems(run) else "",
            _player(run, of_objects if masks else [], masks),
            _doubtful(moments, thumbnails(run, [moment.frame for moment in moments], clock)),
            _confidence(strips, clock, of_masks=bool(of_objects)),
            _tracks(of_tracks, clock),
            facts.parts(run),
            facts.stages(run),
            "" if _has_problems(run) else facts.problems(run),
            facts.settings(run),
            facts.versions(run),
        )
    )
    data = {"frame_seconds": clock.frame_seconds, "duration": clock.duration, "masks": masks}
    data["colors"] = {str(strip.object_id): strip.color for strip in of_objects}
    return report_document(f"{run.name}: liftstream report", element("main", body), data=data)


def _has_problems(run: RunFolder) -> bool:
    record = run.record
    return bool(record.get("problem") or record.get("warnings") or run.report_of("decode").get("num_gaps"))


def _player(run: RunFolder, strips: list[Strip], masks: dict[str, Any] | None) -> Markup:
    """The annotated video with the masks as a layer that can be switched on per object."""
    if run.file(VIDEO) is None:
        return section("Video", element("p", text("The run wrote no annotated video.")))
    height, width = run.image_hw
    video = element("video", id="video", src=VIDEO, controls="", playsinline="", preload="auto")
    screen = element(
        "div", video, element("canvas", id="overlay"), class_="screen", style=f"aspect-ratio:{width}/{height}"
    )
    if not strips or masks is None:
        return section("Video", screen)
    toggles = "".join(
        element(
            "label",
            element("input", type="checkbox", class_="toggle", value=strip.object_id),
            swatch(strip.color),
            text(name_of(strip)),
        )
        for strip in strips[:_MAX_TOGGLES]
    )
    step = int(masks["step"])
    note = "Tick an object to light up its mask and darken the rest."
    if step > 1:
        note += f" Masks here are those of every {step}th frame, at reduced size."
    buttons = element("button", text("all"), type="button", id="all") + element(
        "button", text("none"), type="button", id="none"
    )
    return section("Video", screen, element("div", buttons, toggles, class_="toggles"), note=note, id_="player")


def _doubtful(moments: list[Moment], pictures: dict[int, str]) -> Markup:
    if not moments:
        return ""
    cards = "".join(_card(moment, pictures.get(moment.frame)) for moment in moments)
    note = "The frames with the least certain masks or boxes; click one to see it in the video."
    return section("Most doubtful frames", element("div", cards, class_="cards"), note=note, id_="doubtful")


def _card(moment: Moment, picture: str | None) -> Markup:
    caption = f"frame {moment.frame}, {moment.seconds:.2f} s"
    image = "" if picture is None else f'<img src="{picture}" alt="{text(caption)}" loading="lazy">'
    score = element("b", text(f"#{moment.object_id}: {moment.confidence:.2f}"))
    return element(
        "button",
        image,
        element("span", score, element("br"), text(caption), class_="caption"),
        class_="card jump",
        type="button",
        data_t=f"{moment.seconds:.4f}",
    )


def _confidence(strips: list[Strip], clock: Clock, *, of_masks: bool) -> Markup:
    if not strips:
        return ""
    what = "Confidence of each object's mask" if of_masks else "Score of each tracked box"
    note = f"{what} over the video. Dots mark the worst moments; click anywhere to go there."
    return section("Confidence over time", confidence_strips(strips, clock), note=note, id_="confidence")


def _tracks(strips: list[Strip], clock: Clock) -> Markup:
    if not strips:
        return ""
    note = "When each track was seen. An empty stretch is a time in which it was not detected."
    return section("Tracks", time_line(strips, clock), note=note, id_="tracks")
