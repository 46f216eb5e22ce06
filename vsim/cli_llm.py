"""The options of `vsim run` that say which pass of a language model is run."""

from __future__ import annotations

from collections.abc import Mapping

from hwconfigs.errors import UserError
from lowering.llm.configs import is_config


def pass_sizes(
    model: str,
    sizes: Mapping[str, int],
    *,
    prefill: int | None,
    decode: bool,
    context: int | None,
    tensor_parallel: int | None,
    link_gbps: int | None,
    steady_layers: int | None,
) -> dict[str, int]:
    """`sizes` (of --dim) with those that the options give; for their meaning see `lowering.llm.lower`.

    Raises UserError for options that contradict each other, or that come with a model that is no config.json.
    """
    options = {
        "prompt": ("--prefill", prefill),
        "context": ("--context", context),
        "tensor_parallel": ("--tp", tensor_parallel),
        "link_gbps": ("--link-gbps", link_gbps),
        "steady_layers": ("--steady-layers", steady_layers),
    }
    given = {name: value for name, (_, value) in options.items() if value is not None}
    if (given or decode) and not is_config(model):
        option = "--decode" if decode else next(options[name][0] for name in given)
        raise UserError(f"{option} goes with the config.json of a language model, not with {model}")
    if decode and (prefill is not None or context is None):
        raise UserError("--decode makes one token: it needs --context TOKENS, and goes without --prefill")
    if context is not None and prefill is None and not decode:
        raise UserError("--context TOKENS needs --decode, or --prefill TOKENS for a later part of a prompt")
    for name in given:
        if name in sizes:
            raise UserError(f"{options[name][0]} and --dim {name} say the same thing twice")
    return {**sizes, **given}
