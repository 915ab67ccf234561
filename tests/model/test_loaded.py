"""A model's weights are hashed once in a command, whatever asks what they are; a fine-tuning makes others, and hashes those."""

import json
import shutil

import pytest

from ebr import IndexConfig, InferenceConfig, SearchConfig, build_index, run_batch_inference, search_index
from ebr.config import EvaluationConfig, FinetuneConfig, MergeConfig, MiningConfig, TrainConfig
from ebr.data.files import write
from ebr.data.files.write import read_manifest
from ebr.errors import ConfigError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.files import identity
from ebr.model.files.identity import fingerprint
from ebr.model.origin import resolve_model
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.mining.command import mine_hard_negatives
from ebr.training.doctor.command import check_training
from ebr.training.loop.checkpoints import MARK
from ebr.training.loop.fit import prepare_model
from ebr.training.plan import load_for_training
from ebr.workflow.finetuning import train_sentence_transformer
from ebr.workflow.merging import merge_adapter
from tests.hashed import noting_hashes
from tests.lora_adapters import save_tuned


def silent(line):
    """Where lines for people go that nobody looks at."""


@pytest.fixture
def hashed(monkeypatch):
    """The digests of weights that are taken, and how often."""
    return noting_hashes(monkeypatch, identity)


def options(model, data, out, **more):
    return {
        "model_name": str(model), "data_path": str(data), "output_dir": out, "learning_rate": 1e-2, "max_seq_length": 16,
        "report_to": ["none"], "validation_split": 0.0, **more,
    }  # fmt: skip


def tune(model, data, out, **more):
    config = FinetuneConfig(**options(model, data, out, **{"max_steps": 2, **more}))
    return train_sentence_transformer(config, say=silent).model_path


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_fine_tuning_hashes_the_base_and_what_became_of_it(tiny_model, pairs_file, evaluation_folder, tmp_path, hashed, kind):
    tuned = read_manifest(
        tune(tiny_model, pairs_file, tmp_path / "out", finetune_type=kind, eval_dataset=str(evaluation_folder))
    )
    assert hashed == {tuned["base_sha256"]: 1, tuned["model_sha256"]: 1}


def test_tuning_an_adapter_further_hashes_its_base_alone_as_well(tiny_model, pairs_file, tmp_path, hashed):
    first = tune(tiny_model, pairs_file, tmp_path / "first")
    hashed.clear()
    second = read_manifest(tune(first, pairs_file, tmp_path / "second"))
    assert hashed == {second["base_sha256"]: 1, second["start_sha256"]: 1, second["model_sha256"]: 1}


def test_a_run_of_triplets_hashes_the_base_and_what_became_of_it(tiny_model, tmp_path, hashed):
    records = [{"query": f"buy a {colour} cup", "pos": [f"the {colour} cup"], "neg": ["a lamp"]} for colour in ("red", "blue")]
    (tmp_path / "triplets.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    config = TrainConfig(
        model_name_or_path=tiny_model, train_dataset=str(tmp_path / "triplets.jsonl"), output_dir=tmp_path / "out",
        max_steps=1, batch_size=2, report_to=["none"],
    )  # fmt: skip
    tuned = read_manifest(train_sentence_transformer(config, say=silent).model_path)
    assert hashed == {tuned["base_sha256"]: 1, tuned["model_sha256"]: 1}


def test_a_check_hashes_the_base_alone(tiny_model, pairs_file, tmp_path, hashed):
    check_training(FinetuneConfig(**options(tiny_model, pairs_file, tmp_path / "out")), say=silent)
    assert hashed == {fingerprint(load_encoder(tiny_model)): 2}  # and this one


def test_a_merge_hashes_the_base_and_the_merged_model(tiny_model, tmp_path, hashed):
    adapter, _ = save_tuned(tiny_model, tmp_path / "adapter")
    hashed.clear()
    config = MergeConfig(base_model_path=tiny_model, lora_adapter_path=str(adapter), output_path=tmp_path / "merged")
    merged = read_manifest(merge_adapter(config, say=silent).model_path)
    assert hashed == {merged["base_sha256"]: 1, merged["model_sha256"]: 1}


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_embedding_and_searching_hash_the_model_once(tiny_model, tmp_path, hashed, processor, precision, monkeypatch):
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "cache"))  # no choice was remembered yet
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "part.csv").write_text("id\x01description\na\x01the red shoe\nb\x01a cup\n", encoding="utf-8")
    vectors = tmp_path / "vectors.parquet"
    config = InferenceConfig(model_path=tiny_model, input_dir=tmp_path / "tables", output_path=vectors, precision=precision)
    run_batch_inference(config, say=silent)
    assert hashed == {read_manifest(vectors)["model_sha256"]: 1}
    hashed.clear()
    build_index(IndexConfig(embeddings_path=vectors, index_path=tmp_path / "index"), say=silent)
    assert not hashed
    search_index(SearchConfig(index_path=tmp_path / "index", query="shoe"), say=silent)
    assert hashed == {read_manifest(vectors)["model_sha256"]: 1}


def test_a_checkpoint_of_before_whose_mark_holds_the_prepared_weights_is_resumed(tiny_model, pairs_file, tmp_path):
    config = FinetuneConfig(**options(tiny_model, pairs_file, tmp_path / "out", max_steps=2, save_steps=1))
    loaded = load_for_training(config)
    prepare_model(loaded.model, config)
    assert fingerprint(loaded.model) != loaded.sha256
    tune(tiny_model, pairs_file, tmp_path / "out", save_steps=1)
    (checkpoint,) = tmp_path.glob("out/*.run/checkpoint-1")
    mark = json.loads((checkpoint / MARK).read_text())
    assert mark["base_sha256"] == loaded.sha256
    resume = {"save_steps": 1, "resume_from_checkpoint": str(checkpoint)}
    (checkpoint / MARK).write_text(json.dumps({**mark, "base_sha256": fingerprint(loaded.model)}))
    assert tune(tiny_model, pairs_file, tmp_path / "out", **resume).is_dir()
    (checkpoint / MARK).write_text(json.dumps({**mark, "base_sha256": "of another"}))
    with pytest.raises(ConfigError, match="the base model's weights changed"):
        tune(tiny_model, pairs_file, tmp_path / "out", **resume)


def test_an_evaluation_hashes_each_model_once_on_however_many_sets(tiny_model, evaluation_folder, tmp_path, hashed):
    shutil.copytree(evaluation_folder, tmp_path / "another")
    config = EvaluationConfig(
        models=[tiny_model],
        eval_dataset=evaluation_folder,
        forgetting_dataset=tmp_path / "another",
        output_dir=tmp_path / "out",
    )
    evaluate_retrieval(config, say=silent)
    assert list(hashed.values()) == [1]


def test_mining_hashes_the_model_once(tiny_model, pairs_file, tmp_path, hashed):
    config = MiningConfig(model_path=tiny_model, data_path=str(pairs_file), output_path=tmp_path / "mined.jsonl")
    mine_hard_negatives(config, say=silent)
    assert hashed == {read_manifest(tmp_path / "mined.jsonl")["model_sha256"]: 1}


def test_the_embedded_models_file_is_checked_once_as_long_as_it_stays_as_it_is(monkeypatch):
    taken = noting_hashes(monkeypatch, write)
    for _ in range(3):
        resolve_model("all-MiniLM-L6-v2")
    assert sum(taken.values()) <= 1  # none, where another test asked before
