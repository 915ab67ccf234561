"""Teachers: the scores that mining writes may be of words and vectors together, or of another model; what is mined stays."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ebr.config import FinetuneConfig, MiningConfig
from ebr.data.files.write import read_manifest
from ebr.data.records.documents import Document
from ebr.data.training.files import Record
from ebr.data.vectors.exact_search import exact_search
from ebr.errors import ModelError
from ebr.retrieval.measures.lexical import LexicalIndex, reciprocal_rank_fusion
from ebr.retrieval.mining.command import mine_hard_negatives, plan_mining
from ebr.retrieval.mining.rules import Rules, mine
from ebr.retrieval.mining.teachers import scored_by
from ebr.training.plan import plan_finetune

FIRST_IN_BOTH = 2 / 61
WORDS = "red blue green shoe lamp book cup small large old".split()


class TableEncoder:
    """Unit vectors of two dimensions by their cosine with the first axis; a query is the first axis itself."""

    def __init__(self, cosines):
        self.cosines = cosines

    def encode_queries(self, texts):
        return np.array([[1, 0]] * len(texts), np.float32)

    def encode_documents(self, texts):
        return np.array([[self.cosines[text], (1 - self.cosines[text] ** 2) ** 0.5] for text in texts], np.float32)


def mined(tmp_path, cosines, records, candidates, *, by_words_too=True, **rules):
    texts = [Document("", text) for text in candidates]
    rules = Rules(**{"near_duplicate": 1, "max_relative_score": 1, **rules})
    return list(mine(records, texts, TableEncoder(cosines), rules, scratch=tmp_path, by_words_too=by_words_too))


def test_hybrid_scores_are_rank_fusion_by_hand_as_a_share_of_the_most(tmp_path):
    # By the model: right, lamp, shoes, green. By words of "red shoe": right has both, shoes one and short, lamp one and longer.
    cosines = {"a red shoe": 0.9, "the old red lamp": 0.8, "shoes": 0.7, "green": 0.6}
    (one,) = mined(tmp_path, cosines, [Record("red shoe", ("a red shoe",), (), {})], cosines)
    assert [negative.text for negative in one.negatives] == ["the old red lamp", "shoes", "green"]
    fused = [1 / 61 + 1 / 61, 1 / 62 + 1 / 63, 1 / 63 + 1 / 62, 1 / 64]
    assert one.teacher_scores == pytest.approx([score / FIRST_IN_BOTH for score in fused])
    assert one.teacher_scores[0] == 1
    scores, negatives = one.as_taught()
    assert scores == one.teacher_scores[:1] and tuple(negative.score for negative in negatives) == one.teacher_scores[1:]
    assert [negative.rank for negative in negatives] == [2, 3, 4]


def test_a_text_that_is_no_candidate_has_the_rank_that_it_would_have(tmp_path):
    cosines = {"a red shoe": 0.75, "his shoe": 0.1, "old lamp": 0.8, "shoes": 0.7, "green": 0.6}
    (one,) = mined(tmp_path, cosines, [Record("red shoe", ("a red shoe",), ("his shoe",), {})], ["old lamp", "shoes", "green"])
    # The positive is second by the model, after the lamp, and first by words; the record's own negative is fourth, and third.
    assert one.teacher_scores[0] == pytest.approx((1 / 62 + 1 / 61) / FIRST_IN_BOTH)
    assert [negative.text for negative in one.negatives] == ["his shoe", "shoes", "green"]
    assert one.teacher_scores[1] == pytest.approx((1 / 64 + 1 / 62) / FIRST_IN_BOTH)


def test_what_neither_ranking_has_among_its_first_scores_nothing(tmp_path):
    cosines = {"answer": 0.5, "a red shoe": 0.9, "red": 0.8, "green": 0.1}
    (one,) = mined(tmp_path, cosines, [Record("red shoe", ("answer",), ("green",), {})], cosines, top_k=2)
    assert one.teacher_scores == (0, 0)
    (one,) = mined(tmp_path, cosines, [Record("zebra", ("a red shoe",), (), {})], cosines, top_k=2)
    assert one.teacher_scores == pytest.approx([1 / 61 / FIRST_IN_BOTH, 1 / 62 / FIRST_IN_BOTH])


def test_hybrid_scores_are_those_of_the_reports_fusion(tmp_path):
    rng = np.random.default_rng(0)
    # Every other text has the word, no two of one length, so that no two score alike.
    texts = [" ".join(["red" if row % 2 else "blue", *[f"w{row}"] * row]) for row in range(120)]
    cosines = dict(zip(texts, (rng.permutation(120) / 200).tolist(), strict=True))
    best = max(texts, key=cosines.get)
    (one,) = mined(tmp_path, cosines, [Record("red", (best,), (), {})], texts, top_k=40, num_negatives=40)
    encoder = TableEncoder(cosines)
    _, dense = exact_search(encoder.encode_queries(["red"]), encoder.encode_documents(texts), 40)
    scores, rows = reciprocal_rank_fusion([LexicalIndex(texts).search(["red"], 40)[1], dense], 80)
    fused = {row: score for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True) if row >= 0}
    taught = [best, *(negative.text for negative in one.negatives)]
    assert len(taught) == 40
    assert one.teacher_scores == pytest.approx([fused[texts.index(text)] / FIRST_IN_BOTH for text in taught])


def test_a_teacher_changes_no_choice(tmp_path):
    rng = np.random.default_rng(1)
    texts = list({" ".join(rng.choice(WORDS, 4)): None for _ in range(60)})
    cosines = dict(zip(texts, rng.random(len(texts)).tolist(), strict=True))
    records = [Record(" ".join(rng.choice(WORDS, 2)), (text,), (texts[0],), {}) for text in texts[1:20]]
    plain = mined(tmp_path, cosines, records, texts, by_words_too=False)
    taught = mined(tmp_path, cosines, records, texts)
    assert [replace(one, teacher_scores=None) for one in taught] == plain
    assert all(one.as_taught() == (one.positive_scores, one.negatives) for one in plain)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_another_model_gives_its_cosines(tmp_path, block):
    cosines = {"a": 0.9, "b": 0.8, "c": 0.7}
    records = [Record("x", ("a",), (), {}), Record("y", ("a", "b"), ("c",), {}), Record("x", ("b",), (), {})]
    teacher = TableEncoder({"a": 0.3, "b": 0.2, "c": -0.5})
    found = list(scored_by(teacher, records, mined(tmp_path, cosines, records, cosines, by_words_too=False), block=block))
    for record, one in zip(records, found, strict=True):
        expected = [teacher.cosines[text] for text in (*record.positives, *(negative.text for negative in one.negatives))]
        assert one.teacher_scores == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- the verb


@pytest.fixture
def base(tiny_model, pairs_file, tmp_path):
    files = {"data_path": str(pairs_file), "output_path": tmp_path / "out" / "mined.jsonl"}
    return {"model_path": tiny_model, **files, "max_relative_score": 1}


def run(base, **changes):
    result = mine_hard_negatives(MiningConfig(**{**base, **changes}), say=lambda _: None)
    return [json.loads(line) for line in result.path.read_text(encoding="utf-8").splitlines()], read_manifest(result.path)


def test_the_hybrid_teachers_scores_are_written_and_distillation_reads_them(base, tmp_path):
    plain, manifest = run(base)
    assert manifest["teacher"] is None
    rows, manifest = run(base, teacher="hybrid")
    assert manifest["teacher"] == {"name": "hybrid"}
    scores = {"positive_score", "negative_scores"}
    assert [{key: value for key, value in row.items() if key not in scores} for row in rows] == [
        {key: value for key, value in row.items() if key not in scores} for row in plain
    ]
    assert all(0 <= score <= 1 for row in rows for score in (row["positive_score"], *row["negative_scores"])) and rows != plain
    config = FinetuneConfig(
        model_name=base["model_path"], data_path=str(base["output_path"]), output_dir=str(tmp_path / "s"), loss="distillation"
    )
    assert len(plan_finetune(config).train) > 20


def test_another_models_scores_are_written_and_it_is_recorded(base, tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    plain, _ = run(base)
    same, manifest = run(base, teacher=str(shutil.copytree(tiny_model, tmp_path / "same")))
    assert [row["positive_score"] for row in same] == pytest.approx([row["positive_score"] for row in plain], abs=2e-6)
    assert manifest["teacher"]["model_sha256"] == manifest["model_sha256"]
    other = SentenceTransformer(tiny_model, device="cpu")
    next(other.parameters()).data.mul_(-0.5)
    other.save_pretrained(str(tmp_path / "other"))
    rows, manifest = run(base, teacher=str(tmp_path / "other"))
    assert [row["negative"] for row in rows] == [row["negative"] for row in plain]
    assert [row["positive_score"] for row in rows] != pytest.approx([row["positive_score"] for row in plain], abs=1e-3)
    assert manifest["teacher"]["model_sha256"] != manifest["model_sha256"]


def test_a_teacher_that_is_nowhere_is_said_before_anything_is_computed(base):
    with pytest.raises(ModelError, match="no such folder"):
        plan_mining(MiningConfig(**base, teacher="./nowhere at all"))
    assert "teacher     hybrid" in plan_mining(MiningConfig(**base, teacher="hybrid")).lines()
