"""Changing the size of images: Resize, Upsample, GridSample, and transposed convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowering.chip import Chip
from lowering.context import Handler, Network, unsupported
from lowering.emit import Extent, Operand, ProgramBuilder
from lowering.fusion import Group
from lowering.ir import Node
from lowering.layout import Layout, channels_last
from lowering.mapping import MappingError, MatmulShape, ranges
from lowering.matmul import MatmulLayer, OutputGrid, emit_matmul, plan_matmul, vector_units
from lowering.operators import Cost, add_costs, elementwise_cost, latency, times
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.vector_layers import Identity, shares

TAPS = {"nearest": 1, "linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}
"""Samples along each dimension that is resized."""


def resize(network: Network, group: Group) -> None:
    """Resize and Upsample: the input is read once, with the halo of a line of the outermost image dimension.

    Nearest: one selection for each result. Linear, cubic: one mac for each of 2 or 4 samples in every dimension that
    changes; the weights of the samples are computed once and stay resident.
    """
    node = group.head
    x, target = node.input(0), node.outputs[0]
    mode = node.text("mode", "nearest")
    if mode not in TAPS:
        raise unsupported(node, f"mode {mode!r} is not known; valid: {', '.join(TAPS)}")
    order = channels_last(len(x.shape))
    layout = network.in_order(x, order)
    goal = network.place(target, order).layout
    resized = sum(1 for old, new in zip(x.shape, target.shape, strict=True) if old != new)
    samples = TAPS[mode] ** max(1, resized)
    cost: Cost = {"add": 1} if samples == 1 else {"mac": samples}
    line = layout.pitch_bytes * math.prod(layout.physical[2:-1])
    halo = line * (TAPS[mode] // 2)
    layer = StreamLayer(Identity(node.name, node.op), (Read(layout, min(halo, layout.total_bytes)),), goal, cost)
    emit_stream(network.builder, layer, network.chip)


def grid_sample(network: Network, group: Group) -> None:
    """GridSample: image and grid are read once; 2 or 4 samples in each dimension, and their weights, are computed."""
    node = group.head
    x, grid, target = node.input(0), node.input(1), node.outputs[0]
    mode = node.text("mode", "linear")
    order = channels_last(len(x.shape))
    layout = network.in_order(x, order)
    where = network.find(grid).layout
    goal = network.place(target, order).layout
    samples = TAPS.get(mode, 2) ** (len(x.shape) - 2)
    layer = StreamLayer(Identity(node.name, node.op), (Read(layout), Read(where)), goal, {"mac": samples, "add": 1})
    emit_stream(network.builder, layer, network.chip)


# -- transposed convolution


def conv_transpose(network: Network, group: Group) -> None:
    """ConvTranspose, 1-D and 2-D, as one convolution of stride 1 for each output phase.

    Outputs whose positions are equal modulo the stride see the same kernel positions; together they are an ordinary
    convolution with these. No product with an inserted zero is computed. Each phase reads the input for itself.
    """
    node = group.head
    x, target = node.input(0), group.output
    order = channels_last(len(x.shape))
    layout = network.in_order(x, order)
    result = network.place(target, order).layout
    rest = [step for step in group.steps if not step.folded]
    residuals = tuple(network.in_order(tensor, order) for step in rest for tensor in step.operands)
    bias = len(node.inputs) > 2 or any(step.folded for step in group.steps)
    empty = []
    for name, shape, grid in phases(node):
        if not shape.kernel_rows * shape.kernel_cols:
            empty.append((shape, grid))
            continue
        layer = MatmulLayer(
            name=name,
            op=node.op,
            shape=shape,
            x=layout,
            y=result,
            bias=bias,
            residuals=residuals,
            epilogue=add_costs(*(elementwise_cost(step.node) for step in rest)),
            notes=tuple(f"fused: {step.node.op}" for step in group.steps),
            grid=grid,
        )
        emit_matmul(network.builder, plan_matmul(layer, network.chip, network.mapping), network.chip, network.space)
    if empty:
        cost = add_costs({"add": 1}, *(elementwise_cost(step.node) for step in rest))
        _emit_empty(network, Identity(f"{node.name} (outputs without input)", node.op), empty, result, residuals, cost)


def _emit_empty(
    network: Network,
    identity: Identity,
    phases_: list[tuple[MatmulShape, OutputGrid]],
    result: Layout,
    residuals: tuple[Layout, ...],
    cost: Cost,
) -> None:
    """Write the outputs that no input reaches, a kernel being smaller than its stride: zeros, or what is added to them.

    Tiles are rows of output positions, of as many channels as fit half the scratchpad.
    """
    chip, builder = network.chip, network.builder
    lanes = max(1, chip.request_bytes // chip.element_bytes)
    builder.begin_layer(identity.info())
    for shape, grid in phases_:
        line = shape.out_cols * (len(residuals) + 1) * chip.element_bytes
        width = min(result.channels, chip.spad_bytes // line // lanes * lanes)
        if width < 1:
            raise MappingError(
                f"layer {identity.name} ({identity.op}): one row of outputs needs {line * lanes} bytes of scratchpad, "
                f"half of it is {chip.spad_bytes}; enlarge cores.spad_kib"
            )
        for channels in ranges(result.channels, width, lanes, True):
            room = chip.spad_bytes // (line * channels[1])
            for image in range(shape.images):
                for core, start, count in shares(shape.out_rows, room, 1, line * channels[1], chip):
                    first = (image * grid.size[0] + grid.first[0] + start * grid.step[0]) * grid.size[1]
                    levels = ((count, grid.step[0] * grid.size[1]), (shape.out_cols, grid.step[1]))
                    builder.begin_tile(core)
                    for entry, layout in enumerate(residuals):
                        builder.load(entry, layout.region(first + grid.first[1], levels, *channels))
                    _combine(builder, len(residuals), count * shape.out_cols * channels[1], cost, chip, core)
                    builder.store(len(residuals), result.region(first + grid.first[1], levels, *channels), acc=False)
                    builder.end_tile()
    builder.end_layer()


def _combine(builder: ProgramBuilder, operands: int, elements: int, cost: Cost, chip: Chip, core: int) -> None:
    """One vector instruction for what needs no more than two operands; further ones are awaited in no time."""
    target = Operand(operands)
    second = Operand(1) if operands > 1 else None
    first = Operand(0 if operands else -1)
    units = vector_units(elements * chip.element_bytes, chip.cores[core])
    builder.vector(
        dst=target,
        src_a=first,
        src_b=second,
        size1=Extent(units),
        size2=Extent(latency(cost, chip.cores[core])),
        elements=elements,
        operations=times(cost, elements),
    )
    for entry in range(2, operands):
        builder.vector(dst=target, src_a=target, src_b=Operand(entry), size1=Extent(0), elements=elements)


def phases(node: Node) -> list[tuple[str, MatmulShape, OutputGrid]]:
    """Name, convolution and output positions of every phase that has outputs."""
    x, weights, target = node.input(0), node.input(1), node.outputs[0]
    groups = node.int("group", 1)
    spatial = len(x.shape) - 2
    if spatial not in (1, 2):
        raise unsupported(node, f"over {spatial} spatial dimensions is not modelled; 1 and 2 are")
    lines = [_lines(node, axis, spatial) for axis in range(spatial)]
    if spatial == 1:
        lines.insert(0, [_Phase(0, 1, 1, 0, 1)])
    size_in, size_out = ((1,) * (2 - spatial) + tensor.shape[2:] for tensor in (x, target))
    stride = (1,) * (2 - spatial) + node.ints("strides", (1,) * spatial)
    found: list[tuple[str, MatmulShape, OutputGrid]] = []
    for rows in lines[0]:
        for cols in lines[1]:
            shape = MatmulShape(
                images=x.shape[0],
                groups=groups,
                in_channels=x.shape[1] // groups,
                out_channels=weights.shape[1],
                in_rows=size_in[0],
                in_cols=size_in[1],
                out_rows=rows.outputs,
                out_cols=cols.outputs,
                kernel_rows=rows.kernel,
                kernel_cols=cols.kernel,
                dilation=(rows.dilation, cols.dilation),
                pads=(rows.pad, cols.pad),
            )
            grid = OutputGrid((rows.first, cols.first), (stride[0], stride[1]), (size_out[0], size_out[1]))
            name = node.name if len(lines[0]) * len(lines[1]) == 1 else f"{node.name} ({rows.first}, {cols.first})"
            found.append((name, shape, grid))
    return found


@dataclass(frozen=True)
class _Phase:
    """Outputs first, first + stride, ... along one dimension.

    outputs: how many. kernel: positions that they see. pad, dilation: of the convolution that they are.
    """

    first: int
    outputs: int
    kernel: int
    pad: int
    dilation: int


def _lines(node: Node, axis: int, spatial: int) -> list[_Phase]:
    """The phases along spatial dimension `axis`.

    Output o takes input i and kernel position k with o + pad = i * stride + k * dilation. The positions of one
    phase are evenly spaced, and so are their inputs.
    """
    weights, target = node.input(1), node.outputs[0]
    stride = node.ints("strides", (1,) * spatial)[axis]
    dilation = node.ints("dilations", (1,) * spatial)[axis]
    kernel, size_out, size_in = weights.shape[2 + axis], target.shape[2 + axis], node.input(0).shape[2 + axis]
    pad = _pad(node, axis, spatial, stride, (kernel - 1) * dilation + 1, size_in, size_out)
    found: list[_Phase] = []
    for first in range(min(stride, size_out)):
        taps = [k for k in range(kernel) if (first + pad - k * dilation) % stride == 0]
        if not taps:
            found.append(_Phase(first, len(range(first, size_out, stride)), 0, 0, 1))
            continue
        outputs = (size_out - first + stride - 1) // stride
        # The last tap reads the first input; inputs before the image are padding.
        lowest = (first + pad - taps[-1] * dilation) // stride
        found.append(_Phase(first, outputs, len(taps), -lowest, math.lcm(stride, dilation) // stride))
    return found


def _pad(node: Node, axis: int, spatial: int, stride: int, extent: int, size_in: int, size_out: int) -> int:
    """Outputs cut off at the beginning."""
    automatic = node.text("auto_pad", "NOTSET")
    if automatic == "VALID":
        return 0
    if automatic == "NOTSET" and "output_shape" not in node.attributes:
        return node.ints("pads", (0,) * (2 * spatial))[axis]
    extra = node.ints("output_padding", (0,) * spatial)[axis]
    total = max(0, stride * (size_in - 1) + extra + extent - size_out)
    return math.ceil(total / 2) if automatic == "SAME_LOWER" else total // 2


HANDLERS: dict[str, Handler] = {
    "Resize": resize,
    "Upsample": resize,
    "GridSample": grid_sample,
    "ConvTranspose": conv_transpose,
}
