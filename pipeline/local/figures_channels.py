"""Figures of single channels and tokens: the spectrum of variances (MAE-200) and norms of tokens (SINDER)."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.local.figure_material import Material
from pipeline.local.figure_plots import DPI, Drawn, Plot, picture_grid
from pipeline.local.probe_report import draw_spectra
from stages.extract.high_variance import ChannelVariance
from stages.extract.views import paint_heat, stretch

_SHARE_OF = (10, 100)


def draw_variance(material: Material) -> Drawn:
    """The variances of channels over all patches, largest first, by layer and facet."""
    shown = [*material.facets("token"), f"{material.token_facet}:norm", material.key_facet]
    spectra, numbers = {}, {}
    for number, name in enumerate(dict.fromkeys(shown)):
        variance = ChannelVariance()
        for one in material.maps(name):
            variance.update(one)
        values = variance.value().numpy()
        spectra[name] = (values.astype(np.float32), matplotlib.colormaps["tab10"](number % 10))
        falling = np.sort(values)[::-1]
        numbers[name] = {f"share_of_top_{n}": round(float(falling[:n].sum() / values.sum()), 4) for n in _SHARE_OF}
    figure = Figure(figsize=(8.5, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    draw_spectra(axes, spectra)
    axes.set_ylabel("variance over all patches")
    return Drawn([Plot("", figure)], numbers)


def draw_norms(material: Material) -> Drawn:
    """Norms of the last layer's tokens, before and after defective ones are smoothed, on one scale."""
    facet = material.token_facet
    plain = material.maps(facet)
    fixed, repair = material.repaired(facet)
    largest = max(float(one.norm(dim=0).max()) for one in (*plain, *fixed))
    rows, ratios = [], {}
    for image, before, after in zip(material.described, plain, fixed, strict=True):
        norms = [one.norm(dim=0) for one in (before, after)]
        shown = [stretch(values, (0.0, largest)) for values in norms]
        heats = [paint_heat(values, image.grid, image.image, opacity=1.0) for values in shown]
        rows.append((image.name, [image.image, *heats]))
        ratios[image.name] = [round(float(one.max() / one.median()), 3) for one in norms]
    titles = ["image", f"norms of {facet}", f"repaired, {repair['smoothed_tokens']} tokens smoothed"]
    return Drawn([Plot("", picture_grid(rows, titles))], {"largest_over_median": ratios, "repair": repair})
