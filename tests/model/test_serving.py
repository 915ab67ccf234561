"""docs/serving.md: what its code blocks say is what happens, with EBR out of reach."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

import faiss
from ebr.config import FinetuneConfig, IndexConfig, InferenceConfig, MergeConfig
from ebr.data.files.write import hash_file
from ebr.inference.command import run_batch_inference
from ebr.retrieval.index.command import build_index
from ebr.retrieval.ranking import rank_texts
from ebr.workflow.finetuning import train_sentence_transformer
from ebr.workflow.merging import merge_adapter
from tests.conftest import REPO

PAGE, CHINESE_PAGE = REPO / "docs" / "serving.md", REPO / "docs" / "serving.zh.md"
LOCAL, PREPARE, COMPARE, SEARCH, SHORT = range(5)
"""The page's blocks of Python, in order."""
QUERIES = ["red shoes for a small child", "儿童红色运动鞋"]
DOCUMENTS = ["Running shoe for children, red", "不锈钢台灯"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def block(number, *, model="/srv/models/tuned", index="/srv/index", server="http://127.0.0.1:8080"):
    code = blocks(PAGE, "python")[number]
    for written, meant in {"/srv/models/tuned": model, "/srv/index": index, "http://127.0.0.1:8080": server}.items():
        code = code.replace(written, str(meant))
    return code


def run(code):
    """Run a block while EBR cannot be imported, although it is installed for these tests; its output and its names."""
    names, printed = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        for name in ["ebr", *(name for name in sys.modules if name.startswith("ebr."))]:
            patch.setitem(sys.modules, name, None)
        exec(compile(code, PAGE.name, "exec"), names)
    return printed.getvalue(), names


def tune(tiny_model, folder, **options):
    """Two steps of a tuning that treats queries and documents differently, in prompt and in length; the model's folder."""
    things = [(colour, thing) for colour in ("red", "blue") for thing in ("shoe", "cup", "lamp")]
    records = [{"anchor": f"buy a {colour} {thing}", "positive": f"the {thing} is {colour}"} for colour, thing in things]
    (folder / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    config = FinetuneConfig(
        model_name=tiny_model, data_path=str(folder / "pairs.json"), output_dir=folder / "saved", max_steps=2,
        train_batch_size=6, learning_rate=1e-2, validation_split=0, report_to=["none"],
        query_prompt="query: ", passage_prompt="passage: the ", query_max_len=8, passage_max_len=12, **options,
    )  # fmt: skip
    return train_sentence_transformer(config, say=lambda _: None).model_path


@pytest.fixture(scope="module")
def merged(tiny_model, tmp_path_factory):
    """A folder that `ebr merge` wrote."""
    folder = tmp_path_factory.mktemp("serving")
    adapter = tune(tiny_model, folder)
    merge = MergeConfig(base_model_path=tiny_model, lora_adapter_path=str(adapter), output_path=folder / "merged")
    return merge_adapter(merge, say=lambda _: None).model_path


@pytest.fixture(scope="module")
def full(tiny_model, tmp_path_factory):
    """A folder that a full tuning wrote."""
    return tune(tiny_model, tmp_path_factory.mktemp("full"), finetune_type="full")


@pytest.fixture(scope="module")
def prepared(merged):
    """The copy that the page makes for text-embeddings-inference."""
    run(block(PREPARE, model=merged))
    return merged.parent / "merged-tei"


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_both_languages_show_the_same_code():
    for language in ("python", "bash"):
        english = blocks(PAGE, language)
        assert english == blocks(CHINESE_PAGE, language)
    assert len(blocks(PAGE, "python")) == 5


def test_links_of_both_pages_lead_somewhere():
    for page in (PAGE, CHINESE_PAGE):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.name}: no file {link}"


def test_blocks_run_where_ebr_cannot_be_imported():
    for line in ("import ebr", "from ebr import rank_texts", "from ebr.workflow import rank_texts"):
        with pytest.raises(ModuleNotFoundError):
            run(line)


@pytest.mark.long
def test_plain_sentence_transformers_elsewhere_gives_our_vectors(merged, tmp_path):
    """In another process and folder; the folder of the model was moved since it was written."""
    moved = shutil.copytree(merged, tmp_path / "srv" / "tuned")
    script = f"import sys\nsys.modules['ebr'] = None\n{block(LOCAL, model=moved)}\n"
    script += "import numpy as np\nnp.savez('vectors.npz', queries=queries, documents=documents)\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = rank_texts(merged, QUERIES, DOCUMENTS), np.load(tmp_path / "vectors.npz")
    np.testing.assert_allclose(theirs["queries"], ours.query_vectors, atol=1e-6)
    np.testing.assert_allclose(theirs["documents"], ours.document_vectors, atol=1e-6)
    assert done.stdout.count(".") == 4  # a cosine of each query with each document


def test_folder_of_a_full_tuning_is_served_like_a_merged_one(full, merged):
    """By sentence-transformers as it is, and by the other server from the copy."""
    ours = rank_texts(full, QUERIES, DOCUMENTS)
    assert abs(ours.query_vectors - rank_texts(merged, QUERIES, DOCUMENTS).query_vectors).max() > 0.001
    names = run(block(LOCAL, model=full))[1]
    np.testing.assert_allclose(names["queries"], ours.query_vectors, atol=1e-6)
    np.testing.assert_allclose(names["documents"], ours.document_vectors, atol=1e-6)
    run(block(PREPARE, model=full))
    copy = full.with_name(f"{full.name}-tei")
    assert all((copy / name).is_file() for name in TEI_READS)
    assert read(copy, "1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
    documents = Served(copy).embed({"inputs": DOCUMENTS, "prompt_name": "document", "truncate": True})
    np.testing.assert_allclose(documents, ours.document_vectors, atol=1e-5)


def test_folder_without_a_normalize_module_gives_the_same_vectors(merged, tmp_path):
    bare = shutil.copytree(merged, tmp_path / "bare")
    (bare / "modules.json").write_text(json.dumps(read(bare, "modules.json")[:2]), encoding="utf-8")
    names, ours = run(block(LOCAL, model=bare))[1], rank_texts(merged, QUERIES, DOCUMENTS)
    assert len(names["model"]) == 2
    np.testing.assert_allclose(names["queries"], ours.query_vectors, atol=1e-6)
    np.testing.assert_allclose(names["documents"], ours.document_vectors, atol=1e-6)


def test_folder_carries_prompts_and_lengths_that_change_the_vectors(merged):
    """Else the test above would pass with a folder that lost them."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(merged), device="cpu")
    assert model.prompts == {"query": "query: ", "document": "passage: the "}
    assert (model[0].query_length, model[0].document_length, model.max_seq_length) == (8, 12, 12)
    assert abs(model.encode_query(QUERIES) - model.encode(QUERIES)).max() > 0.01
    assert abs(model.encode_document(DOCUMENTS) - model.encode(DOCUMENTS)).max() > 0.01
    model[0].query_length = 12
    assert abs(model.encode_query(QUERIES[:1]) - rank_texts(merged, QUERIES[:1], DOCUMENTS).query_vectors).max() > 0.001


# text-embeddings-inference. Facts about it are from its source: router/src/lib.rs, backends/candle/src/models/bert.rs,
# core/src/tokenization.rs, router/src/http/types.rs.

TEI_READS = {
    "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "modules.json",
}  # fmt: skip
TEI_BERT = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id",
}  # fmt: skip
TEI_REQUEST = {"inputs", "truncate", "truncation_direction", "prompt_name", "normalize", "dimensions"}
TEI_POOLING = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}


def test_page_names_every_file_that_the_server_reads_and_the_copy_has_them(prepared):
    section = PAGE.read_text(encoding="utf-8").split("What it reads:")[1].split("What it does otherwise")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == TEI_READS
    assert all((prepared / name).is_file() for name in TEI_READS)


def test_copy_has_the_settings_that_the_server_requires(prepared):
    config = read(prepared, "config.json")
    assert (config["architectures"], config["model_type"]) == (["BertModel"], "bert")
    assert config.keys() >= TEI_BERT
    assert read(prepared, "sentence_bert_config.json")["max_seq_length"] == 12
    assert read(prepared, "config_sentence_transformers.json")["prompts"] == {"query": "query: ", "document": "passage: the "}


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_copy_names_the_pooling_in_the_old_and_in_the_new_form(merged, tmp_path, pooling):
    source = copy_with_pooling(merged, tmp_path / "source", pooling)
    run(block(PREPARE, model=source))
    settings = read(tmp_path / "source-tei", "1_Pooling/config.json")
    assert settings["pooling_mode"] == pooling
    assert {mode for mode, name in TEI_POOLING.items() if settings[name]} == {pooling}


def test_preparing_again_replaces_the_copy_whole(merged, tmp_path):
    source = copy_with_pooling(merged, tmp_path / "source", "mean")
    run(block(PREPARE, model=source))
    (tmp_path / "source-tei" / "stale.safetensors").write_bytes(b"of other weights")
    (source / "new.txt").write_text("new", encoding="utf-8")
    run(block(PREPARE, model=source))
    names = {path.name for path in (tmp_path / "source-tei").iterdir()}
    assert names == {path.name for path in source.iterdir()}
    assert read(tmp_path / "source-tei", "sentence_bert_config.json")["max_seq_length"] == 12


def test_folder_that_is_no_copy_is_never_removed(merged, tmp_path):
    source = copy_with_pooling(merged, tmp_path / "source", "mean")
    (tmp_path / "source-tei").mkdir()
    (tmp_path / "source-tei" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(FileExistsError):
        run(block(PREPARE, model=source))
    assert (tmp_path / "source-tei" / "thesis.txt").is_file()


def test_pooling_that_the_server_does_not_have_is_refused_before_anything_is_copied(merged, tmp_path):
    source = copy_with_pooling(merged, tmp_path / "source", "max")
    with pytest.raises(SystemExit, match="has no pooling 'max', only cls, mean, lasttoken"):
        run(block(PREPARE, model=source))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def copy_with_pooling(merged, folder, pooling):
    shutil.copytree(merged, folder)
    for name, key in (("ebr_manifest.json", "pooling"), ("1_Pooling/config.json", "pooling_mode")):
        (folder / name).write_text(json.dumps({**read(folder, name), key: pooling}), encoding="utf-8")
    return folder


def test_copy_is_still_the_same_model(merged, prepared):
    before, after = (rank_texts(folder, QUERIES, DOCUMENTS) for folder in (merged, prepared))
    np.testing.assert_array_equal(before.query_vectors, after.query_vectors)
    np.testing.assert_array_equal(before.document_vectors, after.document_vectors)
    assert "pooling_mode_mean_tokens" not in read(merged, "1_Pooling/config.json")  # the original is as it was


class Served:
    """What text-embeddings-inference makes of a folder: nothing but the files of TEI_READS, by its own rules."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.prompts = read(folder, "config_sentence_transformers.json")["prompts"]
        self.max_input_length = read(folder, "sentence_bert_config.json")["max_seq_length"]
        assert read(folder, "1_Pooling/config.json")["pooling_mode_mean_tokens"]
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(self, request):
        assert request.keys() <= TEI_REQUEST
        prompt = self.prompts[request["prompt_name"]] if "prompt_name" in request else ""
        vectors = []
        for text in request["inputs"]:
            self.tokenizer.no_truncation()
            if request.get("truncate"):
                self.tokenizer.enable_truncation(self.max_input_length)
            ids = self.tokenizer.encode(prompt + text).ids
            assert len(ids) <= self.max_input_length, "`inputs` must have less tokens"
            with torch.no_grad():
                pooled = self.model(torch.tensor([ids])).last_hidden_state.mean(dim=1)[0]
            vectors.append((pooled / pooled.norm()).tolist())
        return vectors


@pytest.fixture
def server(prepared):
    """The address of a stand-in for the container."""
    served = Served(prepared)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/embed"
            answer = json.dumps(served.embed(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_one_who_reads_only_those_files_gets_our_vectors_of_texts_within_the_lengths(prepared):
    served = Served(prepared)
    ours = rank_texts(prepared, ["red shoe"], ["blue cup " * 20])
    query = served.embed({"inputs": ["red shoe"], "prompt_name": "query"})
    document = served.embed({"inputs": ["blue cup " * 20], "prompt_name": "document", "truncate": True})
    np.testing.assert_allclose(query, ours.query_vectors, atol=1e-5)
    np.testing.assert_allclose(document, ours.document_vectors, atol=1e-5)


def test_longer_queries_are_cut_later_there_as_the_page_says(prepared, server):
    """Why the comparison is on the page: its queries exceed the 8 tokens of this model, and the server keeps 12."""
    printed, names = run(block(COMPARE, model=prepared, server=server))
    cosines = names["cosines"]
    assert printed == f"smallest cosine: {cosines.min():.6f}\n"
    assert cosines[0] < 0.999
    np.testing.assert_allclose(cosines[2:], 1, atol=1e-5)  # one short query, all documents


def test_requests_of_the_page_are_ones_that_the_server_knows(merged):
    requests = [json.loads(body) for block in blocks(PAGE, "bash") for body in re.findall(r"-d '([^']*)'", block)]
    assert [request["prompt_name"] for request in requests] == ["query", "document"]
    assert all(request.keys() <= TEI_REQUEST for request in requests)
    assert read(merged, "config_sentence_transformers.json")["prompts"].keys() == {"query", "document"}


# faiss


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_index_is_searched_without_ebr(merged, tmp_path, kind):
    texts = ["running shoe, red", "lamp", "a blue cup", "a book", "green shirt", "small lamp", "shoe " * 30]
    table = pa.table({"id": [f"item-{row}" for row in range(7)], "description": texts})
    (tmp_path / "tables").mkdir()
    pq.write_table(table, tmp_path / "tables" / "items.parquet")
    vectors = tmp_path / "vectors.parquet"
    inference = InferenceConfig(
        model_path=str(merged),
        input_dir=tmp_path / "tables",
        output_path=vectors,
        file_pattern="*.parquet",
        precision="float32",
    )
    run_batch_inference(inference, say=lambda _: None)
    config = IndexConfig(embeddings_path=vectors, index_path=tmp_path / "index", kind=kind, sample_queries=10)
    build_index(config, say=lambda _: None)
    printed, names = run(block(SEARCH, model=merged, index=tmp_path / "index"))
    ours = rank_texts(merged, ["red shoes for a small child"], texts)
    assert names["places"][0].tolist() == ours.order[0, :5].tolist()
    np.testing.assert_allclose(names["scores"][0], ours.scores[0, ours.order[0, :5]], atol=1e-5)
    assert printed.split()[1::2] == [f"item-{row}" for row in ours.order[0, :5]]
    assert names["index"].metric_type == faiss.METRIC_INNER_PRODUCT
    manifest, of_model = read(tmp_path / "index", "ebr_manifest.json"), read(merged, "ebr_manifest.json")
    assert manifest["model_sha256"] == of_model["model_sha256"]
    assert manifest["files"]["index.faiss"] == hash_file(tmp_path / "index" / "index.faiss")


def test_effort_of_the_manifest_is_set_whatever_it_is_called(merged, tmp_path):
    index = faiss.index_factory(32, "IVF4,Flat,RFlat", faiss.METRIC_INNER_PRODUCT)
    vectors = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    pq.write_table(pa.table({"_id": [f"item-{row}" for row in range(200)]}), tmp_path / "rows.parquet")
    (tmp_path / "ebr_manifest.json").write_text(json.dumps({"search_effort": {"nprobe": 3, "k_factor": 8}}))
    printed, names = run(block(SEARCH, model=merged, index=tmp_path))
    assert names["index"].k_factor == 8
    assert faiss.downcast_index(names["index"].base_index).nprobe == 3
    assert printed.count("item-") == 5


def test_places_without_a_row_are_left_out(merged, tmp_path):
    index = faiss.IndexFlatIP(32)
    index.add(np.eye(32, dtype=np.float32)[:2])
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    pq.write_table(pa.table({"id": ["007", "货号"]}), tmp_path / "rows.parquet")
    (tmp_path / "ebr_manifest.json").write_text(json.dumps({"search_effort": {}}))
    found = run(block(SEARCH, model=merged, index=tmp_path))[1]["found"]
    assert {row_id for row_id, _ in found} == {"007", "货号"}
    assert len(found) == 2


# Fewer bytes


def test_short_vectors_are_the_first_numbers_scaled_to_length_one(merged):
    names = run(block(SHORT, model=merged))[1]
    stored, query = names["stored"], names["query"]
    whole = rank_texts(merged, QUERIES[:1], DOCUMENTS)
    cut = whole.document_vectors[:, :16]
    assert (stored.dtype, stored.shape) == (np.float16, (2, 16))
    np.testing.assert_allclose(stored, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-6)


def test_bytes_that_the_page_counts():
    assert (384 * np.float32().nbytes, 128 * np.float16().nbytes) == (1536, 256)
    assert "takes 1,536 bytes. The first 128 of them in float16 take 256" in PAGE.read_text(encoding="utf-8")


def test_page_is_linked_from_both_readmes():
    assert "(docs/serving.md)" in Path(REPO / "README.md").read_text(encoding="utf-8")
    assert "(docs/serving.zh.md)" in Path(REPO / "README.zh-CN.md").read_text(encoding="utf-8")
