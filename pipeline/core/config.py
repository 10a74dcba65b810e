"""Loading and checking configs: YAML files, ``--set a.b=value`` and presets, into pydantic models.

The models live beside what they configure (``config.py`` in each stage's folder); this module knows none of
them. Every model derives from :class:`StrictModel`, so an unknown key is an error that suggests the right one.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.core.errors import ConfigError

_MAX_YAML_BYTES = 1 << 20
_SHOWN_CHARACTERS = 80


class StrictModel(BaseModel):
    """A frozen config model that refuses unknown keys and checks its defaults.

    Keys of earlier releases, with a :class:`FutureWarning` each:

    - ``RENAMED`` maps an old key to the one that took its place; the value is used.
    - ``REMOVED`` names keys that no longer do anything; the value is ignored.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}
    REMOVED: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        current = dict(values)
        for old in [key for key in current if key in cls.REMOVED]:
            warnings.warn(f"the config key '{old}' has no effect any more; remove it", FutureWarning, stacklevel=2)
            del current[old]
        for old in [key for key in current if key in cls.RENAMED]:
            new = cls.RENAMED[old]
            if new in current:
                raise ValueError(f"'{old}' is the old name of '{new}', and both are given")
            warnings.warn(f"the config key '{old}' is now called '{new}'", FutureWarning, stacklevel=2)
            current[new] = current.pop(old)
        return current


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few nested ones make a file of one kilobyte stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def parse_yaml(text: str) -> Any:
    """YAML text as plain values, read safely.

    Raises:
        yaml.YAMLError: It is not YAML, uses aliases, or is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except ValueError as error:  # a date or a number that Python cannot hold
        raise yaml.YAMLError(str(error)) from error


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read safely.

    Raises:
        ConfigError: The file is missing, is not YAML or does not hold a mapping.
    """
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise ConfigError(f"{path}: is larger than {_MAX_YAML_BYTES >> 20} MiB, which is not a config")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, this is a {type(values).__name__}")
    return values


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``a.b=value`` assignments as one nested mapping; values are read as YAML.

    >>> parse_overrides(["propagate.top_k=10", "track.enabled=false"])
    {'propagate': {'top_k': 10}, 'track': {'enabled': False}}

    Raises:
        ConfigError: An assignment without ``=`` or with a value that is not YAML.
    """
    merged: dict[str, Any] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment!r}: write it as key.subkey=value")
        try:
            value: Any = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not valid YAML") from error
        for key in reversed(keys):
            value = {key: value}
        merged = merge(merged, value)
    return merged


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``top`` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def load_config(model: type[ModelT], *layers: Mapping[str, Any], origin: str = "config") -> ModelT:
    """Validate the merged ``layers`` (later ones win) as a ``model``.

    Args:
        model: The pydantic model.
        layers: Nested mappings, for example a file's content and the ``--set`` values.
        origin: What to name in an error, for example the file's path.

    Raises:
        ConfigError: One line for every wrong key or value, the nearest valid key suggested.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        problems = [_explain(model, dict(item)) for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(problems)) from error


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{_suggestion(model, location)}"
    message = item["msg"][0].lower() + item["msg"][1:]
    given = repr(item["input"])
    if len(given) > _SHOWN_CHARACTERS:
        given = f"{given[:_SHOWN_CHARACTERS]}..."
    return f"{dotted or 'values'}: {message} (got {given})"


def _suggestion(model: type[BaseModel], location: list[str]) -> str:
    parent = _descend(model, location[:-1])
    names = list(parent.model_fields) if parent else []
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if near:
        return f", did you mean '{'.'.join([*location[:-1], near[0]])}'?"
    elsewhere = [path for path in _all_keys(model) if path.rsplit(".", 1)[-1] == location[-1]]
    if elsewhere:
        return f", did you mean '{elsewhere[0]}'?"
    return f"; valid keys here: {', '.join(sorted(names))}" if names else ""


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name in model.model_fields:
        yield prefix + name
        inner = _descend(model, [name])
        if inner is not None:
            yield from _all_keys(inner, f"{prefix}{name}.")


def _descend(model: type[BaseModel], names: list[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for name in names:
        if current is None or name not in current.model_fields:
            return None
        current = _model_in(current.model_fields[name].annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
    return None
