"""What a user gets wrong in `ebr train` and `ebr merge`: one clear message, exit code 2, and nothing written."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ebr import cli

GOOD = '{"query": "q", "pos": ["p"], "neg": ["n"]}'


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments, folder, capsys):
    """The one message of a command that fails, with everything below the folder as it was."""
    before = tree(folder)
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert tree(folder) == before
    message = capsys.readouterr().err
    assert message.startswith("ebr: ")
    assert "Traceback" not in message
    return message


@pytest.fixture
def train(tiny_model, triplets_file, tmp_path):
    """`ebr train` with everything right; a later flag of the same name wins."""
    flags = {"model_name_or_path": tiny_model, "train_dataset": triplets_file, "output_dir": tmp_path / "run"}
    return ["train", *(f"--{name}={value}" for name, value in flags.items()), "--batch_size=4", "--finetune_type=lora"]


def lines(path, *records):
    path.write_text("\n".join(records), encoding="utf-8")
    return path


def empty_model(tmp_path):
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


# flag, how its value is made, what the message says
TRAIN_MISTAKES = {
    "a flag that does not exist": (
        lambda tmp: ["--batch_sise=4"],
        "--batch_sise=4: unknown option; did you mean --batch_size?",
    ),
    "wrong bits": (lambda tmp: ["--quantization_bits=5"], "quantization_bits: must be 4 or 8 (got 5)"),
    "a wrong way of tuning": (lambda tmp: ["--finetune_type=prefix"], "finetune_type: must be 'lora', 'qlora' or 'full'"),
    "a wrong number": (lambda tmp: ["--lr=fast"], "lr: must be a valid number"),
    "a number out of range": (lambda tmp: ["--lr=0"], "lr: must be greater than 0"),
    "a wrong pooling": (lambda tmp: ["--pooling=last"], "pooling: must be 'mean', 'cls', 'max', 'lasttoken'"),
    "an attention that does not exist": (lambda tmp: ["--attn_implementation=fast"], "fast"),
    "a model that is nowhere": (
        lambda tmp: ["--model_name_or_path=./no/such/model"],
        "model './no/such/model': no such folder",
    ),
    "a folder without a model": (lambda tmp: [f"--model_name_or_path={empty_model(tmp)}"], "holds no modules.json"),
    "a dataset that is nowhere": (lambda tmp: ["--train_dataset=missing.jsonl"], "train_dataset missing.jsonl: is no file"),
    "an empty dataset": (lambda tmp: [f"--train_dataset={lines(tmp / 'empty.jsonl', '')}"], "empty.jsonl: no records"),
    "wrong lines": (
        lambda tmp: [f"--train_dataset={lines(tmp / 'wrong.jsonl', GOOD, '{', GOOD, json.dumps({'query': 'q', 'pos': []}))}"],
        "wrong.jsonl:4: 'pos' is empty",
    ),
    "a pair that does not belong together": (
        lambda tmp: [f"--train_dataset={lines(tmp / 'pairs.jsonl', json.dumps({'anchor': 'a', 'positive': 'b', 'label': 0}))}"],
        "pairs.jsonl:1: 'label' is 0",
    ),
    "an evaluation set that is nowhere": (lambda tmp: ["--eval_dataset=missing"], "missing"),
    "layers that the model lacks": (lambda tmp: ["--target_modules=q_proj"], "target_modules q_proj: "),
    "a tracker that is not there": (lambda tmp: ["--log_with=nosuch"], "log_with: nosuch is not installed"),
    "float16 without a GPU": (lambda tmp: ["--fp16"], "fp16: needs a GPU"),
    "two precisions": (lambda tmp: ["--fp16", "--bf16"], "choose one"),
    "nothing to stop early by": (lambda tmp: ["--early_stopping_patience=2"], "early_stopping_patience: needs something"),
    "a length that nothing is left to": (lambda tmp: ["--max_seq_length=64"], "max_seq_length: "),
    "a batch of one": (lambda tmp: ["--batch_size=1"], "batch_size 1: "),
    "nothing to resume": (lambda tmp: ["--resume_from_checkpoint"], "no whole checkpoint in"),
    "an output folder of somebody else": (lambda tmp: [f"--output_dir={others_folder(tmp)}"], "ebr_run.json is absent"),
    "an output folder that is a file": (lambda tmp: [f"--output_dir={lines(tmp / 'file', 'x')}"], "file"),
}


def others_folder(tmp_path):
    (tmp_path / "theirs" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "theirs" / "checkpoint-500" / "weights").write_text("theirs")
    return tmp_path / "theirs"


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_a_mistake_in_training_is_one_message_and_leaves_no_trace(mistake, train, tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags, message = TRAIN_MISTAKES[mistake]
    flags = flags(tmp_path)
    assert message in refused([*train, *flags], tmp_path, capsys)
    assert not (tmp_path / "run").exists()


def test_all_wrong_lines_are_told_at_once(train, tmp_path, capsys):
    path = lines(tmp_path / "wrong.jsonl", "{", GOOD, '{"query": "", "pos": ["p"]}', '{"query": "q", "pos": ["p"], "neg": [1]}')
    message = refused([*train, f"--train_dataset={path}"], tmp_path, capsys)
    assert all(f"wrong.jsonl:{number}: " in message for number in (1, 3, 4))


def test_qlora_without_its_package_says_what_to_install(train, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install 'ebr-retrieval[qlora]'" in refused([*train, "--finetune_type=qlora"], tmp_path, capsys)


# ---------------------------------------------------------------- merging


@pytest.fixture
def adapter(tmp_path):
    """An adapter of rank 1 for a layer that no model here has."""
    import torch

    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({name.format("A"): torch.ones(1, 4), name.format("B"): torch.ones(4, 1)}, folder / "adapter_model.safetensors")
    return folder


MERGE_MISTAKES = {
    "a flag that does not exist": (["--output=x"], "--output=x: unknown option; did you mean --output_path?"),
    "a wrong precision": (["--training_precision=int8"], "training_precision: must be 'float32' or 'bfloat16'"),
    "a base that is nowhere": (["--base_model_path=./missing"], "model './missing': no such folder"),
    "an adapter that is nowhere": (["--lora_adapter_path=./missing"], "lora_adapter_path missing: no such folder or file"),
    "an adapter that does not fit the base": ([], "does not fit this base"),
}


@pytest.mark.parametrize("mistake", MERGE_MISTAKES)
def test_a_mistake_in_merging_is_one_message_and_leaves_no_trace(mistake, adapter, tiny_model, tmp_path, capsys):
    flags, message = MERGE_MISTAKES[mistake]
    right = [f"--base_model_path={tiny_model}", f"--lora_adapter_path={adapter}", f"--output_path={tmp_path / 'merged'}"]
    told = refused(["merge", *right, *flags], tmp_path, capsys)
    assert message in told
    assert told.count("\n") == 1
    assert not Path(tmp_path / "merged").exists()
