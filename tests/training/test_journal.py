"""The journal of a run: every step once, by its epoch, with the loss that it had; the epochs' savers; the graceful stop."""

import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from ebr.training.loop import journal as journal_module
from ebr.training.loop.journal import EpochClock, EpochSaver, GracefulStop, StepJournal
from ebr.training.loop.layouts import EPOCHS, STEPS
from ebr.training.resources.processes import ALONE

INFO = {"base_model": "tiny", "finetune_type": "full", "total_parameters": 12, "trainable_parameters": 10}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(journal_module, "time", clock)
    return clock


class Fellows:
    """Stands in for Processes: what the means over all processes are, and whether another one has its flag set."""

    def __init__(self, *, rank=0, shift=0.0, others=False):
        self.is_main, self.shift, self.others = rank == 0, shift, others
        self.asked = []

    def mean(self, values):
        self.asked.append(("mean", values.tolist()))
        return values + self.shift

    def any(self, flag):
        self.asked.append(("any", flag))
        return flag or self.others


class Run:
    """A trainer's part: calls the journal in the trainer's order."""

    def __init__(self, folder, *, steps_per_epoch=3, n_steps=6, start=0, processes=ALONE, clock=None):
        self.journal = StepJournal(folder, INFO, steps_per_epoch, n_steps, processes)
        self.state = TrainerState(global_step=start, epoch=start / steps_per_epoch, max_steps=n_steps)
        self.steps_per_epoch, self.clock = steps_per_epoch, clock
        self.call("on_train_begin")

    def call(self, event, **kwargs):
        getattr(self.journal, event)(None, self.state, TrainerControl(), **kwargs)

    def step(self, *parts, rate=0.1, seconds=0.0):
        """One optimiser step: the batches' shares of its loss, then the optimiser at a learning rate."""
        for part in parts:
            self.journal.add(torch.tensor(part, requires_grad=True))
        if self.clock:
            self.clock.now += seconds
        self.call("on_pre_optimizer_step", optimizer=SimpleNamespace(param_groups=[{"lr": rate}, {"lr": 99.0}]))
        self.state.global_step += 1
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        self.call("on_step_end")

    def end_of_epoch(self):
        self.call("on_epoch_end")


def read(folder, name=STEPS):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def columns(folder, *names):
    return [tuple(record[name] for name in names) for record in read(folder)["steps"]]


# ---------------------------------------------------------------- steps and epochs


def test_steps_are_numbered_within_their_epoch_and_over_the_run(tmp_path):
    run = Run(tmp_path)
    for _ in range(2):
        for _ in range(3):
            run.step(1.0)
        run.end_of_epoch()
    wanted = [(1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 4), (2, 2, 5), (2, 3, 6)]
    assert columns(tmp_path, "epoch", "step", "global_step") == wanted


def test_loss_of_a_step_is_the_sum_of_its_parts_and_the_next_step_begins_at_nothing(tmp_path):
    run = Run(tmp_path)
    run.step(0.25, 0.5, 1.0)
    run.step(2.0)
    run.step(0.5, 0.5)
    run.end_of_epoch()
    assert columns(tmp_path, "loss") == [(1.75,), (2.0,), (1.0,)]


def test_average_of_an_epoch_is_the_mean_over_its_steps(tmp_path):
    run = Run(tmp_path, n_steps=5)
    for loss in (3.0, 2.0, 1.0):
        run.step(loss)
    run.end_of_epoch()
    assert read(tmp_path, EPOCHS) == [{"epoch": 1, "average_loss": 2.0, "steps": 3}]
    for parts in ((0.5, 0.25), (0.25,)):
        run.step(*parts)
    run.end_of_epoch()  # cut short by max_steps: (0.75 + 0.25) / 2
    wanted = [{"epoch": 1, "average_loss": 2.0, "steps": 3}, {"epoch": 2, "average_loss": 0.5, "steps": 2}]
    assert read(tmp_path, EPOCHS) == run.journal.epochs() == wanted


def test_learning_rate_is_that_of_the_step_and_not_of_the_next(tmp_path):
    run = Run(tmp_path)
    for rate in (0.3, 0.2, 0.1):
        run.step(1.0, rate=rate)
    run.end_of_epoch()
    assert columns(tmp_path, "learning_rate") == [(0.3,), (0.2,), (0.1,)]


def test_file_says_what_is_trained_and_when(tmp_path):
    from datetime import datetime, timedelta

    run = Run(tmp_path)
    run.step(1.0)
    run.end_of_epoch()
    record = read(tmp_path)
    assert set(record) == {"model_info", "steps"}
    assert record["model_info"] == INFO
    (step,) = record["steps"]
    assert set(step) == {"epoch", "step", "global_step", "loss", "learning_rate", "step_duration", "timestamp"}
    written = datetime.fromisoformat(step["timestamp"])
    assert written.tzinfo is not None
    assert abs(datetime.now().astimezone() - written) < timedelta(minutes=1)


# ---------------------------------------------------------------- durations


def test_durations_are_those_of_the_steps_without_the_evaluations_between_them(tmp_path, clock):
    run = Run(tmp_path, clock=clock)
    run.step(1.0, seconds=2.0)
    clock.now += 500  # an evaluation
    run.call("on_evaluate")
    run.step(1.0, seconds=0.5)
    run.step(1.0, seconds=0.25)
    run.end_of_epoch()
    assert columns(tmp_path, "step_duration") == [(2.0,), (0.5,), (0.25,)]


def test_what_passes_before_training_begins_is_no_step(tmp_path, clock):
    run = Run(tmp_path, clock=clock)
    clock.now += 500
    run.call("on_train_begin")
    run.step(1.0, seconds=1.5)
    run.end_of_epoch()
    assert columns(tmp_path, "step_duration") == [(1.5,)]


# ---------------------------------------------------------------- when files are written


@pytest.mark.parametrize(("n_steps", "interval"), [(1, 50), (5000, 50), (5099, 50), (6000, 60), (100_000, 1000)])
def test_files_are_rewritten_every_hundredth_of_the_run_but_not_more_often_than_every_fifty_steps(tmp_path, n_steps, interval):
    run = Run(tmp_path, steps_per_epoch=n_steps, n_steps=n_steps)
    for _ in range(interval - 1):
        run.step(1.0)
    assert list(tmp_path.iterdir()) == []
    run.step(1.0)
    assert len(read(tmp_path)["steps"]) == interval
    run.step(1.0)
    assert len(read(tmp_path)["steps"]) == interval


def test_writing_twice_changes_nothing(tmp_path):
    run = Run(tmp_path)
    run.step(1.0)
    run.journal.write()  # as before a checkpoint
    before = read(tmp_path)
    run.end_of_epoch()
    assert read(tmp_path) == before


def test_losses_of_several_processes_are_averaged_once_each(tmp_path):
    others = Fellows(shift=1.0)
    run = Run(tmp_path, processes=others)
    run.step(0.5, 0.25)
    run.step(2.0)
    run.journal.write()
    run.step(3.0)
    run.end_of_epoch()
    run.end_of_epoch()
    assert columns(tmp_path, "loss") == [(1.75,), (3.0,), (4.0,)]
    # Asked at the same steps in every process, or one would wait for ever.
    assert others.asked == [("mean", [0.75, 2.0]), ("mean", [3.0])]


def test_process_that_is_not_the_first_takes_part_in_the_means_and_writes_nothing(tmp_path):
    second = Fellows(rank=1, shift=1.0)
    run = Run(tmp_path, processes=second)
    for loss in (1.0, 2.0, 3.0):
        run.step(loss)
    run.end_of_epoch()
    assert second.asked == [("mean", [1.0, 2.0, 3.0])]
    assert list(tmp_path.iterdir()) == []
    assert run.journal.epochs() == [{"epoch": 1, "average_loss": 3.0, "steps": 3}]


# ---------------------------------------------------------------- a resume


def interrupted(folder):
    """Five steps of 1, 2, 3, 4 and 5, all of them written."""
    run = Run(folder, n_steps=9)
    for loss in (1.0, 2.0, 3.0):
        run.step(loss)
    run.end_of_epoch()
    for loss in (4.0, 5.0):
        run.step(loss)
    run.journal.write()


def test_resume_drops_the_records_beyond_its_step_and_goes_on(tmp_path):
    interrupted(tmp_path)
    run = Run(tmp_path, n_steps=9, start=4)
    run.step(50.0)
    run.step(60.0)
    run.end_of_epoch()
    wanted = [(1, 1, 1, 1.0), (1, 2, 2, 2.0), (1, 3, 3, 3.0), (2, 1, 4, 4.0), (2, 2, 5, 50.0), (2, 3, 6, 60.0)]
    assert columns(tmp_path, "epoch", "step", "global_step", "loss") == wanted
    assert read(tmp_path, EPOCHS) == [
        {"epoch": 1, "average_loss": 2.0, "steps": 3},
        {"epoch": 2, "average_loss": 38.0, "steps": 3},  # (4 + 50 + 60) / 3
    ]


def test_new_run_does_not_take_up_the_records_that_it_finds(tmp_path):
    interrupted(tmp_path)
    run = Run(tmp_path, n_steps=9)
    run.step(7.0)
    run.end_of_epoch()
    assert columns(tmp_path, "global_step", "loss") == [(1, 7.0)]


def test_resume_without_the_file_numbers_its_steps_all_the_same(tmp_path):
    run = Run(tmp_path, n_steps=9, start=4)
    run.step(1.0)
    run.end_of_epoch()
    assert columns(tmp_path, "epoch", "step", "global_step") == [(2, 2, 5)]


def test_resumed_process_that_is_not_the_first_reads_nothing_and_its_means_go_to_its_own_steps(tmp_path):
    interrupted(tmp_path)
    before = read(tmp_path)
    run = Run(tmp_path, n_steps=9, start=4, processes=Fellows(rank=1))
    run.step(8.0)
    run.end_of_epoch()
    assert [(record["global_step"], record["loss"]) for record in run.journal.records] == [(5, 8.0)]
    assert read(tmp_path) == before


# ---------------------------------------------------------------- the epoch


# The first, the middle of the second after a resume, and the second and third as sums of thirds may come out.
@pytest.mark.parametrize(("reached", "epoch"), [(None, 0), (0.0, 0), (1.5, 1), (1 / 3 + 2 / 3 - 1e-9, 1), (2 + 1e-9, 2)])
def test_batches_and_sampler_are_told_the_epoch_that_begins(reached, epoch):
    batches, told = SimpleNamespace(epoch=99), []
    EpochClock(batches, SimpleNamespace(set_epoch=told.append)).on_epoch_begin(None, TrainerState(epoch=reached), None)
    assert (batches.epoch, told) == (epoch, [epoch])


def test_clock_without_a_sampler_of_ours_tells_the_batches_alone():
    batches = SimpleNamespace(epoch=99)
    EpochClock(batches).on_epoch_begin(None, TrainerState(epoch=3.0), None)
    assert batches.epoch == 3


# ---------------------------------------------------------------- checkpoints at the ends of epochs


def ends_of_epochs(every, epochs):
    """[(epoch that a checkpoint is due for, whether one is asked for)] at the ends of epochs."""
    seen = []
    for epoch in epochs:
        saver, control = EpochSaver(every), TrainerControl()
        saver.on_epoch_end(None, TrainerState(epoch=epoch), control)
        seen.append((saver.due, control.should_save))
    return seen


def test_every_second_whole_epoch_is_saved_by_its_number():
    asked = [(None, False), (2, True), (None, False), (4, True)]
    assert ends_of_epochs(2, [1.0, 2.0, 3.0, 4.0]) == asked


def test_every_epoch_is_saved_when_asked_for_and_none_when_not():
    assert ends_of_epochs(1, [1.0, 2.0, 3.0]) == [(1, True), (2, True), (3, True)]
    assert ends_of_epochs(0, [1.0, 2.0, 3.0]) == [(None, False)] * 3


def test_epoch_that_was_cut_short_is_not_saved_as_a_whole_one():
    # Step 5 of two epochs of three, step 1 of three, and the last but one of ten thousand.
    assert ends_of_epochs(1, [5 / 3, 1 / 3, 2 - 1e-4]) == [(None, False)] * 3


def test_epoch_summed_up_from_thirds_is_whole():
    # The trainer adds fractions: 2 + 3 · (1 / 3) as a float.
    assert ends_of_epochs(1, [2 + 1 / 3 + 1 / 3 + 1 / 3, 3 - 1e-9, 3 + 1e-9]) == [(3, True)] * 3


def test_saver_leaves_a_save_alone_that_another_asked_for():
    saver, control = EpochSaver(2), TrainerControl(should_save=True)
    saver.on_epoch_end(None, TrainerState(epoch=1.0), control)
    assert (saver.due, control.should_save) == (None, True)


# ---------------------------------------------------------------- the graceful stop


def end_step(graceful_stop):
    control = TrainerControl()
    graceful_stop.on_step_end(None, TrainerState(), control)
    return control.should_save, control.should_training_stop


def test_brake_asks_all_processes_after_every_step():
    quiet = Fellows()
    graceful_stop = GracefulStop(quiet)
    assert [end_step(graceful_stop), end_step(graceful_stop)] == [(False, False)] * 2
    assert quiet.asked == [("any", False)] * 2


@pytest.mark.parametrize(("own", "others"), [(True, False), (False, True), (True, True)])
def test_all_save_and_stop_whichever_heard_the_signal(own, others):
    fellows = Fellows(others=others)
    graceful_stop = GracefulStop(fellows)
    graceful_stop.asked = own
    assert end_step(graceful_stop) == (True, True)
    assert fellows.asked == [("any", own)], "one that did not ask would leave the others waiting"
    assert graceful_stop.asked, "fine_tune raises Interrupted in every process"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_pulls_the_brake_and_a_second_one_ends_the_run_at_once(number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    graceful_stop = GracefulStop(ALONE)
    with graceful_stop.listening():
        assert end_step(graceful_stop) == (False, False)
        os.kill(os.getpid(), number)
        assert end_step(graceful_stop) == (True, True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_handlers_come_back_also_after_an_error():
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="x"), GracefulStop(ALONE).listening():
        raise ValueError("x")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_other_threads_train_without_listening_for_signals():
    handlers, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with GracefulStop(ALONE).listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]
