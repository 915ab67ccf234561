"""The shell: how flags are spelled, what an error looks like, what a record may say, and what is not loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebr import cli
from ebr.config import (
    AdaptConfig,
    EvaluationConfig,
    ExtendConfig,
    FinetuneConfig,
    IndexConfig,
    InferenceConfig,
    MergeConfig,
    MiningConfig,
    PairsConfig,
    SampleConfig,
    SearchConfig,
    TrainConfig,
    TuneConfig,
    VisualizationConfig,
)
from ebr.config.options import option_groups
from ebr.errors import DataError, Interrupted
from ebr.workflow import verbs

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "sentence_transformers", "peft", "sklearn", "matplotlib", "faiss"}
VERBS = {
    "sample": ("build_sample_corpus", "plan_sample", SampleConfig),
    "pairs": ("make_pairs", "plan_pairs", PairsConfig),
    "extend": ("extend_vocabulary", "plan_extend", ExtendConfig),
    "check": ("check_training", "plan_finetune", FinetuneConfig),
    "finetune": ("train_sentence_transformer", "plan_finetune", FinetuneConfig),
    "train": ("train_sentence_transformer", "plan_finetune", TrainConfig),
    "merge": ("merge_adapter", "plan_merge", MergeConfig),
    "tune": ("tune_model", "plan_tune", TuneConfig),
    "adapt": ("adapt_queries", "plan_adapt", AdaptConfig),
    "infer": ("run_batch_inference", "plan_inference", InferenceConfig),
    "visualize": ("visualize_embeddings", "plan_visualization", VisualizationConfig),
    "evaluate": ("evaluate_retrieval", "plan_evaluation", EvaluationConfig),
    "index": ("build_index", "plan_index", IndexConfig),
    "search": ("search_index", "plan_search", SearchConfig),
    "mine": ("mine_hard_negatives", "plan_mining", MiningConfig),
}
NEEDED = {
    "train": ["--model_name_or_path", "m", "--train_dataset", "t.jsonl", "--output_dir", "o", "--batch_size", "4"],
    "pairs": ["--corpus", "c", "--output_path", "o.jsonl"],
    "extend": ["--output_path", "o"],
    "merge": ["--base_model_path", "m", "--output_path", "o"],
    "tune": ["--data_path", "t.jsonl", "--output_dir", "o"],
    "adapt": ["--data_path", "t.jsonl", "--output_path", "o"],
    "evaluate": ["--models", "m", "--eval_dataset", "e"],
    "mine": ["--output_path", "o"],
}
"""What a command does not start without."""


def home_of(command, name):
    """Where the function `name` of a command stands."""
    verb = verbs.VERBS[command]
    return next(path for path in (verb.run, verb.plan) if path.endswith(f".{name}"))


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
    # Or a machine with several GPUs would start one real process a GPU.
    monkeypatch.setattr("ebr.training.resources.processes.relaunch_on_every_gpu", lambda *_: None)
    for command, (run, plan, _) in VERBS.items():
        for name in (run, plan):
            monkeypatch.setattr(home_of(command, name), lambda config, name=name, **_: noted.append((name, config)) or Done())
    return noted


def parsed(calls, *flags, command="finetune"):
    """The config that `ebr finetune <flags>` hands to its verb; `ebr train` gets what it needs besides."""
    assert cli.main([command, *NEEDED.get(command, []), *flags]) == 0
    (name, config) = calls.pop()
    assert name == "train_sentence_transformer"
    return config


@pytest.mark.parametrize("command", VERBS)
def test_command_calls_its_verb_with_its_config_and_prints_the_summary(command, calls, capsys):
    others = {"infer": ("batch_size", 7), "merge": ("training_precision", "bfloat16"), "search": ("k", 7)}
    option, value = others.get(command, ("seed", 7))
    assert cli.main([command, *NEEDED.get(command, []), f"--{option}", str(value)]) == 0
    run, _, config = VERBS[command]
    ((name, got),) = calls
    assert (name, type(got)) == (run, config)
    assert got[option] == value
    assert "the summary" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["finetune", "train"])
def test_check_looks_at_what_the_front_end_would_run_and_runs_nothing(command, calls):
    assert cli.main([command, *NEEDED.get(command, []), "--check", "--seed", "7"]) == 0
    ((name, config),) = calls
    assert (name, type(config), config.seed) == ("check_training", VERBS[command][2], 7)


@pytest.mark.parametrize("words", [["red shoes"], ["red", "shoes"], ["--query", "red shoes"]])
def test_search_takes_its_text_with_and_without_a_flag(words, calls):
    assert cli.main(["search", *words, "--k", "3"]) == 0
    ((_, config),) = calls
    assert (config.query, config.k) == ("red shoes", 3)


def test_a_text_given_twice_is_refused(calls, capsys):
    assert cli.main(["search", "red", "--query", "blue"]) == 2
    assert "query: given with its flag and without" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize("command", VERBS)
def test_dry_run_calls_only_the_plan(command, calls, capsys):
    for flag in ("--dry_run", "--dry-run"):
        assert cli.main([command, *NEEDED.get(command, []), flag]) == 0
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


# ---------------------------------------------------------------- the names that train.py's users know


@pytest.mark.parametrize("flags", [["--lr", "3e-6"], ["--learning_rate", "3e-6"], ["--learning-rate=3e-6"], ["--lr=3e-6"]])
def test_train_takes_both_spellings_of_a_flag(flags, calls):
    config = parsed(calls, *flags, command="train")
    assert (config.learning_rate, config.num_epochs) == (3e-6, 2)


def test_later_flag_wins_whichever_its_spelling(calls):
    assert parsed(calls, "--lr", "1e-3", "--learning_rate", "2e-3", command="train").lr == 2e-3
    assert parsed(calls, "--learning_rate", "1e-3", "--lr", "2e-3", command="train").lr == 2e-3


def test_train_takes_what_it_needs_by_the_names_of_fine_tuning_too(calls):
    assert cli.main("train --model_name m --data_path t.jsonl --output_dir o --train_batch_size 4".split()) == 0
    ((_, config),) = calls
    assert config == parsed(calls, command="train")


@pytest.mark.parametrize("spelling", ["lr", "learning_rate"])
def test_flag_of_train_wins_over_a_record_of_either_spelling(spelling, calls, tmp_path):
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"config": {spelling: 1e-3, "num_epochs": 5}}), encoding="utf-8")
    config = parsed(calls, "--config", str(record), "--lr", "2e-3", command="train")
    assert (config.lr, config.epochs) == (2e-3, 5)
    assert parsed(calls, "--config", str(record), command="train").lr == 1e-3


def test_none_unsets_a_default_that_may_be_unset_and_no_other(calls, capsys):
    assert parsed(calls, command="train").query_max_len == 256
    config = parsed(calls, "--query_max_len", "none", command="train")
    assert (config.query_max_len, config.passage_max_len) == (None, 1024)
    assert parsed(calls, "--log_with", "none", command="train").log_with == ["none"]  # a word of its own
    assert cli.main(["train", *NEEDED["train"], "--lr", "none"]) == 2
    assert capsys.readouterr().err.startswith("ebr: lr: must be a valid number")


def test_bits_and_words_come_from_text(calls):
    config = parsed(calls, "--quantization_bits", "8", "--log_with", "wandb,mlflow", command="train")
    assert (config.quantization_bits, config.log_with) == (8, ["wandb", "mlflow"])


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("command", NEEDED)
def test_every_missing_option_is_named_at_once_with_exit_code_2(command, calls, capsys):
    names = [flag.removeprefix("--") for flag in NEEDED[command][::2]]
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == "ebr: " + "\n".join(f"{name}: is required" for name in names) + "\n"
    assert cli.main([command, *NEEDED[command][2:]]) == 2
    assert capsys.readouterr().err == f"ebr: {names[0]}: is required\n"
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--num-epoch", "2"], "ebr: --num_epoch: unknown option; did you mean --num_epochs?\n"),
        (["finetune", "--num_epochs", "0"], "ebr: num_epochs: must be greater than or equal to 1 (got '0')\n"),
        (["finetune", "--seed", "x"], "ebr: seed: must be a valid integer, unable to parse string as an integer (got 'x')\n"),
        (["finetune", "--seed"], "ebr: argument --seed: expected one argument; ebr finetune --help lists the options\n"),
        (["train", "--lrr", "1"], "ebr: --lrr: unknown option; did you mean --lr?\n"),
        (["train", "--epoch=3"], "ebr: --epoch=3: unknown option; did you mean --epochs?\n"),
        (["train", "--num-epoch", "3"], "ebr: --num_epoch: unknown option; did you mean --num_epochs?\n"),
        (["train", *NEEDED["train"], "--lr", "0"], "ebr: lr: must be greater than 0 (got '0')\n"),
        (["train", *NEEDED["train"], "--learning_rate", "0"], "ebr: lr: must be greater than 0 (got '0')\n"),
        (["train", *NEEDED["train"], "--quantization_bits", "5"], "ebr: quantization_bits: must be 4 or 8 (got 5)\n"),
        (
            ["merge", *NEEDED["merge"], "--training_precision", "float16"],
            "ebr: training_precision: must be 'float32' or 'bfloat16' (got 'float16')\n",
        ),
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
    def refuse(config, **_):
        raise DataError("train.jsonl:3: 'positive' is empty; give a text")

    monkeypatch.setattr("ebr.workflow.finetuning.train_sentence_transformer", refuse)
    assert cli.main(["finetune"]) == 2
    assert capsys.readouterr().err == "ebr: train.jsonl:3: 'positive' is empty; give a text\n"


@pytest.mark.parametrize(
    ("error", "message"), [(Interrupted("saved in run/checkpoint-3"), "saved in"), (KeyboardInterrupt(), "")]
)
def test_interruption_is_exit_code_130(error, message, monkeypatch, capsys):
    def stop(config, **_):
        raise error

    monkeypatch.setattr("ebr.inference.command.run_batch_inference", stop)
    assert cli.main(["infer"]) == 130
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


class Pipe:
    """A standard output whose reader has gone, on a file of its own."""

    def __init__(self, path):
        self._file = path.open("w")
        self.fileno, self.n_tried = self._file.fileno, 0

    def write(self, text):
        self.n_tried += 1
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        pass


@pytest.mark.parametrize("command", VERBS)
def test_a_reader_that_has_enough_ends_a_search_and_no_other_work(command, monkeypatch, tmp_path, capsys):
    said = []

    def verb(config, say):
        for line in ("one", "two"):
            said.append(line)
            say(line)
        return Done()

    monkeypatch.setattr("ebr.training.resources.processes.relaunch_on_every_gpu", lambda *_: None)
    monkeypatch.setattr(home_of(command, VERBS[command][0]), verb)
    monkeypatch.setattr(sys, "stdout", Pipe(tmp_path / "out"))
    assert cli.main([command, *NEEDED.get(command, [])]) == 0
    assert said == (["one"] if command == "search" else ["one", "two"])
    assert capsys.readouterr().err == ""


def test_a_plan_and_a_help_page_need_no_reader_either(monkeypatch, tmp_path, calls):
    monkeypatch.setattr(sys, "stdout", Pipe(tmp_path / "out"))
    assert cli.main(["infer", "--dry_run"]) == 0
    monkeypatch.setattr(sys, "stdout", Pipe(tmp_path / "out"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["infer", "--help"])


def test_a_verb_is_handed_a_way_to_speak_that_is_read_at_once(monkeypatch, capsys):
    read = []

    def verb(config, say):
        say("a line")
        read.append(capsys.readouterr().out)
        return Done()

    monkeypatch.setattr(home_of("index", "build_index"), verb)
    assert cli.main(["index"]) == 0
    assert read == ["a line\n"]


@pytest.mark.parametrize("words", [["none"], ["none", "none"]])
def test_a_text_that_says_none_is_searched_for(words, calls):
    assert cli.main(["search", *words]) == 0
    assert calls.pop()[1].query == " ".join(words)
    assert cli.main(["search", "--query", "none", "--queries_path", "q.txt"]) == 0
    assert calls.pop()[1].query is None


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
@pytest.mark.parametrize(("ends_with_reader", "code"), [(True, 2), (False, 0)])
def test_full_disk_below_standard_output_ends_a_search_and_no_other_work(ends_with_reader, code, monkeypatch, capsys, caplog):
    command, verb = ("search", "search_index") if ends_with_reader else ("infer", "run_batch_inference")
    monkeypatch.setattr(home_of(command, verb), lambda config, say: say("a line") or Done())
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([command, *(["words"] if ends_with_reader else [])]) == code
    assert "standard output: No space left on device" in capsys.readouterr().err + caplog.text


def test_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("ebr.inference.command.run_batch_inference", lambda config, **_: 1 // 0)
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
    for name in [*VERBS[command][2].spellings(), "config", "dry_run"]:
        assert sum(re.match(rf" *--{name}(?![\w-])", line) is not None for line in lines) == 1, name
    assert sum("(default: " in line for line in lines) == len(VERBS[command][2].model_fields)


def test_help_of_train_shows_lr_and_its_other_spelling_in_one_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    usage, rows = capsys.readouterr().out.split("options:\n")
    (row,) = [line for line in rows.split("\n") if re.search(r"--(lr|learning_rate)(?![\w-])", line)]
    assert row.strip().startswith("--lr")
    assert "--learning_rate" in row
    assert re.search(r"--lr FLOAT.*\n?.*learning rate.*\(default: 0\.0001\)", rows)
    assert usage.startswith("usage: ebr train [--option value ...]\n")


FIRST = "What matters first"


@pytest.mark.parametrize("command", [name for name in VERBS if name not in ("sample", "pairs", "extend", "merge")])
def test_help_shows_options_in_groups_and_those_that_matter_first(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    usage, *groups = re.split(r"^(\w[\w ]+):\n", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(usage.splitlines()[0]) < 80
    by_title = {
        title: re.findall(r"^  --(\w+)", text, re.MULTILINE) for title, text in zip(groups[::2], groups[1::2], strict=True)
    }
    config = VERBS[command][2]
    expected = {title: [config.spelling(name) for name in names] for title, names in option_groups(config).items()}
    assert {title: names for title, names in by_title.items() if title in expected} == expected
    assert next(iter(expected)) == FIRST
    assert 6 <= len(expected[FIRST]) <= 12
    assert max(map(len, expected.values())) <= 12
    required = {config.spelling(name) for name, field in config.model_fields.items() if field.is_required()}
    assert required <= set(expected[FIRST])


def test_front_ends_share_the_groups_of_what_they_spell_otherwise():
    assert option_groups(VERBS["train"][2]) == option_groups(VERBS["finetune"][2])


def test_help_of_the_program_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+)", out, re.MULTILINE) == list(VERBS)


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "what",
    [
        "import ebr",
        "run('--help')",
        "run('finetune', '--help')",
        "run('finetune', '--num_epochs', '0')",
        "run('train', '--help')",
        "run('merge')",
    ],
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


@pytest.mark.parametrize(
    ("file", "command", "arguments", "word"),
    [
        ("ebr_finetune.py", "finetune", ["--num-epoch", "2"], "num_epochs"),
        ("ebr_finetune.py", "finetune", ["--help"], "num_epochs"),
        ("train.py", "train", ["--epoch", "2"], "--epochs"),
        ("train.py", "train", ["--help"], "--train_dataset"),
        ("merge.py", "merge", [], "base_model_path"),
        ("merge.py", "merge", ["--help"], "--lora_adapter_path"),
    ],
)
def test_script_and_module_are_the_same_command(file, command, arguments, word):
    script = python(file, *arguments)
    module = python("-m", "ebr", command, *arguments)
    assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)
    assert script.returncode == (0 if "--help" in arguments else 2)
    assert word in script.stdout + script.stderr


def test_scripts_at_the_top_are_doorbells_of_ten_lines():
    scripts = sorted(ROOT.glob("*.py"))
    assert {script.name for script in scripts} >= {"ebr_finetune.py", "train.py", "merge.py"}
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 10, script.name
        assert "from ebr.cli import " in text, script.name
