"""Rows of new tokens: they learn beside whatever else is tuned, at their own rate; those that no text holds stay as drawn."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from ebr.config import ExtendConfig, FinetuneConfig
from ebr.errors import ConfigError
from ebr.model.adapters.attach import TOKEN_ROWS, attach_lora, token_rows
from ebr.model.compute.token_rows import light_token_rows
from ebr.model.encoder.encoder import load_encoder
from ebr.model.vocabulary.command import extend_vocabulary
from ebr.model.vocabulary.new_tokens import new_tokens_of
from ebr.training.loop.new_rows import NewRows
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from tests.lora_adapters import WEIGHTS, merge, said_by_us

SPELT, NEVER_SEEN = "水火山木金土", "雨雪"
TEXTS = ["red 水火", "山木", "金 shoe 土", "buy a cup", "雨雪"]


@pytest.fixture(scope="module")
def extended(tiny_model, tmp_path_factory):
    """A tiny model with eight tokens more, two of which stand in no record."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "texts.txt").write_text(f"{SPELT} {NEVER_SEEN}\n", encoding="utf-8")
    config = ExtendConfig(model_name=tiny_model, corpus=[str(folder / "texts.txt")], output_path=folder / "tiny-zh")
    return str(extend_vocabulary(config, say=silent).model_path)


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "zh.json"
    pairs = [{"anchor": f"{one} {two}", "positive": f"the {one}{two}"} for one in SPELT for two in SPELT if one != two]
    path.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return path


def silent(line):
    """Where lines for people go that nobody looks at."""


def tune(model, records, out, **options):
    config = FinetuneConfig(
        **{
            "model_name": str(model), "data_path": str(records), "output_dir": out, "max_steps": 3, "train_batch_size": 10,
            "max_seq_length": 16, "report_to": ["none"], "validation_split": 0.0, **options,
        }
    )  # fmt: skip
    return fine_tune(config, say=silent).model_path


def rows(folder, tokens=SPELT + NEVER_SEEN):
    """Rows of a model's table, by their tokens."""
    model = load_encoder(str(folder), device="cpu")
    own = model[0].model.get_input_embeddings()
    table = own.weight.detach().numpy()
    return {token: table[model.tokenizer.convert_tokens_to_ids(token)] for token in tokens}


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_rows_learn_and_those_of_no_text_stay_to_the_last_bit(extended, records, tmp_path, finetune_type):
    drawn = rows(extended)
    tuned = rows(tune(extended, records, tmp_path, finetune_type=finetune_type, weight_decay=0.5))
    assert min(abs(tuned[one] - drawn[one]).max() for one in SPELT) > 1e-3
    assert all(np.array_equal(tuned[one], drawn[one]) for one in NEVER_SEEN)


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_the_first_step_moves_a_row_by_its_own_rate(extended, records, tmp_path, finetune_type):
    """AdamW's first step moves every number by the learning rate, whatever its gradient is."""
    options = {"max_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 1e-4, "finetune_type": finetune_type}
    drawn = rows(extended)
    for rate in (3e-3, 1e-5):
        folder = tune(extended, records, tmp_path / str(rate), new_token_learning_rate=rate, **options)
        tuned = rows(folder)
        moved = np.array([abs(tuned[one] - drawn[one]).max() for one in SPELT])
        np.testing.assert_allclose(moved, rate, rtol=0.02)
        if finetune_type == "full":
            before, after = (rows(one, ["the"])["the"] for one in (extended, folder))
            assert abs(after - before).max() == pytest.approx(1e-4, rel=0.02)


def test_own_rate_is_that_of_an_optimizer_whose_rate_it_is():
    """Some rows of a table at a tenth of the rate, over a schedule: as a parameter of their own in a group of their own."""
    torch.manual_seed(0)
    table, target = torch.randn(6, 4), torch.randn(6, 4)
    ours = torch.nn.Parameter(table.clone())
    optimizer = torch.optim.AdamW([ours], lr=0.1, weight_decay=0.0)
    NewRows(ours, slice(4, 6), 0.1).learn_at_own_rate(optimizer)
    parts = [torch.nn.Parameter(table[:4].clone()), torch.nn.Parameter(table[4:].clone())]
    groups = torch.optim.AdamW([{"params": [parts[0]]}, {"params": [parts[1]], "lr": 0.01}], lr=0.1, weight_decay=0.0)
    for step in range(20):
        for one in (optimizer, groups):
            for group, rate in zip(one.param_groups, (0.1, 0.01), strict=False):
                group["lr"] = rate * (1 - step / 20)
            one.zero_grad()
        (ours - target).pow(2).sum().backward()
        (torch.cat(parts) - target).pow(2).sum().backward()
        optimizer.step()
        groups.step()
    torch.testing.assert_close(ours.detach(), torch.cat(parts).detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_rate_zero_leaves_them_as_drawn(extended, records, tmp_path, finetune_type):
    folder = tune(extended, records, tmp_path, finetune_type=finetune_type, new_token_learning_rate=0)
    drawn, tuned = rows(extended), rows(folder)
    assert all(np.array_equal(tuned[one], drawn[one]) for one in drawn)
    if finetune_type == "lora":
        assert not [key for key in load_file(folder / WEIGHTS) if TOKEN_ROWS in key]


def test_the_adapter_loads_by_itself_and_merges_to_the_same(extended, records, tmp_path):
    folder = tune(extended, records, tmp_path, learning_rate=1e-2)
    ours = load_encoder(str(folder), device="cpu").encode(TEXTS)
    assert abs(ours - load_encoder(extended, device="cpu").encode(TEXTS)).max() > 0.01
    np.testing.assert_allclose(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), ours, atol=1e-5)
    merged, _ = merge(extended, folder)
    np.testing.assert_allclose(SentenceTransformer(str(merged.model_path), device="cpu").encode(TEXTS), ours, atol=1e-5)
    before, after = rows(folder), rows(merged.model_path)
    assert all(np.array_equal(before[one], after[one]) for one in before)
    # What was new still is for a further tuning.
    assert new_tokens_of(load_encoder(str(merged.model_path))[0].model, "model").count == 8


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_a_resumed_run_is_the_uninterrupted_one(extended, records, tmp_path, finetune_type):
    options = {"max_steps": 4, "save_steps": 2, "finetune_type": finetune_type}
    whole = tune(extended, records, tmp_path / "whole", **options)
    tune(extended, records, tmp_path / "halves", **options)
    (run,) = tmp_path.glob("halves/*.run")
    resumed = tune(extended, records, tmp_path / "halves", resume_from_checkpoint=run / "checkpoint-2", **options)
    name = WEIGHTS if finetune_type == "lora" else "model.safetensors"
    one, other = load_file(whole / name), load_file(resumed / name)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_further_tuning_of_the_adapter_goes_on_with_its_rows(extended, records, tmp_path, caplog):
    first = tune(extended, records, tmp_path / "first")
    second = rows(tune(first, records, tmp_path / "second"))
    before = rows(first)
    assert min(abs(second[one] - before[one]).max() for one in SPELT) > 1e-3
    still = rows(tune(first, records, tmp_path / "still", new_token_learning_rate=0))
    assert all(np.array_equal(still[one], before[one]) for one in before)
    without = tune(extended, records, tmp_path / "without", new_token_learning_rate=0)
    tune(without, records, tmp_path / "third")
    assert any("holds no rows for the new tokens of its base" in line for line in said_by_us(caplog))


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_the_penalty_of_l1_lets_them_be(extended, records, tmp_path, finetune_type):
    drawn = rows(extended)
    tuned = rows(tune(extended, records, tmp_path, l1_regularization=0.1, finetune_type=finetune_type))
    assert all(np.array_equal(tuned[one], drawn[one]) for one in NEVER_SEEN)


def test_qlora_trains_them_too(extended, records, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tune(extended, records, tmp_path, finetune_type="qlora", quantization_bits=8)
    drawn, tuned = rows(extended), rows(folder)
    assert min(abs(tuned[one] - drawn[one]).max() for one in SPELT) > 1e-3
    assert all(np.array_equal(tuned[one], drawn[one]) for one in NEVER_SEEN)


def test_bfloat16_trains_them_too(extended, records, tmp_path):
    drawn, tuned = rows(extended), rows(tune(extended, records, tmp_path, bf16=True))
    assert min(abs(tuned[one] - drawn[one]).max() for one in SPELT) > 1e-3
    assert all(np.array_equal(tuned[one], drawn[one]) for one in NEVER_SEEN)


def test_a_rate_for_rows_that_there_are_not_is_refused(tiny_model, pairs_file, tmp_path):
    with pytest.raises(ConfigError, match=r"new_token_learning_rate: .* has no new tokens; extend it first \(ebr extend\)"):
        tune(tiny_model, pairs_file, tmp_path, new_token_learning_rate=1e-3)


# Looked up beside the table


def test_rows_looked_up_beside_the_table_give_what_peft_gives_and_the_same_gradients(extended):
    model = load_encoder(extended, device="cpu")
    attach_lora(model, r=4, alpha=8, dropout=0.0, token_ids=new_tokens_of(model[0].model, "model").ids())
    found = {}
    for name in ("peft", "ours"):
        model.zero_grad(set_to_none=True)
        features = model.tokenize(TEXTS)
        if name == "ours":
            with light_token_rows(model):
                assert any("forward" in vars(module) for module in model.modules())
                vectors = model(features)["sentence_embedding"]
        else:
            vectors = model(features)["sentence_embedding"]
        vectors[:, 0].sum().backward()
        found[name] = vectors.detach(), token_rows(model).grad.clone()
    assert torch.equal(found["peft"][0], found["ours"][0])
    torch.testing.assert_close(found["peft"][1], found["ours"][1])
    assert found["ours"][1].abs().max() > 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_another_kind_of_adapter_on_the_table_stays_as_it_is(tiny_model):
    model = SentenceTransformer(tiny_model, device="cpu")
    model.add_adapter(LoraConfig(r=4, target_modules=["word_embeddings"]))
    with light_token_rows(model):
        assert not any("forward" in vars(module) for module in model.modules())
