"""Mixes built for tests: small programs with layers that depend on each other, and strategies that draw them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.mix import Mix, Scheduler, Tenant
from lowering.program import LayerInfo, Program
from tests.golden.onnxim_reference import CONFIGURATIONS

HW = CONFIGURATIONS["mobile_c4"].with_overrides({"dram.standard": "simple", "dram.latency_cycles": 20})
"""Four small cores and a memory that compiles fast."""
CORES = HW.cores.count
MOST_TENANTS, MOST_LAYERS, MOST_TILES = 4, 4, 6
PARTITIONS = ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 1, 0))


@dataclass(frozen=True)
class LayerPlan:
    """One layer: tiles, rows that each streams (0: a tile without work), products that each sums up, layers that it
    reads. unbound: see `Program`.
    """

    tiles: int
    rows: int = 8
    depth: int = 1
    unbound: bool = False
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class TenantPlan:
    """A tenant before its number of lists is known."""

    layers: tuple[LayerPlan, ...]
    arrival_cycle: int = 0
    partition: int = 0
    priority: int = 0
    deadline_cycle: int | None = None
    bandwidth_share: float = 1.0


def build_program(name: str, layers: tuple[LayerPlan, ...], lists: int, first_block: int) -> Program:
    """Tiles in turn for the lists, each a load, a pass through the array and a store (of its last product)."""
    builder = ProgramBuilder(name, lists, HW.dram.request_bytes)
    for index, layer in enumerate(layers):
        builder.begin_layer(LayerInfo(f"{name}.{index}", "test"))
        for number in range(layer.tiles):
            place = (number if layer.unbound else number % CORES) % lists
            for part in range(layer.depth):
                builder.begin_tile(place, accumulate=part > 0)
                if layer.rows:
                    block = first_block + 64 * (index * MOST_TILES + number) + 8 * part
                    builder.load(0, Descriptor(block, 4 + number))
                    builder.systolic(
                        dst=Operand(0, acc=True), src_a=Operand(0), src_b=Operand(0), size1=Extent(layer.rows)
                    )
                    if part == layer.depth - 1:
                        builder.store(0, Descriptor(block + 32, 4))
                builder.end_tile()
        builder.end_layer()
    consumers = tuple(
        tuple(later for later, other in enumerate(layers) if index in other.reads) for index in range(len(layers))
    )
    return replace(builder.build(), consumers=consumers, unbound=tuple(layer.unbound for layer in layers))


def build_mix(plans: tuple[TenantPlan, ...], scheduler: Scheduler, partitions: tuple[int, ...] = (0,) * CORES) -> Mix:
    """Tenants in the order of their arrival."""
    tenants = []
    for index, plan in enumerate(sorted(plans, key=lambda plan: plan.arrival_cycle)):
        lists = {
            Scheduler.SPATIAL_SPLIT: 1,
            Scheduler.DYNAMIC: 1,
            Scheduler.EARLIEST_DEADLINE: 1,
            Scheduler.PARTITION_CPU: partitions.count(plan.partition),
        }.get(scheduler, CORES)
        program = build_program(f"tenant{index}", plan.layers, lists, 4096 * index)
        own = {
            "priority": plan.priority, "deadline_cycle": plan.deadline_cycle, "bandwidth_share": plan.bandwidth_share
        }  # fmt: skip
        tenants.append(Tenant(program.name, program, plan.arrival_cycle, plan.partition, index, **own))
    return Mix("mix", tuple(tenants), scheduler, partitions)


@st.composite
def layer_plans(draw: st.DrawFn) -> tuple[LayerPlan, ...]:
    """Layers that read any of the layers before them."""
    layers = []
    for index in range(draw(st.integers(1, MOST_LAYERS))):
        reads = draw(st.sets(st.integers(0, index - 1), max_size=2)) if index else set()
        layers.append(
            LayerPlan(
                tiles=draw(st.integers(1, MOST_TILES)),
                rows=draw(st.sampled_from([0, 8, 8, 40])),
                depth=draw(st.sampled_from([1, 1, 3])),
                unbound=draw(st.booleans()),
                reads=tuple(sorted(reads)),
            )
        )
    return tuple(layers)


@dataclass(frozen=True)
class MixPlan:
    """A mix before its programs are built."""

    tenants: tuple[TenantPlan, ...]
    scheduler: Scheduler
    partitions: tuple[int, ...] = (0,) * CORES

    def build(self) -> Mix:
        """The mix."""
        return build_mix(self.tenants, self.scheduler, self.partitions)


@st.composite
def mix_plans(draw: st.DrawFn) -> MixPlan:
    """Any mix of up to MOST_TENANTS tenants."""
    partitions = draw(st.sampled_from(PARTITIONS))
    tenant = st.builds(
        TenantPlan,
        layer_plans(),
        arrival_cycle=st.sampled_from([0, 0, 1, 150, 1000]),
        partition=st.sampled_from(sorted(set(partitions))),
        priority=st.integers(0, 2),
        deadline_cycle=st.sampled_from([None, 300, 300, 900, 2000]),
    )
    tenants = draw(st.lists(tenant, min_size=1, max_size=MOST_TENANTS))
    return MixPlan(tuple(tenants), draw(st.sampled_from(list(Scheduler))), partitions)
