"""BERT and its kin on a processor, with weights packed once for oneDNN: the one place where we compute a model ourselves.

A layer is four products instead of six (q, k and v read the same input), with GELU and the residual computed while a
product's result is still in the cache; nothing is computed for padding, and no mask is made. Everything else, embeddings,
pooling and what stands behind it, is the model's own. Whether the vectors are near enough, and whether it is faster, a trial
shows: precision.py.
"""

from __future__ import annotations

import copy
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel, MPNetModel, RobertaModel, XLMRobertaModel
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

# Post-layer norm, absolute positions, dense layers with biases. A subclass may compute anything: exactly these.
_MAKES = (BertModel, RobertaModel, XLMRobertaModel, MPNetModel)
# oneDNN's name for each way to compute GELU.
_GELU = {GELUActivation: "none", NewGELUActivation: "tanh", GELUTanh: "tanh"}
_LAYERS = {nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.ModuleList, nn.Tanh, *_GELU}
# Packing takes as long as a few passes. Without a trial only where one was seen to pay: AVX2 and AVX-512.
_WORTH_PACKING, _TRIED_ON = 2_000, ("x86_64", "AMD64")
_UNUSUAL = ("is_decoder", "add_cross_attention", "output_hidden_states", "output_attentions")


def why_not_packed(model: SentenceTransformer, dtype: torch.dtype) -> str | None:
    """What keeps the model from computing with packed weights of this precision, in a few words; None when nothing does."""
    first = model[0]
    transformer = first.model if isinstance(first, Transformer) else first
    if type(transformer) not in _MAKES:
        return f"{type(transformer).__name__} is none of {', '.join(make.__name__ for make in _MAKES)}"
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return f"oneDNN does not compute on {model.device.type} here"
    if dtype not in (torch.float32, torch.bfloat16) or (dtype == torch.bfloat16 and not multiplies_bfloat16()):
        return f"oneDNN does not multiply {str(dtype).removeprefix('torch.')} on this processor"
    text = first.modality_config.get("text", {})
    if (text.get("method"), text.get("method_output_name")) != ("forward", "last_hidden_state"):
        return "more than its last hidden state is read"
    config = transformer.config
    unusual = [name for name in _UNUSUAL if getattr(config, name, False)]
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        unusual.append("position_embedding_type")
    if unusual:
        return f"its configuration has {', '.join(unusual)}"
    return _unusual_module(transformer)


def _unusual_module(transformer: nn.Module) -> str | None:
    """The first part of a transformer that is none of its make: an adapter, a quantised layer, another activation, a hook."""
    own = type(transformer).__module__
    for name, module in transformer.named_modules():
        if type(module) not in _LAYERS and type(module).__module__ != own:
            return f"{name} is a {type(module).__name__}"
        patched = "forward" in module.__dict__ and not isinstance(module.__dict__["forward"], PackedForward)
        if patched or module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'it'} has a hook"
    return None


def multiplies_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Product:
    """One product for some linear layers of the same input: (T, K) → (T, N), their outputs side by side.

    fused: what follows is computed while the result is in the cache. In float32 on AVX2 oneDNN's own GELU and sum were slower
    than torch's after the product, by a tenth to a half.
    """

    def __init__(self, layers: Sequence[nn.Linear], *, fused: bool) -> None:
        # Beside the layer's own weights: without those the model could not go back to computing as it was loaded.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat([layer.weight.detach() for layer in layers]))
        self._bias = torch.cat([layer.bias.detach() for layer in layers])
        self._fused = fused

    def __call__(self, states: Tensor) -> Tensor:
        return self._pointwise(states, "none", "")

    def gelu(self, states: Tensor, algorithm: str) -> Tensor:
        """GELU of the product. algorithm: none (by erf) or tanh."""
        if self._fused:
            return self._pointwise(states, "gelu", algorithm)
        return F.gelu(self(states), approximate=algorithm)

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """The product and (T, N) beside it."""
        if self._fused:
            summed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._weight, self._bias, "add")
            return summed
        return self(states).add_(residual)

    def _pointwise(self, states: Tensor, operation: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, operation, [], algorithm)
        return product


@dataclass(frozen=True)
class _Texts:
    """Consecutive texts of one length in a pass: their tokens, and how many texts. bias: (1, H, L, L) or None, see MPNet."""

    tokens: slice
    n_texts: int
    bias: Tensor | None


class _Layer:
    """Attention and feed-forward block, each with its residual and its norm behind it (Vaswani et al. 2017; BERT)."""

    def __init__(self, layer: Any, n_heads: int, *, fused: bool) -> None:  # noqa: ANN401
        attention = layer.attention
        if hasattr(attention, "attn"):  # MPNet
            own, output, norm = attention.attn, attention.attn.o, attention.LayerNorm
            self._qkv = _Product([own.q, own.k, own.v], fused=fused)
        else:
            own, output, norm = attention.self, attention.output.dense, attention.output.LayerNorm
            self._qkv = _Product([own.query, own.key, own.value], fused=fused)
        self._n_heads = n_heads
        self._output, self._norm = _Product([output], fused=fused), norm
        self._up, self._down = (_Product([block.dense], fused=fused) for block in (layer.intermediate, layer.output))
        self._gelu, self._last_norm = _GELU[type(layer.intermediate.intermediate_act_fn)], layer.output.LayerNorm

    def __call__(self, states: Tensor, texts: Sequence[_Texts]) -> Tensor:
        """(T, D) → (T, D)."""
        states = self._norm(self._output.plus(self._attend(states, texts), states))
        last: Tensor = self._last_norm(self._down.plus(self._up.gelu(states, self._gelu), states))
        return last

    def _attend(self, states: Tensor, texts: Sequence[_Texts]) -> Tensor:
        qkv = self._qkv(states)
        attended = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        for some in texts:
            # (texts, length, 3, heads, size) → three of (texts, heads, length, size)
            query, key, value = (
                qkv[some.tokens]
                .view(some.n_texts, -1, 3, self._n_heads, attended.shape[1] // self._n_heads)
                .permute(2, 0, 3, 1, 4)
            )
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=some.bias)
            attended[some.tokens] = heads.transpose(1, 2).reshape(-1, attended.shape[1])
        return attended


class PackedForward:
    """A transformer's forward with packed weights, those that it has at the first pass; for inference alone.

    fused: see _Product; None = in bfloat16. For a transformer that why_not_packed has nothing against.
    """

    def __init__(self, transformer: Any, *, fused: bool | None = None) -> None:  # noqa: ANN401
        self._transformer = transformer
        self._fused = fused
        self._packing = threading.Lock()  # passes at once would each pack for themselves

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedForward:
        # What oneDNN packed cannot be copied; the copy of a model packs its own weights, which may be of another precision.
        return PackedForward(copy.deepcopy(self._transformer, memo), fused=self._fused)

    @cached_property
    def _layers(self) -> list[_Layer]:
        heads = self._transformer.config.num_attention_heads
        fused = self._transformer.dtype == torch.bfloat16 if self._fused is None else self._fused
        return [_Layer(layer, heads, fused=fused) for layer in self._transformer.encoder.layer]

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """The last hidden state, 0 where there is padding; the transformer's own output for whatever is not plain inference."""
        plain = not any(value is not None for value in others.values()) and not self._transformer.training
        # A packed product has no gradient: training on it would learn nothing, and say nothing.
        if input_ids is None or not plain or torch.is_grad_enabled():
            known = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return type(self._transformer).forward(self._transformer, **known, return_dict=return_dict, **others)
        # On the padded texts: RoBERTa and its kin number positions by what is no padding, BERT by where a token stands.
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        embedded = self._transformer.embeddings(input_ids=input_ids, **types)
        filled = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        states = embedded[filled]
        texts = self._by_length(filled.sum(1).tolist(), embedded)
        with self._packing:
            layers = self._layers
        for layer in layers:
            states = layer(states, texts)
        last = embedded.new_zeros(embedded.shape)
        last[filled] = states
        return BaseModelOutput(last_hidden_state=last)

    def _by_length(self, lengths: Sequence[int], embedded: Tensor) -> list[_Texts]:
        """Neighbours of one length attend together: an engine's texts come sorted, so that these are few and large."""
        encoder = self._transformer.encoder
        # Of distances alone, so that those of the longest text hold for every other.
        bias = encoder.compute_position_bias(embedded[:1]) if isinstance(self._transformer, MPNetModel) else None
        texts, start = [], 0
        for length, same in groupby(length for length in lengths if length):
            n_texts = len(list(same))
            tokens = slice(start, start := start + n_texts * length)
            texts.append(_Texts(tokens, n_texts, None if bias is None else bias[..., :length, :length]))
        return texts


def packed_forward(model: SentenceTransformer) -> PackedForward | None:
    """The model's forward with packed weights; None when it computes as it was loaded."""
    forward = getattr(model[0], "model", model[0]).__dict__.get("forward")
    return forward if isinstance(forward, PackedForward) else None


def pack_weights(model: SentenceTransformer) -> None:
    """Have the model compute with its weights packed, in place, until unpack_weights. See why_not_packed."""
    model[0].model.forward = PackedForward(model[0].model)


def unpack_weights(model: SentenceTransformer) -> None:
    """Have the model compute as it was loaded; nothing for one that does."""
    if packed_forward(model) is not None:
        del model[0].model.forward


@contextmanager
def packed_for(model: SentenceTransformer, n_texts: int) -> Iterator[None]:
    """A float32 model computes so many texts with packed weights until the block ends, where nothing is against it."""
    worth = n_texts >= _WORTH_PACKING and platform.machine() in _TRIED_ON and packed_forward(model) is None
    if not worth or why_not_packed(model, torch.float32) is not None or model[0].model.dtype != torch.float32:
        yield
        return
    pack_weights(model)
    try:
        yield
    finally:
        unpack_weights(model)
