"""What may be said in public of the model that another was made from: its id on the hub, and the licence in its own card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load, try_to_load_from_cache

from ebr.model.origin import EMBEDDED_NAME, ModelOrigin, Origin, public_name

_CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9][\w.+-]*")
_LICENCE_KEYS = ("license", "license_name", "license_link")


def base_card(source: ModelOrigin) -> dict[str, str]:
    """Entries of a model's card that concern what is made from it, as far as they are known; nothing is fetched.

    name: fit to be shown, never a path. hub_id: of the hub. license, license_name, license_link: as its own card has them.
    """
    hub_id = _hub_id(source)
    known = {"name": hub_id or public_name(Path(source.location)), "hub_id": hub_id, **_licence(source, hub_id)}
    return {key: value for key, value in known.items() if value}


def _hub_id(source: ModelOrigin) -> str:
    if source.origin is Origin.EMBEDDED:
        return f"sentence-transformers/{EMBEDDED_NAME}"
    if source.origin is Origin.FOLDER:
        return ""
    # sentence-transformers looks for a bare name among its own models first.
    own = f"sentence-transformers/{source.location}"
    is_own = "/" not in source.location and isinstance(try_to_load_from_cache(own, "modules.json"), str)
    return own if is_own else source.location


def _licence(source: ModelOrigin, hub_id: str) -> dict[str, str]:
    fields = _front_matter(source, hub_id)
    found = {key: fields[key].strip() for key in _LICENCE_KEYS if isinstance(fields.get(key), str)}
    if not _LICENCE.fullmatch(found.get("license", "")):
        return {}
    link = found.pop("license_link", "")
    if hub_id and link and "://" not in link:  # a file beside the base's card, which does not come along
        link = f"https://huggingface.co/{hub_id}/blob/main/{link}"
    return {**found, **({"license_link": link} if link.startswith("https://") else {})}


def _front_matter(source: ModelOrigin, hub_id: str) -> dict[str, Any]:
    """The metadata of a model's own card; empty without one, or with one that cannot be read."""
    card = try_to_load_from_cache(hub_id, _CARD) if source.folder is None else source.folder / _CARD
    try:
        return dict(metadata_load(card) or {}) if isinstance(card, str | Path) else {}
    except Exception:  # whatever YAML, its reader and the file system raise: a card decides nothing
        return {}
