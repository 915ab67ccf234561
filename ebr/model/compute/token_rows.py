"""Rows of a table that an adapter trains one by one, looked up beside the table: peft makes a copy of all of it each pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from ebr.model.files.peft_import import TrainableTokensLayer


def _forward(layer: TrainableTokensLayer, places: Tensor, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    """What peft's layer gives. places: (rows,) which of the trained rows stands for each row of the table, -1 = none."""
    if args or kwargs or layer.disable_adapters or layer.merged:
        plain: Tensor = type(layer).forward(layer, ids, *args, **kwargs)
        return plain
    (name,) = layer.active_adapters
    own = layer.base_layer(ids)
    place = places[ids]
    trained = embedding(place.clamp(min=0), layer.trainable_tokens_delta[name].to(own.dtype))
    return torch.where((place >= 0).unsqueeze(-1), trained, own)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is peft's, on torch's own table, frozen, with one adapter."""
    if not isinstance(layer, TrainableTokensLayer) or type(layer.base_layer) is not nn.Embedding or layer.tied_adapter:
        return False
    return len(layer.active_adapters) == 1 and layer.base_layer.max_norm is None and not layer.base_layer.weight.requires_grad


def _places(layer: TrainableTokensLayer) -> Tensor:
    (name,) = layer.active_adapters
    ids = torch.tensor(layer.token_indices[name])
    places = torch.full((layer.base_layer.num_embeddings,), -1)
    places[ids] = torch.arange(len(ids))
    return places.to(layer.base_layer.weight.device)


@contextmanager
def light_token_rows(model: nn.Module) -> Iterator[None]:
    """The model looks trained rows up beside the table, until the block ends; layers of another kind stay as they are."""
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer, _places(layer))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
