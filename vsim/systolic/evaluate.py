"""Evaluating layers on designs: one compiled function for all of them, exact in 64 bits.

JAX is asked for 64 bits around every call here and nowhere else: the other machine models stay in 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vsim.systolic.corrected import corrected_matrix_cost, corrected_vector_cost, halved
from vsim.systolic.designs import Designs
from vsim.systolic.layers import (
    Chains,
    Layer,
    LayerTable,
    MatrixLayer,
    MatrixTable,
    VectorTable,
    chain_starts,
    chains,
    table,
)
from vsim.systolic.matrix_cost import MatrixCost, matrix_cost
from vsim.systolic.rounding import ceil
from vsim.systolic.tiling import MatrixTile, VectorTile, matrix_tile, vector_tile
from vsim.systolic.vector_cost import VectorCost, vector_cost


class Evaluation(NamedTuple):
    """Tiles and costs; every field a float64 array of shape ``(layers, designs)``, or ``(pairs,)`` of `evaluate_pairs`.

    The layers of each part are in the order of the list they come from.
    """

    matrix_tile: MatrixTile
    matrix: MatrixCost
    vector_tile: VectorTile
    vector: VectorCost


def _matrix(layer: MatrixTable, design: Designs, faults: bool) -> tuple[MatrixTile, MatrixCost]:
    tile = matrix_tile(layer, design)
    return tile, (matrix_cost if faults else corrected_matrix_cost)(layer, design, tile)


def _vector(layer: VectorTable, design: Designs, faults: bool) -> tuple[VectorTile, VectorCost]:
    tile = vector_tile(layer, design if faults else halved(design))
    return tile, (vector_cost if faults else corrected_vector_cost)(layer, design, tile)


def _grid(layers: LayerTable, designs: Designs, faults: bool) -> Evaluation:
    """Every layer on every design: the designs are the last axis, along which the arithmetic vectorises."""
    over_designs, over_layers = (None, 0, None), (0, None, None)
    matrix = jax.vmap(jax.vmap(_matrix, over_designs), over_layers)(layers.matrix, designs, faults)
    vector = jax.vmap(jax.vmap(_vector, over_designs), over_layers)(layers.vector, designs, faults)
    return Evaluation(*matrix, *vector)


@partial(jax.jit, static_argnums=3)
def _pairs(layers: LayerTable, of_matrix: Designs, of_vector: Designs, faults: bool) -> Evaluation:
    pairs = (0, 0, None)
    matrix = jax.vmap(_matrix, pairs)(layers.matrix, of_matrix, faults)
    return Evaluation(*matrix, *jax.vmap(_vector, pairs)(layers.vector, of_vector, faults))


_compiled_grid = jax.jit(_grid, static_argnums=2)

T = TypeVar("T")


def on_host(tree: T) -> T:
    """The same structure of NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def evaluate(layers: Sequence[Layer], designs: Designs, *, faults: bool = False) -> Evaluation:
    """Every layer on every design; with ``faults`` as SimDIT has them."""
    with jax.enable_x64(True):
        return on_host(_compiled_grid(table(layers), designs, faults))


def evaluate_pairs(layers: Sequence[Layer], designs: Designs, *, faults: bool = False) -> Evaluation:
    """Layer ``i`` on design ``i``: as many designs as layers."""
    is_matrix = _is_matrix(layers)

    def chosen(mask: np.ndarray) -> Any:
        return jax.tree.map(lambda values: np.asarray(values)[mask], designs)

    with jax.enable_x64(True):
        return on_host(_pairs(table(layers), chosen(is_matrix), chosen(~is_matrix), faults))


DESIGNS_TOGETHER = 128
"""Designs in one call of the compiled function; smaller sets compile a smaller one."""


class Totals(NamedTuple):
    """Sums over the layers of a network; float64 arrays of shape ``(designs,)``."""

    matrix: MatrixCost
    vector: VectorCost

    @property
    def cycles(self) -> Any:
        """Array and vector unit one after the other, as SimDIT has it."""
        matrix, vector = self.matrix, self.vector
        return matrix.compute_cycles + matrix.stall_cycles + vector.compute_cycles + vector.stall_cycles

    @property
    def vector_share(self) -> Any:
        """Part of the cycles that is not convolution or matrix product."""
        return (self.vector.compute_cycles + self.vector.stall_cycles) / self.cycles

    @property
    def fits(self) -> Any:
        """Whether the design can run every layer."""
        return self.matrix.fits & self.vector.fits


def _sum(costs: Any) -> Any:
    sums = {name: value.sum(axis=0) for name, value in costs._asdict().items() if name != "fits"}
    return type(costs)(**sums, fits=costs.fits.all(axis=0))


@partial(jax.jit, static_argnums=2)
def _totals(layers: LayerTable, designs: Designs, faults: bool) -> Totals:
    grid = _grid(layers, designs, faults)
    return Totals(_sum(grid.matrix), _sum(grid.vector))


def totals(layers: Sequence[Layer], designs: Designs, *, faults: bool = False) -> Totals:
    """Sums over ``layers`` for every design, so many designs at a time that what lies between stays in the caches."""
    count = designs.count
    together = min(count, DESIGNS_TOGETHER)
    designs = on_host(designs)
    with jax.enable_x64(True):
        layer_table = jax.device_put(table(layers))
        parts = [
            _totals(layer_table, jax.tree.map(partial(_slice, start=start, count=together), designs), faults)
            for start in range(0, count, together)
        ]
        return jax.tree.map(lambda *values: np.concatenate(values)[:count], *parts)


def network_cycles(layers: Sequence[Layer], designs: Designs, *, faults: bool = False) -> np.ndarray:
    """Cycles of a whole network on each design, float64 ``(designs,)``; infinite where a layer does not fit.

    With ``faults`` one layer after the other; else chain by chain, as `vsim.systolic.schedule` says.
    """
    count = designs.count
    together = min(count, DESIGNS_TOGETHER)
    designs = on_host(designs)
    with jax.enable_x64(True):
        arguments = jax.device_put((table(layers), chains(layers)))
        parts = [
            _cycles(*arguments, jax.tree.map(partial(_slice, start=start, count=together), designs), faults)
            for start in range(0, count, together)
        ]
        return np.concatenate([np.asarray(part) for part in parts])[:count]


@partial(jax.jit, static_argnums=3)
def _cycles(layers: LayerTable, chains: Chains, designs: Designs, faults: bool) -> jax.Array:
    grid = _grid(layers, designs, faults)
    fits = grid.matrix.fits.all(axis=0) & grid.vector.fits.all(axis=0)
    return jnp.where(fits, cycles_of(layers, chains, designs, grid, faults), jnp.inf)


def evaluate_chains(layers: Sequence[Layer], designs: Designs) -> tuple[Evaluation, np.ndarray]:
    """`evaluate` in the corrected mode, and the cycles of each chain on each design, float64 ``(chains, designs)``."""
    with jax.enable_x64(True):
        found, cycles = on_host(_grid_and_chains(table(layers), chains(layers), designs))
    return found, cycles[: len(chain_starts(layers))]


@jax.jit
def _grid_and_chains(layers: LayerTable, chains: Chains, designs: Designs) -> tuple[Evaluation, jax.Array]:
    grid = _grid(layers, designs, False)
    return grid, of_each_chain(layers, chains, designs, grid)


def cycles_of(layers: LayerTable, chains: Chains, designs: Designs, grid: Evaluation, faults: bool) -> jax.Array:
    """Cycles of the network of which ``grid`` holds every layer; differentiable."""
    if faults:
        array = grid.matrix.compute_cycles + grid.matrix.stall_cycles
        unit = grid.vector.compute_cycles + grid.vector.stall_cycles
        return array.sum(axis=0) + unit.sum(axis=0)
    return of_each_chain(layers, chains, designs, grid).sum(axis=0)


def of_each_chain(layers: LayerTable, chains: Chains, designs: Designs, grid: Evaluation) -> jax.Array:
    """Cycles of each chain, ``(layers, designs)``: one row for each, then zeros."""
    array = grid.matrix.compute_cycles + grid.matrix.stall_cycles
    unit = grid.vector.compute_cycles + grid.vector.stall_cycles
    count = layers.matrix.batch.shape[0] + layers.vector.batch.shape[0]

    def of_chain(of_matrix: jax.Array | float, of_vector: jax.Array | float) -> jax.Array:
        sums = jnp.zeros((count, designs.count)).at[chains.matrix].add(of_matrix)
        return sums.at[chains.vector].add(of_vector)

    matrix, vector = of_chain(array, 0.0), of_chain(0.0, unit)
    memory = of_chain(_matrix_bits(grid.matrix), grid.vector.dram_in_bits + grid.vector.dram_out_bits)
    tiles = of_chain(_output_tiles(layers.matrix, grid.matrix_tile), 0.0)
    last = jnp.where(tiles > 0, vector / jnp.maximum(tiles, 1), 0)
    overlapped = jnp.maximum(jnp.maximum(matrix, vector), memory / designs.dram_bits) + last
    return jnp.minimum(overlapped, matrix + vector)


def cycles_of_evaluated(
    layers: Sequence[Layer], designs: Designs, found: Evaluation, *, faults: bool = False
) -> np.ndarray:
    """`network_cycles` of a network that has been evaluated on ``designs``, without doing so again."""
    with jax.enable_x64(True):
        return np.asarray(_summed_cycles(table(layers), chains(layers), designs, found, faults))


_summed_cycles = jax.jit(
    lambda layers, chains, designs, found, faults: cycles_of(layers, chains, designs, found, faults), static_argnums=4
)


def part_of(found: Evaluation, layers: Sequence[Layer], part: slice, design: int) -> Evaluation:
    """The evaluation of consecutive ``layers[part]`` on one of the designs; the fields ``(layers of the part, 1)``."""
    before, own = (np.bincount(_is_matrix(layers[cut]), minlength=2) for cut in (slice(part.start), part))
    (vectors, matrices) = (slice(first, first + count) for first, count in zip(before, own, strict=True))

    def cut(fields: Any, rows: slice) -> Any:
        return type(fields)(*(values[rows, design : design + 1] for values in fields))

    return Evaluation(
        cut(found.matrix_tile, matrices),
        cut(found.matrix, matrices),
        cut(found.vector_tile, vectors),
        cut(found.vector, vectors),
    )


def cost_on_tiles(
    layers: LayerTable,
    chains: Chains,
    designs: Designs,
    of_matrix: Callable[[MatrixTable, Designs], MatrixTile],
    of_vector: Callable[[VectorTable, Designs], VectorTile],
    faults: bool,
) -> jax.Array:
    """Cycles of the network ``(designs,)`` with tiles chosen by other functions than the generator's."""

    def matrix(layer: MatrixTable, design: Designs) -> tuple[MatrixTile, MatrixCost]:
        tile = of_matrix(layer, design)
        return tile, (matrix_cost if faults else corrected_matrix_cost)(layer, design, tile)

    def vector(layer: VectorTable, design: Designs) -> tuple[VectorTile, VectorCost]:
        tile = of_vector(layer, design if faults else halved(design))
        return tile, (vector_cost if faults else corrected_vector_cost)(layer, design, tile)

    over_designs, over_layers = (None, 0), (0, None)
    found = Evaluation(
        *jax.vmap(jax.vmap(matrix, over_designs), over_layers)(layers.matrix, designs),
        *jax.vmap(jax.vmap(vector, over_designs), over_layers)(layers.vector, designs),
    )
    return cycles_of(layers, chains, designs, found, faults)


def _matrix_bits(cost: MatrixCost) -> jax.Array:
    return (
        cost.dram_filter_bits + cost.dram_ifmap_bits + cost.dram_psum_bits + cost.dram_ofmap_bits + cost.dram_bias_bits
    )


def _output_tiles(layer: MatrixTable, tile: MatrixTile) -> jax.Array:
    """Tiles of output of each matrix layer."""

    def parts(size: jax.Array, of_tile: jax.Array) -> jax.Array:
        return ceil(size[:, None] / of_tile)

    return (
        parts(layer.out_width, tile.width)
        * parts(layer.out_height, tile.height)
        * parts(layer.batch, tile.batch)
        * parts(layer.out_channels, tile.out_channels)
    )


def _slice(values: Any, *, start: int, count: int) -> np.ndarray:
    """``count`` entries from ``start``, the last one repeated where there are fewer: another shape would compile."""
    part = np.asarray(values)[start : start + count]
    return np.pad(part, (0, count - len(part)), mode="edge")


def totals_of_each(networks: Sequence[Sequence[Layer]], designs: Designs, *, faults: bool = False) -> Totals:
    """Sums over the layers of network ``i`` on design ``i``, all in one batch."""
    layers = [layer for network in networks for layer in network]
    owner = np.repeat(np.arange(len(networks)), [len(network) for network in networks])
    found = evaluate_pairs(layers, jax.tree.map(lambda values: np.asarray(values)[owner], designs), faults=faults)
    is_matrix = _is_matrix(layers)

    def summed(costs: Any, owners: np.ndarray) -> Any:
        sums = {
            name: np.bincount(owners, values, len(networks))
            for name, values in costs._asdict().items()
            if name != "fits"
        }
        misfits = np.bincount(owners, ~costs.fits, len(networks))
        return type(costs)(**sums, fits=misfits == 0)

    return Totals(summed(found.matrix, owner[is_matrix]), summed(found.vector, owner[~is_matrix]))


def _is_matrix(layers: Sequence[Layer]) -> np.ndarray:
    return np.array([isinstance(layer, MatrixLayer) for layer in layers], bool)
