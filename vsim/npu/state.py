"""The initial state of lanes (last axis of every array), and the rebasing of their clocks between chunks."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from vsim.npu import dispatch, dram, noc, tenants, words
from vsim.npu.dram import DramState
from vsim.npu.fields import FAR, PAST
from vsim.npu.types import (
    Activity,
    CoreState,
    MixInput,
    MixTables,
    NocState,
    NpuParams,
    NpuShape,
    NpuState,
    Pass,
    ProgramTables,
    TenantSchedule,
)


def init(shape: NpuShape, params: NpuParams, program: ProgramTables, workload: Array | MixInput) -> NpuState:
    """Lanes before their first tick. workload: int32[L], index of each lane's program, or the lanes' mixes."""
    if isinstance(workload, MixInput):
        assert isinstance(program, MixTables)
        which, schedule = jnp.zeros_like(workload.count), tenants.start(shape, program, workload)
    else:
        which, schedule = workload, dispatch.start(program, workload, shape.layers)
    lanes = which.size
    zero, no = jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool)
    return NpuState(
        core=_init_core(shape, lanes),
        schedule=schedule,
        noc=noc.init(shape, lanes),
        dram=dram.init(shape.dram, params.dram),
        core_time=zero, noc_time=zero, dram_time=zero, core_quiet=no, noc_quiet=no, dram_quiet=no,
        iterations=zero, program=jnp.asarray(which, jnp.int32), status=zero, done=no,
    )  # fmt: skip


def _init_core(shape: NpuShape, lanes: int) -> CoreState:
    c = shape.cores

    def zeros(*dims: int) -> Array:
        return jnp.zeros((*dims, lanes), jnp.int32)

    def false(*dims: int) -> Array:
        return jnp.zeros((*dims, lanes), bool)

    def minus(*dims: int) -> Array:
        return jnp.full((*dims, lanes), -1, jnp.int32)

    no_descriptor = words.Descriptor(*(zeros(c) for _ in words.Descriptor._fields))
    no_execute = words.Execute(*(zeros(c) for _ in words.Execute._fields))._replace(preload=false(c))
    none = Activity(*(zeros(c) for _ in Activity._fields))
    return CoreState(
        now=zeros(), base_high=zeros(), base_low=zeros(), resident=false(c, 2), front=zeros(c), issue_from=zeros(c),
        row=zeros(c, 2), end_row=zeros(c, 2), loop=(zeros(c, 2), zeros(c, 2), zeros(c, 2)), spad_half=zeros(c, 2),
        acc_half=zeros(c, 2),
        streaming=false(c, 2), last_done=false(c, 2), previous_layer=minus(c), previous_key=zeros(c),
        previous_acc=zeros(c), remaining=minus(c, 4 * shape.entries),
        load_valid=false(c), load=no_descriptor, store_valid=false(c), store=no_descriptor,
        store_last=zeros(c), execute_valid=false(c), execute=no_execute,
        systolic=Pass(*(zeros(c, shape.systolic) for _ in Pass._fields)), systolic_head=zeros(c),
        systolic_count=zeros(c), tail_start=zeros(c), tail_rows=zeros(c), vector_busy=false(c),
        vector_finish=zeros(c), vector_retire=zeros(c), finished=zeros(c), unacknowledged=zeros(c),
        activity=none, activity_high=none,
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
    schedule = s.schedule
    if isinstance(schedule, TenantSchedule):
        schedule = schedule.replace(share_due=_earlier(schedule.share_due, s.core.now))
    return s.replace(core=_rebase_core(s.core), schedule=schedule, noc=network, dram=_rebase_dram(s.dram))


def _earlier(times: Array, by: Array) -> Array:
    """Times - by, kept within [PAST, FAR]; FAR stays FAR."""
    return jnp.where(times == FAR, FAR, jnp.where(times < PAST + by, PAST, times - by))


def _rebase_core(s: CoreState) -> CoreState:
    by = s.now
    high, low = dispatch.absolute(s)
    counts = list(zip(s.activity, s.activity_high, strict=True))
    return s.replace(
        now=s.now - by, base_high=high, base_low=low,
        systolic=Pass(_earlier(s.systolic.start, by), _earlier(s.systolic.finish, by), s.systolic.retire),
        tail_start=_earlier(s.tail_start, by), vector_finish=_earlier(s.vector_finish, by),
        activity=Activity(*(low & dispatch.RADIX_MASK for low in s.activity)),
        activity_high=Activity(*(high + (low >> dispatch.RADIX_BITS) for low, high in counts)),
        systolic_head=s.systolic_head & (s.systolic.start.shape[1] - 1),
    )  # fmt: skip


def _rebase_noc(s: NocState) -> NocState:
    by = s.now
    return s.replace(now=s.now - by, stamp=_earlier(s.stamp, by), response_stamp=_earlier(s.response_stamp, by))


def _rebase_dram(s: DramState) -> DramState:
    by = s.clock
    queued, active = s.key != FAR, dram.is_active(s)
    orders = jnp.where(queued, s.key >> dram.SLOT_BITS, FAR), jnp.where(active, s.active_key >> dram.BANK_BITS, FAR)
    oldest = jnp.minimum(jnp.minimum(jnp.min(orders[0], axis=(1, 2)), jnp.min(orders[1], axis=1)), s.order)
    return s.replace(
        clock=s.clock - by,
        key=jnp.where(queued, s.key - (oldest[:, None, None] << dram.SLOT_BITS), FAR),
        active_key=jnp.where(active, s.active_key - (oldest[:, None] << dram.BANK_BITS), s.active_key),
        order=s.order - oldest,
        ready_bank=_earlier(s.ready_bank, by), ready_group=_earlier(s.ready_group, by),
        ready_rank=_earlier(s.ready_rank, by), activations=_earlier(s.activations, by),
        pending_depart=_earlier(s.pending_depart, by),
        pending_head=s.pending_head & (s.pending_depart.shape[1] - 1),
        refresh_next=_earlier(s.refresh_next, by),
    )  # fmt: skip
