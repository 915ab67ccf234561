"""Measure models on an evaluation set, one beside another, and write down the evidence."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import EvaluationConfig, FinetuneConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet, evaluation_files, read_evaluation_set
from ebr.data.evaluation.leaks import leak_line
from ebr.data.files.places import check_place
from ebr.data.files.write import hash_files, read_json, write_folder_aside
from ebr.data.speech import Say, speak
from ebr.data.text.counted import are, counted
from ebr.data.text.cut_texts import cut_facts
from ebr.data.training.examples import find_training_files
from ebr.data.versions import code_sha256, library_versions
from ebr.errors import ConfigError
from ebr.retrieval.evaluation.leak_check import Provenance, RecordedSource, check_leaks
from ebr.retrieval.evaluation.models import check_base, distinct_names, facts_of, load_for_evaluation
from ebr.retrieval.evaluation.result import EvaluationResult

if TYPE_CHECKING:
    from ebr.data.evaluation.comparison import Comparison
    from ebr.retrieval.measures.measurement import Evaluation
    from ebr.retrieval.report.write import DatasetReport, Measured

_RUNS = "runs"
_SMALL_SAMPLE = 30
"""Queries: with fewer, intervals are a rough guide only."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Which models would be measured on what, and where the report would go."""

    config: EvaluationConfig
    models: dict[str, str]
    """What to load, by the name in the report: the path itself, numbered where it was given twice."""
    datasets: list[EvaluationSet]
    """The evaluation set and, where there is one, that of forgetting."""
    origins: list[dict[str, str]]
    """Of each dataset, where it lies and the hash of its files."""
    training: Provenance
    """Where the training records are that evaluation texts may have leaked from."""

    def notes(self) -> list[str]:
        """What is done with the sets that whoever gave them may not expect."""
        return [f"note: {dataset.name}: {text}" for dataset in self.datasets for text in dataset.notes()]

    def lines(self) -> list[str]:
        """The plan, for people."""
        lines = [f"models     {', '.join(self.models)}"]
        for role, dataset in zip(("evaluate", "forgetting"), self.datasets, strict=False):
            queries, documents = len(dataset.queries), len(dataset.documents)
            size = f"{counted(queries, 'query', 'queries')}, {counted(documents, 'document')}"
            lines.append(f"{role:<10} {dataset.name}: {size}")
            lines += [f"warning: {dataset.name}: {text}" for text in _warnings(dataset)]
        lines += self.notes()
        known = ", ".join(source.data_path for source in self.training.sources)
        lines.append(f"training   {known or 'not known; train_data names it for the leak check'}")
        return [*lines, f"report     {self.config.output_dir / 'report.html'}"]


def plan_evaluation(config: EvaluationConfig) -> EvaluationPlan:
    """Read the evaluation sets and find the models, and measure nothing. Raises EBRError subclasses that say what to mend."""
    from ebr.data.evaluation.trec_runs import check_run_ids
    from ebr.model.origin import resolve_model

    # A wrong second path would otherwise show only after the first evaluation.
    check_base(config.base_model_path, [resolve_model(path) for path in config.models])
    _check_output(config)
    training = Provenance.of(config.models)
    if config.train_data is not None:
        find_training_files(config.train_data, option="train_data")
        training = Provenance((RecordedSource(config.train_data),))
    folders = [config.eval_dataset, *([config.forgetting_dataset] if config.forgetting_dataset else [])]
    datasets = [read_evaluation_set(folder) for folder in folders]
    if config.save_runs:
        for dataset in datasets:
            check_run_ids(config.output_dir / _RUNS, dataset.query_ids, dataset.doc_ids)
    return EvaluationPlan(
        config=config,
        models=distinct_names(config.models),
        datasets=datasets,
        origins=[dataset_origin(folder) for folder in folders],
        training=training,
    )


def evaluate_retrieval(config: EvaluationConfig, *, say: Say = speak) -> EvaluationResult:
    """Measure models on an evaluation folder and write report.html and report.json.

    Each model is read with the prompts and lengths it was saved with, unless the config gives them.
    Raises EBRError subclasses that say what to mend; an earlier report stays until the new one is whole.
    """
    from ebr.visualization.library_caches import settle_matplotlib_cache

    settle_matplotlib_cache()
    from ebr.retrieval.evaluation.evidence import report_on
    from ebr.retrieval.report.write import Report, write_report

    started = time.perf_counter()
    plan = plan_evaluation(config)
    for line in plan.lines():
        say(line)
    leaks, notes = check_leaks(plan.training, plan.datasets[0])
    say(leak_line(leaks, notes.text()))
    measured = _measure_all(plan, say)
    reports = [
        report_on(dataset, models, k=config.k, seed=config.seed, baselines=config.baselines, facts=origin)
        for dataset, models, origin in zip(plan.datasets, measured, plan.origins, strict=True)
    ]
    report = Report(
        main=reports[0],
        forgetting=reports[1] if len(reports) > 1 else None,
        leaks=leaks,
        leak_note=notes.text(config.language),
        facts=report_facts(config.to_json()),
    )
    runs = _write_runs(plan, reports) if config.save_runs else []
    html, json = write_report(config.output_dir, report, config.language)
    seconds = time.perf_counter() - started
    return EvaluationResult(report, html, json, runs, notes.text(), seconds, tuple(plan.notes()))


def dataset_origin(folder: Path) -> dict[str, str]:
    """Where an evaluation set lies, and the hash of its files."""
    return {"folder": str(folder), "sha256": hash_files(evaluation_files(folder))}


def report_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says how a report was made."""
    return {
        "config": dict(config),
        "versions": library_versions(),
        "code_sha256": code_sha256(),
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def compare_models(
    base_path: str | Path,
    tuned_path: str | Path,
    eval_dataset: str | Path,
    *,
    trust_remote_code: bool = False,
    batch_size: int = 32,
    say: Say = speak,
) -> Comparison:
    """Evaluate two models on one evaluation folder, each with the prompts and lengths that it was saved with.

    Training reads its base at the tuned model's length, so that its figures for the base may differ a little from these.
    Raises DataError when the folder cannot be read, ModelError when a model cannot be found or loaded.
    """
    from ebr.model.origin import resolve_model
    from ebr.retrieval.measures.measurement import compare

    dataset = read_evaluation_set(Path(eval_dataset))
    for text in dataset.notes():
        say(f"note: {dataset.name}: {text}")
    paths = {"base": str(base_path), "tuned": str(tuned_path)}
    for path in paths.values():
        resolve_model(path)  # a wrong second path would otherwise show only after the first evaluation
    before, after = (_evaluate(role, path, dataset, trust_remote_code, batch_size, say) for role, path in paths.items())
    return compare(before, after, seed=FinetuneConfig.model_fields["seed"].default)


def _evaluate(role: str, path: str, dataset: EvaluationSet, trust_remote_code: bool, batch_size: int, say: Say) -> Evaluation:
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.encoder import load_encoder
    from ebr.retrieval.measures.measurement import evaluate_encoder

    model = load_encoder(path, trust_remote_code=trust_remote_code)
    evaluation = evaluate_encoder(RetrievalEncoder(model, batch_size=batch_size), dataset)
    say(f"{role} {path}: nDCG@10 {evaluation.mean('ndcg@10'):.4f} on {dataset.name}")
    return evaluation


# ---------------------------------------------------------------- one model


def _measure_all(plan: EvaluationPlan, say: Say) -> list[list[Measured]]:
    """By dataset, every model; each is loaded once, and let go before the next."""
    by_model = [_measure_one(plan, name, path, say) for name, path in plan.models.items()]
    return [list(found) for found in zip(*by_model, strict=True)]


def _measure_one(plan: EvaluationPlan, name: str, path: str, say: Say) -> list[Measured]:
    """One model on every dataset."""
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.retrieval.evaluation.evidence import measure_encoder

    config = plan.config
    loaded = load_for_evaluation(config, path)
    facts, measured = {"path": path, **facts_of(loaded)}, []
    for dataset in plan.datasets:
        started = time.perf_counter()
        encode = RetrievalEncoder(loaded.model, batch_size=config.batch_size)
        found = measure_encoder(name, encode, dataset, k=config.k, seed=config.seed, facts=facts)
        seconds = time.perf_counter() - started
        more = {"cut": cut_facts(encode.cut_texts), "seconds": round(seconds, 1)}
        measured.append(replace(found, facts={**found.facts, **more}))
        say(f"{name}: nDCG@10 {found.evaluation.mean('ndcg@10'):.4f} on {dataset.name} ({seconds:.0f} s)")
    return measured


def _warnings(dataset: EvaluationSet) -> list[str]:
    n_few = len(dataset.queries)
    found = {
        f"{counted(n_few, 'query', 'queries')} {are(n_few)} few; expect wide intervals": n_few < _SMALL_SAMPLE,
        f"{dataset.n_missing_documents:,} judged documents are not in the corpus and count as not found": (
            dataset.n_missing_documents
        ),
        f"{dataset.n_unknown_queries:,} judged queries have no text and are left out": dataset.n_unknown_queries,
    }
    return [text for text, holds in found.items() if holds]


def _write_runs(plan: EvaluationPlan, reports: Sequence[DatasetReport]) -> list[Path]:
    """Every ranking of every dataset; those of an earlier evaluation go, or they would pass for this one's."""
    from ebr.data.evaluation.trec_runs import write_run

    folder = plan.config.output_dir / _RUNS
    names: list[Path] = []
    with write_folder_aside(folder) as aside:
        for role, dataset, report in zip(("", "forgetting"), plan.datasets, reports, strict=False):
            for number, (name, ranking) in enumerate(report.rankings.items(), start=1):
                short = "-".join(Path(part).name for part in name.split(" + ")).replace(" ", "-")
                names.append(Path(role) / f"{number}-{short}.trec")
                write_run(aside / names[-1], dataset.query_ids, dataset.doc_ids, ranking.rows, ranking.similarities, short)
    return [folder / name for name in names]


def _check_output(config: EvaluationConfig) -> None:
    """Refuse an output_dir that cannot be written to, or holds no report of ours, before hours of work. Raises ConfigError."""
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder}: is a file; name a folder")
    page, numbers = files = [folder / name for name in ("report.html", "report.json")]
    for file in files:
        check_place(file, "output_dir")
        if file.is_dir():
            raise ConfigError(f"output_dir {folder}: {file.name} in it is a folder; move it away")
    foreign = numbers if numbers.exists() and not _is_report(numbers) else None
    foreign = page if page.exists() and not numbers.exists() else foreign
    if config.save_runs and (runs := folder / _RUNS).exists():
        # They are replaced as a folder, and that of TensorBoard has the same name.
        inside = runs.rglob("*") if runs.is_dir() else [runs]
        foreign = next((file for file in inside if file.suffix != ".trec" and not file.is_dir()), foreign)
    if foreign:
        raise ConfigError(
            f"output_dir {folder}: {foreign} was not written by ebr evaluate; move it, or give another output_dir"
        )


def _is_report(file: Path) -> bool:
    try:
        record = read_json(file)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("kind") == "evaluation"
