"""Whole models as people have them on disk: put together, changed by a line, embedded by hand and in a run."""

import json
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ebr.config import InferenceConfig
from ebr.data.files.write import write_json
from ebr.inference.command import run_batch_inference

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国", "a book " * 40]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895\nsize 90868376\n"


def edit_json(file, **values):
    write_json(file, {**(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}), **values})


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("ebr")]


def save_bert(folder, tokenizer, **config):
    """A tiny BERT with random, fixed weights around a tokenizer, as transformers saves it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(
        BertConfig(**{**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.2, **config})
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_encoder_of(raw, folder, pooling="mean", behind=(), **options):
    """The folder of an encoder of sentence-transformers: a model of transformers, pooled, and the modules behind."""
    transformer = Transformer(str(raw))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling), *behind]
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(folder))
    return Path(folder)


@torch.no_grad()
def states_by_hand(folder, texts=TEXTS, *, layer=-1):
    """(tokens, D) of a layer for each text, alone and by plain transformers."""
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    encoded = (tokenizer(text, truncation=True, max_length=64, return_tensors="pt") for text in texts)
    return [model(**one, output_hidden_states=True).hidden_states[layer][0] for one in encoded]


def mean_by_hand(folder, texts=TEXTS):
    return np.array([states.mean(0).numpy() for states in states_by_hand(folder, texts)])


def run_over(model, texts, folder, **options):
    """An embedding run over texts: its vectors, and the first of the rows that were rejected."""
    (folder / "in").mkdir(exist_ok=True)
    rows = [f"{number}\x01{text}" for number, text in enumerate(texts)]
    (folder / "in" / "a.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    config = InferenceConfig(
        model_path=str(model), input_dir=folder / "in", output_path=folder / "v.npy", precision="float32", **options
    )
    result = run_batch_inference(config, say=lambda _: None)
    return np.load(folder / "v.npy"), result.embedded.first_rejects
