"""From a specification to its points: the combinations of its axes, each with a hash of all that decides its result."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwconfigs.errors import ConfigError, UserError, nearest
from hwconfigs.load import load_hw
from hwconfigs.schema import HwConfig, dotted_keys
from lowering.models import resolve
from sweeps.expressions import Scalar
from sweeps.identity import simulator_digest
from sweeps.spec import Axis, LoadedSpec

MAX_POINTS = 1_000_000

_JOB_KEYS = ("model", "batch", "base")
_DIMS_PREFIX = "dims."


@dataclass(frozen=True)
class Point:
    """One simulation of the sweep.

    values: the swept and derived keys of this point, in the order of the file; digest: hash of the model file, the
    hardware, the options and the simulator's source, which together decide the result.
    """

    index: int
    values: Mapping[str, Scalar]
    model: str
    model_path: Path
    batch: int
    dims: Mapping[str, int]
    hw: HwConfig
    compat: str | None
    skip_unknown: bool
    max_cycles: int | None
    digest: str

    @property
    def label(self) -> str:
        """Short name of the point: its varying keys and their values."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or self.hw.name


@dataclass(frozen=True)
class Expansion:
    """The points of a specification in order, its axes, and remarks for the user."""

    points: tuple[Point, ...]
    axes: tuple[Axis, ...]
    model_digests: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def expand(loaded: LoadedSpec) -> Expansion:
    """Return the points of a specification, the first axis varying slowest.

    Raises `SpecError` (with file and line) for a key or value the hardware does not take, or a model that is not there.
    """
    total = math.prod(len(axis.positions) for axis in loaded.axes)
    if total > MAX_POINTS:
        raise loaded.error(("sweep",), f"{total} points are more than {MAX_POINTS}")
    builder = _PointBuilder(loaded)
    points = []
    dropped_by = [0] * len(loaded.spec.exclude)
    for swept in _combinations(loaded.axes):
        values = builder.with_derived(swept)
        matched = [index for index in range(len(dropped_by)) if builder.excluded(index, values)]
        for index in matched:
            dropped_by[index] += 1
        if not matched:
            points.append(builder.build(len(points), values))
    if not points:
        raise loaded.error(("exclude",), "every point is excluded")
    warnings = tuple(
        f"{loaded.document.where(('exclude', index))}: this condition matches no point"
        for index, count in enumerate(dropped_by)
        if count == 0
    )
    return Expansion(tuple(points), loaded.axes, builder.model_digests, warnings)


def _combinations(axes: tuple[Axis, ...]) -> Iterator[dict[str, Scalar]]:
    for combination in itertools.product(*(axis.positions for axis in axes)):
        yield {
            key: value
            for axis, position in zip(axes, combination, strict=True)
            for key, value in zip(axis.keys, position, strict=True)
        }


@dataclass
class _PointBuilder:
    """Builds points; remembers each base hardware and model file it has read."""

    loaded: LoadedSpec
    model_digests: dict[str, str] = field(default_factory=dict)
    _bases: dict[str, HwConfig] = field(default_factory=dict)
    _model_paths: dict[str, Path] = field(default_factory=dict)

    def with_derived(self, swept: dict[str, Scalar]) -> dict[str, Scalar]:
        """Return the values with the derived keys added, each of which may use those before it."""
        values = dict(swept)
        for key, expression in self.loaded.derived.items():
            try:
                values[key] = expression.evaluate(lambda name: self._lookup(name, values))
            except UserError as error:
                raise self.loaded.error(("derived", key), f"'{key}': {error}") from error
        return values

    def excluded(self, index: int, values: Mapping[str, Scalar]) -> bool:
        """Tell whether a point with these values meets every part of exclude condition `index`."""
        for key, wanted in self.loaded.spec.exclude[index].items():
            try:
                actual = self._lookup(key, values)
            except UserError as error:
                raise self.loaded.error(("exclude", index, key), str(error)) from error
            if actual not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def build(self, index: int, values: dict[str, Scalar]) -> Point:
        """Return the point with these swept and derived values; errors name the line of the key at fault."""
        spec = self.loaded.spec
        settings = {**spec.set, **values}
        model = str(settings.get("model", spec.model))
        batch = self._whole("batch", settings.get("batch", spec.batch))
        dims = dict(spec.dims)
        for key, value in settings.items():
            if key.startswith(_DIMS_PREFIX):
                dims[key.removeprefix(_DIMS_PREFIX)] = self._whole(key, value)
        hw = self._hardware(values)
        job = {
            "batch": batch,
            "dims": dims,
            "compat": spec.compat,
            "skip_unknown": spec.skip_unknown,
            "max_cycles": spec.max_cycles,
        }
        content = {"model": self._model_digest(model), "hw": hardware_content(hw), "simulator": simulator_digest()}
        return Point(index, values, model, self._model_paths[model], hw=hw, digest=_digest({**job, **content}), **job)

    def _hardware(self, values: Mapping[str, Scalar]) -> HwConfig:
        base = self._base(values)
        overrides = {key: value for key, value in {**self.loaded.spec.set, **values}.items() if _is_hardware(key)}
        for key in overrides:
            if key.split(".")[0] not in HwConfig.model_fields:
                known = [*_JOB_KEYS, *dotted_keys()]
                raise self.loaded.error(self.loaded.locate(key), f"unknown key {key!r}{nearest(key, known)}")
        try:
            return base.with_overrides(overrides)
        except UserError as error:
            raise self.loaded.error(self._culprit(base, overrides), str(error)) from error

    def _culprit(self, base: HwConfig, overrides: Mapping[str, Any]) -> tuple[str | int, ...]:
        """Return the location of the first override that the base refuses on its own."""
        for key, value in overrides.items():
            try:
                base.with_overrides({key: value})
            except UserError:
                return self.loaded.locate(key)
        return ("sweep",)

    def _base(self, values: Mapping[str, Scalar]) -> HwConfig:
        spec = self.loaded.spec
        base = values.get("base", spec.set.get("base", spec.base))
        key = str(base)
        if key not in self._bases:
            self._bases[key] = self._load_base(base)
        return self._bases[key]

    def _load_base(self, base: object) -> HwConfig:
        place = self.loaded.locate("base")
        try:
            if isinstance(base, Mapping):
                return HwConfig.from_data(base, origin=self.loaded.document.where(place))
            if not isinstance(base, str):
                raise ConfigError(f"base must be a preset, a file or a hardware description, not {base!r}")
            beside_spec = self.loaded.folder / base
            return load_hw(beside_spec if beside_spec.is_file() else base)
        except UserError as error:
            inline = isinstance(base, Mapping)
            raise error if inline else self.loaded.error(place, str(error)) from error

    def _model_digest(self, model: str) -> str:
        if model not in self.model_digests:
            place = self.loaded.locate("model")
            try:
                path = resolve(model if model.startswith("onnx:") else self.loaded.folder / model)
                self.model_digests[model] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise self.loaded.error(place, f"model {model} cannot be read: {error.strerror}") from error
            except UserError as error:
                raise self.loaded.error(place, str(error)) from error
            self._model_paths[model] = path
        return self.model_digests[model]

    def _lookup(self, key: str, values: Mapping[str, Scalar]) -> Scalar:
        """Return the value of a key before derived keys that come later: swept or derived, fixed, or the base's own."""
        spec = self.loaded.spec
        known: dict[str, Any] = {"batch": spec.batch, "model": spec.model}
        known |= {f"{_DIMS_PREFIX}{name}": size for name, size in spec.dims.items()}
        known |= {**spec.set, **values}
        if key in known:
            return known[key]
        hardware = flatten(self._base(values).to_data())
        if key not in hardware:
            raise ConfigError(f"unknown key {key!r}{nearest(key, [*known, *hardware])}")
        return hardware[key]

    def _whole(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.loaded.error(self.loaded.locate(key), f"'{key}' must be a whole number above 0 (got {value!r})")
        return value


def hardware_content(hw: HwConfig) -> dict[str, Any]:
    """Return all of a hardware description that can influence a simulation: everything but its name and source."""
    return {key: value for key, value in hw.to_data().items() if key not in ("name", "source")}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_hardware(key: str) -> bool:
    return key not in _JOB_KEYS and not key.startswith(_DIMS_PREFIX)
