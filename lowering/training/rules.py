"""Which rule writes the backward pass of which operator, and which of its operands can be trained."""

from __future__ import annotations

from lowering.training.costs import UNARY_GRADIENTS
from lowering.training.gradients import attention, convolution, elementwise, matmul, movement, normalisation, pooling
from lowering.training.tape import Rule

RULES: dict[str, Rule] = {
    "Conv": convolution.convolution,
    "ConvTranspose": convolution.transposed_convolution,
    "MatMul": matmul.matmul,
    "Gemm": matmul.gemm,
    "BatchNormTraining": normalisation.batch_norm,
    "LayerNormalization": normalisation.layer_norm,
    "RMSNormalization": normalisation.layer_norm,
    "SimplifiedLayerNormalization": normalisation.layer_norm,
    "LRN": normalisation.local_response,
    "Softmax": normalisation.softmax,
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.average_pool,
    **dict.fromkeys(UNARY_GRADIENTS, elementwise.unary),
    "Add": elementwise.addition,
    "Sum": elementwise.addition,
    "Sub": elementwise.addition,
    "Mul": elementwise.multiplication,
    "Div": elementwise.division,
    "Pow": elementwise.power,
    "Where": elementwise.selection,
    "PRelu": elementwise.slopes,
    "ReduceMean": elementwise.mean,
    "ReduceSum": elementwise.mean,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), movement.view),
    "Transpose": movement.transpose,
    "Expand": movement.expand,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Pad": movement.slice_,
    **dict.fromkeys(("Resize", "Upsample"), movement.resize),
    "RotaryEmbedding": movement.rotary,
    "Gather": movement.gather,
    "Attention": attention.attention,
}
"""By operator of the prepared forward graph. An operator that is not listed cannot be trained through."""

TRAINABLE: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "MatMul": (0, 1),
    "Gemm": (1, 2),
    "BatchNormTraining": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "Gather": (0,),
    "PRelu": (1,),
    "Add": (0, 1),
    "Sum": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Concat": tuple(range(8)),
    "Expand": (0,),
}
"""Inputs where a constant of more than one element is a parameter: files do not tell weights from other constants."""
