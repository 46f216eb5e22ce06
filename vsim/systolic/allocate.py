"""Splitting a budget of on-chip memory and DRAM port width: every split of a grid, and a search along the gradient.

The grid is exhaustive: every way to give each of four memories and four ports at least one step of the budget. The
search starts from a few splits, follows the derivative of a relaxed cost (`relaxed_matrix_tile`), rounds every split on
its way to the grid and evaluates those exactly; it is told nothing that the grid found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import SystolicHw, load_systolic
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import read_document
from vsim.systolic.designs import KIB_BITS, Designs, stack
from vsim.systolic.evaluate import cost_on_tiles, network_cycles
from vsim.systolic.layers import Chains, Layer, LayerTable, chains, table
from vsim.systolic.relaxed import relaxed_matrix_tile, relaxed_vector_tile
from vsim.systolic.run import layers_of

MEMORIES = ("weight", "ifmap", "ofmap", "vector")
PORTS = ("weight", "ifmap", "ofmap", "vector")
STARTS = 8
DESCENT_STEPS = 60
RATE = 0.15
"""Of Adam, on the logarithms of the shares."""

Splits = NDArray[np.int64]
"""Steps of the budget that each memory or port gets; ``(splits, 4)``."""


class Budget(Frozen):
    """What is to be split. The bias memory is not part of it."""

    sram_kib: Annotated[int, within(8, 1 << 22)]
    port_bits_per_cycle: Annotated[int, within(4, 1 << 20)]


class AllocationSpec(Frozen):
    """A search for the best split; the file of ``vsim allocate``."""

    network: str
    """An ONNX model, or ``simdit:ResNet50``."""
    hw: str
    """The design whose array, precisions and bias memory are kept."""
    budget: Budget
    batch: Annotated[int, within(1, 1 << 16)] = 1
    steps: Annotated[int, within(4, 32)] = 16
    """Equal parts that each budget is cut into; the grid has binomial(steps - 1, 3) squared points."""
    compat: Literal["simdit"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Two of the memories are halves of whole KiB each.
        if self.budget.sram_kib % (2 * self.steps):
            raise ValueError(f"budget.sram_kib = {self.budget.sram_kib} is not a multiple of {2 * self.steps}")
        if self.budget.port_bits_per_cycle % self.steps:
            raise ValueError(
                f"budget.port_bits_per_cycle = {self.budget.port_bits_per_cycle} is not a multiple of {self.steps}"
            )
        return self


def load_allocation(path: Path) -> AllocationSpec:
    """Read a specification. Raises `ConfigError` that names file, line and key."""
    document = read_document(path)
    return build(AllocationSpec, document.data, document.where)


class Point(NamedTuple):
    """One split and the cycles of the network with it."""

    memories: tuple[int, ...]
    ports: tuple[int, ...]
    cycles: float


class Grid(NamedTuple):
    """Every split of the grid, in steps of memory and of ports, and its cycles; infinite where a layer does not fit."""

    memories: Splits
    ports: Splits
    cycles: NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """What a search found.

    descents: shares of the budget at every step of every descent, float64 ``(descent steps, starts, 2, 4)``, memories
    first.
    """

    spec: AllocationSpec
    best: Point
    equal: Point
    worst: Point
    gradient: Point
    grid_points: int
    grid_runnable: int
    gradient_points: int
    grid: Grid
    descents: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Plain data, memories in KiB and ports in bits per cycle."""
        step_kib = self.spec.budget.sram_kib // self.spec.steps
        step_bits = self.spec.budget.port_bits_per_cycle // self.spec.steps
        rows = []
        for name in ("best", "equal", "worst", "gradient"):
            point: Point = getattr(self, name)
            rows.append(
                {
                    "split": name,
                    "cycles": point.cycles,
                    "of_best": point.cycles / self.best.cycles,
                    **{f"{key}_kib": steps * step_kib for key, steps in zip(MEMORIES, point.memories, strict=True)},
                    **{
                        f"{key}_bits_per_cycle": steps * step_bits
                        for key, steps in zip(PORTS, point.ports, strict=True)
                    },
                }
            )
        return {
            **self.spec.model_dump(),
            "splits": rows,
            "grid_points": self.grid_points,
            "grid_runnable": self.grid_runnable,
            "gradient_points": self.gradient_points,
        }


def allocate(spec: AllocationSpec) -> Allocation:
    """Search the grid and along the gradient. Raises `UserError` if no split can run the network."""
    with jax.enable_x64(True):
        return _allocate(spec)


def _allocate(spec: AllocationSpec) -> Allocation:
    hw = load_systolic(spec.hw)
    faults = spec.compat is not None
    layers = layers_of(spec.network, batch=spec.batch, faults=faults).layers
    shares = np.array(list(_compositions(spec.steps, len(MEMORIES))))
    memories, ports = np.repeat(shares, len(shares), axis=0), np.tile(shares, (len(shares), 1))
    cycles = network_cycles(layers, designs_of(spec, hw, memories, ports), faults=faults)
    runnable = np.isfinite(cycles)
    if not runnable.any():
        raise UserError(f"no split of {spec.budget.sram_kib} KiB lets {hw.name} run {spec.network}; enlarge the budget")

    def point(index: int) -> Point:
        return Point(tuple(map(int, memories[index])), tuple(map(int, ports[index])), float(cycles[index]))

    equal = np.full((1, len(MEMORIES)), spec.steps / len(MEMORIES))
    if spec.steps % len(MEMORIES):
        equal = _to_grid(equal / spec.steps, spec.steps)
    of_equal = network_cycles(layers, designs_of(spec, hw, equal, equal), faults=faults)[0]
    found, tried, descents = _descend(spec, hw, layers, faults)
    same = tuple(map(int, equal[0]))
    return Allocation(
        spec,
        best=point(int(np.argmin(cycles))),
        equal=Point(same, same, float(of_equal)),
        worst=point(int(np.argmax(np.where(runnable, cycles, -1)))),
        gradient=found,
        grid_points=len(cycles),
        grid_runnable=int(runnable.sum()),
        gradient_points=tried,
        grid=Grid(memories, ports, cycles),
        descents=descents,
    )


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as so many whole numbers above 0, in order."""
    for cuts in combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield tuple(high - low for low, high in pairwise(edges))


def designs_of(spec: AllocationSpec, hw: SystolicHw, memories: Any, ports: Any) -> Designs:
    """Designs with these steps of the budget, ``(designs, 4)`` each; fractions of steps are allowed."""
    base = stack([hw])
    count = memories.shape[0]
    everywhere = jax.tree.map(lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float64), (count,)), base)
    kib = memories * (spec.budget.sram_kib / spec.steps)
    bits = ports * (spec.budget.port_bits_per_cycle / spec.steps)
    half = KIB_BITS / 2
    most = hw.array.rows * hw.precision.weight_bits
    return everywhere.replace(
        weight_tile_bits=kib[:, 0] * half,
        ifmap_tile_bits=kib[:, 1] * half,
        ofmap_tile_bits=kib[:, 2] * half,
        vector_tile_bits=kib[:, 3] * half,
        weight_port_bits=bits[:, 0] if hw.array.spare_weights else jnp.minimum(bits[:, 0], most),
        ifmap_port_bits=bits[:, 1],
        ofmap_port_bits=bits[:, 2],
        vector_port_bits=bits[:, 3],
        dram_bits=jnp.full((count,), float(hw.dram_bits_per_cycle or spec.budget.port_bits_per_cycle)),
    )


def _to_grid(shares: NDArray[np.float64], steps: int) -> Splits:
    """Shares ``(points, 4)`` that add up to 1 as whole steps of at least 1, the largest remainders rounded up."""
    free = shares * steps
    whole = np.maximum(1, np.floor(free)).astype(np.int64)
    for row, wanted in zip(whole, free, strict=True):
        while (missing := steps - row.sum()) != 0:
            # A step goes to the share that lacks most, or leaves the one that has most beyond its wish.
            surplus = np.where(row > 1, row - wanted, -np.inf)
            row[np.argmax(wanted - row) if missing > 0 else np.argmax(surplus)] += np.sign(missing)
    return whole


def _descend(
    spec: AllocationSpec, hw: SystolicHw, layers: Sequence[Layer], faults: bool
) -> tuple[Point, int, NDArray[np.float64]]:
    """The best of the grid points along the descents, how many of them there are, and the descents."""
    path = np.asarray(_paths(jnp.asarray(_starts()), table(layers), chains(layers), spec, hw, faults))
    memories, ports = (_to_grid(path[:, :, half].reshape(-1, len(MEMORIES)), spec.steps) for half in range(2))
    points = np.unique(np.concatenate([memories, ports], axis=1), axis=0)
    memories, ports = points[:, : len(MEMORIES)], points[:, len(MEMORIES) :]
    cycles = network_cycles(layers, designs_of(spec, hw, memories, ports), faults=faults)
    index = int(np.argmin(cycles))
    best = Point(tuple(map(int, memories[index])), tuple(map(int, ports[index])), float(cycles[index]))
    return best, len(points), path


def _starts() -> NDArray[np.float64]:
    """Logits of the splits that descents begin at, ``(starts, 2, 4)``: the equal one, and some drawn with a seed."""
    drawn = np.random.default_rng(0).normal(size=(STARTS, 2, len(MEMORIES)))
    drawn[0] = 0
    return drawn


def _paths(
    logits: jax.Array, layers: LayerTable, of_chains: Chains, spec: AllocationSpec, hw: SystolicHw, faults: bool
) -> jax.Array:
    """Shares at every step of every descent, ``(descent steps, starts, 2, 4)``, by Adam on the logarithm of cycles."""

    def cost(logits: jax.Array) -> jax.Array:
        steps = spec.steps * jax.nn.softmax(logits, axis=-1)
        designs = designs_of(spec, hw, steps[:, 0], steps[:, 1])
        cycles = cost_on_tiles(layers, of_chains, designs, relaxed_matrix_tile, relaxed_vector_tile, faults)
        # The starts do not meddle with one another: the derivative of the sum is that of each.
        return jnp.log(cycles).sum()

    def step(carry: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        logits, mean, square = carry
        slope = jax.grad(cost)(logits)
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        unbiased = mean / (1 - 0.9**number)
        scale = jnp.sqrt(square / (1 - 0.99**number)) + 1e-9
        return (logits - RATE * unbiased / scale, mean, square), jax.nn.softmax(logits, axis=-1)

    zeros = jnp.zeros_like(logits)
    numbers = jnp.arange(1.0, DESCENT_STEPS + 1)
    return jax.jit(lambda first: jax.lax.scan(step, (first, zeros, zeros), numbers)[1])(logits)
