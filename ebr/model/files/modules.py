"""The modules of an encoder's folder: whether they are all there, and do what their files say."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Router, Transformer, WeightedLayerPooling
from transformers import PreTrainedModel

from ebr.errors import ModelError
from ebr.model.files.kind import TRUST_HINT, read_settings
from ebr.model.origin import MODULE_FOLDER, ModelOrigin, is_known_on_hub

log = logging.getLogger(__name__)

MODULES = "modules.json"
_SAY_HOW = ("config_sentence_transformers.json", "sentence_bert_config.json")


def check_modules(folder: Path, where: str) -> None:
    """Refuse a folder whose modules.json names what is not there, or cannot be read. Raises ModelError naming the file."""
    file = folder / MODULES
    listed = _json(file)
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) and entry.get("type") for entry in listed):
        raise ModelError(f"{file}: is no list of modules, each with a type; copy the folder again")
    for path in filter(None, (str(entry.get("path") or "") for entry in listed)):
        if ".." not in Path(path).parts and not (folder / path).is_dir():
            # Only a module without a setting (Normalize) leaves an empty folder, which git and some copies drop.
            if path.rsplit("_", 1)[-1] not in ("Normalize", "Dropout"):
                raise ModelError(f"{where}: {file} names {path}, which is not there; copy the folder again")
            continue
        for settings in sorted((folder / path).glob("*.json")):
            _json(settings)


def _json(file: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error}); copy the file again") from None


def refuse_lost_modules(source: ModelOrigin, where: str, *, pooling: str | None) -> None:
    """Refuse to guess how a model embeds whose folder says so but for modules.json, which is lost. Raises ModelError.

    pooling: as asked for; then it is said that the rest is left out.
    """
    if source.folder is None:
        if is_known_on_hub(source.location, MODULES):
            return
        lost = f"the hub cannot be asked, and its cache here does not tell whether the model has a {MODULES}"
    else:
        left = [path.name for path in sorted(source.folder.iterdir()) if path.is_dir() and MODULE_FOLDER.match(path.name)]
        left += [name for name in _SAY_HOW if (source.folder / name).is_file()]
        if not left:
            return
        lost = f"{MODULES} is absent, which says what becomes of {', '.join(left)}"
    if pooling is None:
        raise ModelError(f"{where}: {lost}; fetch the model again, whole, or give --pooling to embed by its transformer alone")
    log.warning("%s: %s; embedded by its transformer alone, pooled by %s", where, lost, pooling)


def check_loaded(encoder: SentenceTransformer, location: str, where: str) -> None:
    """Refuse an encoder one of whose modules is not what its file says, or does nothing. Raises ModelError."""
    listed = read_settings(location, MODULES) or []
    for module, entry in zip(encoder, listed, strict=False):
        _check_activations(module, location, str(entry.get("path") or ""), where)
    layers = [module for module in encoder.modules() if isinstance(module, WeightedLayerPooling)]
    transformers = [module.model for module in encoder.modules() if isinstance(module, Transformer)]
    if layers and not all(_gives_every_layer(model) for model in transformers):
        raise ModelError(
            f"{where}: has a WeightedLayerPooling, which reads every layer, but config.json does not say output_hidden_states, "
            'so it would do nothing; write "output_hidden_states": true into config.json'
        )


def lay_out_code(folder: Path) -> None:
    """Copy code of a saved model's own beside its modules.json, where it is looked for; it is saved in the modules' folders."""
    for file in folder.glob("*/*.py"):
        if MODULE_FOLDER.fullmatch(file.parent.name):
            shutil.copyfile(file, folder / file.name)


def _gives_every_layer(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "output_hidden_states", False))


def _check_activations(module: torch.nn.Module, location: str, path: str, where: str) -> None:
    """Refuse a Dense module, one of a route as well, in which the library put Tanh for an activation that is not torch's own.

    path: the module's folder, from the location.
    """
    if isinstance(module, Router):
        routes = (read_settings(location, _beneath(path, "router_config.json")) or {}).get("structure", {})
        for route, names in routes.items():
            for inner, name in zip(module.sub_modules[route], names, strict=True):
                _check_activations(inner, location, _beneath(path, name), where)
    elif isinstance(module, Dense):
        settings = read_settings(location, _beneath(path, "config.json")) or {}
        wanted = str(settings.get("activation_function", ""))
        if wanted and wanted.rsplit(".", 1)[-1] != type(module.activation_function).__name__:
            raise ModelError(f"{where}: a Dense module wants the activation {wanted}, which runs only with {TRUST_HINT}")


def _beneath(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
