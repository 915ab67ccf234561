"""Maps: openTSNE against scikit-learn, a redraw, a million rows, and the interactive page.

    python benchmarks/maps.py tsne --rows 20000 100000     # both engines one after the other, time and trustworthiness
    python benchmarks/maps.py redraw --rows 100000         # the map again with another title, column and format
    python benchmarks/maps.py million --rows 1000000       # t-SNE of a sample, the rest placed: time and peak memory
    python benchmarks/maps.py page --rows 100000           # size, time until ready and frame time in headless chromium

The vectors (384 numbers) are those of --vectors FILE.npy, or drawn: clusters of unequal size round centres whose numbers fall
off like those of real embeddings. scikit-learn runs up to --sklearn_up_to rows only: its time grows faster than the rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebr import VisualizationConfig, visualize_embeddings
from ebr.data.vectors.embeddings import write_embeddings

DIM, N_CENTRES, N_LABELS = 384, 300, 20
TRUST_ROWS = 5_000
SEED = 0


def drawn_vectors(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 384) float32 unit rows and the centre (N,) of each."""
    rng = np.random.default_rng(SEED)
    falling = (1 + np.arange(DIM)) ** -0.5
    centres = rng.normal(size=(N_CENTRES, DIM)).astype(np.float32) * falling
    shares = rng.dirichlet(np.full(N_CENTRES, 1.5))
    own = rng.choice(N_CENTRES, n_rows, p=shares)
    vectors = np.empty((n_rows, DIM), np.float32)
    for start in range(0, n_rows, 50_000):
        part = own[start : start + 50_000]
        vectors[start : start + len(part)] = centres[part] + 0.7 * rng.normal(size=(len(part), DIM)) * falling
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, own


def given_vectors(options: argparse.Namespace, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of --vectors, or drawn ones."""
    if options.vectors is None:
        return drawn_vectors(n_rows)
    vectors = np.load(options.vectors, mmap_mode="r", allow_pickle=False)[:n_rows]
    return np.asarray(vectors, np.float32), np.zeros(len(vectors), np.int64)


def write_rows(path: Path, vectors: np.ndarray, own: np.ndarray) -> None:
    """A vector file with an id, two columns to colour by and a text of about 60 characters a row."""
    texts = [f"row {row} of cluster {place}: a text about as long as a title of a product" for row, place in enumerate(own)]
    columns = {
        "id": [str(row) for row in range(len(vectors))],
        "label": [f"label {place % N_LABELS}" for place in own],
        "centre": [f"centre {place}" for place in own],
        "text": texts,
    }
    write_embeddings(path, columns, vectors)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


# ---------------------------------------------------------------- questions


def compare_engines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """t-SNE by either engine on the same vectors, from the same start."""
    from ebr.visualization.project.projection import project_tsne
    from ebr.visualization.project.trust import map_trust

    rows = []
    for wanted in options.rows or [20_000, 100_000]:
        vectors, _ = given_vectors(options, wanted)
        n_rows = len(vectors)
        engines = ["opentsne", *(["sklearn"] if n_rows <= options.sklearn_up_to else [])]
        settings = {"perplexity": None, "learning_rate": None, "initialization": None, "seed": SEED}
        for engine in engines:
            for reproducible in (True, False) if engine == "opentsne" else (False,):
                mode = "reproducible" if reproducible else "fast"
                project = partial(project_tsne, vectors, engine=engine, reproducible=reproducible, **settings)
                seconds, projection = timed(project)
                trust = map_trust(vectors, projection.coords, seed=SEED, max_rows=TRUST_ROWS)
                row = {"rows": n_rows, "engine": engine, "mode": mode, "seconds": round(seconds, 1)}
                rows.append(row | {"trustworthiness": trust.trustworthiness.value, "overlap": trust.neighbour_overlap.value})
                say_row(rows[-1])
    return rows


def time_redraw(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A map, then the same vectors under another title, column and format: by a new process each, as a user would."""
    rows = []
    for wanted in options.rows or [100_000]:
        with tempfile.TemporaryDirectory() as scratch:
            vectors, own = given_vectors(options, wanted)
            n_rows = len(vectors)
            for suffix in (".parquet", ".txt"):
                source = Path(scratch) / f"vectors{suffix}"
                os.environ["EBR_CACHE_DIR"] = f"{scratch}/cache{suffix}"
                write_rows(source, vectors, own)
                base = {"embeddings_path": str(source), "max_points": n_rows, "method": "pca" if options.quick else "tsne"}
                first = {"output_path": f"{scratch}/map.png"}
                changes = {
                    "first": first,
                    "title": first | {"title": "Another title"},
                    "column": first | {"label_column": "centre"},
                    "svg": {"output_path": f"{scratch}/map.svg"},
                    "no page": first | {"page": False, "title": "A third"},
                    "page alone": {"output_path": f"{scratch}/map.html"},
                }
                for name, change in changes.items():
                    row = in_process(draw, base | change)
                    rows.append({"rows": n_rows, "file": suffix, "drawn": name, **row})
                    say_row(rows[-1])
    return rows


def measure_million(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A map of all rows: a sample is projected and the rest placed."""
    rows = []
    for wanted in options.rows or [1_000_000]:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            os.environ["EBR_CACHE_DIR"] = f"{scratch}/cache"
            source = Path(scratch) / "vectors.parquet"
            vectors, own = given_vectors(options, wanted)
            n_rows = len(vectors)
            write_rows(source, vectors, own)
            del vectors, own
            config = {"embeddings_path": str(source), "output_path": f"{scratch}/map.png", "page": False, "method": "tsne"}
            config |= {"mode": "fast", "max_points": 20_000, "over_max_points": "place"}
            rows.append({"rows": n_rows, **in_process(draw, config)})
            say_row(rows[-1])
    return rows


def measure_pages(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The interactive page in headless chromium."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from browser import measure_page

    rows = []
    for wanted in options.rows or [100_000]:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "vectors.parquet"
            vectors, own = given_vectors(options, wanted)
            n_rows = len(vectors)
            write_rows(source, vectors, own)
            page = Path(scratch) / "map.html"
            draw({"embeddings_path": str(source), "max_points": n_rows, "method": "pca", "output_path": str(page)})
            rows.append({"rows": n_rows, **measure_page(page)})
            say_row(rows[-1])
    return rows


# ---------------------------------------------------------------- running


def draw(config: dict[str, Any]) -> None:
    """One map, in silence."""
    visualize_embeddings(VisualizationConfig(**config), say=lambda line: None)


def in_process(work: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> dict[str, Any]:
    """Work in a process of its own: seconds with its start and imports, and its peak memory."""
    context = multiprocessing.get_context("spawn")
    seconds = context.Queue()
    process = context.Process(target=_report, args=(work, config, seconds))
    took, _ = timed(lambda: (process.start(), process.join()))
    if process.exitcode:
        raise SystemExit(f"{config}: exit code {process.exitcode}")
    return {"seconds": round(took, 1), "peak_mb": seconds.get()}


def _report(work: Callable[[dict[str, Any]], None], config: dict[str, Any], answer: Any) -> None:  # noqa: ANN401
    work(config)
    # Not getrusage: its peak is handed on from the parent, which has just made the vectors.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    answer.put(round(int(status["VmHWM"].split()[0]) / 1024))


def say_row(row: dict[str, Any]) -> None:
    """One line, as soon as it is known."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


QUESTIONS = {"tsne": compare_engines, "redraw": time_redraw, "million": measure_million, "page": measure_pages}


def main() -> int:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--rows", type=int, nargs="+", help="how many vectors; several are done one after the other")
    parser.add_argument("--vectors", type=Path, help="(N, D) .npy to use instead of drawn ones")
    parser.add_argument("--sklearn_up_to", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="redraw: by PCA, for what is timed is the redraw")
    parser.add_argument("--scratch", type=Path, help="folder for large files; default: the system's")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    rows = QUESTIONS[options.question](options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
