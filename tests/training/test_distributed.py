"""Two processes on gloo: with gathered negatives they are one process with the whole batch."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ebr import cli
from ebr.training.resources import processes
from tests.conftest import REPO

pytestmark = pytest.mark.long
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--module"]


@pytest.fixture
def arguments(tiny_decoder, triplets_file, tmp_path):
    """`ebr train` into a folder by its name, without dropout (this base has none either), in one precision wherever it runs."""

    def flags(name, *more):
        return [
            "train", f"--model_name_or_path={tiny_decoder}", "--finetune_type=lora", f"--train_dataset={triplets_file}",
            f"--output_dir={tmp_path / name}", "--lora_dropout=0", "--lr=0.001", "--log_with=none", "--warmup_proportion=0",
            "--gradient_accumulation_steps=1", "--passage_max_len=64", "--bf16=false", *more,
        ]  # fmt: skip

    return flags


@pytest.fixture
def run(arguments, tmp_path):
    """The command in a process of its own."""

    def call(name, *flags, launcher=("-m",), wanted=0):
        done = subprocess.run(
            [sys.executable, *launcher, "ebr", *arguments(name, *flags)], cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == wanted, done.stderr[-2000:]
        return tmp_path / name, done

    return call


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_with_two_gpus_the_command_starts_two_processes_that_equal_one_with_the_whole_batch(
    arguments, tmp_path, monkeypatch, capfd
):
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(REPO)
    assert cli.main(arguments("one", "--batch_size=8", "--max_steps=3")) == 0
    capfd.readouterr()
    monkeypatch.setattr(processes, "visible_gpus", lambda: 2)  # the two then find no GPU, and take the processor
    assert cli.main(arguments("two", "--batch_size=4", "--max_steps=3", "--gather_negatives")) == 0
    assert capfd.readouterr().out.count("训练集大小") == 1  # one process speaks
    losses = [[step["loss"] for step in read(folder / "detailed_training_logs.json")["steps"]] for folder in (one, two)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    histories = [read(folder / "final" / "training_log.json") for folder in (one, two)]
    norms = [[entry["grad_norm"] for entry in history if "loss" in entry] for history in histories]
    assert len(norms[0]) == 3
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    chances = [[entry["loss_chance"] for entry in history if "loss" in entry] for history in histories]
    assert chances[1] == pytest.approx(chances[0])  # the gathered candidates are counted, in both processes
    assert min(chances[0]) > math.log(8)
    weights = [load_file(folder / "final" / "adapter_model.safetensors") for folder in (one, two)]
    assert all(torch.allclose(weights[1][name], weights[0][name], atol=2e-5) for name in weights[0])
    assert any(weights[0][name].abs().max() > 1e-3 for name in weights[0] if "lora_B" in name)


def test_a_resumed_run_of_two_processes_is_exact_and_one_process_cannot_take_it_up(run):
    flags = ("--batch_size=4", "--epochs=1", "--save_steps=2")
    folder, _ = run("run", *flags, launcher=TORCHRUN)
    # One epoch: 31 records are eight batches of four, dealt to two; the last round is filled up.
    steps = read(folder / "detailed_training_logs.json")["steps"]
    assert [(step["epoch"], step["step"]) for step in steps] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    kept = (folder / "final" / "adapter_model.safetensors").read_bytes()
    checkpoint = f"--resume_from_checkpoint={folder / 'checkpoint-2'}"
    run("run", *flags, checkpoint, launcher=TORCHRUN)
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == kept
    _, refused = run("run", *flags, checkpoint, wanted=2)
    assert "there were 2 processes, are 1" in refused.stderr
