"""Families of models, tiny and built from their configurations: each is found out by trying, none by its name."""

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoTokenizer

from ebr.errors import ModelError
from ebr.model.adapters.attach import attach_lora, used_linear_layers
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.encoder.pooling import pooling_name

TEXTS = ["buy a red shoe", "the lamp", "这是一个大国", "a"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.2}
GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
DECODERS = {
    "Qwen2": GROUPED, "Qwen3": GROUPED, "Llama": GROUPED, "Mistral": {**GROUPED, "sliding_window": None},
}  # fmt: skip
ENCODERS = {
    "Bert": {"max_position_embeddings": 64},
    "XLMRoberta": {"max_position_embeddings": 66, "pad_token_id": 0},
    "ModernBert": {
        "max_position_embeddings": 64,
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
        "reference_compile": False,
    },
}


@pytest.fixture
def plain(tiny_decoder, tiny_model, tmp_path):
    """The folder of a family's model as it is published: weights, configuration, tokenizer."""

    def make(family):
        tokenizer = AutoTokenizer.from_pretrained(tiny_decoder if family in DECODERS else tiny_model)
        tokenizer.padding_side = "left"  # whoever published it generated texts
        options = {**SMALL, **(DECODERS | ENCODERS)[family]}
        special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **{**special, **options})
        torch.manual_seed(0)
        getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return make


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_pooling_follows_from_what_a_token_sees(plain, family):
    model = load_encoder(plain(family), device="cpu")
    assert pooling_name(model) == ("lasttoken" if family in DECODERS else "mean")
    assert model.tokenizer.padding_side == "right"
    assert pooling_name(load_encoder(plain(family), device="cpu", pooling="cls")) == "cls"


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_a_vector_does_not_depend_on_the_padding_of_its_batch(plain, family):
    model = load_encoder(plain(family), device="cpu")
    alone = np.concatenate([model.encode([text]) for text in TEXTS])
    assert np.abs(model.encode(TEXTS, batch_size=4) - alone).max() < 1e-5
    if family in DECODERS:  # positions are rotary: only distances count
        model.tokenizer.padding_side = "left"
        assert model.preprocess(TEXTS)["attention_mask"][:, 0].tolist() != [1, 1, 1, 1]
        assert np.abs(model.encode(TEXTS, batch_size=4) - alone).max() < 1e-5


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_adapter_learns_and_no_layer_is_forgotten(plain, family):
    model = load_encoder(plain(family), device="cpu")
    targets = used_linear_layers(model)
    if family in DECODERS:
        assert set(targets) == GATED
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    model.train()
    model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    adapters = {name: parameter for name, parameter in model.named_parameters() if "lora_B" in name}
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "lora" not in name]
    assert len(adapters) == len([name for name in linear if "pooler" not in name])
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters.values())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoders_texts_end_with_eos_also_when_cut_and_after_saving(plain, family, tmp_path):
    model = load_encoder(plain(family), device="cpu", max_seq_length=8)
    save_encoder(model, tmp_path / "saved")
    for tokenizer in (model.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        short, long = tokenizer(["a", "a b c d e f g h i j"], truncation=True, max_length=8)["input_ids"]
        assert [short[-1], long[-1], len(long)] == [tokenizer.eos_token_id, tokenizer.eos_token_id, 8]
        assert short.count(tokenizer.eos_token_id) == 1
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.abs(saved.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6
    again = load_encoder(str(tmp_path / "saved"), device="cpu")
    assert again.tokenizer("a")["input_ids"].count(again.tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_ends_with_eos_by_itself_stays_as_it_is(tiny_decoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    own = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = own
    transformers.AutoModel.from_pretrained(tiny_decoder).save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    ids = load_encoder(str(tmp_path / "own"), device="cpu").tokenizer("a")["input_ids"]
    assert ids == tokenizer("a")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1


def test_without_a_pad_token_eos_pads(tiny_decoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.pad_token = None
    transformers.AutoModel.from_pretrained(tiny_decoder).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    model = load_encoder(str(tmp_path / "bare"), device="cpu")
    alone = np.concatenate([model.encode([text]) for text in TEXTS])
    assert np.abs(model.encode(TEXTS) - alone).max() < 1e-5


def test_an_encoders_texts_get_no_eos_and_a_chat_template_no_chat(plain, tiny_decoder):
    encoder = load_encoder(plain("Bert"), device="cpu")
    assert encoder.tokenizer("a")["input_ids"] == AutoTokenizer.from_pretrained(plain("Bert"))("a")["input_ids"]
    decoder = load_encoder(tiny_decoder, device="cpu")
    assert decoder.tokenizer.chat_template
    ids = decoder.preprocess(["a"], prompt="the ")["input_ids"][0].tolist()
    assert ids == decoder.tokenizer("the a")["input_ids"]


def test_attention_is_the_one_asked_for(tiny_model, tiny_decoder):
    for folder in (tiny_model, tiny_decoder):
        model = load_encoder(folder, device="cpu", attn_implementation="eager")
        assert model[0].model.config._attn_implementation == "eager"


def test_pooling_of_a_model_that_has_none_cannot_be_changed(tmp_path):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models

    static = StaticEmbedding(Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), embedding_dim=4)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path / "static"))
    with pytest.raises(ModelError, match="pooling cls: this model has no pooling layer"):
        load_encoder(str(tmp_path / "static"), device="cpu", pooling="cls")
