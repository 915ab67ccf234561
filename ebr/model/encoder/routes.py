"""Models that treat queries and documents differently: a map on the side of queries alone, and what documents go through.

The map stands behind the pooling, so that everything before it, the transformer above all, is one and the same for both: a
Router of sentence-transformers whose route of queries is a Dense, and whose route of documents does nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Router

from ebr.data.files.write import read_json
from ebr.errors import ModelError, first_line
from ebr.model.encoder.prompts import Role

QUERY_MAP = "query_map"
"""What the Router is called among the modules, and the map in a manifest."""


def is_routed(model: SentenceTransformer) -> bool:
    """Whether queries and documents go through modules of their own."""
    return any(isinstance(module, Router) for module in model)


def route_of(router: Router, task: Role) -> torch.nn.Sequential:
    """The modules that texts of a task go through, by the mappings and names that sentence-transformers itself goes by.

    Raises ModelError where it would find none: a default route is for texts whose task nobody named.
    """
    try:
        route = router._resolve_route(task=task.value, modality="text")
    except ValueError as error:
        raise ModelError(
            f"the model has a Router without a route for texts of the task {task.value!r} ({first_line(error)}); give a model "
            "whose Router has one, by its name or in its route_mappings"
        ) from None
    modules: torch.nn.Sequential = router.sub_modules[route]
    return modules


def has_routes(folder: Path) -> bool:
    """As is_routed, of a model that is not loaded yet, by its modules.json."""
    file = folder / "modules.json"
    return file.is_file() and any(str(entry.get("type", "")).endswith(".Router") for entry in read_json(file))


def refuse_routes(model: SentenceTransformer, option: str, name: str) -> None:
    """Raises ModelError for a model that treats queries and documents differently, where one for both is needed."""
    if is_routed(model):
        raise ModelError(
            f"{option} {name}: has modules of its own for queries (a Router, as ebr adapt writes it), which would not fit what "
            "becomes of the rest; give the base that it was made from"
        )


def with_query_map(model: SentenceTransformer, weight: torch.Tensor) -> SentenceTransformer:
    """The model with every query's vector x become W x; documents go through the same modules as before, which are shared.

    weight: W, (D, D). Before a Normalize at the end, so that what was of length 1 still is: W x and W (x / |x|) have one
    direction. Raises ModelError where the shapes disagree or the model is routed already.
    """
    refuse_routes(model, "model", "of the queries")
    dim = model.get_embedding_dimension()
    if weight.shape != (dim, dim):
        raise ModelError(f"a map of shape {tuple(weight.shape)} does not fit a model of {dim} dimensions")
    mapped = Dense(dim, dim, bias=False, activation_function=torch.nn.Identity(), init_weight=weight.detach().clone())
    # A route cannot be empty: sentence-transformers asks the first module of each. Nothing dropped is nothing changed.
    router = Router({Role.QUERY.value: [mapped], Role.DOCUMENT.value: [Dropout(0.0)]}, default_route=Role.DOCUMENT.value)
    modules = list(model.named_children())
    behind = 1 if isinstance(modules[-1][1], Normalize) else 0
    modules.insert(len(modules) - behind, (QUERY_MAP, router))
    return _of_modules(model, modules)


def document_side(model: SentenceTransformer) -> SentenceTransformer:
    """The plain encoder that the model's documents go through, with the same modules; the model itself where it has no routes.

    Two models with equal document sides give equal vectors of documents, whatever becomes of their queries: it is what a
    model's documents are told by. Vectors are computed with the model itself. Raises ModelError as route_of does.
    """
    return _of_modules(model, list(_of_documents(model))) if is_routed(model) else model


def _of_documents(model: SentenceTransformer) -> Iterator[tuple[str, torch.nn.Module]]:
    """Under the names that they have in a model without routes: weights are told by their names too."""
    for name, module in model.named_children():
        if not isinstance(module, Router):
            yield name, module
            continue
        route = route_of(module, Role.DOCUMENT)
        # In inference nothing is dropped.
        yield from ((f"{name}_{place}", inner) for place, inner in enumerate(route) if not isinstance(inner, Dropout))


def _of_modules(model: SentenceTransformer, modules: list[tuple[str, torch.nn.Module]]) -> SentenceTransformer:
    """Modules by their names, with all else of a model."""
    made = SentenceTransformer(
        modules=OrderedDict(modules),  # type: ignore[arg-type]
        device=str(model.device),
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        trust_remote_code=model.trust_remote_code,
    )
    made.module_kwargs = model.module_kwargs  # what a model's own code is told beside a text
    return made
