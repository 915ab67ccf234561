"""A checkpoint is whole or does not count, an interrupted run is never wiped, and a run is only resumed as itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ebr.errors import ConfigError
from ebr.training.checkpoints import (
    MARK,
    check_same_run,
    find_checkpoint,
    is_whole,
    keep_newest,
    mark_whole,
    step_of,
    whole_checkpoints,
)
from ebr.training.layouts import Layout, pair_layout

RECORD = {
    "data_sha256": "d1",
    "base_sha256": "b1",
    "config": {"learning_rate": 2e-4, "lora_r": 8, "data_path": "./train_text", "save_steps": 100},
}


def checkpoint(folder, step, *, whole=True, record=RECORD):
    """A checkpoint of two files, one in a subfolder, and its mark."""
    path = folder / f"checkpoint-{step}"
    (path / "sub").mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"12345678")
    (path / "sub" / "rng.pth").write_bytes(b"1")
    if whole:
        mark_whole(path, record)
    return path


def names(paths):
    return [path.name for path in paths]


def test_marked_checkpoint_is_whole(tmp_path):
    path = checkpoint(tmp_path, 1)
    assert is_whole(path)
    assert json.loads((path / MARK).read_text())["files"] == {"sub/rng.pth": 1, "weights.bin": 8}


BREAKS = {
    "no mark": lambda path: (path / MARK).unlink(),
    "a missing file": lambda path: (path / "sub" / "rng.pth").unlink(),
    "a truncated file": lambda path: (path / "weights.bin").write_bytes(b"1234567"),
    "a file too many": lambda path: (path / "half").touch(),
    "a truncated mark": lambda path: (path / MARK).write_text("{"),
    "a mark of another kind": lambda path: (path / MARK).write_text("[1]"),
    "a mark without files": lambda path: (path / MARK).write_text("{}"),
}


@pytest.mark.parametrize("damage", BREAKS)
def test_checkpoint_with_this_damage_is_not_whole(tmp_path, damage):
    path = checkpoint(tmp_path, 1)
    BREAKS[damage](path)
    assert not is_whole(path)
    assert whole_checkpoints(tmp_path) == []


def test_folder_that_is_absent_is_no_checkpoint(tmp_path):
    assert not is_whole(tmp_path / "checkpoint-1")
    assert whole_checkpoints(tmp_path / "absent") == []


def test_step_is_a_number_not_a_text():
    steps = {"run/checkpoint-20": 20, "checkpoint-100": 100, "checkpoint-best": -1}
    assert {name: step_of(Path(name)) for name in steps} == steps


def test_newest_whole_checkpoint_is_chosen_by_step(tmp_path):
    for step in (100, 20, 9):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 200, whole=False)
    assert names(whole_checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert find_checkpoint(True, tmp_path).name == "checkpoint-100"


def test_named_checkpoint_is_taken_when_it_is_whole(tmp_path):
    old, _ = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    assert find_checkpoint(old, tmp_path) == old
    (old / "weights.bin").unlink()
    with pytest.raises(ConfigError, match="is no whole checkpoint of ours"):
        find_checkpoint(old, tmp_path)


def test_nothing_to_resume_from_is_said(tmp_path):
    checkpoint(tmp_path, 1, whole=False)
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: no whole checkpoint in .*; start without it"):
        find_checkpoint(True, tmp_path)


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (2, None, {"checkpoint-20", "checkpoint-100"}),
        (1, None, {"checkpoint-100"}),
        (2, "checkpoint-3", {"checkpoint-3", "checkpoint-20", "checkpoint-100"}),
        (1, "elsewhere/checkpoint-20", {"checkpoint-20", "checkpoint-100"}),
        (9, None, {"checkpoint-3", "checkpoint-20", "checkpoint-100"}),
    ],
)
def test_the_newest_whole_ones_and_the_best_are_kept(tmp_path, limit, best, kept):
    for step in (3, 20, 100):
        checkpoint(tmp_path, step)
    keep_newest(tmp_path, limit, best)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_torn_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    for step in (1, 2, 4):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 3, whole=False)  # torn, and behind the newest whole one: removed
    checkpoint(tmp_path, 5, whole=False)  # being written at this moment: left alone
    keep_newest(tmp_path, 2, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-5"}


# ---------------------------------------------------------------- the same run


def changed(**parts):
    return {**RECORD, **parts}


def with_options(**options):
    return changed(config={**RECORD["config"], **options})


def test_same_run_is_resumed(tmp_path):
    check_same_run(checkpoint(tmp_path, 1), json.loads(json.dumps(RECORD)))


@pytest.mark.parametrize(
    "record", [with_options(data_path="moved"), with_options(save_steps=7), with_options(data_path="moved", save_steps=7)]
)
def test_free_options_may_change(tmp_path, record):
    check_same_run(checkpoint(tmp_path, 1), record)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (changed(data_sha256="d2"), "the training data changed"),
        (changed(base_sha256="b2"), "the base model's weights changed"),
        (with_options(lora_r=16), "lora_r was 8, is 16"),
        (with_options(new_option=1), "new_option was None, is 1"),
        (
            {**with_options(lora_r=16, learning_rate=1e-3, data_path="moved"), "data_sha256": "d2"},
            "the training data changed; learning_rate was 0.0002, is 0.001; lora_r was 8, is 16",
        ),
    ],
)
def test_other_run_is_refused_and_every_change_is_named(tmp_path, record, what):
    path = checkpoint(tmp_path, 1)
    with pytest.raises(ConfigError) as caught:
        check_same_run(path, record)
    assert str(caught.value) == f"resume_from_checkpoint {path}: {what}; set them back, or start without it"


# ---------------------------------------------------------------- where a run lies


@pytest.fixture
def layout(tmp_path):
    return pair_layout(tmp_path, "MiniLM", "lora")


def test_layout_of_the_pair_front_end(tmp_path, layout):
    assert layout == Layout(final=tmp_path / "MiniLM-peft-lora", work=tmp_path / "MiniLM-peft-lora.run")


def test_first_run_gets_an_empty_folder_and_no_notice(layout):
    assert layout.begin() is None
    assert list(layout.work.iterdir()) == []


def test_interrupted_runs_are_set_aside_each_with_its_checkpoints(layout):
    layout.begin()
    for step in (3, 5):
        checkpoint(layout.work, step)
        notice = layout.begin()
        assert list(layout.work.iterdir()) == []
        (aside,) = (path for path in layout.work.parent.iterdir() if str(path) + ";" in notice)
        assert names(whole_checkpoints(aside)) == [f"checkpoint-{step}"]
    # The first is still there after the second: never deleted.
    assert names(sorted(layout.work.parent.glob("*.interrupted*/*"))) == ["checkpoint-3", "checkpoint-5"]


def test_finished_run_is_wiped_without_a_word(layout):
    layout.begin()
    checkpoint(layout.work, 3)
    layout.end()
    assert layout.begin() is None
    assert list(layout.work.parent.iterdir()) == [layout.work]
    assert list(layout.work.iterdir()) == []


def test_finished_run_that_goes_on_can_be_lost_again(layout):
    layout.begin()
    checkpoint(layout.work, 3)
    layout.end()
    layout.go_on(layout.work / "checkpoint-3")
    assert "set aside" in layout.begin()


def test_going_on_from_an_earlier_checkpoint_drops_the_later_ones(layout):
    layout.begin()
    for step in (3, 6, 9):
        checkpoint(layout.work, step)
    assert layout.go_on(layout.work / "checkpoint-6") == layout.work / "checkpoint-6"
    assert sorted(path.name for path in layout.work.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_going_on_with_a_run_that_was_set_aside_swaps_it_with_the_present_one(layout):
    layout.begin()
    checkpoint(layout.work, 3)
    layout.begin()
    checkpoint(layout.work, 5)
    aside = layout.work.with_name(layout.work.name + ".interrupted-1")
    assert layout.go_on(aside / "checkpoint-3") == layout.work / "checkpoint-3"
    assert [path.name for path in layout.work.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (layout.work.with_name(layout.work.name + ".interrupted-2") / "checkpoint-5").is_dir()


def test_run_without_a_whole_checkpoint_is_nothing_to_set_aside(layout):
    layout.begin()
    checkpoint(layout.work, 3, whole=False)
    assert layout.begin() is None
    assert list(layout.work.parent.iterdir()) == [layout.work]


def test_finished_model_is_not_touched_by_a_new_run(layout):
    layout.final.mkdir()
    (layout.final / "weights").write_text("old")
    layout.begin()
    assert (layout.final / "weights").read_text() == "old"
