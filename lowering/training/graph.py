"""The graph of one training iteration, as a plain structure that every machine model reads.

A `TrainingGraph` is a list of `Operator`s in an order in which they can run. Each holds the IR node that the
cycle-level lowering takes as it is (`TrainingGraph.graph`), and what a closed-form model asks for: its role, the
forward operator that it belongs to, and the roles of its operands. `TrainingGraph.rows` is the same as dictionaries of
names, numbers and lists.

Kinds are ONNX's operator names where the work is that of an ONNX operator (the gradient of a convolution's input is a
Conv or a ConvTranspose, that of a product's left side a MatMul), and otherwise:

=======================  ============================================================  ==============================
kind                     inputs                                                        outputs
=======================  ============================================================  ==============================
BatchNormTraining        x, scale, shift, running mean and variance                    y, mean, 1/deviation, the running
BatchNormGrad            dy, x, scale, mean, 1/deviation                               dx, dscale, dshift
ConvWeightGrad           x, dy                                                         dw
MatMulWeightGrad         x (..., m, k), dy (..., m, n)                                 dw (k, n); per matrix if batched
LayerNormGrad            dy, x, scale                                                  dx
LayerNormWeightGrad      dy, x                                                         dscale, dshift
SoftmaxGrad              dy, y                                                         dx
MaxPoolGrad              dy, x, y                                                      dx
AveragePoolGrad          dy                                                            dx
ReluGrad, GeluGrad, ...  dy, and x or y of the forward operator                        dx
PReluGrad                dy, x, slopes                                                 dx
ReduceGrad               dy [, other]                                                  sum of dy [* other] over axes
ExpandGrad               dy                                                            dy repeated along the axes
ViewGrad                 dy, x                                                         dx, in x's shape
GatherGrad               dy, indices                                                   gradient of the table
LRNGrad                  dy, x, y                                                      dx
ResizeGrad               dy                                                            dx
SliceGrad                dy                                                            dx, zero outside the slice
CrossEntropyLoss         logits, labels                                                loss, logarithm of the sums
CrossEntropyGrad         logits, labels, logarithm of the sums                         dlogits
MeanSquareLoss / Grad    y, target                                                     loss / dy
Sgd / Momentum / Adam    w, dw [, first [, second moment]]                             the same, updated, in place
=======================  ============================================================  ==============================

Gradients have the attributes of the forward operator where these say what they are (alpha, mode, the window of LRN). A
RotaryEmbedding with ``inverse`` = 1 rotates by the opposite angle: it is the gradient of the one without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lowering.attention_node import attention_shape
from lowering.ir import Attribute, Graph, Node, Tensor


class Role(StrEnum):
    """What an operator is for."""

    FORWARD = "forward"
    RECOMPUTE = "recompute"
    LOSS = "loss"
    GRAD_INPUT = "grad_input"
    GRAD_WEIGHT = "grad_weight"
    ACCUMULATE = "accumulate"
    UPDATE = "update"


class OperandRole(StrEnum):
    """What a tensor is: as the network computes it, or a gradient of such."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    GRADIENT = "gradient"
    WEIGHT_GRADIENT = "weight_gradient"
    STATE = "optimizer_state"
    OTHER = "other"


@dataclass(frozen=True)
class Operator:
    """One operator of the iteration. forward: name of the operator of the network that it stems from."""

    node: Node
    role: Role
    forward: str

    @property
    def name(self) -> str:
        """The node's name, unique in the graph."""
        return self.node.name

    @property
    def kind(self) -> str:
        """The node's operator; see the module."""
        return self.node.op

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a matrix operator or of attention; 0 for all others.

        Products with padding zeros are included, products with inserted zeros and with hidden keys are not. But for
        padding, each gradient of a convolution or a product repeats the products of the forward pass once.
        """
        return _macs(self.node)


def _macs(node: Node) -> int:
    if node.op == "Conv":
        return node.outputs[0].elements * node.input(1).elements // node.input(1).shape[0]
    if node.op == "ConvTranspose":
        return node.input(0).elements * node.input(1).elements // node.input(1).shape[0]
    if node.op == "ConvWeightGrad":
        return node.input(1).elements * node.outputs[0].elements // node.outputs[0].shape[0]
    if node.op == "MatMulWeightGrad":
        return node.input(0).elements * node.input(1).shape[-1]
    if node.op == "MatMul":
        return node.outputs[0].elements * node.input(0).shape[-1]
    if node.op == "Gemm":
        return node.outputs[0].elements * node.input(0).shape[0 if node.int("transA", 0) else -1]
    if node.op == "Attention":
        shape = attention_shape(node)
        scores = sum(end - first for first, end in (shape.visible(row, 1) for row in range(shape.q_len)))
        return shape.batch * shape.q_heads * scores * (shape.head + shape.v_head)
    return 0


@dataclass(frozen=True)
class TrainingGraph:
    """One training iteration.

    inputs: activations that come from outside (samples, labels). outputs: the loss, the updated parameters.
    parameters: what is trained. roles: of every tensor, by name. saved: activations that the forward pass leaves to the
    backward pass. warnings: what of the file is left out.
    """

    name: str
    opset: int
    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    roles: Mapping[str, OperandRole]
    saved: tuple[Tensor, ...]
    warnings: tuple[str, ...] = ()

    @property
    def graph(self) -> Graph:
        """The iteration as a graph that `lowering.network` lowers."""
        nodes = tuple(operator.node for operator in self.operators)
        return Graph(self.name, self.opset, self.inputs, self.outputs, nodes)

    @property
    def saved_elements(self) -> int:
        """Elements of all saved activations."""
        return sum(tensor.elements for tensor in self.saved)

    def macs(self, *roles: Role) -> int:
        """Multiply-accumulates of all operators, or of those of the given roles."""
        return sum(operator.macs for operator in self.operators if not roles or operator.role in roles)

    def rows(self) -> list[dict[str, Any]]:
        """The operators as plain data, in order."""
        return [
            {
                "name": operator.name,
                "kind": operator.kind,
                "role": operator.role.value,
                "forward": operator.forward,
                "macs": operator.macs,
                "inputs": [self._operand(tensor) for tensor in operator.node.inputs if tensor is not None],
                "outputs": [self._operand(tensor) for tensor in operator.node.outputs],
                "attributes": _plain(operator.node.attributes),
            }
            for operator in self.operators
        ]

    def _operand(self, tensor: Tensor) -> dict[str, Any]:
        role = self.roles.get(tensor.name, OperandRole.OTHER)
        return {"name": tensor.name, "shape": list(tensor.shape), "role": role.value}


def _plain(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()}
