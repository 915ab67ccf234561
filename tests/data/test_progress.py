"""Progress: a bar at a terminal, a widget in a notebook that somebody looks at, one line a stage where nobody does."""

import io
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from ebr.data import progress
from ebr.data.progress import LIVE, StageLine, is_watched, progress_bar
from tests.conftest import REPO


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def log(monkeypatch, capsys):
    """What goes to a standard error that is no terminal, two seconds after its stage began."""
    monkeypatch.setattr(StageLine, "_seconds", lambda bar: 2.0)
    return lambda: capsys.readouterr().err


def kernel(monkeypatch, *, allow_stdin):
    """A notebook's kernel; allow_stdin: whether the front end can ask somebody, as JupyterLab can and nbclient cannot."""
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": allow_stdin}}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_stage_leaves_one_line_where_there_is_no_terminal(log):
    with progress_bar(total=3000, desc="embed", unit="row") as bar:
        for _ in range(3):
            bar.update(1000)
            bar.set_postfix({"loss": "0.5"})
    assert log() == "embed: 3,000 rows in 2.0 s (1,500/s, loss=0.5)\n"


def test_a_loop_leaves_one_line_too(log):
    assert list(progress_bar(iter("ab"), desc="search", unit="query")) == ["a", "b"]
    assert log() == "search: 2 queries in 2.0 s (1/s)\n"


def test_a_stage_that_is_cut_short_says_how_far_it_came(log):
    with pytest.raises(KeyError), progress_bar(total=10, desc="mine", unit="record", initial=2) as bar:
        bar.update(1)
        raise KeyError
    assert log() == "mine: 3 of 10 records in 2.0 s (0.5/s)\n"


@pytest.mark.parametrize("options", [{"disable": True}, {"delay": 60}, {"leave": False}])
def test_what_shows_no_bar_leaves_no_line(log, options):
    with progress_bar(total=1, desc="read", unit="row", **options) as bar:
        bar.update(1)
    assert log() == ""


def test_nothing_is_said_of_a_stage_that_had_nothing_to_do(log):
    progress_bar(total=5, initial=5, desc="fine-tune", unit="step").close()
    assert log() == ""


def test_a_long_stage_gives_a_sign_of_life_every_ten_minutes(log, monkeypatch):
    clock = iter([1, 599, 601, 900, 1300, 1300])
    monkeypatch.setattr(StageLine, "_seconds", lambda bar: float(next(clock)))
    bar = progress_bar(total=4, desc="embed", unit="row")
    for _ in range(5):
        bar.display()
    bar.update(4)
    bar.close()
    assert [line.split(" in ")[1].split(" s")[0] for line in log().splitlines()] == ["601.0", "1,300.0", "1,300.0"]


def test_at_a_terminal_there_is_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(total=2, desc="embed", unit="row") as bar:
        bar.update(2)
    assert type(bar) is tqdm
    assert "\rembed: 100%" in screen.getvalue()


def test_in_a_notebook_there_is_a_widget_where_somebody_looks_at_it(monkeypatch):
    kernel(monkeypatch, allow_stdin=True)
    shown = []
    monkeypatch.setattr("tqdm.auto.tqdm", lambda items, **options: shown.append(options) or "widget")
    assert is_watched()
    assert progress_bar(total=2, desc="embed", unit="row") == "widget"
    assert shown[0]["desc"] == "embed"


def test_in_a_notebook_that_runs_by_itself_there_is_a_line_on_its_standard_output(monkeypatch, capsys):
    kernel(monkeypatch, allow_stdin=False)
    assert not is_watched()
    with progress_bar(total=2, desc="embed", unit="row") as bar:
        bar.update(2)
    out, err = capsys.readouterr()
    assert out.startswith("embed: 2 rows in ")
    assert out.count("\n") == 1
    assert err == ""


def test_a_notebook_that_is_shown_at_a_terminal_has_a_bar_of_text(monkeypatch):
    kernel(monkeypatch, allow_stdin=False)
    monkeypatch.setenv(LIVE, "1")
    bar = progress_bar(total=2, desc="embed", unit="row", file=io.StringIO())
    assert type(bar) is tqdm
    bar.close()


def test_there_is_one_kind_of_bar_in_the_package():
    sources = {path: path.read_text(encoding="utf-8") for path in (REPO / "ebr").rglob("*.py")}
    assert [path.name for path, text in sources.items() if "import tqdm" in text] == [progress.__file__.rsplit("/", 1)[-1]]
    assert f'"{LIVE}"' in sources[REPO / "ebr" / "notebook.py"]
