"""An adapter tuned further: from where it was, on the same base, and with everything that a tuned model records."""

import json
import logging

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from ebr.config import EvaluationConfig, FinetuneConfig, MergeConfig, TrainConfig
from ebr.data.files.write import read_manifest
from ebr.errors import ConfigError, ModelError
from ebr.model.adapters.adapted import base_of
from ebr.model.adapters.attach import adapter_settings
from ebr.model.encoder.encoder import load_encoder
from ebr.model.files.identity import fingerprint
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.evaluation.leak_check import Provenance, check_leaks
from ebr.training.doctor.command import check_training
from ebr.training.plan import load_for_training
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from ebr.workflow.merging import merge_adapter
from tests.data.test_leaks import dataset_of
from tests.lora_adapters import TEXTS, WEIGHTS, said_by_us, save_tuned, vectors


def silent(line):
    """Where lines for people go that nobody looks at."""


def config(model, pairs_file, out, **options):
    return FinetuneConfig(
        **{
            "model_name": str(model), "data_path": str(pairs_file), "output_dir": out, "max_steps": 2, "learning_rate": 1e-2,
            "max_seq_length": 16, "report_to": ["none"], "validation_split": 0.0, "lora_dropout": 0.0, **options,
        }
    )  # fmt: skip


@pytest.fixture
def first(tiny_model, pairs_file, tmp_path):
    """The folder of a model that was tuned once, with a rank and layers of its own."""
    options = {"lora_r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "query_prompt": "query: "}
    return fine_tune(config(tiny_model, pairs_file, tmp_path / "first", **options), say=silent).model_path


def test_tuning_goes_on_from_where_the_adapter_was(first, pairs_file, tmp_path):
    nothing = fine_tune(config(first, pairs_file, tmp_path / "still", learning_rate=1e-12), say=silent).model_path
    np.testing.assert_allclose(vectors(nothing), vectors(first), atol=1e-5)
    second = fine_tune(config(first, pairs_file, tmp_path / "second"), say=silent).model_path
    assert abs(vectors(second) - vectors(first)).max() > 1e-3
    before, after = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert {key: tensor.shape for key, tensor in before.items()} == {key: tensor.shape for key, tensor in after.items()}
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_the_result_is_an_adapter_of_the_same_base_with_its_form_and_prompts(tiny_model, first, pairs_file, tmp_path):
    second = fine_tune(config(first, pairs_file, tmp_path / "second"), say=silent).model_path
    settings = json.loads((second / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8, tiny_model)
    assert not (second / "model.safetensors").exists()
    record = read_manifest(second)
    assert record["base_sha256"] == fingerprint(SentenceTransformer(tiny_model, device="cpu"))
    assert (record["base_model"], record["config"]["model_name"]) == (tiny_model, str(first))
    assert record["model_sha256"] == fingerprint(load_encoder(str(second)))
    assert record["prompts"]["query"] == "query: "
    np.testing.assert_allclose(
        load_encoder(str(second)).encode_query(TEXTS), SentenceTransformer(str(second)).encode_query(TEXTS), atol=1e-5
    )


def test_the_second_tuning_is_judged_against_the_first(first, pairs_file, evaluation_folder, tmp_path):
    lines = []
    done = fine_tune(config(first, pairs_file, tmp_path / "second", eval_dataset=evaluation_folder), say=lines.append)
    evaluated = evaluate_retrieval(
        EvaluationConfig(models=[str(first)], eval_dataset=evaluation_folder, output_dir=tmp_path / "r", max_seq_length=16),
        say=silent,
    )
    base = done.comparison.changes[0].base
    assert base == pytest.approx(evaluated.report.main.measured[0].evaluation.mean(done.comparison.changes[0].metric))


def test_a_resumed_further_tuning_is_the_uninterrupted_one(first, pairs_file, tmp_path):
    options = {"max_steps": 4, "save_steps": 2}
    whole = fine_tune(config(first, pairs_file, tmp_path / "whole", **options), say=silent).model_path
    halves = config(first, pairs_file, tmp_path / "halves", **options)
    fine_tune(halves, say=silent)
    (run,) = tmp_path.glob("halves/*.run")
    again = halves.model_copy(update={"resume_from_checkpoint": run / "checkpoint-2"})
    resumed = fine_tune(again, say=silent).model_path
    one, other = load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_it_merges_into_its_base_and_the_leak_check_knows_both_trainings(tiny_model, first, pairs_file, tmp_path):
    other = tmp_path / "other.json"
    records = [{"anchor": f"find a {thing} of copper", "positive": f"copper {thing}"} for thing in ("kettle", "pan")]
    other.write_text(json.dumps(records))
    second = fine_tune(config(first, other, tmp_path / "second"), say=silent).model_path
    lines = []
    merged = merge_adapter(
        MergeConfig(base_model_path=tiny_model, lora_adapter_path=second, output_path=tmp_path / "merged"), say=lines.append
    )
    assert not [line for line in lines if "warning" in line]
    np.testing.assert_allclose(vectors(merged.model_path), vectors(second), atol=1e-5)
    dataset = dataset_of(["find a pan of copper", "buy a large blue cup", "neither of them"], ["copper pan", "else", "nothing"])
    for model in (second, merged.model_path):
        known = Provenance.of([str(model)])
        assert ([source.data_path for source in known.sources], known.unknown) == ([str(other), str(pairs_file)], ())
        leaks, notes = check_leaks(known, dataset)
        assert (leaks.queries, leaks.answered, notes.text()) == (2, 1, "")
        assert {one.text for one in leaks.examples} == {"find a pan of copper", "buy a large blue cup"}


@pytest.mark.parametrize(
    "lora",
    [{"use_dora": True}, {"modules_to_save": ["LayerNorm"]}, {"trainable_token_indices": [7, 9]}],
    ids=lambda lora: next(iter(lora)),
)
def test_every_weight_of_an_adapter_of_any_kind_goes_on_learning(tiny_model, pairs_file, tmp_path, lora):
    folder, _ = save_tuned(tiny_model, tmp_path / "foreign", **lora)
    options = {"learning_rate": 0.1, "max_steps": 4, "weight_decay": 0.0}
    second = fine_tune(config(folder, pairs_file, tmp_path / "second", **options), say=silent).model_path
    before, after = load_file(folder / WEIGHTS), load_file(second / WEIGHTS)
    assert before.keys() == after.keys()
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    ours, right = load_encoder(str(second), device="cpu"), load_encoder(str(second), device="cpu")
    # As peft itself reads it: transformers' own loader leaves DoRA's magnitudes out.
    right[0].model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_model), second).base_model.model
    np.testing.assert_allclose(vectors(ours), vectors(right), atol=1e-5)
    assert abs(vectors(ours) - vectors(load_encoder(str(folder), device="cpu"))).max() > 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_r": 16}, r"lora_r 16: the adapter .* has 4; leave it out"),
        ({"lora_alpha": 7}, r"lora_alpha 7: the adapter .* has 8"),
        ({"target_modules": ["key"]}, r"target_modules \['key'\]: the adapter .* has its own layers"),
    ],
)
def test_another_form_is_refused(first, pairs_file, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        fine_tune(config(first, pairs_file, tmp_path / "second", **options), say=silent)


def test_every_weight_of_an_adapter_cannot_be_tuned(first, pairs_file, tmp_path):
    with pytest.raises(ModelError, match="is an adapter, of which only the adapter can be tuned; merge it first"):
        fine_tune(config(first, pairs_file, tmp_path / "second", finetune_type="full", lora_dropout=0.1), say=silent)


def test_the_check_looks_at_an_adapter_and_dropout_is_the_runs(first, pairs_file, tmp_path):
    assert check_training(config(first, pairs_file, tmp_path / "second"), say=silent)
    from ebr.training.loop.fit import prepare_model

    again = config(first, pairs_file, tmp_path / "third", lora_dropout=0.25)
    model = load_for_training(again).model
    prepare_model(model, again)
    dropouts = {module.p for name, module in model.named_modules() if "lora_dropout" in name and hasattr(module, "p")}
    assert dropouts == {0.25}
    assert adapter_settings(model).lora_dropout == 0.25


def test_train_py_tunes_an_adapter_further_too(first, triplets_file, tmp_path):
    done = fine_tune(
        TrainConfig(
            model_name_or_path=str(first), train_dataset=str(triplets_file), output_dir=tmp_path / "second", batch_size=4,
            finetune_type="lora", epochs=1, log_with=["none"], gradient_accumulation_steps=1,
        ),
        say=silent,
    )  # fmt: skip
    assert abs(vectors(done.model_path) - vectors(first)).max() > 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_goes_on_on_a_quantised_base(tiny_model, pairs_file, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    options = {"finetune_type": "qlora", "quantization_bits": bits}
    first = fine_tune(config(tiny_model, pairs_file, tmp_path / "first", **options), say=silent).model_path
    second = fine_tune(config(first, pairs_file, tmp_path / "second", **options), say=silent).model_path
    before, after = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert base_of(load_encoder(str(second))).sha256 == read_manifest(second)["base_sha256"]


# What a tuned model records of the one that it began as


def test_a_model_made_for_inner_products_is_judged_by_them_tuned_for_cosines_and_saved_so(
    tiny_model, pairs_file, evaluation_folder, tmp_path, caplog
):
    base = SentenceTransformer(tiny_model, device="cpu")
    dot = SentenceTransformer(modules=[base[0], base[1]], device="cpu", similarity_fn_name="dot")
    dot.save_pretrained(str(tmp_path / "dot"))
    options = {"eval_dataset": evaluation_folder, "finetune_type": "lora"}
    done = fine_tune(config(tmp_path / "dot", pairs_file, tmp_path / "tuned", **options), say=silent)
    assert any("it is tuned for the cosine, and saved so" in record.getMessage() for record in caplog.records)
    assert SentenceTransformer(str(done.model_path), device="cpu").similarity_fn_name == "cosine"
    alone = evaluate_retrieval(
        EvaluationConfig(
            models=[str(tmp_path / "dot")], eval_dataset=evaluation_folder, output_dir=tmp_path / "r", max_seq_length=16
        ),
        say=silent,
    )
    change = done.comparison.changes[0]
    assert change.base == pytest.approx(alone.report.main.measured[0].evaluation.mean(change.metric))


def test_a_run_is_not_resumed_with_another_configuration_of_the_same_weights(tiny_decoder, pairs_file, tmp_path):
    base = tmp_path / "base"
    load_encoder(tiny_decoder).save_pretrained(str(base))
    half = config(base, pairs_file, tmp_path / "saved", max_steps=2, save_steps=1)
    fine_tune(half, say=silent)
    (run,) = tmp_path.glob("saved/*.run")
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "is_causal": False}))
    with pytest.raises(ConfigError, match="is_causal was None, is False"):
        fine_tune(half.model_copy(update={"resume_from_checkpoint": run / "checkpoint-1"}), say=silent)


def test_a_quantised_base_whose_files_have_changed_since_is_said(tiny_model, pairs_file, tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    SentenceTransformer(tiny_model, device="cpu").save_pretrained(str(base))
    options = {"finetune_type": "qlora", "quantization_bits": 8}
    tuned = fine_tune(config(base, pairs_file, tmp_path / "tuned", **options), say=silent).model_path
    caplog.clear()
    load_encoder(str(tuned))
    assert said_by_us(caplog, logging.WARNING) == []
    model = SentenceTransformer(str(base), device="cpu")
    next(model.parameters()).data.add_(0.01)
    model.save_pretrained(str(base))
    load_encoder(str(tuned))
    assert [record for record in caplog.records if "is not the base that the adapter was trained on" in record.getMessage()]
