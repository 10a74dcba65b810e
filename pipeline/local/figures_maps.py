"""Figures of Deep ViT Features as Dense Visual Descriptors (Amir et al. 2021): layers, facets, parts, points."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.colors import PART_COLORS
from pipeline.core.kmeans import assign, fit_kmeans
from pipeline.images.image_sets import DescribedImage
from pipeline.images.match_images import Matcher, default_facet, draw_matches
from pipeline.local.common_parts import common_parts
from pipeline.local.figure_material import Material
from pipeline.local.figure_plots import Drawn, Plot, picture_grid
from pipeline.local.labeled_set import Image
from stages.annotate.drawing import tint
from stages.extract.backbone.facets import FACETS
from stages.extract.saliency import first_component_saliency, normalized_cut_saliency
from stages.extract.views import JointPca, paint_colors, paint_heat

_CLUSTER_FACETS = ("key", "token")
_MATCHES = 10


def draw_pca(material: Material) -> Drawn:
    """Three principal components as colors, a plot per facet, a column per layer, one basis for all images."""
    images = material.described
    plots = []
    for facet in FACETS:
        columns: list[list[Image]] = [[image.image for image in images]]
        for name in material.facets(facet):
            maps, pca = material.maps(name), JointPca()
            for one in maps:
                pca.update(one)
            pca.fit()
            columns.append([paint_colors(pca.colors(m), i.grid) for m, i in zip(maps, images, strict=True)])
        plots.append(_by_layer(material, facet, columns))
    return Drawn(plots)


def draw_kmeans(material: Material) -> Drawn:
    """Clusters of all images' descriptors; a cluster keeps its color from layer to layer where it can."""
    images = material.described
    clusters = material.settings.clusters
    plots = []
    for facet in _CLUSTER_FACETS:
        columns: list[list[Image]] = [[image.image for image in images]]
        before: IntArray | None = None
        for name in material.facets(facet):
            labels = cluster([_rows(one) for one in material.maps(name)], clusters)
            if before is not None:
                labels = renumber(labels, before, clusters)
            before = labels
            columns.append(_colored(images, labels))
        plots.append(_by_layer(material, facet, columns))
    return Drawn(plots, {"clusters": clusters})


def cluster(rows: list[FloatArray], count: int) -> IntArray:
    """The cluster of every cell of all images, int64 ``(N,)``, by k-means on unit descriptors."""
    every = normalize_rows(np.concatenate(rows))
    return assign(every, fit_kmeans(every, count, iterations=50, redo=3))[0]


def renumber(labels: IntArray, before: IntArray, count: int) -> IntArray:
    """The same clusters with the numbers of another clustering of the same cells, for the largest overlap.

    >>> renumber(np.array([0, 0, 1]), np.array([1, 1, 0]), 2).tolist()
    [1, 1, 0]
    """
    overlap = np.zeros((count, count), np.int64)
    np.add.at(overlap, (labels, before), 1)
    number = np.zeros(count, np.int64)
    old, new = linear_sum_assignment(-overlap)
    number[old] = new
    return np.asarray(number[labels], np.int64)


def draw_saliency(material: Material) -> Drawn:
    """Every saliency cue: CLS attention (where there is a CLS token), first component, normalized cut."""
    images = material.described
    titles = ["image", *(["CLS attention"] if material.has_cls else []), "first component", "normalized cut"]
    rows = []
    for image, keys, cut_keys in zip(
        images, material.maps(material.key_facet), material.maps(material.cut_facet), strict=True
    ):
        cues = [torch.from_numpy(image.saliency)] if material.has_cls else []
        cues.append(first_component_saliency(keys[None])[0])
        cues.append(normalized_cut_saliency(cut_keys[None])[0])
        rows.append((image.name, [image.image, *(paint_heat(cue, image.grid, image.image) for cue in cues)]))
    return Drawn([Plot("", picture_grid(rows, titles))])


def draw_parts(material: Material) -> Drawn:
    """Foreground and parts that all images share."""
    images = material.described
    results = common_parts(images, material.backbone.name, material.settings.parts)
    rows = [
        (
            image.name,
            [
                image.image,
                np.where(result.foreground[..., None], image.image, image.image // 5).astype(np.uint8),
                tint(image.image, result.parts, PART_COLORS, 0.65),
            ],
        )
        for image, result in zip(images, results, strict=True)
    ]
    shares = {image.name: float(result.foreground.mean()) for image, result in zip(images, results, strict=True)}
    return Drawn([Plot("", picture_grid(rows, ["image", "foreground", "parts"]))], {"foreground_share": shares})


def draw_correspondences(material: Material) -> Drawn:
    """Corresponding points of images in pairs, as ``match --no-zoom`` finds them: the paper's method."""
    name = material.backbone.name
    extractor = material.extractor_with(
        {
            "facets": (default_facet(name, "none"),), "log_bins": 2, "saliency": "auto", "cls": "final",
            "stride_px": material.model.patch_px // 2,
        }
    )  # fmt: skip
    threshold = 0.05 if extractor.cue == "cls_attention" else 0.2
    plots, numbers = [], {}
    for a, b in zip(material.named[::2], material.named[1::2], strict=False):
        matcher = Matcher(extractor, [a, b], threshold=threshold, on_view=lambda _: None)
        found = matcher.best_pairs(_MATCHES, zoom=False)
        picture = draw_matches(a[1], b[1], found.first_xy, found.second_xy)
        plots.append(Plot(f"{a[0]} and {b[0]}", picture_grid([("", [picture])], [""])))
        numbers[f"{a[0]} and {b[0]}"] = {
            "a_xy": np.round(found.first_xy.astype(np.float64), 1).tolist(),
            "b_xy": np.round(found.second_xy.astype(np.float64), 1).tolist(),
        }
    return Drawn(plots, numbers)


def _by_layer(material: Material, facet: str, columns: list[list[Image]]) -> Plot:
    names = [image.name for image in material.described]
    rows = [(name, list(pictures)) for name, *pictures in zip(names, *columns, strict=True)]
    titles = ["image", *(f"layer {layer}" for layer in material.layers)]
    return Plot(facet, picture_grid(rows, titles))


def _rows(maps: Tensor) -> FloatArray:
    return np.ascontiguousarray(maps.flatten(1).T.numpy(), np.float32)


def _colored(images: list[DescribedImage], labels: IntArray) -> list[Image]:
    """Images covered by the colors of their cells' clusters, cells at the image's size."""
    pictures = []
    ends = np.cumsum([image.grid.num_cells for image in images])[:-1]
    for image, own in zip(images, np.split(labels, ends), strict=True):
        one_hot = F.one_hot(torch.from_numpy(own)).T.float().reshape(-1, *image.grid.grid_hw)
        mask = image.grid.upsample(one_hot).argmax(dim=0).numpy().astype(np.uint8)
        pictures.append(tint(image.image, mask + np.uint8(1), PART_COLORS, 0.75))
    return pictures
