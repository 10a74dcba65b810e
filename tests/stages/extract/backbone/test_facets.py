"""Facet specs: what can be asked for, and what a wrong one says."""

from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError
from stages.extract.backbone.facets import FACETS, FacetSpec, parse_facet


@pytest.mark.parametrize("text", ["key@11", "query@0", "value@-1", "token@9", "token@-2:norm"])
def test_text_survives_a_round_trip(text: str) -> None:
    assert str(parse_facet(text)) == text


def test_a_bare_facet_is_the_last_layer() -> None:
    assert parse_facet("key") == FacetSpec("key", -1)
    assert parse_facet("token:norm") == FacetSpec("token", -1, norm=True)


@pytest.mark.parametrize("text", ["keys@11", "attn@3", "11", "key@x", "", "key@11:normed"])
def test_an_unknown_facet_names_the_valid_ones(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_facet(text)
    assert all(facet in str(caught.value) for facet in FACETS)
    assert "\n" not in str(caught.value)


def test_the_norm_is_for_tokens_only() -> None:
    with pytest.raises(ConfigError, match="tokens only"):
        parse_facet("key@11:norm")


def test_negative_layers_count_from_the_end() -> None:
    assert FacetSpec("key", -12).resolved(12).layer == 0
    assert FacetSpec("key", 11).resolved(12).layer == 11


@pytest.mark.parametrize("layer", [12, -13])
def test_a_layer_out_of_range_says_what_is_in_range(layer: int) -> None:
    with pytest.raises(ConfigError, match=r"12 layers; valid: 0 to 11, or -12 to -1"):
        FacetSpec("key", layer).resolved(12)
