"""The least similarity of a hit, by the precision that is asked for: looked up in an evaluation of the index's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebr.config import SearchConfig
from ebr.data.evaluation.calibration import Calibration, OperatingPoint
from ebr.data.evaluation.comparison import REPORT_JSON
from ebr.data.files.write import read_json, read_manifest
from ebr.errors import ConfigError
from ebr.retrieval.index.kinds import Metric
from ebr.retrieval.index.store import Sidecar, read_sidecar

_HOW = "measure it with ebr evaluate --models MODEL --eval_dataset FOLDER --output_dir OUT, and give --evaluation_path OUT"
_SIMILARITY = {Metric.COSINE: "cosine", Metric.INNER_PRODUCT: "dot"}


@dataclass(frozen=True)
class Floor:
    """Hits below a threshold are left out. point: where it is from; its threshold is a number."""

    threshold: float
    point: OperatingPoint
    calibration: Calibration
    model_sha256: str = ""
    """Of the model that was measured, which the queries must go through."""

    def line(self) -> str:
        """What is left out and why, for people."""
        return f"floor   {self.point.line(self.calibration.similarity)}, on {self.calibration.dataset}"


def find_floor(config: SearchConfig) -> Floor | None:
    """What min_precision asks for; None where it is not set.

    Raises ConfigError where no evaluation of the index's model is at hand, or it does not tell: nothing is guessed.
    """
    if config.min_precision is None:
        return None
    if config.trust_index and (config.index_path.is_file() or read_manifest(config.index_path) is None):
        raise ConfigError("min_precision: an index without a sidecar does not say which model its vectors are of")
    sidecar = read_sidecar(config.index_path)
    file = _report_file(config, sidecar)
    facts = _searched(config, sidecar)
    calibration = _calibration(file, sidecar, facts)
    point = calibration.point(config.min_precision)
    if point is None:
        highest = calibration.points[-1].precision
        raise ConfigError(f"min_precision {config.min_precision:g}: {file} has thresholds up to {highest:g}; ask for less")
    if point.threshold is None:
        reached = [one.precision for one in calibration.points if one.threshold is not None]
        most = f"the highest that is: {max(reached):g}" if reached else "nor is any other"
        raise ConfigError(
            f"min_precision {config.min_precision:g}: {point.line(calibration.similarity)} on {calibration.dataset} ({most})"
        )
    return Floor(point.threshold, point, calibration, str(facts["model_sha256"]))


def check_searched(floor: Floor | None, queries_sha256: str | None) -> None:
    """Refuse a floor of another model than the queries went through, by its sha256. Raises ConfigError."""
    if floor is not None and queries_sha256 != floor.model_sha256:
        raise ConfigError(
            f"min_precision: the thresholds are of another model than the one that the queries go through; {_HOW}"
        )


def _searched(config: SearchConfig, sidecar: Sidecar) -> Mapping[str, Any]:
    """What the index records of its vectors, and of the model that queries go through, told by all its weights.

    As a search has it: what the index records of queries holds for the very model that made the vectors; another one with its
    document side, an adapted model or its base, says itself how its queries are read. Raises ModelError as loading one does.
    """
    from ebr.retrieval.index.text_index import whole_sha256

    whole = whole_sha256(sidecar.facts)
    recorded = {**sidecar.facts, "model_sha256": whole}
    if config.model_path is None and sidecar.facts.get("whole_model_sha256"):
        return recorded
    of_queries = _of_queries(config, sidecar)
    return recorded if of_queries is None or of_queries["model_sha256"] == whole else {**recorded, **of_queries}


def _of_queries(config: SearchConfig, sidecar: Sidecar) -> Mapping[str, Any] | None:
    """What a model says itself of its queries; None for one that can only be the index's, as it has no side of its own."""
    from ebr.model.encoder.prompts import Role, saved_prompt
    from ebr.model.encoder.routes import has_routes
    from ebr.model.origin import resolve_model

    name = config.model_path or sidecar.facts.get("model")
    if name is None:
        return None
    source = resolve_model(str(name))
    folder = source.files
    says: Mapping[str, Any] = (read_manifest(folder) if folder else None) or {}
    if "query_map" not in says:
        # Nothing to read tells its weights. Only where there may be two models with one document side it is loaded for that.
        if not sidecar.facts.get("whole_model_sha256") and folder is not None and not has_routes(folder):
            return None
        says = _loaded_facts(config, str(name))
    return {
        "model_sha256": says.get("model_sha256"),
        "query_prompt": saved_prompt(says.get("prompts") or {}, Role.QUERY),
        "query_max_len": says.get("query_max_len") or says.get("max_seq_length"),
    }


def _loaded_facts(config: SearchConfig, name: str) -> Mapping[str, Any]:
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.loaded import LoadedModel

    # What does not fit the index is said by the search, which loads it anew.
    model = load_encoder(
        name,
        trust_remote_code=config.trust_remote_code,
        base_model_path=config.base_model_path,
        device="cpu",
        compare=False,
    )
    return LoadedModel.of(model).facts()


def _report_file(config: SearchConfig, sidecar: Sidecar) -> Path:
    if config.evaluation_path is not None:
        path = config.evaluation_path
        file = path / REPORT_JSON if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"evaluation_path {path}: holds no {REPORT_JSON}; give what ebr evaluate wrote")
        return file
    model = config.model_path or sidecar.facts.get("model")
    file = Path(str(model)) / REPORT_JSON
    if model is None or not file.is_file():
        raise ConfigError(f"min_precision: no evaluation lies beside the model {model} of the index; {_HOW}")
    return file


def _calibration(file: Path, sidecar: Sidecar, searched: Mapping[str, Any]) -> Calibration:
    """The thresholds of a model in a report. searched: see _searched. Raises ConfigError where they are of other vectors."""
    try:
        report = read_json(file)
        found = list(_of_model(report, searched.get("model_sha256")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}: {error}); {_HOW}") from None
    if not found:
        raise ConfigError(f"min_precision: {file} has no thresholds of the model whose vectors the index holds; {_HOW}")
    if sidecar.kind.has_codes and not sidecar.kind.refined:
        raise ConfigError(
            f"min_precision: an index of kind {sidecar.kind.value} scores by short codes, which lie below the similarity that "
            "was measured; build one that ranks the best again (ivf_pq_flat, ivf_pq_fp16, ivf_pq_sq8), or flat"
        )
    calibration, facts = found[-1]
    scored_by = "cosine" if sidecar.facts.get("normalized") else _SIMILARITY[sidecar.metric]
    if calibration.similarity != scored_by:
        raise ConfigError(
            f"min_precision: the hits of {sidecar.metric.value} have other scores than the thresholds in {file}, which are by "
            f"{calibration.similarity}; build the index with the metric that the model was made for"
        )
    if differs := _differences(facts, searched):
        raise ConfigError(
            f"min_precision: the thresholds in {file} were measured otherwise than the index embeds ({'; '.join(differs)}); "
            "evaluate with those settings"
        )
    return calibration


def _of_model(report: Mapping[str, Any], model_sha256: object) -> Iterator[tuple[Calibration, Mapping[str, Any]]]:
    """Of each entry of a report that has the weights and says how it embeds: its thresholds, and that."""
    for name, record in report.get("thresholds", {}).items():
        facts = report["model_facts"][name]
        # The base of a fine-tuning is read at the lengths of tuning, which its facts do not say.
        if model_sha256 is not None and facts.get("model_sha256") == model_sha256 and "prompts" in facts:
            yield Calibration.from_json(record), facts


def _differences(measured: Mapping[str, Any], indexed: Mapping[str, Any]) -> list[str]:
    """What changes a similarity, and is not the same in an evaluation and in an index, in words."""
    from ebr.model.encoder.prompts import Role, saved_prompt

    prompts, length = measured["prompts"], measured.get("max_seq_length")
    pairs = {
        "pooling": (measured.get("pooling"), indexed.get("pooling")),
        "query prompt": (saved_prompt(prompts, Role.QUERY), indexed.get("query_prompt") or ""),
        "passage prompt": (saved_prompt(prompts, Role.DOCUMENT), indexed.get("prompt") or ""),
        "query_max_len": (measured.get("query_max_len") or length, _length(indexed, "query_max_len")),
        "passage_max_len": (measured.get("passage_max_len") or length, _length(indexed, "passage_max_len")),
        "truncate_dim": (None, indexed.get("truncate_dim")),
    }
    return [f"{name} {was!r}, here {now!r}" for name, (was, now) in pairs.items() if was != now]


def _length(facts: Mapping[str, Any], name: str) -> object:
    return facts.get(name) or facts.get("max_seq_length")
