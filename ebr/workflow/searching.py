"""Search: texts in, the rows of an index that answer them out; encoded by the model and with the prompt that it names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ebr.config import SearchConfig
from ebr.data.files import read_manifest, write_aside
from ebr.data.queries import Query, read_queries
from ebr.data.terminal_text import cut_text, pad_text, text_columns
from ebr.errors import ConfigError
from ebr.workflow.speech import Say
from ebr.workflow.text_index import Match, TextIndex, open_index

__all__ = ["Match", "SearchPlan", "SearchResult", "TextIndex", "open_index", "plan_search", "search_index"]

_CELL_COLUMNS = 60
_QUERY_COLUMNS = 72
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class SearchPlan:
    """What would be searched for, and where."""

    config: SearchConfig
    queries: tuple[Query, ...]

    def lines(self) -> list[str]:
        """The plan, for people."""
        from ebr.retrieval.index_store import read_sidecar

        config = self.config
        lines = [f"queries {len(self.queries):,}, k {config.k}"]
        if config.trust_index and (config.index_path.is_file() or read_manifest(config.index_path) is None):
            return [*lines, f"index   {config.index_path}, without a sidecar; model {config.model_path}"]
        sidecar = read_sidecar(config.index_path)
        model = config.model_path or sidecar.facts.get("model")
        return [*lines, f"index   {config.index_path}: {sidecar.n_rows:,} rows, {sidecar.kind.value}; model {model}"]


@dataclass(frozen=True)
class SearchResult:
    """The matches of each query, in the order of the queries."""

    queries: tuple[Query, ...]
    matches: tuple[tuple[Match, ...], ...]
    output_format: str
    output_path: Path | None = None

    @property
    def is_data(self) -> bool:
        """Whether the summary is for programs: then nothing else may be printed."""
        return self.output_format == "jsonl"

    def json_lines(self) -> list[str]:
        """One JSON object a match: query_id, query, rank, score, id, columns."""
        return [
            json.dumps({"query_id": query.id, "query": query.text, **match.to_json()}, ensure_ascii=False)
            for query, matches in zip(self.queries, self.matches, strict=True)
            for match in matches
        ]

    def table(self) -> str:
        """Each query and its matches, aligned for a terminal; long cells are cut."""
        blocks = [
            "\n".join([cut_text(query.text, _QUERY_COLUMNS), *_table_rows(matches)])
            for query, matches in zip(self.queries, self.matches, strict=True)
        ]
        return "\n\n".join(blocks)

    def summary(self) -> str:
        """The table or the JSON lines, as asked for; where they went, when they went to a file."""
        if self.is_data:
            return "\n".join(self.json_lines())
        written = f"\n\nhits written to {self.output_path}" if self.output_path else ""
        return self.table() + written


def _table_rows(matches: Sequence[Match]) -> list[str]:
    names = list(matches[0].columns) if matches else []
    rows = [["rank", "score", "id", *names]]
    rows += [
        [str(match.rank), f"{match.score:.4f}", match.id, *("" if cell is None else cell for cell in match.columns.values())]
        for match in matches
    ]
    cells = [[cut_text(cell, _CELL_COLUMNS) for cell in row] for row in rows]
    widths = [max(map(text_columns, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(pad_text(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def plan_search(config: SearchConfig) -> SearchPlan:
    """Read the queries, and search for nothing. Raises EBRError subclasses that say what to mend."""
    config.check()
    _check_output(config)
    queries = read_queries(config.queries_path) if config.queries_path else [Query("1", config.query or "")]
    return SearchPlan(config, tuple(queries))


def _check_output(config: SearchConfig) -> None:
    """Refuse to write hits over what is searched with, or in. Raises ConfigError."""
    if config.output_path is None:
        return
    path, index = config.output_path.resolve(), config.index_path.resolve()
    if path.is_dir():
        raise ConfigError(f"output_path {config.output_path}: is a folder; give a file in it")
    if config.queries_path and path == config.queries_path.resolve():
        raise ConfigError(f"output_path {config.output_path}: is queries_path; write elsewhere")
    if index in (path, *path.parents):
        raise ConfigError(f"output_path {config.output_path}: lies in index_path {config.index_path}; write elsewhere")


def search_index(config: SearchConfig, *, say: Say = print) -> SearchResult:
    """Search an index with a text, or with a file of them. Raises EBRError subclasses that say what to mend.

    Says nothing where the result is JSON lines, which a program reads from the same place.
    """
    plan = plan_search(config)
    opened = open_index(
        config.index_path,
        model_path=config.model_path,
        trust_remote_code=config.trust_remote_code,
        trust_index=config.trust_index,
        pooling=config.pooling,
        base_model_path=config.base_model_path,
    )
    if config.output_format != "jsonl":
        say(f"{config.index_path}: {len(opened):,} rows of {opened.dim}; model {opened.model_path}")
    texts = [query.text for query in plan.queries]
    matches: list[tuple[Match, ...]] = []
    is_short = len(texts) <= _QUERIES_AT_ONCE
    with tqdm(total=len(texts), desc="search", unit="query", disable=is_short, dynamic_ncols=True) as bar:
        for start in range(0, len(texts), _QUERIES_AT_ONCE):
            found = opened.search(texts[start : start + _QUERIES_AT_ONCE], config.k, effort=config.search_effort)
            matches += [tuple(each) for each in found]
            bar.update(len(found))
    result = SearchResult(plan.queries, tuple(matches), config.output_format, config.output_path)
    if config.output_path:
        with write_aside(config.output_path) as aside:
            aside.write_text("".join(line + "\n" for line in result.json_lines()), encoding="utf-8")
    return result
