"""The check by itself: either format is read, nothing is trained, and one page is said and saved."""

from __future__ import annotations

import json

import pytest

from ebr.config import FinetuneConfig, TrainConfig
from ebr.errors import DataError
from ebr.training.doctor.command import check_training


def check(config):
    lines = []
    return check_training(config, say=lines.append), lines


def pairs_config(model, data, folder, **options):
    return FinetuneConfig(
        model_name=model, data_path=str(data), output_dir=folder, max_seq_length=64, report_to=["none"], **options
    )


def test_check_says_one_page_and_saves_it_beside_the_run(tiny_model, pairs_file, evaluation_folder, tmp_path):
    config = pairs_config(tiny_model, pairs_file, tmp_path / "out", eval_dataset=evaluation_folder)
    report, lines = check(config)
    work = tmp_path / "out" / "tiny-bert-peft-lora.run"
    assert {path.name for path in work.iterdir()} == {"training_check.json", "training_check.txt"}
    text = (work / "training_check.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"saved in {work / 'training_check.txt'}"]
    assert report.summary().splitlines() == text
    written = json.loads((work / "training_check.json").read_text(encoding="utf-8"))
    assert written == report.to_json()
    facts = written["facts"]
    # Thirty pairs with a negative each, three of them held out; batches of 6.
    assert facts["records"] == {"train": 27, "validation": 3, "texts": 81}
    assert facts["steps"] == {"steps": 5, "warm_up": 0, "processes": 1}
    # The queries are the anchors of ten records, with two words exchanged.
    assert facts["evaluation"] == {"queries": 10, "seen": 0, "nearly": 10}
    names = {finding.name for finding in report.findings}
    assert {"few-records", "few-steps", "evaluation-leak"} <= names


def test_check_says_what_a_run_would_warn_of(tiny_model, pairs_file, tmp_path):
    # Thirty pairs in batches of 29: one is left over; and there is one process to gather from.
    options = {"validation_split": 0, "train_batch_size": 29, "neg_nums": 0, "gather_negatives": True}
    _, lines = check(pairs_config(tiny_model, pairs_file, tmp_path, **options))
    assert [line[:40] for line in lines[:-1]] == [
        "warning: the last batch of each epoch is",
        "warning: gather_negatives: this is one p",
    ]


def test_a_run_may_begin_where_a_check_was_made(tiny_model, pairs_file, tmp_path):
    from ebr.training.loop.layouts import pair_layout

    check(pairs_config(tiny_model, pairs_file, tmp_path))
    pair_layout(tmp_path, "tiny-bert", "lora").check()


@pytest.mark.parametrize("data", ["pairs_file", "triplets_file"])
@pytest.mark.parametrize("front_end", ["pairs", "triplets"])
def test_either_front_end_checks_records_of_either_format(tiny_model, front_end, data, tmp_path, request):
    path = request.getfixturevalue(data)
    config = pairs_config(tiny_model, path, tmp_path)
    if front_end == "triplets":
        config = TrainConfig(
            model_name_or_path=tiny_model, train_dataset=str(path), output_dir=tmp_path / "out", batch_size=4,
            finetune_type="lora", passage_max_len=64, query_max_len=64,
        )  # fmt: skip
    report, _ = check(config)
    n_records = {"pairs_file": 30, "triplets_file": 31}[data]
    records = report.to_json()["facts"]["records"]
    assert records["train"] + records["validation"] == n_records


def test_set_that_cannot_be_split_is_a_finding_where_a_run_would_end(tiny_model, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("\n".join(json.dumps({"anchor": f"q {n}", "positive": "same"}) for n in range(9)), encoding="utf-8")
    report, _ = check(pairs_config(tiny_model, path, tmp_path))
    assert {"no-validation-split", "one-positive"} <= {finding.name for finding in report.findings}
    assert report.summary().startswith("training check: needs attention (2 critical, ")


def test_batch_of_one_without_negatives_is_a_finding_where_a_run_would_end(tiny_model, triplets_file, tmp_path):
    report, _ = check(pairs_config(tiny_model, triplets_file, tmp_path, train_batch_size=1, neg_nums=0))
    assert report.findings[0].name == "lonely-records"
    assert report.findings[0].severity.value == "critical"


def test_loss_that_the_records_cannot_teach_is_a_finding_where_a_run_would_end(tiny_model, pairs_file, tmp_path):
    report, _ = check(pairs_config(tiny_model, pairs_file, tmp_path, loss="distillation"))
    assert report.findings[0].name == "loss-lacks-data"
    assert "scores" in report.findings[0].what


def test_several_sources_are_checked_together(tiny_model, pairs_file, triplets_file, tmp_path):
    sources = [{"data_path": str(pairs_file)}, {"data_path": str(triplets_file), "weight": 2.0}]
    config = FinetuneConfig(
        model_name=tiny_model, sources=sources, output_dir=tmp_path, max_seq_length=64, report_to=["none"], validation_split=0
    )
    facts = check(config)[0].to_json()["facts"]
    assert facts["records"]["train"] == 61
    assert facts["steps"]["steps"] == 5 + 11  # batches of 6: 30 pairs once, 31 triplets twice


def test_file_that_cannot_be_read_is_an_error(tiny_model, tmp_path):
    with pytest.raises(DataError, match="no_such"):
        check(pairs_config(tiny_model, tmp_path / "no_such.json", tmp_path))
