"""A matrix multiplication as ONNXim tiles it and orders its instructions (`onnxim.md` section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwconfigs.schema import HwConfig
from lowering.emit import Descriptor, Extent, Operand, ProgramBuilder
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.mapping import GemmMapping
from lowering.program import LayerInfo


@dataclass(frozen=True)
class Gemm:
    """Y[n, m] = X[n, k] W[m, k] + bias; addresses in bytes. bias None: no bias is loaded."""

    n: int
    m: int
    k: int
    x: int
    w: int
    y: int
    bias: int | None = None


@dataclass(frozen=True)
class _Tile:
    """Origin and extent of a tile; `last_k`: its partial sums are complete."""

    n0: int
    m0: int
    k0: int
    n: int
    m: int
    k: int
    last_k: bool


def emit_gemm(
    builder: ProgramBuilder,
    hw: HwConfig,
    gemm: Gemm,
    mapping: GemmMapping,
    name: str,
    op: str,
    core_of: Callable[[int], int],
    *,
    repeats: int = 1,
    repaired: Repairs = NONE,
) -> None:
    """Append the layer. Tiles go N outermost, then M, then K; `core_of(i)` places the i-th output tile.

    repeats: how often all of its tiles are executed, one series after the other. repaired: Q8 counts.
    """
    tiles = _tiles(gemm, mapping, hw.core(0).rows)
    stays = Fault.Q8 in repaired
    builder.begin_layer(_layer_info(hw, gemm, tiles * repeats, mapping, name, op, stays))
    for _ in range(repeats):
        output_tile = -1
        for tile in tiles:
            output_tile += tile.k0 == 0
            builder.begin_tile(core_of(output_tile), accumulate=tile.k0 > 0)
            _emit_tile(builder, hw, gemm, tile, stays)
            builder.end_tile()
    builder.end_layer()


def _tiles(gemm: Gemm, mapping: GemmMapping, block: int) -> list[_Tile]:
    """Tiles whose sizes are no multiples of the block reach into their neighbours: the original does not clip them."""

    def whole_blocks(size: int) -> int:
        return -(-size // block) * block

    return [
        _Tile(
            n0,
            m0,
            k0,
            min(whole_blocks(mapping.n), gemm.n - n0),
            min(whole_blocks(mapping.m), gemm.m - m0),
            min(mapping.k, gemm.k - k0),
            k0 + mapping.k >= gemm.k,
        )
        for n0 in range(0, gemm.n, mapping.n)
        for m0 in range(0, gemm.m, mapping.m)
        for k0 in range(0, gemm.k, mapping.k)
    ]


def _emit_tile(builder: ProgramBuilder, hw: HwConfig, gemm: Gemm, tile: _Tile, weights_stay: bool) -> None:
    block = hw.core(0).rows
    p, request_bytes = hw.precision_bytes, hw.dram.request_bytes
    n_blocks, m_blocks, k_blocks = (-(-size // block) for size in (tile.n, tile.m, tile.k))

    def operand_rows(base: int, row: int, n_rows: int) -> Descriptor:
        return _rows(base + (row * gemm.k + tile.k0) * p, n_rows, gemm.k * p, tile.k * p, request_bytes)

    # Scratchpad entries: activation blocks first, then weight blocks. Accumulator: rows of blocks.
    activations = [
        (i, operand_rows(gemm.x, tile.n0 + i * block, min(block, tile.n - i * block))) for i in range(n_blocks)
    ]
    weights = [
        (n_blocks + i, operand_rows(gemm.w, tile.m0 + i * block, min(block, tile.m - i * block)))
        for i in range(m_blocks)
    ]
    if gemm.bias is None or tile.k0 > 0:
        builder.load_many([weights[0], *activations, *weights[1:]])
    else:
        for i, weight in enumerate(weights):
            columns = min(block, tile.m - i * block)
            bias = _rows(gemm.bias + (tile.m0 + i * block) * p, 1, 0, columns * p, request_bytes)
            builder.load(i, bias, acc=True)
            builder.load_many([weight, *(activations if i == 0 else ())])
    rows = Extent(min(block, tile.n), tile.n - (n_blocks - 1) * block)
    if weights_stay:
        for j in range(m_blocks):
            builder.systolic(
                dst=Operand(j, (0, 0, m_blocks), acc=True),
                src_a=Operand(0, (0, 0, 1)),
                src_b=Operand(n_blocks + j),
                counts=(k_blocks, 1, n_blocks),
                size2=rows,
                preload="first",
            )
    else:
        builder.systolic(
            dst=Operand(0, (1, m_blocks, 0), acc=True),
            src_a=Operand(0, (0, 1, 0)),
            src_b=Operand(n_blocks, (1, 0, 0)),
            counts=(m_blocks, n_blocks, k_blocks),
            size1=rows,
        )
    if tile.last_k:
        builder.store_many(
            [_output_block(hw, gemm, tile, i, j, m_blocks) for j in range(m_blocks) for i in range(n_blocks)]
        )


def _rows(base: int, n_rows: int, pitch: int, row_bytes: int, request_bytes: int) -> Descriptor:
    """The requests that ONNXim makes for a matrix block: one for every `request_bytes` from the start of each row on.

    A row that starts inside a memory block and ends beyond the last of these steps has its last block left out.
    """
    steps = -(-row_bytes // request_bytes)
    return Descriptor.from_segments(base, ((n_rows, pitch), (steps, request_bytes)), 1, request_bytes)


def _output_block(hw: HwConfig, gemm: Gemm, tile: _Tile, i: int, j: int, m_blocks: int) -> tuple[int, Descriptor]:
    block, p = hw.core(0).rows, hw.precision_bytes
    first = gemm.y + ((tile.n0 + i * block) * gemm.m + tile.m0 + j * block) * p
    n_rows, columns = min(block, tile.n - i * block), min(block, tile.m - j * block)
    return i * m_blocks + j, _rows(first, n_rows, gemm.m * p, columns * p, hw.dram.request_bytes)


def _layer_info(
    hw: HwConfig, gemm: Gemm, tiles: list[_Tile], mapping: GemmMapping, name: str, op: str, weights_stay: bool
) -> LayerInfo:
    block = hw.core(0).rows
    if weights_stay:
        cycles = sum(-(-tile.m // block) * -(-tile.k // block) * max(tile.n, block) for tile in tiles)
    else:
        # Every pass loads new weights, and that takes as long as streaming a full block.
        cycles = sum(-(-tile.m // block) * -(-tile.k // block) * -(-tile.n // block) for tile in tiles) * max(block, 4)
    return LayerInfo(
        name=name,
        op=op,
        macs=sum(tile.n * tile.m * tile.k for tile in tiles),
        systolic_cycles=cycles,
        notes=(f"tile N:{mapping.n} C:{mapping.k} M:{mapping.m}",),
    )
