"""YAML as people mean it: 1e-4 is a number, a key stands once, and a small file stays small."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_NODES = 100_000
"""Values in a file, each alias counted as what it stands for."""
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value == "<<" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _StrictDumper(yaml.SafeDumper):
    """Quotes the text ``1e5``, which ``_StrictLoader`` would read as a number."""


for _side in (_StrictLoader, _StrictDumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_strict_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        yaml.YAMLError: it is not YAML, holds a key twice, or is nested or repeated beyond all use.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        _expanded_size(value, {}, set())
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or holds itself") from None
    except ValueError as error:  # e.g. the 32nd of a month, a number of 5000 digits
        raise yaml.YAMLError(str(error)) from None
    return value


def write_strict_yaml(tree: Any) -> str:
    """YAML that ``read_strict_yaml`` reads back as the same value."""
    return yaml.dump(tree, Dumper=_StrictDumper, sort_keys=False, width=120)


def _expanded_size(value: Any, sizes: dict[int, int], above: set[int]) -> int:
    if not isinstance(value, dict | list):
        return 1
    if id(value) in above:
        raise yaml.YAMLError("it holds itself")
    if id(value) not in sizes:
        above.add(id(value))
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_expanded_size(part, sizes, above) for part in parts)
        above.remove(id(value))
    if sizes[id(value)] > MAX_NODES:
        raise yaml.YAMLError(f"it holds more than {MAX_NODES} values")
    return sizes[id(value)]
