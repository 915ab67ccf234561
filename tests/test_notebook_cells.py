"""The cells of the docs that a user appends to the notebook: they run, and write a report and an index."""

import json
import re
import shutil

import nbformat
import pytest

from ebr.notebook import notebook_configs, run_notebook
from tests.conftest import REPO

SECTIONS = {"docs/notebook.md": "## Cells of your own", "docs/notebook.zh.md": "## 追加自己的单元"}
BY_ITSELF = {"docs/notebook.md": "## Tuned by itself", "docs/notebook.zh.md": "## 自动调优"}


def cells_of(page, sections=SECTIONS):
    """The Python blocks of the section, without their comments, which are in the reader's language."""
    section = (REPO / page).read_text(encoding="utf-8").split(f"\n{sections[page]}\n")[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [re.sub(r"  # .*", "", block) for block in blocks]


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [f"item-{row}\x01the {colour} {thing}" for row, (colour, thing) in enumerate(PRODUCTS)]
    (folder / "items.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    return folder


PRODUCTS = [(colour, thing) for colour in ("red", "blue", "green") for thing in ("shoe", "shirt", "lamp", "cup", "book")]


def test_both_pages_append_the_same_two_pairs_of_cells():
    english = cells_of("docs/notebook.md")
    assert english == cells_of("docs/notebook.zh.md")
    evaluation, evaluate, index, build = english
    assert (evaluation.count("EVAL_CONFIG"), index.count("INDEX_CONFIG")) == (4, 4)
    assert "evaluate_retrieval(EVAL_CONFIG)" in evaluate
    assert "build_index(INDEX_CONFIG)" in build


def test_each_pair_brings_its_own_imports():
    for pair in (cells_of("docs/notebook.md")[:2], cells_of("docs/notebook.md")[2:]):
        imported = re.search(r"^from ebr import (.*)$", pair[0], re.MULTILINE)[1].split(", ")
        used = set(re.findall(r"\b([a-z_]+)\(", "".join(pair))) - {"display", "search"}
        assert used == set(imported)


def test_both_pages_tune_by_itself_with_the_same_cells():
    config, call = cells_of("docs/notebook.md", BY_ITSELF)
    assert [config, call] == cells_of("docs/notebook.zh.md", BY_ITSELF)
    values = {"EBR_CONFIG_OVERRIDES": json.dumps({"TUNE_CONFIG": {"minutes": 5}})}
    exec(config, values)
    assert (values["TUNE_CONFIG"].minutes, values["TUNE_CONFIG"].max_seq_length) == (5, 64)
    assert "tune_model(TUNE_CONFIG)" in call


def test_overrides_of_other_cells_do_not_hinder_a_cell():
    overrides = json.dumps({"FINETUNE_CONFIG": {"num_epochs": 2}, "INDEX_CONFIG": {"kind": "hnsw"}})
    evaluation = {"models": ["a"], "eval_dataset": "e"}
    assert notebook_configs(overrides, EVAL_CONFIG=evaluation)[0].models == ["a"]
    assert notebook_configs(overrides, INDEX_CONFIG={"kind": "flat"})[0].kind == "hnsw"


@pytest.mark.long
def test_appended_cells_run_behind_the_three_stages(tiny_model, evaluation_folder, table, tmp_path, monkeypatch):
    notebook = nbformat.read(REPO / "EBR_workflow.ipynb", as_version=4)
    places = [place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    off = nbformat.v4.new_code_cell("RUN_FINETUNE = RUN_VISUALIZATION = False")
    notebook.cells.insert(places[0] + 1, off)  # where papermill puts its own
    appended = [nbformat.v4.new_code_cell(source) for source in cells_of("docs/notebook.md")]
    notebook.cells += appended
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    tuned = shutil.copytree(tiny_model, tmp_path / "tuned")
    overrides = {
        "INFERENCE_CONFIG": {
            "model_path": tiny_model, "input_dir": str(table), "file_pattern": "items.csv", "output_path": "vectors.txt",
        },
        "EVAL_CONFIG": {"models": [tiny_model, str(tuned)], "eval_dataset": str(evaluation_folder), "output_dir": "report"},
        "INDEX_CONFIG": {"embeddings_path": "vectors.txt", "index_path": "index", "kind": "flat", "sample_queries": 10},
    }  # fmt: skip
    monkeypatch.setenv("EBR_CONFIG_OVERRIDES", json.dumps(overrides))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    run_notebook(tmp_path / "mine.ipynb", tmp_path / "executed.ipynb")
    _, evaluated, _, indexed = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[-4:]
    assert (tmp_path / "report" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    measured = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["models"]
    assert len(measured) == 2
    assert all(0 <= metrics["ndcg@10"] <= 1 for metrics in measured.values())
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.faiss", "rows.parquet", "ebr_manifest.json"}
    assert "report.html" in text_of(evaluated)
    assert re.findall(r"item-\d+", text_of(indexed)), "the search shows no ids"


def text_of(cell):
    shown = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(shown)
