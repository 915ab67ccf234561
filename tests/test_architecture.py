"""The house: who may import whom, read from the source with ast."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ebr"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {"config", "data", "model", "training", "inference", "retrieval", "visualization", "workflow"}
SHELL = {"ebr", "ebr.__main__", "ebr.cli", "ebr.notebook", "ebr.pages"}
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "data": set(),
    "model": {"config", "data"},
    "training": {"config", "data", "model"},
    "inference": {"config", "data", "model"},
    "retrieval": {"config", "data", "model", "inference", "visualization"},
    "visualization": {"config", "data"},
    "workflow": ROOMS,
    "shell": {"workflow", "config"},
}
TENSOR_ROOMS = {"model", "training", "inference"}
THIRD_PARTY = {
    "torch": TENSOR_ROOMS,
    "transformers": TENSOR_ROOMS,
    "sentence_transformers": TENSOR_ROOMS,
    "peft": TENSOR_ROOMS,
    "matplotlib": {"visualization"},
}
ONE_MODULE = {"faiss": "ebr.retrieval.index.faiss_index", "ray": "ebr.inference.workers.ray"}
DATA_FOLDERS = ["train_text", "infer_data", "datasets", "faiss", "saved_model", "model"]
MOST_FILES = 12  # in a folder; more ask for a wing


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module):
    """The room of a module: 'ebr.data.tables.cells' → 'data'; the shell is what stands in front of the rooms."""
    return "shell" if module in SHELL else module.split(".")[1]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(tree, module, *, types=False, lazy=True):
    """Modules that a tree imports; types: with those under TYPE_CHECKING; lazy: with those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        elif is_type_checking(node) and not types:
            yield from imports(ast.Module(node.orelse, []), module, types=types, lazy=lazy)
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(node, module, types=types, lazy=lazy)


def imported(module, **kind):
    return set(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")), module, **kind))


def ours(names):
    return {name for name in names if name.split(".")[0] == "ebr" and name != "ebr.errors"}


def test_reader_of_imports_sees_every_kind():
    source = (
        "import a.b\nfrom ebr.data.tables import cells\nfrom ebr.data.files.write import x\n"
        "if TYPE_CHECKING:\n    import typed\n"
        "else:\n    import otherwise\ntry:\n    import tried\nexcept ImportError: pass\n"
        "class C:\n    def f(self):\n        import late\n"
    )
    tree = ast.parse(source)
    always = {"a.b", "ebr.data.tables.cells", "ebr.data.files.write", "otherwise", "tried"}
    assert set(imports(tree, "m", lazy=False)) == always
    assert set(imports(tree, "m")) == {*always, "late"}
    assert set(imports(tree, "m", types=True)) == {*always, "late", "typed"}


def test_every_room_of_the_design_exists_and_no_other():
    assert {room_of(module) for module in MODULES} == {*ROOMS, "errors", "shell"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS


def may_import(module, name):
    """Whether the rules let a module import another of ours."""
    room, other = room_of(module), room_of(name)
    if module == "ebr.__main__":
        return name == "ebr.cli"
    # Data gets plain values, never a config; a verb's command reads one.
    reads_config = room == "data" and module.endswith(".command") and other == "config"
    return other == room or other in MAY_IMPORT[room] or reads_config


def test_modules_import_only_the_rooms_they_may():
    # Types count too, but in the face and in workflow, which name what heavy rooms return without loading them.
    kinds = {module: {"types": room_of(module) not in {"workflow", "shell"}} for module in MODULES}
    pairs = [(module, name) for module in MODULES for name in sorted(ours(imported(module, **kinds[module])))]
    assert [pair for pair in pairs if pair[1] == "ebr"] == [], "the face of the package is for those outside"
    assert [pair for pair in pairs if not may_import(*pair)] == []


def test_heavy_packages_stay_in_their_rooms():
    for module in MODULES:
        packages = {name.split(".")[0] for name in imported(module)}  # names for annotations may be had anywhere
        for package, rooms in THIRD_PARTY.items():
            assert package not in packages or room_of(module) in rooms, f"{module} imports {package}"
        for package, home in ONE_MODULE.items():
            assert package not in packages or module == home, f"{module} imports {package}"


def test_heavy_packages_are_seen_where_they_belong():
    found = {name.split(".")[0] for module in MODULES for name in imported(module)}
    assert set(THIRD_PARTY) <= found


GRAPH = {module: ours(imported(module)) & set(MODULES) - {module} for module in MODULES}


def wing_of(module):
    """'ebr.data.tables.cells' → 'data.tables'; None for what lies in a room itself, below or above its wings."""
    parts = module.split(".")
    if MODULES[module].name == "__init__.py":
        parts.append("__init__")
    return ".".join(parts[1:3]) if len(parts) == 4 else None


def assert_no_circle(graph):
    done = set()

    def visit(node, path):
        assert node not in path, " → ".join([*path[path.index(node) :], node])
        if node not in done:
            for other in sorted(graph[node]):
                visit(other, [*path, node])
            done.add(node)

    for node in graph:
        visit(node, [])


def test_no_module_imports_itself_through_others():
    assert_no_circle(GRAPH)


def test_wings_import_one_way():
    graph = {wing_of(module): set() for module in MODULES if wing_of(module)}
    for module, others in GRAPH.items():
        if wing_of(module):
            graph[wing_of(module)] |= {wing for wing in map(wing_of, others) if wing and wing != wing_of(module)}
    assert len(graph) > 20
    assert_no_circle(graph)


def test_a_folder_is_small_enough_to_be_read_as_a_list():
    files = {module: path for module, path in MODULES.items() if path.name != "__init__.py"}
    sizes = Counter(path.parent for path in files.values())
    assert {str(folder.relative_to(ROOT)): n for folder, n in sizes.items() if n > MOST_FILES} == {}


@pytest.mark.parametrize("folder", DATA_FOLDERS)
def test_folder_of_data_holds_no_code(folder):
    assert (ROOT / folder).is_dir()
    assert list((ROOT / folder).rglob("*.py")) == []
