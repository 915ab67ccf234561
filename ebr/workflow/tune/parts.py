"""The records in three parts that share no text: to train on, to choose on, and to prove on what was chosen."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebr.config import TuneConfig
from ebr.data.evaluation.corpus import find_corpus, read_corpus
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.files.write import write_folder_aside
from ebr.data.records.documents import Document
from ebr.data.text.counted import counted
from ebr.data.text.normal_form import normal_form
from ebr.data.training.answers import SameAnswer, chain_of_each, count_chains, find_answers
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.split import connected_groups, split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError

Item = TypeVar("Item")
LEAST_QUERIES = 30
"""With fewer to choose on, chance alone would choose."""
ENOUGH_QUERIES = 150
"""To choose on, where there are so many: a gain of 0.02 nDCG@10 is about two standard errors there. A slow machine leaves out
documents, and of the queries only what is beyond."""
ENOUGH_GROUPS = 10
"""To choose on, of records that share answers: their queries gain or lose together."""
_USUAL_SHARE, _LARGEST_SHARE = 0.15, 1 / 3
MOST_QUERIES = 500
MOST_ANSWERS = 20
"""Of a chain, that are searched."""
MOST_DISTRACTORS = 1000
"""Texts that are searched beside the answers: they are embedded for every trial."""
MOST_CANDIDATES = 5000
"""Texts of corpora that negatives are looked for among, beside the passages of the training part."""
_TRAIN, _CORPUS, _CHOOSE, _TEST = "train.jsonl", "corpus.jsonl", "choose", "test"
_REST, _REST_CORPUS = "rest.jsonl", "rest_corpus.jsonl"


@dataclass(frozen=True)
class Split:
    """The records of a tuning, in parts. test: empty where an evaluation folder was given. rest: all but those of the test
    part, and only what stands there is taken out of them.

    same_answer: by what texts count as one answer, see ebr.data.training.answers; the recipes of a tuning mask by it, and the
    parts are judged by it. seen: queries that were chosen on before, see with_others_to_choose_on.
    """

    files: tuple[Path, ...]
    train: list[Example]
    choose: list[Example]
    test: list[Example]
    rest: list[Example]
    texts: TextTable
    same_answer: SameAnswer
    seen: frozenset[str] = frozenset()

    def with_others_to_choose_on(self, seed: int) -> Split | None:
        """The same records, with about as many others to choose on that never were; None where there are none such."""
        seen = self.seen | {one.query for one in self.choose}
        rng = np.random.default_rng((seed, len(seen)))
        try:
            train, choose = split_validation(self.rest, len(self.choose) / len(self.rest), rng, self.texts, seen=seen)
        except DataError:
            return None
        n_queries, n_now = (len({one.query for one in part}) for part in (choose, self.choose))
        is_alike = n_queries >= max(LEAST_QUERIES, n_now / 2) and len(choose) <= 1.5 * len(self.choose)
        return replace(self, train=train, choose=choose, seen=seen) if is_alike else None

    @property
    def growth(self) -> float:
        """Records that are trained on in the end, for one of the training part."""
        return len(self.rest) / len(self.train)

    @property
    def n_pairs(self) -> int:
        """Of the training part: a record with several positives is drawn with one at a time."""
        return sum(len(one.positives) for one in self.train)

    def lines(self) -> list[str]:
        """How many records there are of each, for people."""
        lines = [
            f"train   {counted(len(self.train), 'record')}, of {counted(len(self.files), 'file')}",
            f"choose  {counted(len(self.choose), 'record')} to compare recipes on, which learn from the others",
        ]
        return [*lines, f"test    {counted(len(self.test), 'record')} that nothing but the proof sees"] if self.test else lines


@dataclass(frozen=True)
class Parts:
    """Where the parts of a split lie. corpus: texts that negatives are looked for among, those of what is trained on first."""

    train: Path
    corpus: Path
    choose: Path
    test: Path

    def with_what_was_chosen_on(self) -> Parts:
        """The same, to train on all records but those of the test part."""
        return replace(self, train=self.train.with_name(_REST), corpus=self.corpus.with_name(_REST_CORPUS))


def split_records(config: TuneConfig) -> Split:
    """Read the records and split them once. Raises DataError for records that are wrong, or too few to choose on."""
    files = find_training_files(config.data_path)
    examples = read_examples(files)
    texts = TextTable.of(examples)
    rng = np.random.default_rng(config.seed)
    groups = connected_groups(texts.records(examples))
    if len(groups) < 3:
        raise DataError(
            f"{config.data_path}: the {len(examples):,} records hang together by shared queries and answers, so that none are "
            "left to choose on; give unrelated records too"
        )
    rest, test = (examples, []) if config.eval_dataset else split_validation(examples, config.test_split, rng, texts)
    same_answer = count_chains(texts.records(examples), config.train_batch_size).shows
    n_queries = len({texts.ids[one.query] for one in examples})
    share = config.choose_split or _share_to_choose_on(groups, n_queries, 0.0 if config.eval_dataset else config.test_split)
    # A share of all records, whatever was taken for the test.
    train, choose = split_validation(rest, share * len(examples) / len(rest), rng, texts)
    for name, part in (("choose_split", choose), ("test_split", test)):
        queries = len({one.query for one in part})
        if queries < LEAST_QUERIES and (part or name == "choose_split"):
            raise DataError(
                f"{config.data_path}: {name} leaves {counted(queries, 'query', 'queries')}, and by fewer than "
                f"{LEAST_QUERIES} chance would choose; raise {name}, or give more records, such as share no answer with these"
            )
    return Split(tuple(files), train, choose, test, rest, texts, same_answer)


def _share_to_choose_on(groups: Sequence[Sequence[int]], n_queries: int, test_split: float) -> float:
    """Enough to tell recipes apart by: what is chosen learns from these records in the end, so that they are not lost.

    Half of what lies outside the largest group at most: that stays on one side, and is not all that there is to learn.
    """
    sizes = [len(group) for group in groups]
    enough = max(ENOUGH_QUERIES / n_queries, ENOUGH_GROUPS / len(groups))
    outside = 1 - max(sizes) / sum(sizes) - test_split
    return min(outside / 2, max(_USUAL_SHARE, min(_LARGEST_SHARE, enough)))


def write_parts(split: Split, config: TuneConfig, folder: Path) -> Parts:
    """Write the parts as files that every verb reads, whole or not at all; what a tuning that goes on has written stays.

    Of a split with others to choose on only what it trains and chooses on: the rest and the test part are as they were.
    """
    parts = Parts(folder / _TRAIN, folder / _CORPUS, folder / _CHOOSE, config.eval_dataset or folder / _TEST)
    if folder.is_dir():
        return parts
    passages = _passages(split.train)
    further = _drawn(_further_texts(config, split.texts), MOST_CANDIDATES, config.seed, key=lambda one: one.whole)
    # As in use: what was trained on is searched too. No query of these parts was trained on, and no answer to one.
    wholes = (one.whole for one in further)
    beside = _drawn([*_distinct(passages, split.texts), *wholes], MOST_DISTRACTORS, config.seed, key=str)
    with write_folder_aside(folder) as aside:
        to_train_on = [(split.train, _TRAIN, _CORPUS)]
        to_train_on += [] if split.seen else [(split.rest, _REST, _REST_CORPUS)]
        for records, name, corpus in to_train_on:
            _write_lines(aside / name, map(_record, records))
            candidates = [*(Document("", text) for text in _passages(records)), *further]
            lines = ({"_id": str(row), "title": one.title, "text": one.text} for row, one in enumerate(candidates))
            _write_lines(aside / corpus, lines)
        _write_evaluation(aside / _CHOOSE, split.choose, beside, split, config.seed)
        if split.test and not split.seen:
            _write_evaluation(aside / _TEST, split.test, beside, split, config.seed)
    return parts


def _passages(part: Iterable[Example]) -> list[str]:
    """Every positive and negative once, in order."""
    return list(dict.fromkeys(text for one in part for text in (*one.positives, *one.negatives)))


def thinned(dataset: EvaluationSet, share: float, seed: int) -> EvaluationSet:
    """A share of the queries, ENOUGH_QUERIES at least, with their answers; of all documents the same share, if that is more."""
    rng = np.random.default_rng(seed)
    n_queries = min(len(dataset.queries), max(ENOUGH_QUERIES, round(share * len(dataset.queries))))
    rows = sorted(rng.permutation(len(dataset.queries))[:n_queries])
    qrels = {dataset.query_ids[row]: dataset.qrels[dataset.query_ids[row]] for row in rows}
    answers = {one for right in qrels.values() for one in right}
    further = [row for row in rng.permutation(len(dataset.doc_ids)) if dataset.doc_ids[row] not in answers]
    n_further = max(0, round(share * len(dataset.doc_ids)) - len(answers))
    kept = sorted([row for row, one in enumerate(dataset.doc_ids) if one in answers] + further[:n_further])
    return replace(
        dataset,
        query_ids=list(qrels),
        queries=[dataset.queries[row] for row in rows],
        doc_ids=[dataset.doc_ids[row] for row in kept],
        documents=[dataset.documents[row] for row in kept],
        qrels=qrels,
    )


def _record(example: Example) -> dict[str, Any]:
    """As ebr finetune and ebr train read it."""
    record: dict[str, Any] = {"query": example.query, "pos": list(example.positives), "neg": list(example.negatives)}
    if example.positive_scores:
        record["pos_scores"] = list(example.positive_scores)
    if example.negative_scores:
        record["neg_scores"] = list(example.negative_scores)
    return record


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# ---------------------------------------------------------------- a part as an evaluation folder


def _write_evaluation(folder: Path, part: Sequence[Example], further: Sequence[str], split: Split, seed: int) -> None:
    """A part in BEIR's form. A text has one id as query and as document, so that a query never finds itself.

    Ids and order are those of the texts in all records, further texts behind: where a model cannot tell documents apart,
    neither must say which are the answers.
    """
    judged = judgements(part, split.texts, split.same_answer)
    left_out = _surplus(part, split, seed)
    judged = {query: right - left_out for query, right in judged.items() if right - left_out}
    spelt: dict[int, str] = {}
    for example in part:
        for text in example.texts():
            spelt.setdefault(split.texts.ids[text], text)
    documents = dict.fromkeys(split.texts.ids[text] for one in part for text in (*one.positives, *one.negatives))
    for one in left_out:
        documents.pop(one, None)
    rows = np.random.default_rng(seed).permutation(len(judged))[:MOST_QUERIES]
    queries = [list(judged)[row] for row in sorted(rows)]
    n_known = len(split.texts.forms)
    place = lambda row, text: split.texts.ids.get(text, n_known + row)  # noqa: E731
    texts = {one: spelt[one] for one in documents} | {place(row, text): text for row, text in enumerate(further)}
    _write_lines(folder / "corpus.jsonl", ({"_id": _id(one), "text": texts[one]} for one in sorted(texts)))
    _write_lines(folder / "queries.jsonl", ({"_id": _id(one), "text": spelt[one]} for one in queries))
    lines = [f"{_id(query)}\t{_id(document)}\t1\n" for query in queries for document in sorted(judged[query])]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def _surplus(part: Sequence[Example], split: Split, seed: int) -> set[int]:
    """Passages of long chains, by their ids, that are not searched: with a hundred answers to find, ten are found by anyone."""
    if split.same_answer == "text":
        return set()
    records = split.texts.records(part)
    chain_of = chain_of_each(records)
    of_chain: dict[int, dict[int, None]] = {}
    for record in records:
        of_chain.setdefault(chain_of[record.query], {}).update(dict.fromkeys(record.positives))
    rng = np.random.default_rng(seed)
    return {int(one) for passages in of_chain.values() for one in rng.permutation(list(passages))[MOST_ANSWERS:]}


def _id(number: int) -> str:
    """Of one length, so that ids are ordered as numbers are."""
    return f"t{number:08d}"


def judgements(part: Sequence[Example], texts: TextTable, same_answer: SameAnswer) -> dict[int, set[int]]:
    """By query, the passages of the part that are right for it, itself left out, all by ids; queries without any are out."""
    records = texts.records(part)
    answers = find_answers(records, same_answer)
    passages = {positive for one in records for positive in one.positives}
    found = {one.query: answers.among(one.query, passages) - {one.query} for one in records}
    return {query: set(right) for query, right in found.items() if right}


# ---------------------------------------------------------------- further texts


def _further_texts(config: TuneConfig, texts: TextTable) -> Iterator[Document]:
    """The documents of the corpora that no record has."""
    for name in config.corpus or ():
        for document in read_corpus(find_corpus(Path(name).expanduser())):
            if normal_form(document.whole) not in texts.forms:
                yield document


def _distinct(passages: Iterable[str], texts: TextTable) -> Iterator[str]:
    """Each text once, however it is spelt."""
    seen: set[int] = set()
    for text in passages:
        if texts.ids[text] not in seen:
            seen.add(texts.ids[text])
            yield text


def _drawn(items: Iterable[Item], most: int, seed: int, *, key: Callable[[Item], str]) -> list[Item]:
    """At most so many items of distinct texts, the same ones whatever the order they come in: those of the smallest hashes."""
    salt = str(seed).encode()

    def place(text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt.ljust(16)[:16]).digest()

    by_hash: dict[bytes, Item] = {}
    kept: list[tuple[int, bytes]] = []  # a heap whose first is the largest hash
    for item in items:
        digest = place(key(item))
        if digest in by_hash:
            continue
        number = -int.from_bytes(digest)
        if len(kept) < most:
            heapq.heappush(kept, (number, digest))
        elif number > kept[0][0]:
            del by_hash[heapq.heappushpop(kept, (number, digest))[1]]
        else:
            continue
        by_hash[digest] = item
    return [by_hash[digest] for _, digest in sorted(kept, reverse=True)]
