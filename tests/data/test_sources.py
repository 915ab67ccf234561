"""Several training sources: one file says what is trained on, how often and with which prompts, or says what is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from ebr.config.options import add_arguments, default_text
from ebr.config.shared.sources import SourceOptions
from ebr.config.shared.tuning import TuningOptions
from ebr.data.training.examples import Example
from ebr.data.training.sources import after_split, all_examples, all_files, prompts_of, read_sources, source_of
from ebr.data.training.split import split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import ConfigError, DataError


class Pairs(SourceOptions, TuningOptions):
    """The front end whose data_path has a default."""


class Triplets(Pairs):
    """The front end that calls it otherwise and cannot do without."""

    data_path: str = Field(..., alias="train_dataset")


ENTRIES = [{"data_path": "faq.jsonl", "weight": 0.5}, {"data_path": "logs", "query_prompt": "q: ", "name": "clicks"}]


@pytest.fixture
def folder(tmp_path):
    """faq.jsonl with two pairs, logs/a.jsonl with one, and sources.json that lists both."""
    write(tmp_path / "faq.jsonl", [("how to pay", "by card"), ("how to return", "by post")])
    write(tmp_path / "logs" / "a.jsonl", [("pay", "by card")])
    (tmp_path / "sources.json").write_text(json.dumps(ENTRIES))
    return tmp_path


def write(path, pairs):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"anchor": query, "positive": positive}) + "\n" for query, positive in pairs))


# ---------------------------------------------------------------- reading


def test_each_source_has_its_records_its_weight_and_its_prompts(folder):
    faq, logs = read_sources(folder / "sources.json")
    assert (faq.name, faq.weight, faq.query_prompt, faq.passage_prompt) == ("faq.jsonl", 0.5, None, None)
    assert (logs.name, logs.weight, logs.query_prompt, logs.passage_prompt) == ("clicks", 1.0, "q: ", None)
    assert [example.query for example in faq.examples] == ["how to pay", "how to return"]
    assert logs.files == (folder / "logs" / "a.jsonl",)


def test_paths_in_a_file_are_relative_to_it_and_in_a_list_to_the_working_directory(folder, monkeypatch):
    elsewhere = folder / "logs"
    monkeypatch.chdir(elsewhere)
    assert len(read_sources(folder / "sources.json")) == 2
    with pytest.raises(DataError, match=r"sources: entry 1: data_path faq\.jsonl"):
        read_sources(ENTRIES)
    monkeypatch.chdir(folder)
    assert read_sources(ENTRIES)[0].examples == read_sources(folder / "sources.json")[0].examples


def test_rows_of_all_sources_stand_one_after_another(folder):
    sources = read_sources(folder / "sources.json")
    assert [example.query for example in all_examples(sources)] == ["how to pay", "how to return", "pay"]
    assert source_of(sources) == [0, 0, 1]


def test_a_run_depends_on_the_list_and_on_every_file_in_it(folder):
    names = ["sources.json", "faq.jsonl", "a.jsonl"]
    given = folder / "sources.json"
    assert [path.name for path in all_files(given, read_sources(given))] == names
    entries = [{"data_path": str(folder / "faq.jsonl")}]
    assert [path.name for path in all_files(entries, read_sources(entries))] == ["faq.jsonl"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_path": "faq.jsonl", "wieght": 2}, "'wieght' is unknown; did you mean 'weight'?"),
        ({"data_path": "faq.jsonl", "zzz": 2}, "'zzz' is unknown; an entry has data_path, weight"),
        ({"weight": 2}, "'data_path' is missing; give a file, a folder or a glob"),
        ({"data_path": " "}, "'data_path' is missing"),
        ({"data_path": ["a", "b"]}, "'data_path' is list, not a text"),
        ({"data_path": "gone.jsonl"}, "gone.jsonl: is no file, folder or glob"),
        ({"data_path": "faq.jsonl", "weight": -1}, "'weight' is -1; it must be above 0 and at most 1000"),
        ({"data_path": "faq.jsonl", "weight": 0}, "to train without a source, leave it out"),
        ({"data_path": "faq.jsonl", "weight": 1001}, "'weight' is 1001; it must be above 0 and at most 1000"),
        ({"data_path": "faq.jsonl", "weight": "2"}, "'weight' is '2', not a number"),
        ({"data_path": "faq.jsonl", "weight": True}, "'weight' is True, not a number"),
        ({"data_path": "faq.jsonl", "weight": float("nan")}, "'weight' is nan, not a number"),
        ({"data_path": "faq.jsonl", "query_prompt": 3}, "'query_prompt' is int, not a text"),
        ({"data_path": "faq.jsonl", "name": ""}, "'name' is empty; leave it out or give one"),
        ({"data_path": "logs"}, "'logs' is the name of source 1 too; give it another 'name'"),
        ("faq.jsonl", "is str, not an object like {…}"),
    ],
)
def test_a_wrong_entry_is_named_by_file_and_number(folder, entry, said):
    file = folder / "wrong.json"
    file.write_text(json.dumps([{"data_path": "logs"}, entry]))
    with pytest.raises(DataError) as caught:
        read_sources(file)
    assert f"{file}: entry 2: " in str(caught.value)
    assert said in str(caught.value)


def test_every_wrong_entry_is_told_at_once(folder):
    with pytest.raises(DataError, match=r"(?s)^2 wrong sources.*entry 1: .*entry 3: "):
        read_sources([{"weight": 1}, {"data_path": str(folder / "logs")}, {"data_path": "", "name": "b"}])


def test_a_wrong_record_is_told_by_its_reader(folder):
    (folder / "faq.jsonl").write_text('{"anchor": "alone"}\n')
    with pytest.raises(DataError, match=r"faq\.jsonl:1: 'positive' is missing"):
        read_sources(folder / "sources.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"data_path": "faq.jsonl"}', "must be a list of entries"),
        ("[]", "must be a list of entries"),
        ("[{]", "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_sources_is_refused(folder, text, said):
    file = folder / "odd.json"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=said) as caught:
        read_sources(file)
    assert str(file) in str(caught.value)


# ---------------------------------------------------------------- after the split, prompts


def test_the_split_leaves_every_row_its_source():
    examples = [Example(f"q{index // 2}", (f"p{index}",), (f"p{(index + 5) % 40}",)) for index in range(40)]
    sources = [index % 3 for index in range(40)]
    by_positive = {example.positives: source for example, source in zip(examples, sources, strict=True)}
    train, validation = split_validation(examples, 0.3, np.random.default_rng(1), TextTable.of(examples))
    assert len(validation) == 12
    of_train, of_validation = after_split(examples, sources, validation, TextTable.of(examples))
    assert of_train == [by_positive[example.positives] for example in train]
    assert of_validation == [by_positive[example.positives] for example in validation]


def test_a_text_of_two_sources_stays_on_one_side():
    shared = [Example("same", ("a",)), Example("other", ("b",)), Example("same", ("c",))]
    assert after_split(shared, [0, 0, 1], [shared[0], shared[2]], TextTable.of(shared)) == ([0], [0, 1])


def test_a_source_has_its_own_prompts_and_else_the_runs(folder):
    faq, logs = read_sources(folder / "sources.json")
    run = {"query": "query: ", "document": "passage: "}
    assert prompts_of(faq, run) == run
    assert prompts_of(logs, run) == {"query": "q: ", "document": "passage: "}
    (bare,) = read_sources([{"data_path": str(folder / "logs"), "query_prompt": "", "passage_prompt": ""}])
    assert prompts_of(bare, run) == {"query": "", "document": ""}


# ---------------------------------------------------------------- the options


@pytest.mark.parametrize("given", ["a/sources.json", Path("a/sources.json"), ENTRIES, None])
def test_a_path_and_a_list_come_back_from_their_record(given):
    config = Pairs(sources=given)
    record = json.loads(json.dumps(config.to_json()))
    assert Pairs.from_dict(record) == config
    assert record["sources"] == (str(given) if isinstance(given, Path) else given)


def test_a_path_object_in_an_entry_is_recorded_as_text():
    config = Pairs()
    config["sources"] = [{"data_path": Path("faq.jsonl")}]
    assert config.to_json()["sources"] == [{"data_path": "faq.jsonl"}]
    assert Pairs.from_dict(config.to_json()) == config


@pytest.mark.parametrize("wrong", [[], ["faq.jsonl"], 3, {"data_path": "faq.jsonl"}, " "])
def test_what_is_neither_a_file_nor_entries_is_one_clear_error(wrong):
    with pytest.raises(ConfigError, match=r"^sources: must be a JSON file or a list of entries like [^\n]*$"):
        Pairs(sources=wrong)


def test_the_command_line_takes_a_path():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Pairs)
    values = vars(parser.parse_args(["--sources", "sources.json", "--group_by_length"]))
    config = Pairs.from_dict(values)
    assert config.sources == Path("sources.json")
    assert config.group_by_length is True
    assert "--sources PATH" in parser.format_help()
    assert default_text(Pairs.model_fields["sources"]) == "not set"


def test_data_path_and_sources_exclude_each_other():
    Pairs(data_path="mine.jsonl").check_sources()
    Pairs(sources=ENTRIES).check_sources()
    with pytest.raises(ConfigError, match=r"^data_path, sources: .*make mine\.jsonl one of the sources"):
        Pairs(sources=ENTRIES, data_path="mine.jsonl").check_sources()


def test_sources_stand_for_a_data_path_that_is_required():
    with pytest.raises(ConfigError, match="train_dataset: is required"):
        Triplets()
    config = Triplets(sources=ENTRIES)
    config.check_sources()
    config.group_by_length = True
    assert Triplets.from_dict(config.to_json()) == config
    with pytest.raises(ConfigError, match=r"^train_dataset, sources: "):
        Triplets(sources=ENTRIES, train_dataset="mine.jsonl").check_sources()
