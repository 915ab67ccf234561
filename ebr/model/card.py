"""The card of a tuned or merged model, README.md of its folder: what a stranger must know before using it.

It is written from the manifests and the report beside them. No text of the data stands in it, and no path of this machine.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ebr.config import FinetuneConfig
from ebr.data.evaluation.leaks import LeakCheck, leak_line
from ebr.data.files.write import read_json
from ebr.data.text.counted import counted
from ebr.data.text.markdown import Markdown, as_markdown, code_cell, one_line

if TYPE_CHECKING:
    import jinja2

    from ebr.data.evaluation.comparison import Change, Comparison

CARD = "README.md"
TRAINING_CONFIG = "training_config.json"
Facts = Mapping[str, Any]

_TUNING = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
_ALWAYS = (
    "loss", "temperature", "learning_rate", "num_epochs", "train_batch_size", "gradient_accumulation_steps", "neg_nums",
    "warmup_ratio", "seed",
)  # fmt: skip
"""Options that stand in a card whatever they are."""
_LORA = ("lora_r", "lora_alpha")
_ELSEWHERE = {
    "activation_memory_gb", "base_model_path", "data_path", "dataloader_num_workers", "dataloader_pin_memory",
    "eval_batch_size", "eval_dataset", "eval_steps", "finetune_type", "forgetting_dataset", "max_seq_length",
    "micro_batch_tokens", "model_name", "output_dir", "passage_max_len", "passage_prompt", "pooling", "prompt",
    "quantization_bits", "query_max_len", "query_prompt", "report_to", "resume_from_checkpoint", "save_on_epoch_end",
    "save_steps", "save_total_limit", "sources", "token_cache", "trust_remote_code",
}  # fmt: skip
"""Options that a card tells in other words, that name a place, or that move no weight."""

_OF_THE_MAP = (
    "train_batch_size", "learning_rate", "towards_identity", "max_steps", "temperature", "neg_nums", "same_answer",
    "validation_split", "seed",
)  # fmt: skip
"""Options that say how a map of queries was learned."""


@dataclass(frozen=True)
class _Measured:
    """One evaluation set of a report: what became of the base's figures."""

    name: str
    comparison: Comparison
    bm25: float | None
    """nDCG@10 of BM25 alone; None where it was not measured."""

    @property
    def changes(self) -> list[tuple[str, Change]]:
        """The metrics that people know, by their names."""
        from ebr.data.evaluation.comparison import HEADLINES

        return [(HEADLINES[one.metric], one) for one in self.comparison.changes if one.metric in HEADLINES]


def write_card(folder: Path, name: str, manifest: Facts, trained: Facts, report: Facts | None) -> None:
    """Write README.md into a finished model's folder. Arguments: see model_card."""
    _write(folder, model_card(name, manifest, trained, report))


def write_extended_card(folder: Path, name: str, manifest: Facts) -> None:
    """Write README.md into the folder of a model whose vocabulary was extended, and that was not tuned since."""
    base: Facts = manifest["base_card"]
    page = _environment().get_template("extended_card.md")
    text = page.render(
        metadata=Markdown(_metadata(name, base, {}, [], "finetune", ["extended-vocabulary"])),
        name=name,
        facts=manifest,
        base=base,
        base_link=_link(base),
        before=manifest["unknown"]["before"],
        after=manifest["unknown"]["after"],
        hashes={label: digest for label, digest in _hashes(manifest, manifest).items() if digest},
    )
    _write(folder, text)


def write_adapted_card(folder: Path, name: str, manifest: Facts, report: Facts | None) -> None:
    """Write README.md into the folder of a model whose queries go through a map. report: base against adapted, or None."""
    from ebr.model.encoder.prompts import Role, saved_prompt

    base: Facts = manifest["base_card"]
    measured = _measured(report) if report else None
    text = (
        _environment()
        .get_template("adapted_card.md")
        .render(
            metadata=Markdown(_metadata(name, base, manifest, [measured] if measured else [], "finetune", ["query-adapter"])),
            name=name,
            facts=manifest,
            base_link=_link(base),
            base=base,
            prompts={role.value: saved_prompt(manifest["prompts"], role) for role in Role},
            measured=measured,
            leaks=_leaks(report) if report else "",
            threshold=_threshold(report) if report else "",
            options={option: _value(manifest["config"][option]) for option in _OF_THE_MAP},
            hashes={label: digest for label, digest in _hashes(manifest, manifest).items() if digest},
        )
    )
    _write(folder, text)


def _write(folder: Path, card: str) -> None:
    (folder / CARD).write_bytes(card.encode("utf-8", "replace"))


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report.json in a model's folder; None without one."""
    from ebr.data.evaluation.comparison import REPORT_JSON

    return read_json(folder / REPORT_JSON) if (folder / REPORT_JSON).is_file() else None


def model_card(name: str, manifest: Facts, trained: Facts, report: Facts | None) -> str:
    """The card as Markdown, under the front matter that the hub reads.

    manifest: the model's own. trained: that of the run that tuned it, for a merged model the adapter's; empty where nothing is
    known of it. report: the report.json of that run.
    """
    from ebr.model.encoder.prompts import Role, saved_prompt
    from ebr.model.origin import public_name

    config: Facts = trained.get("config") or {}
    base: Facts = manifest["base_card"]
    tuning, is_merged = config.get("finetune_type"), "adapter_sha256" in manifest
    is_adapter = not is_merged and tuning != "full"
    measured = [_measured(one) for one in (report, report.get("forgetting")) if one] if report else []
    relation = "adapter" if is_adapter else "finetune"  # the hub calls a merge what was made from several models
    tags = [*([tuning] if tuning else []), *(["peft"] if is_adapter else []), *(["merged-adapter"] if is_merged else [])]
    own_options = _own_options(config, further="start_model" in trained)
    page = _environment().get_template("model_card.md")
    return page.render(
        metadata=Markdown(_metadata(name, base, trained, [] if is_merged else measured[:1], relation, tags)),
        name=name,
        facts=manifest,
        base=base,
        base_link=_link(base),
        trained=trained if "n_train" in trained else None,
        tuning=_TUNING.get(str(tuning), "LoRA"),
        bits=config["quantization_bits"] if tuning == "qlora" else None,
        options={option: _value(config[option]) for option in own_options},
        start=public_name(Path(str(trained["start_model"]))) if "start_model" in trained else None,
        is_adapter=is_adapter,
        is_merged=is_merged,
        merged=_merged(manifest) if is_merged else "",
        n_merged=_n_merged(manifest) if is_merged else 0,
        tried=_tried(manifest["weight_choice"]) if "weight_choice" in manifest else None,
        trust_remote_code=bool(manifest["config"].get("trust_remote_code")),
        prompts={role.value: saved_prompt(manifest["prompts"], role) for role in Role},
        measured=measured,
        leaks=_leaks(report) if report else None,
        threshold=_threshold(report) if report else "",
        hashes={label: digest for label, digest in _hashes(manifest, trained).items() if digest},
    )


def _merged(manifest: Facts) -> str:
    """What was merged, and how much of it, in words."""
    n_tuned, weight = _n_merged(manifest), manifest.get("weight", 1)
    kind = "a LoRA adapter" if manifest.get("finetune_type") != "full" else "a full fine-tuning"
    what = kind if n_tuned == 1 else f"the mean of {n_tuned} tunings"
    return what if weight == 1 else f"{weight:g} of what {what} changes"


def _n_merged(manifest: Facts) -> int:
    return len(manifest.get("recipes") or manifest["config"].get("adapters") or [""])


def _tried(choice: Facts) -> list[tuple[str, list[float]]]:
    """A row for each weight that was tried, with nDCG@10 on each set."""
    return [(f"{one['weight']:g}", one["ndcg@10"]) for one in choice["tried"]]


def _measured(dataset: Facts) -> _Measured:
    """Base against tuned on one set of a report.json."""
    from ebr.data.evaluation.comparison import Comparison

    name = dataset["dataset"]["name"]
    comparison = Comparison.from_json({"dataset": name, **dataset["comparisons"][0]})
    return _Measured(name, comparison, dataset["baselines"].get("BM25", {}).get("ndcg@10"))


def _threshold(report: Facts) -> str:
    """From which similarity on hits were precise; '' in a report of before there were thresholds."""
    from ebr.data.evaluation.calibration import Calibration

    record = report.get("thresholds", {}).get(report["comparisons"][0]["tuned"])
    return Calibration.from_json(record).line() if record else ""


def _leaks(report: Facts) -> str:
    """What training and evaluation share, in one line."""
    found = report.get("leaks")
    names = [field.name for field in dataclasses.fields(LeakCheck)]
    return leak_line(LeakCheck(**{name: found[name] for name in names}) if found else None, report["leak_note"])


def _own_options(config: Facts, *, further: bool) -> list[str]:
    """The options that say how a model was tuned: some always, of the others those that somebody chose.

    further: an adapter was tuned on, with its own rank and scale.
    """
    idle = {*_ELSEWHERE, *(("lora_dropout", *_LORA) if config.get("finetune_type") == "full" else _LORA if further else ())}
    idle |= {"num_epochs"} if config.get("max_steps") else set()
    always = [*_ALWAYS, *(() if config.get("finetune_type") == "full" else _LORA)]
    defaults = FinetuneConfig.model_construct().to_json()
    chosen = [name for name, default in defaults.items() if config.get(name, default) != default]
    return [name for name in dict.fromkeys([*always, *chosen]) if name in config and name not in idle]


def _hashes(manifest: Facts, trained: Facts) -> dict[str, str | None]:
    merged = str(manifest.get("adapter_sha256") or "").split(", ")
    numbers = [f", {place}" for place in range(1, len(merged) + 1)] if len(merged) > 1 else [""]
    return {
        "weights": manifest.get("model_sha256"),
        "weights of the base": manifest.get("base_sha256"),
        **{f"weights that were merged{number}": one for number, one in zip(numbers, merged, strict=True)},
        "training data": trained.get("data_sha256"),
    }


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- what the hub reads


def _metadata(name: str, base: Facts, trained: Facts, measured: Sequence[_Measured], relation: str, tags: Sequence[str]) -> str:
    """The front matter, as YAML."""
    from huggingface_hub import ModelCardData

    results = [result for one in measured for result in _results(one)] or None
    licence = {key: base[key] for key in ("license", "license_name", "license_link") if key in base}
    data = ModelCardData(
        language=list(trained.get("languages") or []) or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "ebr", *tags],
        model_name=one_line(name) if results else None,
        eval_results=results,
        **licence,
        # A name that is no id would pass for one.
        **({"base_model": base["hub_id"], "base_model_relation": relation} if "hub_id" in base else {}),
    )
    return str(data.to_yaml())


def _results(measured: _Measured) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="unknown",  # what the hub's own trainer writes for a set that is not on the hub
            dataset_name=one_line(measured.name),
            metric_type=change.metric.replace("@", "_at_"),
            metric_name=label,
            metric_value=round(change.tuned, 4),
        )
        for label, change in measured.changes
    ]


# ---------------------------------------------------------------- the page


def _escaped(value: object) -> object:
    """Whatever a card is filled with is plain text, unless it is Markdown already."""
    return as_markdown(value) if isinstance(value, str) and not isinstance(value, Markdown) else value


def _link(base: Facts) -> Markdown:
    """The base, with its place on the hub where it has one."""
    name = as_markdown(base["name"])
    return Markdown(f"[{name}](https://huggingface.co/{_url(base['hub_id'])})") if "hub_id" in base else name


def _bare(text: str) -> Markdown:
    """Of a name or a hash, what may stand in code without an end of it."""
    return Markdown(re.sub(r"[^\w.:/@+-]", "", text))


def _url(text: str) -> Markdown:
    return Markdown(quote(text, safe=":/?&=#%+-._~"))


def _figure(value: float) -> Markdown:
    return Markdown(f"{value:.4f}")


def _signed(value: float) -> Markdown:
    return Markdown(f"{value:+.4f}")


def _count(number: int) -> Markdown:
    return Markdown(f"{number:,}")


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ebr.model", "templates"),
        autoescape=False,  # the page is Markdown: see finalize
        finalize=_escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name, convert in {
        "bare": _bare, "code": code_cell, "count": _count, "counted": counted, "figure": _figure, "signed": _signed,
        "url": _url,
    }.items():  # fmt: skip
        environment.filters[name] = convert
    return environment
