"""From a specification to its points: the combinations of its axes, each with a hash of all that decides its result."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from hwconfigs.energy_schema import Technology, load_technology
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
    hardware, the options and the simulator's source, which together decide the result. technology: unit energies, or
    None where no energy is asked for.
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
    technology: Technology | None = None

    @property
    def label(self) -> str:
        """Short name of the point: its varying keys and their values."""
        return label_of(self.values) or self.hw.name

    @property
    def columns(self) -> dict[str, Scalar]:
        """What the results table says of the workload, swept or not."""
        return {"model": self.model, "batch": self.batch}


PointT = TypeVar("PointT")


@dataclass(frozen=True)
class Expansion(Generic[PointT]):
    """The points of a specification in order, its axes, and remarks for the user."""

    points: tuple[PointT, ...]
    axes: tuple[Axis, ...]
    model_digests: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def expand(loaded: LoadedSpec) -> Expansion[Point]:
    """Return the points of a specification of single models, the first axis varying slowest.

    Raises `SpecError` (with file and line) for a key or value the hardware does not take, or a model that is not there.
    """
    builder = ModelPointBuilder(loaded)
    points, warnings = build_points(loaded, builder)
    return Expansion(points, loaded.axes, builder.model_digests, warnings)


def build_points(loaded: LoadedSpec, builder: PointBuilder[PointT]) -> tuple[tuple[PointT, ...], tuple[str, ...]]:
    """Return the points that are not excluded, and a warning for every condition that excludes none."""
    total = math.prod(len(axis.positions) for axis in loaded.axes)
    if total > MAX_POINTS:
        raise loaded.error(("sweep",), f"{total} points are more than {MAX_POINTS}")
    points: list[PointT] = []
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
    return tuple(points), warnings


def label_of(values: Mapping[str, Scalar]) -> str:
    """Return values by key in a line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _combinations(axes: tuple[Axis, ...]) -> Iterator[dict[str, Scalar]]:
    for combination in itertools.product(*(axis.positions for axis in axes)):
        yield {
            key: value
            for axis, position in zip(axes, combination, strict=True)
            for key, value in zip(axis.keys, position, strict=True)
        }


@dataclass
class PointBuilder(ABC, Generic[PointT]):
    """Builds points; remembers each base hardware and model file it has read."""

    loaded: LoadedSpec
    model_digests: dict[str, str] = field(default_factory=dict)
    _bases: dict[str, HwConfig] = field(default_factory=dict)
    _model_paths: dict[str, Path] = field(default_factory=dict)

    @abstractmethod
    def build(self, index: int, values: dict[str, Scalar]) -> PointT:
        """Return the point with these swept and derived values; errors name the line of the key at fault."""

    @abstractmethod
    def is_hardware(self, key: str) -> bool:
        """Tell whether a key is none of the workload's."""

    @abstractmethod
    def workload_keys(self) -> Sequence[str]:
        """Return keys of the workload, to suggest for misspelt ones."""

    @abstractmethod
    def workload_values(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return what a point with these values has at the keys of the workload."""

    @abstractmethod
    def base(self, values: Mapping[str, Scalar]) -> HwConfig:
        """Return the hardware that the overrides of a point with these values change."""

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

    def hardware(self, values: Mapping[str, Scalar]) -> HwConfig:
        """Return the hardware of a point with these values; errors name the line of the key at fault."""
        base = self.base(values)
        overrides = {key: value for key, value in {**self.loaded.spec.set, **values}.items() if self.is_hardware(key)}
        for key in overrides:
            if key.split(".")[0] not in HwConfig.model_fields:
                known = [*self.workload_keys(), *dotted_keys()]
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

    def load_base(self, base: object, place: Sequence[str | int]) -> HwConfig:
        """Return the hardware that `base` names or describes, read once; `place` is where the file says so."""
        text = str(base)
        if text not in self._bases:
            self._bases[text] = self._load_base(base, place)
        return self._bases[text]

    def _load_base(self, base: object, place: Sequence[str | int]) -> HwConfig:
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

    def model_digest(self, model: str, place: Sequence[str | int]) -> str:
        """Return the hash of a model file, read once; `place` is where the file names it."""
        if model not in self.model_digests:
            try:
                path = resolve(model if model.startswith("onnx:") else self.loaded.folder / model)
                self.model_digests[model] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                raise self.loaded.error(place, f"model {model} cannot be read: {error.strerror}") from error
            except UserError as error:
                raise self.loaded.error(place, str(error)) from error
            self._model_paths[model] = path
        return self.model_digests[model]

    def model_path(self, model: str) -> Path:
        """Return the file of a model whose hash is known."""
        return self._model_paths[model]

    def _lookup(self, key: str, values: Mapping[str, Scalar]) -> Scalar:
        """Return the value of a key before derived keys that come later: swept or derived, fixed, or the base's own."""
        known: dict[str, Any] = {**self.workload_values(values), **self.loaded.spec.set, **values}
        if key in known:
            return known[key]
        hardware = flatten(self.base(values).to_data())
        if key not in hardware:
            raise ConfigError(f"unknown key {key!r}{nearest(key, [*known, *hardware])}")
        return hardware[key]


class ModelPointBuilder(PointBuilder[Point]):
    """Builds points of single models."""

    def build(self, index: int, values: dict[str, Scalar]) -> Point:
        """See `PointBuilder`."""
        spec = self.loaded.spec
        settings = {**spec.set, **values}
        model = str(settings.get("model", spec.model))
        batch = self._whole("batch", settings.get("batch", spec.batch))
        dims = dict(spec.dims)
        for key, value in settings.items():
            if key.startswith(_DIMS_PREFIX):
                dims[key.removeprefix(_DIMS_PREFIX)] = self._whole(key, value)
        hw = self.hardware(values)
        job = {
            "batch": batch,
            "dims": dims,
            "compat": spec.compat,
            "skip_unknown": spec.skip_unknown,
            "max_cycles": spec.max_cycles,
        }
        model_digest = self.model_digest(model, self.loaded.locate("model"))
        content = {"model": model_digest, "hw": hardware_content(hw), "simulator": simulator_digest()}
        technology = self._technology
        if technology is not None:
            content["energy"] = technology.model_dump()
        digest = digest_of({**job, **content})
        return Point(index, values, model, self.model_path(model), hw=hw, digest=digest, technology=technology, **job)

    @cached_property
    def _technology(self) -> Technology | None:
        name = self.loaded.spec.energy
        if name is None:
            return None
        beside_spec = self.loaded.folder / name
        try:
            return load_technology(beside_spec if beside_spec.is_file() else name)
        except UserError as error:
            raise self.loaded.error(("energy",), str(error)) from error

    def is_hardware(self, key: str) -> bool:
        """See `PointBuilder`."""
        return key not in _JOB_KEYS and not key.startswith(_DIMS_PREFIX)

    def workload_keys(self) -> Sequence[str]:
        """See `PointBuilder`."""
        return _JOB_KEYS

    def workload_values(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """See `PointBuilder`."""
        spec = self.loaded.spec
        dims = {f"{_DIMS_PREFIX}{name}": size for name, size in spec.dims.items()}
        return {"batch": spec.batch, "model": spec.model, **dims}

    def base(self, values: Mapping[str, Scalar]) -> HwConfig:
        """See `PointBuilder`."""
        spec = self.loaded.spec
        return self.load_base(values.get("base", spec.set.get("base", spec.base)), self.loaded.locate("base"))

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


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the hash of plain data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
