"""What the records themselves say against a run, before any model is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ebr.config import FinetuneConfig
from ebr.config.shared.objective import LOSSES, Need, reads_same_answer
from ebr.data.evaluation.leaks import LeakCheck
from ebr.data.text.counted import counted
from ebr.data.text.terminal_text import cut_text
from ebr.data.training.answers import ChainFigures
from ebr.data.training.duplicates import Fault, NearDuplicates, RecordFaults
from ebr.data.training.examples import Example
from ebr.training.doctor.report import Finding, Severity

_SMALL_SET = 100
_QUERY_COLUMNS = 40
_RARE, _COMMON, _MOST = 0.01, 0.05, 0.5
"""Shares from which a fault is worth a note, worse than it could be, and the end of a run."""
_MANY_LEAKED = 0.1


@dataclass(frozen=True)
class RecordFigures:
    """What was counted of the training records. idle: the share whose loss is zero from the start, and the row of the first."""

    faults: RecordFaults
    near: NearDuplicates
    chains: ChainFigures
    idle: tuple[float, int]
    leaks: LeakCheck | None


def judge_records(figures: RecordFigures, examples: Sequence[Example], config: FinetuneConfig) -> list[Finding]:
    """Findings about the records; examples: those that the rows of the figures count."""
    return [
        *_size(figures.faults, config),
        *_zero_loss(figures, examples, config),
        *_repeats(figures, examples, config),
        *_contradictions(figures.faults, examples, config),
        *_chains(figures.chains, config),
        *_leaks(figures, config),
    ]


def _graded(share: float, *, note: float = 0.0, warning: float = _RARE, critical: float = 2.0) -> Severity | None:
    """How bad a share is, of those that it exceeds; None = not worth a word."""
    if share >= critical:
        return Severity.CRITICAL
    if share >= warning:
        return Severity.WARNING
    return Severity.NOTE if share > note else None


def data_option(config: FinetuneConfig) -> str:
    """The option that names the training data, as this front end spells it."""
    return "sources" if config.sources is not None else config.spelling("data_path")


def _fate(config: FinetuneConfig) -> tuple[str, bool]:
    """What becomes of a negative that is a right answer, and whether that does harm."""
    if reads_same_answer(config):
        return "the loss hides such a negative, so its draw is lost", False
    if LOSSES[config.loss].scores is Need.ALWAYS:
        return "it counts as much as the teacher's score says", False
    return "it is trained as a wrong answer", True


def _worse(severity: Severity) -> Severity:
    return Severity.WARNING if severity is Severity.NOTE else Severity.CRITICAL


def _named(row: int, examples: Sequence[Example]) -> str:
    return repr(cut_text(examples[row].query, _QUERY_COLUMNS))


def _of(fault: Fault, n_all: int, examples: Sequence[Example]) -> str:
    """`12 (1.2 %; first: 'the query …')`."""
    assert fault.first is not None  # it was counted
    return f"{fault.count:,} ({percent(fault.count / max(1, n_all))}; first: {_named(fault.first, examples)})"


def percent(share: float) -> str:
    """A share for people: 12 %, 3.4 %, 0.02 %."""
    shown = 100 * share
    return f"{shown:.0f} %" if shown >= 10 or shown == 0 else f"{shown:.2g} %"


def _size(faults: RecordFaults, config: FinetuneConfig) -> Iterator[Finding]:
    if faults.n_records < _SMALL_SET:
        yield Finding(
            "few-records",
            Severity.WARNING,
            f"{counted(faults.n_records, 'record')} to train on",
            "so few say little about the task, are soon learnt by heart, and leave every figure about the result to chance",
            f"{data_option(config)}: give {_SMALL_SET} records at least, better thousands",
        )


def _zero_loss(figures: RecordFigures, examples: Sequence[Example], config: FinetuneConfig) -> Iterator[Finding]:
    share, first = figures.idle
    severity = _graded(share, note=_RARE, warning=_COMMON, critical=_MOST)
    if severity is None:
        return
    if not (reads_same_answer(config) and LOSSES[config.loss].in_batch):
        return
    faults, size, negatives = figures.faults, config.spelling("train_batch_size"), config.spelling("neg_nums")
    what = f"the loss of {percent(share)} of the records is zero from the start (first: {_named(first, examples)})"
    if config.train_batch_size == 1:
        name, why = "lonely-records", "a batch of one record has no other texts to tell the positive from"
        advice = f"{size} 2 or more, or give each record negatives ({negatives} 1 or more)"
    elif faults.distinct_records == 1:
        name, why = "identical-records", "every record is the same, so whatever stands beside the positive is right as well"
        advice = f"{data_option(config)}: give different records"
    elif faults.distinct_positives == 1:
        name, why = "one-positive", "every query has the same positive, so there is nothing to tell it from"
        advice = f"give records with other positives, or negatives ({negatives} 1 or more)"
    else:
        name, why = "everything-masked", "every candidate of their batch is a right answer to the query and hidden by the loss"
        advice = (
            f"{size}: more than {config.train_batch_size}, negatives in the records ({negatives} 1 or more), or more queries"
        )
    yield Finding(name, severity, what, why, advice)


def _repeats(figures: RecordFigures, examples: Sequence[Example], config: FinetuneConfig) -> Iterator[Finding]:
    faults, near = figures.faults, figures.near
    severity = _graded(faults.repeated.count / faults.n_records)
    if severity and faults.distinct_records > 1:
        yield Finding(
            "duplicate-records",
            severity,
            f"records that stand there twice: {_of(faults.repeated, faults.n_records, examples)}",
            "they count double, and with validation_split they say nothing new",
            f"remove them from {data_option(config)}",
        )
    if faults.to_join.count / faults.n_records >= _RARE:
        yield Finding(
            "records-to-join",
            Severity.NOTE,
            "records of the query and the positives of earlier ones, with other negatives: "
            f"{_of(faults.to_join, faults.n_records, examples)}",
            "in one batch they are no negatives for each other, and each pass shows the same pair several times",
            f"join their negatives into one record, and draw more of them with {config.spelling('neg_nums')}",
        )
    share = near.count / max(1, near.n_compared)
    severity = _graded(share, note=_RARE, warning=_COMMON)
    if severity and near.first:
        one, other = near.first
        sample = f" of {near.n_compared:,} drawn" if near.n_compared < faults.distinct_records else ""
        yield Finding(
            "near-duplicate-records",
            severity,
            f"records nearly like another: {near.count:,}{sample} ({percent(share)}; first: {_named(one, examples)}, "
            f"like {_named(other, examples)})",
            "in one batch they are each other's negatives although each is right for both; held out, they flatter the loss",
            f"remove them from {data_option(config)}, or keep one positive for both",
        )


def _contradictions(faults: RecordFaults, examples: Sequence[Example], config: FinetuneConfig) -> Iterator[Finding]:
    data, negatives = data_option(config), config.spelling("neg_nums")
    hidden, harms = _fate(config)
    found = (
        (
            "contradicting-records",
            faults.contradicting,
            faults.n_records,
            "records that give one text as positive and as negative",
            f"one of the two is wrong; {hidden}",
            f"mend the records in {data}",
        ),
        (
            "negative-is-positive",
            faults.answers_elsewhere,
            faults.n_negatives,
            "negatives that another record of the same query gives as its positive",
            f"they are right answers; {hidden}",
            f"remove them from {data}, or mine negatives anew (ebr mine); {negatives} 0 does without",
        ),
        (
            "query-is-positive",
            faults.query_is_positive,
            faults.n_records,
            "records whose query is its own positive",
            "a text is like itself without training; nothing is learnt from it but dropout's noise",
            f"remove them from {data}",
        ),
        (
            "query-is-negative",
            faults.query_is_negative,
            faults.n_records,
            "records whose query is its own negative",
            f"a text cannot be unlike itself; {hidden}",
            f"remove that negative in {data}",
        ),
    )
    for name, fault, n_all, what, why, advice in found:
        if severity := _graded(fault.count / max(1, n_all)):
            if harms and name != "query-is-positive":
                severity = _worse(severity)
            yield Finding(name, severity, f"{what}: {_of(fault, n_all, examples)}", why, advice)


def _chains(chains: ChainFigures, config: FinetuneConfig) -> Iterator[Finding]:
    """Where the option same_answer says something else than the records."""
    if not reads_same_answer(config):
        return
    if config.same_answer == "text" and chains.shows == "chain" and chains.meeting >= _COMMON:
        yield Finding(
            "answers-unseen",
            Severity.WARNING,
            f"{percent(chains.meeting)} of the queries meet a right answer of their chain in the batch, and take it for wrong",
            f"the records join texts of one kind into {counted(chains.n_chains, 'chain')}: what records lead to has the same "
            "answer, though no record of the query says so",
            "same_answer: auto or chain",
        )
    if config.same_answer == "chain" and chains.shows == "text" and chains.meeting >= _RARE:
        largest, both_roles = (percent(count / max(1, chains.n_texts)) for count in (chains.largest, chains.both_roles))
        yield Finding(
            "chains-lead-astray",
            Severity.WARNING,
            f"the largest of {counted(chains.n_chains, 'chain')} holds {largest} of the texts, and {both_roles} of the texts "
            "are query here and positive there",
            "a document that answers two different questions joins them, and each is then shown the other's answers as right",
            "same_answer: text, unless whatever answers one question of a chain answers all of them",
        )


def _leaks(figures: RecordFigures, config: FinetuneConfig) -> Iterator[Finding]:
    leaks = figures.leaks
    if leaks is None or not leaks.is_leak:
        return
    n_seen = leaks.queries + leaks.near_queries
    share = n_seen / leaks.n_queries
    yield Finding(
        "evaluation-leak",
        Severity.CRITICAL if share >= _MANY_LEAKED else Severity.WARNING,
        f"evaluation queries that stand in the training records: {n_seen:,} of {leaks.n_queries:,} ({percent(share)}), "
        f"{leaks.near_queries:,} of them nearly, {leaks.answered:,} with an answer; first: "
        f"{cut_text(leaks.examples[0].text, _QUERY_COLUMNS)!r}",
        "what was learnt by heart proves nothing: nDCG@10 will be too good",
        f"remove those texts from {data_option(config)}, or give another {config.spelling('eval_dataset')}",
    )
