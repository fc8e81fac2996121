"""What two configs are compared by: runs that were begun before a key existed go on after it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class _Later:
    """Marks a key of a later release whose default is what was done before there was the key."""


LATER = _Later()
"""``Annotated[..., LATER]``: at its default the key is in no config's hash, nor in what a checkpoint belongs to."""


def compared_tree(config: BaseModel) -> dict[str, Any]:
    """The resolved config in plain values, without the keys marked ``LATER`` that stand at their default."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    _leave_out(config, tree)
    return tree


def _leave_out(value: Any, plain: Any) -> None:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            part = getattr(value, name)
            if LATER in field.metadata and part == field.default:
                del plain[name]
            else:
                _leave_out(part, plain[name])
    elif isinstance(value, tuple | list):
        for part, below in zip(value, plain, strict=True):
            _leave_out(part, below)
