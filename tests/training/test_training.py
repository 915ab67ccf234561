"""The engine on a tiny model: equal seeds are equal runs, resumed is uninterrupted, saved is trained."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig
from ebr.errors import ConfigError, Interrupted, ModelError
from ebr.workflow import finetuning
from ebr.workflow.finetuning import train_sentence_transformer

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国"]


@pytest.fixture
def config(tiny_model, pairs_file, tmp_path):
    """A run of ten steps with everything random switched on: dropout, noise, drawn negatives."""
    return FinetuneConfig(
        model_name=tiny_model,
        data_path=str(pairs_file),
        output_dir=tmp_path / "saved",
        num_epochs=2,
        train_batch_size=6,
        learning_rate=1e-2,
        max_seq_length=32,
        validation_split=0.1,
        eval_steps=4,
        save_steps=3,
        save_total_limit=10,
        noise_enabled=True,
        noise_prob=0.5,
        report_to=["none"],
    )


def run(config, **changes):
    lines = []
    result = train_sentence_transformer(FinetuneConfig(**{**config.to_json(), **changes}), say=lines.append)
    return result, lines


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(config, tmp_path):
    first, _ = run(config)
    second, _ = run(config, output_dir=str(tmp_path / "again"))
    third, _ = run(config, output_dir=str(tmp_path / "other"), seed=7)
    assert_same_weights(weights(first.model_path), weights(second.model_path))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first.model_path).values(), weights(third.model_path).values()))  # noqa: B905


def break_off_after(work, step):
    """As if the run had died in the middle of writing the checkpoint after this step: later ones are torn, no finished mark."""
    (work / "ebr_run.json").write_text('{"finished": false}')
    for path in work.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            (path / "optimizer.pt").write_bytes(b"half-writt")


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(config, tmp_path):
    whole, _ = run(config)
    broken = tmp_path / "broken"
    run(config, output_dir=str(broken))
    break_off_after(next(broken.glob("*.run")), 6)
    resumed, lines = run(config, output_dir=str(broken), resume_from_checkpoint=True)
    assert any(line.endswith("checkpoint-6") for line in lines)
    assert_same_weights(weights(whole.model_path), weights(resumed.model_path))


def test_a_run_that_was_set_aside_can_be_taken_up_again_and_disturbs_no_other(config, tmp_path):
    whole, _ = run(config)
    out = tmp_path / "out"
    run(config, output_dir=str(out))
    work = next(out.glob("*.run"))
    break_off_after(work, 3)
    _, lines = run(config, output_dir=str(out), seed=7)
    aside = out / "tiny-bert-peft-lora.run.interrupted-1"
    assert any(str(aside) in line for line in lines)
    resumed, _ = run(config, output_dir=str(out), save_total_limit=1, resume_from_checkpoint=str(aside / "checkpoint-3"))
    assert_same_weights(weights(whole.model_path), weights(resumed.model_path))
    assert not aside.exists()
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-10"]


def test_a_refused_resume_leaves_the_finished_run_as_it_was(config):
    result, _ = run(config)
    work = result.model_path.with_name(result.model_path.name + ".run")
    before = sorted(path.relative_to(work) for path in work.rglob("*"))
    with pytest.raises(ConfigError, match="seed was 42, is 7"):
        run(config, seed=7, resume_from_checkpoint=True)
    assert sorted(path.relative_to(work) for path in work.rglob("*")) == before


def test_a_diverged_run_is_refused_and_does_not_replace_the_finished_model(config):
    result, _ = run(config)
    before = weights(result.model_path)
    with pytest.raises(ModelError, match="lower learning_rate"):
        run(config, learning_rate=1e30, max_grad_norm=0)
    assert_same_weights(before, weights(result.model_path))


def test_mixed_precision_is_for_training_only_and_both_evaluations_are_in_float32(config, evaluation_folder, monkeypatch):
    from ebr.model.compute import local_engine as engines

    seen = []
    plain = engines.LocalEngine._forward

    def forward(self, features):
        embedded = self.model(dict(features))["sentence_embedding"]
        seen.append((embedded.dtype, self.model[0].model.encoder.layer[0].output.dense.base_layer(torch.zeros(1, 64)).dtype))
        return plain(self, features)

    monkeypatch.setattr(engines.LocalEngine, "_forward", forward)
    result, _ = run(config, bf16=True, eval_dataset=str(evaluation_folder), validation_split=0, eval_steps=5)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert [entry["step"] for entry in result.record.history if "eval_ndcg@10" in entry] == [5, 10]


def test_ctrl_c_leaves_a_whole_checkpoint_and_the_resumed_run_ends_the_same(config, tmp_path, monkeypatch):
    whole, _ = run(config, save_steps=0)
    from ebr.training.loop import fit as module

    class PullsAtStepFour(module.LogFile):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(module, "LogFile", PullsAtStepFour)
        with pytest.raises(Interrupted, match=r"after step [45].*\n.*resume_from_checkpoint"):
            run(config, output_dir=str(stopped), save_steps=0)
    assert not list(stopped.glob("*-peft-lora"))
    resumed, _ = run(config, output_dir=str(stopped), save_steps=0, resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model_path), weights(resumed.model_path))


def test_resuming_with_other_options_or_data_is_refused_by_name(config, pairs_file):
    run(config)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.01, is 0\.02"):
        run(config, resume_from_checkpoint=True, learning_rate=0.02)
    records = json.loads(pairs_file.read_text())
    pairs_file.write_text(json.dumps(records[:-1]))
    with pytest.raises(ConfigError, match="the training data changed"):
        run(config, resume_from_checkpoint=True)


def test_resuming_without_a_checkpoint_is_refused(config):
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        run(config, resume_from_checkpoint=True)


def test_the_saved_folder_loads_with_plain_sentence_transformers_and_gives_our_vectors(config, tiny_model):
    from ebr.model.compute.local_engine import LocalEngine
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.prompts import Role

    result, lines = run(config, query_prompt="query: ", passage_prompt="passage: ")
    plain = SentenceTransformer(str(result.model_path), device="cpu")
    ours = LocalEngine(load_encoder(str(result.model_path), device="cpu"), Role.DOCUMENT)
    vectors = ours.encode(TEXTS)
    assert np.abs(plain.encode_document(TEXTS) - vectors).max() < 1e-6
    assert plain.prompts == {"query": "query: ", "document": "passage: "}
    assert plain.max_seq_length == 32
    # The adapter did something, and the prompt does.
    assert np.abs(SentenceTransformer(tiny_model, device="cpu").encode_document(TEXTS) - vectors).max() > 1e-3
    assert np.abs(plain.encode(TEXTS) - vectors).max() > 1e-3
    assert "训练集大小: 27" in lines


def test_the_finished_folder_holds_no_pickle_and_its_log_has_the_figures(config):
    result, _ = run(config, l1_regularization=1e-4)
    names = {path.name for path in result.model_path.rglob("*") if path.is_file()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "modules.json",
        "training_log.json",
        "ebr_manifest.json",
    } <= names
    assert {path.rsplit(".", 1)[-1] for path in names} <= {"safetensors", "json", "md", "png", "txt"}
    log = json.loads((result.model_path / "training_log.json").read_text())
    trained, evaluated = [entry for entry in log if "loss" in entry], [entry for entry in log if "eval_loss" in entry]
    assert {"loss", "learning_rate", "grad_norm", "contrastive_loss", "l1_penalty", "step", "epoch"} <= trained[0].keys()
    assert trained[0]["loss"] == pytest.approx(trained[0]["contrastive_loss"] + trained[0]["l1_penalty"], abs=2e-4)
    assert [entry["step"] for entry in evaluated] == [4, 8, 10]
    assert result.loss_curve.is_file()


def test_l1_is_not_in_the_evaluation_loss(config):
    # So large a penalty would show at once; the learning rate is so small that the weights are the same.
    plain, _ = run(config, learning_rate=1e-12)
    heavy, _ = run(config, learning_rate=1e-12, l1_regularization=10.0)
    losses = [[entry["eval_loss"] for entry in result.record.history if "eval_loss" in entry] for result in (plain, heavy)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert heavy.record.history[0]["loss"] > plain.record.history[0]["loss"] + 1


def test_early_stopping_keeps_the_best_weights_not_the_last(config, evaluation_folder):
    # Steps this large only make things worse after the first evaluations.
    result, _ = run(
        config, eval_dataset=str(evaluation_folder), early_stopping_patience=2, eval_steps=1, learning_rate=3.0, num_epochs=20,
        max_grad_norm=0.0, lr_scheduler_type="constant",
    )  # fmt: skip
    record = result.record
    scores = {entry["step"]: entry["eval_ndcg@10"] for entry in record.history if "eval_ndcg@10" in entry}
    assert record.stopped_early
    assert record.n_steps == record.weights_step + 2
    assert record.weights_step == max(scores, key=lambda step: (scores[step], -step))
    assert result.comparison.changes[0].tuned == pytest.approx(scores[record.weights_step])
    work = result.model_path.with_name(result.model_path.name + ".run")
    assert_same_weights(weights(result.model_path), weights(work / f"checkpoint-{record.weights_step}"))


def test_training_lowers_its_own_loss(config):
    result, _ = run(config, num_epochs=20, learning_rate=2e-3, lora_dropout=0, noise_enabled=False, save_steps=0)
    losses = [entry["loss"] for entry in result.record.history if "loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_base_is_judged_before_the_first_step_and_compared_at_the_end(config, evaluation_folder, tiny_model):
    result, lines = run(config, eval_dataset=str(evaluation_folder), learning_rate=1e-12)
    change = result.comparison.changes[0]
    assert change.metric == "ndcg@10"
    assert change.base == pytest.approx(change.tuned, abs=1e-6)  # nothing was learned at such a rate
    assert f"base: nDCG@10 {change.base:.4f} on evaluation" in lines
    assert f"step 10: nDCG@10 {change.tuned:.4f} on evaluation" in lines
    assert "95 % interval" in result.summary()


def test_only_the_adapter_is_trained(config, tiny_model):
    from ebr.model.encoder.encoder import load_encoder

    result, _ = run(config)
    base = dict(load_encoder(tiny_model).named_parameters())
    tuned = dict(load_encoder(str(result.model_path)).named_parameters())
    for name, parameter in tuned.items():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    assert result.record.trainable_parameters == sum(tensor.numel() for tensor in weights(result.model_path).values())


def test_gradient_checkpointing_changes_no_weight(config, tmp_path):
    plain, _ = run(config)
    recomputed, _ = run(config, gradient_checkpointing=True, output_dir=str(tmp_path / "other"))
    first, second = weights(plain.model_path), weights(recomputed.model_path)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_an_adapter_whose_base_has_moved_finds_it_again_by_its_name(config, tiny_model, tmp_path, monkeypatch):
    from ebr.model.encoder.encoder import load_encoder

    shutil.copytree(tiny_model, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    result, _ = run(config, model_name="base")
    before = load_encoder(str(result.model_path)).encode(TEXTS)
    (tmp_path / "other").mkdir()
    (tmp_path / "base").rename(tmp_path / "other" / "base")
    monkeypatch.chdir(tmp_path / "other")
    assert np.array_equal(load_encoder(str(result.model_path)).encode(TEXTS), before)


def test_float16_without_a_gpu_is_refused_in_one_line_that_offers_bfloat16(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^fp16: needs a GPU.*bf16[^\n]*$"):
        run(config, fp16=True)


def test_a_tracker_that_is_not_installed_is_refused_before_training(config):
    with pytest.raises(ConfigError, match=r"report_to: nosuchtracker is not installed here; there is .*tensorboard"):
        run(config, report_to=["nosuchtracker"])


# ---------------------------------------------------------------- two models of one name


def another_model(tiny_model, folder):
    """The tiny model with other weights, in a folder."""
    model = SentenceTransformer(tiny_model, device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save_pretrained(str(folder))
    return str(folder)


def test_two_models_called_final_are_tuned_into_two_folders(config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "A" / "final")
    first, _ = run(config, model_name=str(tmp_path / "A" / "final"), max_steps=2)
    before = weights(first.model_path)
    second, _ = run(config, model_name=another_model(tiny_model, tmp_path / "B" / "final"), max_steps=2)
    assert [one.model_path.name for one in (first, second)] == ["A-final-peft-lora", "B-final-peft-lora"]
    assert_same_weights(before, weights(first.model_path))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_another_model_of_the_same_name_is_refused_before_anything_is_touched(config, tiny_model, tmp_path):
    from ebr.training.doctor.command import check_training

    shutil.copytree(tiny_model, tmp_path / "A" / "tiny")
    result, _ = run(config, model_name=str(tmp_path / "A" / "tiny"), max_steps=2)
    before, other = tree(result.model_path.parent), another_model(tiny_model, tmp_path / "B" / "tiny")
    what = f"tuned from {tmp_path / 'A' / 'tiny'}, and a run of {other} would replace it; give another output_dir"
    with pytest.raises(ConfigError, match=what):
        run(config, model_name=other)
    with pytest.raises(ConfigError, match=what):
        check_training(FinetuneConfig(**{**config.to_json(), "model_name": other}), say=print)
    assert tree(result.model_path.parent) == before
    # The same model by another path replaces its own result.
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "tiny").symlink_to(tmp_path / "A" / "tiny")
    again, _ = run(config, model_name=str(tmp_path / "C" / "tiny"), max_steps=3)
    assert (again.model_path, again.record.n_steps) == (result.model_path, 3)


def test_interrupted_run_of_another_model_is_set_aside_and_not_taken_up(config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "A" / "tiny")
    result, _ = run(config, model_name=str(tmp_path / "A" / "tiny"), max_steps=3)
    work = result.model_path.with_name(result.model_path.name + ".run")
    break_off_after(work, 3)
    shutil.rmtree(result.model_path)
    other = another_model(tiny_model, tmp_path / "B" / "tiny")
    with pytest.raises(ConfigError, match="the base model's weights changed"):
        run(config, model_name=other, max_steps=3, resume_from_checkpoint=True)
    _, lines = run(config, model_name=other, max_steps=2)
    aside = work.with_name(work.name + ".interrupted-1")
    assert any(str(aside) in line for line in lines)
    assert (aside / "checkpoint-3").is_dir()


def test_a_failed_run_leaves_the_finished_model_of_the_run_before(config, monkeypatch):
    result, _ = run(config)
    before = weights(result.model_path)
    from ebr.workflow import model_folder

    def disk_full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(model_folder, "write_json", disk_full)
    monkeypatch.setattr(finetuning, "terminal", lambda: None)
    with pytest.raises(OSError, match="no space"):
        run(config, seed=3)
    assert_same_weights(before, weights(result.model_path))
    assert [path.name for path in result.model_path.parent.iterdir() if "partial" in path.name] == []
