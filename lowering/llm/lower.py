"""From a language model's description to the program of one chip.

What is run is said by named sizes, the `dims` of `lowering.lower`, so that a sweep can vary them like the open
dimensions of an ONNX model:

* ``prompt``: new tokens of each sequence; ``context``: tokens already in the cache. A prompt alone is a prefill, a
  context alone decodes one token, both together are a later part of a long prompt.
* ``tensor_parallel``: chips that share the model, and ``link_gbps``: gigabytes per second that each sends to the next.
* ``steady_layers``: simulate this many of the model's layers and extrapolate to all; see `Repeat`. The head of a large
  vocabulary, which takes as long as several layers, is then cut into blocks, of which as many are simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hwconfigs.errors import nearest
from hwconfigs.schema import HwConfig
from lowering.chip import Chip
from lowering.llm.architecture import Architecture
from lowering.llm.configs import OnnximConfig, model_name, read_config
from lowering.llm.graph import HEAD_PREFIX, HeadBlocks, build_graph
from lowering.llm.inference import Inference, TensorParallel
from lowering.models import ModelError
from lowering.network import lower_graph
from lowering.program import Program, Repeat

DIMS = ("prompt", "context", "tensor_parallel", "link_gbps", "steady_layers")

HEAD_BLOCK_COLUMNS = 16384
"""Least columns of a head's block: with fewer, the start and end of a block would weigh too much in its cycles."""

LAYER_PREFIX = "layers."
"""What the names of a decoder layer's rows begin with, before the layer's number."""


def lower_config(
    path: Path,
    hw: HwConfig,
    *,
    batch: int = 1,
    dims: Mapping[str, int],
    options: Mapping[str, Any] | None = None,
) -> Program:
    """The program of one pass. options: of `lower_graph`. Raises ModelError, and what `lower_graph` raises."""
    for key in dims:
        if key not in DIMS:
            raise ModelError(f"--dim {key}: a language model has no size of that name{nearest(key, DIMS)}")
    config = read_config(path)
    model = config.architecture(model_name(path), str(path))
    onnxim = config if isinstance(config, OnnximConfig) else None
    degree = dims.get("tensor_parallel", onnxim.tensor_parallel_size if onnxim is not None else 1)
    parallel = _parallel(str(path), degree, dims.get("link_gbps"), hw)
    run = _inference(str(path), batch, dims)
    simulated = _simulated_layers(model, dims.get("steady_layers"))
    head = _head_blocks(model, parallel, simulated)
    program = lower_graph(build_graph(model, run, parallel, simulated, head), Chip.of(hw), **options or {})
    if onnxim is not None and onnxim.run_single_layer and onnxim.num_hidden_layers > 1:
        only = f"{path}: run_single_layer keeps 1 of num_hidden_layers = {onnxim.num_hidden_layers}"
        program = replace(program, warnings=(*program.warnings, only))
    if simulated < model.layers:
        program = with_repeat(program, LAYER_PREFIX, simulated, model.layers)
    return program if head is None else with_repeat(program, HEAD_PREFIX, head.simulated, head.total)


def _inference(source: str, batch: int, dims: Mapping[str, int]) -> Inference:
    if "prompt" in dims:
        return Inference(batch, dims["prompt"], dims.get("context", 0))
    if "context" in dims:
        return Inference.decode(dims["context"], batch)
    raise ModelError(
        f"{source}: say what to run: --prefill TOKENS, or --decode --context TOKENS (`vsim map`: --dim prompt= or "
        "--dim context=; in a sweep: dims with prompt or context)"
    )


def _parallel(source: str, degree: int, link_gbps: int | None, hw: HwConfig) -> TensorParallel:
    if degree == 1:
        return TensorParallel()
    if link_gbps is None:
        raise ModelError(
            f"{source}: tensor-parallel degree {degree} needs the bandwidth of the chips' links: --link-gbps GB_PER_S"
        )
    return TensorParallel(degree, link_gbps * 1e3 / hw.clocks.core_mhz)


def _simulated_layers(model: Architecture, steady: int | None) -> int:
    """How many layers go into the program."""
    if steady is None or steady >= model.layers:
        return model.layers
    if not model.uniform:
        raise ModelError(
            f"{model.source}: --steady-layers needs layers that are all alike; some have experts, some none"
        )
    return steady


def _head_blocks(model: Architecture, parallel: TensorParallel, simulated: int) -> HeadBlocks | None:
    """The finest cut of the head into equal blocks of at least `HEAD_BLOCK_COLUMNS`; None: it stays whole."""
    if simulated == model.layers or not model.causal or parallel.degree > 1:
        return None
    most = model.vocab // HEAD_BLOCK_COLUMNS
    total = max((count for count in range(1, most + 1) if model.vocab % count == 0), default=1)
    return HeadBlocks(simulated, total) if simulated < total else None


def with_repeat(program: Program, prefix: str, simulated: int, total: int) -> Program:
    """The program of the first `simulated` of `total` equal units, which are to stand for the rest."""
    units = []
    for number in range(simulated):
        own = f"{prefix}{number}"
        rows = [
            index for index, layer in enumerate(program.layers) if layer.name == own or layer.name.startswith(f"{own}.")
        ]
        units.append((rows[0], rows[-1] + 1))
    lengths = {end - first for first, end in units}
    if len(lengths) > 1 or any(before[1] != after[0] for before, after in pairwise(units)):
        raise ValueError(f"{program.name}: the units {prefix}* are not alike: {units}")
    return replace(program, repeats=(*program.repeats, Repeat(prefix, tuple(units), total)))
