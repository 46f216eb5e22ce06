"""The inference graph in the form that is trained: what the loss depends on, batch normalisation with statistics."""

from __future__ import annotations

from dataclasses import replace

from lowering.canonical import canonical
from lowering.ir import Graph, Node, Tensor
from lowering.models import ModelError
from lowering.simplify import consumers, simplify
from lowering.training.options import TrainingOptions


def prepare(graph: Graph, options: TrainingOptions) -> tuple[Graph, tuple[str, ...]]:
    """The forward pass, ending in the one output that is trained, and what was left out, one line each.

    Raises ModelError when the output does not exist, or no batch normalisation can be restored.
    """
    graph = simplify(canonical(graph))
    chosen = _output(graph, options)
    output = _logits(graph, chosen) if options.loss == "cross-entropy" else chosen
    graph, warnings = _pruned(graph, output, chosen)
    if options.restore_batch_norm:
        graph = _with_batch_norm(graph)
    nodes = tuple(_in_training_form(node) for node in graph.nodes)
    return replace(graph, nodes=_with_own_vectors(nodes)), warnings


def _output(graph: Graph, options: TrainingOptions) -> Tensor:
    outputs = {tensor.name: tensor for tensor in graph.outputs if not tensor.integer and not tensor.constant}
    if not outputs:
        raise ModelError("no output of the graph is computed from its inputs, so nothing can be trained")
    if options.output and options.output not in outputs:
        raise ModelError(f"--loss-output {options.output}: no such output; there are {', '.join(outputs)}")
    return outputs[options.output] if options.output else next(iter(outputs.values()))


def _logits(graph: Graph, output: Tensor) -> Tensor:
    """The input of a Softmax at the end: the loss takes logits, as training code does."""
    last = next((node for node in graph.nodes if output in node.outputs), None)
    used = consumers(graph.nodes).get(output.name, [])
    ends = last is not None and last.op in ("Softmax", "LogSoftmax") and not used
    return last.input(0) if last is not None and ends else output


def _pruned(graph: Graph, output: Tensor, chosen: Tensor) -> tuple[Graph, tuple[str, ...]]:
    """The nodes that `output` depends on; `chosen`: the graph's output that it stands for."""
    wanted = {output.name}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(tensor.name in wanted for tensor in node.outputs if tensor.name):
            kept.append(node)
            wanted.update(tensor.name for tensor in node.inputs if tensor is not None)
    kept.reverse()
    others = [t.name for t in graph.outputs if t.name not in wanted and t.name != chosen.name and not t.constant]
    warnings = (f"not trained: {', '.join(others)}; --loss-output NAME chooses another output",) if others else ()
    inputs = tuple(tensor for tensor in graph.inputs if tensor.name in wanted)
    return replace(graph, nodes=tuple(kept), inputs=inputs, outputs=(output,)), warnings


def _with_batch_norm(graph: Graph) -> Graph:
    """Convolutions with a bias as the convolution and the batch normalisation that an exporter folded into it."""
    nodes: list[Node] = []
    for node in graph.nodes:
        bias = node.optional_input(2) if node.op == "Conv" else None
        if bias is None:
            nodes.append(node)
            continue
        channels, y = node.outputs[0].shape[1], node.outputs[0]
        raw = replace(y, name=f"{y.name} (convolved)")
        scale, shift, mean, variance = (Tensor(f"{node.name}.{what}", (channels,), constant=True) for what in _RESTORED)
        nodes.append(replace(node, inputs=node.inputs[:2], outputs=(raw,)))
        restored = (raw, scale, shift, mean, variance)
        nodes.append(Node(f"{node.name} (batch norm)", "BatchNormalization", restored, (y,)))
    if len(nodes) == len(graph.nodes):
        raise ModelError("--restore-batch-norm: no convolution of the graph has a bias, so none was folded into one")
    return replace(graph, nodes=tuple(nodes))


_RESTORED = ("scale", "shift", "mean", "variance")


def _with_own_vectors(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Constants of one dimension that several nodes read become one for each.

    Exporters merge initialisers of equal values, such as the zero biases of a network that was not trained yet.
    Matrices that are shared stay shared: they are tied on purpose, as an embedding and the head of a language model.
    """
    uses = consumers(nodes)
    return tuple(
        replace(
            node,
            inputs=tuple(_own(tensor, node, len(uses[tensor.name]) > 1) if tensor else None for tensor in node.inputs),
        )
        for node in nodes
    )


def _own(tensor: Tensor, node: Node, shared: bool) -> Tensor:
    vector = tensor.constant and not tensor.integer and len(tensor.shape) == 1 and tensor.elements > 1
    return replace(tensor, name=f"{tensor.name} of {node.name}", leaves=()) if vector and shared else tensor


def _in_training_form(node: Node) -> Node:
    """Batch normalisation computes its statistics; attention keeps no cache."""
    if node.op == "BatchNormalization":
        channels = node.input(1).shape
        names = ("mean", "inverse deviation", "running mean", "running variance")
        more = tuple(Tensor(f"{node.outputs[0].name} ({name})", channels) for name in names)
        return replace(node, op="BatchNormTraining", outputs=(node.outputs[0], *more))
    if node.op in ("Attention", "LayerNormalization"):
        return replace(node, outputs=node.outputs[:1])
    return node
