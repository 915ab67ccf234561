"""Training without padding, with a reference kernel in the place of the GPU's: tried first, undone afterwards."""

import logging

import pytest
import torch
from sentence_transformers import SentenceTransformer

from ebr.model.compute.attention import PADDED, VARLEN, attention_of
from ebr.model.compute.serving import as_served, unpadded
from ebr.model.encoder.pooling import plain_encoder
from tests.model.test_attention import reference_kernel


@pytest.fixture
def model(tiny_decoder):
    return plain_encoder(tiny_decoder, pooling=None, trust_remote_code=False, device="cpu", model_kwargs={})


def broken(*_, **__):
    raise RuntimeError("no kernel image is available")


def wrong(query, *_, **__):
    return query * -1.0


def test_the_model_attends_without_padding_and_afterwards_as_before(model):
    before = model[0].model.config._attn_implementation
    with unpadded(model, name=VARLEN, kernel=reference_kernel):
        assert attention_of(model) == VARLEN
        with as_served(model):
            assert attention_of(model) == PADDED
            model.encode(["a text"])
        assert attention_of(model) == VARLEN
    assert model[0].model.config._attn_implementation == before


@pytest.mark.parametrize(("kernel", "words"), [(broken, "no kernel image"), (wrong, "vectors differ")])
def test_a_kernel_that_fails_its_trial_is_not_used_and_one_line_says_why(model, kernel, words, caplog):
    before = model[0].model.config._attn_implementation
    with caplog.at_level(logging.WARNING), unpadded(model, name=VARLEN, kernel=kernel):
        assert attention_of(model) == PADDED
    assert len(caplog.records) == 1
    assert words in caplog.text
    assert "padding stays" in caplog.text
    assert model[0].model.config._attn_implementation == before
    assert all(one.grad is None for one in model.parameters())


def test_a_model_that_drops_out_attention_stays_padded(tiny_model):
    model = SentenceTransformer(tiny_model, device="cpu")  # BERT: 0.1
    with unpadded(model, name=VARLEN, kernel=reference_kernel):
        assert attention_of(model) == PADDED


def test_on_a_cpu_nothing_changes(model):
    with unpadded(model):
        assert attention_of(model) == PADDED


def test_the_model_is_left_as_it_was_after_an_error(model):
    with pytest.raises(RuntimeError, match="in between"), unpadded(model, name=VARLEN, kernel=reference_kernel):
        raise RuntimeError("in between")
    assert attention_of(model) == PADDED
    assert torch.is_grad_enabled()
