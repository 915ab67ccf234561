"""Merge: a base and its adapter in, one model that needs no peft out, compared with the two before it takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import MergeConfig
from ebr.data.files.places import check_place
from ebr.data.files.write import FOLDER_MANIFEST, hash_file, read_json, read_manifest, write_folder_aside, write_json
from ebr.data.result_tables import Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.errors import DataError, ModelError, first_line
from ebr.model.card import TRAINING_CONFIG, read_report, write_card
from ebr.model.output import check_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from ebr.model.adapters.files import LoraAdapter
    from ebr.model.origin import ModelOrigin

_REQUIRED_COSINE = {"float32": 0.99999, "bfloat16": 0.999}


@dataclass(frozen=True)
class MergePlan:
    """What would be merged, in which precision, and where it would go."""

    config: MergeConfig
    adapter: LoraAdapter
    base: ModelOrigin
    output: Path
    precision: str
    training: Mapping[str, Any]
    """Options of the adapter's training run, as far as they are recorded."""
    record: Mapping[str, Any]
    """The adapter's manifest; empty for one that was made elsewhere."""

    def lines(self) -> list[str]:
        """The plan, for people."""
        settings, adapter = self.adapter.config, self.adapter
        tuned = f", {self.training['finetune_type']}" if "finetune_type" in self.training else ""
        lines = [
            f"base    {self.config.base_model_path}",
            f"adapter {adapter.weights}: rank {settings.get('r')}, alpha {settings.get('lora_alpha')}{tuned}",
            f"output  {self.output}: {self.precision}",
        ]
        trained = _trained_precision(self.training)
        if trained not in (None, self.precision):
            lines.append(f"warning: the adapter was trained in {trained}; the merged weights will be {self.precision}")
        if not adapter.is_encoder:
            lines.append(f"{adapter.folder} holds no modules.json: pooling, prompts and lengths are taken from the base")
        elif not self.record:
            lines.append(f"{adapter.folder} was not made by ebr: its pooling and prompts are taken as they are")
        return lines


@dataclass(frozen=True)
class MergeResult(Shown):
    """A merged model, and how near it is to what it was merged from."""

    model_path: Path
    precision: str
    smallest_cosine: float
    """Over the sample texts, of the merged model with base + adapter in float32."""
    quantised_cosine: float | None
    """The same with the quantised base of training; None when the base was not quantised, or could not be here."""

    def summary(self) -> str:
        """What was made, where, and how exact it is."""
        return "\n".join(fact_lines(self._facts(), 8))

    def parts(self) -> list[Part]:
        """The same, as a table."""
        return [self._facts()]

    def _facts(self) -> list[Fact]:
        facts = [
            ("model", f"{self.model_path} ({self.precision})"),
            ("cosine", f"{self.smallest_cosine:.7f} with base + adapter, the smallest of the sample texts"),
        ]
        if self.quantised_cosine is not None:
            facts.append(("", f"{self.quantised_cosine:.7f} with the quantised base of training: the error of quantisation"))
        return facts


def plan_merge(config: MergeConfig) -> MergePlan:
    """Check everything that can be checked without loading the base, and merge nothing."""
    from ebr.model.adapters.adapted import base_source
    from ebr.model.adapters.files import find_adapter

    adapter = find_adapter(config.lora_adapter_path)
    base = base_source(adapter, config.base_model_path)
    folders = {"lora_adapter_path": adapter.folder}
    if base.folder is not None:
        folders["base_model_path"] = base.folder
    output = check_place(config.output_path.expanduser(), is_folder=True).resolve()
    check_output(output, folders, mark="adapter_sha256", work="merge")
    record = read_manifest(adapter.folder) or {}
    training = {**(record.get("config") or {}), **_options_beside(adapter.folder)}
    precision = config.training_precision or _trained_precision(training) or "float32"
    return MergePlan(config, adapter, base, output, precision, training, record)


def _options_beside(folder: Path) -> dict[str, Any]:
    """Options of the run that made an adapter, as a training_config.json beside it tells them."""
    path = folder / TRAINING_CONFIG
    if not path.is_file():
        return {}
    try:
        options = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend or delete it") from None
    if not isinstance(options, dict):
        raise DataError(f"{path}: is not a JSON object of options; mend or delete it")
    return options


def _trained_precision(training: Mapping[str, Any]) -> str | None:
    if "bf16" not in training:
        return None
    return "bfloat16" if training["bf16"] is True else "float32"


def merge_adapter(config: MergeConfig, *, say: Say = speak) -> MergeResult:
    """Merge a LoRA or QLoRA adapter into its unquantised base, in float32, and save a whole sentence-transformers folder.

    The saved model is loaded again and compared with base + adapter before it takes its place; what was at output_path stays
    until then. Raises EBRError subclasses that say what to mend.
    """
    from ebr.model.encoder.merging import load_saved, pickles_in, save_merged

    plan = plan_merge(config)
    for line in plan.lines():
        say(line)
    encoder, base_sha256 = _merged(plan, say)
    with write_folder_aside(plan.output) as aside:
        save_merged(encoder, plan.adapter, aside, trust_remote_code=config.trust_remote_code)
        del encoder  # its memory is needed for base and adapter once more
        if pickles := pickles_in(aside):
            raise ModelError(f"{plan.adapter.folder / pickles[0].relative_to(aside)}: is a pickle; save it as safetensors")
        saved = load_saved(aside, trust_remote_code=config.trust_remote_code)
        manifest = _manifest(plan, saved, base_sha256)
        cosine, quantised = _compare(plan, saved, say)
        _write_card(plan, aside, manifest, say)
        write_json(aside / FOLDER_MANIFEST, {**manifest, "smallest_cosine": cosine, "quantised_cosine": quantised})
    return MergeResult(plan.output, plan.precision, cosine, quantised)


def _write_card(plan: MergePlan, folder: Path, manifest: Mapping[str, Any], say: Say) -> None:
    """The merged model's card, with the figures of the adapter's training where they are about the same base."""
    from ebr.model.origin import public_name

    record = plan.record
    is_same = record.get("base_sha256") == manifest["base_sha256"] or plan.training.get("finetune_type") == "qlora"
    try:
        report = read_report(plan.adapter.folder) if record and is_same else None
        write_card(folder, public_name(plan.output), manifest, record, report)
    except OSError:
        raise
    except Exception as error:  # files of an earlier version, or edited: an exact merge must not fail for its card
        say(f"warning: the model's card is left out: what lies beside the adapter cannot be read ({first_line(error)})")


def _merged(plan: MergePlan, say: Say) -> tuple[SentenceTransformer, str | None]:
    """The base with the adapter in its weights, and the base's fingerprint."""
    from ebr.model.adapters.adapted import other_base_note
    from ebr.model.encoder.merging import merge_layers, unmerged

    adapted = unmerged(
        plan.config.base_model_path, plan.adapter, trust_remote_code=plan.config.trust_remote_code, hash_base=True
    )
    if note := other_base_note(plan.adapter, adapted, bits=0):
        say(f"warning: {note}")
    merged = merge_layers(adapted.tuner)
    adapted.encoder[0].model = merged.bfloat16() if plan.precision == "bfloat16" else merged
    return adapted.encoder, adapted.base_sha256


def _compare(plan: MergePlan, saved: SentenceTransformer, say: Say) -> tuple[float, float | None]:
    """Smallest cosines of the saved model with what it was merged from: in float32, and on the quantised base of training.

    What it was merged from is embedded as its own folders say, so that a prompt or a token that got lost shows too.
    Raises ModelError when the first is too small.
    """
    from ebr.model.encoder.merging import sample_vectors, smallest_cosine

    merged = sample_vectors(saved)
    cosine = smallest_cosine(merged, sample_vectors(_unmerged(plan)))
    required = _REQUIRED_COSINE[plan.precision]
    say(f"smallest cosine of the merged model with base + adapter: {cosine:.7f} (at least {required} is required)")
    if not cosine >= required:  # nan is refused too
        raise ModelError(
            f"the merged model differs from base + adapter: smallest cosine {cosine:.7f}, {required} is required; "
            f"nothing was written to {plan.output}"
        )
    return cosine, _quantised_cosine(plan, merged, say)


def _unmerged(plan: MergePlan, *, bits: int = 0) -> SentenceTransformer:
    from ebr.model.encoder.merging import unmerged

    config = plan.config
    return unmerged(config.base_model_path, plan.adapter, trust_remote_code=config.trust_remote_code, bits=bits).encoder


def _quantised_cosine(plan: MergePlan, merged: NDArray[np.float32], say: Say) -> float | None:
    from ebr.model.encoder.merging import sample_vectors, smallest_cosine

    if plan.training.get("finetune_type") != "qlora":
        return None
    bits = plan.training.get("quantization_bits") or 4
    try:
        cosine = smallest_cosine(merged, sample_vectors(_unmerged(plan, bits=bits)))
    except Exception as error:  # this is information: an exact merge must not fail for it
        say(f"the comparison with the {bits}-bit base that the adapter was trained on is left out ({first_line(error)})")
        return None
    say(f"smallest cosine with the {bits}-bit base that the adapter was trained on: {cosine:.7f}: the error of quantisation")
    return cosine


def _manifest(plan: MergePlan, saved: SentenceTransformer, base_sha256: str | None) -> dict[str, Any]:
    from ebr.model.base_card import base_card
    from ebr.model.encoder.loaded import LoadedModel

    return {
        "kind": "model",
        "config": plan.config.to_json(),
        "base_model": plan.config.base_model_path,
        "base_card": base_card(plan.base),
        "base_sha256": base_sha256,
        "adapter": str(plan.adapter.weights),
        "adapter_sha256": hash_file(plan.adapter.weights),
        "training_precision": plan.precision,
        "finetune_type": plan.training.get("finetune_type"),
        **LoadedModel.of(saved).facts(),
    }
