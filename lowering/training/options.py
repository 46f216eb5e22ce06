"""What a training iteration is, beyond its network."""

from __future__ import annotations

from dataclasses import dataclass

from hwconfigs.errors import UserError, nearest

OPTIMIZERS = ("sgd", "momentum", "adam")
LOSSES = ("cross-entropy", "mse", "given")
RECOMPUTATIONS = ("none", "cheap", "segments")


@dataclass(frozen=True)
class TrainingOptions:
    """One training iteration.

    optimizer: "sgd", "momentum" or "adam" (`lowering.training.update`).
    loss: "cross-entropy" over the classes of the output (a Softmax at the end of the graph becomes part of it), "mse",
    or "given": the gradient of the output is an input, because the head and the loss are not in the file.
    recompute: which saved activations are computed again when the backward pass needs them
    (`lowering.training.recompute`): "none", "cheap" (everything but the results of matrix operators), "segments"
    (everything but about the square root of the points through which the whole network passes).
    restore_batch_norm: a convolution with a bias is taken for one whose batch normalisation the exporter folded.
    output: name of the graph's output that is trained; "": the first.
    Raises UserError for a name that is not listed.
    """

    optimizer: str = "sgd"
    loss: str = "cross-entropy"
    recompute: str = "none"
    restore_batch_norm: bool = False
    output: str = ""

    def __post_init__(self) -> None:
        for option, value, valid in (
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--loss", self.loss, LOSSES),
            ("--recompute", self.recompute, RECOMPUTATIONS),
        ):
            if value not in valid:
                raise UserError(f"{option} {value!r} is unknown{nearest(value, valid)}")
