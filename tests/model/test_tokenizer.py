"""How a decoder's tokenizer closes a text: the templates of the families, exactly one closing token, within the length."""

import string

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.files.tokenizer import end_with_eos

LETTERS = ["<unk>", "<s>", "</s>", "▁", *string.ascii_lowercase, *(f"▁{letter}" for letter in string.ascii_lowercase)]


def byte_level(template, special, **tokens):
    """A tokenizer of bytes, as Qwen's and Llama 3's are; template: what stands around a text, None = nothing."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(sorted(level.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = level, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    steps = [processors.ByteLevel(trim_offsets=False)]
    if template:
        ids = [(token, backend.token_to_id(token)) for token in special]
        steps.append(processors.TemplateProcessing(single=f"{template}", pair=f"{template} $B:1", special_tokens=ids))
    backend.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens)


def qwen2():
    return byte_level(None, ["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen3_embedding():
    return byte_level("$A <|endoftext|>", ["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama3():
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    return byte_level("<|begin_of_text|> $A", special, bos_token=special[0], eos_token=special[1])


def llama2():
    vocabulary = {token: index for index, token in enumerate(LETTERS)}
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], bos_token="<s>", eos_token="</s>", add_bos_token=True)


def mistral():
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(LETTERS)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LETTERS[3:]]
    return transformers.GemmaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], add_bos_token=True
    )


def own_eos():
    return byte_level("$A <|endoftext|>", ["<|endoftext|>"], eos_token="<|endoftext|>", pad_token="<|endoftext|>")


# Which token closes a text, and which stands in front of it.
FAMILIES = {
    "Qwen2": (qwen2, None, "<|im_end|>"),
    "Qwen3-Embedding": (qwen3_embedding, None, "<|endoftext|>"),
    "Llama 2": (llama2, "<s>", "</s>"),
    "Llama 3": (llama3, "<|begin_of_text|>", "<|end_of_text|>"),
    "Mistral": (mistral, "<s>", "</s>"),
    "Gemma": (gemma, "<bos>", "<eos>"),
    "closing itself": (own_eos, None, "<|endoftext|>"),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def check(tokenizer, before, front, closing):
    """A text is what it was without closing, the closing token behind it; cut, it still ends so, and is as long as allowed."""
    bare = [token for token in before("ab c")["input_ids"] if token != tokenizer.convert_tokens_to_ids(closing)]
    assert tokenizer("ab c")["input_ids"] == [*bare, tokenizer.convert_tokens_to_ids(closing)]
    cut = tokenizer("ab c " * 20, truncation=True, max_length=8)["input_ids"]
    assert len(cut) == 8
    assert tokenizer.convert_ids_to_tokens(cut)[-1] == closing
    special = [token for token in tokenizer.convert_ids_to_tokens(cut) if token in tokenizer.all_special_tokens]
    assert special == [token for token in (front, closing) if token]


def test_a_text_is_closed_by_exactly_one_token_and_begins_as_it_did(family):
    make, front, closing = family
    tokenizer = make()
    end_with_eos(tokenizer)
    check(tokenizer, make(), front, closing)


def test_closing_twice_changes_nothing(family):
    tokenizer = family[0]()
    end_with_eos(tokenizer)
    before = tokenizer.backend_tokenizer.to_str()
    end_with_eos(tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_saved_tokenizer_closes_as_before(family, tmp_path):
    make, front, closing = family
    tokenizer = make()
    end_with_eos(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    check(AutoTokenizer.from_pretrained(tmp_path), make(), front, closing)


def test_of_two_texts_each_is_closed():
    tokenizer = qwen2()
    end_with_eos(tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a", "b")["input_ids"]) == ["a", "<|im_end|>", "b", "<|im_end|>"]


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3-Embedding", "Llama 2", "Mistral"])
def test_a_decoder_of_absolute_positions_reads_texts_up_to_its_last_one(name, tmp_path):
    make, _, closing = FAMILIES[name]
    tokenizer = make()
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=12)
    torch.manual_seed(0)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    model = load_encoder(str(tmp_path / "decoder"), device="cpu")
    assert model.max_seq_length == 12
    ids = model.preprocess(["abc " * 30])["input_ids"][0].tolist()
    assert (len(ids), model.tokenizer.convert_ids_to_tokens(ids)[-1]) == (12, closing)
    before = model.encode(["abc " * 30, "a"])
    save_encoder(model, tmp_path / "saved")
    again = load_encoder(str(tmp_path / "saved"), device="cpu").encode(["abc " * 30, "a"])
    assert abs(before - again).max() < 1e-6
