"""An index of a million vectors: how long it takes to build, how much memory, what it finds, and how fast.

The vectors are drawn from a mixture of Gaussians that is fitted to the documents of the sample corpus, embedded by
all-MiniLM-L6-v2; the number of its components is the one that gives held-out documents the highest likelihood. The queries are
the corpus's own, embedded as queries. Both kinds are built by `ebr index` itself, and asked without looking up ids and columns.

    ebr sample && python benchmarks/index.py                 # about 10 minutes on two cores, 3 GB of disk, 5 GB of memory
    python benchmarks/index.py --rows 50000 --json out.json

The target: auto finds 0.95 of the ten best on average, at 20 times flat's rate, one query at a time on one thread. The exit
code says whether it holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.lib.format import open_memmap
from sklearn.mixture import GaussianMixture

from ebr import IndexConfig, build_index
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.files.write import hash_file, read_manifest
from ebr.data.vectors.embeddings import write_embeddings, write_embeddings_manifest
from ebr.data.vectors.exact_search import exact_search
from ebr.data.vectors.formats import VectorFormat, files_of
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.encoder.encoder import load_encoder
from ebr.retrieval.index.faiss_index import FaissIndex, read_index, threads
from ebr.retrieval.index.recall import CUT

CORPUS = Path("datasets/api_docs")
MODEL, DIM = "all-MiniLM-L6-v2", 384
N_COMPONENTS = (1, 8, 16, 32, 64)
MIN_RECALL, MIN_SPEEDUP = 0.95, 20
BATCH = 256
BLOCK = 65_536
SEED = 0


@dataclass(frozen=True)
class Row:
    """What one kind costs, and what it gives."""

    kind: str
    build_s: float
    predicted_bytes: int
    file_bytes: int
    opened_bytes: int
    """By how much the process grew when it opened the index; a little less than that where it reused what it had given back."""
    recall: float
    recall_p5: float
    one_at_a_time: float
    batch: float
    effort: dict[str, int]


def real_vectors() -> tuple[np.ndarray, np.ndarray]:
    """(queries, documents) of the sample corpus, unit rows."""
    if not (CORPUS / "corpus.jsonl").is_file():
        sys.exit(f"{CORPUS}: the sample corpus is not there; build it with: ebr sample")
    dataset = read_evaluation_set(CORPUS)
    encoder = RetrievalEncoder(load_encoder(MODEL, max_seq_length=128))
    return encoder.encode_queries(dataset.queries), encoder.encode_documents(dataset.documents)


def fitted_mixture(documents: np.ndarray) -> GaussianMixture:
    """Gaussians that share one full covariance; as many as explain held-out documents best."""
    order = np.random.default_rng(SEED).permutation(len(documents))
    kept, held_out = documents[order[len(order) // 6 :]], documents[order[: len(order) // 6]]

    def fit(n_components: int, rows: np.ndarray) -> GaussianMixture:
        mixture = GaussianMixture(n_components, covariance_type="tied", reg_covar=1e-5, max_iter=10, random_state=SEED)
        return mixture.fit(rows)

    scores = {n_components: fit(n_components, kept).score(held_out) for n_components in N_COMPONENTS}
    best = max(scores, key=scores.__getitem__)
    print(f"mixture: {best} components, log-likelihood of held-out documents {scores[best]:.1f} a document")
    return fit(best, documents)


def write_drawn(path: Path, mixture: GaussianMixture, n_rows: int) -> None:
    """n_rows unit vectors of the mixture as float16 npy with its columns and manifest; never all in memory."""
    rng = np.random.default_rng(SEED)
    spread = np.linalg.cholesky(mixture.covariances_).astype(np.float32)
    matrix = open_memmap(path, mode="w+", dtype=np.float16, shape=(n_rows, DIM))
    for start in range(0, n_rows, BLOCK):
        count = min(BLOCK, n_rows - start)
        means = mixture.means_[rng.choice(len(mixture.weights_), count, p=mixture.weights_)].astype(np.float32)
        rows = means + rng.standard_normal((count, DIM), dtype=np.float32) @ spread.T
        matrix[start : start + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix.flush()
    del matrix
    columns = write_ids(path, n_rows)
    files = {file.name: hash_file(file) for file in files_of(path, VectorFormat.NPY)}
    write_embeddings_manifest(
        path,
        VectorFormat.NPY,
        files=files,
        delimiter="\x01",
        dtype="float16",
        dim=DIM,
        n_rows=n_rows,
        columns=columns,
        facts={},
    )


def write_ids(path: Path, n_rows: int) -> list[str]:
    """The file of columns beside a matrix."""
    import pyarrow as pa

    from ebr.data.vectors.npy import rows_path
    from ebr.data.vectors.parquet import write_parquet

    write_parquet(rows_path(path), pa.table({"id": pa.array([f"row {row}" for row in range(n_rows)])}), None)
    return ["id"]


def measured(kind: str, vectors: Path, tuning: Path, queries: np.ndarray, exact: np.ndarray, scratch: Path) -> Row:
    """Build one kind, with the effort tuned on the queries of one file; open it, and ask it the other queries."""
    folder = scratch / f"index_{kind}"
    result = build_index(
        IndexConfig(
            embeddings_path=vectors,
            index_path=folder,
            kind=kind,
            query_embeddings=tuning,
            min_recall=MIN_RECALL,
            sample_queries=len(queries),
        )
    )
    print(result.summary(), "\n", flush=True)
    before = psutil.Process().memory_info().rss
    index, effort = read_index(folder / "index.faiss"), (read_manifest(folder) or {})["search_effort"]
    opened = psutil.Process().memory_info().rss - before
    _, found = index.search(queries, CUT, effort)
    recalls = [len(set(ours) & set(best)) / CUT for ours, best in zip(found.tolist(), exact.tolist(), strict=True)]
    return Row(
        kind=result.spec.kind.value if kind == "auto" else kind,
        build_s=result.build_seconds,
        predicted_bytes=result.spec.predicted_bytes,
        file_bytes=result.file_bytes,
        opened_bytes=opened,
        recall=float(np.mean(recalls)),
        recall_p5=float(np.percentile(recalls, 5)),
        one_at_a_time=one_at_a_time(index, queries, effort),
        batch=in_batches(index, queries, effort),
        effort=effort,
    )


def one_at_a_time(index: FaissIndex, queries: np.ndarray, effort: dict[str, int]) -> float:
    """Queries a second on one thread; every query, or as many as ten seconds allow."""
    index.search(queries[:1], CUT, effort)
    with threads(1):
        started = time.perf_counter()
        for n_done, query in enumerate(queries, start=1):  # noqa: B007
            index.search(query[None], CUT, effort)
            if time.perf_counter() - started > 10:
                break
        return n_done / (time.perf_counter() - started)


def in_batches(index: FaissIndex, queries: np.ndarray, effort: dict[str, int]) -> float:
    """Queries a second on one thread, 256 at once; the better of two."""
    batch = np.resize(queries, (BATCH, DIM))
    with threads(1):
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            index.search(batch, CUT, effort)
            seconds.append(time.perf_counter() - started)
    return BATCH / min(seconds)


def exact_rows(queries: np.ndarray, vectors: Path) -> np.ndarray:
    """(Q, 10) rows of the true ten best."""
    return exact_search(queries, np.load(vectors, mmap_mode="r"), CUT)[1]


def main() -> int:
    """Build, ask, print the table; 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--scratch", type=Path, help="where the vectors and indexes lie meanwhile; not set = a temporary folder"
    )
    options = parser.parse_args()
    queries, documents = real_vectors()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        vectors, tuning = scratch / "vectors.npy", scratch / "queries.npy"
        write_drawn(vectors, fitted_mixture(documents), options.rows)
        # Half of the real queries tune the search, the other half are asked here.
        write_embeddings(tuning, {}, queries[1::2])
        asked = queries[::2]
        exact = exact_rows(asked, vectors)
        rows = [measured(kind, vectors, tuning, asked, exact, scratch) for kind in ("flat", "auto")]
    return report(rows, options.rows, len(asked), options.json)


def report(rows: list[Row], n_rows: int, n_queries: int, path: Path | None) -> int:
    """Print the table and the verdict; write the numbers."""
    heads = ("kind", "build s", "predicted", "file", "opened", "recall", "p5", "q/s 1", f"q/s {BATCH}")
    print(f"{n_rows:,} vectors of {DIM}, {n_queries} real queries, recall@{CUT}; queries/s on one thread")
    print("{:<12} {:>8} {:>10} {:>9} {:>9} {:>7} {:>5} {:>8} {:>8}".format(*heads))
    for row in rows:
        memory = " ".join(f"{n_bytes / 1e6:>7,.0f}MB" for n_bytes in (row.predicted_bytes, row.file_bytes, row.opened_bytes))
        quality = f"{row.recall:>7.4f} {row.recall_p5:>5.2f} {row.one_at_a_time:>8,.1f} {row.batch:>8,.0f}"
        print(f"{row.kind:<12} {row.build_s:>8,.0f}  {memory} {quality}  {row.effort or ''}")
    flat, auto = rows
    speedup = auto.one_at_a_time / flat.one_at_a_time
    holds = auto.recall >= MIN_RECALL and speedup >= MIN_SPEEDUP
    verdict = "holds" if holds else "is missed"
    print(f"auto against flat, one at a time: {speedup:.1f} x at recall {auto.recall:.4f}: the target {verdict}")
    if path:
        numbers: dict[str, Any] = {"n_rows": n_rows, "n_queries": n_queries, "speedup": speedup}
        numbers["rows"] = [vars(row) for row in rows]
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
