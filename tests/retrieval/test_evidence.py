"""What a report says of models: ten queries and twelve documents whose ranks, and so whose numbers, are set by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.evaluation import evidence
from ebr.retrieval.evaluation.evidence import contrast, dataset_facts, measure_encoder, report_on
from ebr.retrieval.measures.measurement import Evaluation
from ebr.retrieval.measures.significance import WinsTiesLosses, paired_bootstrap, randomization_test
from ebr.retrieval.measures.space import measure_space
from ebr.retrieval.report.write import Measured

N = 12
# Five queries of one word, five of four.
QUERIES = [
    *["red", "blue", "green", "lamp", "cup"],
    *["a small wooden spoon", "what to wear tonight", "the best winter coat", "shoes made for running", "how books are bound"],
]
# Documents 0, 3, 5 and 9 share a word with the query that they answer; of query 1 only document 11 has a word, and answers it
# not. The other queries share no word with any document.
DOCUMENTS = ["red", "sofa", "chair", "lamp", "table", "spoon", "socks", "wool", "mat", "book", "pen", "blue"]
# Document i alone answers query i. At which rank a model finds it, and at which the model and BM25 together: what BM25 finds
# stands first, as it is in both lists; the wrong document that it finds for query 1 moves the right one down by one.
RANKS = {
    "base": [1, 2, 3, 1, 1, 12, 5, 1, 1, 2],
    "tuned": [1, 1, 1, 4, 1, 2, 5, 1, 3, 2],
    "other": [2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
}
FUSED_RANKS = {
    "base": [1, 3, 3, 1, 1, 1, 5, 1, 1, 1],
    "tuned": [1, 2, 1, 1, 1, 1, 5, 1, 3, 1],
    "other": [1, 3, 2, 1, 2, 1, 2, 2, 2, 1],
}


class TableEncoder:
    """Texts → the vectors that two tables hold for them, one of queries and one of documents."""

    def __init__(self, queries, documents):
        self.queries, self.documents = queries, documents

    def encode_queries(self, texts):
        return np.stack([self.queries[text] for text in texts]).astype(np.float32)

    def encode_documents(self, texts):
        return np.stack([self.documents[text] for text in texts]).astype(np.float32)


def order_of(document, rank):
    """All rows, with one document at a rank from 1 and the others in their order."""
    others = [row for row in range(N) if row != document]
    return [*others[: rank - 1], document, *others[rank - 1 :]]


def encoder_of(ranks):
    """Documents are the axes of the space, and a query leans most to the one that it is to find first."""
    queries = {}
    for document, (query, rank) in enumerate(zip(QUERIES, ranks, strict=True)):
        vector = np.zeros(N)
        vector[order_of(document, rank)] = np.arange(N, 0, -1)
        queries[query] = vector / np.linalg.norm(vector)
    return TableEncoder(queries, dict(zip(DOCUMENTS, np.eye(N), strict=True)))


def flat_encoder():
    """All texts are one point: every document ties."""
    return TableEncoder(dict.fromkeys(QUERIES, np.eye(N)[0]), dict.fromkeys(DOCUMENTS, np.eye(N)[0]))


@pytest.fixture
def dataset():
    query_ids, doc_ids = [f"q{row}" for row in range(len(QUERIES))], [f"d{row:02}" for row in range(N)]
    qrels = {query_id: {doc_id: 1} for query_id, doc_id in zip(query_ids, doc_ids, strict=False)}
    qrels["q0"] = {"d10": 0, "gone": 0, "d00": 2}
    return EvaluationSet("set", query_ids, QUERIES, doc_ids, DOCUMENTS, qrels, 3, 4, 1)


def measured_of(name, dataset, k=N):
    return measure_encoder(name, encoder_of(RANKS[name]), dataset, k=k, seed=0, facts={})


def report_of(dataset, k=N, *, baselines=True, names=tuple(RANKS), seed=0, facts=None):
    models = [measured_of(name, dataset, k) for name in names]
    return report_on(dataset, models, k=k, seed=seed, baselines=baselines, facts=facts or {})


def ndcg(ranks):
    """Of queries with one relevant document each."""
    return [1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]


def mean(values):
    return pytest.approx(sum(values) / len(values))


# --- one model


@pytest.mark.parametrize("name", RANKS)
def test_a_model_is_measured_by_the_ranks_at_which_it_finds_the_answers(dataset, name):
    measured = measured_of(name, dataset)
    assert measured.name == name
    assert measured.evaluation.scores["ndcg@10"] == pytest.approx(ndcg(RANKS[name]))
    assert measured.evaluation.mean("recall@1") == mean([rank == 1 for rank in RANKS[name]])
    assert measured.evaluation.rows.tolist() == [order_of(row, rank) for row, rank in enumerate(RANKS[name])]


def test_the_space_is_that_of_the_vectors_and_of_the_positive_judgements(dataset):
    encoder = encoder_of(RANKS["tuned"])
    queries, documents = encoder.encode_queries(QUERIES), encoder.encode_documents(DOCUMENTS)
    space = measured_of("tuned", dataset).space
    assert space == measure_space(queries, documents, [(row, row) for row in range(len(QUERIES))], seed=0)
    # Axes: every pair of documents has cosine 0 and the squared distance 2.
    assert (space.n_documents, space.mean_cosine, space.uniformity) == (N, pytest.approx(0), pytest.approx(-4))
    # Unit vectors of cosine c are 2 - 2c apart, squared; at rank r the cosine is (13 - r) / sqrt(1 + 4 + … + 144).
    assert space.alignment == mean([2 - 2 * (13 - rank) / math.sqrt(650) for rank in RANKS["tuned"]])


def test_the_seed_chooses_the_documents_that_the_space_is_measured_on(dataset, monkeypatch):
    monkeypatch.setattr(evidence, "measure_space", partial(measure_space, max_documents=5))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    encoder = TableEncoder(dict(zip(QUERIES, rows, strict=False)), dict(zip(DOCUMENTS, rows, strict=True)))
    one, again, two = (measure_encoder("m", encoder, dataset, k=N, seed=seed, facts={}).space for seed in (1, 1, 2))
    assert one == again != two
    assert one.n_documents == 5


def test_vectors_left_as_they_are_cost_nothing(dataset):
    measured = measured_of("base", dataset)
    first = measured.compression[0]
    assert (first.dim, first.kind) == (N, "float32")
    assert first.ndcg == measured.evaluation.mean("ndcg@10") == mean(ndcg(RANKS["base"]))


@pytest.mark.parametrize(("k", "ranks"), [(10, range(10, 0, -1)), (12, range(12, 2, -1))])
def test_the_table_of_smaller_vectors_ranks_as_deep_as_the_evaluation(dataset, k, ranks):
    # All documents tie. A search keeps the lower rows, and trec_eval ranks what was kept by id, descending: of ten, d09 is
    # first and d00 tenth; of twelve, d09 is third, and d01 and d00 come too late.
    measured = measure_encoder("flat", flat_encoder(), dataset, k=k, seed=0, facts={})
    assert measured.evaluation.rows.shape == (len(QUERIES), k)
    assert measured.evaluation.mean("ndcg@10") == mean(ndcg(ranks))
    assert measured.compression[0].ndcg == measured.evaluation.mean("ndcg@10")


def test_facts_of_a_model_are_kept_as_they_were_given(dataset):
    given = {"pooling": "mean"}
    measured = measure_encoder("base", encoder_of(RANKS["base"]), dataset, k=N, seed=0, facts=given)
    given["pooling"] = "cls"
    assert measured.facts == {"pooling": "mean"}


# --- base against tuned


def test_a_query_that_the_tuned_model_answers_better_is_among_the_better_ones(dataset):
    found = contrast(dataset, measured_of("base", dataset), measured_of("tuned", dataset), seed=0)
    assert (found.base, found.tuned) == ("base", "tuned")
    # The largest change first: 12th to 2nd, 3rd to 1st, 2nd to 1st; and 1st to 4th, 1st to 3rd.
    assert [query.query_id for query in found.better] == ["q5", "q2", "q1"]
    assert [query.query_id for query in found.worse] == ["q3", "q8"]
    lamp = found.worse[0]
    assert (lamp.text, lamp.before, lamp.after) == ("lamp", 1, pytest.approx(1 / math.log2(5)))
    assert (lamp.expected[0].doc_id, lamp.expected[0].rank_before, lamp.expected[0].rank_after) == ("d03", 1, 4)
    assert (lamp.found_before[0].doc_id, lamp.found_after[0].doc_id) == ("d03", "d00")


def test_wins_ties_and_losses_are_the_tuned_ones(dataset):
    base, tuned = measured_of("base", dataset), measured_of("tuned", dataset)
    assert contrast(dataset, base, tuned, seed=0).counts == WinsTiesLosses(wins=3, ties=5, losses=2)
    assert contrast(dataset, tuned, base, seed=0).counts == WinsTiesLosses(wins=2, ties=5, losses=3)


def test_the_first_model_is_held_against_each_of_the_others(dataset):
    contrasts = report_of(dataset).contrasts
    assert [(found.base, found.tuned) for found in contrasts] == [("base", "tuned"), ("base", "other")]
    for found in contrasts:
        change = found.comparison.change("ndcg@10")
        before, after = ndcg(RANKS["base"]), ndcg(RANKS[found.tuned])
        assert (change.base, change.tuned) == (mean(before), mean(after))
        assert change.interval.difference == pytest.approx(change.tuned - change.base)
        short, long = found.slices
        assert [(part.label, part.n_queries) for part in found.slices] == [("1 word", 5), ("4 words", 5)]
        assert (short.base, short.tuned) == (mean(before[:5]), mean(after[:5]))
        assert (long.base, long.tuned) == (mean(before[5:]), mean(after[5:]))


def test_one_model_alone_is_held_against_nothing(dataset):
    report = report_of(dataset, names=["base"])
    assert report.contrasts == []
    assert [model.name for model in report.measured] == ["base"]


def scored(name, scores):
    """A model with these scores, and no ranking."""
    rows = np.full((len(scores), 1), -1)
    evaluation = Evaluation("many", [f"q{row}" for row in range(len(scores))], 1, {"ndcg@10": scores}, rows, rows)
    return Measured(name, evaluation, None, [], {})


def test_the_seed_reaches_the_intervals_the_slices_and_the_test():
    rng = np.random.default_rng(0)
    before, after = rng.random(40), rng.random(40)  # more queries than all sign patterns are tried for
    query_ids = [f"q{row}" for row in range(40)]
    queries = ["red", "a red lamp"] * 20
    dataset = EvaluationSet("many", query_ids, queries, ["d0"], ["x"], {name: {"d0": 1} for name in query_ids}, 0, 0, 0)
    models = [scored("base", before), scored("tuned", after)]
    for seed in (1, 2):
        (found,) = report_on(dataset, models, k=10, seed=seed, baselines=False, facts={}).contrasts
        assert found == contrast(dataset, *models, seed=seed)
        change = found.comparison.change("ndcg@10")
        assert change.interval == paired_bootstrap(before, after, seed=seed)
        assert change.p == randomization_test(before, after, seed=seed)
        assert found.slices[0].interval == paired_bootstrap(before[::2], after[::2], seed=seed)
    assert randomization_test(before, after, seed=1) != randomization_test(before, after, seed=2)
    assert paired_bootstrap(before, after, seed=1) != paired_bootstrap(before, after, seed=2)
    assert paired_bootstrap(before[::2], after[::2], seed=1) != paired_bootstrap(before[::2], after[::2], seed=2)


# --- ranking by words


def test_bm25_finds_four_answers_first_and_the_others_not_at_all(dataset):
    report = report_of(dataset)
    means = report.baselines["BM25"]
    assert [means[metric] for metric in ("ndcg@10", "mrr@10", "recall@1", "recall@10", "map")] == [pytest.approx(0.4)] * 5
    found = [0, 11, -1, 3, -1, 5, -1, -1, -1, 9]
    assert report.rankings["BM25"].rows[:, 0].tolist() == found
    assert (report.rankings["BM25"].rows[:, 1:] == -1).all()


@pytest.mark.parametrize("name", RANKS)
def test_each_model_is_merged_with_bm25_by_its_own_ranking(dataset, name):
    report = report_of(dataset)
    assert list(report.baselines) == ["BM25", "BM25 + base", "BM25 + tuned", "BM25 + other"]
    means = report.baselines[f"BM25 + {name}"]
    assert means["ndcg@10"] == mean(ndcg(FUSED_RANKS[name]))
    assert means["mrr@10"] == mean([1 / rank for rank in FUSED_RANKS[name]])
    merged = report.rankings[f"BM25 + {name}"]
    assert merged.scores["ndcg@10"] == pytest.approx(ndcg(FUSED_RANKS[name]))
    # Query 1: document 11 is first by words and twelfth for each model.
    assert merged.similarities[1, 0] == pytest.approx(1 / 61 + 1 / 72)


def test_rankings_are_those_of_the_models_and_of_the_baselines(dataset):
    report = report_of(dataset)
    assert set(report.rankings) == {*RANKS, *report.baselines}
    assert all(report.rankings[model.name] is model.evaluation for model in report.measured)
    assert all(report.rankings[name].means() == means for name, means in report.baselines.items())


def test_without_baselines_there_are_none(dataset):
    report = report_of(dataset, baselines=False)
    assert report.baselines == {}
    assert set(report.rankings) == set(RANKS)
    assert len(report.contrasts) == 2


def test_documents_that_tie_gain_and_lose_nothing_by_a_merger_with_no_words_found(dataset):
    # Without a shared word the merger has only the model's ranking, whose ties trec_eval breaks by id, descending.
    wordless = EvaluationSet(**(vars(dataset) | {"documents": [f"x{row}" for row in range(N)]}))
    documents = dict.fromkeys(wordless.documents, np.eye(N)[0])
    flat = measure_encoder("flat", TableEncoder(flat_encoder().queries, documents), wordless, k=N, seed=0, facts={})
    report = report_on(wordless, [flat], k=N, seed=0, baselines=True, facts={})
    assert report.baselines["BM25"]["ndcg@10"] == 0
    assert report.rankings["BM25 + flat"].rows.tolist() == [list(range(N - 1, -1, -1))] * len(QUERIES)
    assert report.baselines["BM25 + flat"] == flat.evaluation.means()
    assert report.baselines["BM25 + flat"]["ndcg@10"] == mean(ndcg(range(12, 2, -1)))


def test_documents_that_tie_for_words_and_model_alike_tie_for_both(dataset):
    same = EvaluationSet(**(vars(dataset) | {"documents": ["red"] * N}))
    flat = measure_encoder("flat", TableEncoder(flat_encoder().queries, {"red": np.eye(N)[0]}), same, k=N, seed=0, facts={})
    rankings = report_on(same, [flat], k=N, seed=0, baselines=True, facts={}).rankings
    assert rankings["BM25 + flat"].rows[0].tolist() == list(range(N - 1, -1, -1))
    assert len({ranking.scores["map"][0] for ranking in rankings.values()}) == 1


# --- the depth, and the facts


def test_a_ranking_deeper_than_the_corpus_gives_the_same_numbers(dataset):
    exact, deep = report_of(dataset, N), report_of(dataset, 1000)
    for one, other in zip(exact.measured, deep.measured, strict=True):
        assert np.array_equal(one.evaluation.rows, other.evaluation.rows)
        assert one.compression == other.compression
    assert exact.rankings.keys() == deep.rankings.keys()
    for name, ranking in exact.rankings.items():
        means = deep.rankings[name].means()
        assert means["recall@100"] == means["recall@10"] if name == "BM25" else means["recall@100"] == 1
        assert ranking.means() == {metric: value for metric, value in means.items() if metric != "recall@100"}
        assert np.array_equal(ranking.rows, deep.rankings[name].rows)
    for one, other in zip(exact.contrasts, deep.contrasts, strict=True):
        assert (one.counts, one.worse, one.better, one.slices) == (other.counts, other.worse, other.better, other.slices)


def test_every_ranking_is_as_deep_as_was_asked_for(dataset):
    report = report_of(dataset, 10)
    assert {ranking.rows.shape for ranking in report.rankings.values()} == {(len(QUERIES), 10)}
    assert not any("recall@100" in means for means in report.baselines.values())


def test_facts_of_a_set_count_what_is_there_and_what_is_not(dataset):
    assert dataset_facts(dataset) == {
        "n_queries": 10,
        "n_documents": 12,
        "n_judgements": 12,
        "n_unjudged_queries": 3,
        "n_unknown_queries": 4,
        "n_missing_documents": 1,
        "n_own_documents": 0,
    }


def test_a_report_has_the_facts_of_the_set_and_those_that_were_given(dataset):
    report = report_of(dataset, baselines=False, names=["base"], facts={"sha256": "abc", "n_unknown_queries": 9})
    assert report.name == "set"
    assert report.facts == {**dataset_facts(dataset), "sha256": "abc", "n_unknown_queries": 9}
