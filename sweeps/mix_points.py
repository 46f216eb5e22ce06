"""Points of a sweep over mixes: tenants that share a chip.

.. code-block:: yaml

    name: pairs
    mix: pair.yaml                      # a mix file (see `lowering.mix_spec`), or its content
    workloads:                          # tenants by name, for the lists of the sweep
      vision: {model: onnx:light_resnet50}
      text: {model: bert.onnx, dims: {seq: 64}, arrival: {poisson_us: 50, requests: 4, seed: 1}}
    alone: true                         # also run each model of the sweep alone on each chip: slowdowns, fairness
    sweep:
      tenants: [[vision, text], [vision, {name: other, model: m.onnx}]]
      tenants.vision.batch: [1, 2, 4]   # any field of the tenants of that name
      scheduler: [simple, dynamic]
      clocks.dram_mhz: [600, 1200]      # any key of the hardware

Keys of `set`, `sweep`, `zip`, `derived` and `exclude` are those of the mix (``tenants``, ``tenants.NAME.FIELD``,
``scheduler``, ``core_split``, ``hw``) and dotted hardware keys. In tables, conditions and labels a list of tenants is
its names, joined by +. Paths in a mix file are relative to that file, others to the specification.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hwconfigs.errors import UserError, nearest
from hwconfigs.schema import HwConfig
from hwconfigs.validation import build
from hwconfigs.yaml_file import Document, read_document
from lowering.mix import Scheduler
from lowering.mix_spec import MixSpec, TenantSpec, beside
from sweeps.expressions import Scalar
from sweeps.identity import simulator_digest
from sweeps.points import Expansion, PointBuilder, build_points, digest_of, flatten, hardware_content, label_of
from sweeps.spec import TENANTS, LoadedSpec, SpecError, is_tenants_key

_MIX_KEYS = ("hw", "scheduler", "core_split", TENANTS)
ALONE = "alone"


@dataclass(frozen=True)
class TenantsPoint:
    """One simulation of a sweep over mixes.

    values, digest: as of `sweeps.points.Point`. model_paths: file of each model that the mix names. alone: of each
    tenant of `mix`, the digest of the point in which its model is alone on this chip; none: it was not asked for.
    is_alone: this is such a point; it has the hardware's values only.
    """

    index: int
    values: Mapping[str, Scalar]
    mix: MixSpec
    model_paths: Mapping[str, Path]
    hw: HwConfig
    max_cycles: int | None
    digest: str
    alone: tuple[str, ...] = ()
    is_alone: bool = False

    @property
    def label(self) -> str:
        """Short name of the point: its varying keys and their values."""
        if self.is_alone:
            tenant = self.mix.tenants[0]
            return label_of({ALONE: f"{tenant.model} batch {tenant.batch}", **self.values})
        return label_of(self.values) or self.tenants

    @property
    def tenants(self) -> str:
        """Names of the tenants."""
        return "+".join(tenant.name for tenant in self.mix.tenants)

    @property
    def columns(self) -> dict[str, Scalar]:
        """What the results table says of the workload, swept or not."""
        return {TENANTS: self.tenants, "scheduler": self.mix.scheduler.value, ALONE: self.is_alone}


def expand_mixes(loaded: LoadedSpec) -> Expansion[TenantsPoint]:
    """Return the points of a specification of mixes, the first axis varying slowest, then those of models alone.

    Raises `UserError` (with file and line) for a key or value that mix or hardware do not take, or a missing model.
    """
    builder = _MixBuilder(loaded)
    mixes, warnings = build_points(loaded, builder)
    first_by_digest = {point.digest: point for point in builder.lone_points}
    lone = [replace(point, index=len(mixes) + place) for place, point in enumerate(first_by_digest.values())]
    return Expansion((*mixes, *lone), loaded.axes, builder.model_digests, warnings)


@dataclass
class _MixBuilder(PointBuilder[TenantsPoint]):
    lone_points: list[TenantsPoint] = field(default_factory=list)
    """Points of models alone that the points built so far refer to, in order, with repetitions."""
    _specs: dict[str, MixSpec] = field(default_factory=dict)

    @cached_property
    def _mix(self) -> tuple[dict[str, Any], Document, tuple[str, ...]]:
        """The mix as it was given, the document that it was given in, and its place there."""
        mix = self.loaded.spec.mix
        if not isinstance(mix, str):
            return dict(mix or {}), self.loaded.document, ("mix",)
        document = read_document(self.loaded.folder / mix)
        if not isinstance(document.data, dict):
            raise SpecError(f"{document.path}: a mix is a mapping with the keys hw, scheduler and tenants")
        data = copy.deepcopy(document.data)
        for place in (data, *(item for item in data.get(TENANTS) or () if isinstance(item, dict))):
            for key in ("hw", "model"):
                if isinstance(place.get(key), str):
                    place[key] = _from(self.loaded.folder, document.path, place[key])
        return data, document, ()

    @cached_property
    def _workloads(self) -> dict[str, dict[str, Any]]:
        """Tenants by name."""
        given = self.loaded.spec.workloads
        for name, workload in given.items():
            if "name" in workload:
                raise self.loaded.error(("workloads", name, "name"), "a workload is called by its key")
            build(
                TenantSpec,
                {"name": name, **workload},
                lambda loc, name=name: self.loaded.document.where(("workloads", name, *loc)),
            )
        return {name: {"name": name, **workload} for name, workload in given.items()}

    def build(self, index: int, values: dict[str, Scalar]) -> TenantsPoint:
        """See `PointBuilder`."""
        mix = self._spec_of(values)
        hw = self.hardware(values)
        for tenant in mix.tenants:
            self.model_digest(tenant.model, self._place(TENANTS, values))
        lone = [self._alone(mix, tenant, hw, values) for tenant in mix.tenants] if self.loaded.spec.alone else []
        self.lone_points += lone
        return self._point(index, values, mix, hw, alone=tuple(point.digest for point in lone))

    def _point(
        self,
        index: int,
        values: dict[str, Scalar],
        mix: MixSpec,
        hw: HwConfig,
        *,
        alone: tuple[str, ...] = (),
        is_alone: bool = False,
    ) -> TenantsPoint:
        tenants = [
            {**tenant.model_dump(mode="json"), "model": self.model_digests[tenant.model]} for tenant in mix.tenants
        ]
        max_cycles = self.loaded.spec.max_cycles
        content = {
            "mix": {**mix.model_dump(mode="json", exclude={"hw", "set", TENANTS}), TENANTS: tenants},
            "max_cycles": max_cycles,
            "hw": hardware_content(hw),
            "simulator": simulator_digest(),
        }
        paths = {tenant.model: self.model_path(tenant.model) for tenant in mix.tenants}
        return TenantsPoint(index, values, mix, paths, hw, max_cycles, digest_of(content), alone, is_alone)

    def _alone(self, mix: MixSpec, tenant: TenantSpec, hw: HwConfig, values: dict[str, Scalar]) -> TenantsPoint:
        """One request of the tenant's model on the whole chip."""
        single = TenantSpec(name=ALONE, model=tenant.model, batch=tenant.batch, dims=tenant.dims)
        hardware = {key: value for key, value in values.items() if key == "hw" or self.is_hardware(key)}
        spec = MixSpec(hw=mix.hw, set=mix.set, scheduler=Scheduler.SIMPLE, tenants=(single,))
        return self._point(0, hardware, spec, hw, is_alone=True)

    def is_hardware(self, key: str) -> bool:
        """See `PointBuilder`."""
        return key.split(".")[0] not in _MIX_KEYS

    def workload_keys(self) -> Sequence[str]:
        """See `PointBuilder`."""
        return _MIX_KEYS

    def workload_values(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """See `PointBuilder`."""
        data = self._data(values)
        known = {key: data[key] for key in _MIX_KEYS if isinstance(data.get(key), Scalar)}
        for tenant in data.get(TENANTS, ()):
            fields = flatten({key: value for key, value in tenant.items() if key != "name"})
            known |= {f"{TENANTS}.{tenant['name']}.{key}": value for key, value in {"batch": 1, **fields}.items()}
        return known

    def base(self, values: Mapping[str, Scalar]) -> HwConfig:
        """See `PointBuilder`."""
        mix = self._spec_of(values)
        base = self.load_base(mix.hw, self._place("hw", values))
        try:
            return base.with_overrides(mix.set)
        except UserError as error:
            document, prefix = self._mix[1:]
            raise SpecError(f"{document.where((*prefix, 'set'))}: {error}") from error

    def _spec_of(self, values: Mapping[str, Scalar]) -> MixSpec:
        data = self._data(values)
        key = repr(data)
        if key not in self._specs:
            self._specs[key] = build(MixSpec, data, lambda loc: self._where(loc, values, data))
        return self._specs[key]

    def _data(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """The mix of a point with these values, not yet validated."""
        data = copy.deepcopy(self._mix[0])
        settings = {
            key: value for key, value in {**self.loaded.spec.set, **values}.items() if not self.is_hardware(key)
        }
        for key, value in settings.items():
            if not is_tenants_key(key):
                data[key] = value
        if TENANTS in settings:
            data[TENANTS] = self._meant(TENANTS, settings[TENANTS])
        if TENANTS in data:
            if not isinstance(data[TENANTS], list):
                message = f"{TENANTS} must be a list of workloads' names and of mappings, not {data[TENANTS]!r}"
                raise self.loaded.error(self._place(TENANTS, values), message)
            data[TENANTS] = [self._tenant(item, values) for item in data[TENANTS]]
        for key, value in settings.items():
            if is_tenants_key(key) and key != TENANTS:
                self._set_field(data, key, self._meant(key, value))
        return data

    def _meant(self, key: str, value: Any) -> Any:
        """The value that the text of a swept value stands for; any other value as it is."""
        return self.loaded.structured.get((key, value), value) if isinstance(value, str) else value

    def _tenant(self, item: object, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """A tenant as it is written, or the workload that a name stands for."""
        place = self._place(TENANTS, values)
        if isinstance(item, str):
            if item not in self._workloads:
                raise self.loaded.error(place, f"workload {item!r} is unknown{nearest(item, list(self._workloads))}")
            return copy.deepcopy(self._workloads[item])
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise self.loaded.error(
                place, f"a tenant is the name of a workload, or a mapping with a name, not {item!r}"
            )
        return copy.deepcopy(dict(item))

    def _set_field(self, data: dict[str, Any], key: str, value: Any) -> None:
        """Set `tenants.NAME.FIELD` in the tenants of that name; a point need not have any."""
        _, name, *path = key.split(".")
        tenants = [tenant for tenant in data.get(TENANTS, ()) if tenant["name"] == name]
        if not path or (not tenants and name not in self._workloads):
            known = [*self._workloads, *(tenant["name"] for tenant in data.get(TENANTS, ()))]
            message = f"{key!r} is no field of a tenant: expected {TENANTS}.NAME.FIELD with NAME in {', '.join(known)}"
            raise self.loaded.error(self.loaded.locate(key), message)
        for tenant in tenants:
            place = tenant
            for part in path[:-1]:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise self.loaded.error(
                        self.loaded.locate(key), f"{key!r}: {part!r} of tenant {name} has no fields"
                    )
            place[path[-1]] = value

    def _place(self, key: str, values: Mapping[str, Scalar]) -> tuple[str | int, ...]:
        """Where the specification gives a top-level key of the mix, or the mix that has it."""
        given = key in values or key in self.loaded.spec.set
        return self.loaded.locate(key) if given else ("mix", key)

    def _where(self, loc: Sequence[str | int], values: Mapping[str, Scalar], data: Mapping[str, Any]) -> str:
        """File and line of what is wrong in a mix."""
        document, prefix = self._mix[1:]
        given = {**self.loaded.spec.set, **values}
        keys = [str(loc[0])] if loc else []
        if len(loc) > 2 and loc[0] == TENANTS:
            keys.insert(0, ".".join((TENANTS, data[TENANTS][int(loc[1])]["name"], *map(str, loc[2:]))))
        found = next((key for key in keys if key in given), None)
        return (
            document.where((*prefix, *loc)) if found is None else self.loaded.document.where(self.loaded.locate(found))
        )


def _from(folder: Path, file: Path, name: str) -> str:
    """A file or name that stands in `file`, as it would stand in a file in `folder`."""
    found = Path(beside(file, name))
    return str(found.relative_to(folder)) if found.is_relative_to(folder) else str(found)
