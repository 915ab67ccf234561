"""Rows for new tokens: drawn like those of the words that the model knows well."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from ebr.errors import ModelError
from ebr.model.files.tokenizer import table_of
from ebr.model.vocabulary.new_tokens import NewTokens, note_new_tokens

_FEWEST_WORDS = 100


def widen(
    transformer: PreTrainedModel, first: int, count: int, words: list[int], rng: np.random.Generator, where: str
) -> NewTokens:
    """Give `count` tokens from id `first` on a row each, and note them in the model; all other rows stay, bit for bit.

    words: ids of the tokens of whole words; too few of them, and every row counts. Each dimension is drawn from the normal
    distribution with their mean and deviation in it (as Hewitt 2021, but dimension by dimension and of words alone): rows that
    never learnt anything, of scripts that the model has hardly seen, lie elsewhere.
    Raises ModelError for a table that is no plain one.
    """
    table = table_of(transformer)
    if not isinstance(table, torch.nn.Embedding):
        raise ModelError(f"{where}: its table of embeddings ({type(table).__name__}) cannot be widened; take another base")
    known = table.weight.detach()
    model_rows = known[words] if len(words) >= _FEWEST_WORDS else known[:first]
    mean, deviation = (value.double().cpu().numpy() for value in (model_rows.mean(0), model_rows.std(0)))
    drawn = mean + deviation * rng.standard_normal((count, len(mean)))
    if table.num_embeddings < first + count:
        transformer.resize_token_embeddings(first + count, mean_resizing=False)
    wide = table_of(transformer)
    assert isinstance(wide, torch.nn.Embedding)
    with torch.no_grad():
        wide.weight[first : first + count] = torch.from_numpy(drawn).to(wide.weight)
    return note_new_tokens(transformer, first, count, where)
