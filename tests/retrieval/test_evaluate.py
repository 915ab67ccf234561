"""`ebr evaluate`: every option reaches its consumer, the figures are those of a ranking made by hand, leaks are told."""

from __future__ import annotations

import gc
import json
import math
import weakref

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ebr import cli
from ebr.config import EvaluationConfig, FinetuneConfig, MergeConfig, TrainConfig
from ebr.data.evaluation.evaluation_set import evaluation_files, read_evaluation_set
from ebr.data.files.write import hash_files, write_json
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.retrieval.evaluation import command as evaluation
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.evaluation.leak_check import Provenance, RecordedSource
from ebr.retrieval.measures.metrics import METRICS, score_run
from ebr.workflow.finetuning import train_sentence_transformer
from ebr.workflow.merging import merge_adapter
from tests.conftest import SHARED_DATA
from tests.trec import read_run


@pytest.fixture
def config(tiny_model, evaluation_folder, tmp_path):
    return EvaluationConfig(models=[tiny_model], eval_dataset=evaluation_folder, output_dir=tmp_path / "out")


def run(config, **changes):
    lines = []
    result = evaluate_retrieval(config.model_copy(update=changes), say=lines.append)
    return result, json.loads(result.json.read_text("utf-8")), lines


def tuned_model(tiny_model, pairs_file, folder, **changes):
    options = {"max_steps": 2, "max_seq_length": 32, "report_to": ["none"], "learning_rate": 1e-2, "validation_split": 0.0}
    config = FinetuneConfig(model_name=tiny_model, data_path=str(pairs_file), output_dir=folder, **{**options, **changes})
    return str(train_sentence_transformer(config, say=lambda _: None).model_path)


def ndcg_by_hand(model_path, folder):
    """nDCG@10 where each query has one right document of grade 1: 1 / log2(1 + its rank), by plain sentence-transformers."""
    dataset = read_evaluation_set(folder)
    model = SentenceTransformer(model_path)
    scores = model.encode_query(dataset.queries) @ model.encode_document(dataset.documents).T
    gains = []
    for row, grades in zip(scores, dataset.qrels.values(), strict=True):
        (right,) = grades
        rank = 1 + int((row > row[dataset.doc_ids.index(right)]).sum())
        gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    return float(np.mean(gains))


def test_report_holds_every_metric_of_every_model_as_a_ranking_by_hand_gives_it(config, tiny_model, tmp_path, pairs_file):
    tuned = tuned_model(tiny_model, pairs_file, tmp_path / "saved")
    result, report, _ = run(config, models=[tiny_model, tuned])
    assert list(report["models"]) == [tiny_model, tuned]
    assert set(report["models"][tuned]) == {*METRICS, "unjudged@10"}
    for model in (tiny_model, tuned):
        assert report["models"][model]["ndcg@10"] == pytest.approx(ndcg_by_hand(model, config.eval_dataset), abs=1e-6)
    assert report["models"][tiny_model]["unjudged@10"] == pytest.approx(
        1 - result.report.main.measured[0].evaluation.mean("recall@10") / 10
    )
    assert result.html.is_file() and result.html.parent == config.output_dir
    assert "nDCG@10" in result.summary() and str(result.html) in result.summary()


def test_comparison_is_of_the_first_model_with_each_other(config, tiny_model, tmp_path, pairs_file):
    tuned = [tuned_model(tiny_model, pairs_file, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    _, report, _ = run(config, models=[tiny_model, *tuned])
    assert [(found["base"], found["tuned"]) for found in report["comparisons"]] == [(tiny_model, path) for path in tuned]
    for found in report["comparisons"]:
        change = found["metrics"]["ndcg@10"]
        base, after = report["models"][found["base"]], report["models"][found["tuned"]]
        assert change["base"] == base["ndcg@10"] and change["tuned"] == after["ndcg@10"]
        assert change["difference"] == pytest.approx(after["ndcg@10"] - base["ndcg@10"])
        assert found["wins"] + found["ties"] + found["losses"] == 10


def test_a_model_with_itself_shows_no_difference(config, tiny_model):
    _, report, _ = run(config, models=[tiny_model, tiny_model])
    assert list(report["models"]) == [tiny_model, f"{tiny_model} (2)"]
    (found,) = report["comparisons"]
    assert (found["wins"], found["losses"]) == (0, 0)
    assert found["worse"] == found["better"] == []
    for change in found["metrics"].values():
        assert (change["difference"], change["low"], change["high"], change["p"], change["p_holm"]) == (0, 0, 0, 1, 1)


def test_one_model_alone_needs_no_comparison(config):
    result, report, _ = run(config)
    assert report["comparisons"] == []
    assert "leak check not made" in result.summary()


def test_words_alone_and_words_with_vectors_are_rows_of_their_own(config, tiny_model):
    _, report, _ = run(config)
    assert list(report["baselines"]) == ["BM25", f"BM25 + {tiny_model}"]
    # Each query shares three words with one document, and at most two with any other.
    assert report["baselines"]["BM25"]["ndcg@10"] == 1
    assert run(config, baselines=False)[1]["baselines"] == {}


def test_any_two_rows_of_the_table_are_compared_with_intervals(config, tiny_model, tmp_path, pairs_file):
    tuned = tuned_model(tiny_model, pairs_file, tmp_path / "saved")
    result, report, _ = run(config, models=[tiny_model, tuned])
    change = result.compare("BM25", f"BM25 + {tuned}").change("ndcg@10")
    assert (change.base, change.tuned) == (1, pytest.approx(report["baselines"][f"BM25 + {tuned}"]["ndcg@10"]))
    assert change.interval.low <= change.tuned - change.base <= change.interval.high
    # The pair that the report compares anyway, by the same draws.
    assert result.compare(tiny_model, tuned).to_json()["metrics"] == report["comparisons"][0]["metrics"]
    with pytest.raises(ConfigError, match=r"^compare: no 'bm25' was measured; there are .*'BM25', 'BM25 \+ "):
        run(config)[0].compare("BM25", "bm25")


def test_metrics_deeper_than_k_are_left_out(config, tiny_model):
    result, report, _ = run(config, k=20)
    assert "recall@100" not in report["models"][tiny_model]
    assert "recall@10" in report["models"][tiny_model]
    assert result.report.main.measured[0].evaluation.rows.shape == (10, 20)


def test_run_files_give_the_metrics_again(config):
    assert run(config)[0].runs == []
    stale = config.output_dir / "runs" / "9-stale.trec"
    stale.parent.mkdir()
    stale.write_text("of an earlier evaluation")
    result, report, _ = run(config, save_runs=True, forgetting_dataset=config.eval_dataset)
    means = report["models"] | report["baselines"]
    assert len(result.runs) == 2 * len(means) == 6
    for path, row in zip(result.runs, [*means.values(), *means.values()], strict=True):
        again = score_run(read_run(path), read_evaluation_set(config.eval_dataset).qrels)
        assert {name: values.mean() for name, values in again.items()} == {name: row[name] for name in again}
    assert result.runs[3].parent.name == "forgetting"
    assert not stale.exists()


def test_ids_that_no_run_file_can_hold_are_told_before_anything_is_computed(config, monkeypatch):
    monkeypatch.setattr(evaluation, "_measure_all", lambda *_: pytest.fail("computed"))
    path = config.eval_dataset / "corpus.jsonl"
    path.write_text(path.read_text("utf-8").replace('"d5"', '"d 5"'), encoding="utf-8")
    with pytest.raises(DataError, match="'d 5'"):
        run(config, save_runs=True)


def test_forgetting_is_a_comparison_on_the_second_folder(config, tiny_model, tmp_path, pairs_file):
    other = tmp_path / "other"
    other.mkdir()
    for name, text in {
        "corpus.jsonl": '{"_id": "x", "text": "a large lamp"}\n{"_id": "y", "text": "a blue cup"}\n',
        "queries.jsonl": '{"_id": "1", "text": "lamp"}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\n1\tx\t1\n",
    }.items():
        (other / name).write_text(text, encoding="utf-8")
    tuned = tuned_model(tiny_model, pairs_file, tmp_path / "saved")
    result, report, _ = run(config, models=[tiny_model, tuned], forgetting_dataset=other)
    assert set(report["forgetting"]["models"]) == {tiny_model, tuned}
    assert report["forgetting"]["dataset"]["n_documents"] == 2
    assert f"forgetting, on other: {tiny_model} → {tuned}" in result.summary()
    assert run(config)[1]["forgetting"] is None


# ---------------------------------------------------------------- options


def test_every_option_has_a_test_that_it_reaches_its_consumer():
    by_test_above = {"models", "eval_dataset", "output_dir", "forgetting_dataset", "k", "baselines", "save_runs"}
    by_test_below = {"train_data", "language", "seed", "batch_size", "trust_remote_code", *MODEL, *ENCODING}
    assert by_test_above | by_test_below == set(EvaluationConfig.model_fields)


MODEL = {"pooling", "base_model_path"}
"""Proved in test_model_options.py."""

ENCODING = {
    "prompt": ("buy ", lambda model: model.prompts, {"query": "buy ", "document": "buy "}),
    "query_prompt": ("q: ", lambda model: model.prompts["query"], "q: "),
    "passage_prompt": ("p: ", lambda model: model.prompts["document"], "p: "),
    "max_seq_length": (16, lambda model: (model.max_seq_length, model[0].query_length), (16, None)),
    "query_max_len": (8, lambda model: (model.max_seq_length, model[0].query_length, model[0].document_length), (64, 8, 64)),
    "passage_max_len": (8, lambda model: (model.max_seq_length, model[0].query_length, model[0].document_length), (64, 64, 8)),
}


@pytest.mark.parametrize("name", ENCODING)
def test_prompts_and_lengths_reach_the_model(config, tiny_model, name):
    value, look, expected = ENCODING[name]
    model = evaluation.load_for_evaluation(config.model_copy(update={name: value}), tiny_model).model
    assert look(model) == expected
    assert look(evaluation.load_for_evaluation(config, tiny_model).model) != expected


def test_saved_lengths_stay_when_only_one_of_them_is_given(config, tiny_model, tmp_path, pairs_file):
    tuned = tuned_model(tiny_model, pairs_file, tmp_path / "saved", max_seq_length=256, query_max_len=12, passage_max_len=20)
    model = evaluation.load_for_evaluation(config.model_copy(update={"query_max_len": 9}), tuned).model
    assert (model[0].query_length, model[0].document_length) == (9, 20)
    model = evaluation.load_for_evaluation(config.model_copy(update={"max_seq_length": 30}), tuned).model
    assert (model[0].query_length, model[0].document_length, model.max_seq_length) == (None, None, 30)


def test_batch_size_and_trust_reach_encoder_and_loader(config, monkeypatch):
    seen = {}
    real = RetrievalEncoder.__init__

    def spy(self, model, *, batch_size=None, **rest):
        seen["batch_size"] = batch_size
        real(self, model, batch_size=batch_size, **rest)

    def refuse(path, *, trust_remote_code, **rest):
        seen["trust"] = trust_remote_code
        raise ModelError("seen")

    monkeypatch.setattr(RetrievalEncoder, "__init__", spy)
    run(config, batch_size=3)
    assert seen["batch_size"] == 3
    monkeypatch.setattr("ebr.model.encoder.encoder.load_encoder", refuse)
    with pytest.raises(ModelError, match="seen"):
        run(config, trust_remote_code=True)
    assert seen["trust"] is True


def test_language_is_that_of_the_page(config):
    assert '<html lang="zh' in run(config, language="zh")[0].html.read_text("utf-8")
    assert '<html lang="en"' in run(config)[0].html.read_text("utf-8")


def test_seed_draws_the_intervals(config, tiny_model, tmp_path, pairs_file):
    models = [tiny_model, tuned_model(tiny_model, pairs_file, tmp_path / "saved", max_steps=5)]

    def interval(seed):
        found = run(config, models=models, seed=seed)[1]["comparisons"][0]["metrics"]["ndcg@10"]
        return found["low"], found["high"]

    assert interval(1) == interval(1) != interval(2)


# ---------------------------------------------------------------- leaks


def leaking_file(folder, config):
    dataset = read_evaluation_set(config.eval_dataset)
    path = folder / "leak.jsonl"
    record = {"anchor": dataset.queries[0].upper(), "positive": dataset.documents[0]}
    path.write_text(json.dumps(record) + "\n" + json.dumps({"anchor": "z", "positive": "y"}), encoding="utf-8")
    return path


def test_a_training_file_that_holds_an_evaluation_query_is_told_loudly(config, tmp_path):
    result, report, lines = run(config, train_data=str(leaking_file(tmp_path, config)))
    assert report["leaks"]["queries"] == report["leaks"]["answered"] == 1
    assert any(line.startswith("LEAK: of 10 evaluation queries 1 stand in the training records") for line in lines)
    assert "LEAK: " in result.summary()


def test_training_records_are_found_by_the_manifests_of_tuned_and_merged_models(config, tiny_model, tmp_path):
    leaking = leaking_file(tmp_path, config)
    tuned = tuned_model(tiny_model, leaking, tmp_path / "saved", train_batch_size=2)
    merged = tmp_path / "merged"
    merge_adapter(MergeConfig(base_model_path=tiny_model, lora_adapter_path=tuned, output_path=merged), say=lambda _: None)
    for models in ([tiny_model, tuned], [tiny_model, str(merged)], [tuned]):
        _, report, _ = run(config, models=models)
        assert report["leaks"]["answered"] == 1, models
        assert report["leak_note"] == (f"what {tiny_model} learned from is not recorded" if len(models) == 2 else "")
    leaking.write_text(leaking.read_text("utf-8") + "\n", encoding="utf-8")
    assert "changed since a model was tuned on it" in run(config, models=[tiny_model, tuned])[1]["leak_note"]
    leaking.unlink()
    result, report, _ = run(config, models=[tiny_model, tuned])
    assert report["leaks"] is None
    assert "leak.jsonl" in report["leak_note"] and "give train_data" in result.summary()
    chinese, report, _ = run(config, models=[tiny_model, tuned], language="zh")
    assert "请用 train_data 给出" in report["leak_note"] and "give train_data" in chinese.summary()


def test_every_model_and_what_it_was_tuned_from_is_looked_at(config, tiny_model, tmp_path, pairs_file):
    leaking = leaking_file(tmp_path, config)
    tuned = tuned_model(tiny_model, leaking, tmp_path / "leaked", train_batch_size=2, finetune_type="full")
    clean = tmp_path / "clean.jsonl"
    clean.write_text('{"anchor": "k", "positive": "l"}\n{"anchor": "m", "positive": "n"}\n', encoding="utf-8")
    other = tuned_model(tiny_model, clean, tmp_path / "other", train_batch_size=2)
    later = tuned_model(tuned, clean, tmp_path / "later", train_batch_size=2)
    assert run(config, models=[tiny_model, other])[1]["leaks"]["answered"] == 0
    assert run(config, models=[tiny_model, other, tuned])[1]["leaks"]["answered"] == 1
    assert run(config, models=[tiny_model, later])[1]["leaks"]["answered"] == 1


@pytest.mark.parametrize("option", ["base_model_path", "lora_adapter_path", "model_name"])
def test_an_option_that_was_left_out_leads_to_no_folder_called_none(tmp_path, monkeypatch, option):
    for folder, options in {"tuned": {option: None, "data_path": "a"}, "None": {"data_path": "b"}}.items():
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "ebr_manifest.json", {"kind": "model", "config": options})
    monkeypatch.chdir(tmp_path)
    assert Provenance.of([str(tmp_path / "tuned")]).sources == (RecordedSource("a"),)


def test_folders_that_were_written_over_in_turns_name_each_other_and_the_check_ends(tmp_path):
    for folder, base in ("ab", "ba"):
        (tmp_path / folder).mkdir()
        options = {"data_path": f"records of {folder}", "model_name": str(tmp_path / base)}
        write_json(tmp_path / folder / "ebr_manifest.json", {"kind": "model", "config": options})
    sources = Provenance.of([str(tmp_path / "a")]).sources
    assert sources == (RecordedSource("records of a"), RecordedSource("records of b"))


def test_training_records_named_by_the_user_must_be_there(config, tmp_path):
    with pytest.raises(DataError, match=r"train_data .*nowhere"):
        run(config, train_data=str(tmp_path / "nowhere.jsonl"))


# ---------------------------------------------------------------- mistakes


def test_what_cannot_be_evaluated_is_said_before_anything_is_computed(config, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_measure_all", lambda *_: pytest.fail("computed"))
    with pytest.raises(ModelError, match="nowhere"):
        run(config, models=[tiny_model, str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="there is no such folder"):
        run(config, eval_dataset=tmp_path / "absent")
    with pytest.raises(DataError, match="there is no such folder"):
        run(config, forgetting_dataset=tmp_path / "absent")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=r"output_dir .*is a file"):
        run(config, output_dir=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"output_dir .*file is no folder that can be written to"):
        run(config, output_dir=tmp_path / "file" / "sub")
    (tmp_path / "odd" / "report.html").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"report.html in it is a folder"):
        run(config, output_dir=tmp_path / "odd")
    with pytest.raises(DataError, match="nowhere"):
        evaluation.plan_evaluation(config.model_copy(update={"train_data": str(tmp_path / "nowhere.json")}))
    with pytest.raises(ConfigError, match="models"):
        EvaluationConfig(models=[], eval_dataset=config.eval_dataset)
    assert not config.output_dir.exists()


def test_the_command_measures_and_plans(config, tiny_model, capsys):
    flags = [
        "evaluate",
        "--models",
        tiny_model,
        tiny_model,
        "--eval-dataset",
        str(config.eval_dataset),
        "--output_dir",
        str(config.output_dir),
    ]
    assert cli.main([*flags, "--dry_run"]) == 0
    assert "10 queries, 30 documents" in capsys.readouterr().out
    assert not config.output_dir.exists()
    assert cli.main(flags) == 0
    out = capsys.readouterr().out
    assert "no clear difference" in out and str(config.output_dir / "report.html") in out
    assert cli.main([*flags, "--k", "5"]) == 2
    assert "k: must be greater than or equal to 10" in capsys.readouterr().err


def test_an_earlier_report_stays_when_a_new_one_fails(config, monkeypatch):
    first, _, _ = run(config)
    before = first.html.read_bytes()
    monkeypatch.setattr(evaluation, "_measure_all", lambda *_: (_ for _ in ()).throw(ModelError("broken")))
    with pytest.raises(ModelError, match="broken"):
        run(config)
    assert first.html.read_bytes() == before


def test_the_hash_is_of_the_files_that_were_read(config, monkeypatch):
    real = evaluation._measure_all
    before = hash_files(evaluation_files(config.eval_dataset))

    def meddled(plan, say):
        with (config.eval_dataset / "corpus.jsonl").open("a", encoding="utf-8") as file:
            file.write('\n{"_id": "late", "text": "late"}')
        return real(plan, say)

    monkeypatch.setattr(evaluation, "_measure_all", meddled)
    assert run(config)[1]["dataset"]["sha256"] == before


def test_a_model_is_let_go_before_the_next_is_loaded(config, tiny_model, monkeypatch):
    alive, real = [], evaluation.load_for_evaluation
    loaded = []

    def load(*arguments):
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))
        found = real(*arguments)
        loaded.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(evaluation, "load_for_evaluation", load)
    run(config, models=[tiny_model] * 3)
    assert alive == [0, 0, 0]


def test_a_model_that_begins_with_no_transformer_is_measured(config, tmp_path):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "buy", "a", "the", "red", "blue", "green", "shoe", "shirt", "lamp", "cup", "book", "small", "large"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    static = StaticEmbedding(tokenizer, embedding_weights=np.eye(len(words), dtype=np.float32))
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path / "static"))
    _, report, _ = run(config, models=[str(tmp_path / "static")])
    # One number a word: a document that shares three of four words comes first.
    assert report["models"][str(tmp_path / "static")]["ndcg@10"] == pytest.approx(1)


# ---------------------------------------------------------------- at the end of fine-tuning


def test_a_report_that_fails_does_not_lose_the_model(tiny_model, pairs_file, evaluation_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ebr.retrieval.evaluation.evidence.LexicalIndex", lambda _: (_ for _ in ()).throw(MemoryError("no room"))
    )
    lines = []
    config = FinetuneConfig(
        model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "out", eval_dataset=evaluation_folder,
        max_seq_length=32, max_steps=2, report_to=["none"],
    )  # fmt: skip
    with pytest.raises(MemoryError, match="no room"):
        train_sentence_transformer(config, say=lines.append)
    (folder,) = [path for path in (tmp_path / "out").iterdir() if not path.name.endswith(".run")]
    assert SentenceTransformer(str(folder)).encode("red").shape == (32,)
    assert any("its report could not be made" in line for line in lines)


def test_weights_that_were_chosen_on_the_set_are_said_to_be(tiny_model, pairs_file, evaluation_folder, tmp_path):
    config = FinetuneConfig(
        model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "out", eval_dataset=evaluation_folder,
        max_seq_length=32, max_steps=4, eval_steps=1, early_stopping_patience=4, learning_rate=0.05, report_to=["none"],
    )  # fmt: skip
    result = train_sentence_transformer(config, say=lambda _: None)
    report = json.loads((result.model_path / "report.json").read_text("utf-8"))
    assert "the weights were chosen on this set" in report["leak_note"]
    if result.record.weights_step != result.record.n_steps:
        assert f"best: step {result.record.weights_step}" in result.summary()


@pytest.mark.parametrize("front_end", ["pairs", "triplets"])
def test_both_front_ends_end_with_the_report(tiny_model, pairs_file, triplets_file, evaluation_folder, tmp_path, front_end):
    common = {
        "eval_dataset": evaluation_folder,
        "query_max_len": 32,
        "passage_max_len": 32,
        "max_steps": 3,
        "report_to": ["none"],
        "seed": 3,
    }
    if front_end == "pairs":
        config = FinetuneConfig(model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "out", **common)
    else:
        config = TrainConfig(
            model_name=tiny_model, train_dataset=str(triplets_file), output_dir=tmp_path / "out", batch_size=4,
            finetune_type="lora", **common,
        )  # fmt: skip
    lines = []
    result = train_sentence_transformer(config, say=lines.append)
    report = json.loads((result.model_path / "report.json").read_text("utf-8"))
    assert list(report["models"]) == [tiny_model, str(result.model_path)]
    (found,) = report["comparisons"]
    assert found["metrics"] == json.loads((result.model_path / "evaluation.json").read_text("utf-8"))["metrics"]
    assert found["metrics"]["ndcg@10"]["tuned"] == result.comparison.change("ndcg@10").tuned
    assert result.report == result.model_path / "report.html" and result.report.is_file()
    assert str(result.report) in result.summary()
    # The fixture's training queries are made of the words of its evaluation queries, in another order.
    assert report["leaks"]["near_queries"] == 10
    assert any(line.startswith("LEAK: of 10 evaluation queries 0") and "10 more nearly so" in line for line in lines)


def test_without_an_evaluation_set_there_is_no_report(tiny_model, pairs_file, tmp_path):
    folder = tuned_model(tiny_model, pairs_file, tmp_path / "saved")
    assert not [path.name for path in (tmp_path / "saved").rglob("report.*")]
    assert folder


# ---------------------------------------------------------------- the real model


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "en_esci").is_dir(), reason="the data beside the repository is absent")
def test_the_embedded_model_on_the_shop_corpus_gives_the_published_figure(tmp_path):
    config = EvaluationConfig(
        models=["all-MiniLM-L6-v2"], eval_dataset=SHARED_DATA / "en_esci" / "eval", output_dir=tmp_path, max_seq_length=128
    )
    report = json.loads(evaluate_retrieval(config).json.read_text("utf-8"))
    assert report["models"]["all-MiniLM-L6-v2"]["ndcg@10"] == pytest.approx(0.677, abs=0.005)
