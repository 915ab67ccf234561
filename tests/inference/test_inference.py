"""Vectors from the engine equal stock vectors, and a run over tables writes them as they are."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ebr.config import InferenceConfig
from ebr.data.files.write import read_manifest
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import ConfigError, DataError
from ebr.inference.command import plan_inference, run_batch_inference
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import set_lengths
from ebr.model.encoder.prompts import Role

TEXTS = ["a red shoe", "the", "这是一个大国的人民，我们", "buy a small blue lamp and a green book, please!", "x" * 300]


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [f"r{index}\x01{text}\x01{'甲乙'[index % 2]}" for index, text in enumerate(TEXTS)]
    (folder / "part.csv").write_text("\n".join(["id\x01description\x01label", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_vectors_equal_stock_encode_in_the_order_of_the_texts_whatever_the_batch(tiny_model, batch_size):
    stock = SentenceTransformer(tiny_model, device="cpu").encode(TEXTS, batch_size=1)
    ours = LocalEngine(load_encoder(tiny_model, device="cpu"), Role.DOCUMENT, batch_size=batch_size).encode(TEXTS)
    assert ours.dtype == np.float32
    assert np.abs(ours - stock).max() < 1e-6


def test_the_file_holds_each_row_with_its_own_vector_and_the_manifest_says_how(tiny_model, table, tmp_path):
    output = tmp_path / "out" / "vectors.txt"
    result = run_batch_inference(
        InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output, precision="float32"), say=lambda _: None
    )
    embeddings = read_embeddings(output, ",")
    assert embeddings.columns["id"] == ["r0", "r1", "r2", "r3", "r4"]
    assert embeddings.columns["label"] == ["甲", "乙", "甲", "乙", "甲"]
    direct = LocalEngine(load_encoder(tiny_model, device="cpu"), Role.DOCUMENT).encode(TEXTS)
    assert np.array_equal(embeddings.vectors, direct)
    manifest = read_manifest(output)
    assert (manifest["n_rows"], manifest["dim"], manifest["pooling"], manifest["normalized"]) == (5, 32, "mean", True)
    assert "5 rows of 32" in result.summary()


CHANGES = [
    ("batch_size", 1, "same"),
    ("token_budget", 1, "same"),
    ("shard_rows", 2, "same"),
    ("dedup", "none", "same"),
    ("dedup", "global", "same"),
    ("on_bad_row", "fail", "same"),
    ("engine", "processes", "same"),
    ("precision", "bfloat16", "other"),
    ("prompt", "query: ", "other"),
    ("max_seq_length", 8, "other"),
    ("truncate_dim", 8, "shorter"),
    ("normalize_embeddings", False, "same"),
    ("description_column", "label", "other"),
]


# Proved elsewhere: option → where.
ELSEWHERE = {
    "encoding": "test_dialects.py",
    "null_values": "test_dialects.py",
    "quote": "test_dialects.py",
    "escape": "test_dialects.py",
    "column_names": "test_part_files_of_hive_without_header_or_ending_are_embedded",
    "output_format": "test_the_format_of_the_output_is_chosen_by_option_or_suffix",
    "vector_dtype": "test_the_format_of_the_output_is_chosen_by_option_or_suffix",
    "min_cosine": "test_options_of_the_choice_reach_it",
    "torch_compile": "test_options_of_the_choice_reach_it",
    "incremental_key": "test_only_rows_whose_text_changed_are_embedded_again",
    "num_workers": "test_the_number_of_workers_reaches_the_placements",
    "ray_address": "test_ray.py",
    "model_path": "every test here",
    "input_dir": "every test here",
    "output_path": "every test here",
    "file_pattern": "test_bad_input_is_one_clear_error_and_nothing_is_written",
    "delimiter": "test_bad_input_is_one_clear_error_and_nothing_is_written",
    "output_columns": "test_output_columns_choose_what_is_kept",
    "trust_remote_code": "test_trust_remote_code_reaches_the_loader",
    "pooling": "test_model_options.py",
    "base_model_path": "test_model_options.py",
}


def test_no_option_is_left_out():
    assert {*(option for option, _, _ in CHANGES), *ELSEWHERE} == set(InferenceConfig.model_fields)


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_remote_code_reaches_the_loader(tiny_model, table, tmp_path, trusted, monkeypatch):
    from ebr.inference.workers import spec

    seen = {}

    def load(name, **options):
        seen.update(options)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(spec, "load_encoder", load)
    config = InferenceConfig(
        model_path=tiny_model, input_dir=table, output_path=tmp_path / "v.txt", trust_remote_code=trusted, max_seq_length=9
    )
    with pytest.raises(RuntimeError, match="seen enough"):
        run_batch_inference(config, say=lambda _: None)
    assert (seen["trust_remote_code"], seen["max_seq_length"]) == (trusted, 9)


@pytest.mark.parametrize(("option", "value", "effect"), CHANGES)
def test_every_option_of_the_encoder_reaches_the_vectors(tiny_model, table, tmp_path, option, value, effect):
    def vectors(**changes):
        # What auto would choose is the processor's, and a matter of time.
        options = {"precision": "float32", **changes}
        config = InferenceConfig(model_path=tiny_model, input_dir=table, output_path=tmp_path / "v.txt", **options)
        run_batch_inference(config, say=lambda _: None)
        return read_embeddings(tmp_path / "v.txt", ",").vectors

    plain, changed = vectors(), vectors(**{option: value})
    if effect == "shorter":
        assert changed.shape == (5, 8)
        cut = plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True)
        assert np.abs(changed - cut).max() < 1e-6
    else:
        # The tiny model normalises by itself, so that option alone changes nothing here; see the next test.
        assert (np.abs(plain - changed).max() < 1e-6) == (effect == "same")


def test_normalize_embeddings_decides_the_length_of_vectors_of_a_model_that_does_not_normalise(tiny_model):
    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], base[1]], device="cpu")
    lengths = [
        np.linalg.norm(LocalEngine(model, Role.DOCUMENT, normalize_embeddings=normalise).encode(TEXTS), axis=1)
        for normalise in (True, False)
    ]
    assert np.abs(lengths[0] - 1).max() < 1e-6
    assert np.abs(lengths[1] - 1).min() > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description_column": "descripton"}, "no column 'descripton' .*did you mean 'description'"),
        ({"output_columns": ["id", "name"]}, r"no column 'name' \(output_columns\)"),
        ({"file_pattern": "*.tsv"}, r"no file matches '\*\.tsv'"),
        ({"input_dir": "nowhere"}, "no such folder"),
        ({"delimiter": ","}, "is the delimiter right"),
        ({"file_pattern": "/data/*.csv"}, "must lie below input_dir"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(tiny_model, table, tmp_path, changes, message):
    output = tmp_path / "out" / "v.txt"
    with pytest.raises((ConfigError, DataError), match=message):
        run_batch_inference(
            InferenceConfig(**{"model_path": tiny_model, "input_dir": table, "output_path": output, **changes}),
            say=lambda _: None,
        )
    assert not output.parent.exists()


def test_output_columns_choose_what_is_kept(tiny_model, table, tmp_path):
    output = tmp_path / "v.txt"
    config = InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output, output_columns=["label"])
    run_batch_inference(config, say=lambda _: None)
    assert output.read_text(encoding="utf-8").split("\n")[0] == "label\x01vector"


def test_the_option_to_normalise_reaches_the_engine(tiny_model, table, tmp_path, monkeypatch):
    from ebr.model.compute import local_engine as engines

    seen = []
    build = engines.LocalEngine.__init__

    def recorded(self, *args, **options):
        seen.append(options["normalize_embeddings"])
        build(self, *args, **options)

    monkeypatch.setattr(engines.LocalEngine, "__init__", recorded)
    for normalise in (True, False):
        run_batch_inference(
            InferenceConfig(
                model_path=tiny_model, input_dir=table, output_path=tmp_path / "v.txt", normalize_embeddings=normalise
            ),
            say=lambda _: None,
        )
    assert seen == [True, False]


def embed(tiny_model, table, output, **options):
    """A run over the table, exact on every processor unless asked otherwise, and what it said."""
    said = []
    options = {"precision": "float32", **options}
    config = InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output, **options)
    return run_batch_inference(config, say=said.append), said


def written(path):
    """Which file it is and when it was written; when it was read last may change."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_the_same_command_over_a_finished_output_computes_nothing(tiny_model, table, tmp_path, monkeypatch):
    first, _ = embed(tiny_model, table, tmp_path / "v.txt")
    before = written(tmp_path / "v.txt")
    monkeypatch.setattr(LocalEngine, "compute", None)
    again, _ = embed(tiny_model, table, tmp_path / "v.txt")
    assert written(tmp_path / "v.txt") == before
    assert (again.embedded.n_rows, again.embedded.n_kept) == (5, 1)
    assert "1 of 1 shard was finished before" in again.summary()
    assert again.settings == first.settings


def test_another_prompt_embeds_everything_anew_and_says_why(tiny_model, table, tmp_path):
    embed(tiny_model, table, tmp_path / "v.txt")
    again, said = embed(tiny_model, table, tmp_path / "v.txt", prompt="passage: ")
    assert again.embedded.n_kept == 0
    assert any("another prompt" in line for line in said)
    assert read_manifest(tmp_path / "v.txt")["prompt"] == "passage: "


def test_another_length_of_documents_embeds_everything_anew_and_says_why(tiny_model, table, tmp_path):
    model = SentenceTransformer(tiny_model, device="cpu")
    vectors = []
    for length in (None, 3, None):
        model[0].document_length = length
        model.save(str(tmp_path / "model"))
        again, said = embed(str(tmp_path / "model"), table, tmp_path / "v.txt")
        assert again.embedded.n_kept == 0
        assert any("another passage_max_len: everything is embedded anew" in line for line in said) == bool(vectors)
        assert read_manifest(tmp_path / "v.txt")["passage_max_len"] == length
        vectors.append(read_embeddings(tmp_path / "v.txt").vectors)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_each_distinct_text_goes_through_the_model_once_and_the_saving_is_said(tiny_model, table, tmp_path):
    (table / "twice.csv").write_bytes((table / "part.csv").read_bytes())
    result, _ = embed(tiny_model, table, tmp_path / "v.txt", dedup="global")
    assert result.embedded.n_encoded == 5
    assert "5 of 10 went through the model; 50.0% saved" in result.summary()
    assert embed(tiny_model, table, tmp_path / "w.txt", shard_rows=16)[0].embedded.n_encoded == 10


def test_texts_that_the_model_cannot_embed_are_bad_rows_of_a_run_that_was_stopped_as_of_one_that_was_not(
    tiny_model, tmp_path, monkeypatch
):
    model = SentenceTransformer(tiny_model, device="cpu")
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})  # for which its table has no row
    model.save(str(tmp_path / "model"))
    (tmp_path / "in").mkdir()
    texts = ["a red shoe", "a <new> cup", "the lamp", "<new>", "the book", "a cup"]
    rows = [f"r{index}\x01{text}" for index, text in enumerate(texts)]
    (tmp_path / "in" / "part.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    options = {"shard_rows": 2, "batch_size": 1}
    whole, _ = embed(str(tmp_path / "model"), tmp_path / "in", tmp_path / "whole.txt", **options)
    prepare = LocalEngine.prepare

    def dies_at_the_book(self, texts):
        return prepare(self, texts) if "the book" not in texts else {}["dead"]

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="dead"):
        patch.setattr(LocalEngine, "prepare", dies_at_the_book)
        embed(str(tmp_path / "model"), tmp_path / "in", tmp_path / "halves.txt", **options)
    resumed, _ = embed(str(tmp_path / "model"), tmp_path / "in", tmp_path / "halves.txt", **options)
    assert resumed.embedded.n_kept == 2
    for name, done in {"whole.txt": whole, "halves.txt": resumed}.items():
        manifest, read = read_manifest(tmp_path / name), read_embeddings(tmp_path / name, ",")
        assert (manifest["n_rows"], manifest["n_rejected"], done.embedded.n_rejected) == (4, 2, 2)
        assert read.columns["id"] == ["r0", "r2", "r4", "r5"]
        right = SentenceTransformer(tiny_model, device="cpu").encode(["a red shoe", "the lamp", "the book", "a cup"])
        np.testing.assert_allclose(read.vectors, right, atol=1e-6)
    assert (tmp_path / "whole.txt").read_bytes() == (tmp_path / "halves.txt").read_bytes()
    rejects = [(tmp_path / f"{name}.txt.rejects.jsonl").read_text(encoding="utf-8") for name in ("whole", "halves")]
    assert rejects[0] == rejects[1]
    reason = "holds '<new>', for which the model has no embedding"
    assert [(line["line"], line["reason"]) for line in map(json.loads, rejects[0].splitlines())] == [(3, reason), (5, reason)]


def test_only_rows_whose_text_changed_are_embedded_again(tiny_model, table, tmp_path):
    embed(tiny_model, table, tmp_path / "v.txt", incremental_key="id")
    path = table / "part.csv"
    changed = path.read_text(encoding="utf-8").replace("a red shoe", "a green shoe")
    path.write_text(changed + "r9\x01new\x01甲\n", encoding="utf-8")
    again, _ = embed(tiny_model, table, tmp_path / "v.txt", incremental_key="id")
    assert (again.embedded.n_encoded, again.embedded.n_reused, again.embedded.n_changed) == (2, 4, 1)
    assert "4 rows as before, 1 with a changed text, 1 new" in again.summary()
    embed(tiny_model, table, tmp_path / "fresh.txt")
    ours, theirs = (read_embeddings(tmp_path / name).vectors for name in ("v.txt", "fresh.txt"))
    assert np.abs(ours - theirs).max() < 1e-6


def test_part_files_of_hive_without_header_or_ending_are_embedded(tiny_model, tmp_path):
    part = tmp_path / "in" / "dt=2026-01-01" / "000000_0"
    part.parent.mkdir(parents=True)
    part.write_text("1\x01a red shoe\n2\x01\\N\n", encoding="utf-8")
    result, _ = embed(tiny_model, tmp_path / "in", tmp_path / "v.txt", column_names=["id", "description"])
    assert read_embeddings(tmp_path / "v.txt").columns == {"id": ["1"], "description": ["a red shoe"], "dt": ["2026-01-01"]}
    assert result.embedded.first_rejects == ["dt=2026-01-01/000000_0:2: description is empty"]


@pytest.mark.parametrize(
    ("name", "options", "magic", "dtype"),
    [
        ("v.txt", {}, b"id\x01", "float32"),
        ("v.parquet", {"vector_dtype": "float16"}, b"PAR1", "float16"),
        ("v.npy", {}, b"\x93NUMPY", "float32"),
        ("v.vec", {"output_format": "npy", "vector_dtype": "float16"}, b"\x93NUMPY", "float16"),
    ],
)
def test_the_format_of_the_output_is_chosen_by_option_or_suffix(tiny_model, table, tmp_path, name, options, magic, dtype):
    embed(tiny_model, table, tmp_path / name, **options)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert read_manifest(tmp_path / name)["dtype"] == dtype
    stock = SentenceTransformer(tiny_model, device="cpu").encode(TEXTS, batch_size=1)
    assert np.abs(read_embeddings(tmp_path / name).vectors - stock).max() < (1e-6 if dtype == "float32" else 1e-3)


def test_a_path_without_a_suffix_is_a_folder_of_parts(tiny_model, table, tmp_path):
    embed(tiny_model, table, tmp_path / "v", output_format="parquet", shard_rows=2)
    parts = sorted(file.name.split("-")[1] for file in (tmp_path / "v").glob("part-*.parquet"))
    assert parts == ["000000", "000001", "000002"]
    assert read_embeddings(tmp_path / "v").columns["id"] == ["r0", "r1", "r2", "r3", "r4"]


def test_options_of_the_choice_reach_it(tiny_model, table, tmp_path, monkeypatch):
    from ebr.inference.workers import computing

    seen = {}
    choose = computing.choose_settings

    def record(model, role, texts, **options):
        seen.update(options, texts=texts)
        return choose(model, role, texts, **options)

    monkeypatch.setattr(computing, "choose_settings", record)
    options = {"precision": "auto", "min_cosine": 0.9, "torch_compile": "never", "token_budget": 77, "batch_size": 3}
    options["prompt"] = "p: "
    result, _ = embed(tiny_model, table, tmp_path / "v.txt", **options)
    assert {**options, "texts": TEXTS, "n_texts_expected": 5} == {
        name: seen[name] for name in (*options, "texts", "n_texts_expected")
    }
    assert result.settings.token_budget == 77


def test_the_number_of_workers_reaches_the_placements(tiny_model, table, tmp_path, monkeypatch):
    from ebr.inference.workers import computing

    seen = []
    deal = computing.placements
    monkeypatch.setattr(computing, "placements", lambda n, *rest: seen.append(n) or deal(n, *rest))
    embed(tiny_model, table, tmp_path / "v.txt", engine="processes", num_workers=1)
    assert seen == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float32", "min_cosine": 0.9}, "min_cosine: is only read with precision auto"),
        ({"num_workers": 2}, "num_workers: is only read with engine processes or ray"),
        ({"ray_address": "auto"}, "ray_address: is only read with engine ray"),
        ({"vector_dtype": "float16"}, "txt holds float32 only"),
        ({"engine": "ray", "dedup": "global"}, "dedup global: needs every text on one machine"),
        ({"engine": "ray", "incremental_key": "id"}, "incremental_key: needs the vectors of before on one machine"),
        ({"precision": "float16"}, "needs a CUDA GPU"),
        ({"incremental_key": "ident"}, r"no column 'ident' \(incremental_key\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model, table, tmp_path, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        embed(tiny_model, table, tmp_path / "v.txt", **options)
    assert not (tmp_path / "v.txt").exists()


def test_an_output_that_cannot_be_is_refused_before_anything_is_embedded(tiny_model, table, tmp_path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").touch()
    for output, message in (
        (tmp_path / "folder.txt", "is a folder"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "other", "holds other files"),
        (table / "part.csv", "lies in input_dir"),
        (table / "out", "lies in input_dir"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output))


def test_what_tools_leave_beside_the_data_is_not_embedded(tiny_model, table):
    for folder in (".ipynb_checkpoints", "_temporary"):
        (table / folder).mkdir()
        (table / folder / "part.csv").write_bytes((table / "part.csv").read_bytes())
    plan = plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table))
    assert [one.name for one in plan.source.files] == ["part.csv"]
    assert "1 table, 5 rows" in plan.lines()[0]


def test_the_manifest_of_something_else_is_never_overwritten(tiny_model, table, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ebr_manifest.json").write_text('{"kind": "model"}')
    with pytest.raises(ConfigError, match="is a model of ebr"):
        plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table, output_path=tmp_path / "model"))


def test_an_output_below_a_file_is_refused_by_the_plan(tiny_model, table, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no folder that can be written to"):
        plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table, output_path=tmp_path / "file" / "v.txt"))


def test_threads_of_another_engine_and_a_budget_that_was_not_asked_for_anew_do_not_stick(tiny_model, table, tmp_path):
    import torch

    from ebr.inference.job.ledger import Ledger, work_folder

    out = tmp_path / "v.txt"
    embed(tiny_model, table, out, engine="processes", num_workers=1, token_budget=50)
    record = work_folder(out) / "run.json"
    halved = record.read_text(encoding="utf-8").replace('"token_budget": 50', '"token_budget": 25', 1)
    halved = halved.replace('"n_threads": 2', '"n_threads": 7').replace('"n_threads": 1', '"n_threads": 7')
    record.write_text(halved, encoding="utf-8")
    again, _ = embed(tiny_model, table, out, engine="processes", num_workers=1, token_budget=50)
    assert (again.settings.n_threads, again.settings.token_budget) == (7, 25)
    local, _ = embed(tiny_model, table, out, token_budget=40)
    assert (local.settings.n_threads, local.settings.token_budget) == (torch.get_num_threads(), 40)
    assert Ledger(out, {}).asked == {"engine": ["local", None], "token_budget": 40}


def test_what_documents_are_cut_at_is_in_the_recipe_where_it_is_their_own(tiny_model, table, tmp_path):
    """Outputs of before the option was recorded do not name it; they are not embedded anew for that."""
    output = tmp_path / "v.txt"
    run_batch_inference(InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output), say=lambda _: None)
    recipe = json.loads((tmp_path / ".v.txt.ebr" / "run.json").read_text(encoding="utf-8"))["recipe"]
    assert "passage_max_len" not in recipe["vectors"]
    model = load_encoder(tiny_model, device="cpu")
    set_lengths(model, 64, query=None, passage=7)
    own = tmp_path / "own"
    model.save_pretrained(str(own))
    said = []
    run_batch_inference(InferenceConfig(model_path=str(own), input_dir=table, output_path=output), say=said.append)
    assert any("passage_max_len" in line and "embedded anew" in line for line in said)
