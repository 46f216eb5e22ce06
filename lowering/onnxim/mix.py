"""Several requests on one chip as ONNXim launches them: order of arrival, places in memory, tiles without cores.

Rules: `onnxim.md` sections 3, 9.1 and 9.2. Which core works at a tile depends on what else runs; a tenant's program
keeps the tiles of a layer in as many lists as the tenant has cores, and the scheduler moves whole lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from hwconfigs.errors import UserError
from hwconfigs.schema import HwConfig
from lowering.address_space import AddressSpace
from lowering.mix import MAX_ARRIVAL_CYCLE, ONNXIM_SCHEDULERS, Mix, Scheduler, Tenant
from lowering.onnxim.graph import GraphReader
from lowering.onnxim.layers import LayerEmitter
from lowering.onnxim.mapping_table import MappingTable
from lowering.onnxim.tiling import Loops
from lowering.onnxim.token_rows import PlaceTile
from lowering.program import Program

PS_PER_MS = 1000 * 1000 * 1000


@dataclass(frozen=True)
class Request:
    """One entry of a model list. Requests of the same name are of the same model and share its weights.

    request_time_ms >= 0; dims: sizes of symbolic dimensions by name; given: tile extents of its mapping file.
    """

    name: str
    model: onnx.ModelProto
    request_time_ms: float = 0.0
    partition: int = 0
    batch: int = 1
    dims: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[Loops, Loops] = field(default_factory=dict)


def lower_onnxim_mix(requests: Sequence[Request], hw: HwConfig, scheduler: Scheduler) -> Mix:
    """Lower requests for `hw` as ONNXim launches them.

    hw.onnxim.partition gives the partition of each core; without it all are in partition 0.
    Raises UserError for what `lower_onnxim` refuses, no requests, a partition without cores, and requests that would
    be launched again token by token (dimension output_seq_len).
    """
    if not requests:
        raise UserError("a mix needs at least one request")
    if scheduler not in ONNXIM_SCHEDULERS:
        raise UserError(f"scheduler {scheduler.value!r} is none of ONNXim's: {', '.join(ONNXIM_SCHEDULERS)}")
    partitions = _core_partitions(hw)
    space = AddressSpace()
    readers: dict[str, GraphReader] = {}
    for request in requests:
        if request.name not in readers:
            readers[request.name] = GraphReader(request.model, hw.precision_bytes, space)
    tenants = []
    for position in launch_order([_picoseconds(request) for request in requests]):
        request = requests[position]
        lists = _lists(request, hw, scheduler, partitions)
        try:
            program = _lower(request, readers[request.name], hw, lists)
        except UserError as error:
            raise type(error)(f"model {request.name}: {error}") from error
        cycle = arrival_cycle(request, hw)
        tenants.append(Tenant(request.name, program, cycle, request.partition, position, request.request_time_ms))
    return Mix("+".join(request.name for request in requests), tuple(tenants), scheduler, partitions)


def _lower(request: Request, reader: GraphReader, hw: HwConfig, lists: int) -> Program:
    sizes = {"batch_size": request.batch, **request.dims}
    if "output_seq_len" in sizes:
        raise UserError("output_seq_len: a model is launched again, token by token, only when it runs alone")
    graph = reader.launch(request.batch, sizes)
    emitter = _TenantEmitter(request.name, hw, MappingTable(hw, request.given), lists)
    emitter.emit_graph(graph)
    return replace(emitter.builder.build(emitter.warnings), consumers=graph.consumers, unbound=tuple(emitter.unbound))


class _TenantEmitter(LayerEmitter):
    """Puts tiles into lists instead of onto cores."""

    def __init__(self, name: str, hw: HwConfig, mappings: MappingTable, lists: int) -> None:
        super().__init__(name, hw, mappings, lists)
        self._lists, self._in_layer = lists, 0
        self.unbound: list[bool] = []

    def start(self) -> PlaceTile:
        self.unbound.append(False)
        self._in_layer = 0
        return self._next_list

    def _next_list(self) -> int:
        self.unbound[-1] = True
        self._in_layer += 1
        return (self._in_layer - 1) % self._lists

    def rotated(self, index: int) -> int:
        # The original numbers cores of the whole chip first, and folds the numbers into the partition later.
        return index % self.hw.cores.count % self._lists


def _core_partitions(hw: HwConfig) -> tuple[int, ...]:
    given = hw.onnxim.partition if hw.onnxim is not None else ()
    return given or (0,) * hw.cores.count


def _lists(request: Request, hw: HwConfig, scheduler: Scheduler, partitions: Sequence[int]) -> int:
    if scheduler is Scheduler.SPATIAL_SPLIT:
        return 1
    if scheduler is not Scheduler.PARTITION_CPU:
        return hw.cores.count
    cores = partitions.count(request.partition)
    if not cores:
        known = ", ".join(map(str, sorted(set(partitions))))
        raise UserError(
            f"model {request.name}: partition_id = {request.partition}, but no core is in that partition; "
            f"the cores are in: {known}"
        )
    return cores


# --------------------------------------------------------------------------------------------------------------
# Arrivals
# --------------------------------------------------------------------------------------------------------------


def _picoseconds(request: Request) -> int:
    # One factor after the other, as the original: the product in one step may round to another picosecond.
    return int(request.request_time_ms * 1000 * 1000 * 1000)


def arrival_cycle(request: Request, hw: HwConfig) -> int:
    """Core cycle in whose tick a request arrives: the first whose end is not before the request's time."""
    period_ps = 1_000_000 // hw.clocks.core_mhz
    cycle = max(-(-_picoseconds(request) // period_ps) - 1, 0)
    if request.request_time_ms < 0 or cycle > MAX_ARRIVAL_CYCLE:
        raise UserError(
            f"model {request.name}: request_time = {request.request_time_ms} ms; expected 0 to "
            f"{MAX_ARRIVAL_CYCLE * period_ps / PS_PER_MS:.0f}"
        )
    return cycle


def launch_order(times: Sequence[int]) -> list[int]:
    """Positions of the requests in the order in which they are launched.

    The original keeps them in a binary heap (C++'s, which says how equal times come out): pushed in the order of the
    list, popped by the earliest time.
    """
    heap: list[int] = []
    for position in range(len(times)):
        heap.append(position)
        _sift_up(heap, times, len(heap) - 1)
    order = []
    while heap:
        order.append(heap[0])
        last = heap.pop()
        if heap:
            _refill_root(heap, times, last)
    return order


def _sift_up(heap: list[int], times: Sequence[int], hole: int) -> None:
    value = heap[hole]
    while hole and times[heap[(hole - 1) // 2]] > times[value]:
        heap[hole] = heap[(hole - 1) // 2]
        hole = (hole - 1) // 2
    heap[hole] = value


def _refill_root(heap: list[int], times: Sequence[int], value: int) -> None:
    """The hole at the root moves down to a leaf, along the earlier children; then `value` rises from there."""
    hole = 0
    while (child := 2 * hole + 2) < len(heap):
        if times[heap[child]] > times[heap[child - 1]]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if child == len(heap):
        heap[hole] = heap[child - 1]
        hole = child - 1
    heap[hole] = value
    _sift_up(heap, times, hole)
