"""Turning data into a pydantic model with errors fit for users: one line, the dotted key, the nearest valid key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwconfigs.errors import ConfigError, nearest

ModelT = TypeVar("ModelT", bound=BaseModel)
Loc = tuple[str | int, ...]


class Frozen(BaseModel):
    """Base of all descriptions: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def within(low: int, high: int) -> Any:
    """Field metadata that bounds a whole number to ``low..high``, both included.

    For use as ``Annotated[int, within(1, 8)]``. Strict: ``true``, ``8.0`` and ``"8"`` are refused, not converted.
    """
    return Field(ge=low, le=high, strict=True)


def build(model: type[ModelT], data: object, where: Callable[[Sequence[str | int]], str]) -> ModelT:
    """Validate ``data`` as ``model``. ``where`` maps the path of the offending key to a place, e.g. ``file:line``.

    Raises `ConfigError` on the first problem and says how many more there are. The text of a ``ValueError`` raised by a
    validator may begin with a key of its own model (``"channels = 3 is ..."``); the path to that model is put in front.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt key usually shows up as a missing one too; the misspelling is what the user has to see.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        loc, text = _explain(model, first)
        raise ConfigError(f"{where(loc)}: {text}{more}") from None


def _explain(model: type[BaseModel], problem: Mapping[str, Any]) -> tuple[Loc, str]:
    loc: Loc = tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(map(str, loc))
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "value_error":
        return _explain_own(model, loc, str(context["error"]))
    if kind == "extra_forbidden":
        parent = model_at(model, loc[:-1])
        return loc, f"unknown key {key!r}{nearest(loc[-1], parent.model_fields if parent else ())}"
    if kind == "missing":
        return loc, f"key {key!r} is missing"
    if kind == "model_type":
        inner = model_at(model, loc) or model
        return loc, f"{key} = {value!r}: expected keys: {', '.join(inner.model_fields)}"
    if kind in ("greater_than", "greater_than_equal", "less_than_equal"):
        return loc, f"{key} = {value!r} is out of range: expected {_range(model, loc)}"
    if kind == "literal_error":
        return loc, f"{key} = {value!r} is not valid; expected {context['expected']}"
    if kind.startswith("int_"):
        return loc, f"{key} = {value!r}: expected a whole number"
    return loc, f"{key} = {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _explain_own(model: type[BaseModel], loc: Loc, text: str) -> tuple[Loc, str]:
    """Place and text of an error that a validator of ours raised."""
    first, _, rest = text.partition(" ")
    own = (*loc, *first.split("."))
    owner = model_at(model, loc)
    if owner is not None and own[len(loc)] in owner.model_fields:
        return own, f"{'.'.join(map(str, own))} {rest}"
    return loc, f"{'.'.join(map(str, loc))}: {text}" if loc else text


def _annotation_at(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[Any, Sequence[Any]]:
    """Type and metadata of the value at path ``loc`` below ``model``; (None, ()) where there is no such place."""
    kind: Any = model
    metadata: Sequence[Any] = ()
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            field = kind.model_fields[str(part)]
            kind, metadata = _unwrapped(field.annotation, field.metadata)
        elif get_origin(kind) in (dict, tuple):
            # Values of a mapping, elements of a homogeneous tuple.
            kind, metadata = _unwrapped(get_args(kind)[1 if get_origin(kind) is dict else 0], ())
        else:
            return None, ()
    return kind, metadata


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """``X`` and the metadata of ``Annotated[X, ...]`` and of ``X | None``; anything else as it is."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        return _unwrapped(inner, [*metadata, *own])
    if get_origin(annotation) in (Union, UnionType):
        return _unwrapped(next(arg for arg in get_args(annotation) if arg is not type(None)), metadata)
    return annotation, metadata


def model_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model class that holds the keys at path ``loc`` below ``model``, or None where keys are free (a mapping)."""
    kind, _ = _annotation_at(model, loc)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _range(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    """``"low..high"`` as declared with `within`, or the one limit that a value has."""
    _, metadata = _annotation_at(model, loc)
    limits: dict[str, int] = {}
    for entry in metadata:
        for item in (entry, *getattr(entry, "metadata", ())):
            limits |= {name: getattr(item, name) for name in ("gt", "ge", "le") if hasattr(item, name)}
    if {"ge", "le"} <= limits.keys():
        return f"{limits['ge']}..{limits['le']}"
    words = {"gt": "above", "ge": "at least", "le": "at most"}
    return " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())
