"""Evaluation sets on disk: queries, documents, and which document answers which query.

Two public forms above all. BEIR (Thakur et al. 2021): corpus.jsonl, queries.jsonl and tab-separated qrels with a header. TREC:
the same two JSONL files with four-column qrels as trec_eval takes them. What others write beside them is read too, see
ebr.data.records.texts and ebr.data.evaluation.qrels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.qrels import QRELS_FILES, Qrels, find_qrels, read_qrels
from ebr.data.faults import Faults
from ebr.data.records.documents import Document
from ebr.data.records.texts import DOCUMENTS, QUERIES, Keys, find_records, read_text_records
from ebr.data.text.blank import is_blank
from ebr.data.text.counted import counted
from ebr.errors import DataError

_FILES = ("corpus.jsonl", "queries.jsonl", *QRELS_FILES)
_FILES_SHOWN = 10
_SAY_NOTHING = {"eval", "test", "dev", "valid"}


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
    found_in: tuple[str, ...] = ()
    """The files that it was read from, below its folder, with the keys there that BEIR calls otherwise."""

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
        queries = counted(n_own, "query", "queries")
        own = f"the document under the query's own id is left out of the ranking of {queries}, as nobody judged it there"
        files = f"read from {', '.join(self.found_in)}"
        found = {own: n_own, files: not set(self.found_in) <= set(_FILES)}
        return [text for text, holds in found.items() if holds]


def read_evaluation_set(folder: Path) -> EvaluationSet:
    """Read the evaluation set in `folder`: its corpus, its queries, and which document answers which query.

    BEIR's and TREC's names, or others' of ebr.data.records.texts and qrels.py. A document's text is its title, a space
    and its text. Qrels are columns or records by their content, whatever the file is called.
    Raises DataError when a file is missing, when lines are wrong (one error lists them, the first 20 in full), or when nothing
    is left to evaluate.
    """
    corpus_file, queries_file, qrels_file = _find_files(folder)
    faults = Faults()
    documents, corpus_keys = _read_documents(corpus_file, faults)
    queries, query_keys = _read_queries(queries_file, faults)
    qrels = read_qrels(qrels_file, queries.keys(), faults)
    faults.raise_if_any()
    if not documents:
        raise DataError(f"{corpus_file}: holds no documents; write one JSON object a line with '_id' and 'text'")
    judged = {query_id: qrels[query_id] for query_id in queries if _has_positive(qrels.get(query_id, {}))}
    if not judged:
        ids = _of_each(qrels_file, qrels, queries_file, queries)
        raise DataError(
            f"{qrels_file}: no query of {queries_file.name} has a positive grade; check that the query ids agree{ids}"
        )
    judged_ids = {doc_id: None for grades in judged.values() for doc_id in grades}
    missing = judged_ids.keys() - documents.keys()
    if len(missing) == len(judged_ids):
        ids = _of_each(qrels_file, judged_ids, corpus_file, documents)
        raise DataError(f"{qrels_file}: no judged document is in {corpus_file.name}; check that the document ids agree{ids}")
    return EvaluationSet(
        name=_name_of(folder.resolve()),
        query_ids=list(judged),
        queries=[queries[query_id] for query_id in judged],
        doc_ids=list(documents),
        documents=list(documents.values()),
        qrels=judged,
        n_unjudged_queries=len(queries) - len(judged),
        n_unknown_queries=len(qrels.keys() - queries.keys()),
        n_missing_documents=len(missing),
        found_in=(
            f"{corpus_file.name}{corpus_keys}",
            f"{queries_file.name}{query_keys}",
            str(qrels_file.relative_to(folder)),
        ),
    )


def _of_each(file: Path, ids: Collection[str], other: Path, others: Collection[str]) -> str:
    """An id of each of two files, to see in what they differ."""
    if not ids or not others:
        return ""
    return f": {file.name} begins with {next(iter(ids))!r}, {other.name} with {next(iter(others))!r}"


def _name_of(folder: Path) -> str:
    """What people call the set: its folder, with the one above where the name says nothing by itself."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.lower() in _SAY_NOTHING else folder.name


def evaluation_files(folder: Path) -> list[Path]:
    """The three files that read_evaluation_set reads. Raises DataError when one is missing."""
    return list(_find_files(folder))


def _find_files(folder: Path) -> tuple[Path, Path, Path]:
    """The corpus, the queries and the judgements. Raises DataError when one is missing."""
    corpus, queries, qrels = find_records(folder, "corpus"), find_records(folder, "queries"), find_qrels(folder)
    if corpus and queries and qrels:
        return corpus, queries, qrels
    named = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels": qrels}
    missing = ", ".join(name for name, found in named.items() if found is None)
    state = f"it lacks {missing}" if folder.is_dir() else "there is no such folder"
    there = sorted(str(path.relative_to(folder)) for path in (*folder.glob("*"), *folder.glob("qrels/*")))
    holds = f"; it holds {', '.join(there[:_FILES_SHOWN])}{' and more' * (len(there) > _FILES_SHOWN)}" if there else ""
    expected = f"corpus.jsonl, queries.jsonl and one of {', '.join(QRELS_FILES)}"
    raise DataError(f"{folder}: {state}; an evaluation set is a folder with {expected}{holds}")


def _read_documents(file: Path, faults: Faults) -> tuple[dict[str, str], str]:
    """Text by id; and the keys of the records that BEIR calls otherwise, to be said."""
    documents: dict[str, str] = {}
    keys: set[Keys] = set()
    for record in read_text_records(file, DOCUMENTS, faults, with_ids=True):
        whole = Document(record.title, record.text).whole
        documents[record.id] = "" if is_blank(whole) else whole
        keys.add(record.keys)
    return documents, _said(keys)


def _read_queries(file: Path, faults: Faults) -> tuple[dict[str, str], str]:
    """The same of queries."""
    queries: dict[str, str] = {}
    keys: set[Keys] = set()
    for record in read_text_records(file, QUERIES, faults, with_ids=True):
        if is_blank(record.text):
            faults.add(file, record.where, f"{record.keys.text!r} must be a string that is not empty")
        queries[record.id] = record.text.strip()
        keys.add(record.keys)
    return queries, _said(keys)


def _said(keys: Collection[Keys]) -> str:
    unusual = sorted({key for one in keys for key in one.unusual()})
    return f" ({', '.join(unusual)})" if unusual else ""


def _has_positive(grades: dict[str, int]) -> bool:
    return any(grade > 0 for grade in grades.values())
