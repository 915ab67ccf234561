"""LoRA adapters with random weights, as they lie on disk: what merging is tested on."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from ebr.config import MergeConfig
from ebr.data.files.write import write_json
from ebr.errors import ModelError
from ebr.workflow.merging import merge_adapter

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国", "a " * 100]
PROMPTS = {"query": "query: ", "document": "passage: "}
WEIGHTS = "adapter_model.safetensors"
QUERY = "encoder.layer.0.attention.self.query"


def tuned(base, **lora):
    """An encoder with an adapter whose every weight is random: as after training."""
    torch.manual_seed(0)  # peft draws lora_A
    model = SentenceTransformer(base, device="cpu")
    model.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **lora}))
    rng = torch.Generator().manual_seed(1)
    transformer = model[0].model
    places = get_peft_model_state_dict(transformer, save_embedding_layers=False)
    with torch.no_grad():
        for tensor in places.values():
            tensor.add_(torch.randn(tensor.shape, generator=rng) * 0.2)
    return model.eval()


def save_tuned(base, folder, **lora):
    model = tuned(base, **lora)
    model.prompts = PROMPTS
    model[0].query_length, model[0].document_length = 8, 16
    model.max_seq_length = 16
    model[1].pooling_mode = "cls"
    model.save_pretrained(str(folder))
    return folder, vectors(model)


def merge(base, adapter, **options):
    lines = []
    return merge_adapter(config_of(base, adapter, **options), say=lines.append), lines


def config_of(base, adapter, **options):
    folder = Path(adapter).parent if Path(adapter).is_file() else Path(adapter)
    output = options.pop("output_path", folder.parent / "merged")
    return MergeConfig(base_model_path=str(base), lora_adapter_path=str(adapter), output_path=output, **options)


def vectors(model):
    model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model), device="cpu")
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS)])


def peft_of(model, **lora):
    """A model of transformers with an adapter of peft whose every weight is random: as after training."""
    torch.manual_seed(0)  # peft draws lora_A
    return train_away(get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora})))


def train_away(model):
    """Every trainable weight moved: as after training."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad or "lora_" in name:
                tensor.add_(torch.randn(tensor.shape, generator=rng) * 0.2)
    return model.eval()


def by_hand(transformer, tokenizer, texts, *, last=False, close=()):
    """Unit vectors of texts that are no longer than a model reads, one at a time: the mean of all tokens, or the last of them.

    close: ids behind each text.
    """
    rows = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], *close]])
        with torch.no_grad():
            tokens = transformer(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
        rows.append(tokens[-1] if last else tokens.mean(0))
    return torch.nn.functional.normalize(torch.stack(rows)).numpy()


def said_by_us(caplog, level=logging.DEBUG):
    """What our own code logged, from this level on."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("ebr") and record.levelno >= level]


def rewrite(adapter, rename, *, weights=WEIGHTS, **config):
    """An adapter's keys renamed (None = dropped), and its adapter_config.json changed."""
    tensors = {rename(key): tensor for key, tensor in load_file(adapter / WEIGHTS).items()}
    (adapter / WEIGHTS).unlink()
    save_file({key: tensor for key, tensor in tensors.items() if key}, adapter / weights)
    file = adapter / "adapter_config.json"
    write_json(file, {**json.loads(file.read_text()), **config})
    return adapter


def refuse(base, adapter, pattern, error=ModelError, **options):
    before = sorted(adapter.parent.rglob("*"))
    with pytest.raises(error, match=pattern) as caught:
        merge(base, adapter, **options)
    assert "\n" not in str(caught.value)
    assert sorted(adapter.parent.rglob("*")) == before
