"""Named settings in a config file: what every preset shares under ``common``, the differences under ``presets``.

::

    common: {extract: {...}, propagate: {...}}
    presets:
      dino: {about: "one line", extract: {...}}

A preset may name another one in ``based_on`` and give only what differs from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.config import load_yaml, merge
from pipeline.core.errors import ConfigError

_NOT_SETTINGS = ("about", "based_on")


def load_preset(path: Path, name: str | None) -> dict[str, Any]:
    """The settings of a preset as one nested mapping, ready for ``load_config``.

    Args:
        path: A YAML file with presets; without ``name`` any config file.
        name: The preset; None takes the file's ``default``, or the whole file where it has no presets.

    Raises:
        ConfigError: The file or the preset does not exist, or presets are based on each other in a circle.
    """
    values = load_yaml(path)
    if "presets" not in values:
        if name is not None:
            raise ConfigError(f"{path}: has no presets, so there is no '{name}'; leave --preset out")
        return values
    presets = values["presets"]
    if not isinstance(presets, Mapping):
        raise ConfigError(f"{path}: presets: is a mapping of names to settings")
    return merge(values.get("common") or {}, _resolve(path, presets, name or str(values.get("default")), ()))


def _resolve(path: Path, presets: Mapping[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ConfigError(f"{path}: presets based on each other in a circle: {' -> '.join((*seen, name))}")
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{path}: no preset '{name}'{hint}; there are: {', '.join(presets)}")
    own = dict(presets[name] or {})
    base = own.get("based_on")
    for key in _NOT_SETTINGS:
        own.pop(key, None)
    return merge(_resolve(path, presets, str(base), (*seen, name)), own) if base else own
