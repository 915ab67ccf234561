"""The second front end on tiny models: three ways of tuning, one output tree, and the same engine as the first."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from ebr.config import FinetuneConfig, TrainConfig
from ebr.errors import DataError
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.workflow.finetuning import train_sentence_transformer
from tests.conftest import REPO

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国"]


def train(options, **changes):
    lines = []
    return train_sentence_transformer(TrainConfig.from_dict(options, changes), say=lines.append), lines


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def step_losses(folder):
    return [step["loss"] for step in read(folder / "detailed_training_logs.json")["steps"]]


def same_weights(first, second):
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def options(tiny_model, triplets_file, tmp_path):
    """Two epochs of eight batches of four, two of them accumulated: eight steps."""
    return {
        "model_name_or_path": tiny_model,
        "finetune_type": "lora",
        "train_dataset": str(triplets_file),
        "output_dir": str(tmp_path / "run"),
        "batch_size": 4,
        "lr": 1e-2,
        "gradient_accumulation_steps": 2,
        "query_max_len": 12,
        "passage_max_len": 24,
        "log_with": "none",
    }


# ---------------------------------------------------------------- the output tree


def test_the_output_tree_and_what_stands_in_it(options, tmp_path):
    result, lines = train(options, save_steps=3, save_total_limit=3, log_with="tensorboard")
    run = tmp_path / "run"
    assert result.model_path == run / "final"
    assert {path.name for path in run.iterdir()} >= {
        "final", "checkpoint-epoch-1", "checkpoint-epoch-2", "checkpoint-3", "checkpoint-6", "detailed_training_logs.json",
        "training_losses.json", "training_summary_report.json", "runs",
    }  # fmt: skip
    names = {path.name for path in (run / "final").rglob("*") if path.is_file()}
    assert names >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training_config.json",
        "tokenizer.json",
        "modules.json",
    }
    assert {name.rsplit(".", 1)[-1] for name in names} <= {"safetensors", "json", "md", "png", "txt"}
    assert list((run / "runs").iterdir())

    logs = read(run / "detailed_training_logs.json")
    assert logs["model_info"]["trainable_parameters"] == result.record.trainable_parameters > 0
    assert logs["model_info"]["total_parameters"] == result.record.all_parameters
    steps = logs["steps"]
    assert [(step["epoch"], step["step"], step["global_step"]) for step in steps] == [
        (epoch, step, 4 * (epoch - 1) + step) for epoch in (1, 2) for step in (1, 2, 3, 4)
    ]
    assert set(steps[0]) == {"epoch", "step", "global_step", "loss", "learning_rate", "step_duration", "timestamp"}
    assert steps[1]["learning_rate"] == pytest.approx(1e-2)  # after one step of warm-up, 5 % of eight rounded up
    averages = [np.mean([step["loss"] for step in steps if step["epoch"] == epoch]) for epoch in (1, 2)]
    assert [epoch["average_loss"] for epoch in read(run / "training_losses.json")] == pytest.approx(averages)
    report = read(run / "training_summary_report.json")
    assert (report["total_steps"], report["finetune_type"], report["n_train"]) == (8, "lora", 31)
    assert report["final_loss"] == pytest.approx(averages[1])
    assert "训练集大小: 31" in lines


def test_the_recorded_config_has_this_front_ends_spelling_and_runs_again(options, tmp_path):
    train(options)
    record = read(tmp_path / "run" / "final" / "training_config.json")
    assert record["lr"] == 1e-2
    assert "learning_rate" not in record
    result, _ = train(record, output_dir=str(tmp_path / "again"))
    assert same_weights(
        tmp_path / "run" / "final" / "adapter_model.safetensors", result.model_path / "adapter_model.safetensors"
    )


def test_lengths_are_applied_separately_and_kept_in_the_saved_model(options):
    result, _ = train(options)
    plain = SentenceTransformer(str(result.model_path), device="cpu")
    long = "a " * 40
    assert plain[0].preprocess([long], task="query")["input_ids"].shape == (1, 12)
    assert plain[0].preprocess([long], task="document")["input_ids"].shape == (1, 24)


def test_lengths_beyond_the_positions_are_lowered_with_one_warning(options, caplog):
    result, _ = train(options, query_max_len=100, passage_max_len=2000, max_steps=1)
    warnings = [record.message for record in caplog.records if "lowered" in record.message]
    assert warnings == ["query_max_len 100, passage_max_len 2000 lowered to 64: the model has no more positions"]
    plain = SentenceTransformer(str(result.model_path), device="cpu")
    assert (plain[0].query_length, plain[0].document_length, plain.max_seq_length) == (64, 64, 64)


# ---------------------------------------------------------------- one engine


def test_the_same_examples_through_both_front_ends_give_bit_identical_losses(options, tiny_model, pairs_file, tmp_path):
    pairs = read(pairs_file)
    triplets = [{"query": pair["anchor"], "pos": [pair["positive"]], "neg": [pair["negative"]]} for pair in pairs]
    (tmp_path / "same.jsonl").write_text("\n".join(map(json.dumps, triplets)), encoding="utf-8")
    one, _ = train(options, train_dataset=str(tmp_path / "same.jsonl"), noise_enabled=True, noise_prob=0.5)
    names = TrainConfig(**options).to_json()
    shared = {name: names[name] for name in FinetuneConfig.model_fields}
    shared |= {"data_path": str(pairs_file), "output_dir": str(tmp_path / "pairs"), "noise_enabled": True, "noise_prob": 0.5}
    other = train_sentence_transformer(FinetuneConfig(**shared), say=lambda _: None)
    losses = step_losses(tmp_path / "run")
    assert len(losses) == 8
    assert losses == step_losses(other.model_path.with_name(other.model_path.name + ".run"))
    assert same_weights(one.model_path / "adapter_model.safetensors", other.model_path / "adapter_model.safetensors")


class Seen(TrainerCallback):
    """What each optimiser step started from, and the gradients that it took."""

    def __init__(self):
        self.rows, self.starts, self.gradients = [], [], []

    def on_train_begin(self, args, state, control, model, **kwargs):
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.starts.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})


def test_a_step_is_the_mean_over_its_examples_also_for_a_short_last_group(options, monkeypatch):
    """31 examples in batches of 2, four to a step: steps of 8, 8, 8 and 7 examples, the last batch a single one."""
    from ebr.training.loop import engine
    from ebr.training.loop import fit as module
    from ebr.training.loss.objectives import masked_info_nce

    seen = Seen()

    class Watching(engine.Collator):
        def __call__(self, rows):
            seen.maker = self
            seen.rows.append([row["row"] for row in rows])
            return super().__call__(rows)

    monkeypatch.setattr(module, "EpochClock", lambda batches, sampler: seen)
    monkeypatch.setattr(engine, "Collator", Watching)
    changes = {
        "batch_size": 2, "gradient_accumulation_steps": 4, "epochs": 1, "lora_dropout": 0.0, "max_grad_norm": 0.0,
    }  # fmt: skip
    config = TrainConfig.from_dict(options, changes)
    train_sentence_transformer(config, say=lambda _: None)
    assert [len(rows) for rows in seen.rows] == [2] * 15 + [1]

    from ebr.training.plan import load_for_training

    model = load_for_training(config).model
    module.prepare_model(model, config)
    for step, groups in enumerate(seen.rows[start : start + 4] for start in (0, 4, 8, 12)):
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in seen.starts[step].items():
                named[name].copy_(value)
        model.zero_grad()
        costs = []
        for rows in groups:
            keys = seen.maker([{"row": row} for row in rows])["batch"].candidates
            drawn = [seen.maker.draw(row) for row in rows]
            passages = [one.positive for one in drawn] + [text for one in drawn for text in one.negatives]
            # Each role in one pass, padded, by the model's own way from text to vector.
            queries, candidates = (
                model(model.preprocess(texts, task=task))["sentence_embedding"]
                for task, texts in (("query", [one.query for one in drawn]), ("document", passages))
            )
            # Negatives come from each batch alone; each example costs the same, whatever the size of its batch.
            mean = masked_info_nce(
                queries, candidates, seen.maker.false_negative_mask(rows, keys), temperature=config.temperature
            )
            costs.append(mean * len(rows))
        (sum(costs) / sum(map(len, groups))).backward()
        assert len(seen.gradients[step]) > 10
        for name, gradient in seen.gradients[step].items():
            assert torch.allclose(named[name].grad, gradient, rtol=1e-4, atol=1e-6), (step, name)


def lowest(n_candidates, smoothing):
    """The entropy of smoothed targets, in plain logarithms."""
    shares = [1 - smoothing + smoothing / n_candidates, *[smoothing / n_candidates] * (n_candidates - 1)]
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize("direction", [{}, {"bidirectional": True}, {"matryoshka_dims": [32, 16]}])
def test_a_run_at_the_lowest_loss_that_label_smoothing_leaves_is_told_so(options, monkeypatch, direction):
    """31 records with none to two negatives in batches of 4, two to a step, the last of 3; right answers are hidden."""
    from ebr.training.loss import objectives

    sizes = set()

    def nothing_left(queries, candidates, mask, *, temperature, label_smoothing, positives):
        assert positives is None
        counts = mask.sum(dim=1).tolist()
        sizes.update(counts)
        cost = sum(lowest(count, label_smoothing) for count in counts) / len(counts)
        return cost + 0.001 + 0.001 * (queries[:, 0].mean() - queries[:, 0].mean().detach())  # a gradient, and no change

    monkeypatch.setattr(objectives, "masked_info_nce", nothing_left)
    result, lines = train(options, epochs=8, neg_nums=2, label_smoothing=0.1, **direction)
    assert [warning.name for warning in result.record.warnings] == ["loss-at-zero"]
    assert sum("is the least with label smoothing) over the last" in line for line in lines) == 1
    assert len(sizes) > 4
    logs = [entry for entry in result.record.history if "loss" in entry]
    assert [entry["loss"] - entry["loss_floor"] for entry in logs] == pytest.approx([0.001] * len(logs), abs=2e-6)


def test_a_batch_of_one_with_negatives_of_its_own_has_something_to_guess(options, pairs_file, tmp_path):
    pairs = read(pairs_file)
    triplets = [{"query": pair["anchor"], "pos": [pair["positive"]], "neg": [pair["negative"]]} for pair in pairs]
    (tmp_path / "same.jsonl").write_text("\n".join(map(json.dumps, triplets)), encoding="utf-8")
    result, _ = train(options, train_dataset=str(tmp_path / "same.jsonl"), batch_size=1, max_steps=4)
    assert [entry["loss_chance"] for entry in result.record.history if "loss" in entry] == pytest.approx([math.log(2)] * 4)


@pytest.mark.long
def test_a_run_killed_mid_epoch_resumes_to_bit_identical_weights(options, tmp_path):
    options = {**options, "epochs": 8, "save_steps": 2, "save_on_epoch_end": 3, "noise_enabled": True, "noise_prob": 0.5}
    options["bf16"] = False  # the other process does not pretend to have our processor
    whole, _ = train(options, output_dir=str(tmp_path / "whole"))
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "ebr", "train", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = tmp_path / "run"
    with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (run / "checkpoint-6").exists():  # the middle of the second epoch, whose steps are 5 to 8
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (run / "final").exists()
    resumed, lines = train(options, resume_from_checkpoint=True)
    assert any(line.startswith("resuming from") for line in lines)
    assert same_weights(whole.model_path / "adapter_model.safetensors", resumed.model_path / "adapter_model.safetensors")
    assert step_losses(run) == step_losses(tmp_path / "whole")
    assert {path.name for path in run.glob("checkpoint-epoch-*")} == {"checkpoint-epoch-3", "checkpoint-epoch-6"}


def test_resuming_from_an_epochs_checkpoint_gives_the_same_weights(options, tmp_path):
    whole, _ = train(options)
    first = (whole.model_path / "adapter_model.safetensors").read_bytes()
    resumed, _ = train(options, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-epoch-1"))
    assert (resumed.model_path / "adapter_model.safetensors").read_bytes() == first
    assert len(step_losses(tmp_path / "run")) == 8


def break_off_at_the_end(run):
    """As if the run had been killed after its last checkpoint, before its model was saved."""
    (run / "ebr_run.json").write_text('{"finished": false}')
    shutil.rmtree(run / "final")


@pytest.mark.parametrize("max_steps", [3, 8])
def test_resuming_from_the_last_checkpoint_takes_no_further_step(options, tmp_path, max_steps):
    flags = {"max_steps": max_steps, "save_steps": max_steps, "save_on_epoch_end": 0, "lr_scheduler_type": "constant"}
    whole, _ = train(options, **flags)
    kept = (whole.model_path / "adapter_model.safetensors").read_bytes()
    break_off_at_the_end(tmp_path / "run")
    resumed, _ = train(options, **flags, resume_from_checkpoint=True)
    assert (resumed.model_path / "adapter_model.safetensors").read_bytes() == kept
    assert resumed.record.n_steps == max_steps


def test_resuming_from_the_last_checkpoint_of_early_stopping_still_finds_the_best(options, evaluation_folder, tmp_path):
    flags = {
        "eval_dataset": str(evaluation_folder), "early_stopping_patience": 2, "eval_steps": 1, "lr": 3.0, "max_grad_norm": 0,
        "lr_scheduler_type": "constant", "epochs": 20, "warmup_proportion": 0, "save_on_epoch_end": 0,
    }  # fmt: skip
    whole, _ = train(options, **flags)
    kept = (whole.model_path / "adapter_model.safetensors").read_bytes()
    break_off_at_the_end(tmp_path / "run")
    resumed, _ = train(options, **flags, resume_from_checkpoint=True)
    assert resumed.record.stopped_early
    assert (resumed.record.n_steps, resumed.record.weights_step) == (whole.record.n_steps, whole.record.weights_step)
    assert (resumed.model_path / "adapter_model.safetensors").read_bytes() == kept


def test_an_adapter_asked_for_on_a_layer_that_no_embedding_reads_is_not_trained(options):
    result, _ = train(options, target_modules=["query", "dense"])
    weights = load_file(result.model_path / "adapter_model.safetensors")
    pooler = [name for name in weights if "pooler" in name and "lora_B" in name]
    assert pooler
    assert not any(weights[name].any() for name in pooler)
    assert all(weights[name].any() for name in weights if "lora_B" in name and name not in pooler)


def test_a_batch_of_one_without_a_negative_is_refused_and_its_rows_are_named(options, tmp_path):
    with pytest.raises(
        DataError, match=r"^batch_size 1: .*records 2 \('buy a small red shirt'\), 5 .* and \d+ more; raise batch_size"
    ):
        train(options, batch_size=1)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- full


def test_full_tuning_saves_the_whole_model_and_resumes_exactly(options, tmp_path, tiny_model):
    whole, lines = train(options, finetune_type="full", lr=1e-3, save_steps=3, save_total_limit=3)
    weights = whole.model_path / "model.safetensors"
    assert not (whole.model_path / "adapter_config.json").exists()
    before, after = load_file(f"{tiny_model}/model.safetensors"), load_file(weights)
    assert {name for name in after if torch.equal(before[name], after[name])} == {"pooler.dense.weight", "pooler.dense.bias"}
    assert any(line.startswith("trainable parameters") and "(9" in line for line in lines)
    kept = weights.read_bytes()
    resumed, _ = train(
        options, finetune_type="full", lr=1e-3, save_steps=3, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3")
    )
    assert (resumed.model_path / "model.safetensors").read_bytes() == kept
    ours = load_encoder(str(resumed.model_path)).encode(TEXTS)
    assert np.abs(SentenceTransformer(str(resumed.model_path), device="cpu").encode(TEXTS) - ours).max() < 1e-6


def test_full_tuning_under_early_stopping_keeps_the_best_weights(options, evaluation_folder):
    result, _ = train(
        options, finetune_type="full", eval_dataset=str(evaluation_folder), early_stopping_patience=1, eval_steps=1, lr=0.5,
        max_grad_norm=0, lr_scheduler_type="constant", epochs=20, warmup_proportion=0,
    )  # fmt: skip
    scores = {entry["step"]: entry["eval_ndcg@10"] for entry in result.record.history if "eval_ndcg@10" in entry}
    assert result.record.stopped_early
    assert result.record.weights_step == max(scores, key=lambda step: (scores[step], -step)) < result.record.n_steps
    best = result.model_path.parent / f"checkpoint-{result.record.weights_step}"
    assert same_weights(best / "model.safetensors", result.model_path / "model.safetensors")
    assert not same_weights(
        best.with_name(f"checkpoint-{result.record.n_steps}") / "model.safetensors", best / "model.safetensors"
    )


@pytest.mark.parametrize(("finetune_type", "moves"), [("lora", False), ("full", True)])
def test_a_dense_tail_is_trained_by_full_tuning_only(options, tiny_model, tmp_path, finetune_type, moves):
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(tiny_model, device="cpu")
    model.insert(2, Dense(32, 16))
    save_encoder(model, tmp_path / "tailed")
    before = model[2].linear.weight.detach().clone()
    result, _ = train(options, model_name_or_path=str(tmp_path / "tailed"), finetune_type=finetune_type)
    after = SentenceTransformer(str(result.model_path), device="cpu")[2].linear.weight
    assert torch.equal(before, after) is not moves


# ---------------------------------------------------------------- qlora, on a decoder


@pytest.fixture
def decoder_options(options, tiny_decoder):
    pytest.importorskip("bitsandbytes")
    return {**options, "model_name_or_path": tiny_decoder, "finetune_type": "qlora"}


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_learns_on_a_base_that_stays_quantised(decoder_options, tmp_path, bits, tiny_decoder):
    result, _ = train(decoder_options, quantization_bits=bits, epochs=8, lora_dropout=0, save_steps=5)
    losses = step_losses(tmp_path / "run")
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    kinds = {type(module).__name__ for module in load_encoder(str(result.model_path)).modules()}
    assert {4: "Linear4bit", 8: "Linear8bitLt"}[bits] in kinds  # as it was tuned, without being told again
    plain = SentenceTransformer(str(result.model_path), device="cpu")
    assert not {"Linear4bit", "Linear8bitLt"} & {type(module).__name__ for module in plain.modules()}
    report = read(tmp_path / "run" / "training_summary_report.json")
    assert report["total_parameters"] == sum(parameter.numel() for parameter in plain.parameters())
    config = read(result.model_path / "adapter_config.json")
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not (result.model_path / "model.safetensors").exists()


@pytest.mark.parametrize(("finetune_type", "folder"), [("qlora", "tiny-qwen2-peft-qlora"), ("full", "tiny-qwen2-full")])
def test_the_first_front_end_tunes_in_every_way_too(tiny_decoder, pairs_file, tmp_path, finetune_type, folder):
    options = {"model_name": tiny_decoder, "data_path": str(pairs_file), "output_dir": tmp_path, "finetune_type": finetune_type}
    result = train_sentence_transformer(FinetuneConfig(**options, max_steps=2, report_to=["none"]), say=lambda _: None)
    assert result.model_path == tmp_path / folder
    plain = SentenceTransformer(str(result.model_path), device="cpu")
    assert np.isfinite(plain.encode(TEXTS)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_resumed_qlora_is_uninterrupted_qlora(decoder_options, tmp_path, bits):
    whole, _ = train(decoder_options, quantization_bits=bits, save_steps=3, save_total_limit=3)
    kept = (whole.model_path / "adapter_model.safetensors").read_bytes()
    checkpoint = str(tmp_path / "run" / "checkpoint-3")
    resumed, _ = train(
        decoder_options, quantization_bits=bits, save_steps=3, save_total_limit=3, resume_from_checkpoint=checkpoint
    )
    assert (resumed.model_path / "adapter_model.safetensors").read_bytes() == kept


def test_the_best_qlora_checkpoint_comes_back_with_the_base_still_quantised(decoder_options, evaluation_folder):
    result, _ = train(
        decoder_options, eval_dataset=str(evaluation_folder), early_stopping_patience=2, eval_steps=1, lr=2.0, max_grad_norm=0,
        lr_scheduler_type="constant", epochs=20, warmup_proportion=0,
    )  # fmt: skip
    scores = {entry["step"]: entry["eval_ndcg@10"] for entry in result.record.history if "eval_ndcg@10" in entry}
    assert result.record.stopped_early
    best = result.record.weights_step
    assert best < result.record.n_steps
    # Judged again by whoever loads the folder, the base quantised as it was tuned.
    from ebr.data.evaluation.evaluation_set import read_evaluation_set
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.retrieval.measures.measurement import evaluate_encoder

    model = load_encoder(str(result.model_path))
    again = evaluate_encoder(RetrievalEncoder(model, batch_size=6, show_progress=False), read_evaluation_set(evaluation_folder))
    assert again.mean("ndcg@10") == pytest.approx(scores[best])
