"""What kind of layer an operator makes: the handful that a breakdown of a network is drawn in."""

from __future__ import annotations

from lowering.training.update import COSTS
from vsim.systolic.layers import Layer, MatrixLayer

KINDS = (
    "convolution",
    "matrix product",
    "normalisation",
    "element-wise, copies",
    "pooling",
    "softmax, loss",
    "parameter update",
)
"""The first two run on the array. A kind holds the gradients of its operators too."""

_NORMALISATIONS = ("norm", "mean_var", "LRN")
_LOSSES = ("softmax", "crossentropy", "cross_entropy", "meansquare")


def kind_of(layer: Layer) -> str:
    """The kind of a layer, one of `KINDS`, by the name of its operator; of fused operators that of the first."""
    operator = layer.operator.split("+")[0]
    lower = operator.lower()
    if isinstance(layer, MatrixLayer):
        return "convolution" if "conv" in lower else "matrix product"
    if operator in COSTS or lower.startswith("sgd"):
        return "parameter update"
    for kind, words in (("normalisation", _NORMALISATIONS), ("pooling", ("pool",)), ("softmax, loss", _LOSSES)):
        if any(word.lower() in lower for word in words):
            return kind
    return "element-wise, copies"
