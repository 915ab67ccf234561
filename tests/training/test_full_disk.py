"""A disk that fills up: told before a run begins, survived on the way, and no reason to lose the model at the end."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ebr.config import FinetuneConfig, TrainConfig
from ebr.data import speech
from ebr.data.files.write import read_manifest, size_of
from ebr.errors import ConfigError, EBRError, Interrupted, SaveError
from ebr.model.encoder.encoder import load_encoder
from ebr.training import rescue
from ebr.training.doctor.command import check_training
from ebr.training.doctor.report import Severity
from ebr.training.doctor.run_checks import judge_disk
from ebr.training.loop import checkpoints, disk, journal
from ebr.training.loop.disk import Checkpoints, DiskNeeds, disk_needs
from ebr.training.loop.layouts import RUN, WATCH, pair_layout
from ebr.training.rescue import FinishedModel
from ebr.workflow import finetuning
from ebr.workflow.finetuning import train_sentence_transformer
from tests.conftest import REPO

MIB = 2**20
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def no_other_place(monkeypatch, tmp_path):
    """The temporary folder and the home of these tests are their own, and nobody sits at the terminal."""
    monkeypatch.setattr(finetuning, "terminal", lambda: None)
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    """Ten steps with a checkpoint at every other."""
    return FinetuneConfig(
        model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "out", num_epochs=2, learning_rate=1e-2,
        max_seq_length=32, validation_split=0.1, eval_steps=2, save_steps=2, save_total_limit=10, report_to=["none"],
    )  # fmt: skip


def run(config, **changes):
    lines, ask = [], changes.pop("ask", None)
    changed = type(config)(**{**config.to_json(), **changes})
    return train_sentence_transformer(changed, say=lines.append, ask=ask), lines


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def work_of(result):
    return result.model_path.with_name(result.model_path.name + ".run")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# ---------------------------------------------------------------- before a run


@pytest.mark.parametrize(
    ("options", "n_steps", "wanted"),
    [
        ({"save_steps": 10, "save_total_limit": 2}, 100, Checkpoints(2, True, 0)),
        ({"save_steps": 10, "save_total_limit": 2}, 20, Checkpoints(2, False, 0)),
        ({"save_steps": 10, "save_total_limit": 9}, 35, Checkpoints(4, False, 0)),  # one at the last step
        ({"save_steps": 0}, 100, Checkpoints(0, False, 0)),
        ({"save_steps": 0, "save_on_epoch_end": 1}, 100, Checkpoints(0, False, 5)),
        ({"save_steps": 10, "save_on_epoch_end": 2}, 100, Checkpoints(2, True, 2)),
        ({"save_steps": 0, "save_on_epoch_end": 1}, 39, Checkpoints(0, False, 1)),  # the second epoch is cut short
        # Early stopping saves at its evaluations, and keeps the best beside the newest.
        ({"save_steps": 0, "eval_steps": 10, "early_stopping_patience": 3}, 100, Checkpoints(3, True, 0)),
    ],
)
def test_checkpoints_that_stand_at_once(options, n_steps, wanted):
    assert Checkpoints.of(FinetuneConfig(**options), n_steps, steps_an_epoch=20) == wanted


@pytest.mark.parametrize(
    ("checkpoints", "most"),
    [
        (Checkpoints(0, False, 0), 10),  # the finished model alone
        (Checkpoints(2, False, 0), 2 * 30 + 10),
        (Checkpoints(2, True, 3), 5 * 30 + 30),  # a sixth is written before the oldest goes
    ],
)
def test_fullest_moment_is_while_one_checkpoint_more_or_the_model_is_written(checkpoints, most):
    needs = DiskNeeds(Path("out"), 10, 30, checkpoints, free=most)
    assert needs.most == most
    assert needs.holds_all
    assert not DiskNeeds(Path("out"), 10, 30, checkpoints, free=most - 1).holds_all
    assert DiskNeeds(Path("out"), 10, 30, checkpoints, free=None).holds_all  # nobody knows


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_sizes_are_those_of_what_is_written(config, finetune_type):
    from ebr.training.loop.fit import prepare_model
    from ebr.training.plan import load_for_training

    config.finetune_type = finetune_type
    model = load_for_training(config).model
    prepare_model(model, config)
    needs = disk_needs(model, config, pair_layout(config.output_dir, "tiny", "lora"), n_train=27, n_steps=10)
    result, _ = run(config, max_steps=2)
    small = 40_000  # model card, loss curve, configurations, states of schedulers and generators
    written = size_of(result.model_path)
    assert needs.finished <= written <= needs.finished + 3 * small
    written = size_of(work_of(result) / "checkpoint-2")
    assert needs.checkpoint <= written <= needs.checkpoint + 2 * small


def test_run_whose_model_would_not_fit_is_refused_before_anything_is_touched(config, monkeypatch):
    result, _ = run(config)
    before = tree(config.output_dir)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 0)
    # What the last run left there is deleted by the next, and makes room.
    assert run(config)[0].model_path == result.model_path
    shutil.rmtree(work_of(result))
    before = tree(config.output_dir)
    with pytest.raises(
        ConfigError,
        match=r"^output_dir: the finished model takes about \d+ MiB, and .*out has 0 MiB free; make room, or give an output_d",
    ):
        run(config)
    assert tree(config.output_dir) == before


def test_room_of_an_interrupted_run_is_not_counted_on_for_it_stays(config, tmp_path):
    run(config)
    layout = pair_layout(config.output_dir, "tiny-bert", "lora")
    assert layout.own_bytes() == size_of(layout.work)
    (layout.work / RUN).write_text('{"finished": false}')
    assert layout.own_bytes() == 0
    assert layout.own_bytes(layout.work / "checkpoint-4") == size_of(layout.work)  # it goes on with these


def test_findings_say_what_is_short_and_what_would_leave_fewer_checkpoints():
    needs = DiskNeeds(Path("/data/out"), 10 * MIB, 30 * MIB, Checkpoints(2, True, 3), free=50 * MIB)
    config = TrainConfig(model_name_or_path="m", train_dataset="t", output_dir="o", batch_size=4, save_steps=10)
    (tight,) = judge_disk(needs, config)
    assert (tight.name, tight.severity) == ("disk-tight", Severity.WARNING)
    assert tight.what == (
        "about 180 MiB needed at the fullest moment (6 checkpoints of 30 MiB each, 10 MiB for the finished model), "
        "50 MiB free in /data/out"
    )
    assert tight.advice == (
        "fewer checkpoints (save_on_epoch_end 0, save_total_limit 1); or make room, or give an output_dir on another disk"
    )
    (short,) = judge_disk(DiskNeeds(Path("/data/out"), 10 * MIB, 30 * MIB, Checkpoints(0, False, 0), free=5 * MIB), config)
    assert (short.name, short.severity) == ("disk-short", Severity.CRITICAL)
    assert short.what == "the finished model takes about 10 MiB, 5 MiB free in /data/out"
    for free in (180 * MIB, None):
        assert judge_disk(DiskNeeds(Path("o"), 10 * MIB, 30 * MIB, Checkpoints(2, True, 3), free), config) == []


@pytest.mark.parametrize(("free", "name"), [(0, "disk-short"), (300_000, "disk-tight"), (2**40, None), (None, None)])
def test_check_and_run_tell_of_a_small_disk(config, monkeypatch, free, name):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    report = check_training(config, say=print)
    assert [finding.name for finding in report.findings if finding.name.startswith("disk")] == ([name] if name else [])
    facts = report.to_json()["facts"]["disk"]
    assert (facts["checkpoints"], facts["free"]) == (5, free if free is None else pytest.approx(free, abs=20_000))
    if name != "disk-short":
        assert any(name in line for line in run(config)[1]) if name else True


# ---------------------------------------------------------------- a checkpoint on the way


def failing_at(*steps, error=FULL):
    """Checkpoints of these steps find no room: half of them is written."""
    real = checkpoints.put_in_place

    def put_in_place(aside, checkpoint, record, step):
        if step in steps:
            (aside / "optimizer.pt").write_bytes(b"half")
            raise error
        real(aside, checkpoint, record, step)

    return put_in_place


def test_checkpoints_that_cannot_be_written_do_not_end_the_run_and_the_older_ones_stay(config, monkeypatch, tmp_path):
    undisturbed, _ = run(config, output_dir=str(tmp_path / "undisturbed"))
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(4, 6))
    result, lines = run(config, save_total_limit=2)
    assert same(weights(result.model_path), weights(undisturbed.model_path))
    said = [line for line in lines if "could not be written" in line]
    assert len(said) == 1  # once, although two failed
    assert said[0].startswith(
        "warning at step 4: checkpoint-4 could not be written (No space left on device); the older ones stay, and the run"
    )
    assert [(one.name, one.step) for one in result.record.warnings] == [("checkpoint-not-written", 4)]
    names = {path.name for path in work_of(result).iterdir() if "checkpoint" in path.name or path.name == ".partial"}
    assert names == {"checkpoint-8", "checkpoint-10"}


def test_no_older_checkpoint_makes_room_for_one_that_fails(config, monkeypatch):
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(4, 6, 8, 10))
    result, _ = run(config, save_total_limit=1)
    assert [path.name for path in work_of(result).glob("checkpoint*")] == ["checkpoint-2"]


def test_error_that_is_none_of_the_disk_ends_the_run_as_before(config, monkeypatch):
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(4, error=ValueError("a mistake of ours")))
    with pytest.raises(ValueError, match="a mistake of ours"):
        run(config)


STOPPING = {"early_stopping_patience": 2, "eval_steps": 1, "learning_rate": 3.0, "num_epochs": 20, "max_grad_norm": 0.0}


@pytest.fixture
def stopping(config, evaluation_folder):
    """Steps this large only make things worse after the first evaluations."""
    options = {**STOPPING, "eval_dataset": str(evaluation_folder), "lr_scheduler_type": "constant"}
    return FinetuneConfig(**{**config.to_json(), **options})


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_best_weights_stay_in_memory_where_their_checkpoint_found_no_room(stopping, finetune_type, monkeypatch, tmp_path):
    stopping.finetune_type = finetune_type
    if finetune_type == "full":
        stopping.learning_rate = 0.5
    file = "adapter_model.safetensors" if finetune_type == "lora" else "model.safetensors"
    whole, _ = run(stopping, output_dir=str(tmp_path / "undisturbed"))
    best = whole.record.weights_step
    assert best < whole.record.n_steps
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(best))
    result, _ = run(stopping)
    assert not (work_of(result) / f"checkpoint-{best}").exists()
    assert (result.record.weights_step, result.record.n_steps) == (best, whole.record.n_steps)
    assert same(load_file(result.model_path / file), load_file(whole.model_path / file))


def test_run_that_lost_its_best_weights_says_so_and_claims_the_last(stopping):
    whole, _ = run(stopping)
    work = work_of(whole)
    (work / RUN).write_text('{"finished": false}')
    shutil.rmtree(work / f"checkpoint-{whole.record.weights_step}")
    last = weights(work / f"checkpoint-{whole.record.n_steps}")
    result, lines = run(stopping, resume_from_checkpoint=True)
    assert result.record.weights_step == result.record.n_steps
    assert "best-weights-lost" in [one.name for one in result.record.warnings]
    what = f"the weights of step {whole.record.weights_step}, the best, are in no checkpoint; those of the last step were kept"
    assert any(what in line for line in lines)
    assert same(weights(result.model_path), last)
    assert "best: step" not in result.summary()


class PullsAtStepFive(journal.LogFile):
    """Ctrl-C in the fifth step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ((5, 6), r"after step [56], whose checkpoint could not be written; the newest is .*checkpoint-4\nmake room, and go on"),
        (
            (2, 4, 5, 6),
            r"after step [56]; its checkpoint could not be written and there is no other: make room, and start again",
        ),
        ((), r"after step [56]; saved in .*checkpoint-[56]\ngo on with --resume_from_checkpoint true"),
    ],
)
def test_stopped_run_says_what_there_is_to_go_on_from(config, monkeypatch, failing, said):
    from ebr.training.loop import fit as module

    monkeypatch.setattr(module, "LogFile", PullsAtStepFive)
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(*failing))
    with pytest.raises(Interrupted, match=said):
        run(config)


# ---------------------------------------------------------------- logs on the way


def test_logs_that_cannot_be_written_are_said_once_and_written_again_when_there_is_room(config, monkeypatch):
    real, calls = journal.write_json, []

    def write_json(path, record):
        calls.append(path.name)
        if len(calls) in range(5, 20):
            full()
        real(path, record)

    monkeypatch.setattr(journal, "write_json", write_json)
    result, lines = run(config)
    assert [one.name for one in result.record.warnings] == ["log-not-written"]
    assert sum("could not be written" in line for line in lines) == 1
    assert len(calls) > 20
    steps = json.loads((work_of(result) / "detailed_training_logs.json").read_text())["steps"]
    assert [step["global_step"] for step in steps] == list(range(1, 11))
    assert json.loads((work_of(result) / "training_log.json").read_text()) == result.record.history


def test_warnings_file_that_cannot_be_written_keeps_the_warnings_for_the_summary(config, monkeypatch):
    from ebr.training.loop import watch

    monkeypatch.setattr(watch, "write_json", full)
    monkeypatch.setattr(checkpoints, "put_in_place", failing_at(4))
    result, _ = run(config)
    assert [one.name for one in result.record.warnings] == ["checkpoint-not-written", "log-not-written"]
    assert not (work_of(result) / WATCH).exists()


@pytest.mark.parametrize("moment", ["begin", "log", "end"])
def test_tracker_that_finds_no_room_is_given_up_and_the_run_goes_on(config, monkeypatch, moment):
    from torch.utils import tensorboard

    made = []

    class Writer(tensorboard.SummaryWriter):
        def __init__(self, log_dir):
            made.append(log_dir)
            full() if moment == "begin" else super().__init__(log_dir)

        def add_scalar(self, *args, **kwargs):
            full() if moment == "log" else super().add_scalar(*args, **kwargs)

        def close(self):
            super().close()
            if moment == "end":
                full()

    monkeypatch.setattr(tensorboard, "SummaryWriter", Writer)
    result, lines = run(config, report_to=["tensorboard"])
    assert [one.name for one in result.record.warnings] == ["log-not-written"]
    assert sum("runs could not be written (No space left on device); the run goes on without" in line for line in lines) == 1
    assert len(made) == 1


def test_evaluation_on_the_way_makes_no_folder_that_a_full_disk_would_refuse(config, evaluation_folder, monkeypatch):
    real = os.mkdir

    def mkdir(path, *args, **kwargs):
        path = Path(path)
        if path.name == "eval" and not path.exists() and (path.parent / "training_log.json").exists():  # the run is on its way
            full()
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    result, _ = run(config, eval_dataset=str(evaluation_folder))
    assert sum("eval_ndcg@10" in entry for entry in result.record.history) == 5
    assert not (work_of(result) / "eval").exists()


# ---------------------------------------------------------------- the end


def refusing(*folders, error=FULL):
    """A model that cannot be saved below these folders, whatever else can."""
    from ebr.workflow import model_folder

    real = model_folder.write_json

    def write_json(path, record):
        if path.parent.name.startswith(".") and any(folder in path.parents for folder in folders):  # aside
            raise error
        real(path, record)

    return write_json


def test_model_that_cannot_be_written_is_saved_where_there_is_room_and_the_error_says_where(config, monkeypatch, tmp_path):
    from ebr.workflow import model_folder

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "write_json", refusing(config.output_dir))
        with pytest.raises(SaveError) as caught:
            run(config)
    assert isinstance(caught.value, EBRError)  # one message, exit code 2
    final = config.output_dir / "tiny-bert-peft-lora"
    folder, checkpoint = (
        tmp_path / "tmp" / "ebr-saved-tiny-bert-peft-lora",
        final.with_name(f"{final.name}.run") / "checkpoint-10",
    )
    assert str(caught.value).splitlines() == [
        f"the finished model could not be written to {final} (No space left on device); it is saved in {folder} instead",
        "load it from there, or move it",
        f"{checkpoint} holds its weights: make room, and the same command with --resume_from_checkpoint true saves it without "
        "training",
    ]
    assert {path.name for path in folder.iterdir()} >= {"modules.json", "ebr_manifest.json", "loss_curve.png"}
    assert not final.exists()
    assert same(weights(folder), weights(checkpoint))
    # And so it does.
    result, _ = run(config, resume_from_checkpoint=True)
    assert same(weights(result.model_path), weights(folder))
    assert result.record.n_steps == 10


def test_second_model_that_is_saved_elsewhere_does_not_replace_the_first(config, monkeypatch, tmp_path):
    from ebr.workflow import model_folder

    monkeypatch.setattr(model_folder, "write_json", refusing(config.output_dir))
    for _ in range(2):
        with pytest.raises(SaveError):
            run(config, max_steps=2)
    assert sorted(path.name for path in (tmp_path / "tmp").iterdir()) == [
        "ebr-saved-tiny-bert-peft-lora", "ebr-saved-tiny-bert-peft-lora-2",
    ]  # fmt: skip


def test_former_model_and_the_checkpoints_stay_when_the_new_one_has_no_room_anywhere(config, monkeypatch, tmp_path):
    from ebr.workflow import model_folder

    first, _ = run(config)
    before = tree(first.model_path)
    monkeypatch.setattr(model_folder, "write_json", refusing(tmp_path))
    with pytest.raises(SaveError) as caught:
        run(config, seed=7)
    checkpoint = work_of(first) / "checkpoint-10"
    assert str(caught.value).splitlines() == [
        f"the finished model could not be written to {first.model_path} (No space left on device), "
        f"nor to {tmp_path / 'tmp'}, nor to {tmp_path / 'home'}",
        f"{checkpoint} holds its weights: make room, and the same command with --resume_from_checkpoint true saves it without "
        "training",
    ]
    assert tree(first.model_path) == before
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "home").iterdir()) == []


def test_model_goes_where_the_user_says(config, monkeypatch, tmp_path):
    from ebr.workflow import model_folder

    monkeypatch.setattr(model_folder, "write_json", refusing(config.output_dir))
    asked = []
    result, lines = run(config, ask=lambda question: asked.append(question) or str(tmp_path / "elsewhere"))
    assert result.model_path == tmp_path / "elsewhere"
    assert result.loss_curve == tmp_path / "elsewhere" / "loss_curve.png"
    assert len(asked) == 1
    final = config.output_dir / "tiny-bert-peft-lora"
    assert f"the finished model could not be written to {final} (No space left on device)" in lines
    summary = json.loads((config.output_dir / "tiny-bert-peft-lora.run" / "training_summary_report.json").read_text())
    assert summary["model_path"] == str(tmp_path / "elsewhere")
    assert f"model       {tmp_path / 'elsewhere'}" in result.summary()


class Disk:
    """Folders that take a model, and those that do not; what was saved where."""

    def __init__(self, *refused, number=errno.ENOSPC):
        self.refused, self.saved, self.number = list(refused), [], number

    def save(self, folder):
        if any(folder == one or one in folder.parents for one in self.refused):
            raise OSError(self.number, os.strerror(self.number))
        self.saved.append(folder)


def finished(disk, final, work, *, n_steps=10, weights_step=10, n_bytes=0):
    record = SimpleNamespace(n_steps=n_steps, weights_step=weights_step)
    return FinishedModel(disk.save, SimpleNamespace(final=final, work=work), record, n_bytes)


def answering(*answers):
    left = list(answers)
    return lambda question: left.pop(0)


def test_user_is_asked_until_a_folder_takes_the_model(tmp_path):
    final, occupied, bad, good = (tmp_path / name for name in ("final", "occupied", "bad", "good"))
    occupied.mkdir()
    (occupied / "thesis.tex").touch()
    disk, lines = Disk(final, bad), []
    ask = answering(str(occupied), f" {bad} ", str(good))
    assert finished(disk, final, tmp_path).saved(ask, lines.append) == good
    assert disk.saved == [good]
    assert lines == [
        f"the finished model could not be written to {final} (No space left on device)",
        f"the finished model could not be written to {occupied} (it holds something; name a new folder)",
        f"the finished model could not be written to {bad} (No space left on device)",
    ]


def test_answer_that_names_no_folder_is_said_and_asked_again(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    typed = ["~nobody-of-this-name/model", "mo\0del", str(tmp_path / "loop")]
    disk, lines = Disk(tmp_path / "final"), []
    assert finished(disk, tmp_path / "final", tmp_path).saved(answering(*typed, str(tmp_path / "good")), lines.append) == (
        tmp_path / "good"
    )
    assert disk.saved == [tmp_path / "good"]
    assert len(lines) == 4
    for answer, line in zip(typed, lines[1:], strict=True):
        assert f"({answer!r} names no folder: " in line


def test_user_may_make_room_and_give_the_same_folder_again(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    (final / "ebr_manifest.json").touch()  # the former model, which the new one replaces
    disk = Disk(final)

    def ask(question):
        disk.refused.clear()
        return str(final)

    assert finished(disk, final, tmp_path).saved(ask, print) == final


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_model_is_saved_elsewhere_whatever_keeps_it_from_its_folder_and_the_error_says_what(tmp_path, number):
    disk = Disk(tmp_path / "final", number=number)
    with pytest.raises(SaveError) as caught:
        finished(disk, tmp_path / "final", tmp_path).saved(None, print)
    assert f"final ({os.strerror(number)}); it is saved in {disk.saved[0]} instead" in str(caught.value)


def test_no_answer_is_as_nobody_at_the_terminal(tmp_path):
    disk = Disk(tmp_path / "final")
    with pytest.raises(SaveError, match=r"it is saved in .*tmp/ebr-saved-.*-final instead"):
        finished(disk, tmp_path / "final", tmp_path).saved(answering(""), print)


def test_place_without_room_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(rescue, "free_bytes", lambda folder: {"tmp": 99, "home": 100}[folder.name])
    disk = Disk(tmp_path / "final")
    with pytest.raises(SaveError, match="home/ebr-saved"):
        finished(disk, tmp_path / "final", tmp_path, n_bytes=100).saved(None, print)
    assert [folder.parent.name for folder in disk.saved] == ["home"]


def test_full_temporary_folder_that_python_does_not_find_any_more_is_passed_over(tmp_path, monkeypatch):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(SaveError, match="home/ebr-saved"):
        finished(Disk(tmp_path / "final"), tmp_path / "final", tmp_path).saved(None, print)


def whole_checkpoint(work, step):
    aside = work / ".partial" / f"checkpoint-{step}"
    aside.mkdir(parents=True)
    (aside / "weights").write_bytes(b"w")
    checkpoints.put_in_place(aside, work / f"checkpoint-{step}", {}, step)


@pytest.mark.parametrize(
    ("steps", "weights_step", "said"),
    [
        ((), 10, "no checkpoint holds it: its weights are lost; make room, and train again"),
        (
            (6,),
            10,
            "its weights, of step 10, are lost; the newest checkpoint, {work}/checkpoint-6, is of step 6: make room, and",
        ),
        ((6, 10), 10, "{work}/checkpoint-10 holds its weights: make room, and the same command with --resume_from_checkpoint"),
        ((6, 10), 6, "{work}/checkpoint-6 holds its weights: make room"),
        ((10,), 6, "its weights, of step 6, are lost; the newest checkpoint, {work}/checkpoint-10, is of step 10: make room"),
    ],
)
def test_model_that_fits_nowhere_is_told_by_what_checkpoints_hold_of_it(tmp_path, steps, weights_step, said):
    for step in steps:
        whole_checkpoint(tmp_path / "work", step)
    with pytest.raises(SaveError) as caught:
        finished(Disk(tmp_path), tmp_path / "final", tmp_path / "work", weights_step=weights_step).saved(None, print)
    assert str(caught.value).splitlines()[1].startswith(said.format(work=tmp_path / "work"))


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_terminal_that_ends_or_is_interrupted_gives_no_answer(monkeypatch, end):
    def gone(question):
        raise end

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", gone)
    assert speech.terminal()("where?") == ""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert speech.terminal() is None
    monkeypatch.setattr(sys, "stdin", None)
    assert speech.terminal() is None


def test_run_whose_last_files_find_no_room_has_its_model_all_the_same(config, monkeypatch):
    from ebr.workflow import finishing

    monkeypatch.setattr(finishing, "write_summary", full)
    result, lines = run(config)
    assert weights(result.model_path)
    assert f"warning: the model is saved, but {work_of(result)} could not be written (No space left on device)" in lines


@pytest.mark.parametrize(("part", "error"), [("picture", ValueError("no such font")), ("picture", FULL), ("page", FULL)])
def test_report_or_picture_that_cannot_be_made_does_not_cost_the_model(config, evaluation_folder, monkeypatch, part, error):
    from ebr.retrieval.report import write as report
    from ebr.visualization import loss_plot

    module, name = (loss_plot, "draw_loss_curve") if part == "picture" else (report, "write_report")

    def broken(*args, **options):
        for place in args:  # half of it is there
            if isinstance(place, Path):
                half = place / "report.html" if place.is_dir() else place
                half.write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, name, broken)
    lines, more = [], {} if part == "picture" else {"eval_dataset": evaluation_folder}
    changed = FinetuneConfig(**{**config.to_json(), "max_steps": 2, "num_epochs": 1, **more})
    with pytest.raises(type(error), match=str(error.args[-1])):
        train_sentence_transformer(changed, say=lines.append)
    folder = config.output_dir / "tiny-bert-peft-lora"
    said = f"the model is saved in {folder}, but its report could not be made; ebr evaluate makes one"
    assert lines[-1] == said
    assert same(weights(folder), weights(folder.with_name(f"{folder.name}.run") / "checkpoint-2"))
    assert load_encoder(str(folder)).encode(["a"]).shape == (1, 32)
    assert not [path.name for path in folder.iterdir() if path.is_file() and path.read_bytes() == b"half"]
    assert read_manifest(folder)["kind"] == "model"
    assert json.loads((folder.with_name(f"{folder.name}.run") / RUN).read_text()) == {"finished": True}


# ---------------------------------------------------------------- with real files that do not fit


def command(config, folder, *more, limit=None, launcher=("-m",)):
    """`ebr finetune` in a process that may write no file larger than `limit` KiB."""
    flags = [f"--{name}={value}" for name, value in config.items()]
    arguments = [sys.executable, *launcher, "ebr", "finetune", *flags, f"--output_dir={folder}", *more]
    script = f'ulimit -f {limit}; exec "$@"' if limit else 'exec "$@"'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder.parent / "tmp")}
    started = ["bash", "-c", script, "bash", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(started, cwd=REPO, env=environment, **streams) as process:
        try:
            out, err = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends what it started
            raise
    return subprocess.CompletedProcess(started, process.returncode, out, err)


@pytest.fixture
def options(tiny_model, pairs_file):
    return {
        "model_name": tiny_model, "data_path": pairs_file, "max_steps": 6, "save_steps": 2, "max_seq_length": 32,
        "report_to": "none", "token_cache": "false",
    }  # fmt: skip


@pytest.mark.long
def test_command_trains_to_its_end_over_checkpoints_that_do_not_fit_and_exits_with_one_message(options, tmp_path):
    # The adapter of rank 40 takes 140 KiB, its optimiser twice as much; logs, tokenizer and loss curve take less than 100.
    done = command({**options, "lora_r": 40}, tmp_path / "out", limit=120)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("could not be written") == 1
    assert "warning at step 2: checkpoint-2 could not be written (File too large); the older ones stay" in done.stdout
    last = done.stderr[done.stderr.index("\nebr: ") + 1 :].splitlines()
    final = tmp_path / "out" / "tiny-bert-peft-lora"
    assert last == [
        f"ebr: the finished model could not be written to {final} (File too large), "
        f"nor to {tmp_path / 'tmp'}, nor to {tmp_path / 'home'}",
        "no checkpoint holds it: its weights are lost; make room, and train again",
    ]
    steps = json.loads((tmp_path / "out" / f"{final.name}.run" / "detailed_training_logs.json").read_text())["steps"]
    assert len(steps) == 6


@pytest.mark.long
def test_two_processes_go_on_together_when_the_first_cannot_write_a_checkpoint(options, tmp_path):
    # Under early stopping the others wait within the saving for the first.
    flags = {**options, "lora_r": 40, "validation_split": 0.2, "eval_steps": 2, "early_stopping_patience": 5, "max_steps": 4}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--module"]
    done = command(flags, tmp_path / "out", limit=120, launcher=torchrun)
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stdout.count("checkpoint-2 could not be written (File too large)") == 1
    assert "nor to" in done.stderr
    steps = json.loads((tmp_path / "out" / "tiny-bert-peft-lora.run" / "detailed_training_logs.json").read_text())["steps"]
    assert len(steps) == 4
