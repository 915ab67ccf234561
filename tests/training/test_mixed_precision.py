"""Which precision a run multiplies in, and that its records say it."""

from __future__ import annotations

import json

import pytest
import torch

from ebr.config import FinetuneConfig
from ebr.errors import ConfigError
from ebr.model.compute import attention
from ebr.training.plan import plan_finetune, settled
from ebr.training.resources import mixed_precision as race
from ebr.training.resources.mixed_precision import mixed_precision, products_dtype
from ebr.training.resources.processes import ALONE
from ebr.workflow import finetuning
from ebr.workflow.finetuning import train_sentence_transformer


def options(tiny_model, pairs_file, tmp_path, **more):
    fixed = {"model_name": tiny_model, "data_path": str(pairs_file), "output_dir": tmp_path / "saved", "report_to": ["none"]}
    return FinetuneConfig(**fixed | more)


def test_auto_is_where_the_processor_multiplies_bfloat16(processor):
    assert FinetuneConfig().bf16 == "auto"
    assert mixed_precision(FinetuneConfig()) == {"avx512_bf16": "bf16", "avx2": "no"}[processor]
    assert mixed_precision(FinetuneConfig(bf16=False)) == "no"
    assert mixed_precision(FinetuneConfig(bf16=True)) == "bf16"
    assert mixed_precision(FinetuneConfig(fp16=True)) == "fp16", "auto gives way to what is asked for"
    assert products_dtype(FinetuneConfig(bf16=True)) is torch.bfloat16


@pytest.mark.parametrize(
    ("seconds", "faster"),
    [({torch.float32: 2.0, torch.bfloat16: 1.0}, True), ({torch.float32: 1.0, torch.bfloat16: 2.0}, False)],
)
def test_avx512_bf16_alone_has_to_win_a_race(seconds, faster, tmp_path, monkeypatch):
    """Some processors take twice as long for a product in bfloat16."""
    info, clock = tmp_path / "cpuinfo", [0.0]
    info.write_text("flags : avx512_bf16\n", encoding="ascii")
    monkeypatch.setattr(attention, "CPU_INFO", info)
    monkeypatch.setattr(race.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(race.F, "linear", lambda rows, weight: clock.__setitem__(0, clock[0] + seconds[rows.dtype]))
    race._wins_a_race.cache_clear()
    try:
        assert mixed_precision(FinetuneConfig()) == ("bf16" if faster else "no")
        info.write_text("flags : avx512_bf16 amx_bf16\n", encoding="ascii")
        assert mixed_precision(FinetuneConfig()) == "bf16", "AMX need not race"
    finally:
        race._wins_a_race.cache_clear()


@pytest.mark.parametrize("in_the_other", [True, False])
def test_processes_multiply_alike(in_the_other, tiny_model, pairs_file, tmp_path):
    """A race may end otherwise in another process: bfloat16 only where it won in all."""

    class Two:
        count = 2

        def any(self, flag):
            return flag or not in_the_other

    config = options(tiny_model, pairs_file, tmp_path, max_steps=2, bf16=True)
    assert finetuning._planned(config, Two(), lambda line: None)[1].bf16 is in_the_other


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_before_the_processor(supported, processor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert mixed_precision(FinetuneConfig()) == ("bf16" if supported else "no")


@pytest.mark.parametrize("text", ["auto", "true", "false"])
def test_words_of_the_command_line(text):
    assert FinetuneConfig(bf16=text).bf16 == {"auto": "auto", "true": True, "false": False}[text]
    with pytest.raises(ConfigError, match="bf16"):
        FinetuneConfig(bf16="perhaps")


def test_records_hold_what_auto_came_to(processor, tiny_model, pairs_file, tmp_path):
    config = options(tiny_model, pairs_file, tmp_path, max_steps=2, validation_split=0)
    result = train_sentence_transformer(config, say=lambda line: None)
    expected = processor == "avx512_bf16"
    for name in ("training_config.json", "ebr_manifest.json"):
        record = json.loads((result.model_path / name).read_text(encoding="utf-8"))
        record = record.get("config", record)
        assert (record["bf16"], record["same_answer"]) == (expected, "text"), name
    assert config.bf16 == "auto", "the caller's own config stays as it was"


def test_a_run_goes_on_in_its_own_precision(tiny_model, pairs_file, tmp_path):
    config = options(tiny_model, pairs_file, tmp_path, max_steps=2, validation_split=0, save_steps=1, bf16=True)
    train_sentence_transformer(config, say=lambda line: None)
    config.bf16, config.resume_from_checkpoint = "auto", True
    plan = plan_finetune(config)
    assert mixed_precision(config) == "no", "as on the pretended processor without bfloat16"
    assert settled(config, plan, ALONE).bf16 is True


@pytest.mark.parametrize(
    "objective", [{"loss": "MultipleNegativesRankingLoss"}, {"loss": "distillation", "contrastive_weight": 0.0}], ids=str
)
def test_a_loss_that_hides_nothing_reruns_and_resumes_from_before_the_options(tiny_model, pairs_file, tmp_path, objective):
    scored = [
        {**record, "positive_score": 0.9, "negative_scores": [0.1]}
        for record in json.loads(pairs_file.read_text(encoding="utf-8"))
    ]
    pairs_file.write_text(json.dumps(scored), encoding="utf-8")
    config = options(tiny_model, pairs_file, tmp_path, max_steps=2, validation_split=0, save_steps=1, **objective)
    result = train_sentence_transformer(config, say=lambda line: None)
    FinetuneConfig.from_dict(json.loads((result.model_path / "training_config.json").read_text(encoding="utf-8"))).check()
    for mark in (tmp_path / "saved").rglob("ebr_checkpoint.json"):
        record = json.loads(mark.read_text(encoding="utf-8"))
        del record["config"]["same_answer"]
        mark.write_text(json.dumps(record), encoding="utf-8")
    config.resume_from_checkpoint = True
    train_sentence_transformer(config, say=lambda line: None)


def test_a_checkpoint_of_before_the_options_is_taken_up(tiny_model, pairs_file, tmp_path):
    config = options(tiny_model, pairs_file, tmp_path, max_steps=2, validation_split=0, save_steps=1)
    train_sentence_transformer(config, say=lambda line: None)
    for mark in (tmp_path / "saved").rglob("ebr_checkpoint.json"):
        record = json.loads(mark.read_text(encoding="utf-8"))
        for name in ("same_answer", "several_positives", "new_token_learning_rate"):
            del record["config"][name]
        mark.write_text(json.dumps(record), encoding="utf-8")
    config.resume_from_checkpoint = True
    train_sentence_transformer(config, say=lambda line: None)
    config.several_positives = True
    with pytest.raises(ConfigError, match="several_positives was False, is True"):
        train_sentence_transformer(config, say=lambda line: None)
