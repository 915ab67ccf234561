"""Vectors from the engine equal stock vectors, and a run over tables writes them as they are."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ebr.config import InferenceConfig
from ebr.data.embeddings import read_embeddings
from ebr.data.files import read_manifest
from ebr.errors import ConfigError, DataError
from ebr.inference.engines import LocalEngine
from ebr.model.encoder import Role, load_encoder
from ebr.workflow import plan_inference, run_batch_inference

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
        InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output), say=lambda _: None
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
    ("prompt", "query: ", "other"),
    ("max_seq_length", 8, "other"),
    ("truncate_dim", 8, "shorter"),
    ("normalize_embeddings", False, "same"),
    ("description_column", "label", "other"),
]


# Proved elsewhere: option → where.
ELSEWHERE = {
    "model_path": "every test here",
    "input_dir": "every test here",
    "output_path": "every test here",
    "file_pattern": "test_bad_input_is_one_clear_error_and_nothing_is_written",
    "delimiter": "test_bad_input_is_one_clear_error_and_nothing_is_written",
    "output_columns": "test_output_columns_choose_what_is_kept",
    "trust_remote_code": "test_trust_remote_code_reaches_the_loader",
}


def test_no_option_is_left_out():
    assert {*(option for option, _, _ in CHANGES), *ELSEWHERE} == set(InferenceConfig.model_fields)


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_remote_code_reaches_the_loader(tiny_model, table, tmp_path, trusted, monkeypatch):
    from ebr.model import encoder

    seen = {}

    def load(name, **options):
        seen.update(options)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(encoder, "load_encoder", load)
    config = InferenceConfig(
        model_path=tiny_model, input_dir=table, output_path=tmp_path / "v.txt", trust_remote_code=trusted, max_seq_length=9
    )
    with pytest.raises(RuntimeError, match="seen enough"):
        run_batch_inference(config, say=lambda _: None)
    assert seen == {"trust_remote_code": trusted, "max_seq_length": 9}


@pytest.mark.parametrize(("option", "value", "effect"), CHANGES)
def test_every_option_of_the_encoder_reaches_the_vectors(tiny_model, table, tmp_path, option, value, effect):
    def vectors(**changes):
        config = InferenceConfig(model_path=tiny_model, input_dir=table, output_path=tmp_path / "v.txt", **changes)
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
    from ebr.inference import engines

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


def test_an_output_that_is_a_folder_or_an_input_is_refused_before_anything_is_embedded(tiny_model, table, tmp_path):
    for output, message in ((tmp_path, "is a folder"), (table / "part.csv", "is one of the input tables")):
        with pytest.raises(ConfigError, match=message):
            plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table, output_path=output))


def test_what_tools_leave_beside_the_data_is_not_embedded(tiny_model, table):
    for folder in (".ipynb_checkpoints", "_temporary"):
        (table / folder).mkdir()
        (table / folder / "part.csv").write_bytes((table / "part.csv").read_bytes())
    plan = plan_inference(InferenceConfig(model_path=tiny_model, input_dir=table))
    assert [one.path.name for one in plan.source.tables] == ["part.csv"]
