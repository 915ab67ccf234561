"""Merge: a base and what was tuned of it in, one model that needs no peft out, compared before it takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config.models.merge import AUTO
from ebr.data.files.write import FOLDER_MANIFEST, write_folder_aside, write_json
from ebr.data.result_tables import Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.errors import ConfigError, ModelError, first_line
from ebr.model.card import read_report, write_card
from ebr.model.merge_plan import MergePlan, TunedModel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.comparison import Comparison
    from ebr.model.encoder.dial import WeightChoice, WeightDial

    Choose = Callable[[WeightDial], WeightChoice]

_REQUIRED_COSINE = {"float32": 0.99999, "bfloat16": 0.999}


@dataclass(frozen=True)
class MergeResult(Shown):
    """A merged model, and how near it is to what it was merged from."""

    model_path: Path
    precision: str
    smallest_cosine: float
    """Over the sample texts, of the merged model with what it was merged from in float32."""
    quantised_cosine: float | None
    """The same with the quantised base of training; None when the base was not quantised, or could not be here."""
    weight: float = 1.0
    choice: WeightChoice | None = None
    """How the weight was chosen; None where it was given."""
    compared_with: str = "base + adapter"
    """What the smallest cosine is with."""

    def summary(self) -> str:
        """What was made, where, and how exact it is; what a weight that was chosen gives."""
        found = [f"{what}\n{one.table()}\n" for what, one in self._comparisons()]
        return "\n".join([*found, *fact_lines(self._facts(), 8)])

    def parts(self) -> list[Part]:
        """The same, as tables."""
        found = [part for what, one in self._comparisons() for part in (what, *one.parts())]
        return [*found, self._facts()]

    def _comparisons(self) -> list[tuple[str, Comparison]]:
        if self.choice is None:
            return []
        pairs = [("the base → weight", self.choice.comparison), ("forgetting: the base → weight", self.choice.forgetting)]
        return [(f"{what} {self.weight:g}, on {one.dataset}", one) for what, one in pairs if one]

    def _facts(self) -> list[Fact]:
        facts = [
            ("model", f"{self.model_path} ({self.precision})"),
            ("cosine", f"{self.smallest_cosine:.7f} with {self.compared_with}, the smallest of the sample texts"),
        ]
        if self.weight != 1 or self.choice:
            facts.insert(1, ("weight", f"{self.weight:g}" + (", chosen" if self.choice else "")))
        if self.quantised_cosine is not None:
            facts.append(("", f"{self.quantised_cosine:.7f} with the quantised base of training: the error of quantisation"))
        return facts


def merge_planned(plan: MergePlan, choose: Choose | None = None, *, say: Say = speak) -> MergeResult:
    """Merge what was tuned into its unquantised base, in float32, and save a whole sentence-transformers folder.

    choose: turns the dial to find the weight, and says which it is; needed where the config says auto. The saved model is
    loaded again and compared with what it was merged from before it takes its place; what was at output_path stays until then.
    Raises EBRError subclasses that say what to mend.
    """
    from ebr.model.encoder.merging import load_saved, pickles_in, save_merged

    if plan.config.weight == AUTO and choose is None:
        raise ConfigError("weight auto: needs a way to choose it; ebr merge has one")
    merged = _merged(plan, say)
    choice = _chosen(merged, choose) if choose else None
    weight = choice.weight if choice else float(plan.config.weight)
    expected = merged.settled(weight)
    if plan.precision == "bfloat16":
        merged.encoder[0].model.bfloat16()
    with write_folder_aside(plan.output) as aside:
        first = plan.tuned[0]
        save_merged(merged.encoder, first.adapter, aside, trust_remote_code=plan.config.trust_remote_code)
        if pickles := pickles_in(aside):
            raise ModelError(f"{first.folder / pickles[0].relative_to(aside)}: is a pickle; save it as safetensors")
        saved = load_saved(aside, trust_remote_code=plan.config.trust_remote_code)
        cosine, quantised = _compare(plan, saved, expected, say)
        # In float32, as every command loads it: its fingerprint is of that, also where the file holds bfloat16.
        manifest = {**_manifest(plan, saved.float(), merged.base_sha256), "weight": weight}
        if choice:
            choice.write_report(aside, manifest)
            manifest["weight_choice"] = choice.record
        _write_card(plan, aside, manifest, say)
        write_json(aside / FOLDER_MANIFEST, {**manifest, "smallest_cosine": cosine, "quantised_cosine": quantised})
    return MergeResult(plan.output, plan.precision, cosine, quantised, weight, choice, plan.compared_with)


def _write_card(plan: MergePlan, folder: Path, manifest: Mapping[str, Any], say: Say) -> None:
    """The merged model's card, with the figures of the model itself, or of an adapter's training on the same base."""
    from ebr.model.origin import public_name

    one = plan.tuned[0]
    record = one.record if len(plan.tuned) == 1 else {}
    is_same = record.get("base_sha256") == manifest["base_sha256"] or one.training.get("finetune_type") == "qlora"
    try:
        if "weight_choice" in manifest:
            report = read_report(folder)
        else:  # figures of all of an adapter are not those of a part of it
            report = read_report(one.folder) if record and is_same and plan.is_whole_adapter else None
        write_card(folder, public_name(plan.output), manifest, record, report)
    except OSError:
        raise
    except Exception as error:  # files of an earlier version, or edited: an exact merge must not fail for its card
        say(f"warning: the model's card is left out: what lies beside the adapter cannot be read ({first_line(error)})")


# ---------------------------------------------------------------- the weights


@dataclass(frozen=True)
class _Merged:
    """An encoder that carries what was tuned. expected: vectors of the sample texts of base + adapter, before they were merged.

    dial: None where all of one adapter is merged, which needs none.
    """

    encoder: SentenceTransformer
    base_sha256: str | None
    expected: NDArray[np.float32]
    dial: WeightDial | None

    def settled(self, weight: float) -> NDArray[np.float32]:
        """What the saved model's vectors of the sample texts must be, with the dial, if there is one, at `weight`."""
        from ebr.model.encoder.merging import sample_vectors

        if self.dial is None:
            return self.expected
        self.dial.turn(weight)
        return sample_vectors(self.encoder)


def _merged(plan: MergePlan, say: Say) -> _Merged:
    """The first encoder with its tuning merged, on a dial with the others where a part or several are merged."""
    from ebr.model.encoder.dial import WeightDial

    first, *others = plan.tuned
    encoder, base, expected = _tuned_encoder(plan, first, keep_base=not plan.is_whole_adapter)
    for one in plan.tuned:
        _check_base(plan, one, base.sha256, say)
    if plan.is_whole_adapter:
        return _Merged(encoder, base.sha256, expected, None)
    dial = WeightDial(encoder, base.weights, str(first.folder))
    how = _how_it_embeds(encoder) if others else {}
    for one in others:
        other, _, _ = _tuned_encoder(plan, one)
        if differs := [name for name, value in _how_it_embeds(other).items() if value != how[name]]:
            raise ModelError(
                f"adapters {one.folder}: embeds otherwise than {first.folder} ({', '.join(differs)}); the mean of the two "
                "would be right for neither"
            )
        dial.join(other, str(one.folder))
    return _Merged(encoder, base.sha256, expected, dial)


@dataclass(frozen=True)
class _Base:
    """The base alone: its fingerprint, and its weights by their names in an encoder; empty where they were not asked for."""

    sha256: str | None
    weights: Mapping[str, torch.Tensor]


def _tuned_encoder(
    plan: MergePlan, one: TunedModel, *, keep_base: bool = False
) -> tuple[SentenceTransformer, _Base, NDArray[np.float32]]:
    """An encoder with one tuning in its weights, its base, and its vectors of the sample texts, of an adapter unmerged."""
    from ebr.model.encoder.merging import load_whole, merge_layers, sample_vectors, unmerged
    from ebr.model.files.identity import fingerprint

    name, trust = plan.config.base_model_path, plan.config.trust_remote_code
    if one.adapter is None:
        encoder = load_whole(str(one.folder), "adapters", trust_remote_code=trust)
        alone = load_whole(name, "base_model_path", trust_remote_code=trust) if keep_base else None
        base = _Base(fingerprint(alone), alone.state_dict()) if alone else _Base(None, {})
        return encoder, base, sample_vectors(encoder)
    adapted = unmerged(name, one.adapter, trust_remote_code=trust, hash_base=True, keep_base=keep_base)
    expected = sample_vectors(adapted.encoder)
    adapted.encoder[0].model = merge_layers(adapted.tuner)
    if not plan.is_whole_adapter:  # which is compared when it is saved
        _require_near(sample_vectors(adapted.encoder), expected, "float32", str(one.weights))
    return adapted.encoder, _Base(adapted.base_sha256, adapted.base_weights or {}), expected


def _check_base(plan: MergePlan, one: TunedModel, base_sha256: str | None, say: Say) -> None:
    """Say that an adapter is of another base. Raises ModelError for one of several, whose mean would be of nothing."""
    from ebr.model.adapters.adapted import other_base_note

    note = other_base_note(one.folder, plan.base, base_sha256)
    if plan.config.adapters is None:
        if note:
            say(f"warning: {note}")
    elif note:
        raise ModelError(f"adapters {one.folder}: {note}; all must be of the same base, and base_model_path must be that one")
    elif "base_sha256" not in one.record:
        say(f"warning: {one.folder} does not record what it was tuned from; {plan.base.name} is taken for it")


def _how_it_embeds(encoder: SentenceTransformer) -> dict[str, Any]:
    """All that makes a vector of a text, but for the weights."""
    from ebr.model.encoder.loaded import LoadedModel

    facts = LoadedModel.of(encoder).facts()
    return {name: value for name, value in facts.items() if name not in ("model_sha256", "versions")}


def _chosen(merged: _Merged, choose: Choose) -> WeightChoice:
    """The weight that the dial is best at, looked for where it is computed fastest."""
    from sentence_transformers.util import get_device_name

    if merged.dial is None:
        raise ConfigError("weight: is given, so that there is nothing to choose")
    merged.encoder.to(get_device_name())
    choice = choose(merged.dial)
    merged.encoder.to("cpu")
    return choice


# ---------------------------------------------------------------- what was saved


def _compare(
    plan: MergePlan, saved: SentenceTransformer, expected: NDArray[np.float32], say: Say
) -> tuple[float, float | None]:
    """Smallest cosines of the saved model with what it was merged from: in float32, and on the quantised base of training.

    What it was merged from was embedded as its own folders say, so that a prompt or a token that got lost shows too.
    Raises ModelError when the first is too small.
    """
    from ebr.model.encoder.merging import sample_vectors

    vectors = sample_vectors(saved)
    what = plan.compared_with
    cosine = _require_near(vectors, expected, plan.precision, f"output_path {plan.output}: nothing was written", what)
    required = _REQUIRED_COSINE[plan.precision]
    say(f"smallest cosine of the merged model with {what}: {cosine:.7f} (at least {required} is required)")
    return cosine, _quantised_cosine(plan, vectors, say)


def _require_near(
    vectors: NDArray[np.float32], expected: NDArray[np.float32], precision: str, who: str, what: str = "base + adapter"
) -> float:
    """The smallest cosine of two sets of vectors of the sample texts. Raises ModelError where it is too small."""
    from ebr.model.encoder.merging import smallest_cosine

    cosine, required = smallest_cosine(vectors, expected), _REQUIRED_COSINE[precision]
    if not cosine >= required:  # nan is refused too
        raise ModelError(f"{who}: the merged model differs from {what}: smallest cosine {cosine:.7f}, {required} is required")
    return cosine


def _quantised_cosine(plan: MergePlan, merged: NDArray[np.float32], say: Say) -> float | None:
    from ebr.model.encoder.merging import sample_vectors, smallest_cosine, unmerged

    one = plan.tuned[0]
    if not plan.is_whole_adapter or one.adapter is None or one.training.get("finetune_type") != "qlora":
        return None
    bits, trust = one.training.get("quantization_bits") or 4, plan.config.trust_remote_code
    try:
        quantised = unmerged(plan.config.base_model_path, one.adapter, trust_remote_code=trust, bits=bits).encoder
        cosine = smallest_cosine(merged, sample_vectors(quantised))
    except Exception as error:  # this is information: an exact merge must not fail for it
        say(f"the comparison with the {bits}-bit base that the adapter was trained on is left out ({first_line(error)})")
        return None
    say(f"smallest cosine with the {bits}-bit base that the adapter was trained on: {cosine:.7f}: the error of quantisation")
    return cosine


def _manifest(plan: MergePlan, saved: SentenceTransformer, base_sha256: str | None) -> dict[str, Any]:
    from ebr.model.base_card import base_card
    from ebr.model.encoder.loaded import LoadedModel

    digests = [one.digest() for one in plan.tuned]
    ways = {one.training.get("finetune_type") for one in plan.tuned}
    return {
        "kind": "model",
        "config": plan.config.to_json(),
        "base_model": plan.config.base_model_path,
        "base_card": base_card(plan.base),
        "base_sha256": base_sha256,
        "adapter": ", ".join(str(one.weights) for one in plan.tuned),
        "adapter_sha256": ", ".join(str(digest) for digest in digests),
        "training_precision": plan.precision,
        "finetune_type": ways.pop() if len(ways) == 1 else None,
        **LoadedModel.of(saved).facts(),
    }
