"""Reading `config.json` of Hugging Face transformers and the model JSON of ONNXim into an `Architecture`.

One class for each family holds the keys that decide its sizes, with the defaults of transformers' own configuration
class where that class has one for a key that files leave out; the sizes themselves have none here. Keys that do not
change what is computed (dropout, token numbers, initialisers, dtype) are ignored.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from hwconfigs.errors import UserError, nearest
from hwconfigs.validation import build, within
from lowering.llm.architecture import Activation, Architecture, Experts
from lowering.models import ModelError

Size = Annotated[int, within(1, 1 << 24)]
Count = Annotated[int, within(0, 1 << 24)]
Few = Annotated[int, within(1, 4096)]
"""Layers and experts: the graph has nodes for each."""

_ACTIVATIONS = {
    "relu": Activation("Relu"),
    "gelu": Activation("Gelu"),
    "gelu_new": Activation("Gelu", "tanh"),
    "gelu_fast": Activation("Gelu", "tanh"),
    "gelu_pytorch_tanh": Activation("Gelu", "tanh"),
    "silu": Activation("Swish"),
    "swish": Activation("Swish"),
}
ActivationName = Literal["relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "swish"]

OPT_POSITION_OFFSET = 2
"""Rows that OPT's position table has beyond max_position_embeddings."""


class Config(BaseModel):
    """Base of the families: immutable, open to keys that do not matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    architectures_known: ClassVar[tuple[str, ...]] = ()
    """Names in `architectures` whose graph is the one built; others have another head or body."""

    architectures: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check_architectures(self) -> Self:
        for name in self.architectures or ():
            if name not in self.architectures_known:
                known = nearest(name, self.architectures_known)
                raise ValueError(f"architectures = {name!r} is not modelled for this model_type{known}")
        return self

    @abstractmethod
    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""


def _check_heads(heads: int, kv_heads: int, hidden: int, head_dim: int | None, names: tuple[str, str, str]) -> None:
    """Raise ValueError, naming the key, when head counts and sizes contradict each other."""
    heads_key, kv_key, hidden_key = names
    if heads % kv_heads:
        raise ValueError(f"{kv_key} = {kv_heads} does not divide {heads_key} = {heads}")
    if head_dim is None and hidden % heads:
        raise ValueError(f"{heads_key} = {heads} does not divide {hidden_key} = {hidden}, and there is no 'head_dim'")


# -- Llama and its relatives


class LlamaConfig(Config):
    """Llama 2 and 3; the base of every family with RMSNorm, rotary positions and a gated feed-forward part."""

    architectures_known = ("LlamaForCausalLM", "LlamaModel")

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Few
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size
    max_position_embeddings: Size
    hidden_act: ActivationName = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("num_attention_heads", "num_key_value_heads", "hidden_size")
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        _check_heads(self.num_attention_heads, kv_heads, self.hidden_size, self.head_dim, names)
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if head_dim % 2:
            raise ValueError(f"head_dim = {head_dim} is odd; rotary embedding turns pairs of elements")
        return self

    def _sliding_window(self) -> int | None:
        return None

    def _experts(self) -> Experts | None:
        return None

    def _biases(self) -> tuple[bool, bool, bool]:
        """Whether there are biases on query, key and value, on the attention's output, in the feed-forward part."""
        return self.attention_bias, self.attention_bias, self.mlp_bias

    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""
        qkv_bias, out_bias, mlp_bias = self._biases()
        return Architecture(
            name=name,
            source=source,
            family=type(self).__name__.removesuffix("Config"),
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            ffn=self.intermediate_size,
            vocab=self.vocab_size,
            max_positions=self.max_position_embeddings,
            activation=_ACTIVATIONS[self.hidden_act],
            gated=True,
            norm="rms",
            embedding=self.hidden_size,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            mlp_bias=mlp_bias,
            qk_norm=isinstance(self, Qwen3Config),
            tied_head=self.tie_word_embeddings,
            window=self._sliding_window(),
            experts=self._experts(),
        )


class MistralConfig(LlamaConfig):
    """Mistral: Llama without biases, and with attention over a sliding window where the file gives one."""

    architectures_known = ("MistralForCausalLM", "MistralModel")
    sliding_window: Size | None = None

    def _biases(self) -> tuple[bool, bool, bool]:
        return False, False, False

    def _sliding_window(self) -> int | None:
        return self.sliding_window


class MixtralConfig(MistralConfig):
    """Mixtral: Mistral with experts in every layer."""

    architectures_known = ("MixtralForCausalLM", "MixtralModel")
    num_local_experts: Few
    num_experts_per_tok: Size

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        _check_expert_counts(self.num_experts_per_tok, self.num_local_experts, "num_local_experts")
        return self

    def _experts(self) -> Experts:
        return Experts(self.num_local_experts, self.num_experts_per_tok, self.intermediate_size)


def _check_expert_counts(per_token: int, experts: int, key: str) -> None:
    if per_token > experts:
        raise ValueError(f"num_experts_per_tok = {per_token} is more than {key} = {experts}")


class Qwen2Config(LlamaConfig):
    """Qwen2: biases on query, key and value only."""

    architectures_known = ("Qwen2ForCausalLM", "Qwen2Model")
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    max_window_layers: Count = 28

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.use_sliding_window and 0 < self.max_window_layers < self.num_hidden_layers:
            raise ValueError(
                f"max_window_layers = {self.max_window_layers} gives a window to some of the layers only, "
                "which is not modelled; set use_sliding_window to false"
            )
        return self

    def _sliding_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window and self.max_window_layers == 0 else None

    def _biases(self) -> tuple[bool, bool, bool]:
        return True, False, False


class Qwen3Config(Qwen2Config):
    """Qwen3: Qwen2 with RMSNorm on the heads of query and key, and no biases unless the file says so."""

    architectures_known = ("Qwen3ForCausalLM", "Qwen3Model")
    head_dim: Size | None = 128

    def _biases(self) -> tuple[bool, bool, bool]:
        return self.attention_bias, self.attention_bias, False


class SparseLayers(LlamaConfig):
    """The keys by which Qwen's mixtures say which layers have experts."""

    num_experts: Few
    num_experts_per_tok: Size
    moe_intermediate_size: Size
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        _check_expert_counts(self.num_experts_per_tok, self.num_experts, "num_experts")
        for layer in self.mlp_only_layers:
            if layer >= self.num_hidden_layers:
                raise ValueError(f"mlp_only_layers names layer {layer} of num_hidden_layers = {self.num_hidden_layers}")
        return self

    def _shared_ffn(self) -> int:
        return 0

    def _experts(self) -> Experts:
        dense = frozenset(
            layer
            for layer in range(self.num_hidden_layers)
            if layer in self.mlp_only_layers or (layer + 1) % self.decoder_sparse_step
        )
        return Experts(
            self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size, self._shared_ffn(), dense
        )


class Qwen2MoeConfig(SparseLayers, Qwen2Config):
    """Qwen1.5 and Qwen2 mixtures: small experts beside one that every token takes."""

    architectures_known = ("Qwen2MoeForCausalLM", "Qwen2MoeModel")
    shared_expert_intermediate_size: Size

    def _shared_ffn(self) -> int:
        return self.shared_expert_intermediate_size


class Qwen3MoeConfig(SparseLayers, Qwen3Config):
    """Qwen3 mixtures: small experts, none shared."""

    architectures_known = ("Qwen3MoeForCausalLM", "Qwen3MoeModel")


# -- families with LayerNorm and learned positions


class Gpt2Config(Config):
    """GPT-2."""

    architectures_known = ("GPT2LMHeadModel", "GPT2Model")
    n_embd: Size
    n_layer: Few
    n_head: Size
    n_inner: Size | None = None
    n_positions: Size
    vocab_size: Size
    activation_function: ActivationName = "gelu_new"
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        _check_heads(self.n_head, self.n_head, self.n_embd, None, ("n_head", "n_head", "n_embd"))
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""
        return Architecture(
            name=name,
            source=source,
            family="GPT-2",
            layers=self.n_layer,
            hidden=self.n_embd,
            heads=self.n_head,
            kv_heads=self.n_head,
            head_dim=self.n_embd // self.n_head,
            ffn=self.n_inner or 4 * self.n_embd,
            vocab=self.vocab_size,
            max_positions=self.n_positions,
            activation=_ACTIVATIONS[self.activation_function],
            gated=False,
            norm="layer",
            position_rows=self.n_positions,
            embedding=self.n_embd,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            tied_head=self.tie_word_embeddings,
        )


class OptConfig(Config):
    """OPT."""

    architectures_known = ("OPTForCausalLM", "OPTModel")
    hidden_size: Size
    ffn_dim: Size
    num_hidden_layers: Few
    num_attention_heads: Size
    vocab_size: Size
    max_position_embeddings: Size
    word_embed_proj_dim: Size | None = None
    do_layer_norm_before: bool = True
    enable_bias: bool = True
    activation_function: ActivationName = "relu"
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("num_attention_heads", "num_attention_heads", "hidden_size")
        _check_heads(self.num_attention_heads, self.num_attention_heads, self.hidden_size, None, names)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""
        return Architecture(
            name=name,
            source=source,
            family="OPT",
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            ffn=self.ffn_dim,
            vocab=self.vocab_size,
            max_positions=self.max_position_embeddings,
            activation=_ACTIVATIONS[self.activation_function],
            gated=False,
            norm="layer",
            norm_first=self.do_layer_norm_before,
            final_norm=self.do_layer_norm_before,
            position_rows=self.max_position_embeddings + OPT_POSITION_OFFSET,
            embedding=self.word_embed_proj_dim or self.hidden_size,
            qkv_bias=self.enable_bias,
            out_bias=self.enable_bias,
            mlp_bias=self.enable_bias,
            tied_head=self.tie_word_embeddings,
        )


class BertConfig(Config):
    """BERT: the encoder with its pooler, whatever head the checkpoint was trained with."""

    architectures_known = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification")
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Few
    num_attention_heads: Size
    vocab_size: Size
    max_position_embeddings: Size
    type_vocab_size: Size
    hidden_act: ActivationName = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("num_attention_heads", "num_attention_heads", "hidden_size")
        _check_heads(self.num_attention_heads, self.num_attention_heads, self.hidden_size, None, names)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""
        return Architecture(
            name=name,
            source=source,
            family="BERT",
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            ffn=self.intermediate_size,
            vocab=self.vocab_size,
            max_positions=self.max_position_embeddings,
            activation=_ACTIVATIONS[self.hidden_act],
            gated=False,
            norm="layer",
            norm_first=False,
            final_norm=False,
            position_rows=self.max_position_embeddings,
            embedding=self.hidden_size,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            causal=False,
            token_types=self.type_vocab_size,
        )


# -- ONNXim


class OnnximConfig(Config):
    """ONNXim's model JSON (`onnxim.md` section 10): `llama` layers, or `default` ones, which are OPT's.

    Its tensor_parallel_size is the degree used when the caller names none. run_single_layer keeps one layer.
    """

    activation_function: ActivationName
    num_attention_heads: Size
    num_kv_heads: Size
    vocab_size: Size
    num_hidden_layers: Few
    hidden_size: Size
    intermediate_size: Size
    ffn_type: Literal["llama", "default"]
    max_seq_length: Size
    run_single_layer: bool = False
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Literal[1] = 1

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        names = ("num_attention_heads", "num_kv_heads", "hidden_size")
        _check_heads(self.num_attention_heads, self.num_kv_heads, self.hidden_size, None, names)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """The transformer that the file describes."""
        llama = self.ffn_type == "llama"
        return Architecture(
            name=name,
            source=source,
            family="Llama" if llama else "OPT",
            layers=1 if self.run_single_layer else self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            ffn=self.intermediate_size,
            vocab=self.vocab_size,
            max_positions=self.max_seq_length,
            activation=_ACTIVATIONS[self.activation_function],
            gated=llama,
            norm="rms" if llama else "layer",
            position_rows=0 if llama else self.max_seq_length + OPT_POSITION_OFFSET,
            embedding=self.hidden_size,
            qkv_bias=not llama,
            out_bias=not llama,
            mlp_bias=not llama,
            tied_head=not llama,
        )


FAMILIES: dict[str, type[Config]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "mixtral": MixtralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen2_moe": Qwen2MoeConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "gpt2": Gpt2Config,
    "opt": OptConfig,
    "bert": BertConfig,
}
"""By `model_type`."""


def is_config(path: str | Path) -> bool:
    """Whether a model argument means a JSON description of a transformer rather than an ONNX file."""
    return str(path).lower().endswith(".json")


def read_config(path: str | Path) -> Config:
    """Read the file as its family's configuration.

    Raises ModelError, with file and key, when it cannot be read, the architecture is unknown, or keys are missing, of
    the wrong kind or contradict each other.
    """
    path = Path(path)
    data = _read_json(path)
    if "model_type" not in data and "ffn_type" in data:
        family: type[Config] = OnnximConfig
    elif "model_type" not in data:
        raise ModelError(f"{path}: key 'model_type' is missing; valid: {', '.join(sorted(FAMILIES))}")
    elif str(data["model_type"]) not in FAMILIES:
        known = nearest(data["model_type"], FAMILIES)
        raise ModelError(f"{path}: model_type = {data['model_type']!r} is not modelled{known}")
    else:
        family = FAMILIES[data["model_type"]]
    try:
        return build(family, data, lambda _: str(path))
    except UserError as error:
        raise ModelError(str(error)) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"model {path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ModelError(f"model {path}: a model description is a JSON object, not {type(data).__name__}")
    return data


def model_name(path: str | Path) -> str:
    """The name to report: the file's, or its folder's where the file is just called `config.json`."""
    path = Path(path)
    return path.resolve().parent.name if path.stem == "config" else path.stem
