"""What a loader leaves out or makes up: weights, tokenizers, families; each refused, or said."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from ebr.data.files.write import write_json
from ebr.errors import ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.pooling import pooling_name
from tests.lora_adapters import TEXTS

WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


def rename(folder, new_name):
    """The weights under other names (None = dropped); whole: with the metadata that transformers asks for."""
    tensors = {new_name(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file({key: tensor for key, tensor in tensors.items() if key}, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def edit_json(file, **values):
    write_json(file, {**(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}), **values})


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("ebr")]


# Weights


@pytest.mark.parametrize(
    "new_name",
    [
        lambda key: f"model.{key}",
        lambda key: f"module.{key}",
        lambda key: f"0.auto_model.{key}",
        lambda key: key.replace("query.weight", "query.base_layer.weight"),
        lambda key: None if "layer.1." in key else key,
        lambda key: None if key == "embeddings.word_embeddings.weight" else key,
        lambda key: None if key.startswith("embeddings.LayerNorm") else key,
    ],
    ids=["model.", "module.", "sentence-transformers", "base_layer", "one layer", "words", "norm"],
)
def test_a_model_whose_weights_are_not_in_its_file_is_refused_by_their_names(copied, new_name):
    with pytest.raises(ModelError, match=r"(its file lacks \d+ weights? that an embedding reads.*(weight|bias)|never merged)"):
        load_encoder(rename(copied, new_name))


def test_the_first_missing_weights_are_named_and_what_is_there_instead(copied):
    with pytest.raises(ModelError) as caught:
        load_encoder(rename(copied, lambda key: f"module.{key}"))
    assert "embeddings.LayerNorm.bias, embeddings.LayerNorm.weight" in str(caught.value)
    assert "it has module.embeddings" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_of_another_shape_is_refused_with_both(copied):
    tensors = load_file(copied / WEIGHTS)
    tensors["encoder.layer.0.intermediate.dense.weight"] = torch.ones(60, 32)
    save_file(tensors, copied / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"encoder\.layer\.0\.intermediate\.dense\.weight \(60, 32\) where \(64, 32\) is wanted"
    ):
        load_encoder(str(copied))


def test_a_pooler_that_no_embedding_reads_may_be_absent(copied, caplog):
    expected = load_encoder(str(copied)).encode(TEXTS)
    with caplog.at_level(logging.INFO):
        model = load_encoder(rename(copied, lambda key: None if "pooler" in key else key))
    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    assert lines_of(caplog) == []


def test_a_dense_layer_that_reads_the_pooler_is_seen(tiny_model, tmp_path):
    """What an embedding reads is found out by trying, not by a name."""
    from ebr.model.files.loading import LoadedWeights, check_weights

    model = load_encoder(tiny_model)
    transformer = model[0].model
    name = "pooler.dense.weight"
    loaded = LoadedWeights(transformer, frozenset({name}), frozenset(), ())
    check_weights(model, [loaded], "model")
    plain = transformer.forward

    def through_the_pooler(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.last_hidden_state = output.pooler_output[:, None].expand_as(output.last_hidden_state)
        return output

    transformer.forward = through_the_pooler
    with pytest.raises(ModelError, match=r"lacks 1 weight that an embedding reads.*pooler\.dense\.weight"):
        check_weights(model, [loaded], "model")


def test_weights_of_the_file_that_are_used_nowhere_are_said(copied, caplog):
    tensors = load_file(copied / WEIGHTS)
    more = {key.replace("layer.1.", "layer.2."): tensor.clone() for key, tensor in tensors.items() if "layer.1." in key}
    save_file({**tensors, **more}, copied / WEIGHTS, metadata={"format": "pt"})
    load_encoder(str(copied))
    (line,) = lines_of(caplog)
    assert "16 weights in its file have no place in BertModel and are not used: encoder.layer.2.attention" in line


def test_heads_of_a_language_model_are_no_news(tiny_decoder, copied, caplog):
    tensors = load_file(copied / WEIGHTS)
    heads = {"cls.predictions.bias": torch.ones(3), "classifier.weight": torch.ones(2, 32), "lm_head.weight": torch.ones(2, 32)}
    save_file({**tensors, **heads}, copied / WEIGHTS, metadata={"format": "pt"})
    load_encoder(str(copied))
    assert lines_of(caplog) == []


def test_an_adapter_left_in_a_whole_models_file_is_refused(copied):
    tensors = load_file(copied / WEIGHTS)
    lora = {"encoder.layer.0.attention.self.query.lora_A.default.weight": torch.ones(4, 32)}
    save_file({**tensors, **lora}, copied / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="an adapter that was never merged"):
        load_encoder(str(copied))


def test_whoever_loads_from_inside_a_models_own_module_is_watched_too(copied):
    """A Router's towers are loaded by the library, deep inside."""
    from sentence_transformers.sentence_transformer.modules import Router

    tower = SentenceTransformer(str(copied), device="cpu")
    router = Router({"query": [tower[0], tower[1]], "document": [tower[0], tower[1]]}, default_route="document")
    folder = copied.parent / "router"
    SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(folder))
    load_encoder(str(folder))
    inner = next(path.parent for path in folder.rglob(WEIGHTS))
    rename(inner, lambda key: None if "layer.1." in key else key)
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\."):
        load_encoder(str(folder))


# Files


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "1_Pooling/config.json"])
def test_a_git_lfs_pointer_is_refused_by_name(copied, name):
    (copied / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895\nsize 90868376\n"
    )
    with pytest.raises(ModelError, match=rf"{name}: is a git-lfs pointer.*git lfs pull"):
        load_encoder(str(copied))


@pytest.mark.parametrize(("keep", "said"), [(3, "3 bytes"), (200, "no whole"), (-1000, r"has [\d,]+ of [\d,]+ bytes")])
def test_weights_that_were_cut_are_refused(copied, keep, said):
    content = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(ModelError, match=rf"{WEIGHTS}: .*{said}.*copy the file again"):
        load_encoder(str(copied))


def test_a_pointer_for_pickled_weights_is_refused(copied):
    (copied / WEIGHTS).unlink()
    (copied / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: is a git-lfs pointer"):
        load_encoder(str(copied))


def test_pickled_weights_that_are_none_end_in_one_line(copied):
    (copied / WEIGHTS).unlink()
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x05nothing")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_encoder(str(copied))
    assert "\n" not in str(caught.value)


# Tokenizers


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"):
        (Path(folder) / name).unlink(missing_ok=True)
    return str(folder)


def test_a_folder_without_a_tokenizer_is_refused(copied):
    with pytest.raises(ModelError, match=r"tokenizer.*put tokenizer\.json"):
        load_encoder(without_tokenizer(copied))


@pytest.mark.parametrize(
    "family", ["Bert", "XLMRoberta", "Llama", "Qwen2", "Gemma", "T5", "MPNet", "Albert", "DebertaV2", "ModernBert"]
)
def test_no_familys_made_up_tokenizer_passes_for_one(family, tmp_path):
    import transformers

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    more = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2} if family == "T5" else {}
    more |= {"embedding_size": 32} if family == "Albert" else {}
    more |= {"num_key_value_heads": 2, "head_dim": 16} if family in {"Llama", "Qwen2", "Gemma"} else {}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **special, **more})
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / family)
    with pytest.raises(ModelError, match=r"(its tokenizer knows no word|holds no tokenizer).*put tokenizer\.json"):
        load_encoder(str(tmp_path / family))


def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(copied):
    tokenizer = AutoTokenizer.from_pretrained(copied)
    n_rows = len(tokenizer)
    tokenizer.add_tokens(["foo", "bar"])
    tokenizer.save_pretrained(copied)
    with pytest.raises(ModelError, match=rf"ids up to {n_rows + 1}, and its table of embeddings {n_rows} rows"):
        load_encoder(str(copied))


def test_a_tokenizer_that_spells_a_fraction_of_the_table_is_said(tiny_model, tmp_path, caplog):
    model = SentenceTransformer(tiny_model, device="cpu")
    model[0].model.resize_token_embeddings(1000, mean_resizing=False)
    model.save_pretrained(str(tmp_path / "wide"))
    load_encoder(str(tmp_path / "wide"))
    (line,) = lines_of(caplog)
    assert "tokens for a table of 1,000 rows; is it that of another model?" in line


def test_a_model_without_a_padding_token_pads_with_another_and_the_mask_hides_it(copied):
    expected = load_encoder(str(copied)).encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(copied)
    edit_json(copied / "tokenizer_config.json", pad_token=None)
    model = load_encoder(str(copied))
    assert model.tokenizer.pad_token_id is not None
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)


# Families


def test_a_cross_encoder_is_refused(tiny_model, tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(tiny_model, num_labels=1, device="cpu").save_pretrained(str(tmp_path / "cross"))
    with pytest.raises(ModelError, match="is a cross-encoder: it scores pairs"):
        load_encoder(str(tmp_path / "cross"))


def test_a_re_ranker_of_plain_transformers_is_refused_unless_its_encoder_is_asked_for(tiny_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "reranker"
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"config\.json says BertForSequenceClassification.*--pooling mean"):
        load_encoder(str(folder))
    assert pooling_name(load_encoder(str(folder), pooling="cls")) == "cls"


def test_a_sparse_encoder_is_refused(tiny_model, tmp_path):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from sentence_transformers.sparse_encoder.modules import Transformer as SparseTransformer

    transformer = SparseTransformer(tiny_model, transformer_task="fill-mask")
    SparseEncoder(modules=[transformer, SpladePooling()], device="cpu").save_pretrained(str(tmp_path / "splade"))
    with pytest.raises(ModelError, match="is a sparse encoder"):
        load_encoder(str(tmp_path / "splade"))
    # Folders of before do not name their family.
    (tmp_path / "splade" / "config_sentence_transformers.json").unlink()
    with pytest.raises(ModelError, match="is a sparse encoder"):
        load_encoder(str(tmp_path / "splade"))


def test_a_multi_vector_model_is_refused(copied):
    edit_json(copied / "config_sentence_transformers.json", model_type="MultiVectorEncoder")
    with pytest.raises(ModelError, match=r"multi-vector model \(ColBERT\)"):
        load_encoder(str(copied))


def test_another_similarity_than_the_cosine_is_said(copied, caplog):
    edit_json(copied / "config_sentence_transformers.json", similarity_fn_name="dot")
    load_encoder(str(copied))
    assert any("similarity by dot" in line for line in lines_of(caplog))
