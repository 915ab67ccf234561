"""Search: texts in, the rows of an index that answer them out; encoded by the model and with the prompt that it names."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config import SearchConfig
from ebr.data.evaluation.queries import Query, one_query, read_queries
from ebr.data.files.places import check_place, is_stream
from ebr.data.files.write import read_manifest, write_aside
from ebr.data.progress import progress_bar
from ebr.data.result_tables import DataFrame, Part, Shown
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.text.cut_texts import CutTexts
from ebr.errors import ConfigError, ReaderGone
from ebr.retrieval.index.matches import Match, Mode, hits_block, hits_parts, hits_table
from ebr.retrieval.index.text_index import TextIndex, open_index
from ebr.retrieval.index.threshold import Floor, check_searched, find_floor

if TYPE_CHECKING:
    from ebr.retrieval.index.store import Sidecar

__all__ = ["Match", "SearchPlan", "SearchResult", "TextIndex", "open_index", "plan_search", "search_index"]

log = logging.getLogger(__name__)

_QUERIES_AT_FIRST, _QUERIES_AT_ONCE = 16, 1024
_LONGEST_HIT = 1 << 24
_OF_A_HIT = {"query_id", "query", "rank", "score", "id"}


@dataclass(frozen=True)
class SearchPlan:
    """What would be searched for, and where."""

    config: SearchConfig
    queries: tuple[Query, ...]
    floor: Floor | None = None
    """Which hits are left out; None = none."""

    def lines(self) -> list[str]:
        """The plan, for people."""
        from ebr.retrieval.index.store import read_sidecar

        config, mode = self.config, Mode(self.config.mode)
        lines = [f"queries {len(self.queries):,}, k {config.k}, {mode.value}", *([self.floor.line()] if self.floor else [])]
        if config.trust_index and (config.index_path.is_file() or read_manifest(config.index_path) is None):
            found_by = _found_by(mode, config.model_path, config.index_path, None)
            return [*lines, f"index   {config.index_path}, without a sidecar; {found_by}"]
        sidecar = read_sidecar(config.index_path)
        found_by = _found_by(mode, config.model_path or sidecar.facts.get("model"), config.index_path, sidecar)
        return [*lines, f"index   {config.index_path}: {counted(sidecar.n_rows, 'row')}, {sidecar.kind.value}; {found_by}"]


@dataclass(frozen=True)
class SearchResult(Shown):
    """The matches of each query, in the order of the queries."""

    queries: tuple[Query, ...]
    matches: tuple[tuple[Match, ...], ...]
    output_path: Path | None = None
    cut: CutTexts = field(default_factory=CutTexts)
    """Queries that are longer than the model reads."""

    def json_lines(self) -> list[str]:
        """One JSON object a match: query_id, query, rank, score, scored_by, id, columns."""
        pairs = zip(self.queries, self.matches, strict=True)
        return [line for query, matches in pairs for line in _json_lines(query, matches)]

    def table(self) -> str:
        """Each query and its matches, aligned for a terminal; long cells are cut."""
        return "\n\n".join(map(hits_block, self._texts(), self.matches))

    def parts(self) -> list[Part]:
        """Each query and its matches."""
        return hits_parts(self._texts(), self.matches)

    def text(self) -> str:
        """The table: where it was said already, that was above."""
        return self.table()

    def to_frame(self) -> DataFrame:
        """A row for each match: query_id, query, rank, score, scored_by, id, and the columns of its row, see hits_table."""
        return hits_table(self._texts(), self.matches, [query.id for query in self.queries]).to_frame()

    def _texts(self) -> list[str]:
        return [query.text for query in self.queries]

    def summary(self) -> str:
        """Where the hits went, when they went to a file; they were said when they were found."""
        return f"hits written to {self.output_path}" if self.output_path else ""


def _json_lines(query: Query, matches: Sequence[Match]) -> list[str]:
    records = [{"query_id": query.id, "query": query.text, **match.to_json()} for match in matches]
    return [json.dumps(record, ensure_ascii=False) for record in records]


def _found_by(mode: Mode, model: object, folder: Path, sidecar: Sidecar | None) -> str:
    """What a search goes by: `model m`, `BM25 of description`, or both. Raises ConfigError when the index knows no words."""
    from ebr.retrieval.index.store import no_words

    if mode is Mode.DENSE:
        return f"model {model}"
    if sidecar is None or sidecar.lexical_column is None:
        raise no_words(folder, sidecar)
    words = f"BM25 of {sidecar.lexical_column}"
    return words if mode is Mode.LEXICAL else f"model {model} and {words}"


def plan_search(config: SearchConfig) -> SearchPlan:
    """Read the queries, and search for nothing. Raises EBRError subclasses that say what to mend."""
    config.check()
    _check_output(config)
    queries = read_queries(config.queries_path) if config.queries_path else [one_query(config.query or "")]
    return SearchPlan(config, tuple(queries), find_floor(config))


def _check_output(config: SearchConfig) -> None:
    """Refuse to write hits over what is searched with, or in, or holds anything but hits. Raises ConfigError."""
    if config.output_path is None or is_stream(config.output_path):
        return
    path, index = check_place(config.output_path).resolve(), config.index_path.resolve()
    if path.is_dir():
        raise ConfigError(f"output_path {config.output_path}: is a folder; give a file in it")
    if config.queries_path and path == config.queries_path.resolve():
        raise ConfigError(f"output_path {config.output_path}: is queries_path; write elsewhere")
    if index in (path, *path.parents):
        raise ConfigError(f"output_path {config.output_path}: lies in index_path {config.index_path}; write elsewhere")
    if path.is_file() and not _is_hits(path):
        raise ConfigError(f"output_path {config.output_path}: holds something else than hits; move it, or write elsewhere")


def _is_hits(path: Path) -> bool:
    """Whether a file was written by a search, by its first line; an empty one has nothing to lose."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST_HIT)
    try:
        hit = json.loads(line) if line else dict.fromkeys(_OF_A_HIT)
    except ValueError:
        return False
    return isinstance(hit, dict) and hit.keys() >= _OF_A_HIT


def search_index(config: SearchConfig, *, say: Say = speak) -> SearchResult:
    """Search an index with a text, or with a file of them. Raises EBRError subclasses that say what to mend.

    Hits are said as they are found: as a table, or as JSON lines, which a program reads from the same place, so that nothing
    else is said then. When say raises ReaderGone, the search ends, unless hits are written to a file: that becomes whole.
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
    is_table = config.output_format == "table"
    if is_table:
        found_by = _found_by(Mode(config.mode), opened.model_path, opened.path, opened.sidecar)
        say(f"{config.index_path}: {counted(len(opened), 'row')} of {opened.dim}; {found_by}")
        if plan.floor:
            say(plan.floor.line())
    matches: list[tuple[Match, ...]] = []
    with _hits_file(config.output_path) as write:
        for query, found in _each_found(opened, plan):
            matches.append(found)
            lines = _json_lines(query, found)
            write(lines)
            text = "\n" + hits_block(query.text, found) if is_table else "\n".join(lines)
            if not text:
                continue
            try:
                say(text)
            except ReaderGone:
                if config.output_path is None:
                    raise
                say = _to_nobody
    if said := opened.cut_queries.line("query", "queries"):
        log.warning("%s", said)
    return SearchResult(plan.queries, tuple(matches), config.output_path, opened.cut_queries)


def _each_found(opened: TextIndex, plan: SearchPlan) -> Iterator[tuple[Query, tuple[Match, ...]]]:
    """Every query with its hits. The first queries go a few at a time, so that there is soon something to read."""
    config, start, size = plan.config, 0, _QUERIES_AT_FIRST
    is_short = len(plan.queries) <= _QUERIES_AT_ONCE
    # At a terminal the hits themselves show how far it is.
    disable = is_short or (config.output_path is None and sys.stdout is not None and sys.stdout.isatty())
    with progress_bar(total=len(plan.queries), desc="search", unit="query", disable=disable, leave=False) as bar:
        while start < len(plan.queries):
            some = plan.queries[start : start + size]
            found = opened.search([query.text for query in some], config.k, effort=config.search_effort, mode=config.mode)
            check_searched(plan.floor, opened.queries_sha256)
            for query, matches in zip(some, found, strict=True):
                yield query, tuple(match for match in matches if plan.floor is None or match.score >= plan.floor.threshold)
            bar.update(len(some))
            start, size = start + size, min(2 * size, _QUERIES_AT_ONCE)


@contextmanager
def _hits_file(path: Path | None) -> Iterator[Callable[[Sequence[str]], None]]:
    """A function that appends lines to a new file at path, which is there once the block has ended; None = to nowhere."""
    if path is None:
        yield lambda lines: None
        return
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda lines: file.writelines(line + "\n" for line in lines)
        file.flush()


def _to_nobody(line: str) -> None:
    """Where lines go that nobody reads any more."""
