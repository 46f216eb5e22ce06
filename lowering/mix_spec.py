"""Mix files: tenants with their models and arrivals, as YAML.

```yaml
hw: npu-server-128x128x4            # preset, YAML file or ONNXim JSON file
set: {dram.channels: 8}             # keys of it that differ
scheduler: time_multiplex           # simple, time_multiplex, partition_cpu, dynamic or earliest_deadline
tenants:
  - {name: vision, model: onnx:light_resnet50, batch: 1, arrival: {at_once: 2}}
  - {name: text, model: bert.onnx, dims: {sequence: 128}, arrival: {interval_us: 250, requests: 4}}
  - {name: other, model: m.onnx, arrival: {poisson_us: 100, requests: 8, seed: 1}, cores: [0, 1]}
  - {name: traced, model: m.onnx, arrival: {times_us: [0, 12.5, 90]}}
```

Paths are relative to the file. `cores` go with scheduler partition_cpu, where every tenant has its own; `core_split:
even` beside `scheduler` deals the cores to the tenants in their order instead, and says nothing under other schedulers.
`priority` (0 is served first) matters to dynamic, where a free core takes the next tile of the foremost tenant, and
`deadline_us` (from a request's arrival) to earliest_deadline, which goes by deadlines instead. `bandwidth_share` is the
part of the DRAM's peak bandwidth that all requests of a tenant together may ask for (1, no limit, unless given): shares
that add up to less than what the memory reaches in practice keep tenants apart that have cores of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from hwconfigs import HwConfig, load_hw
from hwconfigs.errors import UserError
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import read_document
from lowering import lower
from lowering.mix import Mix, Scheduler
from lowering.mix_placement import MAX_PRIORITY, PlacedPrograms, Workload, chip_of_cores, place_workloads
from lowering.program import Program

MAX_REQUESTS = 64
"""In a mix: the scheduler looks at all of them in every cycle."""
Microseconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Arrival(Frozen):
    """When requests arrive: exactly one of at_once (a number of them), interval_us, poisson_us (mean) and times_us."""

    at_once: Annotated[int, within(1, MAX_REQUESTS)] | None = None
    interval_us: Microseconds | None = None
    poisson_us: Microseconds | None = None
    times_us: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] | None = None
    requests: Annotated[int, within(1, MAX_REQUESTS)] | None = None
    seed: Annotated[int, within(0, 2**31 - 1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [
            name for name in ("at_once", "interval_us", "poisson_us", "times_us") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError("expected exactly one of at_once, interval_us, poisson_us and times_us")
        if (self.requests is not None) != (given[0] in ("interval_us", "poisson_us")):
            raise ValueError("requests goes with interval_us and poisson_us, and they need it")
        if (self.seed is not None) != (given[0] == "poisson_us"):
            raise ValueError("seed goes with poisson_us, which needs it")
        return self

    def microseconds(self) -> list[float]:
        """Times of all requests."""
        if self.at_once is not None:
            return [0.0] * self.at_once
        if self.times_us is not None:
            return list(self.times_us)
        assert self.requests is not None
        if self.interval_us is not None:
            return [self.interval_us * index for index in range(self.requests)]
        assert self.poisson_us is not None
        gaps = np.random.default_rng(self.seed).exponential(self.poisson_us, self.requests)
        return np.cumsum(gaps).tolist()


class TenantSpec(Frozen):
    """A model and its requests; `lowering.lower` explains batch and dims."""

    name: Annotated[str, Field(min_length=1)]
    model: str
    batch: Annotated[int, within(1, 1 << 20)] = 1
    dims: dict[str, Annotated[int, within(1, 1 << 30)]] = {}
    arrival: Arrival = Arrival(at_once=1)
    cores: tuple[Annotated[int, within(0, 1023)], ...] = ()
    priority: Annotated[int, within(0, MAX_PRIORITY - 1)] = 0
    deadline_us: Microseconds | None = None
    bandwidth_share: Annotated[float, Field(ge=0.001, le=1)] = 1.0


class MixSpec(Frozen):
    """See the top of this module."""

    hw: str
    set: dict[str, Any] = {}
    scheduler: Scheduler
    core_split: Literal["even"] | None = None
    tenants: Annotated[tuple[TenantSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(len(tenant.arrival.microseconds()) for tenant in self.tenants)
        if total > MAX_REQUESTS:
            raise ValueError(f"tenants make {total} requests; at most {MAX_REQUESTS} are simulated in a mix")
        if self.core_split and any(tenant.cores for tenant in self.tenants):
            raise ValueError("core_split and cores of tenants exclude each other")
        return self


def load_mix(path: Path) -> tuple[HwConfig, Mix]:
    """Read a mix file and lower its models. Raises UserError (with file and line) for what cannot be used."""
    document = read_document(path)
    spec = build(MixSpec, document.data, document.where)
    hw = load_hw(beside(path, spec.hw)).with_overrides(spec.set)
    hw.check_modelled()
    known: dict[tuple[Any, ...], Program] = {}

    def program_of(tenant: TenantSpec, chip: HwConfig) -> Program:
        key = (tenant.model, tenant.batch, *sorted(tenant.dims.items()), chip.cores.count)
        if key not in known:
            known[key] = lower(beside(path, tenant.model), chip, batch=tenant.batch, dims=tenant.dims)
        return known[key]

    try:
        return hw, mix_of(path.stem, spec, hw, program_of)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def mix_of(
    name: str,
    spec: MixSpec,
    hw: HwConfig,
    program_of: Callable[[TenantSpec, HwConfig], Program],
    placed: PlacedPrograms | None = None,
) -> Mix:
    """The mix that a specification describes on chip `hw` (`spec.hw` and `spec.set` are not read).

    program_of: lowers a tenant for the chip as it sees it. placed: shared by mixes that may share programs. Raises
    UserError for what cannot be used.
    """
    workloads = []
    for tenant, cores in zip(spec.tenants, _core_sets(spec, hw), strict=True):
        chip = chip_of_cores(hw, cores) if cores else hw
        per_us, due = hw.clocks.core_mhz, tenant.deadline_us
        cycles = tuple(round(time * per_us) for time in tenant.arrival.microseconds())
        deadline = None if due is None else max(round(due * per_us), 1)
        program, share = program_of(tenant, chip), tenant.bandwidth_share
        workloads.append(Workload(tenant.name, program, cycles, cores, tenant.priority, deadline, share))
    return place_workloads(name, workloads, hw, spec.scheduler, placed)


def _core_sets(spec: MixSpec, hw: HwConfig) -> list[tuple[int, ...]]:
    """Cores of each tenant; none: it may use all."""
    if spec.core_split is None or spec.scheduler is not Scheduler.PARTITION_CPU:
        return [tenant.cores for tenant in spec.tenants]
    if len(spec.tenants) > hw.cores.count:
        raise UserError(f"{len(spec.tenants)} tenants cannot have cores of their own: the chip has {hw.cores.count}")
    return [tuple(part.tolist()) for part in np.array_split(np.arange(hw.cores.count), len(spec.tenants))]


def beside(path: Path, name: str) -> str:
    """A file beside the file `path` if there is one of that name; else the name: a preset, `onnx:NAME`, a path."""
    candidate = path.parent / name
    return str(candidate) if candidate.is_file() else name
