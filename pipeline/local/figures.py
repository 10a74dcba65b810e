"""The papers' qualitative figures, drawn from any images and put on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_text_whole
from pipeline.core.options import names_in
from pipeline.evaluation.track_plots import save_figure
from pipeline.local.figure_material import Material
from pipeline.local.figure_plots import Drawn
from pipeline.local.figures_channels import draw_norms, draw_variance
from pipeline.local.figures_lift import draw_cka, draw_lift, draw_similarity
from pipeline.local.figures_maps import draw_correspondences, draw_kmeans, draw_parts, draw_pca, draw_saliency
from pipeline.local.page import page, picture_address
from pipeline.report.markup import Markup, element, section, text


@dataclass(frozen=True, slots=True)
class FigureEntry:
    """A row of the table of figures.

    Attributes:
        title: Its heading.
        note: What is seen, and which paper's figure it is.
        draw: Draws it.
        obstacle: Why it cannot be drawn from some material, or None.
    """

    title: str
    note: str
    draw: Callable[[Material], Drawn]
    obstacle: Callable[[Material], str | None] = lambda material: None


def _no_cls(material: Material) -> str | None:
    return (
        None
        if material.has_cls
        else f"{material.backbone.name} has no CLS token, whose attention starts the parts"
    )


def _one_image(material: Material) -> str | None:
    return None if len(material.named) > 1 else "it takes two images"


def _no_lift(material: Material) -> str | None:
    if material.has_lift:
        return None
    return f"there is no LiFT for {material.lift_facet} of {material.backbone.name}; name one with --lift"


_AMIR: Final = "Amir et al., Deep ViT Features as Dense Visual Descriptors"
_SURI: Final = "Suri et al., LiFT"

FIGURES: Final[dict[str, FigureEntry]] = {
    "pca": FigureEntry(
        "Principal components over layers and facets",
        f"Three components as red, green and blue; a color means the same in all images of a column. {_AMIR}.",
        draw_pca,
    ),
    "kmeans": FigureEntry(
        "Clusters over layers",
        "k-means on the descriptors of all images together. Early layers cluster positions, later ones content. "
        f"{_AMIR}.",
        draw_kmeans,
    ),
    "saliency": FigureEntry(
        "Saliency", f"Attention of the CLS token ({_AMIR}) and two cues that need none.", draw_saliency
    ),
    "parts": FigureEntry(
        "Part co-segmentation",
        f"Foreground that the images share, and its parts; a color is the same part in all images. {_AMIR}.",
        draw_parts,
        _no_cls,
    ),
    "correspondences": FigureEntry(
        "Correspondences",
        f"Points of two images that are each other's nearest neighbors; images in pairs. {_AMIR}.",
        draw_correspondences,
        _one_image,
    ),
    "lift": FigureEntry(
        "LiFT",
        f"Principal components of features as they are, upsampled bilinearly, and lifted. {_SURI}.",
        draw_lift,
        _no_lift,
    ),
    "similarity": FigureEntry(
        "Self-similarity",
        "Cosine similarity to the descriptor under the cross, from the image's smallest (blue) to 1 (red). "
        f"{_SURI}.",
        draw_similarity,
        _no_lift,
    ),
    "cka": FigureEntry(
        "Agreement of scales and layers",
        f"Linear CKA: 1 means the same up to rotation and scale. Layers count from 0. {_SURI}.",
        draw_cka,
    ),
    "variance": FigureEntry(
        "Variances of channels",
        "A steep beginning means that a few channels decide distances. Vanyan et al., Analyzing Local "
        "Representations of Self-supervised Vision Transformers.",
        draw_variance,
    ),
    "norms": FigureEntry(
        "Norms of tokens",
        "On one scale, red is the largest norm of all images. Singular defects stand out an order of magnitude in "
        "DINOv2 ViT-g; small models have few or none. Wang et al., SINDER.",
        draw_norms,
    ),
}
"""Every figure, in the order of the page."""


def choose_figures(text_: str) -> list[str]:
    """Names of figures from a comma-separated list, in the order of the page; all of them from an empty one.

    >>> choose_figures("norms, pca")
    ['pca', 'norms']

    Raises:
        ConfigError: A figure that does not exist.
    """
    wanted = names_in(text_)
    wrong = [name for name in wanted if name not in FIGURES]
    if wrong:
        raise ConfigError(f"--only {text_}: no figure '{wrong[0]}'; choose from {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in wanted or not wanted]


def require_possible(names: Sequence[str], material: Material) -> None:
    """Check that figures can be drawn.

    Raises:
        ConfigError: One cannot; says why.
    """
    for name in names:
        reason = FIGURES[name].obstacle(material)
        if reason is not None:
            raise ConfigError(f"figure '{name}' cannot be drawn: {reason}")


@dataclass(frozen=True, slots=True)
class PageFigure:
    """One figure of one backbone.

    Attributes:
        backbone: Its name.
        name: In the table of figures.
        files: Pictures, beside the page.
        captions: Of the pictures.
        numbers: For the JSON file.
        reason: Why there is none, or empty.
    """

    backbone: str
    name: str
    files: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()
    numbers: Mapping[str, Any] | None = None
    reason: str = ""


def draw_figure(name: str, material: Material, output: Path) -> PageFigure:
    """Draw a figure and write its pictures, or say why it is not there."""
    entry, backbone = FIGURES[name], material.backbone.name
    reason = entry.obstacle(material)
    if reason is not None:
        return PageFigure(backbone, name, reason=reason)
    drawn = entry.draw(material)
    files = []
    for number, plot in enumerate(drawn.plots, start=1):
        ending = f"_{number}" if len(drawn.plots) > 1 else ""
        files.append(output / f"{name}_{backbone}{ending}.png")
        save_figure(plot.figure, files[-1])
    return PageFigure(backbone, name, tuple(files), tuple(plot.caption for plot in drawn.plots), drawn.numbers)


def write_figures_page(path: Path, figures: Sequence[PageFigure], note: str) -> None:
    """All figures on one page with the pictures inside."""
    several = len({figure.backbone for figure in figures}) > 1
    links = "".join(
        element("a", text(_title(figure, several=several)), href=f"#{_anchor(figure)}") for figure in figures
    )
    body = element("h1", "Figures") + element("p", text(note), class_="note") + element("nav", links)
    body += "".join(_section(figure, several=several) for figure in figures)
    write_text_whole(path, page("Figures", body))


def _section(figure: PageFigure, *, several: bool) -> Markup:
    inner = [element("p", text(f"Not drawn: {figure.reason}."))] if figure.reason else []
    for file, caption in zip(figure.files, figure.captions, strict=True):
        if caption:
            inner.append(element("h3", text(caption)))
        described = f"{FIGURES[figure.name].title}, {caption}" if caption else FIGURES[figure.name].title
        inner.append(element("img", src=picture_address(file.read_bytes()), alt=described, class_="figure"))
    return section(_title(figure, several=several), *inner, note=FIGURES[figure.name].note, id_=_anchor(figure))


def _title(figure: PageFigure, *, several: bool) -> str:
    title = FIGURES[figure.name].title
    return f"{title}, {figure.backbone}" if several else title


def _anchor(figure: PageFigure) -> str:
    return f"{figure.name}-{figure.backbone}"
