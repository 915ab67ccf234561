"""LoRA adapters: where they attach, and how their weights come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ebr.errors import ModelError
from ebr.model.adapters.files import ADAPTER_WEIGHTS
from ebr.model.files.peft_import import (
    LoraConfig,
    LoraLayer,
    bitsandbytes_hidden,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from ebr.model.files.quantization import is_quantized
from ebr.model.files.tokenizer import table_of

TOKEN_ROWS = "trainable_tokens_delta"
"""In the names of rows of a table of embeddings that an adapter trains one by one."""


def attach_lora(
    model: SentenceTransformer,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str] | None = None,
    token_ids: Sequence[int] = (),
) -> None:
    """Freeze the model, also a quantised one, and add a trainable LoRA adapter in float32 (Hu et al. 2021).

    target_modules: names, or ends of names, of layers; None = every linear layer that takes part in an embedding.
    token_ids: tokens whose rows in the table of embeddings are trained too, and saved with the adapter.
    Raises ModelError when no layer fits.
    """
    # Dense layers behind the transformer would otherwise stay trainable.
    model.requires_grad_(False)
    targets = list(target_modules) if target_modules else used_linear_layers(model)
    if not targets:
        raise ModelError("finetune_type lora: an embedding of this model passes through no linear layer; use full")
    rows = {_table_name(model): list(token_ids)} if token_ids else None
    settings = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", trainable_token_indices=rows
    )
    try:
        with bitsandbytes_hidden():
            model.add_adapter(settings)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name in used_linear_layers(model)})
        raise ModelError(f"target_modules {' '.join(targets)}: {error}; this model has {' '.join(names)}") from None
    _train_what_is_read(model)


def _table_name(model: SentenceTransformer) -> str:
    transformer: PreTrainedModel = model[0].model
    table = table_of(transformer)
    return next(str(name) for name, module in transformer.named_modules() if module is table)


def token_rows(model: SentenceTransformer) -> torch.nn.Parameter | None:
    """(N, D): the rows of the table of embeddings that the model's adapter trains one by one; None where it trains none."""
    rows = (parameter for name, parameter in model[0].model.named_parameters() if TOKEN_ROWS in name)
    return next(rows, None)


def adapter_settings(model: SentenceTransformer) -> LoraConfig | None:
    """The settings of the adapter that a loaded model carries; None without one."""
    settings: dict[str, LoraConfig] = getattr(getattr(model[0], "model", None), "peft_config", None) or {}
    return next(iter(settings.values()), None)


def continue_lora(model: SentenceTransformer, *, dropout: float) -> None:
    """Make the adapter that a loaded model carries trainable again, with its own rank, scale and layers; all else is frozen."""
    settings = adapter_settings(model)
    assert settings is not None
    model.requires_grad_(False)
    transformer = model[0].model
    settings.inference_mode, settings.lora_dropout = False, dropout
    own = {tensor.data_ptr() for tensor in get_peft_model_state_dict(transformer, save_embedding_layers=False).values()}
    for name, parameter in transformer.named_parameters():
        # Copies of a base's layer that was trained whole lie beside it, as original_module.
        parameter.requires_grad_(parameter.data_ptr() in own and ".original_module." not in name)
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            kept = torch.nn.Dropout(dropout) if dropout else torch.nn.Identity()
            layer.lora_dropout.update({adapter: kept for adapter in layer.active_adapters if adapter in layer.lora_dropout})
    _train_what_is_read(model)


def _train_what_is_read(model: SentenceTransformer) -> None:
    """In float32; of LoRA only the layers that an embedding passes through."""
    used = _layers_of_an_embedding(model)
    for name, parameter in model[0].model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            # No gradient would ever come to the others, and several processes would wait for it.
            parameter.requires_grad_(".lora_" not in name or name.split(".lora_")[0] in used)


def train_every_weight(model: SentenceTransformer) -> None:
    """Make every weight trainable but those of a pooler (BERT's), whose output no embedding reads.

    Raises ModelError for an adapter, and for quantised weights.
    """
    if adapter_settings(model) is not None:
        raise ModelError("model_name: is an adapter, of which only the adapter can be tuned; merge it first, with ebr merge")
    if is_quantized(model):
        raise ModelError("finetune_type full: the weights of this model are quantised, and cannot be tuned; use lora, or qlora")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _is_pooler(name))


def used_linear_layers(model: SentenceTransformer) -> list[str]:
    """The linear layers that an embedding passes through: ends of their names where these are clear, else whole names. Sorted.

    No list of architectures is needed, and layers that an embedding never sees (a pooler that is not used, a language-model
    head) get no adapter that could never learn.
    """
    used = _layers_of_an_embedding(model)
    unclear = {_end(name) for name, _ in model[0].model.named_modules() if name not in used}
    return sorted({name if _end(name) in unclear else _end(name) for name in used})


def _layers_of_an_embedding(model: SentenceTransformer) -> set[str]:
    """Names of the linear layers, found by embedding one text and watching."""
    kinds = (torch.nn.Linear, Conv1D, LoraLayer)
    layers = {name: module for name, module in model[0].model.named_modules() if isinstance(module, kinds)}
    used: set[str] = set()
    hooks = [module.register_forward_hook(lambda *_, name=name: used.add(name)) for name, module in layers.items()]
    try:
        model.encode(["a"], show_progress_bar=False)
    finally:
        for hook in hooks:
            hook.remove()
    # The pooler of BERT is computed, but nothing reads what it gives.
    return {name for name in used if not _is_pooler(name)}


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def trainable_share(model: SentenceTransformer) -> tuple[int, int]:
    """(trainable parameters, all parameters), those of a quantised base too."""
    sizes = [(_size(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def _size(parameter: torch.nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # in 4 bits: two weights a byte
    return int(packed.shape.numel()) if packed is not None else parameter.numel()


def check_finite(model: SentenceTransformer) -> None:
    """Refuse weights that diverged. Raises ModelError."""
    if not all(parameter.isfinite().all() for parameter in model.parameters() if parameter.requires_grad):
        raise ModelError("training diverged: the weights hold nan or inf; lower learning_rate, or use bf16 instead of fp16")


def load_adapter_weights(model: SentenceTransformer, folder: Path) -> None:
    """Put saved adapter weights into the adapter that the model carries, the frozen base untouched.

    Raises ModelError when the folder's weights do not fit the adapter.
    """
    # As transformers saves them; peft finds LoRA's under that prefix by itself, rows of a table not.
    weights = {key.removeprefix("base_model.model."): tensor for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    result = set_peft_model_state_dict(model[0].model, weights)
    missing = [name for name in result.missing_keys if "lora_" in name or TOKEN_ROWS in name]
    if missing or result.unexpected_keys:
        raise ModelError(f"{folder / ADAPTER_WEIGHTS}: does not fit this model ({[*missing, *result.unexpected_keys][:3]} …)")
