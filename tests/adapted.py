"""A tiny model whose queries go through a map, made as ebr adapt makes it, and the records that it is learned from."""

import json

from ebr.config import AdaptConfig
from ebr.workflow.adapting import adapt_queries

WORDS = [f"{size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "blue", "green") for thing in
         ("shoe", "shirt", "lamp", "cup", "book")]  # fmt: skip
FAST = {"learning_rate": 0.01, "towards_identity": 0.0, "max_steps": 60, "validation_split": 0.3}


def write_records(path, *, negatives=True):
    """Sixty records: what somebody asks, what answers it."""
    records = [
        {"anchor": f"{verb} {words}", "positive": f"the {words} {number}"}
        | ({"negative": f"a {words[::-1]}"} if negatives else {})
        for number, verb in enumerate(("buy", "query"))
        for words in WORDS
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def adapt(model, data, folder, **options):
    """The result, and what was said."""
    lines = []
    config = AdaptConfig(model_name=str(model), data_path=str(data), output_path=folder, **{**FAST, **options})
    return adapt_queries(config, say=lines.append), lines
