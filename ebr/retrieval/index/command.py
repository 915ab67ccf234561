"""Index: finished vectors in, a searchable folder out, with what it finds and how fast it is in its sidecar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import IndexConfig
from ebr.data.files.write import FOLDER_MANIFEST, hash_file, read_manifest, write_folder_aside, write_json
from ebr.data.host_memory import resident_bytes
from ebr.data.result_tables import Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.text.cut_texts import CutTexts
from ebr.data.versions import library_versions
from ebr.errors import DataError
from ebr.retrieval.index.plan import IndexPlan, old_sources, plan_index

if TYPE_CHECKING:
    from ebr.retrieval.index.faiss_index import FaissIndex
    from ebr.retrieval.index.kinds import IndexSpec
    from ebr.retrieval.index.recall import ExactNeighbours, IndexQuality
    from ebr.retrieval.index.store import Sidecar

__all__ = ["IndexPlan", "IndexResult", "build_index", "plan_index"]

_OUTGROWN = 4  # times the rows that the lists were learned from


@dataclass(frozen=True)
class IndexResult(Shown):
    """A finished index, and what was measured of it."""

    index_path: Path
    spec: IndexSpec
    n_added: int
    n_rows: int
    effort: dict[str, int]
    quality: IndexQuality | None
    """None when it could not be measured: one row alone, or vectors of before that are gone."""
    min_recall: float
    file_bytes: int
    grown_bytes: int
    build_seconds: float
    """Reading, learning, adding and writing."""
    seconds: float
    """All of it, with what was measured."""
    cut: CutTexts = field(default_factory=CutTexts)
    """Rows whose text the model read only the beginning of, as far as the vectors' manifests say."""
    lexical: Mapping[str, Any] | None = None
    """What the sidecar says of BM25: column, n_words, file_bytes; None for an index of vectors only."""

    def summary(self) -> str:
        """What was built, how much memory it takes, and what it finds how fast."""
        return "\n".join(fact_lines(self._facts(), 9))

    def parts(self) -> list[Part]:
        """The same, as a table."""
        return [self._facts()]

    def _facts(self) -> list[Fact]:
        from ebr.retrieval.index.kinds import bytes_text

        effort = ", ".join(f"{name} {value}" for name, value in self.effort.items()) or "every row is looked at"
        rows = f"{counted(self.n_rows, 'row')} of {self.spec.dim}, {self.n_added:,} of them new, {self.spec.kind.value}"
        memory = (
            f"{bytes_text(self.file_bytes)} (its file, which is what it takes when it is opened); "
            f"{bytes_text(self.spec.predicted_bytes)} were predicted; building it took {bytes_text(self.grown_bytes)}"
        )
        facts = [("index", f"{self.index_path}: {rows}"), ("memory", memory), ("effort", effort)]
        if said := self.cut.line():
            facts.append(("cut", f"{said} when they were embedded"))
        if self.lexical:
            words = f"BM25 of {self.lexical['column']}: {self.lexical['n_words']:,} different ones"
            facts.append(
                ("words", f"{words}, {bytes_text(self.lexical['file_bytes'])}, read from the disk as they are asked for")
            )
        took = f"{self.seconds:,.1f} s: {self.build_seconds:,.1f} to build, the rest to measure"
        return [*facts, *self._measured(), ("took", took)]

    def _measured(self) -> list[Fact]:
        quality = self.quality
        if quality is None:
            return [("recall", "not measured: the vectors to compare with are not all there")]
        recall = (
            f"{quality.recall:.4f} of the ten best on average, {quality.recall_p5:.2f} in the worst twentieth "
            f"({quality.n_queries:,} queries that nothing was tuned on)"
        )
        speed = (
            f"{quality.one_at_a_time:,.0f} queries/s one at a time on one thread, "
            f"{quality.batch:,.0f} in batches of {quality.batch_size} on {quality.n_threads}"
        )
        facts = [("recall", recall), ("speed", speed)]
        if quality.recall < self.min_recall:
            missed = (
                f"recall@10 of {self.min_recall:g} was not reached with kind {self.spec.kind.value}, "
                f"it is {quality.recall:.4f}; take ivf_pq_flat or flat, or lower min_recall"
            )
            facts.append(("warning:", missed))
        return facts


def _most_resident() -> int:
    """The most bytes of memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_index(config: IndexConfig, *, say: Say = speak) -> IndexResult:
    """Build an index from finished vectors, or add them to one; measure it against exact search; write its sidecar last.

    What was at index_path stays until the new index is whole. Vectors stream: beside the index itself, memory holds a block of
    them, the sample that it learns from, the queries, and every id; with lexical_column, at the end, the words of all rows too
    (some 2 GB a million documents, which memory_budget does not count). Raises EBRError subclasses that say what to mend.
    """
    from ebr.retrieval.index.store import INDEX_FILE

    started, plan = time.perf_counter(), plan_index(config)
    for line in plan.lines():
        say(line)
    with write_folder_aside(config.index_path) as aside:
        resident, most = resident_bytes(), _most_resident()
        index, exact = _filled(plan, aside)
        # faiss doubles its room as it fills: the peak lies above what is left at the end.
        grown = (_most_resident() if _most_resident() > most else resident_bytes()) - resident
        index.write(aside / INDEX_FILE)
        lexical = _write_lexical(plan, aside)
        build_seconds = time.perf_counter() - started - (exact.seconds if exact else 0)
        quality, effort = _measured(index, exact, plan)
        record = _record(plan, index, aside, quality, effort, grown, lexical)
        if plan.before and read_manifest(config.index_path) != plan.before.facts:
            raise DataError(f"index_path {config.index_path}: changed while rows were added to it; add them again")
        write_json(aside / FOLDER_MANIFEST, record)
    result = IndexResult(
        index_path=config.index_path,
        spec=plan.spec,
        n_added=plan.source.n_rows,
        n_rows=index.n_rows,
        effort=effort,
        quality=quality,
        min_recall=config.min_recall,
        file_bytes=record["memory"]["file_bytes"],
        grown_bytes=grown,
        build_seconds=build_seconds,
        seconds=time.perf_counter() - started,
        cut=_cut_texts(record),
        lexical=lexical,
    )
    _warn_if_outgrown(plan, say)
    return result


def _filled(plan: IndexPlan, aside: Path) -> tuple[FaissIndex, ExactNeighbours | None]:
    """The index with all its rows, which are written into the folder; and what to measure it with, where that can be."""
    from ebr.retrieval.index.build import fill, learn, take_samples
    from ebr.retrieval.index.store import ROWS_FILE, RowsReader, check_files

    config, before, old, existing = plan.config, plan.before, old_sources(plan), None
    if before:
        check_files(config.index_path, before)
        existing = RowsReader(config.index_path / ROWS_FILE)
    samples = take_samples(
        old or [],
        plan.source,
        0 if before else plan.spec.n_training,
        _query_vectors(plan),
        config.sample_queries,
        seed=config.seed,
        existing=existing,
        measurable=old is not None,
    )
    index = _opened_whole(config.index_path, before) if before else learn(plan.spec, samples, seed=config.seed)
    queries = samples.queries if old is not None else None
    return index, fill(index, old or [], plan.source, aside / ROWS_FILE, queries, existing)


def _write_lexical(plan: IndexPlan, folder: Path) -> dict[str, Any] | None:
    """BM25 of all rows, made of the texts that were just written into the folder; what the sidecar says of it, None without.

    Rows that are added change the weight of every word, so that it is always made of all of them.
    """
    if plan.lexical_column is None:
        return None
    from importlib.metadata import version

    from ebr.retrieval.index.store import LEXICAL_FILES, LEXICAL_FOLDER, ROWS_FILE, RowsReader
    from ebr.retrieval.measures.lexical import LexicalIndex

    lexical = LexicalIndex(RowsReader(folder / ROWS_FILE).texts(plan.lexical_column))
    if not lexical.n_words:
        raise DataError(
            f"{plan.source.path}: no text of {plan.lexical_column!r} has a word (lexical_column); name another column"
        )
    lexical.save(folder / LEXICAL_FOLDER)
    return {
        "column": plan.lexical_column,
        "n_words": lexical.n_words,
        "file_bytes": sum((folder / name).stat().st_size for name in LEXICAL_FILES),
        "versions": {name: version(name) for name in ("bm25s", "rjieba")},
    }


def _warn_if_outgrown(plan: IndexPlan, say: Say) -> None:
    learned = int(plan.before.facts["n_rows_learned"]) if plan.before else 0
    if plan.before and plan.spec.n_lists and plan.spec.n_rows > _OUTGROWN * learned:
        say(f"warning: its lists were learned from {learned:,} rows and now hold {plan.spec.n_rows:,}; build it anew for speed")


def _opened_whole(folder: Path, before: Sidecar) -> FaissIndex:
    from ebr.retrieval.index.faiss_index import read_index
    from ebr.retrieval.index.store import INDEX_FILE, check_index

    index = read_index(folder / INDEX_FILE)
    check_index(folder / INDEX_FILE, index, before)
    return index


def _query_vectors(plan: IndexPlan) -> Any:  # noqa: ANN401
    """Vectors of real queries, a seeded sample in a seeded order; None where rows are to be the queries."""
    import numpy as np

    from ebr.data.vectors.batch import sample_rows
    from ebr.retrieval.index.source import Gathered

    if plan.queries is None:
        return None
    rng = np.random.default_rng(plan.config.seed)
    drawn = Gathered(sample_rows(plan.queries.n_rows, plan.config.sample_queries, rng), plan.queries.dim)
    for block in plan.queries.blocks():
        drawn.take(block)
    return drawn.vectors[rng.permutation(len(drawn.rows))]


def _measured(index: FaissIndex, exact: ExactNeighbours | None, plan: IndexPlan) -> tuple[IndexQuality | None, dict[str, int]]:
    """What the index finds with the effort that is chosen for it, and that effort; of before where nothing can be measured."""
    from ebr.retrieval.index.recall import CUT, measure, tune

    if exact is None:
        return None, plan.before.effort if plan.before else index.default_effort
    tuned = tune(index, exact, lambda effort: plan.spec.cost(effort, CUT), min_recall=plan.config.min_recall)
    return measure(index, exact, tuned.effort), tuned.effort


def _record(
    plan: IndexPlan,
    index: FaissIndex,
    folder: Path,
    quality: IndexQuality | None,
    effort: dict[str, int],
    grown: int,
    lexical: dict[str, Any] | None,
) -> dict[str, Any]:
    """The sidecar: what the index is, of which vectors and which model, how it is searched, and what that finds."""
    from ebr.retrieval.index.faiss_index import library_version
    from ebr.retrieval.index.store import INDEX_FILE, KIND, LEXICAL_FILES, ROWS_FILE

    spec, source, before = plan.spec, plan.source, plan.before
    files = {name: hash_file(folder / name) for name in (INDEX_FILE, ROWS_FILE, *(LEXICAL_FILES if lexical else ()))}
    return {
        "kind": KIND,
        "index_kind": spec.kind.value,
        "factory": spec.factory,
        "n_lists": spec.n_lists,
        "n_rows_learned": before.facts["n_rows_learned"] if before else spec.n_rows,
        "metric": source.metric.value,
        "dim": spec.dim,
        "n_rows": index.n_rows,
        "id_column": source.id_column,
        "columns": list(source.columns),
        "lexical": lexical,
        "files": files,
        **plan.model,
        "embeddings": [*(before.facts["embeddings"] if before else []), source.facts()],
        "search_effort": effort,
        "recall": _recall_record(plan, quality),
        "memory": {
            "predicted_bytes": spec.predicted_bytes,
            "file_bytes": (folder / INDEX_FILE).stat().st_size,
            "building_bytes": grown,
        },
        "config": plan.config.to_json(),
        "versions": {**library_versions(), "faiss": library_version()},
    }


def _cut_texts(record: Mapping[str, Any]) -> CutTexts:
    cut = CutTexts()
    for one in record["embeddings"]:
        if (known := one.get("cut")) is not None:
            cut = CutTexts(length=known["length"]).and_more(cut.n_texts + known["n_texts"], cut.n_cut + known["n_cut"])
    return cut


def _recall_record(plan: IndexPlan, quality: IndexQuality | None) -> dict[str, Any] | None:
    """What was measured, of how many rows; after rows were added without their like to compare with: what it was before."""
    config = plan.config
    if quality is None:
        return plan.before.facts["recall"] if plan.before else None
    return {
        "recall@10": quality.recall,
        "recall@10_p5": quality.recall_p5,
        "min_recall": config.min_recall,
        "reached": quality.recall >= config.min_recall,
        "n_rows": plan.spec.n_rows,
        "n_queries": quality.n_queries,
        "queries": str(config.query_embeddings.resolve())
        if config.query_embeddings
        else "rows of the index, each without itself",
        "sample_queries": config.sample_queries,
        "seed": config.seed,
        "queries_per_second": {
            "one_at_a_time_one_thread": quality.one_at_a_time,
            "batch": quality.batch,
            "batch_size": quality.batch_size,
            "batch_threads": quality.n_threads,
        },
    }
