"""TREC run files: rankings in the six columns that trec_eval reads, `query Q0 document rank score tag`."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.files.write import write_aside
from ebr.errors import DataError

_COLUMNS = ("query", "Q0", "document", "rank", "score", "tag")


def write_run(
    path: Path,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    rows: npt.NDArray[np.int64],
    similarities: npt.NDArray[np.float32],
    tag: str,
) -> None:
    """Write the rankings of Q queries whole or not at all.

    rows: (Q, k) rows of doc_ids, best first, -1 where there is none. similarities: (Q, k) their scores, not rising. Scores are
    written with as many digits as a float32 has, so reading gives them back exactly. trec_eval orders by score and then by
    document id, descending, whatever the rank column says: equal scores stand in that order here too, so both agree.
    Raises DataError when an id or the tag cannot stand in a file whose columns are split at white space, or a score is not
    finite; ValueError when the shapes disagree.
    """
    if not rows.shape == similarities.shape == (len(query_ids), rows.shape[-1]):
        raise ValueError(f"{len(query_ids)} queries need as many rows and scores, not {rows.shape} and {similarities.shape}")
    _refuse_white_space(path, "tag", [tag])
    check_run_ids(path, query_ids, doc_ids)
    if not np.isfinite(similarities[rows >= 0]).all():
        raise DataError(f"{path}: a score is nan or infinite, which trec_eval cannot order; check the model that gave it")
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for query_id, query_rows, scores in zip(query_ids, rows.tolist(), similarities, strict=True):
            found = [(score, doc_ids[row]) for row, score in zip(query_rows, scores, strict=True) if row >= 0]
            found.sort(reverse=True)
            file.writelines(
                f"{query_id} Q0 {doc_id} {rank} {_digits(score)} {tag}\n" for rank, (score, doc_id) in enumerate(found, 1)
            )


def check_run_ids(path: Path, query_ids: Sequence[str], doc_ids: Sequence[str]) -> None:
    """Raise DataError, which names path, for an id that cannot stand in a run file: it is empty or holds white space."""
    _refuse_white_space(path, "query id", query_ids)
    _refuse_white_space(path, "document id", doc_ids)


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Query id → document id → score, in the order of the file; ranks and tags are read past, as trec_eval does.

    Raises DataError with the line when a line has not six columns, a score is no finite number, or a query names a document
    twice.
    """
    run: dict[str, dict[str, float]] = {}
    for line, columns in _lines(path):
        if len(columns) != len(_COLUMNS):
            raise DataError(f"{path}:{line}: expected six columns, {' '.join(_COLUMNS)}, but found {len(columns)}")
        query_id, _, doc_id, _, score, _ = columns
        ranking = run.setdefault(query_id, {})
        if doc_id in ranking:
            raise DataError(f"{path}:{line}: query '{query_id}' ranks document '{doc_id}' twice; keep one of the lines")
        ranking[doc_id] = _finite(score, path, line)
    return run


def _refuse_white_space(path: Path, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if name.encode().split() != [name.encode()]:
            raise DataError(
                f"{path}: the {kind} '{name}' is empty or has white space in it, which splits the columns of a run file; "
                f"rename it, or go without run files"
            )


def _digits(score: np.float32) -> str:
    # The shortest digits that are this float32 and no other, as a plain number: str of a numpy scalar.
    return str(score)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, columns) of each line that is not blank; numbers start at 1."""
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                # Bytes split at ASCII white space alone, as in trec_eval: an id may hold a U+3000.
                columns = [column.decode() for column in raw.removeprefix(codecs.BOM_UTF8 if line == 1 else b"").split()]
                if columns:
                    yield line, columns
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{line}: not UTF-8: {error.reason}; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a TREC run file") from None


def _finite(score: str, path: Path, line: int) -> float:
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}:{line}: the score '{score}' is not a finite number")
    return value
