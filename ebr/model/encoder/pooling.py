"""Pooling: what an encoder has, and what a plain transformers model needs around it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from ebr.errors import ModelError
from ebr.model.files.tokenizer import end_with_eos

log = logging.getLogger(__name__)


def pooling_name(model: SentenceTransformer) -> str:
    """How token vectors become one: mean, cls, lasttoken, …; '' when the model has no pooling layer."""
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is not None:
            return mode if isinstance(mode, str) else "+".join(mode)
    return ""


def pool_by(model: SentenceTransformer, pooling: str | None, name: str) -> None:
    """Pool as asked, and say so where the model was saved otherwise."""
    saved = pooling_name(model)
    if pooling is None or pooling == saved:
        return
    _set_pooling(model, pooling)
    log.warning("%s: pooled by %s, as asked for; it was saved for %s", name, pooling, saved)


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    for module in model:
        if isinstance(getattr(module, "pooling_mode", None), str):
            module.pooling_mode = mode
            return
    raise ModelError(f"pooling {mode}: this model has no pooling layer with one mode that could be changed")


# With a chat template in its tokenizer a model would be taken for a chat: prompts would become system messages.
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def plain_encoder(
    location: str, *, pooling: str | None, trust_remote_code: bool, device: str | None, model_kwargs: dict[str, Any]
) -> SentenceTransformer:
    """A transformers model and a pooling layer.

    pooling: None = lasttoken for a decoder, mean for an encoder, which is said. A decoder's tokenizer ends every text with EOS.
    """
    trust = {"trust_remote_code": trust_remote_code}
    transformer = Transformer(
        location,
        model_kwargs={**model_kwargs, **trust},
        processor_kwargs=dict(trust),
        config_kwargs=dict(trust),
        modality_config=_TEXT_ONLY,
        module_output_name="token_embeddings",
    )
    decoder = reads_left_to_right(transformer)
    if decoder:
        end_with_eos(transformer.tokenizer)
    mode = pooling or ("lasttoken" if decoder else "mean")
    if pooling is None:
        log.info(
            "%s: has no modules.json, which says how to embed; %s pooling is assumed, as for %s, and no prompt "
            "(--pooling chooses another)",
            location,
            mode,
            "a model that reads left to right" if decoder else "a model that reads both ways",
        )
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), mode)]
    return SentenceTransformer(modules=modules, device=device, trust_remote_code=trust_remote_code)


@torch.inference_mode()
def reads_left_to_right(transformer: Transformer) -> bool:
    """Whether a token is blind to those after it: found by changing the last of two tokens and watching the first."""
    model = transformer.model.eval()
    tokens = torch.tensor([[1, 2], [1, 3]], device=model.device)
    first = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0][:, 0]
    return torch.allclose(first[0], first[1], atol=1e-6)
