"""LSTM, GRU and RNN: one matrix product for the inputs of all time steps, then one step after another.

A step is a matrix product with the state (all directions side by side, as groups) and a vector layer for the gates;
each waits for the one before, as the recurrence demands. The recurrent weights are read again in every step: the
scratchpad keeps nothing from layer to layer. Pre-activations and states pass through DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowering.address_space import AddressSpace
from lowering.context import Handler, Network, present, unsupported
from lowering.fusion import Group
from lowering.ir import Node, Tensor
from lowering.layout import Layout, Order
from lowering.mapping import MatmulShape
from lowering.matmul import MatmulLayer, emit_matmul, plan_matmul
from lowering.operators import UNARY, Cost, add_costs
from lowering.streams import Read, StreamLayer, emit_stream
from lowering.vector_layers import Identity

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True)
class _Cell:
    """Sizes of a recurrent operator."""

    node: Node
    steps: int
    batch: int
    directions: int
    inputs: int
    hidden: int
    gates: int

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """A state: batch, directions, hidden."""
        return self.batch, self.directions, self.hidden


def recurrent(network: Network, group: Group) -> None:
    """All layers of an LSTM, a GRU or an RNN."""
    cell = _read(group.head)
    projected = _project_inputs(network, cell)
    states = _States.place(network, cell)
    start = network.space.next_byte
    one_step = _gru_step if cell.node.op == "GRU" and not cell.node.int("linear_before_reset", 0) else _step
    for step in range(cell.steps):
        # Every step reads the same weights: the later ones repeat the addresses of the first.
        weights = network.space if step == 0 else AddressSpace(start)
        one_step(network, cell, states, step, _at(projected, step, cell.batch), weights)


def _read(node: Node) -> _Cell:
    x, w = node.input(0), node.input(1)
    if len(x.shape) != 3 or len(w.shape) != 3:
        raise unsupported(node, f"input {x.shape} and weights {w.shape} should have 3 dimensions each")
    batch_first = node.int("layout", 0) == 1
    steps, batch = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
    gates = _GATES[node.op]
    return _Cell(node, steps, batch, w.shape[0], x.shape[2], w.shape[1] // gates, gates)


def _project_inputs(network: Network, cell: _Cell) -> Layout:
    """W x + b of all steps, directions and gates side by side; the backward direction's lie in its own order."""
    node = cell.node
    order: Order = (1, 0, 2) if node.int("layout", 0) == 1 else (0, 1, 2)
    x = network.in_order(node.input(0), order)
    rows, columns = cell.steps * cell.batch, cell.directions * cell.gates * cell.hidden
    y = _buffer(network, (rows, columns))
    layer = MatmulLayer(
        name=f"{node.name} (inputs)",
        op=node.op,
        shape=_product(1, rows, cell.inputs, columns),
        x=x,
        y=y,
        bias=node.optional_input(3) is not None,
    )
    emit_matmul(network.builder, plan_matmul(layer, network.chip, network.mapping), network.chip, network.space)
    return y


@dataclass(frozen=True)
class _States:
    """Where states lie: hidden ones of every step (or one place for all), cell state, pre-activations, results."""

    hidden: Layout
    per_step: bool
    first_hidden: Layout
    cell: Layout | None
    first_cell: Layout | None
    pre: Layout
    reset: Layout
    last_hidden: Layout | None

    @staticmethod
    def place(network: Network, cell: _Cell) -> _States:
        """Reserve memory; initial states that are not given are zeros in memory."""
        node, batch_first = cell.node, cell.node.int("layout", 0) == 1
        state_order: Order = (0, 1, 2) if batch_first else (1, 0, 2)
        every, last, last_cell = (present(node, index) for index in range(3))
        if every is not None:
            hidden = network.place(every, (1, 0, 2, 3) if batch_first else (0, 2, 1, 3)).layout
        else:
            hidden = _buffer(network, cell.state_shape)
        first = _initial(network, node.optional_input(5), cell, state_order)
        has_cell = node.op == "LSTM"
        state = None
        if has_cell and last_cell is not None:
            state = network.place(last_cell, state_order).layout
        elif has_cell:
            state = _buffer(network, cell.state_shape)
        first_cell = _initial(network, node.optional_input(6), cell, state_order) if has_cell else None
        end = network.place(last, state_order).layout if last is not None else None
        pre = _buffer(network, (cell.batch, cell.directions * cell.gates * cell.hidden))
        reset = _buffer(network, cell.state_shape)
        return _States(hidden, every is not None, first, state, first_cell, pre, reset, end)

    def hidden_after(self, step: int, cell: _Cell) -> Layout:
        """The hidden state after `step`; -1 is the initial one."""
        if step < 0:
            return self.first_hidden
        if not self.per_step:
            return self.hidden
        size = cell.batch * cell.directions * self.hidden.pitch_bytes
        return replace(self.hidden, base_byte=self.hidden.base_byte + step * size, physical=cell.state_shape)


def _initial(network: Network, tensor: Tensor | None, cell: _Cell, order: Order) -> Layout:
    return network.in_order(tensor, order) if tensor is not None else _buffer(network, cell.state_shape)


def _buffer(network: Network, shape: Sequence[int]) -> Layout:
    chip = network.chip
    layout = Layout.of(shape, tuple(range(len(shape))), chip.element_bytes, chip.request_bytes)
    return replace(layout, base_byte=network.space.allocate(layout.total_bytes))


def _at(projected: Layout, step: int, batch: int) -> Layout:
    """The rows of one step."""
    base = projected.base_byte + step * batch * projected.pitch_bytes
    return replace(projected, base_byte=base, physical=(batch, projected.channels))


def _product(groups: int, rows: int, reduction: int, columns: int) -> MatmulShape:
    return MatmulShape(1, groups, reduction, columns, 1, rows, 1, rows)


def _recurrent_product(
    network: Network, cell: _Cell, name: str, state: Layout, y: Layout, gates: int, weights: AddressSpace
) -> None:
    """R h of all directions for `gates` gates."""
    x = replace(
        state,
        physical=(cell.batch, cell.directions * cell.hidden),
        pitch_bytes=cell.directions * state.pitch_bytes,
    )
    layer = MatmulLayer(
        name, cell.node.op, _product(cell.directions, cell.batch, cell.hidden, gates * cell.hidden), x, y
    )
    emit_matmul(network.builder, plan_matmul(layer, network.chip, network.mapping), network.chip, weights)


def _step(network: Network, cell: _Cell, states: _States, step: int, inputs: Layout, weights: AddressSpace) -> None:
    """One step of LSTM, RNN, or a GRU whose reset gate comes after the product."""
    name = f"{cell.node.name} (step {step}"
    before, after = states.hidden_after(step - 1, cell), states.hidden_after(step, cell)
    _recurrent_product(network, cell, f"{name})", before, states.pre, cell.gates, weights)
    reads = [Read(states.pre), Read(inputs)]
    if cell.node.op == "GRU":
        reads.append(Read(before))
    more: list[Layout] = []
    if states.cell is not None:
        source = states.first_cell if step == 0 and states.first_cell is not None else states.cell
        reads.append(Read(source))
        more.append(states.cell)
    if states.last_hidden is not None and step == cell.steps - 1:
        more.append(states.last_hidden)
    identity = Identity(f"{name}, gates)", cell.node.op)
    layer = StreamLayer(identity, tuple(reads), after, gate_cost(cell.node), tuple(more))
    emit_stream(network.builder, layer, network.chip)


def _gru_step(network: Network, cell: _Cell, states: _States, step: int, inputs: Layout, weights: AddressSpace) -> None:
    """One step of a GRU whose reset gate scales the state before its product: two products, one after the other."""
    name = f"{cell.node.name} (step {step}"
    before, after = states.hidden_after(step - 1, cell), states.hidden_after(step, cell)
    wide, narrow = (
        replace(states.pre, physical=(cell.batch, cell.directions * gates * cell.hidden)) for gates in (2, 1)
    )
    _recurrent_product(network, cell, f"{name}, update and reset)", before, wide, 2, weights)
    sigmoid = _activation(cell.node, 0)
    gate = add_costs({"add": 2, "mul": 1}, sigmoid, sigmoid)
    first = StreamLayer(
        Identity(f"{name}, reset gate)", cell.node.op),
        (Read(states.pre), Read(inputs), Read(before)),
        states.reset,
        gate,
    )
    emit_stream(network.builder, first, network.chip)
    _recurrent_product(network, cell, f"{name}, candidate)", states.reset, narrow, 1, weights)
    more = (states.last_hidden,) if states.last_hidden is not None and step == cell.steps - 1 else ()
    last = StreamLayer(
        Identity(f"{name}, gates)", cell.node.op),
        (Read(narrow), Read(states.pre), Read(before)),
        after,
        add_costs({"add": 2, "mul": 1, "mac": 1}, _activation(cell.node, 1)),
        more,
    )
    emit_stream(network.builder, last, network.chip)


def gate_cost(node: Node) -> Cost:
    """Operations for each element of the new state, the sums of both products and the biases included.

    ONNX's definitions: LSTM c' = f c + i g, h = o tanh(c'); GRU h' = (1 - z) n + z h; RNN h' = f(...).
    """
    first = _activation(node, 0)
    if node.op == "RNN":
        return add_costs({"add": 1}, first)
    second = _activation(node, 1)
    if node.op == "GRU":
        return add_costs({"add": 5, "mul": 2, "mac": 1}, first, first, second)
    peepholes = {"mac": 3} if node.optional_input(7) is not None else {}
    return add_costs({"add": 4, "mul": 2, "mac": 1}, first, first, first, second, _activation(node, 2), peepholes)


def _activation(node: Node, index: int) -> Cost:
    listed = node.texts("activations")
    name = listed[index] if index < len(listed) else _ACTIVATIONS[node.op][index]
    known = {"Affine": "HardSigmoid", "ScaledTanh": "Tanh"}.get(name, name)
    if known not in UNARY:
        raise unsupported(node, f"activation {name!r} is not known")
    return UNARY[known]


HANDLERS: dict[str, Handler] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
