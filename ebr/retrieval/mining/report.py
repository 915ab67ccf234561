"""What mining did, in numbers that add up and in examples to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ebr.data.result_tables import Table
from ebr.data.text.terminal_text import cut_text, one_line
from ebr.data.training.files import Negative, Record
from ebr.retrieval.mining.rules import LeftOut, Mined, Reason

_LEFT_OUT_SHOWN = 5
_ROWS_SHOWN = 8
_REASONS = {
    Reason.QUERY: "is the query, or nearly",
    Reason.POSITIVE: "is a positive of the query",
    Reason.NEAR_POSITIVE: "nearly a positive of the query",
    Reason.SCORE: "scores too near the positive",
    Reason.ANNOTATED: "is a negative of the record already",
    Reason.SKIPPED: "among the first skip_top",
    Reason.SURPLUS: "more than num_negatives",
}
# A positive of the query itself tells a reader nothing; the two last are no suspicion.
_SUSPICIOUS = {Reason.QUERY, Reason.NEAR_POSITIVE, Reason.SCORE}


@dataclass(frozen=True)
class MiningCounts:
    """How many candidates were kept, and why the others went; n_looked_at = n_mined + the sum of left_out."""

    n_records: int
    n_looked_at: int
    n_mined: int
    left_out: dict[Reason, int]
    """Every reason, in the order in which they are tried."""
    records_by_mined: dict[int, int]
    """How many records got 0, 1, … new negatives; up to num_negatives, none left out."""
    n_kept: int
    """Negatives that the records had before."""
    n_contradictions: int
    """Negatives of before that are positives of their query, and were not kept."""
    mean_positive: float
    """Mean cosine of the records' positives with their queries."""
    mean_mined: float
    """The same of the new negatives; nan without any."""

    def candidates(self) -> Table:
        """What became of the candidates: candidates (in words), count, share of all that were looked at."""
        return _shares("candidates", self._candidates(), self.n_looked_at)

    def records(self) -> Table:
        """How many records got how many new negatives, in ranges: records (in words), count, share."""
        return _shares("records", {**_few_rows(self.records_by_mined), "all records": self.n_records}, self.n_records)

    def _candidates(self) -> dict[str, int]:
        reasons = {_REASONS[reason]: count for reason, count in self.left_out.items()}
        return {"kept as negatives": self.n_mined, **reasons, "all that were looked at": self.n_looked_at}

    def table(self) -> str:
        """What became of the candidates, and how many records got how many negatives (in ranges), as aligned text."""
        records, candidates = _few_rows(self.records_by_mined), self._candidates()
        width = max(map(len, [*candidates, *records, "candidates"]))
        columns = max(len("count"), len(f"{self.n_looked_at:,}"))  # each record looked at one at least
        return "\n".join(
            [
                *_rows("candidates", candidates, self.n_looked_at, width, columns),
                "",
                *_rows("records", {**records, "all records": self.n_records}, self.n_records, width, columns),
                "",
                self.means(),
            ]
        )

    def means(self) -> str:
        """How near positives and new negatives are to their queries, on one line."""
        mean_mined = f"{self.mean_mined:.4f}" if self.n_mined else "–"
        return f"mean cosine with the query: positives {self.mean_positive:.4f}, new negatives {mean_mined}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, by the names of the fields; null for a mean of nothing."""
        return {
            **vars(self),
            "left_out": {reason.value: count for reason, count in self.left_out.items()},
            "records_by_mined": {str(n): count for n, count in self.records_by_mined.items()},
            "mean_mined": self.mean_mined if self.n_mined else None,
        }


def _shares(head: str, counts: dict[str, int], total: int) -> Table:
    shares = [count / total for count in counts.values()]
    return Table({head: list(counts), "count": list(counts.values()), "share": shares}, {"count": ",", "share": ".1%"})


def _few_rows(by_mined: dict[int, int]) -> dict[str, int]:
    """Records by how many negatives they got: of many numbers none and the most alone, the others in ranges."""
    most = max(by_mined)
    # Where each row begins: 0, then about equal steps, the last one the most itself.
    starts = range(most + 1) if most < _ROWS_SHOWN else [0, *np.linspace(1, most, _ROWS_SHOWN - 1).astype(int).tolist()]
    rows = {}
    for start, after in pairwise([*starts, most + 1]):
        numbers = f"{start}" if after == start + 1 else f"{start}–{after - 1}"
        rows[f"{numbers} new negative{'s' * (numbers != '1')}"] = sum(by_mined[n] for n in range(start, after))
    return rows


def _rows(head: str, counts: dict[str, int], total: int, width: int, columns: int) -> list[str]:
    """A head and a row for each count. width: of the names; columns: of the counts."""
    title = f"{head:<{width}}  {'count':>{columns}}  {'share':>6}"
    return [title, *(f"{what:<{width}}  {count:>{columns},}  {count / total:>6.1%}" for what, count in counts.items())]


class Tally:
    """Adds up what the records got, one after another."""

    def __init__(self, num_negatives: int) -> None:
        self._num_negatives = num_negatives
        self._left_out: Counter[Reason] = Counter()
        self._by_mined: Counter[int] = Counter()
        self._n_kept = self._n_contradictions = self._n_positives = 0
        self._positives = self._mined = 0.0

    def add(self, mined: Mined) -> None:
        """Count one record."""
        self._left_out.update(one.reason for one in mined.left_out)
        self._by_mined[len(mined.mined)] += 1
        self._n_kept += len(mined.kept)
        self._n_contradictions += len(mined.contradictions)
        self._n_positives += len(mined.positive_scores)
        self._positives += sum(mined.positive_scores)
        self._mined += sum(one.score for one in mined.mined)

    def counts(self) -> MiningCounts:
        """What was added so far. Raises ZeroDivisionError before the first record."""
        n_mined = sum(n * records for n, records in self._by_mined.items())
        return MiningCounts(
            n_records=sum(self._by_mined.values()),
            n_looked_at=n_mined + sum(self._left_out.values()),
            n_mined=n_mined,
            left_out={reason: self._left_out[reason] for reason in Reason},
            records_by_mined={n: self._by_mined[n] for n in range(self._num_negatives + 1)},
            n_kept=self._n_kept,
            n_contradictions=self._n_contradictions,
            mean_positive=self._positives / self._n_positives,
            mean_mined=self._mined / n_mined if n_mined else float("nan"),
        )


# ---------------------------------------------------------------- examples


def chosen_records(n_records: int, n_examples: int, seed: int) -> list[int]:
    """Which records are shown, in their order; all of them when there are no more."""
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(n_records, min(n_examples, n_records), replace=False).tolist())


def example_lines(record: Record, mined: Mined, *, columns: int | None = None) -> list[str]:
    """One record to read: the query, its positives, its negatives, what was left out as a positive in disguise.

    columns: cut each text to so many columns of a terminal; None = whole, on one line.
    """
    lines = [f"query     {_line(record.query, columns)}"]
    for text, score in zip(record.positives, mined.positive_scores, strict=True):
        lines.append(f"positive  {score:.4f}            {_line(text, columns)}")
    lines += [_negative_line("had", one, columns) for one in mined.kept]
    lines += [_negative_line("new", one, columns) for one in mined.mined]
    if not mined.mined:
        lines.append("no new negative")
    suspects = [one for one in mined.left_out if one.reason in _SUSPICIOUS]
    lines += [_left_out_line(one, columns) for one in suspects[:_LEFT_OUT_SHOWN]]
    if len(suspects) > _LEFT_OUT_SHOWN:
        lines.append(f"… and {len(suspects) - _LEFT_OUT_SHOWN} more left out for such reasons")
    return lines


def _negative_line(what: str, one: Negative, columns: int | None) -> str:
    rank = f"rank {one.rank}" if one.rank is not None else ""
    return f"{what:<8}  {one.score:.4f}  {rank:<8}  {_line(one.text, columns)}"


def _left_out_line(one: LeftOut, columns: int | None) -> str:
    return f"left out  {one.score:.4f}  {f'rank {one.rank}':<8}  {_line(one.text, columns)} ({_REASONS[one.reason]})"


def examples_markdown(examples: Sequence[tuple[int, Record, Mined]], title: str) -> str:
    """A page of examples with the texts whole; the number of a record counts from 1."""
    blocks = [f"# {title}", "Cosines with the query; ranks among the candidates. `had`: the record's own before."]
    for row, record, mined in examples:
        limit = f"A candidate above {mined.limit:.4f} was left out."
        blocks += [f"## Record {row + 1:,}", limit, "\n".join(f"    {line}" for line in example_lines(record, mined))]
    return "\n\n".join(blocks) + "\n"


def _line(text: str, columns: int | None) -> str:
    return one_line(text) if columns is None else cut_text(text, columns)
