"""Names that are not UTF-8, as GBK systems leave them: refused before the work, for records and libraries cannot hold them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr import cli
from ebr.data.files.places import check_place
from ebr.data.files.write import hash_files, read_json, write_json
from ebr.data.training.examples import read_examples
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import ConfigError, DataError, ModelError, SaveError
from ebr.model.adapters.files import find_adapter
from ebr.model.origin import resolve_model
from ebr.workflow.verbs import VERBS
from tests.training.test_full_disk import Disk, answering, finished

GBK = os.fsdecode("中文".encode("gbk"))


@pytest.mark.parametrize("config", [verb.config for verb in VERBS.values()], ids=VERBS)
def test_every_option_that_takes_a_name_refuses_one_that_is_not_utf8(config):
    for name, field in config.model_fields.items():
        if not {"Path", "str"} & set(str(field.annotation).replace("pathlib.", "").replace("|", " ").split()):
            continue
        for value in {GBK, Path(GBK) / "x.txt"} if "Path" in str(field.annotation) else {GBK}:
            with pytest.raises(ConfigError, match=rf"(?m)^{config.spelling(name)}: is not UTF-8; rename"):
                config(**{name: value})


def test_list_refuses_a_name_that_is_not_utf8_too():
    with pytest.raises(ConfigError, match=r"models: is not UTF-8; rename what it names, or type it in UTF-8"):
        VERBS["evaluate"].config(models=["a", GBK], eval_dataset="e")


def test_command_that_could_not_write_its_record_does_no_work(tmp_path, tiny_model, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("id\x01text\n1\x01red shoe\n", encoding="utf-8")
    flags = ["--input_dir", str(tmp_path / "in"), "--model_path", tiny_model, "--description_column", "text"]
    assert cli.main(["infer", *flags, "--output_path", str(tmp_path / GBK / "out.txt")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ebr: output_path: is not UTF-8; rename the file or folder (got ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_folder_of_a_model_or_adapter_is_refused_however_it_is_reached(tmp_path, monkeypatch):
    for name in ("config.json", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / GBK / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / GBK / "m" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / GBK / "m")
    monkeypatch.chdir(tmp_path / GBK)
    for path in ("m", str(tmp_path / "link")):
        with pytest.raises(ModelError, match=r"^model .*udcd6.*/m' is not UTF-8; rename the file or folder$"):
            resolve_model(path)
        with pytest.raises(ModelError, match=r"^lora_adapter_path .*udcd6.*/m' is not UTF-8; rename the file or folder$"):
            find_adapter(Path(path))


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_output_that_lies_where_the_name_is_not_utf8_is_refused_however_it_is_reached(tmp_path, name):
    (tmp_path / GBK).mkdir()
    (tmp_path / name).symlink_to(tmp_path / GBK / name)
    for path in (tmp_path / name, tmp_path / GBK / name):
        with pytest.raises(ConfigError, match=rf"^output_path .*udcd6.*/{name}' is not UTF-8; rename the file or folder$"):
            check_place(path, is_folder="." not in name)


def test_columns_in_a_file_whose_name_is_not_utf8_are_refused_with_what_to_do(tmp_path):
    pq.write_table(pa.table({"query": ["a"], "pos": ["b"], "vector": [[1.0, 2.0]]}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").rename(tmp_path / f"{GBK}.parquet")
    for read in (lambda: read_embeddings(tmp_path), lambda: read_examples([tmp_path / f"{GBK}.parquet"])):
        with pytest.raises(DataError, match=r"\.parquet: is not UTF-8; rename the file or folder"):
            read()


def test_record_holds_a_name_that_is_not_utf8_as_json_escapes_it(tmp_path):
    write_json(tmp_path / "record.json", {"working in": GBK, "text": "中文"})
    text = (tmp_path / "record.json").read_text(encoding="utf-8")
    assert r'"working in": "\udcd6\udcd0\udcce\udcc4"' in text
    assert '"text": "中文"' in text
    assert read_json(tmp_path / "record.json") == json.loads(text) == {"working in": GBK, "text": "中文"}


def test_files_of_any_name_have_a_hash(tmp_path):
    for name in (GBK, "中文"):
        (tmp_path / name).write_text("a", encoding="utf-8")
    assert hash_files([tmp_path / GBK]) != hash_files([tmp_path / "中文"])


def test_folder_for_a_finished_model_is_asked_for_again(tmp_path):
    disk, lines = Disk(tmp_path / "final"), []
    ask = answering(str(tmp_path / GBK), str(tmp_path / "good"))
    assert finished(disk, tmp_path / "final", tmp_path).saved(ask, lines.append) == tmp_path / "good"
    assert lines[1].endswith("is not UTF-8; rename the file or folder)")


def test_no_finished_model_goes_home_where_home_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / GBK))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    with pytest.raises(SaveError, match=r"it is saved in .*/home/ebr-saved-"):
        finished(Disk(tmp_path / "final"), tmp_path / "final", tmp_path).saved(None, print)
