"""What an index would hold, of which kind and in how much memory: looked at before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import IndexConfig
from ebr.data.files.dialects import parse_delimiter
from ebr.data.files.places import check_place
from ebr.data.host_memory import free_host_bytes
from ebr.data.text.counted import counted
from ebr.errors import ConfigError, DataError, require_extra

if TYPE_CHECKING:
    from ebr.data.vectors.embeddings import VerifiedEmbeddings
    from ebr.retrieval.index.kinds import IndexSpec
    from ebr.retrieval.index.source import VectorSource
    from ebr.retrieval.index.store import Sidecar


@dataclass(frozen=True)
class IndexPlan:
    """What an index would hold, of which kind, and in how much memory."""

    config: IndexConfig
    source: VectorSource
    spec: IndexSpec
    why: str
    """Of the kind."""
    budget: int
    queries: VectorSource | None
    before: Sidecar | None
    """Of the index that rows are added to."""
    model: Mapping[str, Any]
    """What searches must know of the model: where it lies, and how its vectors were made."""
    lexical_column: str | None
    """Whose words are indexed too."""

    def lines(self) -> list[str]:
        """The plan, for people."""
        from ebr.retrieval.index.kinds import bytes_text

        source, spec, facts = self.source, self.spec, self.model
        rows = f"{counted(source.n_rows, 'row')} of {source.dim}, {source.metric.value}"
        rows += f", added to {self.before.n_rows:,}" if self.before else ""
        n_learned = 0 if self.before else spec.n_training
        learning = f", and {bytes_text(4 * spec.dim * n_learned)} more while it learns" if n_learned else ""
        lines = [
            f"vectors {source.path}: {rows}",
            f"model   {facts.get('model') or 'not recorded: the vectors were made elsewhere; name it with --model_path'}",
            f"kind    {spec.kind.value} ({spec.factory}): {self.why}",
            f"memory  {bytes_text(spec.predicted_bytes)} predicted, of {bytes_text(self.budget)}{learning}",
            f"index   {self.config.index_path}: ids of {source.id_column or 'row numbers'}; "
            f"kept: {', '.join(source.columns) or 'no columns'}",
            *([f"words   BM25 of {self.lexical_column}"] if self.lexical_column else []),
        ]
        if spec.predicted_bytes > self.budget:
            lines.append(f"warning: kind {spec.kind.value} takes more than memory_budget; ivf_pq takes the least")
        return lines


def plan_index(config: IndexConfig) -> IndexPlan:
    """Look at the vectors and choose the kind, and build nothing. Raises EBRError subclasses that say what to mend."""
    from ebr.retrieval.index.kinds import IndexSpec, Kind, Metric, choose_kind
    from ebr.retrieval.index.source import open_source
    from ebr.retrieval.index.store import check_replaceable, read_sidecar

    require_extra("index", "an index")
    check_place(config.index_path, "index_path", is_folder=True)
    check_replaceable(config.index_path)
    before = read_sidecar(config.index_path) if config.add else None
    metric = Metric(config.metric)
    first_id = before.n_rows if before else 0
    files = _vector_files(config, "embeddings_path")
    source = open_source(files, config.id_column, config.output_columns, metric, first_id=first_id)
    model = _model_facts(config, source, before)
    queries = open_source(_vector_files(config, "query_embeddings"), None, [], metric) if config.query_embeddings else None
    if queries:
        _check_queries(queries, source)
    lexical_column = _lexical_column(config, source, before)
    budget = int(config.memory_budget) if config.memory_budget is not None else free_host_bytes() // 2
    if before:
        _check_added(config, source, before, model)
        n_rows = before.n_rows + source.n_rows
        spec = IndexSpec(before.kind, n_rows, source.dim, int(before.facts["n_lists"]))
        return IndexPlan(config, source, spec, "that of the index", budget, queries, before, model, lexical_column)
    kind, why = choose_kind(source.n_rows, source.dim, budget) if config.kind == "auto" else (Kind(config.kind), "as asked for")
    spec = IndexSpec.of(kind, source.n_rows, source.dim)
    return IndexPlan(config, source, spec, why, budget, queries, None, model, lexical_column)


def _lexical_column(config: IndexConfig, source: VectorSource, before: Sidecar | None) -> str | None:
    """Whose words are indexed too. Raises ConfigError when its texts are not kept: rows added later need them all again."""
    column = config.lexical_column or (before.lexical_column if before else None)
    if column is not None and column not in source.columns:
        raise ConfigError(
            f"lexical_column {column}: is not among the columns that are kept ({', '.join(source.columns) or 'none'}); "
            "name one of them, or keep it with output_columns"
        )
    return column


def _vector_files(config: IndexConfig, option: str) -> VerifiedEmbeddings:
    from ebr.data.vectors.embeddings import find_embeddings

    delimiter = parse_delimiter(config.delimiter)
    return find_embeddings(config[option], delimiter, option, vector_column=config.vector_column)


def _model_facts(config: IndexConfig, source: VectorSource, before: Sidecar | None) -> dict[str, Any]:
    """What the vectors' manifest says of their model, with what the config knows better. Raises ConfigError, ModelError.

    before: the index that rows are added to; what was once said of vectors made elsewhere need not be said again.
    """
    from ebr.model.origin import absolute_name, resolve_model

    facts = dict(source.model)
    for key in ("model", "base_model_path"):  # a search may stand in another folder
        facts[key] = facts[key] and absolute_name(str(facts[key]))
    for name, key in (("model_path", "model"), ("base_model_path", "base_model_path")):
        if (given := config[name]) is not None:
            resolve_model(given)
            facts[key] = absolute_name(given)
        elif before and facts[key] is None:
            facts[key] = before.facts.get(key)
    if config.pooling is not None:
        if facts["model"] is None:
            raise ConfigError(
                f"pooling {config.pooling}: is only read with model_path, for vectors made elsewhere; set that too"
            )
        if facts["pooling"] not in (None, "", config.pooling):
            raise ConfigError(f"pooling {config.pooling}: {source.path} was pooled by {facts['pooling']}; leave it out")
        facts["pooling"] = config.pooling
    elif before and facts["pooling"] is None and facts["model_sha256"] is None:
        facts["pooling"] = before.facts.get("pooling")
    return facts


def _check_queries(queries: VectorSource, source: VectorSource) -> None:
    """Raises DataError when queries were made by another model than the vectors."""
    from ebr.retrieval.index.source import UNRECORDED

    if queries.dim != source.dim:
        raise DataError(
            f"query_embeddings {queries.path}: {queries.dim} numbers a vector, where {source.path} has {source.dim}"
        )
    ours, theirs = queries.model, source.model
    if any(None not in (ours[name], theirs[name]) and ours[name] != theirs[name] for name in (*UNRECORDED, "model_sha256")):
        raise DataError(f"query_embeddings {queries.path}: made by another model than {source.path}; embed them with the same")


def _check_added(config: IndexConfig, source: VectorSource, before: Sidecar, facts: dict[str, Any]) -> None:
    """Raises ConfigError or DataError when rows do not fit the index that is there. facts: of the rows' model."""
    from ebr.retrieval.index.source import SAME_VECTORS, UNRECORDED

    where = f"index_path {config.index_path}"
    if before.lexical_column and config.lexical_column not in (None, before.lexical_column):
        raise ConfigError(
            f"lexical_column {config.lexical_column}: {where} has the words of {before.lexical_column}; give that, or build "
            "anew without add"
        )
    if config.kind not in ("auto", before.kind.value):
        raise ConfigError(f"kind {config.kind}: {where} is {before.kind.value}; leave kind out, or build anew without add")
    if source.metric is not before.metric:
        raise ConfigError(f"metric {config.metric}: {where} is {before.metric.value}; give that one, or build anew without add")
    if source.dim != before.dim:
        raise DataError(f"{source.path}: {source.dim} numbers a vector, where {where} has {before.dim}; use the same model")
    if source.id_column != before.facts.get("id_column"):
        was = before.facts.get("id_column")
        raise ConfigError(
            f"id_column {source.id_column or 'none'}: {where} has its ids from {was or 'row numbers'}; give that, or build anew"
        )
    different = [
        name
        for name in SAME_VECTORS
        if facts[name] != before.facts.get(name) and not (name in UNRECORDED and None in (facts[name], before.facts.get(name)))
    ]
    if different:
        said = "; ".join(
            name if isinstance(facts[name], dict) else f"{name} {facts[name]!r}, not {before.facts.get(name)!r}"
            for name in different
        )
        raise DataError(f"{source.path}: does not fit {where}: {said}; embed it like the rest, or build anew without add")
    if set(source.columns) != set(before.columns):
        raise DataError(
            f"{source.path}: its columns {', '.join(source.columns) or 'none'} are not {', '.join(before.columns) or 'none'} "
            f"of {where}; name them with output_columns, or build anew without add"
        )


def old_sources(plan: IndexPlan) -> list[VectorSource] | None:
    """The vectors of the rows that the index has, to measure with; None when they are not there as they were."""
    from ebr.data.vectors.embeddings import find_embeddings
    from ebr.retrieval.index.source import open_source

    sources: list[VectorSource] = []
    for fact in plan.before.facts["embeddings"] if plan.before else []:
        path = Path(fact["path"])
        if not path.exists() or fact["manifest_sha256"] is None:
            return None
        try:
            source = open_source(find_embeddings(path), None, [], plan.source.metric)
        except DataError:  # damaged: the index has its vectors, it is only measured without them
            return None
        if source.facts()["manifest_sha256"] != fact["manifest_sha256"]:
            return None
        sources.append(source)
    return sources
