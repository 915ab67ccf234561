"""The watch: silent on a healthy run however it jitters; what is wrong with a sick one is said once, with its figures."""

import json
import math
import re

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerState, TrainingArguments

from ebr.config import FinetuneConfig
from ebr.config.train import TrainConfig
from ebr.training.loop.anomalies import noise_of
from ebr.training.loop.watch import ADVICE, TrainingWatch, Warned, advice_on
from ebr.training.loss.objectives import smoothed_floor

PEAK = 1e-4
CHANCE = math.log(96)  # 32 queries, two negatives each


class Run:
    """A trainer's part: steps that take a second, a log every tenth, evaluations between them; the watch's clock is its own."""

    def __init__(self, folder, *, state=None, main=True, fp16=False, every=10, chance=CHANCE, floor=0.0, **options):
        self.now, self.said, self.every = 0.0, [], every
        self.args = TrainingArguments(output_dir=str(folder), learning_rate=PEAK, report_to="none", use_cpu=True)
        self.args.fp16 = fp16
        self.state = state or TrainerState(global_step=0, is_world_process_zero=main)
        self.bounds = {} if chance is None else {"loss_floor": floor, "loss_chance": chance}
        self.watch = TrainingWatch(self.said.append, str, **{"clock": lambda: self.now, **options})
        self.call("on_train_begin")

    def call(self, event, **kwargs):
        getattr(self.watch, event)(self.args, self.state, None, **kwargs)

    def log(self, **figures):
        self.state.log_history.append({**figures, "step": self.state.global_step})
        self.call("on_log", logs=figures)

    def train(self, loss, *, grad_norm=1.0, rate=PEAK, seconds=1.0, **figures):
        """The steps of one log."""
        for _ in range(self.every):
            self.now += seconds
            self.state.global_step += 1
            self.call("on_step_end")
        self.log(loss=loss, grad_norm=grad_norm, learning_rate=rate, **self.bounds, **figures)

    def evaluate(self, loss, *, seconds=0.0):
        self.log(eval_loss=loss)
        self.now += seconds
        self.call("on_evaluate")

    def names(self):
        return [finding.name for finding in self.watch.findings]


@pytest.fixture
def start(tmp_path):
    return lambda **options: Run(tmp_path, **options)


# ---------------------------------------------------------------- healthy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
def test_healthy_run_is_left_in_peace(start, noise, seed):
    rng = np.random.default_rng(seed)
    vectors = iter(np.eye(3, 8))
    run = start(embed_probe=lambda: next(vectors))
    for epoch in range(40):  # falls to 0.3, and stays about there; the validation loss lies 0.2 above it
        level = 0.3 + 1.2 * math.exp(-epoch / 8)
        for _ in range(5):
            norm = math.exp(1.2 * rng.standard_normal())
            run.train(level * (1 + 3 * noise * rng.standard_normal()), grad_norm=norm, seconds=rng.uniform(0.5, 1.5))
        run.evaluate((level + 0.2) * (1 + noise * rng.standard_normal()), seconds=300)
    assert run.said == []


# ---------------------------------------------------------------- the loss


def test_loss_at_zero_is_said_once_with_its_mean(start):
    run = start()
    for loss in [1.0] * 10 + [0.02] * 30:
        run.train(loss)
    assert run.names() == ["loss-at-zero"]
    # 0.01 × ln(96) = 0.0456: the mean of ten logs is below it when nine of 0.02 and one of 1.0 (0.118) have made way.
    assert run.watch.findings[0].step == 200
    assert run.said[0].startswith("warning at step 200: the loss is 0.02 over the last 100 steps; guessing gives 4.56")


def test_loss_that_only_touches_zero_is_no_loss_at_zero(start):
    run = start()
    for loss in [0.0, 0.0, 0.0, 1.0] * 10:
        run.train(loss)
    assert run.said == []


def test_logs_of_every_step_need_twenty_of_them(start):
    run = start(every=1)
    for _ in range(19):
        run.train(0.001, grad_norm=0.01)
    assert run.said == []
    run.train(0.001, grad_norm=0.01)
    assert run.names() == ["loss-at-zero"]


def test_penalty_on_the_weights_does_not_hide_a_loss_at_zero(start):
    run = start()
    for _ in range(10):
        run.train(3.01, l1_penalty=3.0)
    assert run.names() == ["loss-at-zero"]


def test_floor_of_label_smoothing_is_the_entropy_of_its_targets(start):
    # 0.2 spread over 4: the right one keeps 0.85, each other gets 0.05.
    floor = -0.85 * math.log(0.85) - 3 * 0.05 * math.log(0.05)
    assert smoothed_floor(0.2, torch.tensor(4.0)).item() == pytest.approx(floor)
    assert smoothed_floor(0.0, torch.tensor(4.0)).item() == 0.0
    run = start(chance=math.log(4), floor=floor)
    for _ in range(10):
        run.train(floor + 0.001)
    assert run.names() == ["loss-at-zero"]


def test_loss_is_judged_by_the_candidates_that_its_own_batches_had(start):
    run = start(floor=0.774)
    for loss in [0.775] * 10:  # 0.1 spread over 96; 1 % of the way to ln(96) is 0.038
        run.train(loss)
    assert run.names() == ["loss-at-zero"]
    assert "(0.774 is the least with label smoothing)" in run.said[0]


def test_loss_of_zero_where_there_was_nothing_to_choose_is_no_loss_at_zero(start):
    # A batch of one without negatives: a floor that rounding leaves above the loss is no finding.
    run = start(chance=0.0, floor=1e-16)
    for _ in range(20):
        run.train(0.0, grad_norm=0.1)
    assert run.said == []


def test_objective_without_a_known_scale_is_not_judged_by_its_size(start):
    run = start(chance=None)
    for _ in range(20):
        run.train(1e-6)
    assert run.said == []


# ---------------------------------------------------------------- overfitting


def overfit(run, validation, training=None):
    for place, loss in enumerate(validation):
        level = training[place] if training else 1.0 / (place + 1)
        run.train(level)
        run.train(level)
        run.evaluate(loss)


def test_three_evaluations_that_rise_while_training_falls_are_overfitting(start):
    run = start()
    overfit(run, [1.0, 0.8, 0.7, 0.75, 0.8])
    assert run.said == []
    overfit(run, [0.85, 0.9, 0.95], [0.15, 0.14, 0.13])
    assert run.names() == ["overfitting"]
    assert run.said[0].split("\n")[0] == (
        "warning at step 120: the validation loss rose from 0.7 at step 60 to 0.85, "
        "while the training loss fell from 0.3333 to 0.15"
    )


@pytest.mark.parametrize(
    ("validation", "training"),
    [
        ([1.0, 0.8, 0.7, 0.9, 0.69, 0.72, 0.68], None),  # comes back each time
        ([1.0, 0.8, 0.7, 0.703, 0.706, 0.709], None),  # less than two per cent
        ([0.001, 0.0012, 0.0014, 0.0016, 0.0018], None),  # of a loss that is nothing
        ([1.0, 0.8, 0.7, 0.75, 0.8, 0.85], [1.0, 0.9, 0.8, 0.9, 1.0, 1.1]),  # training rises too: no overfitting
        ([0.9, 0.5, 0.9, 0.5, 0.9, 0.6, 0.9, 0.6, 0.9], None),  # noise as large as the change
    ],
)
def test_what_is_not_overfitting(start, validation, training):
    run = start()
    overfit(run, validation, training)
    assert run.said == []


def test_evaluation_at_the_end_that_repeats_the_last_one_counts_once(start):
    run = start()
    overfit(run, [1.0, 0.8, 0.7, 0.75, 0.8])
    run.evaluate(0.8)
    assert run.said == []


def test_noise_is_measured_apart_from_a_trend():
    assert noise_of([1.0, 2.0, 3.0, 4.0]) == 0.0
    assert noise_of([1.0, 2.0]) == 0.0
    deviation = noise_of(np.random.default_rng(0).normal(10.0, 0.5, 10_000).tolist())
    assert deviation == pytest.approx(0.5, rel=0.05)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "figures",
    [{"loss": math.nan}, {"loss": math.inf}, {"loss": 0.5, "grad_norm": math.nan}, {"loss": 0.5, "grad_norm": math.inf}],
)
def test_what_is_no_number_is_said_at_once_with_the_last_good_figures(start, figures):
    run = start()
    run.train(0.5, grad_norm=3.0)
    run.train(**figures)
    run.train(**figures)
    assert run.names() == ["not-finite"]
    assert run.said[0].startswith("warning at step 20: no number any more: ")
    assert "at step 10 it still was loss 0.5, grad_norm 3" in run.said[0]


def test_validation_loss_that_is_no_number_is_said(start):
    run = start()
    run.evaluate(math.nan)
    assert run.names() == ["not-finite"]


def test_float16_may_look_for_its_scale(start):
    run = start(fp16=True, every=1)
    for _ in range(29):
        run.train(0.5, grad_norm=math.inf)
    run.train(0.5)
    for _ in range(29):
        run.train(0.5, grad_norm=math.inf)
    assert run.said == []
    run.train(0.5, grad_norm=math.inf)
    assert run.names() == ["not-finite"]


def test_gradient_a_hundred_times_its_usual_size_explodes_at_the_second_time(start):
    run = start()
    for norm in [2.0] * 10 + [201.0]:
        run.train(0.5, grad_norm=norm)
    assert run.said == []
    run.train(0.5, grad_norm=300.0)
    assert run.names() == ["exploding-gradient"]
    assert "the gradient's norm is 300, 150 times the usual 2\n" in run.said[0]


def test_gradient_that_doubles_from_log_to_log_explodes(start):
    run = start()
    for norm in [1.0] * 30 + [2.0**power for power in range(1, 12)]:
        run.train(0.5, grad_norm=norm)
    assert run.names() == ["exploding-gradient"]


def test_spikes_far_apart_are_batches_not_an_explosion(start):
    run = start()
    for place in range(60):
        run.train(0.5, grad_norm=500.0 if place % 6 == 5 else 2.0)
    assert run.said == []


def test_ordinary_batch_among_many_that_teach_nothing_is_no_explosion(start):
    run = start()
    for place in range(100):
        run.train(0.5, grad_norm=3.0 if place % 4 == 0 else 1e-4)
    assert run.said == []


# ---------------------------------------------------------------- a dead adapter


def test_gradient_of_exactly_zero_at_a_loss_is_a_dead_adapter(start):
    run = start()
    for _ in range(2):
        run.train(0.5, grad_norm=0.0)
    assert run.said == []
    run.train(0.5, grad_norm=0.0)
    assert run.names() == ["dead-adapter"]


def test_gradient_of_zero_at_no_loss_is_none(start):
    run = start()
    for _ in range(9):
        run.train(0.0, grad_norm=0.0)
    assert run.said == []


def test_vector_that_stays_for_fifty_steps_is_a_dead_adapter(start):
    probes = []
    run = start(embed_probe=lambda: probes.append(1) or np.ones(8))
    for _ in range(4):
        run.train(0.5)
    assert run.said == []
    for _ in range(20):
        run.train(0.5)
    assert run.names() == ["dead-adapter"]
    assert "the vector of a fixed text is the same as before, 50 steps ago (largest difference 0)" in run.said[0]
    assert len(probes) == 3  # before, after 20 steps, after 50


def test_vector_that_changes_late_is_alive(start):
    # A model in bfloat16 may round the first steps away.
    vectors = iter([np.ones(8), np.ones(8), np.full(8, 1.001)])
    run = start(embed_probe=lambda: next(vectors))
    for _ in range(20):
        run.train(0.5)
    assert run.said == []


def test_steps_of_a_warm_up_do_not_count(start):
    probes = []
    run = start(embed_probe=lambda: probes.append(1) or np.ones(8))
    for _ in range(20):
        run.train(0.5, rate=0.09 * PEAK)
    assert (run.said, len(probes)) == ([], 1)


@pytest.mark.parametrize(("logs", "names"), [(0, []), (1, ["dead-adapter"]), (3, ["dead-adapter"])])
def test_short_run_is_judged_at_its_end(start, logs, names):
    run = start(embed_probe=lambda: np.ones(8))
    for _ in range(logs):
        run.train(0.5)
    assert run.said == []
    run.call("on_train_end")
    assert run.names() == names


# ---------------------------------------------------------------- speed


def test_steps_that_become_three_times_slower_are_said(start):
    run = start()
    for _ in range(10):
        run.train(0.5, seconds=1.0)
    for _ in range(10):
        run.train(0.5, seconds=4.0)
    assert run.names() == ["slow-steps"]
    assert run.said[0].startswith("warning at step 140: 0.25 steps a second now, 1 at best: 4.0 times slower")


@pytest.mark.parametrize(
    "seconds", [[1.0] * 10 + [2.9] * 10, [9.0] * 4 + [1.0] * 20, ([1.0] * 4 + [9.0]) * 5, [0.01, 0.1] * 20]
)
def test_what_is_not_slow(start, seconds):
    """Not yet three times; slow at first; one slow window at a time; too short to tell."""
    run = start()
    for each in seconds:
        run.train(0.5, seconds=each)
    assert run.said == []


@pytest.mark.parametrize("event", ["on_evaluate", "on_save", "on_epoch_begin"])
def test_checkpoints_evaluations_and_what_is_between_epochs_are_no_steps(start, event):
    run = start()
    for place in range(40):
        run.train(0.5)
        if place > 10:
            run.now += 1000
            run.call(event)
    assert run.said == []


def test_few_long_steps_are_enough(start):
    run = start(every=1)
    for seconds in [30.0] * 10 + [200.0] * 10:
        run.train(0.5, seconds=seconds)
    assert run.names() == ["slow-steps"]
    assert run.watch.findings[0].step == 20


# ---------------------------------------------------------------- resume, processes, keeping


def test_resumed_run_says_nothing_again_and_still_knows_what_it_said(start, tmp_path):
    path = tmp_path / "watch.json"
    first = start(path=path)
    overfit(first, [1.0, 0.8, 0.7, 0.75, 0.8, 0.85])
    for _ in range(10):
        first.train(0.001)
    first.train(math.nan)
    assert first.names() == ["overfitting", "loss-at-zero", "not-finite"]
    # Resumed from before the nan.
    state = TrainerState(global_step=220, log_history=first.state.log_history[:-1])
    second = start(state=state, path=path)
    assert second.names() == ["overfitting", "loss-at-zero"]
    overfit(second, [0.9, 0.95, 1.0], [0.001] * 3)
    assert second.said == []
    assert [Warned.from_json(record) for record in json.loads(path.read_text())] == first.watch.findings[:2]


def test_resumed_run_goes_on_from_the_figures_before(start):
    first = start()
    overfit(first, [1.0, 0.8, 0.7, 0.75, 0.8])
    second = start(state=first.state)
    overfit(second, [0.85], [0.15])
    assert second.names() == ["overfitting"]
    assert second.watch.findings[0].step == 120


def test_finding_in_the_figures_before_a_resume_is_kept_and_not_said(start):
    first = start()
    first.train(math.nan)
    second = start(state=first.state)
    assert (second.names(), second.said) == (["not-finite"], [])


def test_fresh_run_forgets_the_findings_of_an_earlier_one_in_its_folder(start, tmp_path):
    path = tmp_path / "watch.json"
    start(path=path).train(math.nan)
    assert start(path=path).watch.findings == []
    assert json.loads(path.read_text()) == []


def test_resume_that_is_slower_from_the_start_or_near_its_end_is_not_sick(start):
    # Another machine; and a learning rate that has nearly run out, under which vectors hardly move.
    first = start()
    for _ in range(10):
        first.train(0.5)
    second = start(state=first.state, embed_probe=lambda: np.ones(8))
    for _ in range(10):
        second.train(0.5, seconds=5.0, rate=0.01 * PEAK)
    second.call("on_train_end")
    assert second.said == []


def test_other_processes_are_silent_and_never_embed(start):
    run = start(main=False, embed_probe=lambda: pytest.fail("embedded"))
    for _ in range(30):
        run.train(math.nan, seconds=1.0)
    run.call("on_train_end")
    assert (run.said, run.watch.findings) == ([], [])


def test_finding_survives_json():
    finding = Warned("overfitting", 12, "the validation loss rose", "lower lr")
    assert Warned.from_json(json.loads(json.dumps(finding.to_json()))) == finding


class Toy(torch.nn.Module):
    """One weight; its loss is a number in so many steps."""

    def __init__(self, sick_from):
        super().__init__()
        self.weight, self.sick_from, self.calls = torch.nn.Parameter(torch.ones(1)), sick_from, 0

    def forward(self, x):
        self.calls += self.training
        loss = (self.weight * x).square().mean()
        return {"loss": loss * (math.nan if self.calls > self.sick_from else 1.0)}


def test_real_trainer_shows_the_watch_what_it_needs_before_and_after_a_resume(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=1, logging_steps=2, save_steps=8, report_to="none",
        use_cpu=True, disable_tqdm=True, logging_nan_inf_filter=False, learning_rate=PEAK,
    )  # fmt: skip
    rows = [{"x": torch.ones(1)}] * 12

    def train(sick_from, resume):
        said, toy = [], Toy(sick_from)
        watch = TrainingWatch(said.append, str, path=tmp_path / "watch.json", embed_probe=lambda: np.ones(4))
        Trainer(toy, args, train_dataset=rows, callbacks=[watch]).train(resume_from_checkpoint=resume)
        return said, [(finding.name, finding.step) for finding in watch.findings]

    said, findings = train(5, None)
    # Steps 5 and 6 are one log; the probe's vector never changes, and is judged at the end.
    assert findings == [("not-finite", 6), ("dead-adapter", 12)]
    assert len(said) == 2
    # Four steps from step 8 on are too few to judge the vector by.
    assert train(0, str(tmp_path / "checkpoint-8")) == ([], [("not-finite", 6)])


# ---------------------------------------------------------------- advice


@pytest.mark.parametrize("name", ADVICE)
@pytest.mark.parametrize("config", [FinetuneConfig, TrainConfig])
def test_advice_names_options_that_there_are(name, config):
    options = re.findall(r"{(\w+)}", "; ".join(ADVICE[name]))
    words = advice_on(name, config.spelling, "qlora")
    assert all(config.spelling(option) in words for option in options)
    assert "{" not in words


def test_advice_is_spelt_as_the_front_end_does_and_fits_the_way_of_tuning():
    assert advice_on("overfitting", TrainConfig.spelling).startswith(
        "lower lr; raise lora_dropout; turn noise_enabled on; raise weight_"
    )
    assert "lora_dropout" not in advice_on("overfitting", TrainConfig.spelling, "full")
    assert "target_modules" not in advice_on("dead-adapter", str, "full")
    assert "quantization_bits" not in advice_on("dead-adapter", str, "lora")
    assert "quantization_bits" in advice_on("dead-adapter", str, "qlora")


def test_temperature_is_advised_only_where_the_loss_reads_it(start):
    assert "temperature" in advice_on("exploding-gradient", str)
    assert "temperature" not in advice_on("exploding-gradient", str, loss="TripletLoss")
    run = start(loss="TripletLoss")
    assert run.watch.loss == "TripletLoss"
