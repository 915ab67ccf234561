"""The notebook: thin, without outputs, and it runs from end to end on the hand-written sample."""

import ast
import json

import nbformat
import pytest

from ebr.notebook import run_notebook
from tests.conftest import REPO

NOTEBOOK = REPO / "EBR_workflow.ipynb"


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_it_is_committed_without_outputs(cells):
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


def test_it_defines_no_function_no_class_and_no_loop(cells):
    for cell in cells:
        if cell.cell_type == "code":
            kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
            assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda}, cell.source


def test_it_has_two_texts_the_switches_the_configs_and_three_stages_of_three_lines(cells):
    assert [cell.cell_type for cell in cells] == ["markdown", "markdown", "code", "code", "code", "code", "code"]
    assert cells[2].metadata.tags == ["parameters"]
    assert all(len(cell.source.split("\n")) <= 3 for cell in cells[4:])


def assert_worth_keeping(outputs):
    """A line a stage and no bar that moved, nothing of libraries, tables, the loss curve and the map."""
    streams = [output for output in outputs if output["output_type"] == "stream"]
    assert {output["name"] for output in streams} == {"stdout"}
    said = "".join(output["text"] for output in streams)
    assert "\r" not in said
    assert len(said.splitlines()) < 60
    stages = ["fine-tune: 3 steps in ", "embed: 39 rows in ", "t-SNE: 750 iterations in "]
    assert [said.count(stage) for stage in stages] == [1, 1, 1]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert sum("image/png" in data for data in shown) == 2
    assert sum("<table>" in data.get("text/html", "") for data in shown) == 3


@pytest.mark.long
def test_it_runs_from_end_to_end_on_the_sample(tmp_path, monkeypatch):
    overrides = {
        "FINETUNE_CONFIG": {
            "data_path": str(REPO / "train_text" / "sample.json"),
            "eval_dataset": None,
            "output_dir": str(tmp_path / "saved"),
            "train_batch_size": 12,
            "max_seq_length": 32,
        },
        "INFERENCE_CONFIG": {
            "model_path": str(tmp_path / "saved" / "all-MiniLM-L6-v2-peft-lora"),
            "input_dir": str(REPO / "infer_data"),
            "file_pattern": "sample.csv",
            "output_path": str(tmp_path / "vectors.txt"),
        },
        "VIS_CONFIG": {
            "embeddings_path": str(tmp_path / "vectors.txt"),
            "output_path": str(tmp_path / "map.png"),
            "method": "tsne",
        },
    }
    monkeypatch.setenv("EBR_CONFIG_OVERRIDES", json.dumps(overrides))
    executed = tmp_path / "executed.ipynb"
    run_notebook(NOTEBOOK, executed)
    outputs = [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert_worth_keeping(outputs)
    text = "".join(output.get("text", "") or output["data"]["text/plain"] + "\n" for output in outputs)
    assert "训练集大小: 32\n" in text
    assert "trainable parameters: 331,776 of 23,044,992 (1.44%)" in text
    assert "39 rows of 384" in text
    assert "silhouette (cosine)" in text
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert (tmp_path / "saved" / "all-MiniLM-L6-v2-peft-lora" / "adapter_model.safetensors").is_file()
