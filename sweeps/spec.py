"""The sweep specification: a YAML file saying which model runs on which hardware points.

.. code-block:: yaml

    name: my-sweep
    model: onnx:light_resnet50          # or a path from this file's folder; may be swept, as may batch and base
                                        # a language model's config.json takes dims, swept or not: dims: {context: 4096}
    base: npu-server-128x128x4          # preset, file, or the description itself
    set: {dma.descriptors_per_cycle: 8} # the same at every point
    sweep:                              # every combination; the first key varies slowest
      dram.channels: [4, 8, 16]
      clocks.dram_mhz: {start: 600, stop: 1200, step: 200}
      dram.read_queue: {start: 16, stop: 256, num: 5, scale: log}
    zip:                                # a list of groups; the keys of a group advance together
      - {cores.rows: [64, 128], cores.cols: [64, 128]}
    derived:                            # arithmetic over keys, the earlier derived ones included
      dram.write_queue: dram.read_queue // 2
    exclude:                            # a point that matches all of a condition is dropped
      - {dram.channels: 16, cores.rows: [64]}
    prune: {keep: 0.25}                 # simulate the best quarter by the closed form, or {factor: 1.5}: see `Prune`
    energy: horowitz-45nm               # columns of energy and power, by this table of unit energies
    compat: onnxim                      # reproduce ONNXim, faults included; not together with prune
    skip_unknown: true                  # leave out operators that are not modelled, with a warning
    max_cycles: 20000000                # a point that takes longer ends with status cycle_limit
    lanes: 128                          # points side by side in one JAX program; left out, what measured best

Instead of a model, tenants can share the chip; `sweeps.mix_points` explains the keys ``mix``, ``workloads`` and
``alone`` and what can be swept then.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, field_validator, model_validator

from hwconfigs.errors import UserError
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import Document, read_document
from sweeps.expressions import Expression, ExpressionError, Scalar

MAX_AXIS_VALUES = 100_000
MAX_LANES = 1 << 20
MAX_CYCLES = (1 << 62) - 1
TENANTS = "tenants"
"""Key of the tenants of a mix, and first part of the keys of their fields."""


class SpecError(UserError):
    """A sweep specification that cannot be read or does not make sense."""


class Range(Frozen):
    """Values from `start` to `stop`, both included: every `step`, or `num` of them on a linear or log scale.

    When start and stop are whole numbers the values of a `num` range are rounded, and repeated ones dropped.
    """

    start: int | FiniteFloat
    stop: int | FiniteFloat
    step: int | FiniteFloat | None = None
    num: Annotated[int, within(2, MAX_AXIS_VALUES)] | None = None
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.step is None) == (self.num is None):
            raise ValueError("a range takes either 'step' or 'num'")
        if self.step is not None:
            if self.scale == "log":
                raise ValueError("'scale: log' goes with 'num', not with 'step'")
            if self.step == 0 or (self.stop - self.start) * self.step < 0:
                raise ValueError(f"step {self.step} never leads from {self.start} to {self.stop}")
            if (self.stop - self.start) / self.step >= MAX_AXIS_VALUES:
                raise ValueError(f"more than {MAX_AXIS_VALUES} values")
        if self.scale == "log" and min(self.start, self.stop) <= 0:
            raise ValueError("a log range needs start and stop above 0")
        return self

    def values(self) -> list[Scalar]:
        """Return the values in order from start to stop."""
        if self.step is not None:
            # The small slack keeps `stop` when a decimal step does not divide the distance exactly in binary.
            count = math.floor((self.stop - self.start) / self.step + 1e-9) + 1
            return [_tidy(self.start + index * self.step) for index in range(count)]
        assert self.num is not None
        fractions = [index / (self.num - 1) for index in range(self.num)]
        if self.scale == "log":
            spread = [self.start * (self.stop / self.start) ** fraction for fraction in fractions]
        else:
            spread = [self.start + (self.stop - self.start) * fraction for fraction in fractions]
        if isinstance(self.start, int) and isinstance(self.stop, int):
            return list(dict.fromkeys(round(value) for value in spread))
        return [_tidy(value) for value in spread]


def _tidy(value: int | float) -> int | float:
    """Drop the binary noise of a decimal step: 0.1 * 3 is meant to be 0.3."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


class Prune(Frozen):
    """Which points are simulated, by what the closed form expects of them (see `sweeps.estimates`); the others end with
    status ``pruned`` and their estimate, and have no cycles.

    keep: this share of the points, the fastest, rounded up. factor: those that take at most so many times as long as
    the fastest. Both by estimated time (not cycles: clocks may differ), each workload (model, batch, dims) by itself;
    points with the estimate of the last one kept are kept too. ``keep: 1`` prunes nothing, and stores the estimates.
    """

    keep: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    factor: Annotated[FiniteFloat, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.keep is None) == (self.factor is None):
            raise ValueError("give either 'keep' or 'factor'")
        return self


class SweepSpec(Frozen):
    """A validated sweep specification. Keys of `set`, `sweep`, `zip`, `derived` and `exclude` are dotted hardware
    keys (``dram.channels``), or ``model``, ``batch``, ``base`` and ``dims.NAME``.

    max_cycles: core cycles after which a point stops with status ``cycle_limit``.
    lanes: points simulated side by side in one JAX program; left out, what measured best (`vsim.api.simulate`).
    prune: see `Prune`; left out, every point is simulated.
    energy: table of unit energies (hwconfigs/energy, or a file from the folder of this one); the results get columns
    of energy by part, power and energy-delay product, the layers their dynamic energy. See `vsim.npu.energy`.
    mix, workloads, alone: see `sweeps.mix_points`.
    """

    name: Annotated[str, Field(min_length=1)]
    model: str | None = None
    mix: Any = None
    workloads: dict[str, dict[str, Any]] = {}
    alone: bool = False
    batch: Annotated[int, within(1, 1 << 24)] = 1
    dims: dict[str, Annotated[int, within(1, 1 << 30)]] = {}
    base: Any = None
    set: dict[str, Any] = {}
    sweep: dict[str, Any] = {}
    zip: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    derived: dict[str, str | int | float] = {}
    compat: Literal["onnxim"] | None = None
    skip_unknown: bool = False
    max_cycles: Annotated[int, within(1, MAX_CYCLES)] | None = None
    lanes: Annotated[int, within(1, MAX_LANES)] | None = None
    prune: Prune | None = None
    energy: str | None = None

    @field_validator("zip", "exclude", mode="before")
    @classmethod
    def _single(cls, value: object) -> object:
        # A single group or condition may be written without the list around it.
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if not isinstance(self.mix, str | Mapping | None):
            raise ValueError(f"mix = {self.mix!r}: expected a mix file or its content")
        of_mixes = ("workloads", "alone")
        of_models = ("model", "batch", "dims", "base", "compat", "skip_unknown", "prune", "energy")
        for key in of_models if self.mix is not None else of_mixes:
            if key in self.model_fields_set:
                raise ValueError(f"{key} does not go {'with' if self.mix is not None else 'without'} a mix")
        return self


@dataclass(frozen=True)
class Axis:
    """Keys that advance together, and their values: one tuple (a value a key) per position.

    A value that is no scalar (tenants and their fields only) is there as its text, see `text_of`.
    """

    keys: tuple[str, ...]
    positions: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class LoadedSpec:
    """A specification with the text it came from, its axes spelt out and its derived keys parsed."""

    spec: SweepSpec
    document: Document
    text: str
    axes: tuple[Axis, ...]
    derived: Mapping[str, Expression]
    structured: Mapping[tuple[str, Scalar], Any]
    """Of each key and text, the swept value that the text stands for."""

    @property
    def folder(self) -> Path:
        """Folder that relative paths in the specification start from."""
        return self.document.path.parent

    def error(self, location: Sequence[str | int], message: str) -> SpecError:
        """Return an error that names the file and the line of `location`."""
        return SpecError(f"{self.document.where(location)}: {message}")

    def locate(self, key: str) -> tuple[str | int, ...]:
        """Return where the file sets a key."""
        for section in ("sweep", "derived", "set"):
            if key in getattr(self.spec, section):
                return section, key
        for index, group in enumerate(self.spec.zip):
            if key in group:
                return _zip_location(self.document, index, key)
        section, _, name = key.partition(".")
        return (section, name) if name else (section,)


def load_spec(path: Path) -> LoadedSpec:
    """Read a sweep specification; `UserError` with file, line, key and the nearest valid key when it is wrong."""
    try:
        document = read_document(path)
        text = path.read_text(encoding="utf-8")
    except RecursionError as error:
        raise SpecError(f"{path}: the document is nested too deeply, or refers to itself") from error
    if not isinstance(document.data, dict):
        raise SpecError(f"{path}: a sweep spec is a mapping with the keys name, model, base and sweep")
    spec = build(SweepSpec, document.data, document.where)
    _check_keys(spec, document)
    structured: dict[tuple[str, Scalar], Any] = {}
    axes = _axes(spec, document, structured)
    return LoadedSpec(spec, document, text, axes, _parse_derived(spec, document), structured)


def _zip_location(document: Document, index: int, key: str) -> tuple[str | int, ...]:
    # A single group may stand without a list; then the file has no position in the path.
    nested = ("zip", str(index), key)
    return nested if nested in document.lines else ("zip", key)


def _check_keys(spec: SweepSpec, document: Document) -> None:
    """Refuse a key given in two places, conditions that are no conditions, and missing essentials."""
    given: dict[str, str] = {}
    places = [(("set", key), key) for key in spec.set]
    places += [(("sweep", key), key) for key in spec.sweep]
    places += [(_zip_location(document, i, key), key) for i, group in enumerate(spec.zip) for key in group]
    places += [(("derived", key), key) for key in spec.derived]
    for place, key in places:
        if key in given:
            raise SpecError(f"{document.where(place)}: {key!r} is already given by '{given[key]}'")
        given[key] = str(place[0])
    for index, condition in enumerate(spec.exclude):
        for key, wanted in condition.items():
            if not all(isinstance(value, Scalar) for value in (wanted if isinstance(wanted, list) else [wanted])):
                place = document.where(("exclude", index, key))
                raise SpecError(f"{place}: {key!r} must be excluded at a value or a list of values, not {wanted!r}")
    for essential in ("model", "base") if spec.mix is None else ():
        if getattr(spec, essential) is None and essential not in given:
            raise SpecError(f"{document.path}: key {essential!r} is missing")


def _axes(spec: SweepSpec, document: Document, structured: dict[tuple[str, Scalar], Any]) -> tuple[Axis, ...]:
    """Axes in order; notes in `structured` what is not scalar."""

    def values_of(key: str, value: object, location: tuple[str | int, ...]) -> list[Scalar]:
        values = _axis_values(key, value, document, location)
        if spec.mix is None or not is_tenants_key(key):
            _check_scalars(key, values, document.where(location))
        structured.update({(key, text_of(key, item)): item for item in values if not isinstance(item, Scalar)})
        return [text_of(key, item) for item in values]

    axes = []
    for key, value in spec.sweep.items():
        axes.append(Axis((key,), tuple((item,) for item in values_of(key, value, ("sweep", key)))))
    for index, group in enumerate(spec.zip):
        columns = {key: values_of(key, value, _zip_location(document, index, key)) for key, value in group.items()}
        if len({len(values) for values in columns.values()}) > 1:
            counts = ", ".join(f"{key!r} has {len(values)}" for key, values in columns.items())
            place = document.where(("zip", index))
            raise SpecError(f"{place}: keys zipped together need equally many values: {counts}")
        axes.append(Axis(tuple(columns), tuple(zip(*columns.values(), strict=True))))
    for axis in axes:
        repeated = [position for position, count in Counter(axis.positions).items() if count > 1]
        if repeated:
            location = ("sweep", axis.keys[0]) if axis.keys[0] in spec.sweep else ("zip",)
            shown = ", ".join(f"{key}={value}" for key, value in zip(axis.keys, repeated[0], strict=True))
            raise SpecError(f"{document.where(location)}: {shown} is listed twice")
    return tuple(axes)


def is_tenants_key(key: str) -> bool:
    """Tell whether a key sets the tenants of a mix, or a field of one of them."""
    return key.split(".")[0] == TENANTS


def text_of(key: str, value: Any) -> Scalar:
    """Return a swept value as labels and tables have it: names of tenants joined by +, other structures as JSON."""
    if isinstance(value, Scalar):
        return value
    if key == TENANTS and isinstance(value, list):
        names = [item.get("name") if isinstance(item, Mapping) else item for item in value]
        if all(names):
            return "+".join(map(str, names))
    return json.dumps(value, separators=(",", ":"), default=str)


def _check_scalars(key: str, values: Sequence[object], where: str) -> None:
    for item in values:
        if not isinstance(item, Scalar):
            raise SpecError(f"{where}: {key!r} can be swept over numbers, texts and true or false, not {item!r}")


def _axis_values(key: str, value: object, document: Document, location: tuple[str | int, ...]) -> list[Any]:
    """Return the values of one swept key, given as a list or a range."""
    where = document.where(location)
    if isinstance(value, Mapping):
        return build(Range, value, lambda inner: f"{document.where((*location, *inner))}: range of {key!r}").values()
    if not isinstance(value, list) or not value:
        raise SpecError(f"{where}: {key!r} needs a list of values, or a range with start, stop and step or num")
    if len(value) > MAX_AXIS_VALUES:
        raise SpecError(f"{where}: {key!r} has more than {MAX_AXIS_VALUES} values")
    return value


def _parse_derived(spec: SweepSpec, document: Document) -> dict[str, Expression]:
    parsed = {}
    for key, text in spec.derived.items():
        try:
            parsed[key] = Expression.parse(str(text))
        except ExpressionError as error:
            raise SpecError(f"{document.where(('derived', key))}: {key!r}: {error}") from error
    return parsed
