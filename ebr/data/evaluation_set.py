"""Evaluation sets on disk: queries, documents, and which document answers which query.

Two public forms are read. BEIR (Thakur et al. 2021): corpus.jsonl, queries.jsonl and tab-separated qrels with a header. TREC:
the same two JSONL files with four-column qrels as trec_eval takes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.blank import is_blank
from ebr.errors import DataError

QRELS_FILES = ("qrels.tsv", "qrels/test.tsv", "qrels.trec", "qrels.txt")
_BEIR_HEADER = ["query-id", "corpus-id", "score"]
_FAULTS_SHOWN = 20
_SAY_NOTHING = {"eval", "test", "dev", "valid"}
_GRADE = re.compile(r"[+-]?[0-9]+")
_HIGHEST_GRADE = 1000
# A NUL ends an id in trec_eval, half a surrogate ends the process.
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with at least one relevant document, and the documents to search.

    query_ids and queries run in parallel, as do doc_ids and documents. qrels: query id → document id → grade; it has exactly
    the queries of query_ids, in their order, and each has a positive grade. Three counts say what the files held beyond that:
    queries without a positive grade (dropped), queries of the qrels whose text is absent (dropped), and judged documents that
    the corpus lacks (kept in qrels, as trec_eval does, so that they cost recall).
    """

    name: str
    query_ids: list[str]
    queries: list[str]
    doc_ids: list[str]
    documents: list[str]
    qrels: Qrels
    n_unjudged_queries: int
    n_unknown_queries: int
    n_missing_documents: int

    def own_rows(self) -> npt.NDArray[np.int64]:
        """(Q,) row of the document under each query's own id, which its ranking leaves out; -1 where there is none.

        What stands in the corpus under the id of a query is the query itself (ArguAna, Quora), and benchmarks rank the others
        alone (BEIR's ignore_identical_ids). Where it is judged for that query, it is a document like any other.
        """
        rows = np.full(len(self.query_ids), -1, np.int64)
        query_row = {query_id: row for row, query_id in enumerate(self.query_ids) if query_id not in self.qrels[query_id]}
        for row, doc_id in enumerate(self.doc_ids):
            if doc_id in query_row:
                rows[query_row[doc_id]] = row
        return rows

    @property
    def n_own_documents(self) -> int:
        """For how many queries own_rows leaves a document out."""
        return int((self.own_rows() >= 0).sum())

    def notes(self) -> list[str]:
        """What is done with this set that whoever gave it may not expect, a line each."""
        n_own = self.n_own_documents
        queries = "1 query" if n_own == 1 else f"{n_own:,} queries"
        own = f"the document under the query's own id is left out of the ranking of {queries}, as nobody judged it for them"
        return [own] if n_own else []


def read_evaluation_set(folder: Path) -> EvaluationSet:
    """Read the evaluation set in `folder`: corpus.jsonl, queries.jsonl and the first of QRELS_FILES that exists.

    A document's text is its title, a space and its text. Qrels are BEIR or TREC by their content, whatever the file is called.
    Raises DataError when a file is missing, when lines are wrong (one error lists them, the first 20 in full), or when nothing
    is left to evaluate.
    """
    corpus_file, queries_file, qrels_file = _find_files(folder)
    faults = _Faults()
    documents = _read_documents(corpus_file, faults)
    queries = _read_queries(queries_file, faults)
    qrels = _read_qrels(qrels_file, faults)
    faults.raise_if_any()
    if not documents:
        raise DataError(f"{corpus_file}: holds no documents; write one JSON object a line with '_id' and 'text'")
    judged = {query_id: qrels[query_id] for query_id in queries if _has_positive(qrels.get(query_id, {}))}
    if not judged:
        raise DataError(f"{qrels_file}: no query of {queries_file.name} has a positive grade; check that the query ids agree")
    return EvaluationSet(
        name=_name_of(folder.resolve()),
        query_ids=list(judged),
        queries=[queries[query_id] for query_id in judged],
        doc_ids=list(documents),
        documents=list(documents.values()),
        qrels=judged,
        n_unjudged_queries=len(queries) - len(judged),
        n_unknown_queries=len(qrels.keys() - queries.keys()),
        n_missing_documents=len({doc_id for grades in judged.values() for doc_id in grades} - documents.keys()),
    )


def _name_of(folder: Path) -> str:
    """What people call the set: its folder, with the one above where the name says nothing by itself."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.lower() in _SAY_NOTHING else folder.name


class _Faults:
    """Wrong lines, gathered so that a file is mended in one go; only the first few are kept as text."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._n_found = 0

    def add(self, path: Path, line: int, problem: str) -> None:
        self._n_found += 1
        if len(self._shown) < _FAULTS_SHOWN:
            self._shown.append(f"{path}:{line}: {problem}")

    def raise_if_any(self) -> None:
        n_hidden = self._n_found - len(self._shown)
        if self._shown:
            raise DataError("\n".join(self._shown) + (f"\nand {n_hidden} more" if n_hidden else ""))


def evaluation_files(folder: Path) -> list[Path]:
    """The three files that read_evaluation_set reads. Raises DataError when one is missing."""
    return list(_find_files(folder))


def _find_files(folder: Path) -> tuple[Path, Path, Path]:
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    qrels = next((folder / name for name in QRELS_FILES if (folder / name).is_file()), None)
    missing = [path.name for path in (corpus, queries) if not path.is_file()]
    if qrels is None:
        missing.append("qrels")
    if qrels is None or missing:
        state = f"it lacks {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
        expected = f"corpus.jsonl, queries.jsonl and one of {', '.join(QRELS_FILES)}"
        raise DataError(f"{folder}: {state}; an evaluation set is a folder with {expected}")
    return corpus, queries, qrels


def _read_documents(path: Path, faults: _Faults) -> dict[str, str]:
    documents: dict[str, str] = {}
    for line, doc_id, record in _identified_records(path, faults):
        # BEIR's own sets hold documents with an empty text or a null title; a missing text is a slip.
        title, text = record.get("title") or "", record.get("text")
        if isinstance(title, str) and isinstance(text, str):
            whole = f"{title} {text}".strip()
            documents[doc_id] = "" if is_blank(whole) else whole
        else:
            faults.add(path, line, "'text' must be a string, and 'title' too where it is given")
    return documents


def _read_queries(path: Path, faults: _Faults) -> dict[str, str]:
    queries: dict[str, str] = {}
    for line, query_id, record in _identified_records(path, faults):
        text = record.get("text")
        if isinstance(text, str) and not is_blank(text):
            queries[query_id] = text.strip()
        else:
            faults.add(path, line, "'text' must be a string that is not empty")
    return queries


def _read_qrels(path: Path, faults: _Faults) -> Qrels:
    qrels: Qrels = {}
    is_trec: bool | None = None
    for line, text in _lines(path, faults):
        if is_trec is None:
            is_trec = _looks_like_trec(text)
            if text.strip().split("\t") == _BEIR_HEADER:
                continue
        judgement = _parse_trec(text) if is_trec else _parse_beir(text)
        if isinstance(judgement, str):
            faults.add(path, line, judgement)
            continue
        query_id, doc_id, grade = judgement
        if doc_id in qrels.setdefault(query_id, {}):
            faults.add(path, line, f"query '{query_id}' and document '{doc_id}' are judged twice")
        qrels[query_id][doc_id] = grade
    return qrels


def _looks_like_trec(first_line: str) -> bool:
    # Ids of the BEIR form may hold spaces, hence three columns by tabs win over four by white space.
    return len(first_line.split("\t")) != 3 and len(first_line.split()) == 4


def _parse_beir(text: str) -> tuple[str, str, int] | str:
    columns = [column.strip() for column in text.split("\t")]
    if len(columns) != 3 or not all(columns):
        return "expected three columns separated by tabs: query-id, corpus-id, score"
    return _judgement(columns[0], columns[1], columns[2])


def _parse_trec(text: str) -> tuple[str, str, int] | str:
    columns = text.split()
    if len(columns) != 4:
        return "expected four columns separated by white space: query, iteration, document, grade"
    return _judgement(columns[0], columns[2], columns[3])


def _judgement(query_id: str, doc_id: str, grade: str) -> tuple[str, str, int] | str:
    """One judgement, or what is wrong with it."""
    if not _GRADE.fullmatch(grade):
        return f"the grade '{grade}' is not a whole number"
    if abs(int(grade)) > _HIGHEST_GRADE:
        return f"the grade {grade} lies beyond ±{_HIGHEST_GRADE}; trec_eval counts wrong with such"
    return query_id, doc_id, int(grade)


def _identified_records(path: Path, faults: _Faults) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Yield (line, id, record) of each JSON object whose '_id' is usable and new."""
    line_of: dict[str, int] = {}
    for line, text in _lines(path, faults):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            faults.add(path, line, f"not JSON: {error}")
            continue
        record = record if isinstance(record, dict) else {}
        raw_id = record.get("_id")
        record_id = str(raw_id) if isinstance(raw_id, str | int) and not isinstance(raw_id, bool) else ""
        broken = next((name for name in ("_id", "title", "text") if _UNUSABLE.search(str(record.get(name)))), None)
        if broken:
            faults.add(path, line, f"{broken!r} holds a NUL or half a character (a lone \\ud800–\\udfff escape); repair it")
        elif not record_id:
            faults.add(path, line, "expected a JSON object with an '_id' that is not empty")
        elif record_id in line_of:
            faults.add(path, line, f"the '_id' '{record_id}' was used on line {line_of[record_id]}; every id must be unique")
        else:
            line_of[record_id] = line
            yield line, record_id, record


def _lines(path: Path, faults: _Faults) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not blank; numbers start at 1."""
    # Bytes, because they split on \n alone: U+2028 and its kin occur inside texts. It also pins bad UTF-8 to its line.
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                faults.add(path, line, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            if text.strip():
                yield line, text.rstrip("\r\n")


def _has_positive(grades: dict[str, int]) -> bool:
    return any(grade > 0 for grade in grades.values())
