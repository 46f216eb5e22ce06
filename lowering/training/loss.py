"""The end of the forward pass and the start of the backward pass."""

from __future__ import annotations

from lowering.ir import Node, Tensor
from lowering.training.graph import Role


def class_axis(output: Tensor) -> int:
    """Classes are the channels of an image, otherwise the last dimension."""
    return 1 if len(output.shape) == 4 else len(output.shape) - 1


def loss_nodes(loss: str, output: Tensor) -> tuple[tuple[Tensor, ...], tuple[tuple[Node, Role], ...], Tensor]:
    """Inputs from outside, operators, and the gradient of the output.

    Cross-entropy from logits: the loss sums exponentials, the gradient is softmax minus the label's unit vector.
    """
    gradient = Tensor(f"{output.name} (gradient)", output.shape)
    if loss == "given":
        return (gradient,), (), gradient
    if loss == "mse":
        target = Tensor("training.target", output.shape)
        nodes = (
            (Node("loss", "MeanSquareLoss", (output, target), (Tensor("training.loss", (1,)),)), Role.LOSS),
            (Node("loss gradient", "MeanSquareGrad", (output, target), (gradient,)), Role.GRAD_INPUT),
        )
        return (target,), nodes, gradient
    axis = class_axis(output)
    rows = output.shape[:axis] + output.shape[axis + 1 :]
    labels = Tensor("training.labels", rows, integer=True)
    sums = Tensor("training.logarithms of sums", rows)
    attributes = {"axis": axis}
    nodes = (
        (
            Node("loss", "CrossEntropyLoss", (output, labels), (Tensor("training.loss", (1,)), sums), attributes),
            Role.LOSS,
        ),
        (
            Node("loss gradient", "CrossEntropyGrad", (output, labels, sums), (gradient,), attributes),
            Role.GRAD_INPUT,
        ),
    )
    return (labels,), nodes, gradient
