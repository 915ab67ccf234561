"""Adapt: a map of queries is learned on vectors that are there, and saved as a model whose documents are the base's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import AdaptConfig
from ebr.data.evaluation.comparison import EVALUATION_JSON
from ebr.data.evaluation.leaks import find_leaks, leak_line
from ebr.data.files.write import FOLDER_MANIFEST, hash_files, write_folder_aside, write_json
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.training.languages import writing_of
from ebr.errors import DataError, ModelError
from ebr.model.card import read_report, write_adapted_card
from ebr.training.query_map.plan import AdaptPlan, plan_adapt
from ebr.training.query_map.result import AdaptResult

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.vectors.batch import Vectors
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.report.write import Report
    from ebr.training.query_map.fit import QueryMap

_K = 100
"""Documents ranked a query: as deep as Recall@100 looks."""
_REQUIRED_COSINE = 0.99999
_SHOWN = 80
"""Characters of a text in a message."""


def adapt_queries(config: AdaptConfig, *, say: Say = speak) -> AdaptResult:
    """Learn a linear map of a model's queries from records, and save the model that applies it to queries alone.

    The vectors of queries and passages are computed once; the documents of the saved model have the base's vectors, bit for
    bit: the folder is loaded again and compared before it takes its place. Raises EBRError subclasses that say what to mend;
    DataError where no map is better than none.
    """
    from ebr.model.encoder.routes import with_query_map

    plan = plan_adapt(config)
    for line in plan.lines():
        say(line)
    base = _load(config, plan)
    found, embedding_s = _learned(plan, base.model, say)
    adapted = with_query_map(base.model, found.weight)
    report = _evaluated(plan, base, adapted, say) if plan.dataset else None
    page = _save(plan, base, adapted, found, report)
    comparison = report.main.contrasts[0].comparison if report else None
    thresholds = tuple(report.main.thresholds_by_role().items()) if report else ()
    return AdaptResult(plan.output, found, embedding_s, comparison, page, thresholds)


def _load(config: AdaptConfig, plan: AdaptPlan) -> LoadedModel:
    """The base as its vectors in use were made. Raises ModelError for one that is quantised or has routes."""
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.encoder.prompts import set_prompts
    from ebr.model.encoder.routes import refuse_routes
    from ebr.model.files.quantization import is_quantized

    model = load_encoder(
        config.model_name,
        max_seq_length=config.max_seq_length,
        trust_remote_code=config.trust_remote_code,
        pooling=config.pooling,
    )
    refuse_routes(model, "model_name", config.model_name)
    if is_quantized(model):
        raise ModelError(f"model_name {config.model_name}: its weights are quantised; give the unquantised model")
    if config.query_prompt is not None or config.passage_prompt is not None:
        set_prompts(model, prompt=None, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    return LoadedModel.of(model, plan.base)


# ---------------------------------------------------------------- the map


def _learned(plan: AdaptPlan, model: SentenceTransformer, say: Say) -> tuple[QueryMap, float]:
    """The map of the queries, and the seconds that the records' vectors took."""
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.training.batches.collator import Collator
    from ebr.training.query_map.cached import CachedRecords, Texts
    from ebr.training.query_map.fit import fit_query_map

    config, texts = plan.config, Texts.of(plan.records)
    say(f"embed   {counted(len(texts.queries), 'query', 'queries')} and {counted(len(texts.passages), 'passage')}, once")
    started = time.perf_counter()
    encoder = RetrievalEncoder(model, batch_size=config.batch_size)
    queries = _embedded(encoder.encode_queries, list(texts.queries), "query", config.data_path)
    passages = _embedded(encoder.encode_documents, list(texts.passages), "passage", config.data_path)
    embedding_s = time.perf_counter() - started
    draw = Collator(plan.train, plan.held_out, plan.texts.ids, [], config.neg_nums, config.seed, same_answer=plan.same_answer)
    return fit_query_map(CachedRecords(draw, texts, queries, passages), config, say), embedding_s


def _embedded(encode: Callable[[Sequence[str]], Vectors], texts: Sequence[str], what: str, data_path: str) -> Vectors:
    """N texts → (N, D). Raises DataError naming the first that the model cannot embed: no record has its number."""
    from ebr.model.compute.engine import UnfitTexts

    try:
        return encode(texts)
    except UnfitTexts as error:
        first, others = min(error.reasons), len(error.reasons) - 1
        text = texts[first] if len(texts[first]) <= _SHOWN else f"{texts[first][:_SHOWN]}…"
        more = f" ({others:,} more get no vector)" if others else ""
        raise DataError(
            f"data_path {data_path}: the {what} {text!r} {error.reasons[first]}{more}; mend or leave out its records"
        ) from None


# ---------------------------------------------------------------- what it is worth


@dataclass
class _SameDocuments:
    """Queries of one encoder after another, before documents that are embedded once: those of the first."""

    queries: RetrievalEncoder
    documents: RetrievalEncoder
    known: Vectors | None = None

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self.queries.encode_queries(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        if self.known is None:
            self.known = self.documents.encode_documents(texts)
        return self.known


def _evaluated(plan: AdaptPlan, base: LoadedModel, adapted: SentenceTransformer, say: Say) -> Report:
    """The base against the adapted model on the evaluation set. The latter's facts are told when it is saved."""
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.retrieval.evaluation.command import dataset_origin, report_facts
    from ebr.retrieval.evaluation.evidence import measure_encoder, report_on
    from ebr.retrieval.evaluation.models import facts_of
    from ebr.retrieval.report.write import Report
    from ebr.visualization.library_caches import settle_matplotlib_cache

    settle_matplotlib_cache()
    config, dataset = plan.config, plan.dataset
    assert dataset is not None and config.eval_dataset is not None
    leaks = find_leaks(plan.records, dataset, plan.texts)
    say(leak_line(leaks, ""))
    encoder = RetrievalEncoder(base.model, batch_size=config.batch_size)
    encode = _SameDocuments(encoder, encoder)
    measured = []
    for name, model, facts in ((config.model_name, base.model, facts_of(base)), (str(plan.output), adapted, {})):
        encode.queries = RetrievalEncoder(model, batch_size=config.batch_size)
        found = measure_encoder(name, encode, dataset, k=_K, seed=config.seed, facts=facts)
        say(f"{name}: nDCG@10 {found.evaluation.mean('ndcg@10'):.4f} on {dataset.name}")
        measured.append(found)
    origin = dataset_origin(config.eval_dataset)
    main = report_on(dataset, measured, k=_K, seed=config.seed, baselines=True, facts=origin)
    return Report(main, None, leaks, "", report_facts(config.to_json()))


# ---------------------------------------------------------------- what is saved


def _save(
    plan: AdaptPlan, base: LoadedModel, adapted: SentenceTransformer, found: QueryMap, report: Report | None
) -> Path | None:
    """Write the whole folder, compared with the base before it takes its place; the page of the report, if there is one."""
    from ebr.model.encoder.encoder import save_whole
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.encoder.merging import load_saved, pickles_in
    from ebr.model.origin import public_name
    from ebr.retrieval.evaluation.models import facts_of
    from ebr.retrieval.report.write import REPORT_HTML, write_report

    adapted.to("cpu")
    with write_folder_aside(plan.output) as aside:
        save_whole(adapted, aside)
        if pickles := pickles_in(aside):
            raise ModelError(f"{plan.base.where}: {pickles[0].relative_to(aside)} is a pickle; save the model as safetensors")
        saved = load_saved(aside, trust_remote_code=plan.config.trust_remote_code).float()
        _check(plan, base, saved, found)
        loaded = LoadedModel.of(saved)
        manifest = _manifest(plan, base, loaded, found)
        if report:
            report.main.measured[1].facts.update(facts_of(loaded))
            write_json(aside / EVALUATION_JSON, report.main.evaluation_json())
            write_report(aside, report, "en")
        write_adapted_card(aside, public_name(plan.output), manifest, read_report(aside))
        write_json(aside / FOLDER_MANIFEST, manifest)
        return plan.output / REPORT_HTML if report else None


def _check(plan: AdaptPlan, base: LoadedModel, saved: SentenceTransformer, found: QueryMap) -> None:
    """Whether the saved model's documents are the base's, and its queries mapped. Raises ModelError."""
    import numpy as np

    from ebr.model.encoder.merging import SAMPLES, smallest_cosine
    from ebr.model.encoder.routes import document_side
    from ebr.model.files.identity import architecture, fingerprint

    texts, model = list(SAMPLES), base.model.to("cpu")
    documents = document_side(saved)
    same = fingerprint(documents) == base.sha256 and architecture(documents) == base.architecture
    known = model.encode_document(texts, show_progress_bar=False)
    if not same or not np.array_equal(saved.encode_document(texts, show_progress_bar=False), known):
        raise ModelError(f"{plan.base.where}: does not give its vectors of documents once it is saved; nothing was written")
    wanted = model.encode_query(texts, show_progress_bar=False) @ found.weight.numpy().T
    cosine = smallest_cosine(saved.encode_query(texts, show_progress_bar=False), wanted)
    if not cosine >= _REQUIRED_COSINE:  # nan is refused too
        raise ModelError(f"{plan.base.where}: the saved model does not map its queries as learned (cosine {cosine:.7f})")


def _manifest(plan: AdaptPlan, base: LoadedModel, saved: LoadedModel, found: QueryMap) -> dict[str, Any]:
    from dataclasses import asdict

    from ebr.model.base_card import base_card

    return {
        "kind": "model",
        "config": plan.config.to_json(),
        "base_model": plan.config.model_name,
        "base_card": base_card(plan.base),
        "base_sha256": base.sha256,
        "data_sha256": hash_files(plan.files),
        "data": [{"name": file.name} for file in plan.files],
        "n_train": len(plan.train),
        "n_validation": len(plan.held_out),
        **asdict(writing_of(list(plan.records))),
        "query_map": {
            "same_answer": plan.same_answer,
            "step": found.step,
            "n_steps": found.n_steps,
            "distance": found.distance,
            "held_out": {"before": found.before.to_json(), "after": found.after.to_json()},
        },
        **saved.facts(),
    }
