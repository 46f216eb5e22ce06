"""The initial state of a lane, and the rebasing of its clocks between chunks."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from vsim.npu import dispatch, dram, noc, words
from vsim.npu.dram import DramState
from vsim.npu.fields import FAR, PAST
from vsim.npu.types import CoreState, NocState, NpuParams, NpuShape, NpuState, ProgramTables


def init(shape: NpuShape, params: NpuParams, program: ProgramTables, which: Array) -> NpuState:
    """A lane before its first tick. which: int32[], index of its program."""
    zero = jnp.int32(0)
    return NpuState(
        core=_init_core(shape),
        schedule=dispatch.start(program, which, shape.layers),
        noc=noc.init(shape),
        dram=dram.init(shape.dram, params.dram),
        core_time=zero, noc_time=zero, dram_time=zero,
        core_quiet=jnp.bool_(False), noc_quiet=jnp.bool_(False), dram_quiet=jnp.bool_(False),
        iterations=zero, program=jnp.asarray(which, jnp.int32), status=zero, done=jnp.bool_(False),
    )  # fmt: skip


def _init_core(shape: NpuShape) -> CoreState:
    c = shape.cores

    def zeros(*dims: int) -> Array:
        return jnp.zeros(dims, jnp.int32)

    def false(*dims: int) -> Array:
        return jnp.zeros(dims, bool)

    return CoreState(
        now=zeros(), base_high=zeros(), base_low=zeros(), resident=false(c, 2), front=zeros(c), issue_from=zeros(c),
        row=zeros(c, 2), end_row=zeros(c, 2), loop=zeros(c, 2, 3), spad_half=zeros(c, 2), acc_half=zeros(c, 2),
        streaming=false(c, 2), last_done=false(c, 2), previous_layer=jnp.full(c, -1, jnp.int32),
        previous_key=zeros(c), previous_acc=zeros(c), remaining=jnp.full((c, 4, shape.entries), -1, jnp.int32),
        load_valid=false(c), load=zeros(c, words.DESCRIPTOR_WORDS), store_valid=false(c),
        store=zeros(c, words.DESCRIPTOR_WORDS), store_last=zeros(c), execute_valid=false(c),
        execute=zeros(c, words.EXECUTE_WORDS), systolic=zeros(c, shape.systolic, 3), systolic_head=zeros(c),
        systolic_count=zeros(c), tail_start=zeros(c), tail_rows=zeros(c), vector_busy=false(c),
        vector_finish=zeros(c), vector_retire=zeros(c), finished=zeros(c), unacknowledged=zeros(c),
        systolic_active=zeros(c, 2), vector_active=zeros(c, 2), compute_active=zeros(c, 2), idle=zeros(c, 2),
        systolic_busy=zeros(c, 2),
    )  # fmt: skip


def rebase(shape: NpuShape, s: NpuState) -> NpuState:
    """Move the origin of every clock to the present, so that int32 cycle counts never wrap.

    Exact: differences between a clock and the times kept with it do not change, except that times before PAST, which
    no rule can tell from PAST, stay there.
    """
    network = _rebase_noc(s.noc)
    if shape.fixed_latency_dram:
        # Requests in the input buffers carry their ready tick; of those on the way there nobody reads this field.
        by = s.dram.clock
        network = network.replace(block=_earlier(network.block, by), latest_ready=_earlier(network.latest_ready, by))
    return s.replace(core=_rebase_core(s.core), noc=network, dram=_rebase_dram(s.dram))


def _earlier(times: Array, by: Array) -> Array:
    """Times - by, kept within [PAST, FAR]; FAR stays FAR."""
    return jnp.where(times == FAR, FAR, jnp.where(times < PAST + by, PAST, times - by))


def _carry(counter: Array) -> Array:
    low = counter[..., 0]
    return jnp.stack([low & dispatch.RADIX_MASK, counter[..., 1] + (low >> dispatch.RADIX_BITS)], axis=-1)


def _rebase_core(s: CoreState) -> CoreState:
    by = s.now
    high, low = dispatch.absolute(s)
    times = _earlier(s.systolic[..., :2], by)
    return s.replace(
        now=s.now - by, base_high=high, base_low=low,
        systolic=jnp.concatenate([times, s.systolic[..., 2:]], axis=-1),
        tail_start=_earlier(s.tail_start, by), vector_finish=_earlier(s.vector_finish, by),
        systolic_active=_carry(s.systolic_active), vector_active=_carry(s.vector_active),
        compute_active=_carry(s.compute_active), idle=_carry(s.idle), systolic_busy=_carry(s.systolic_busy),
        systolic_head=s.systolic_head & (s.systolic.shape[1] - 1),
    )  # fmt: skip


def _rebase_noc(s: NocState) -> NocState:
    by = s.now
    return s.replace(now=s.now - by, stamp=_earlier(s.stamp, by), response_stamp=_earlier(s.response_stamp, by))


def _rebase_dram(s: DramState) -> DramState:
    by = s.clock
    in_use = s.key != FAR
    order = s.key >> dram.SLOT_BITS
    oldest = jnp.min(jnp.where(in_use, order, s.order[:, :, None]), axis=2)
    return s.replace(
        clock=s.clock - by,
        key=jnp.where(in_use, s.key - (oldest[:, :, None] << dram.SLOT_BITS), FAR),
        order=s.order - oldest,
        arrival=_earlier(s.arrival, by), active_arrival=_earlier(s.active_arrival, by),
        ready_channel=_earlier(s.ready_channel, by), ready_rank=_earlier(s.ready_rank, by),
        ready_group=_earlier(s.ready_group, by), ready_bank=_earlier(s.ready_bank, by),
        activations=_earlier(s.activations, by), pending_depart=_earlier(s.pending_depart, by),
        pending_head=s.pending_head & (s.pending_depart.shape[1] - 1),
        refresh_next=_earlier(s.refresh_next, by),
    )  # fmt: skip
