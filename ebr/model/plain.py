"""An encoder around a plain transformers model: which pooling it needs, where it pads, whether its texts end with EOS."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from ebr.errors import ModelError

# With a chat template in its tokenizer a model would be taken for a chat: prompts would become system messages.
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def plain_encoder(
    location: str, *, pooling: str | None, trust_remote_code: bool, device: str | None, model_kwargs: dict[str, Any]
) -> SentenceTransformer:
    """A transformers model and a pooling layer.

    pooling: None = lasttoken for a decoder, mean for an encoder. A decoder's tokenizer ends every text with EOS.
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
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), mode)]
    return SentenceTransformer(modules=modules, device=device, trust_remote_code=trust_remote_code)


@torch.inference_mode()
def reads_left_to_right(transformer: Transformer) -> bool:
    """Whether a token is blind to those after it: found by changing the last of two tokens and watching the first."""
    model = transformer.model.eval()
    tokens = torch.tensor([[1, 2], [1, 3]], device=model.device)
    first = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0][:, 0]
    return torch.allclose(first[0], first[1], atol=1e-6)


def end_with_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer close every text, truncated or not, with EOS: the token that stands for the text as a whole.

    A tokenizer that does so already, because its model was trained so, stays as it is; the change is saved with it.
    """
    eos, eos_id = tokenizer.eos_token, tokenizer.eos_token_id
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{type(tokenizer).__name__}: only a fast tokenizer can be taught to close texts with EOS; convert it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = eos
    if eos_id is None or tokenizer("a")["input_ids"][-1:] == [eos_id]:
        return
    closing = processors.TemplateProcessing(single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, eos_id)])
    present = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = closing if present is None else processors.Sequence([present, closing])
