"""Recognising what exporters decompose: attention, normalisations, activations, rotary embeddings.

Rules of `onnxscript.rewriter` find operators by what they compute, never by their names, and replace them with the
standard ones (Attention, LayerNormalization, RMSNormalization, Gelu, Swish, RotaryEmbedding). A rule names the root of
what it looks for and reads the rest by the algebra of `lowering.patterns.algebra`, so that the order of factors and
terms does not matter. Where nothing is found the graph stays as it is. Shapes must be known; new values get theirs.
"""

from __future__ import annotations

import onnx
import onnx_ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass
from onnxscript.rewriter import RewriteRuleSet

from lowering.patterns import activations, attention, cleaning, normalisation, rotary


def recognise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all patterns replaced; its shapes have been inferred."""
    model = onnx_ir.serde.deserialize_model(proto)
    RewriteRuleSet(cleaning.rules()).apply_to_model(model)
    model = IdentityEliminationPass()(model).model
    for rules in (
        normalisation.rules(),
        activations.rules(),
        rotary.rules(),
        attention.rules(),
        attention.form_rules(),
    ):
        for rule in rules:
            RewriteRuleSet([rule]).apply_to_model(model)
    return onnx_ir.serde.serialize_model(RemoveUnusedNodesPass()(model).model)
