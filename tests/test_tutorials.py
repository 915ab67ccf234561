"""The tutorials: short, without outputs, of public names alone, in two languages, and (slow) they run."""

import ast
import re
import shutil

import nbformat
import pytest

import ebr
from ebr.notebook import run_notebook
from tests.conftest import REPO
from tests.test_docs import ENGLISH_ONLY, README, anchors_of

FOLDER = REPO / "examples"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]_*.ipynb"))  # and not what was executed beside them
EACH = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
CHINESE = re.compile("[\u4e00-\u9fff]")
LINK = re.compile(r"\]\(([^)\s]+)\)")

FEW = {"train_pairs": 200, "eval_queries": 40}
"""Of the sample, where that of a reader would take minutes."""
SMALL = {
    "2_tune_it_and_prove_it": "STEPS = 48",
    "3_better_negatives": "MAX_STEPS = 2",
    "4_a_million_rows": "N_ROWS = 1000",
    "5_maps_before_and_after": "MAX_STEPS = 2",
}
SHOWN = {
    "1_is_my_model_any_good": [
        "2,000 training pairs",
        "BM25 + all-MiniLM-L6-v2",
        "95 % interval",
        "share not among the first ten",
    ],
    "2_tune_it_and_prove_it": ["ladder  48 steps", "choice  ", "on all  stock", "proof   stock recipe", "report.html"],
    "3_better_negatives": ["kept as negatives", "without_negatives", "95 % interval"],
    "4_a_million_rows": ["saved, for each distinct text is encoded once", "finished before", "recall   1.0000", "snippet-"],
    "5_maps_before_and_after": ["kNN label agreement", "trustworthiness", "tsne.html"],
}


def cells_of(notebook, kind=None):
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if kind in (None, cell.cell_type)]


def test_there_are_five_and_the_docs_name_each():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_"]
    for page in (REPO / "docs" / "tutorials.md", REPO / "docs" / "tutorials.zh.md"):
        assert re.findall(r"`examples/([0-9]\S+)`", page.read_text("utf-8")) == [path.name for path in NOTEBOOKS]
    for readme in README.values():
        assert re.findall(r"\(examples/(\S+\.ipynb)\)", readme.read_text("utf-8")) == [path.name for path in NOTEBOOKS]


@EACH
def test_it_is_committed_without_outputs(notebook):
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells_of(notebook))


@EACH
def test_it_is_short_and_begins_and_ends_with_text_in_both_languages(notebook):
    cells = cells_of(notebook)
    assert 6 <= len(cells) <= 12
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    assert cells[1].metadata.tags == ["parameters"]
    for cell in cells_of(notebook, "markdown"):
        *english, last = cell.source.split("\n\n")
        assert CHINESE.search(last), cell.source
        assert not CHINESE.search(english[0]), cell.source


@EACH
def test_it_defines_nothing_and_has_no_loop(notebook):
    for cell in cells_of(notebook, "code"):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda}, cell.source


@EACH
def test_it_uses_public_names_alone(notebook):
    tree = ast.parse("\n".join(cell.source for cell in cells_of(notebook, "code")))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names = [(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    ours = {name for module, name in names if module == "ebr"}
    assert ours and ours <= set(ebr.__all__)
    assert not [name for name in modules | {module for module, _ in names} if name.startswith("ebr.")]


@EACH
def test_its_links_lead_somewhere_and_stay_in_their_language(notebook):
    lines = [line for cell in cells_of(notebook, "markdown") for line in cell.source.splitlines() if LINK.search(line)]
    assert lines
    for line in lines:
        for link in LINK.findall(line):
            file, _, section = link.partition("#")
            target = FOLDER / file
            assert target.is_file(), link
            assert not section or section in anchors_of(target), link
            if target.suffix == ".md" and target.name not in ENGLISH_ONLY:
                assert (".zh." in file) == bool(CHINESE.search(line)), line


@pytest.fixture(scope="module")
def small_sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    ebr.build_sample_corpus(ebr.SampleConfig(output_root=folder, **FEW), say=lambda _: None)
    return folder


def shown(cell):
    """What a cell shows, as text."""
    kept = (
        output.get("text") or output["data"].get("text/markdown") or output["data"]["text/plain"] for output in cell.outputs
    )
    return "\n".join(kept)


@pytest.mark.slow
@EACH
def test_it_runs_and_writes_into_its_own_folder_alone(notebook, small_sample, tmp_path, monkeypatch):
    copy = nbformat.read(notebook, as_version=4)
    if notebook.stem in SMALL:  # the others make their own sample, whole
        copy.cells.insert(2, nbformat.v4.new_code_cell(SMALL[notebook.stem]))  # where papermill puts its own
        shutil.copytree(small_sample, tmp_path / "work")
    nbformat.write(copy, tmp_path / notebook.name)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    run_notebook(tmp_path / notebook.name, tmp_path / "executed.ipynb")
    cells = cells_of(tmp_path / "executed.ipynb", "code")
    assert {path.name for path in tmp_path.iterdir()} == {notebook.name, "executed.ipynb", "work"}
    assert {output.name for cell in cells for output in cell.outputs if output.output_type == "stream"} <= {"stdout"}
    text = "".join(map(shown, cells))
    assert [words for words in SHOWN[notebook.stem] if words not in text] == []
