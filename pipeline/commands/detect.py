"""``detect``: boxes and masks of objects in images or a video, by a trained detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, LabelFileError, MediaError
from pipeline.core.files import IMAGE_SUFFIXES, write_json_whole
from pipeline.detect.model import Detector, Image, Instances, pretty_settings
from pipeline.detect.results import coco_data_set, coco_results, draw
from pipeline.detect.weights_file import load_any_detector
from pipeline.formats.image_folder import load_image
from pipeline.formats.json_file import load_json
from pipeline.images import image_sets
from stages.decode import DecodeConfig, Decoder, probe


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image to look for objects in: name of its picture, its file's name, pixels."""

    name: str
    file_name: str
    image: Image


def detect(
    inputs: Annotated[list[Path], typer.Argument(help="Images, folders of them, or one video.")],
    checkpoint: Annotated[
        Path, typer.Option(help="A detector written by train-detect, or a ViTDet Mask R-CNN of Detectron2.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    lift: Annotated[
        Path | None, typer.Option(help="A LiFT to put into a detector that was trained without one.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of a backbone that is not bundled.")] = None,
    min_score: Annotated[float, typer.Option(min=0.05, max=1.0, help="Smallest score that is kept.")] = 0.3,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO JSON whose image ids the results shall have, by file name.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Every n-th frame of a video.")] = 1,
    pictures: Annotated[bool, typer.Option(help="Write a picture per image.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Find objects: COCO results with boxes and masks, and pictures."""
    source = _open_source(inputs, every)
    ids = None if annotations is None else image_ids(annotations)
    loaded = load_any_detector(checkpoint, lift=lift, backbone_weights=weights, device=device)
    detector = loaded.detector
    image_sets.claim_folder(output, overwrite=overwrite)
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for item in tqdm(source.items(), total=source.total, desc="detect", unit="image"):
        number = len(images) + 1 if ids is None else _id_of(ids, item, annotations)
        found = detector.detect([item.image], min_score=min_score)[0]
        results += coco_results(found, number, detector.settings)
        height, width = item.image.shape[:2]
        images.append({"id": number, "file_name": item.file_name, "height": height, "width": width})
        if pictures:
            _write_picture(output, item, found, detector)
    write_json_whole(output / "results.json", results)
    write_json_whole(output / "coco.json", coco_data_set(images, results, detector.settings))
    facts = {"checkpoint": str(checkpoint), "min_score": min_score, "images": len(images), "found": len(results)}
    write_json_whole(output / "detect.json", {**facts, "detector": pretty_settings(detector)})
    _show(output, results, detector, len(images), source.warnings())


class _Source:
    """The images, one after another."""

    def __init__(self, files: Sequence[Path], decoder: Decoder | None) -> None:
        self._files = files
        self._decoder = decoder
        self.total = len(files) if decoder is None else decoder.expected_frames()

    def items(self) -> Iterator[NamedImage]:
        """The images in order, with different names."""
        if self._decoder is not None:
            for frame in self._decoder():
                yield NamedImage(f"{frame.index:05d}", f"{frame.index:05d}.jpg", frame.image)
            return
        seen: Counter[str] = Counter()
        for file in self._files:
            seen[file.stem] += 1
            name = file.stem if seen[file.stem] == 1 else f"{file.stem}_{seen[file.stem]}"
            yield NamedImage(name, file.name, load_image(file))

    def warnings(self) -> list[str]:
        """What went wrong while a video was read."""
        return [] if self._decoder is None else self._decoder.warnings


def _open_source(inputs: Sequence[Path], every: int) -> _Source:
    videos = [path for path in inputs if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES]
    if not videos:
        return _Source(image_sets.find_images(inputs), None)
    if len(inputs) > 1:
        raise MediaError(f"{videos[0]}: give one video, or images and folders of images")
    config = load_config(DecodeConfig, {"every": every}, origin="detect")
    return _Source([], Decoder(config, probe(videos[0], config)))


def image_ids(annotations: Path) -> dict[str, int]:
    """Numbers of the images of a COCO file by the last part of their file names.

    Raises:
        LabelFileError: It is not a COCO file, or two images have the same name.
    """
    content = load_json(annotations)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise LabelFileError(f"{annotations}: has no list 'images' (COCO JSON)")
    found: dict[str, int] = {}
    for place, entry in enumerate(entries):
        try:
            name, number = Path(str(entry["file_name"])).name, int(entry["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise LabelFileError(f"{annotations}: image {place}: needs file_name and id") from error
        if name in found:
            raise LabelFileError(f"{annotations}: two images are called {name}; their ids cannot be found by name")
        found[name] = number
    return found


def _id_of(ids: dict[str, int], item: NamedImage, annotations: Path | None) -> int:
    if item.file_name not in ids:
        raise ConfigError(f"{item.file_name}: is not an image of {annotations}; leave --annotations out")
    return ids[item.file_name]


def _write_picture(output: Path, item: NamedImage, found: Instances, detector: Detector) -> None:
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    image_sets.write_picture(folder / f"{item.name}.png", draw(item.image, found, detector.settings))


def _show(output: Path, results: list[dict[str, Any]], detector: Detector, images: int, warned: list[str]) -> None:
    names = dict(zip(detector.settings.category_ids, detector.settings.categories, strict=True))
    counts = Counter(names[entry["category_id"]] for entry in results)
    console = Console(soft_wrap=True)
    table = Table(title=f"{len(results)} objects in {images} images", title_justify="left")
    for column in ("class", "objects", "best score"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, count in counts.most_common():
        best = max(entry["score"] for entry in results if names[entry["category_id"]] == name)
        table.add_row(name, str(count), f"{best:.3f}")
    console.print(table)
    for text in warned:
        console.print(f"warning: {text}")
    console.print(f"wrote {output / 'results.json'}, {output / 'coco.json'}")
