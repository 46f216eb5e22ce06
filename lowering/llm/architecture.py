"""What a transformer is made of, whatever family or file it was described in.

Sources: the models' papers (Llama 3, arXiv 2407.21783; Qwen2, 2407.10671; Mistral, 2310.06825; Mixtral, 2401.04088;
OPT, 2205.01068; BERT, 1810.04805; GPT-2, Radford et al. 2019) and the classes of Hugging Face transformers that their
`config.json` files are written for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Activation:
    """The nonlinearity of the feed-forward part, as a standard operator and the attributes it takes."""

    op: Literal["Relu", "Gelu", "Swish"]
    approximate: Literal["none", "tanh"] = "none"
    """Of Gelu: by the error function, or by the hyperbolic tangent."""


@dataclass(frozen=True)
class Experts:
    """Mixture of experts in place of the dense feed-forward part.

    count >= per_token >= 1; ffn: inner size of one expert. shared_ffn: inner size of the expert that every token takes,
    with a gate of its own; 0 means there is none. dense_layers: numbers of the layers that have a dense part instead.
    """

    count: int
    per_token: int
    ffn: int
    shared_ffn: int = 0
    dense_layers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Architecture:
    """One transformer: sizes in elements, all >= 1 unless said otherwise.

    source: the file it was read from, for messages. heads is a multiple of kv_heads (equal: no grouped queries).
    ffn: inner size of the dense feed-forward part. max_positions: longest sequence.
    position_rows: rows of the learned position table, which may exceed max_positions; 0: rotary embedding.
    norm: RMSNormalization or LayerNormalization; norm_first: before each part ("pre-norm") or after its residual.
    embedding: width of the token table, projected to `hidden` when it differs.
    window: tokens that attention looks back over, itself included; None: all.
    causal: a decoder with a language-model head; otherwise an encoder, with a pooler.
    """

    name: str
    source: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int
    activation: Activation
    gated: bool
    norm: Literal["rms", "layer"]
    norm_first: bool = True
    final_norm: bool = True
    position_rows: int = 0
    embedding: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    causal: bool = True
    token_types: int = 0
    window: int | None = None
    experts: Experts | None = None

    @property
    def rotary(self) -> bool:
        """Whether positions enter by rotating queries and keys."""
        return self.position_rows == 0

    @property
    def projects_embedding(self) -> bool:
        """Whether the token table is narrower than the model (OPT-350m)."""
        return self.embedding not in (0, self.hidden)

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of a layer; None for a dense one."""
        return None if self.experts is None or layer in self.experts.dense_layers else self.experts

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike."""
        dense = self.experts.dense_layers if self.experts is not None else frozenset()
        return len(dense) in (0, self.layers)
