"""What a run will cost: the arithmetic by hand, and a measurement that leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ebr.config import FinetuneConfig, TrainConfig
from ebr.training.doctor.run_checks import judge_cost
from ebr.training.resources.cost import (
    Cost,
    Workload,
    _short_texts,
    _slope,
    _small_batches,
    duration_text,
    estimate_cost,
    size_text,
    ways_to_fit,
)

TEXTS = [f"buy a {size} red {thing}" for size in ("small", "large") for thing in ("shoe", "lamp", "cup", "book", "shirt")]
LOAD = Workload(records_a_batch=8, records=100, tokens_a_record=20.0, padding=0.2, longest=32)
COST = Cost(
    weights=1000, trained=400, a_token=10.0, second_a_token=0.5, longest=30, batch=80, tokens=600, room=10_000, kept=1_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model):
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.prompts import set_prompts

    loaded = load_encoder(tiny_model, max_seq_length=64)
    set_prompts(loaded, prompt=None, query_prompt=None, passage_prompt=None)
    return loaded


def test_tokens_of_records_count_the_padding():
    assert LOAD.tokens(8) == 200  # 8 × 20 of 0.8 of the computed


def test_least_memory_is_the_optimiser_and_one_text():
    assert COST.least == 400 + 30 * 10


def test_batch_that_is_not_kept_at_once_takes_a_third_longer():
    assert (COST.is_computed_twice, COST.duration_s) == (False, 300)
    short = replace(COST, kept=799)
    assert (short.is_computed_twice, short.duration_s) == (True, pytest.approx(400))


def test_bytes_a_token_are_the_difference_of_two_passes():
    # 5,000 bytes are copies of weights, whatever the tokens.
    assert _slope([10, 110], [5_100, 6_100]) == 10
    assert _slope([10], [5_100]) == 510


def test_passes_measured_are_a_few_of_the_middle_lengths():
    lengths = np.array([1, 1, 1, 10, 10, 10, 10, 10, 10, 90, 90, 90])
    batches = _small_batches(lengths, 20)
    assert [lengths[batch].tolist() for batch in batches] == [[10], [10, 10], [10, 10], [10, 10]]


def test_full_tuning_counts_gradient_and_two_figures_of_adam_a_weight(model):
    cost = estimate_cost(model, TEXTS, LOAD, FinetuneConfig(finetune_type="full", micro_batch_tokens=50), room=2**30)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    assert (cost.weights, cost.trained) == (4 * n_weights, 12 * n_weights)
    assert (cost.batch, cost.tokens, cost.longest) == (200, 2_500, 32)
    assert (cost.room, cost.kept) == (2**30, 2**29)
    assert cost.second_a_token > 0
    assert cost.a_token > 2 * 32 * 4  # two layers keep more than their inputs of 32 float32


def test_memory_allowed_for_activations_is_the_users(model):
    cost = estimate_cost(model, TEXTS, LOAD, FinetuneConfig(activation_memory_gb=0.5), room=2**40)
    assert cost.kept == 2**29


def test_checkpointing_is_reckoned_as_less_memory_and_one_more_forward_pass(model):
    plain = estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40)
    checkpointed = estimate_cost(model, TEXTS, LOAD, FinetuneConfig(gradient_checkpointing=True), room=2**40)
    assert checkpointed.a_token == pytest.approx(plain.a_token * 0.56)  # one of two layers, and inputs


def test_measuring_leaves_no_trace(model):
    model.eval()
    before = torch.get_rng_state()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(one, parameter) for one, parameter in zip(weights, model.parameters(), strict=True))
    assert not model.training


def test_slow_model_is_measured_by_one_pass(model, monkeypatch):
    calls = []
    monkeypatch.setattr(model, "forward", lambda features: calls.append(1) or type(model).forward(model, features))
    estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40, budget_s=0.0)
    assert len(calls) == 1


def test_memory_that_ends_after_the_first_pass_ends_the_measuring(model, monkeypatch):
    calls = []

    def forward(features):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return type(model).forward(model, features)

    monkeypatch.setattr(model, "forward", forward)
    cost = estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40)
    assert len(calls) == 2
    assert cost.second_a_token > 0 and cost.a_token > 0


def test_no_pass_is_larger_than_a_micro_batch_of_the_run(model, monkeypatch):
    sizes = []

    def forward(features):
        sizes.append(features["input_ids"].numel())
        return type(model).forward(model, features)

    monkeypatch.setattr(model, "forward", forward)
    estimate_cost(model, TEXTS, LOAD, FinetuneConfig(micro_batch_tokens=20), room=2**40, budget_s=60)
    assert max(sizes) <= 20


def test_texts_to_measure_are_short_and_from_all_over():
    texts = [f"{place:03}" + "x" * 2_000 for place in range(300)]
    short = _short_texts(texts)
    assert {len(text) for text in short} == {1_000}
    assert [int(text[:3]) for text in short] == list(range(0, 300, 3))
    assert _short_texts(["a", "", "b"]) == ["a", "", "b"]


def fail(error):
    def forward(features):
        raise error

    return forward


def test_model_that_finds_no_memory_has_no_cost_and_a_critical_finding(model, monkeypatch):
    monkeypatch.setattr(model, "forward", fail(torch.OutOfMemoryError("CUDA out of memory")))
    assert estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40) is None
    (finding,) = judge_cost(None, model, FinetuneConfig())
    assert (finding.name, finding.severity.value) == ("memory-short", "critical")


def test_advice_without_memory_names_only_what_is_not_set_yet(model):
    def helps(**options):
        return judge_cost(None, model, FinetuneConfig(**options))[0].advice

    smaller = "model_name: a smaller one"
    assert helps(finetune_type="full") == f"finetune_type lora, gradient_checkpointing true, {smaller}"
    assert helps() == f"gradient_checkpointing true, {smaller}"
    assert helps(gradient_checkpointing=True) == smaller


def test_other_errors_of_the_model_are_not_swallowed(model, monkeypatch):
    monkeypatch.setattr(model, "forward", fail(RuntimeError("shapes disagree")))
    with pytest.raises(RuntimeError, match="shapes disagree"):
        estimate_cost(model, TEXTS, LOAD, FinetuneConfig(), room=2**40)


# Rows and columns of the tiny model's linear layers: 2 × (4 × 64 + 2 × 96) + the pooler's 64 = 960; × rank 8 × 16 bytes.
ADAPTER = 960 * 8 * 16
MIB = 2**20


def test_ways_to_fit_name_what_fits_alone(model):
    config = FinetuneConfig(finetune_type="full")
    cost = replace(COST, trained=9 * MIB, a_token=MIB / 100, longest=600, room=14 * MIB)  # 15 MiB
    assert ways_to_fit(cost, model, config) == [
        "finetune_type lora: 6 MiB",
        "gradient_checkpointing true: 12 MiB",  # 9 + 0.56 × 6
        "texts of 256 tokens (max_seq_length): 12 MiB",  # 512 would be 14.1
    ]
    assert ADAPTER < MIB / 5


def test_what_fits_only_together_is_named_together(model):
    cost = replace(COST, trained=9 * MIB, a_token=MIB / 100, longest=600, room=1 * MIB)
    ways = "finetune_type lora with gradient_checkpointing true with texts of 64 tokens (max_seq_length)"
    assert ways_to_fit(cost, model, FinetuneConfig(finetune_type="full")) == [f"{ways}: 0 MiB"]
    assert ways_to_fit(replace(cost, room=1000), model, FinetuneConfig(finetune_type="full")) == []


def test_lengths_are_named_by_the_options_that_decide_them(model):
    required = {"model_name_or_path": "m", "train_dataset": "t", "output_dir": "o", "batch_size": 2}
    cost = replace(COST, trained=0, a_token=1.0, longest=600, room=500)
    assert ways_to_fit(cost, model, TrainConfig(**required))[1] == "texts of 256 tokens (query_max_len, passage_max_len): 0 MiB"


def test_memory_is_tight_above_four_fifths_and_short_above_all(model):
    def named(room):
        return [finding.name for finding in judge_cost(replace(COST, room=room), model, FinetuneConfig())]

    assert (named(875), named(874), named(700), named(699)) == ([], ["memory-tight"], ["memory-tight"], ["memory-short"])


def test_run_of_more_than_a_day_is_noted(model):
    (finding,) = judge_cost(replace(COST, tokens=200_000), model, FinetuneConfig())
    assert (finding.name, finding.what) == ("long-run", "about 27.8 h of computing on this machine")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5_399, "90 min"), (5_400, "1.5 h"), (100_000, "27.8 h")]
)
def test_times_have_no_more_digits_than_an_estimate(seconds, text):
    assert duration_text(seconds) == text


def test_sizes_are_in_binary_units():
    assert (size_text(1.5 * 2**30), size_text(3 * 2**20)) == ("1.5 GiB", "3 MiB")
