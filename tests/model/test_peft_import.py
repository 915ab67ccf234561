"""bitsandbytes is imported where weights are quantised, and nowhere else: it takes a second and complains."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]

_UNQUANTISED = """
import sys
import ebr
from ebr import FinetuneConfig, InferenceConfig, MergeConfig
base, pairs, out = sys.argv[1:]
tuned = ebr.train_sentence_transformer(FinetuneConfig(
    model_name=base, data_path=pairs, output_dir=out + "/saved", max_steps=1, max_seq_length=16, report_to=["none"]))
merged = ebr.merge_adapter(MergeConfig(
    base_model_path=base, lora_adapter_path=tuned.model_path, output_path=out + "/merged"))
ebr.rank_texts(tuned.model_path, ["red shoe"], ["the red shoe", "a lamp"])
print("loaded:", [name for name in sys.modules if name.startswith("bitsandbytes")])
"""
_THEN_QUANTISED = """
import sys
from ebr.model.adapters.attach import attach_lora
from ebr.model.encoder.encoder import load_encoder
attach_lora(load_encoder(sys.argv[1], device="cpu"), r=2, alpha=4, dropout=0.0)
assert "bitsandbytes" not in sys.modules
model = load_encoder(sys.argv[1], device="cpu", quantization_bits=4)
attach_lora(model, r=2, alpha=4, dropout=0.0)
kinds = {type(module).__name__ for module in model.modules() if hasattr(module, "lora_A")}
from peft import helpers
print("kinds:", kinds, helpers.bnb.__name__)
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def test_tuning_merging_and_ranking_import_no_bitsandbytes(tiny_model, pairs_file, tmp_path):
    done = run(_UNQUANTISED, tiny_model, pairs_file, tmp_path)
    assert "loaded: []" in done.stdout
    assert "kernel" not in done.stderr


def test_a_quantised_base_finds_bitsandbytes_after_one_that_is_not(tiny_model):
    done = run(_THEN_QUANTISED, tiny_model)
    assert "kinds: {'Linear4bit'} bitsandbytes" in done.stdout
    assert "kernel" not in done.stderr
