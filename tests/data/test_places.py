"""Where outputs lie: what is no file is written into, a link stays one, and what no run of ours made is never replaced."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ebr.config import (
    EvaluationConfig,
    IndexConfig,
    InferenceConfig,
    MiningConfig,
    SampleConfig,
    SearchConfig,
    VisualizationConfig,
)
from ebr.data.files.write import manifest_path, read_manifest, write_aside, write_folder_aside, write_json
from ebr.data.sample.command import plan_sample
from ebr.data.vectors.embeddings import read_embeddings, write_embeddings
from ebr.errors import ConfigError
from ebr.inference.command import plan_inference, run_batch_inference
from ebr.model.output import check_output as check_merged
from ebr.retrieval.evaluation.command import plan_evaluation
from ebr.retrieval.index.command import build_index, plan_index
from ebr.retrieval.index.search import plan_search, search_index
from ebr.retrieval.mining.command import mine_hard_negatives, plan_mining
from ebr.training.loop.layouts import Layout
from ebr.visualization.command import plan_visualization, visualize_embeddings
from tests.conftest import REPO

ELSEWHERE = Path("/dev/shm")


def silent(line):
    """Where lines for people go that nobody looks at."""


def vectors(n_rows, dim=32):
    return np.random.default_rng(0).normal(size=(n_rows, dim)).astype(np.float32)


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "part.csv").write_text("id\x01description\x01label\n1\x01a red shoe\x01A\n2\x01a blue lamp\x01B\n")
    return folder


@pytest.fixture(params=["the same disk", "another disk"])
def disk(request, tmp_path):
    """A folder that links lead to."""
    if request.param == "the same disk":
        (tmp_path / "big").mkdir()
        yield tmp_path / "big"
        return
    import tempfile

    if not ELSEWHERE.is_dir() or ELSEWHERE.stat().st_dev == tmp_path.stat().st_dev or not os.access(ELSEWHERE, os.W_OK):
        pytest.skip("no other file system to write to")
    with tempfile.TemporaryDirectory(dir=ELSEWHERE) as folder:
        yield Path(folder)


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and what() was read from it by now."""
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()

    def what():
        reader.join(timeout=60)
        return read[0]

    return tmp_path / "pipe", what


# ---------------------------------------------------------------- what is no file


def test_pipe_is_written_into_and_stays_one(tmp_path, pipe):
    path, what = pipe
    with write_aside(path) as aside:
        aside.write_text("whole")
    assert what() == b"whole"
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


def test_device_is_written_into_and_stays_one(tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        (tmp_path / "null").write_text("")
    except PermissionError:
        pytest.skip("only root makes devices, and not everywhere")
    write_json(tmp_path / "null", {})
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    assert [one.name for one in tmp_path.iterdir()] == ["null"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files have no names here")
@pytest.mark.parametrize("to", ["a pipe", "a file"])
def test_standard_output_takes_what_is_written_between_what_is_printed(tmp_path, to):
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    code = f"""
from pathlib import Path
from ebr.data.files.write import write_json
print("before")
write_json(Path({str(tmp_path / "stdout")!r}), 7)
print("after")
"""
    with (tmp_path / "out").open("w") as file:
        file.write("head\n")
        file.flush()
        where = subprocess.PIPE if to == "a pipe" else file
        done = subprocess.run([sys.executable, "-c", code], cwd=REPO, stdout=where, text=True, check=True)
    if to == "a pipe":
        assert done.stdout == "before\n7\nafter\n"
    else:
        assert (tmp_path / "out").read_text() == "head\nbefore\n7\nafter\n"
    assert (tmp_path / "stdout").is_symlink()


# ---------------------------------------------------------------- links


def test_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path, disk):
    (disk / "out.json").write_text("1")
    (tmp_path / "second").symlink_to(disk / "out.json")
    (tmp_path / "first").symlink_to("second")
    write_json(tmp_path / "first", 2)
    assert json.loads((disk / "out.json").read_text()) == 2
    assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()
    assert [one.name for one in disk.iterdir()] == ["out.json"]


def test_folder_behind_a_link_is_replaced_on_its_own_disk(tmp_path, disk):
    (disk / "model").mkdir()
    (tmp_path / "model").symlink_to(disk / "model")
    with write_folder_aside(tmp_path / "model") as aside:
        (aside / "weights").touch()
        assert aside.parent == disk
    assert (tmp_path / "model").is_symlink()
    assert [one.name for one in (disk / "model").iterdir()] == ["weights"]
    assert [one.name for one in disk.iterdir()] == ["model"]


def test_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted" / "out.json")
    with pytest.raises(ConfigError, match=r"gone: is a link to .*unmounted.*, whose folder is not there; make it"):
        write_json(tmp_path / "gone", 1)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="loop: is a link that leads back to itself"):
        write_json(tmp_path / "loop", 1)
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("name", ["v.txt", "v.npy", "parts"])
def test_vectors_state_and_manifest_lie_where_the_link_leads_and_are_read_through_it(tiny_model, tables, tmp_path, disk, name):
    target = disk / name.replace("v.", "vectors.")
    if not target.suffix:
        target.mkdir()
    (tmp_path / name).symlink_to(target)
    before = {path.name for path in tmp_path.iterdir()}
    config = InferenceConfig(model_path=tiny_model, input_dir=tables, output_path=tmp_path / name, precision="float32")
    assert run_batch_inference(config, say=silent).embedded.n_encoded == 2
    assert {path.name for path in tmp_path.iterdir()} == before and (tmp_path / name).is_symlink()
    assert manifest_path(target).is_file() and (disk / f".{target.name}.ebr").is_dir()
    assert run_batch_inference(config, say=silent).embedded.n_encoded == 0
    found = read_embeddings(tmp_path / name)
    assert found.columns["id"] == ["1", "2"] and found.manifest == read_manifest(target)


def test_index_behind_a_link_is_built_there_and_found_through_it(tmp_path, disk):
    write_embeddings(tmp_path / "v.npy", {"id": ["1", "2"]}, vectors(2))
    (tmp_path / "index").symlink_to(disk / "index")
    for _ in range(2):
        build_index(IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "index"), say=silent)
    assert (tmp_path / "index").is_symlink() and [one.name for one in disk.iterdir()] == ["index"]
    assert read_manifest(tmp_path / "index")["n_rows"] == 2


def test_mined_file_and_map_lie_with_their_companions_where_the_link_leads(tiny_model, pairs_file, tmp_path, disk):
    (tmp_path / "here").mkdir()
    for name in ("mined.jsonl", "map.png"):
        (tmp_path / "here" / name).symlink_to(disk / name)
    mined = {"model_path": tiny_model, "data_path": str(pairs_file), "output_path": tmp_path / "here" / "mined.jsonl"}
    write_embeddings(tmp_path / "v.npy", {"id": ["1", "2", "3"], "label": ["a", "b", "a"]}, vectors(3))
    drawn = {
        "embeddings_path": tmp_path / "v.npy",
        "output_path": tmp_path / "here" / "map.png",
        "method": "pca",
        "cache": False,
    }
    for _ in range(2):
        mine_hard_negatives(MiningConfig(**mined), say=silent)
        visualize_embeddings(VisualizationConfig(**drawn), say=silent)
    companions = ["map.html", "map.json", "map.png", "mined.jsonl", "mined.jsonl.examples.md", "mined.jsonl.manifest.json"]
    assert sorted(one.name for one in disk.iterdir()) == companions
    assert sorted(one.name for one in (tmp_path / "here").iterdir()) == ["map.png", "mined.jsonl"]
    assert all(one.is_symlink() for one in (tmp_path / "here").iterdir())


def test_link_to_a_name_of_another_kind_is_refused(tiny_model, tables, tmp_path):
    (tmp_path / "v.parquet").symlink_to(tmp_path / "blob")
    with pytest.raises(ConfigError, match=r"is a link to .*blob, of another suffix"):
        plan_inference(InferenceConfig(model_path=tiny_model, input_dir=tables, output_path=tmp_path / "v.parquet"))


def test_link_among_the_inputs_is_no_output(tiny_model, tables, tmp_path):
    (tables / "v.csv").symlink_to(tmp_path / "v.csv")
    with pytest.raises(ConfigError, match="lies in input_dir"):
        plan_inference(InferenceConfig(model_path=tiny_model, input_dir=tables, output_path=tables / "v.csv"))


# ---------------------------------------------------------------- what no run of ours made


@pytest.fixture
def plans(tiny_model, tables, pairs_file, evaluation_folder, tmp_path):
    """By verb, its plan for an output."""
    write_embeddings(tmp_path / "v.npy", {"id": ["1", "2", "3"], "label": ["a", "b", "a"]}, vectors(3))
    index = tmp_path / "index"
    build_index(IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=index), say=silent)
    return {
        "search": lambda path: plan_search(SearchConfig(query="a", index_path=index, output_path=path)),
        "infer": lambda path: plan_inference(InferenceConfig(model_path=tiny_model, input_dir=tables, output_path=path)),
        "mine": lambda path: plan_mining(MiningConfig(model_path=tiny_model, data_path=str(pairs_file), output_path=path)),
        "visualize": lambda path: plan_visualization(
            VisualizationConfig(embeddings_path=tmp_path / "v.npy", output_path=path, cache=False)
        ),
        "index": lambda path: plan_index(IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=path)),
        "sample": lambda path: plan_sample(SampleConfig(output_root=tmp_path / "theirs")),
        "merge": lambda path: check_merged(path.parent, {}, mark="adapter_sha256", work="merge"),
        "finetune": lambda path: Layout(path.parent, path.parent).check(),
        "evaluate": lambda path: plan_evaluation(
            EvaluationConfig(models=[tiny_model], eval_dataset=evaluation_folder, output_dir=path.parent, save_runs=True)
        ),
    }


FOREIGN = {
    "search over vectors": ("search", "x.npy", "holds something else than hits"),
    "search over texts": ("search", "x.txt", "holds something else than hits"),
    "infer over a table": ("infer", "x.parquet", "was not made by ebr"),
    "infer over the rows of others": ("infer", "x.rows.parquet", "was not made by ebr"),
    "infer into parts of others": ("infer", "out/part-00000-0ab1.snappy.parquet", "holds other files"),
    "visualize over a picture": ("visualize", "x.png", "of no map"),
    "visualize over a page": ("visualize", "x.html", "of no map"),
    "mine over a file": ("mine", "x.jsonl", "not mined by ebr"),
    "sample over a table": ("sample", "infer_data/api_docs.csv", "is no sample of ours"),
    "sample over judgements": ("sample", "datasets/api_docs/qrels.tsv", "is no sample of ours"),
    "merge over a model": ("merge", "x/config.json", "holds something else than an earlier merge"),
    "finetune over an index": ("finetune", "x-peft-lora/ebr_manifest.json", "is not a model of ours"),
    "evaluate over a page": ("evaluate", "report.html", "not written by ebr evaluate"),
    "evaluate over numbers": ("evaluate", "report.json", "not written by ebr evaluate"),
    "evaluate over the runs of TensorBoard": ("evaluate", "runs/events.out.tfevents.1", "not written by ebr evaluate"),
}
GIVEN = {"x.rows.parquet": "x.npy", "out/part-00000-0ab1.snappy.parquet": "out", "runs/events.out.tfevents.1": "report.html"}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_earlier_result_is_refused_and_stays(plans, tmp_path, case):
    verb, name, message = FOREIGN[case]
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"kind": "precious"}\n')
    with pytest.raises(ConfigError, match=message):
        plans[verb](tmp_path / "theirs" / GIVEN.get(name, name))
    assert theirs.read_text() == '{"kind": "precious"}\n'


@pytest.mark.parametrize(("verb", "name"), [("infer", "x.txt"), ("mine", "x.jsonl"), ("index", "x"), ("visualize", "x.png")])
def test_pipe_is_refused_where_other_files_go_beside_it(plans, tmp_path, verb, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="is no file but a device or a pipe"):
        plans[verb](tmp_path / name)


def test_mounted_file_system_cannot_be_replaced_by_an_index(plans, tmp_path, monkeypatch):
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "mounted")
    with pytest.raises(ConfigError, match="is a mounted file system, which cannot be replaced; give a folder in it"):
        plans["index"](tmp_path / "mounted")


def test_hits_go_into_a_pipe_and_over_hits_of_before(tiny_model, tables, tmp_path, pipe):
    run_batch_inference(
        InferenceConfig(model_path=tiny_model, input_dir=tables, output_path=tmp_path / "v.npy", precision="float32"),
        say=silent,
    )
    build_index(IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "index"), say=silent)
    (tmp_path / "hits.jsonl").touch()  # empty: nothing is lost
    path, what = pipe
    options = {"query": "a red shoe", "index_path": tmp_path / "index"}
    for output in (tmp_path / "hits.jsonl", tmp_path / "hits.jsonl", path):
        search_index(SearchConfig(**options, output_path=output), say=silent)
    assert what() == (tmp_path / "hits.jsonl").read_bytes()
    assert len(what().splitlines()) == 2


def test_map_that_was_killed_before_its_numbers_can_be_drawn_again(tmp_path, monkeypatch):
    from ebr.visualization import command as visualization

    write_embeddings(tmp_path / "v.npy", {"id": ["1", "2", "3"], "label": ["a", "b", "a"]}, vectors(3))
    config = VisualizationConfig(
        embeddings_path=tmp_path / "v.npy", output_path=tmp_path / "map.png", method="pca", cache=False
    )
    monkeypatch.setattr(visualization.MapContent, "write_page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        visualize_embeddings(config, say=silent)
    assert (tmp_path / "map.png").exists()
    assert json.loads((tmp_path / "map.json").read_text())["files"] == []
    monkeypatch.undo()
    assert visualize_embeddings(config, say=silent).page.exists()
