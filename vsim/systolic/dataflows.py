"""SCALE-Sim's closed forms: a matrix product on an array that holds outputs, weights or inputs still.

A (M x K) times B (K x N) on R x C processing elements (specs/systolic.md section 2.2, checked against SCALE-Sim v3).
Of the three dimensions two lie along rows and columns of the array and are cut into folds; the third passes in time.
All folds drain before the next begins, and a fold at the edge takes as long as a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from hwconfigs.errors import UserError
from vsim.systolic.evaluate import on_host

OUTPUT_STATIONARY, WEIGHT_STATIONARY, INPUT_STATIONARY = range(3)
DATAFLOWS = {"os": OUTPUT_STATIONARY, "ws": WEIGHT_STATIONARY, "is": INPUT_STATIONARY}


@dataclass(frozen=True)
class Sparsity:
    """N:M sparsity of the weights, along K: of every ``group`` rows of a column ``kept`` are stored.

    ``row_wise``: every column keeps another number, up to half; storage and folds are those of half (SCALE-Sim's
    ``OptimizedMapping``).
    """

    kept: int
    group: int
    row_wise: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.group:
            raise UserError(f"sparsity {self.kept}:{self.group}: expected 1 <= N <= M, such as 2:4")

    def rows_kept(self, rows: int) -> int:
        """Rows of the compacted weights of ``rows`` rows."""
        kept = self.group // 2 if self.row_wise else self.kept
        return rows // self.group * kept + min(rows % self.group, kept)


@struct.dataclass
class Products:
    """Matrix products and the arrays they run on; float64 of shape ``(cases,)``."""

    m: jax.Array
    n: jax.Array
    k: jax.Array
    """Of the dense product."""
    k_kept: jax.Array
    """Rows of the weights that are stored; ``k`` where they are dense."""
    dataflow: jax.Array
    rows: jax.Array
    cols: jax.Array


class ProductCost(NamedTuple):
    """Float64 of shape ``(cases,)``; accesses of the on-chip memories in words."""

    compute_cycles: jax.Array
    ifmap_words: jax.Array
    filter_words: jax.Array
    ofmap_words: jax.Array
    folds: jax.Array
    macs: jax.Array
    mapping_efficiency: jax.Array
    """Processing elements in use, on average over the folds."""


def products(
    sizes: Sequence[tuple[int, int, int]],
    dataflows: Sequence[str],
    arrays: Sequence[tuple[int, int]],
    sparsities: Sequence[Sparsity | None] | None = None,
) -> Products:
    """Cases from their (M, N, K), dataflow ("os", "ws", "is"), (rows, columns) and sparsity. Raises `UserError`.

    Sparsity is of weights that stay in place: weight stationary only.
    """
    kept = []
    for (m, n, k), flow, sparsity in zip(sizes, dataflows, sparsities or [None] * len(sizes), strict=True):
        if flow not in DATAFLOWS:
            raise UserError(f"dataflow {flow!r} is unknown; valid: {', '.join(DATAFLOWS)}")
        if min(m, n, k) < 1:
            raise UserError(f"a matrix product of M = {m}, N = {n}, K = {k}: sizes are at least 1")
        if sparsity is not None and flow != "ws":
            raise UserError(f"sparsity goes with dataflow 'ws', not {flow!r}")
        kept.append(k if sparsity is None else sparsity.rows_kept(k))
    columns: list[Any] = [
        *np.array(sizes, np.float64).reshape(-1, 3).T,
        np.array(kept, np.float64),
        np.array([DATAFLOWS[flow] for flow in dataflows], np.float64),
        *np.array(arrays, np.float64).reshape(-1, 2).T,
    ]
    return Products(*columns)


def _cost(case: Products, faults: bool) -> ProductCost:
    is_os, is_ws = case.dataflow == OUTPUT_STATIONARY, case.dataflow == WEIGHT_STATIONARY
    along_rows = jnp.where(is_os, case.m, case.k_kept)
    along_cols = jnp.where(is_os | is_ws, case.n, case.m)
    in_time = jnp.where(is_os, case.k, jnp.where(is_ws, case.m, case.n))
    row_folds, col_folds = jnp.ceil(along_rows / case.rows), jnp.ceil(along_cols / case.cols)
    folds = row_folds * col_folds
    # Output stationary: both operands stream. Otherwise one is loaded row by row before the other streams.
    per_fold = in_time + case.rows + case.cols - 2 + jnp.where(is_os, 0, case.rows)
    inputs, weights, outputs = case.m * case.k, case.k_kept * case.n, case.m * case.n
    written = outputs * jnp.where(is_os, 1, row_folds)
    if faults:
        # SCALE-Sim reports the index of the last cycle, adds the sides of the array to the outputs of every fold, and
        # never reads partial sums back.
        cycles, ofmap = folds * per_fold - 1, written + jnp.where(is_os, folds * (case.rows + case.cols), 0)
    else:
        cycles, ofmap = folds * per_fold, 2 * written - outputs
    return ProductCost(
        compute_cycles=cycles,
        ifmap_words=inputs * jnp.where(is_os | is_ws, col_folds, 1),
        filter_words=weights * jnp.where(is_os, row_folds, jnp.where(is_ws, 1, col_folds)),
        ofmap_words=ofmap,
        folds=folds,
        macs=outputs * case.k_kept,
        mapping_efficiency=along_rows * along_cols / (folds * case.rows * case.cols),
    )


_compiled = jax.jit(lambda cases, faults: jax.vmap(lambda case: _cost(case, faults))(cases), static_argnums=1)


def product_costs(cases: Products, *, faults: bool = False) -> ProductCost:
    """Cycles and accesses of every case; with ``faults`` as SCALE-Sim reports them.

    Without: cycles are counted and not numbered, and partial sums that do not fit in the array are read back.
    """
    with jax.enable_x64(True):
        return on_host(_compiled(cases, faults))
