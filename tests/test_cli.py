"""The shell: how flags are spelled, what an error looks like, what a record may say, and what is not loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebr import cli, workflow
from ebr.config import FinetuneConfig, InferenceConfig, SampleConfig, VisualizationConfig
from ebr.errors import DataError, Interrupted

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "sentence_transformers", "peft", "sklearn", "matplotlib", "faiss"}
VERBS = {
    "sample": ("build_sample_corpus", "plan_sample", SampleConfig),
    "finetune": ("train_sentence_transformer", "plan_finetune", FinetuneConfig),
    "infer": ("run_batch_inference", "plan_inference", InferenceConfig),
    "visualize": ("visualize_embeddings", "plan_visualization", VisualizationConfig),
}


class Done:
    """What every faked verb returns: a result, and a plan."""

    def summary(self):
        return "the summary"

    def lines(self):
        return ["first line of the plan", "second line"]


@pytest.fixture
def calls(monkeypatch):
    """The verbs replaced by ones that note (name, config) and do nothing."""
    noted = []
    for run, plan, _ in VERBS.values():
        for name in (run, plan):
            monkeypatch.setattr(workflow, name, lambda config, name=name: noted.append((name, config)) or Done())
    return noted


def parsed(calls, *flags):
    """The config that `ebr finetune <flags>` hands to its verb."""
    assert cli.main(["finetune", *flags]) == 0
    (name, config) = calls.pop()
    assert name == "train_sentence_transformer"
    return config


@pytest.mark.parametrize("command", VERBS)
def test_command_calls_its_verb_with_its_config_and_prints_the_summary(command, calls, capsys):
    assert cli.main([command, "--seed" if command != "infer" else "--batch_size", "7"]) == 0
    run, _, config = VERBS[command]
    ((name, got),) = calls
    assert (name, type(got)) == (run, config)
    assert got["batch_size" if command == "infer" else "seed"] == 7
    assert "the summary" in capsys.readouterr().out


@pytest.mark.parametrize("command", VERBS)
def test_dry_run_calls_only_the_plan(command, calls, capsys):
    for flag in ("--dry_run", "--dry-run"):
        assert cli.main([command, flag]) == 0
    assert [name for name, _ in calls] == [VERBS[command][1]] * 2
    assert capsys.readouterr().out.count("first line of the plan\nsecond line\ndry run: nothing was written\n") == 2


@pytest.mark.parametrize("flags", [["--eval_steps", "5"], ["--eval-steps", "5"], ["--eval-steps=5"], ["--eval_steps=5"]])
def test_flag_takes_underscores_and_dashes(flags, calls):
    assert parsed(calls, *flags) == FinetuneConfig(eval_steps=5)


def test_dashes_in_a_value_stay_as_they_are(calls):
    assert parsed(calls, "--data-path=a-b/c-d").data_path == "a-b/c-d"
    assert parsed(calls, "--data-path", "a-b").data_path == "a-b"


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--fp16"], True), (["--fp16", "true"], True), (["--fp16=true"], True), (["--fp16", "false"], False),
        (["--no-fp16"], False), (["--no_fp16"], False), (["--fp16", "--no-fp16"], False), ([], False),
    ],
)  # fmt: skip
def test_switch_is_a_bare_flag_a_word_or_a_no(flags, value, calls):
    assert parsed(calls, *flags).fp16 is value


def test_no_switches_off_what_is_on_by_default(calls):
    assert parsed(calls).dataloader_pin_memory is True
    assert parsed(calls, "--no-dataloader-pin-memory").dataloader_pin_memory is False


def test_none_unsets_what_a_record_set(calls, tmp_path):
    record = tmp_path / "record.json"
    record.write_text('{"eval_dataset": "somewhere", "target_modules": ["query"], "num_epochs": 3}')
    config = parsed(calls, "--config", str(record), "--eval_dataset", "none", "--target_modules", "none")
    assert (config.eval_dataset, config.target_modules, config.num_epochs) == (None, None, 3)
    assert parsed(calls, "--report_to", "none").report_to == ["none"]  # a word of its own


def test_list_takes_several_words_and_a_word_with_a_space_stays_one(calls):
    assert parsed(calls, "--noise_apply_to_fields", "anchor", "negative").noise_apply_to_fields == ["anchor", "negative"]
    assert cli.main(["infer", "--output_columns", "my title", "id"]) == 0
    assert calls.pop()[1].output_columns == ["my title", "id"]


def test_list_takes_commas_like_the_notebook(calls):
    assert parsed(calls, "--noise_apply_to_fields", "anchor,negative").noise_apply_to_fields == ["anchor", "negative"]


def test_resume_takes_true_or_a_folder(calls):
    assert parsed(calls, "--resume_from_checkpoint", "true").resume_from_checkpoint is True
    assert parsed(calls, "--resume_from_checkpoint", "runs/checkpoint-2").resume_from_checkpoint == Path("runs/checkpoint-2")


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--num-epoch", "2"], "ebr: --num_epoch: unknown option; did you mean --num_epochs?\n"),
        (["finetune", "--num_epochs", "0"], "ebr: num_epochs: must be greater than or equal to 1 (got '0')\n"),
        (["finetune", "--seed", "x"], "ebr: seed: must be a valid integer, unable to parse string as an integer (got 'x')\n"),
        (["finetune", "--seed"], "ebr: argument --seed: expected one argument; ebr finetune --help lists the options\n"),
        (["finetune", "--seed", "-1"], "ebr: seed: must be greater than or equal to 0 (got '-1')\n"),
        ([], "ebr: the following arguments are required: COMMAND; ebr --help lists the options\n"),
    ],
)
def test_wrong_arguments_are_one_clear_message_and_exit_code_2(arguments, message, calls, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err, calls) == ("", message, [])


def test_abbreviation_is_unknown_not_guessed(calls, capsys):
    assert cli.main(["finetune", "--num_ep", "2"]) == 2
    assert "--num_ep: unknown option; did you mean --num_epochs?" in capsys.readouterr().err


def test_error_that_a_user_can_mend_is_its_message_and_exit_code_2(monkeypatch, capsys):
    def refuse(config):
        raise DataError("train.jsonl:3: 'positive' is empty; give a text")

    monkeypatch.setattr(workflow, "train_sentence_transformer", refuse)
    assert cli.main(["finetune"]) == 2
    assert capsys.readouterr().err == "ebr: train.jsonl:3: 'positive' is empty; give a text\n"


@pytest.mark.parametrize(
    ("error", "message"), [(Interrupted("saved in run/checkpoint-3"), "saved in"), (KeyboardInterrupt(), "")]
)
def test_interruption_is_exit_code_130(error, message, monkeypatch, capsys):
    def stop(config):
        raise error

    monkeypatch.setattr(workflow, "run_batch_inference", stop)
    assert cli.main(["infer"]) == 130
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(workflow, "run_batch_inference", lambda config: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["infer"])


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("wrap", [lambda options: options, lambda options: {"kind": "model", "config": options, "dim": 384}])
def test_options_come_from_a_record_and_flags_win(wrap, tmp_path, calls):
    record = tmp_path / "run.json"
    record.write_text(json.dumps(wrap({"num_epochs": 3, "lora_r": 4})), encoding="utf-8")
    config = parsed(calls, "--config", str(record), "--lora-r", "16")
    assert config == FinetuneConfig(num_epochs=3, lora_r=16)


def test_switch_of_a_record_is_taken_back_by_no(tmp_path, calls):
    record = tmp_path / "run.json"
    record.write_text('{"bf16": true}', encoding="utf-8")
    assert parsed(calls, "--config", str(record)).bf16 is True
    assert parsed(calls, "--config", str(record), "--no-bf16").bf16 is False


def test_record_does_not_switch_on_code_of_a_model_but_the_flag_does(tmp_path, calls):
    record = tmp_path / "run.json"
    record.write_text('{"config": {"trust_remote_code": true, "seed": 5}}', encoding="utf-8")
    config = parsed(calls, "--config", str(record))
    assert (config.trust_remote_code, config.seed) == (False, 5)
    assert parsed(calls, "--config", str(record), "--trust-remote-code").trust_remote_code is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object of options"),
        ('{"config": 3}', "must hold a JSON object of options"),
    ],
)
def test_unusable_record_is_named(text, message, tmp_path, calls, capsys):
    record = tmp_path / "run.json"
    if text is not None:
        record.write_text(text, encoding="utf-8")
    assert cli.main(["finetune", "--config", str(record)]) == 2
    assert f"ebr: --config {record}: {message}" in capsys.readouterr().err
    assert not calls


def test_unknown_option_of_a_record_names_the_near_miss(tmp_path, calls, capsys):
    record = tmp_path / "run.json"
    record.write_text('{"lr_scheduler": "cosine"}', encoding="utf-8")
    assert cli.main(["finetune", "--config", str(record)]) == 2
    assert "lr_scheduler: unknown option; did you mean lr_scheduler_type?" in capsys.readouterr().err


# ---------------------------------------------------------------- help, start-up, doorbells


@pytest.mark.parametrize("command", VERBS)
def test_help_lists_every_option_with_its_default_once(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.split("\n")
    for name in [*VERBS[command][2].model_fields, "config", "dry_run"]:
        assert sum(line.strip().startswith(f"--{name} ") or line.strip() == f"--{name}" for line in lines) == 1, name
    assert sum("(default: " in line for line in lines) == len(VERBS[command][2].model_fields)


def test_help_of_the_program_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+)", out, re.MULTILINE) == list(VERBS)


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "what", ["import ebr", "run('--help')", "run('finetune', '--help')", "run('finetune', '--num_epochs', '0')"]
)
def test_what_needs_no_model_loads_no_heavy_library(what):
    code = (
        "import sys, runpy\n"
        "def run(*arguments):\n"
        "    sys.argv = ['ebr', *arguments]\n"
        "    try: runpy.run_module('ebr', run_name='__main__')\n"
        "    except SystemExit: pass\n"
        f"{what}\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    done = python("-c", code)
    loaded = done.stdout.split("LOADED")[1].split()
    assert "ebr" in loaded
    assert HEAVY.isdisjoint(loaded), HEAVY & set(loaded)


@pytest.mark.parametrize("arguments", [["--num-epoch", "2"], ["--help"]])
def test_script_and_module_are_the_same_command(arguments):
    script = python("ebr_finetune.py", *arguments)
    module = python("-m", "ebr", "finetune", *arguments)
    assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)
    assert script.returncode == (0 if "--help" in arguments else 2)
    assert "num_epochs" in script.stdout + script.stderr


def test_scripts_at_the_top_are_doorbells_of_ten_lines():
    scripts = sorted(ROOT.glob("*.py"))
    assert ROOT / "ebr_finetune.py" in scripts
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 10, script.name
