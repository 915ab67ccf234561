"""Fixtures: a tiny encoder built from a configuration, so that training and inference are tested in seconds."""

from __future__ import annotations

import gc
import json
import logging
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# No test may reach for a model hub; set before anything imports huggingface_hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A model of 32 dimensions is slower on two threads than on one, and far slower when another process wants them too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for one another sleep: spinning, they would take the core that the other needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPO = Path(__file__).resolve().parent.parent
SHARED_DATA = REPO.parent / "shared" / "data"
CHINESE = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民"
)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their number: what gzip packs holds the time, and every process must call a test by the same name."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens that a test keeps are nobody else's: neither those of the user's runs nor of the tests before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EBR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """An embedding run takes every core of its process for good: the tests after it would fight other processes for them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is written is on its way to the disk; only a power cut could tell, and no test cuts it. Most tests write much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def light_collections() -> None:
    """What stands when a file begins, above all the imported libraries, is not looked through again by each collection.

    A training asks for a full one, which took 0.4 s of the second that a tiny model's training takes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """The command line turns up what EBR logs, for good: not for the tests that come after."""
    logger = logging.getLogger("ebr")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a sentence-transformers model of two layers and 32 dimensions with random, fixed weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    letters = string.ascii_lowercase + string.digits + ".,!?:'"
    words = [
        "red",
        "blue",
        "green",
        "shoe",
        "shirt",
        "lamp",
        "cup",
        "book",
        "small",
        "large",
        "buy",
        "a",
        "the",
        "query",
        "passage",
    ]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys([*words, *letters, *CHINESE]),
        *("##" + c for c in letters),
    ]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    raw = folder.parent / "raw"
    BertModel(config).save_pretrained(raw)
    (raw / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(raw / "vocab.txt"), model_max_length=64).save_pretrained(raw)
    transformer = Transformer(str(raw))
    SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()], device="cpu").save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def pretended_processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """EBR_TEST_PROCESSOR=avx2 or avx512_bf16: the whole suite as on that processor; host = the one at hand.

    Not set = avx2: what `auto` comes to is then the same wherever the tests run.
    """
    kind = os.environ.get("EBR_TEST_PROCESSOR", "avx2")
    with pytest.MonkeyPatch.context() as patch:
        if kind != "host":
            from tests.processors import KINDS, pretend

            assert kind in KINDS, f"EBR_TEST_PROCESSOR is {kind}; it must be one of {', '.join(KINDS)}"
            pretend(kind, patch, tmp_path_factory.mktemp("processor"))
        yield


@pytest.fixture(params=["avx512_bf16", "avx2"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each of the two kinds of processor, pretended."""
    from tests.processors import pretend

    pretend(request.param, monkeypatch, tmp_path)
    return str(request.param)


COLOURS, THINGS, SIZES = ("red", "blue", "green"), ("shoe", "shirt", "lamp", "cup", "book"), ("small", "large")


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Thirty training pairs: 'buy a small red shoe' belongs to 'the red small shoe', with one negative each."""
    records = [
        {
            "anchor": f"buy a {size} {colour} {thing}",
            "positive": f"the {colour} {size} {thing}",
            "negative": f"the {colour} {size} {THINGS[(index + 1) % len(THINGS)]}!",
        }
        for size in SIZES
        for colour in COLOURS
        for index, thing in enumerate(THINGS)
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def evaluation_folder(tmp_path: Path) -> Path:
    """Ten queries over thirty documents, in BEIR form."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    documents = [f"the {colour} {size} {thing}" for size in SIZES for colour in COLOURS for thing in THINGS]
    corpus = [{"_id": f"d{index}", "title": "", "text": text} for index, text in enumerate(documents)]
    queries = [{"_id": f"q{index}", "text": "buy a " + text.removeprefix("the ")} for index, text in enumerate(documents[:10])]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)), encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    qrels = ["query-id\tcorpus-id\tscore", *(f"q{index}\td{index}\t1" for index in range(10))]
    (folder / "qrels.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a language model as it is published, without sentence-transformers: Qwen2 of two layers and 32 dimensions.

    Random, fixed weights. Its tokenizer is of bytes, as Qwen's is: it appends nothing, pads with <|endoftext|>, and ends a turn
    with <|im_end|>.
    """
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-qwen2"
    backend = _byte_tokenizer(["red", "blue", "green", "shoe", "shirt", "lamp", "cup", "book", "small", "large", "buy", "the"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=128,
        padding_side="right", additional_special_tokens=["<|im_start|>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _byte_tokenizer(words: list[str]) -> Any:
    """Byte-level BPE without a training run: each word, with the space before it, and each of CHINESE is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for text in [*(f" {word}" for word in words), *CHINESE]:
        symbols = "".join(piece for piece, _ in level.pre_tokenize_str(text))
        merges.update({(symbols[:end], symbols[end]): None for end in range(1, len(symbols))})
    vocabulary += dict.fromkeys(left + right for left, right in merges)
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, list(merges)))
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tokenizer


@pytest.fixture
def triplets_file(tmp_path: Path) -> Path:
    """Thirty-one queries with one to three positives and up to two negatives; every third has none."""
    records = []
    for index, (size, colour, thing) in enumerate((s, c, t) for s in SIZES for c in COLOURS for t in THINGS):
        positives = [f"the {colour} {size} {thing}", f"{thing}, {size}, {colour}", f"a {colour} {thing}: {size}"]
        negatives = [f"the {colour} {size} {other}!" for other in THINGS if other != thing][: (index + 2) % 3]
        records.append({"query": f"buy a {size} {colour} {thing}", "pos": positives[: index % 3 + 1], "neg": negatives})
    records.append({"query": "这是一个大国", "pos": ["一个大的国"]})
    path = tmp_path / "triplets.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path
