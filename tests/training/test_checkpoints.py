"""A checkpoint is whole or does not count, an interrupted run is never wiped, and a run is only resumed as itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from ebr.data.files import asides
from ebr.data.files.write import FOLDER_MANIFEST
from ebr.errors import ConfigError
from ebr.model.origin import telling_name
from ebr.training.loop.checkpoints import (
    MARK,
    check_same_run,
    checkpoint_at,
    epoch_name,
    find_checkpoint,
    is_whole,
    keep_newest,
    put_in_place,
    step_name,
    step_of,
    whole_checkpoints,
)
from ebr.training.loop.layouts import RUN, Layout, pair_layout, triplet_layout

RECORD = {
    "data_sha256": "d1",
    "base_sha256": "b1",
    "config": {"learning_rate": 2e-4, "lora_r": 8, "data_path": "./train_text", "save_steps": 100},
}


def written(path, weights=b"12345678"):
    """The two files of a checkpoint, one in a subfolder, without a mark."""
    (path / "sub").mkdir(parents=True)
    (path / "weights.bin").write_bytes(weights)
    (path / "sub" / "rng.pth").write_bytes(b"1")
    return path


def checkpoint(folder, step, *, name=None, whole=True, record=RECORD):
    """A checkpoint in its place: whole, or torn, as if it had been written there and not aside."""
    path = folder / (name or step_name(step))
    if not whole:
        return written(path)
    put_in_place(written(folder / ".partial" / path.name), path, record, step)
    (folder / ".partial").rmdir()
    return path


def names(paths):
    return [path.name for path in paths]


def entries(folder):
    return {path.name for path in folder.iterdir()}


def finished(folder):
    """What the mark of the run in a folder says."""
    record = json.loads((folder / RUN).read_text())
    assert record.keys() == {"finished"}
    return record["finished"]


def tree(folder):
    """Everything below a folder, with its content: a file's bytes, a link's target."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def test_marked_checkpoint_is_whole(tmp_path):
    path = checkpoint(tmp_path, 1)
    assert is_whole(path)
    assert json.loads((path / MARK).read_text()) == {"files": {"sub/rng.pth": 1, "weights.bin": 8}, "step": 1, **RECORD}


def test_checkpoint_is_written_aside_and_gets_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    aside, place = written(tmp_path / ".partial" / "checkpoint-1"), tmp_path / "checkpoint-1"
    seen = []
    monkeypatch.setattr(asides, "flush", lambda file: seen.append((file.name, place.exists(), is_whole(aside))))
    put_in_place(aside, place, RECORD, 1)
    # Every file is flushed, the mark is there already, and the name is not.
    assert {(name, False, True) for name in ("rng.pth", "sub", "weights.bin", MARK)} <= set(seen)
    assert {(named, whole) for name, named, whole in seen if name in ("rng.pth", "weights.bin")} == {(False, True)}
    assert is_whole(place)
    assert not aside.exists()


def test_checkpoint_aside_does_not_count_and_is_not_resumed_from(tmp_path):
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2).rename(written(tmp_path / ".partial" / "x").parent / "checkpoint-2")
    assert is_whole(tmp_path / ".partial" / "checkpoint-2")
    assert names(whole_checkpoints(tmp_path)) == ["checkpoint-1"]
    assert find_checkpoint(True, tmp_path).name == "checkpoint-1"


def test_checkpoint_of_the_same_name_is_replaced_whole(tmp_path):
    old = checkpoint(tmp_path, 1)
    (old / "left over").touch()
    put_in_place(written(tmp_path / "aside", b"new"), old, RECORD, 1)
    assert is_whole(old)
    assert (old / "weights.bin").read_bytes() == b"new"


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


def test_step_is_what_the_mark_says_whatever_the_name(tmp_path):
    assert step_of(checkpoint(tmp_path, 20)) == 20
    assert step_of(checkpoint(tmp_path, 27, name=epoch_name(3))) == 27
    copied = checkpoint(tmp_path, 5).rename(tmp_path / "my favourite")
    assert step_of(copied) == 5


MARKS = {
    "none": None,
    "torn": "{",
    "a list": "[1]",
    "no step": '{"files": {}}',
    "no number": '{"step": "x"}',
    "null": '{"step": null}',
}


@pytest.mark.parametrize("mark", MARKS)
def test_step_is_minus_one_where_the_mark_does_not_say(tmp_path, mark):
    path = checkpoint(tmp_path, 7, whole=False)
    if MARKS[mark] is not None:
        (path / MARK).write_text(MARKS[mark])
    assert step_of(path) == -1


def test_names_of_the_two_series():
    assert (step_name(20), epoch_name(3)) == ("checkpoint-20", "checkpoint-epoch-3")


def test_both_series_are_sorted_together_by_step(tmp_path):
    for step, name in ((100, None), (20, None), (9, None), (90, epoch_name(2)), (45, epoch_name(1)), (10, None)):
        checkpoint(tmp_path, step, name=name)
    order = ["checkpoint-9", "checkpoint-10", "checkpoint-20", "checkpoint-epoch-1", "checkpoint-epoch-2", "checkpoint-100"]
    assert names(whole_checkpoints(tmp_path)) == order
    assert [step_of(path) for path in whole_checkpoints(tmp_path)] == [9, 10, 20, 45, 90, 100]


def test_epoch_checkpoint_is_the_newest_when_its_step_is(tmp_path):
    checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 21, name=epoch_name(1))
    assert find_checkpoint(True, tmp_path).name == "checkpoint-epoch-1"
    checkpoint(tmp_path, 22)
    assert find_checkpoint(True, tmp_path).name == "checkpoint-22"


def test_checkpoint_is_found_by_its_step(tmp_path):
    checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 30, name=epoch_name(1))
    checkpoint(tmp_path, 40, whole=False)
    assert checkpoint_at(tmp_path, 20).name == "checkpoint-20"
    assert checkpoint_at(tmp_path, 30).name == "checkpoint-epoch-1"
    assert (checkpoint_at(tmp_path, 40), checkpoint_at(tmp_path, 1)) == (None, None)


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
        (2, 3, {"checkpoint-3", "checkpoint-20", "checkpoint-100"}),
        (1, 20, {"checkpoint-20", "checkpoint-100"}),
        (1, 100, {"checkpoint-100"}),
        (9, None, {"checkpoint-3", "checkpoint-20", "checkpoint-100"}),
    ],
)
def test_the_newest_whole_ones_and_the_best_are_kept(tmp_path, limit, best, kept):
    for step in (3, 20, 100):
        checkpoint(tmp_path, step)
    keep_newest(tmp_path, limit, best)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_epoch_checkpoints_stay_and_do_not_count(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step)
    for epoch in (1, 2, 3):
        checkpoint(tmp_path, 15 * epoch, name=epoch_name(epoch))  # 15, 30 and 45: before, beside and after the others
    keep_newest(tmp_path, 2, None)
    epochs = {"checkpoint-epoch-1", "checkpoint-epoch-2", "checkpoint-epoch-3"}
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-30", "checkpoint-40", *epochs}


def test_torn_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    for step in (1, 2, 4):
        checkpoint(tmp_path, step)
    for step in (3, 5):  # none is being written at this moment: that would be aside
        checkpoint(tmp_path, step, whole=False)
    keep_newest(tmp_path, 2, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_folders_that_are_no_step_checkpoints_are_left_alone(tmp_path):
    for step in (1, 2):
        checkpoint(tmp_path, step)
    others = {"checkpoint-best", "checkpoint-", "checkpoints", "final", ".partial"}
    for name in others:
        (tmp_path / name).mkdir()
    keep_newest(tmp_path, 1, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", *others}


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


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 3)])
def test_another_number_of_processes_is_another_run(tmp_path, before, now):
    path = checkpoint(tmp_path, 1, record=changed(processes=before))
    check_same_run(path, changed(processes=before))
    with pytest.raises(ConfigError, match=f": there were {before} processes, are {now}; set them back, or start without it"):
        check_same_run(path, changed(processes=now))


def test_mark_that_does_not_count_processes_is_of_one(tmp_path):
    path = checkpoint(tmp_path, 1)
    assert "processes" not in json.loads((path / MARK).read_text())
    check_same_run(path, changed(processes=1))
    with pytest.raises(ConfigError, match="there were 1 processes, are 2"):
        check_same_run(path, changed(processes=2))


def test_evaluation_set_is_free_unless_early_stopping_picks_the_weights_by_it(tmp_path):
    free = checkpoint(tmp_path, 1, record=with_options(eval_dataset="a", early_stopping_patience=0))
    check_same_run(free, with_options(eval_dataset="b", early_stopping_patience=0))
    bound = checkpoint(tmp_path, 2, record=with_options(eval_dataset="a", early_stopping_patience=2))
    with pytest.raises(ConfigError, match="eval_dataset was 'a', is 'b'"):
        check_same_run(bound, with_options(eval_dataset="b", early_stopping_patience=2))


# ---------------------------------------------------------------- where a run lies


@pytest.fixture
def layout(tmp_path):
    return pair_layout(tmp_path, "MiniLM", "lora")


@pytest.mark.parametrize(
    ("finetune_type", "name"), [("lora", "MiniLM-peft-lora"), ("qlora", "MiniLM-peft-qlora"), ("full", "MiniLM-full")]
)
def test_layout_of_the_pair_front_end(tmp_path, finetune_type, name):
    assert pair_layout(tmp_path, "MiniLM", finetune_type) == Layout(final=tmp_path / name, work=tmp_path / f"{name}.run")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/bge-m3", "bge-m3"),
        ("/data/A/final", "A-final"),
        ("/data/B/final", "B-final"),
        ("/data/A/merged", "A-merged"),
        ("/data/A/Model", "A-Model"),
        ("/data/A/best_model", "A-best_model"),
        ("/data/A/checkpoint-500", "A-checkpoint-500"),
        ("/data/A/checkpoint-epoch-2", "A-checkpoint-epoch-2"),
        ("/data/A/outputs/checkpoint-500", "A-outputs-checkpoint-500"),
        ("/data/A/checkpoints/7", "A-checkpoints-7"),
        ("/data/finalists", "finalists"),
        ("/data/model-v2", "model-v2"),
        ("/data/my-model", "my-model"),
        ("/final", "final"),
        ("BAAI/bge-m3", "bge-m3"),
        ("BAAI/model", "BAAI-model"),
        ("model", "model"),
    ],
)
def test_name_that_says_nothing_takes_the_one_before_it(path, name):
    assert telling_name(Path(path).parts) == name


# ---------------------------------------------------------------- another model's result


def finished_model(layout, **manifest):
    layout.final.mkdir(parents=True)
    (layout.final / FOLDER_MANIFEST).write_text(json.dumps(manifest))
    return layout


def test_result_of_another_base_is_not_replaced_and_both_are_named(layout):
    finished_model(layout, base_model="a/tiny", base_sha256="a1")
    with pytest.raises(ConfigError) as caught:
        layout.check_base("b/tiny", "b1", is_adapter=True)
    what = "holds a model that was tuned from a/tiny, and a run of b/tiny would replace it; give another output_dir"
    assert str(caught.value) == f"output_dir: {layout.final} {what}"


def test_result_of_the_same_base_is_replaced_by_whatever_name_it_goes(layout, tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    finished_model(layout, base_model="models/tiny", base_sha256="a1")
    layout.check_base("models/tiny", "trained on", is_adapter=True)  # the same name
    for spelling in ("./models/tiny/", str(tmp_path / "models/tiny"), "~/models/tiny", "models/../models/tiny", "link"):
        layout.check_base(spelling, "trained on", is_adapter=True)
    layout.check_base("copied/elsewhere", "a1", is_adapter=True)  # the same weights


def test_result_that_does_not_say_what_it_was_made_of_is_replaced(layout):
    layout.check_base("b/tiny", "b1", is_adapter=True)  # there is none
    finished_model(layout)
    layout.check_base("b/tiny", "b1", is_adapter=True)


def test_model_may_be_tuned_in_place_and_an_adapter_must_not_replace_its_base(tmp_path):
    layout = finished_model(triplet_layout(tmp_path / "out"), base_model="a/tiny", base_sha256="a1")
    layout.check_base(str(layout.final), "f1", is_adapter=False)
    with pytest.raises(ConfigError, match=r"the adapter would replace .*out/final, its own base; give another output_dir"):
        layout.check_base(str(layout.final), "f1", is_adapter=True)


def test_first_run_gets_an_empty_folder_and_no_notice(layout):
    assert layout.begin() is None
    assert entries(layout.work) == {RUN}
    assert finished(layout.work) is False


def test_interrupted_runs_are_set_aside_each_with_its_checkpoints(layout):
    layout.begin()
    for step in (3, 5):
        checkpoint(layout.work, step)
        notice = layout.begin()
        assert entries(layout.work) == {RUN}
        (aside,) = (path for path in layout.work.parent.iterdir() if str(path) + ";" in notice)
        assert names(whole_checkpoints(aside)) == [f"checkpoint-{step}"]
        assert finished(aside) is False
    # The first is still there after the second: never deleted.
    assert names(sorted(layout.work.parent.glob("*.interrupted*/*"))) == ["checkpoint-3", RUN, "checkpoint-5", RUN]


def test_finished_run_is_wiped_without_a_word(layout):
    layout.begin()
    checkpoint(layout.work, 3)
    layout.end()
    assert finished(layout.work) is True
    assert layout.begin() is None
    assert list(layout.work.parent.iterdir()) == [layout.work]
    assert entries(layout.work) == {RUN}
    assert finished(layout.work) is False


def test_finished_run_that_goes_on_can_be_lost_again(layout):
    layout.begin()
    checkpoint(layout.work, 3)
    layout.end()
    layout.go_on(layout.work / "checkpoint-3")
    assert finished(layout.work) is False
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
    (layout.final / FOLDER_MANIFEST).write_text("{}")
    (layout.final / "weights").write_text("old")
    layout.begin()
    assert (layout.final / "weights").read_text() == "old"


def test_going_on_drops_later_checkpoints_of_both_series(layout):
    layout.begin()
    for step, name in ((3, None), (4, epoch_name(1)), (6, None), (8, epoch_name(2))):
        checkpoint(layout.work, step, name=name)
    layout.go_on(layout.work / "checkpoint-epoch-1")
    assert names(whole_checkpoints(layout.work)) == ["checkpoint-3", "checkpoint-epoch-1"]


# ---------------------------------------------------------------- where a run lies beside the model that it made

PRODUCTS = {"training_log.json", "detailed_training_logs.json", "training_losses.json", "training_summary_report.json"}


@pytest.fixture
def out(tmp_path):
    """An output_dir with a finished model and things of a stranger's, which no run may touch."""
    folder = tmp_path / "out"
    (folder / "final").mkdir(parents=True)
    (folder / "final" / FOLDER_MANIFEST).write_text("{}")
    (folder / "notes.txt").write_text("mine")
    (folder / "my checkpoints").mkdir()
    (folder / "my checkpoints" / "a").write_text("mine")
    return folder


STAYS = {"final", "notes.txt", "my checkpoints"}


def untouched(folder):
    return (
        (folder / "final" / FOLDER_MANIFEST).read_text() == "{}"
        and (folder / "notes.txt").read_text() == "mine"
        and (folder / "my checkpoints" / "a").read_text() == "mine"
    )


def run_in(folder, *steps):
    """What a run leaves behind: checkpoints, logs, the tracker's folder."""
    for step in steps:
        checkpoint(folder, step)
    for name in PRODUCTS:
        (folder / name).write_text(str(steps))
    (folder / "runs").mkdir()
    (folder / "runs" / "events").touch()


def test_layout_of_the_triplet_front_end(tmp_path):
    assert triplet_layout(tmp_path) == Layout(final=tmp_path.resolve() / "final", work=tmp_path.resolve())


def test_interrupted_run_is_set_aside_and_the_model_and_a_strangers_files_stay(out):
    layout = triplet_layout(out)
    assert layout.begin() is None
    run_in(out, 3, 5)
    notice = layout.begin()
    aside = out.with_name("out.interrupted-1")
    assert notice == f"an interrupted run was set aside in {aside}; to go on with one, use resume_from_checkpoint"
    assert entries(out) == {*STAYS, RUN}
    assert untouched(out)
    assert entries(aside) == {"checkpoint-3", "checkpoint-5", "runs", RUN, *PRODUCTS}
    assert names(whole_checkpoints(aside)) == ["checkpoint-3", "checkpoint-5"]


def test_going_on_with_it_moves_it_back_and_leaves_no_empty_folder(out):
    layout = triplet_layout(out)
    layout.begin()
    run_in(out, 3, 5)
    layout.begin()
    aside = out.with_name("out.interrupted-1")
    assert layout.go_on(aside / "checkpoint-3") == out / "checkpoint-3"
    assert entries(out) == {*STAYS, "checkpoint-3", "runs", RUN, *PRODUCTS}
    assert untouched(out)
    assert entries(out.parent) == {"out"}


def test_going_on_with_it_sets_the_present_run_aside_in_turn(out):
    layout = triplet_layout(out)
    layout.begin()
    run_in(out, 3)
    layout.begin()
    run_in(out, 7)
    layout.go_on(out.with_name("out.interrupted-1") / "checkpoint-3")
    assert names(whole_checkpoints(out)) == ["checkpoint-3"]
    assert (out / "training_log.json").read_text() == "(3,)"
    assert names(whole_checkpoints(out.with_name("out.interrupted-2"))) == ["checkpoint-7"]
    assert untouched(out)


def test_strangers_file_beside_a_run_that_was_set_aside_stays_there(out):
    layout = triplet_layout(out)
    layout.begin()
    run_in(out, 3)
    layout.begin()
    aside = out.with_name("out.interrupted-1")
    (aside / "why.txt").write_text("mine")
    layout.go_on(aside / "checkpoint-3")
    assert entries(aside) == {"why.txt"}


def test_finished_runs_products_go_and_nothing_else(out):
    layout = triplet_layout(out)
    layout.begin()
    run_in(out, 3)
    checkpoint(out, 4, name=epoch_name(1))
    layout.end()
    assert layout.begin() is None
    assert entries(out) == {*STAYS, RUN}
    assert untouched(out)
    assert entries(out.parent) == {"out"}


def test_half_written_checkpoint_of_a_crash_goes_with_the_next_run(out):
    layout = triplet_layout(out)
    layout.begin()
    written(out / ".partial" / "checkpoint-9")
    assert layout.begin() is None
    assert entries(out) == {*STAYS, RUN}


def test_absent_output_folder_is_made(tmp_path):
    assert triplet_layout(tmp_path / "a" / "b").begin() is None
    assert entries(tmp_path / "a" / "b") == {RUN}


@pytest.mark.parametrize("front_end", [triplet_layout, lambda folder: pair_layout(folder, "MiniLM", "full")])
def test_result_folder_that_is_not_ours_is_refused_and_ours_or_an_empty_one_is_not(tmp_path, front_end):
    layout = front_end(tmp_path)
    layout.check()
    layout.final.mkdir()
    layout.check()
    (layout.final / "thesis.tex").touch()
    with pytest.raises(ConfigError) as caught:
        layout.check()
    what = "holds something that is not a model of ours; move it, or choose another"
    assert str(caught.value) == f"output_dir: {layout.final} {what}"
    (layout.final / FOLDER_MANIFEST).write_text("{}")
    layout.check()


# ---------------------------------------------------------------- what a run of ours did not make

FRONT_ENDS = {"triplets": triplet_layout, "pairs": lambda folder: pair_layout(folder, "MiniLM", "full")}


@pytest.fixture(params=FRONT_ENDS)
def either(request, tmp_path):
    """The layout of one front end and of the other, so deep that what lies two folders above its work is still the test's."""
    return FRONT_ENDS[request.param](tmp_path / "deep" / "out")


def other_trainers_checkpoint(path):
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"weeks of work")
    (path / "trainer_state.json").write_text('{"global_step": 500}')
    return path


# Names of ours: in a folder without the mark they are of another trainer, or of a run from elsewhere.
WITHOUT_A_MARK = {
    "checkpoint-500": other_trainers_checkpoint,
    "checkpoint-7": lambda path: checkpoint(path.parent, 7),
    "checkpoint-epoch-2": other_trainers_checkpoint,
    "runs": other_trainers_checkpoint,
    ".partial": other_trainers_checkpoint,
    **dict.fromkeys(sorted(PRODUCTS), lambda path: path.write_text("mine")),
}
REFUSED = "output_dir: {} holds {}, but not of a run of ours (ebr_run.json is absent); move that, or choose another folder"


@pytest.mark.parametrize("name", WITHOUT_A_MARK)
def test_products_without_a_mark_are_refused_and_nothing_is_touched(either, name):
    either.work.mkdir(parents=True)
    WITHOUT_A_MARK[name](either.work / name)
    before = tree(either.work.parent)
    for refused in (either.check, either.begin):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert str(caught.value) == REFUSED.format(either.work, name)
    assert tree(either.work.parent) == before
    shutil.move(either.work / name, either.work.parent.parent / "moved")
    assert either.begin() is None


def test_refusal_names_three_products_in_order(either):
    for name in ("runs", "checkpoint-9", "notes", "checkpoint-500", "checkpoint-epoch-1"):
        (either.work / name).mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        either.check()
    assert str(caught.value) == REFUSED.format(either.work, "checkpoint-500, checkpoint-9, checkpoint-epoch-1")


def test_run_that_was_set_aside_does_not_move_back_among_products_without_a_mark(either):
    either.begin()
    checkpoint(either.work, 3)
    either.begin()
    (either.work / RUN).unlink()
    other_trainers_checkpoint(either.work / "checkpoint-500")
    before = tree(either.work.parent)
    with pytest.raises(ConfigError, match="holds checkpoint-500, but not of a run of ours"):
        either.go_on(either.work.with_name(either.work.name + ".interrupted-1") / "checkpoint-3")
    assert tree(either.work.parent) == before


STRANGERS = [
    "eval", "checkpoint-best", "checkpoint-", "checkpoint-5-old", "old-checkpoint-5", "checkpoint-epoch-", "checkpoint-epoch-x",
    "runs2", "my runs", "training_log.json.bak", "training_logxjson", "x.partial", "finished",
]  # fmt: skip


def test_strangers_names_stay_whatever_becomes_of_the_run(either):
    for name in STRANGERS:
        other_trainers_checkpoint(either.work / name)
    before = tree(either.work)

    def strangers():
        return {path: content for path, content in tree(either.work).items() if path.split("/")[0] in STRANGERS}

    either.check()  # they are no reason to refuse
    assert either.begin() is None
    assert strangers() == before
    checkpoint(either.work, 3)
    checkpoint(either.work, 5)
    assert "set aside" in either.begin()
    aside = either.work.with_name(either.work.name + ".interrupted-1")
    assert strangers() == before
    assert entries(aside) == {"checkpoint-3", "checkpoint-5", RUN}
    either.go_on(aside / "checkpoint-3")
    assert strangers() == before
    assert entries(either.work) == {*STRANGERS, "checkpoint-3", RUN}
    either.end()
    assert either.begin() is None
    assert strangers() == before
    assert entries(either.work) == {*STRANGERS, RUN}


def with_linked_runs(layout):
    """A run with one checkpoint, whose tracker writes on another disk; returns where."""
    layout.begin()
    checkpoint(layout.work, 3)
    elsewhere = layout.work.parent.parent / "other disk"
    elsewhere.mkdir()
    (elsewhere / "events").write_text("mine")
    (layout.work / "runs").symlink_to(elsewhere, target_is_directory=True)
    return elsewhere


def test_link_of_a_finished_run_goes_and_its_target_stays(either):
    elsewhere = with_linked_runs(either)
    either.end()
    assert either.begin() is None
    assert entries(either.work) == {RUN}
    assert tree(elsewhere) == {"events": b"mine"}


def test_link_of_an_interrupted_run_moves_as_a_link(either):
    elsewhere = with_linked_runs(either)
    either.begin()
    aside = either.work.with_name(either.work.name + ".interrupted-1")
    assert (aside / "runs").readlink() == elsewhere
    either.go_on(aside / "checkpoint-3")
    assert (either.work / "runs").readlink() == elsewhere
    assert tree(elsewhere) == {"events": b"mine"}


def test_going_on_unlinks_a_later_checkpoint_that_lies_elsewhere(either):
    either.begin()
    checkpoint(either.work, 3)
    elsewhere = checkpoint(either.work, 5).rename(either.work.parent.parent / "other disk")
    (either.work / "checkpoint-5").symlink_to(elsewhere, target_is_directory=True)
    either.go_on(either.work / "checkpoint-3")
    assert entries(either.work) == {"checkpoint-3", RUN}
    assert is_whole(elsewhere)


def test_going_on_leaves_a_copy_of_a_later_checkpoint_alone(either):
    either.begin()
    checkpoint(either.work, 3)
    shutil.copytree(checkpoint(either.work, 5), either.work / "checkpoint-best")
    either.go_on(either.work / "checkpoint-3")
    assert entries(either.work) == {"checkpoint-3", "checkpoint-best", RUN}


def test_copy_of_the_newest_checkpoint_is_not_what_true_resumes_from(either):
    either.begin()
    shutil.copytree(checkpoint(either.work, 3), either.work / "checkpoint-best")
    assert either.go_on(find_checkpoint(True, either.work)) == either.work / "checkpoint-3"


def test_run_moves_to_another_file_system(either, monkeypatch):
    def rename(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    elsewhere = with_linked_runs(either)
    before = tree(either.work)
    monkeypatch.setattr(os, "rename", rename)
    either.begin()
    aside = either.work.with_name(either.work.name + ".interrupted-1")
    assert tree(aside) == before
    assert entries(either.work) == {RUN}
    either.go_on(aside / "checkpoint-3")
    assert tree(either.work) == before
    assert not aside.exists()
    assert tree(elsewhere) == {"events": b"mine"}


# ---------------------------------------------------------------- a checkpoint that belongs to no run


def copied_elsewhere(work):
    shutil.copytree(work / "checkpoint-3", work.parent.parent / "copies" / "checkpoint-3")
    return work.parent.parent / "copies" / "checkpoint-3"


def of_a_run_without_a_mark(work):
    (work / RUN).unlink()
    return work / "checkpoint-3"


def written_aside(work):
    (work / ".partial").mkdir()
    return (work / "checkpoint-3").rename(work / ".partial" / "checkpoint-3")


OUTSIDE = {
    "outside any run": copied_elsewhere,
    "mark lost": of_a_run_without_a_mark,
    "renamed": lambda work: (work / "checkpoint-3").rename(work / "my favourite"),
    "renamed to the best": lambda work: (work / "checkpoint-3").rename(work / "checkpoint-best"),
    "still aside": written_aside,
}


@pytest.mark.parametrize("state", ["its own run", "another run"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_checkpoint_that_belongs_to_no_run_is_refused_and_nothing_is_touched(either, case, state):
    either.begin()
    checkpoint(either.work, 3)
    checkpoint(either.work, 5)
    given = OUTSIDE[case](either.work)
    layout = either if state == "its own run" else pair_layout(either.work.parent, "Other", "lora")
    if state == "another run":
        layout.begin()
        checkpoint(layout.work, 8)
    root = either.work.parent.parent
    before = tree(root)
    with pytest.raises(ConfigError) as caught:
        layout.go_on(given)
    what = "does not lie under its own name in the folder of its run, with ebr_run.json; put it back there"
    assert str(caught.value) == f"resume_from_checkpoint {given}: {what}"
    assert tree(root) == before


# ---------------------------------------------------------------- the working directory as output_dir


def test_working_directory_as_output_folder_is_known_by_its_name(out, monkeypatch):
    monkeypatch.chdir(out)
    whole_path = triplet_layout(out)
    assert triplet_layout(Path()) == whole_path
    assert triplet_layout(Path("../out")) == whole_path
    monkeypatch.setenv("HOME", str(out.parent))
    assert triplet_layout(Path("~/out")) == whole_path


def test_interrupted_run_in_the_working_directory_is_set_aside_beside_it(out, monkeypatch):
    monkeypatch.chdir(out)
    layout = triplet_layout(Path())
    layout.begin()
    run_in(out, 3)
    notice = layout.begin()
    aside = out.with_name("out.interrupted-1")
    assert f" {aside.resolve()};" in notice
    assert entries(out.parent) == {"out", "out.interrupted-1"}
    assert entries(out) == {*STAYS, RUN}
    assert entries(aside) == {"checkpoint-3", "runs", RUN, *PRODUCTS}
    # And back, by the path that a user types there.
    assert layout.go_on(Path("../out.interrupted-1/checkpoint-3")) == out.resolve() / "checkpoint-3"
    assert entries(out.parent) == {"out"}
    assert untouched(out)


def test_working_directory_that_holds_only_the_run_is_still_there_after_begin(tmp_path, monkeypatch):
    here = tmp_path / "out"
    here.mkdir()
    monkeypatch.chdir(here)
    layout = triplet_layout(Path())
    layout.begin()
    checkpoint(here, 3)
    layout.begin()
    assert entries(tmp_path) == {"out", "out.interrupted-1"}
    assert entries(Path()) == {RUN}
