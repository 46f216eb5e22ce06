"""The options of `vsim run` and `vsim systolic run` that say how a model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from hwconfigs.errors import UserError
from lowering.llm.configs import is_config
from lowering.program import LayerInfo
from lowering.training.graph import Role
from lowering.training.options import TrainingOptions

TrainOption = Annotated[bool, typer.Option("--train", help="Run one training iteration.")]
OptimizerOption = Annotated[str | None, typer.Option("--optimizer", help="Training: sgd, momentum or adam.")]
LossOption = Annotated[
    str | None, typer.Option("--loss", help="Training: cross-entropy, mse, or given (its gradient is read).")
]
LossOutputOption = Annotated[
    str | None, typer.Option("--loss-output", metavar="NAME", help="Training: the output that is trained.")
]
RecomputeOption = Annotated[
    str | None, typer.Option("--recompute", help="Training: none, cheap or segments of the activations.")
]
RestoreBatchNormOption = Annotated[
    bool, typer.Option("--restore-batch-norm", help="Training: undo its folding into convolutions.")
]


def training_options(
    model: str,
    *,
    train: bool,
    optimizer: str | None,
    loss: str | None,
    loss_output: str | None,
    recompute: str | None,
    restore_batch_norm: bool,
    inference_only: dict[str, object],
) -> TrainingOptions | None:
    """What is trained and how; None for inference.

    inference_only: options that --train cannot go with, by name. Raises UserError for options that contradict each
    other, and for models that cannot be trained.
    """
    given = {
        "--optimizer": optimizer,
        "--loss": loss,
        "--loss-output": loss_output,
        "--recompute": recompute,
        "--restore-batch-norm": restore_batch_norm,
    }
    chosen = [name for name, value in given.items() if value]
    if not train:
        if chosen:
            raise UserError(f"{chosen[0]} is about training: it needs --train")
        return None
    excluded = [name for name, value in inference_only.items() if value]
    if excluded:
        raise UserError(f"--train does not go with {', '.join(excluded)}")
    if is_config(model):
        raise UserError(f"--train takes an ONNX model: a config.json such as {model} is run for inference only")
    default = TrainingOptions()
    return TrainingOptions(
        optimizer or default.optimizer,
        loss or default.loss,
        recompute or default.recompute,
        restore_batch_norm,
        loss_output or default.output,
    )


def totals_by_role(layers: Sequence[LayerInfo], results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Cycles, products and bytes of each part of an iteration (`lowering.training.graph.Role`), where it has layers.

    layers: of a program of `lower_training`; results: of the same layers, as `SimResult.layers`.
    """
    totals: dict[str, dict[str, int]] = {}
    for role in Role:
        own = [result for layer, result in zip(layers, results, strict=True) if layer.notes[0] == role.value]
        if own:
            totals[role.value] = {
                "cycles": sum(
                    row["finish_cycle"] - row["start_cycle"] for row in own if row["finish_cycle"] is not None
                ),
                "macs": sum(row["macs"] for row in own),
                "bytes": sum(row["load_bytes"] + row["store_bytes"] for row in own),
            }
    return totals
