"""What "the same text" means in a run: one thing for split, check and loss, made out once a text."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from ebr.config import FinetuneConfig
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.evaluation.leaks import find_leaks
from ebr.data.text import normal_form as module
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable
from ebr.workflow.finetuning import train_sentence_transformer
from tests.data.test_leaks import dataset_of


@pytest.fixture
def normalised(monkeypatch):
    """Every text whose normal form is made, as often as it is."""
    calls = Counter()
    original = module.normal_form

    def counting(text):
        calls[text] += 1
        return original(text)

    for name, one in list(sys.modules.items()):
        if name.startswith("ebr.") and getattr(one, "normal_form", None) is original:
            monkeypatch.setattr(one, "normal_form", counting)
    return calls


def test_a_fine_tuning_makes_the_normal_form_of_each_text_once_and_of_none_while_it_trains(
    tiny_model, pairs_file, evaluation_folder, tmp_path, normalised
):
    config = FinetuneConfig(
        model_name=tiny_model, data_path=str(pairs_file), eval_dataset=evaluation_folder, output_dir=tmp_path / "out",
        num_epochs=2, train_batch_size=4, neg_nums=1, max_seq_length=16, report_to=["none"], validation_split=0.2,
        noise_enabled=True, noise_prob=0.5, noise_type="random_swap",
    )  # fmt: skip
    train_sentence_transformer(config, say=lambda line: None)
    records = json.loads(pairs_file.read_text(encoding="utf-8"))
    dataset = read_evaluation_set(evaluation_folder)
    # The evaluation's texts are its own, though many say the same.
    of_training = Counter({text for record in records for text in record.values()})
    assert normalised == of_training + Counter(dataset.queries) + Counter(dataset.documents)


def test_texts_of_one_normal_form_have_one_number_and_the_table_holds_their_form_once():
    table = TextTable.of([Example("Red shoe", ("a b",), ("red  SHOE",)), Example("a b", ("ａ b ", "c"))])
    assert table.ids == {"Red shoe": 0, "a b": 1, "red  SHOE": 0, "ａ b ": 1, "c": 2}
    assert table.forms == {"red shoe": 0, "a b": 1, "c": 2}
    assert table.records([Example("c", ("Red shoe",), ("a b",))]) == [RecordIds(2, (0,), (1,))]


def test_a_table_without_its_forms_answers_no_question_about_them():
    table = TextTable(["a"])
    table.drop_forms()
    assert table.ids == {"a": 0}
    with pytest.raises(AttributeError):
        find_leaks([Example("a", ("a",))], dataset_of(["a"], ["a"]), table)
