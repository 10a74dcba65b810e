from __future__ import annotations

import pytest

from pipeline.core.errors import ConfigError, WeightsError
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.lift.choice import choose_lift, require_lift


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinov2_vits14")


@pytest.mark.parametrize("facet", ["token@11:norm", "key@11", "key@-1"])
def test_auto_takes_the_bundled_lift_of_the_facet(backbone: Backbone, facet: str) -> None:
    spec = parse_facet(facet)
    loaded = choose_lift("auto", backbone, spec)
    assert loaded is not None
    assert loaded.metadata.facet == str(spec.resolved(12))
    assert loaded.metadata.backbone == "dinov2_vits14"


def test_auto_is_nothing_where_none_is_bundled_and_an_error_where_one_is_needed(backbone: Backbone) -> None:
    spec = parse_facet("query@5")
    assert choose_lift("auto", backbone, spec) is None
    with pytest.raises(ConfigError, match="no bundled LiFT for query@5 of dinov2_vits14"):
        require_lift("auto", backbone, spec)


def test_auto_is_nothing_for_other_weights_of_the_backbone(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiFT is on by default, and weights of one's own must run all the same."""
    bundled = require_lift("auto", backbone, parse_facet("key@11"))
    monkeypatch.setattr(backbone, "weights_sha256", "0" * 64)
    assert choose_lift("auto", backbone, parse_facet("key@11")) is None
    with pytest.raises(WeightsError, match="backbone weights 0000"):
        choose_lift(str(bundled.path), backbone, parse_facet("key@11"))


def test_a_file_for_another_facet_is_refused(backbone: Backbone) -> None:
    bundled = require_lift("auto", backbone, parse_facet("key@11"))
    assert require_lift(str(bundled.path), backbone, parse_facet("key@11")).path == bundled.path
    with pytest.raises(WeightsError, match=r"facet token@11 \(trained for key@11\)"):
        choose_lift(str(bundled.path), backbone, parse_facet("token@11"))
