"""TREC run files: rankings in the six columns that trec_eval reads, `query Q0 document rank score tag`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.files.write import write_aside
from ebr.errors import DataError


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
