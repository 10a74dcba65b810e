from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.core.config import StrictModel, load_config, load_yaml, merge, parse_overrides
from pipeline.core.errors import ConfigError
from pipeline.core.presets import load_preset
from pipeline.flow import FlowConfig, load_flow_config
from tests.conftest import REPOSITORY


class Inner(StrictModel):
    top_k: int = 5


class Outer(StrictModel):
    inner: Inner = Inner()
    maybe: Inner | None = None
    name: str = "a"


def test_later_layers_win_key_by_key() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}) == {"a": {"b": 4, "c": 2}, "d": 3}
    assert load_config(Outer, {"inner": {"top_k": 7}}, {"name": "b"}) == Outer(inner=Inner(top_k=7), name="b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": 1}, "unknown key 'nam', did you mean 'name'?"),
        ({"inner": {"topk": 1}}, "unknown key 'inner.topk', did you mean 'inner.top_k'?"),
        ({"maybe": {"topk": 1}}, "did you mean 'maybe.top_k'?"),
        ({"top_k": 1}, "did you mean 'inner.top_k'?"),
        ({"zzz": 1}, "valid keys here: inner, maybe, name"),
        ({"inner": {"top_k": "x"}}, "inner.top_k: input should be a valid integer"),
    ],
)
def test_wrong_keys_and_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, values, origin="here")
    assert message in str(caught.value)
    assert str(caught.value).startswith("here: ")


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", "a=[1"])
def test_malformed_overrides_are_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([assignment])


@pytest.mark.parametrize("text", ["- 1", "a: [", "!!python/object:os.system {}"])
def test_yaml_that_is_no_plain_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_yaml(path)


def test_default_yaml_holds_every_field_at_its_default() -> None:
    """The file is the reference people read: a field missing from it, or another value, is a lie."""
    written = yaml.safe_load((REPOSITORY / "configs" / "default.yaml").read_text())
    defaults = FlowConfig().model_dump(mode="json")
    assert written == defaults


def test_fast_cpu_yaml_loads() -> None:
    assert load_flow_config(REPOSITORY / "configs" / "fast_cpu.yaml") != FlowConfig()


def test_accurate_masks_are_those_of_the_best_preset() -> None:
    accurate = load_flow_config(REPOSITORY / "configs" / "accurate_masks.yaml")
    best = load_config(FlowConfig, load_preset(REPOSITORY / "configs" / "davis.yaml", "best"), origin="best")
    assert accurate.propagate == best.propagate
    assert accurate.extract.model_copy(update={"cls": best.extract.cls}) == best.extract
    assert accurate.annotate.enabled
    assert accurate.track.enabled


class Renamed(StrictModel):
    RENAMED = {"old_name": "new_name"}  # noqa: RUF012
    REMOVED = ("gone",)

    new_name: int = 1


def test_an_old_key_works_and_names_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="'old_name' is now called 'new_name'"):
        assert load_config(Renamed, {"old_name": 7}).new_name == 7
    with pytest.raises(ConfigError, match="old name of 'new_name', and both are given"):
        load_config(Renamed, {"old_name": 7, "new_name": 8})


def test_a_removed_key_is_ignored_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'gone' has no effect"):
        assert load_config(Renamed, {"gone": True}) == Renamed()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "[" * 5000 + "]" * 5000,
        "a: " + "1" * 5000,
        "when: 2024-99-99",
    ],
    ids=["aliases", "nesting", "digits", "date"],
)
def test_hostile_yaml_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml(path)


def test_the_value_in_an_error_is_cut_short() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, {"inner": {"top_k": "x" * 10_000}})
    assert len(str(caught.value)) < 250
