"""A lane in the kernel's hands."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vsim.npu.dram import MAX_ORDER
from vsim.npu.kernel.step import MAX_TICKS, advance
from vsim.npu.kernel.structs import Struct
from vsim.npu.noc import hash_masks
from vsim.npu.types import MixTables, NpuParams, NpuShape, NpuState, ProgramTables

MAX_ITERATIONS = 1 << 18
"""At a time: a channel takes no more requests in them."""


class Sizes(NamedTuple):
    """What the kernel needs of `NpuShape` beyond the sizes of the arrays. int64[1]; of the bits of a channel's number:
    the block bits whose parity each is, int64[log2 M, 1].
    """

    cores: np.ndarray
    channels: np.ndarray
    ports: np.ndarray
    inflight: np.ndarray
    descriptors: np.ndarray
    window: np.ndarray
    returns: np.ndarray
    responses: np.ndarray
    back_pressure: np.ndarray
    fixed_latency_dram: np.ndarray
    shares: np.ndarray
    core_bits: np.ndarray
    hash_masks: np.ndarray


class Tables(NamedTuple):
    """The lane's own program: `ProgramTables` without the axis of programs, [..., 1]."""

    rows: np.ndarray
    tiles: np.ndarray
    schedule: np.ndarray
    pattern: np.ndarray
    layer_count: np.ndarray
    releases: np.ndarray


class TablesOfMix(NamedTuple):
    """`MixTables` as far as the kernel needs them; what is in one piece without the axis of programs, [..., 1]."""

    rows: np.ndarray
    tiles: np.ndarray
    pattern: np.ndarray
    schedule: np.ndarray
    lists: np.ndarray
    consumers: np.ndarray
    unbound: np.ndarray
    chain_end: np.ndarray


class Asks(NamedTuple):
    """Of a mix: of a core, the queue that it asks for a tile, whether it asks, and whether it gets one; int64[C, 1].

    requests: int64[T, 1], of a bucket, what was asked for in this tick.
    """

    queue: np.ndarray
    asks: np.ndarray
    gets: np.ndarray
    requests: np.ndarray


class Plan(NamedTuple):
    """What the kernel knows of the DRAM's queues beyond `DramState`. Sets as there.

    slots: uint32[M, 2, banks, Q / 32, 1], set of the slots with requests for the bank, and oldest_hit, oldest_miss:
    int32[M, 2, banks, 1], least keys among them, FAR if there is none; hit_banks, miss_banks: uint32[M, 2, W, 1], the
    banks with any.
    wake: int64[M, 1], tick before which the channel issues nothing unless a request arrives or a refresh falls due;
    miss_wake: int64[M, 1], tick before which no miss of the current queue is ready.
    """

    slots: np.ndarray
    oldest_hit: np.ndarray
    oldest_miss: np.ndarray
    hit_banks: np.ndarray
    miss_banks: np.ndarray
    wake: np.ndarray
    miss_wake: np.ndarray


class Scratch(NamedTuple):
    """What the kernel works out from the state when it starts.

    waiting: int64[M, C * P / 32, 1], of a channel the sources with requests for it, 32 to a word. answering:
    int64[C, 1], of a core the channels with responses for it; arrived: int64[C, 1], its ports where a response waits.
    """

    waiting: np.ndarray
    answering: np.ndarray
    arrived: np.ndarray
    plan: Plan
    asks: Asks


def scratch_of(shape: NpuShape) -> Scratch:
    """Empty; `step.prepare` fills it."""
    m, banks, queue_words = shape.channels, shape.dram.banks, -(-shape.dram.queue // 32)
    return Scratch(
        waiting=np.zeros((m, -(-shape.cores * shape.ports // 32), 1), np.int64),
        answering=np.zeros((shape.cores, 1), np.int64),
        arrived=np.zeros((shape.cores, 1), np.int64),
        plan=Plan(
            slots=np.zeros((m, 2, banks, queue_words, 1), np.uint32),
            oldest_hit=np.zeros((m, 2, banks, 1), np.int32),
            oldest_miss=np.zeros((m, 2, banks, 1), np.int32),
            hit_banks=np.zeros((m, 2, -(-banks // 32), 1), np.uint32),
            miss_banks=np.zeros((m, 2, -(-banks // 32), 1), np.uint32),
            wake=np.zeros((m, 1), np.int64),
            miss_wake=np.zeros((m, 1), np.int64),
        ),
        asks=Asks(
            queue=np.zeros((shape.cores, 1), np.int64),
            asks=np.zeros((shape.cores, 1), np.int64),
            gets=np.zeros((shape.cores, 1), np.int64),
            requests=np.zeros((shape.tenants, 1), np.int64),
        ),
    )


def _tables(program: ProgramTables, which: int) -> Tables | TablesOfMix:
    if isinstance(program, MixTables):
        in_one_piece = {name: np.asarray(getattr(program, name))[0] for name in ("rows", "tiles", "pattern")}
        others = TablesOfMix._fields[len(in_one_piece) :]
        tables = in_one_piece | {name: np.asarray(getattr(program, name)) for name in others}
        return TablesOfMix(**{name: np.ascontiguousarray(table[..., None]) for name, table in tables.items()})
    return Tables(
        *[np.ascontiguousarray(np.asarray(getattr(program, name))[which][..., None]) for name in Tables._fields]
    )


class Lane:
    """One lane whose state the kernel advances in place.

    shape; program: the tables of the batch, which: the lane's own among them (mixes: 0); params: of the lane
    ([..., 1]).
    """

    def __init__(self, shape: NpuShape, program: ProgramTables, params: NpuParams, which: int) -> None:
        masks = np.asarray(hash_masks(shape.channels), np.int64)[:, None]
        sizes = [np.asarray([getattr(shape, name)], np.int64) for name in Sizes._fields if name != "hash_masks"]
        self.inputs: list[Any] = [
            Struct(tree)
            for tree in (Sizes(*sizes, hash_masks=masks), _as_numpy(params), _tables(program, which), scratch_of(shape))
        ]

    def advance(self, state: NpuState, iterations: int) -> int:
        """Advance the state ([..., 1], NumPy arrays, written to) by at most so many iterations; how many it took."""
        return advance(*self.inputs, Struct(state), min(iterations, MAX_ITERATIONS))

    def must_rebase(self, state: NpuState) -> bool:
        """A clock or an order of arrival may leave its range otherwise."""
        clocks = state.core.now, state.noc.now, state.dram.clock
        far = max(int(clock[0]) for clock in clocks) >= MAX_TICKS
        return far or int(state.dram.order.max()) >= MAX_ORDER - 2 * MAX_ITERATIONS


def _as_numpy(tree: Any) -> Any:
    return type(tree)(**{name: _as_numpy_leaf(value) for name, value in vars(tree).items()})


def _as_numpy_leaf(value: Any) -> Any:
    return _as_numpy(value) if hasattr(value, "__dataclass_fields__") else np.ascontiguousarray(np.asarray(value))
