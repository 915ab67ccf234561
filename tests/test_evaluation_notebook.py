"""The evaluation notebook: thin, without outputs, and its plain-transformers cell gives the library's vectors."""

import ast
import re

import nbformat
import pytest

from ebr.model.encoder.encoder import load_encoder, save_encoder, set_lengths
from ebr.model.encoder.prompts import set_prompts
from ebr.notebook import run_notebook
from tests.conftest import REPO

NOTEBOOK = REPO / "evaluation.ipynb"
QUERIES = ["buy a small red shoe", "我要一个大的 lamp, and a cup, and a book, and all that is blue or green"]
DOCUMENTS = ["the red small shoe", "the green lamp", "一个人在国中", "the blue large cup, " * 6]
ROLES = {"query": '"query", QUERIES', "document": '"document", DOCUMENTS'}
DIFFERENCE = re.compile(r"largest difference from the vectors above: \S+ \((.*)\)")


def read_cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def parameters(model_path, base_path, eval_dataset):
    return {
        "MODEL_PATH": str(model_path),
        "BASE_MODEL_PATH": str(base_path),
        "EVAL_DATASET": eval_dataset and str(eval_dataset),
        "TRUST_REMOTE_CODE": False,
        "QUERIES": QUERIES,
        "DOCUMENTS": DOCUMENTS,
    }


def run_in_kernel(tmp_path, monkeypatch, values):
    """What a copy of the notebook with these values prints, run as a user runs it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tagged,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    tagged.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    monkeypatch.chdir(tmp_path)  # the kernel is reached through sockets in the folder that both run in
    run_notebook(tmp_path / "copy.ipynb", tmp_path / "executed.ipynb")
    outputs = [
        output for cell in nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells for output in cell.get("outputs", [])
    ]
    return "".join(output.get("text", "") or output.data["text/plain"] + "\n" for output in outputs)


def run_here(capsys, values, role="query"):
    """What the cells after the parameters print, run in this process; the plain cell takes the texts of this role."""
    plain = '"query", QUERIES  # or: "document", DOCUMENTS'
    capsys.readouterr()
    names = {**values, "display": lambda result: print(result.summary())}
    code = [cell.source for cell in read_cells() if cell.cell_type == "code" and not cell.metadata.get("tags")]
    assert sum(plain in source for source in code) == 1
    for source in code:
        exec(source.replace(plain, ROLES[role]), names)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def decoder(tiny_decoder, tmp_path_factory):
    """The tiny decoder as a sentence-transformers folder: last token, a prompt and a length for each role."""
    folder = tmp_path_factory.mktemp("decoder") / "decoder"
    model = load_encoder(tiny_decoder, device="cpu")
    set_prompts(model, prompt=None, query_prompt="query: ", passage_prompt="passage: ")
    set_lengths(model, 24, query=12, passage=24)
    save_encoder(model, folder)
    return folder


def test_it_is_committed_without_outputs():
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in read_cells())


def test_it_defines_no_function_no_class_and_no_loop():
    forbidden = {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda}
    for cell in read_cells():
        if cell.cell_type == "code":
            assert not {type(node) for node in ast.walk(ast.parse(cell.source))} & forbidden, cell.source


def test_it_asks_for_exactly_what_the_tests_and_users_replace():
    (tagged,) = [cell for cell in read_cells() if "parameters" in cell.metadata.get("tags", [])]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged.source).body}
    assert list(values) == list(parameters("", "", ""))
    assert values["MODEL_PATH"] == "./saved_model/all-MiniLM-L6-v2-peft-lora"
    assert values["BASE_MODEL_PATH"] == "all-MiniLM-L6-v2"
    assert values["EVAL_DATASET"] == "./datasets/api_docs"
    assert values["TRUST_REMOTE_CODE"] is False


def test_it_imports_only_the_face_of_the_package_and_nothing_of_it_in_the_plain_cell():
    sources = [cell.source for cell in read_cells() if cell.cell_type == "code"]
    imported = [
        [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in ast.walk(ast.parse(source))
         if isinstance(node, (ast.Import, ast.ImportFrom))]
        for source in sources
    ]  # fmt: skip
    assert imported == [[], ["ebr"], [], ["json", "torch", "transformers"]]


def test_every_text_stands_in_english_and_in_chinese():
    for cell in read_cells():
        if cell.cell_type == "markdown":
            assert re.search(r"[a-z]{3}", cell.source)
            assert re.search(r"[\u4e00-\u9fff]{3}", cell.source)


@pytest.mark.long
def test_it_runs_from_end_to_end_on_the_embedded_model(tmp_path, monkeypatch, evaluation_folder):
    text = run_in_kernel(tmp_path, monkeypatch, parameters("all-MiniLM-L6-v2", "all-MiniLM-L6-v2", evaluation_folder))
    assert text.startswith("rank  document ")
    assert "\nbuy a small red shoe\n   1  the red small shoe " in text
    assert re.search(r"nDCG@10 +\d\.\d{4} +\d\.\d{4} +\+0\.0000 +\[\+0\.0000, \+0\.0000\]", text)
    assert "(10 queries, 30 documents)" in text
    assert DIFFERENCE.findall(text) == ["equal"]


@pytest.mark.long
def test_it_runs_from_end_to_end_on_a_decoder(tmp_path, monkeypatch, decoder, tiny_model, evaluation_folder):
    text = run_in_kernel(tmp_path, monkeypatch, parameters(decoder, tiny_model, evaluation_folder))
    assert f"base {tiny_model}: nDCG@10 " in text
    assert f"tuned {decoder}: nDCG@10 " in text
    assert DIFFERENCE.findall(text) == ["equal"]


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_plain_cell_uses_prompt_length_and_pooling_of_the_role(capsys, decoder, role):
    assert DIFFERENCE.findall(run_here(capsys, parameters(decoder, decoder, None), role)) == ["equal"]


def test_without_an_evaluation_set_there_are_no_metrics(capsys, decoder):
    assert "nDCG@10" not in run_here(capsys, parameters(decoder, decoder, None))


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_the_plain_cell_reads_the_pooling_of_the_folder(capsys, tiny_model, tmp_path, pooling):
    model = load_encoder(tiny_model, pooling=pooling, device="cpu")
    save_encoder(model, tmp_path / "model")
    assert DIFFERENCE.findall(run_here(capsys, parameters(tmp_path / "model", "", None))) == ["equal"]


def test_the_plain_cell_says_so_when_a_model_does_more(capsys, tiny_model, tmp_path):
    save_encoder(load_encoder(tiny_model, pooling="max", device="cpu"), tmp_path / "model")
    (verdict,) = DIFFERENCE.findall(run_here(capsys, parameters(tmp_path / "model", "", None)))
    assert verdict.startswith("not equal")


@pytest.mark.parametrize("base", ["bert", "decoder"])
def test_the_plain_cell_opens_an_adapter(capsys, tiny_model, decoder, tmp_path, base):
    import torch
    from peft import LoraConfig, TaskType

    path, target = (tiny_model, "query") if base == "bert" else (str(decoder), "q_proj")
    model = load_encoder(path, device="cpu")
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=2, target_modules=[target], init_lora_weights=False))
    save_encoder(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    change = torch.tensor(model.encode(QUERIES) - load_encoder(path, device="cpu").encode(QUERIES)).abs().max()
    assert change > 1e-3, "the adapter must matter for this test to mean anything"
    assert DIFFERENCE.findall(run_here(capsys, parameters(tmp_path / "adapter", path, None))) == ["equal"]


def test_the_plain_cell_is_skipped_where_no_pooling_is_written(capsys, tiny_decoder):
    text = run_here(capsys, parameters(tiny_decoder, tiny_decoder, None))
    assert text.endswith("skipped: plain transformers wants a folder; save or merge the model into one\n")
