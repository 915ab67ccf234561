"""A real retrieval set from the documentation of the installed Python libraries.

The query is the one-line summary of a public function, class or method; its positive is the description that follows, without
the summary and without the object's own name; the label is the library. Libraries are read, not imported.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path

from ebr.data.files.write import write_aside
from ebr.data.progress import progress_bar
from ebr.data.result_tables import Part, Shown
from ebr.data.sample.docstrings import ApiDoc, read_api_docs, source_files
from ebr.data.text.counted import counted
from ebr.data.text.near_duplicates import Groups
from ebr.errors import DataError

LIBRARIES = (
    *(
        "numpy",
        "scipy",
        "pandas",
        "sklearn",
        "torch",
        "matplotlib",
        "networkx",
        "fontTools",
        "PIL",
        "jinja2",
        "pydantic",
        "joblib",
    ),
    *("transformers", "sentence_transformers", "datasets", "huggingface_hub", "accelerate", "peft", "fsspec", "requests"),
    *("openTSNE", "umap", "pyarrow"),
)
"""Import names of the libraries that are read where they are installed; together they fill the default sizes."""

NEAR_DUPLICATE = 0.8
"""Jaccard similarity of two texts' words from which they count as the same."""

# For every query two documents answer no query: finding the right one should not be trivial.
_DOCUMENTS_PER_QUERY = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleCorpus(Shown):
    """What was written, and from which libraries. A text is on one side only: training, or evaluation."""

    training_file: Path
    table_file: Path
    evaluation_dir: Path
    n_train_pairs: int
    n_eval_queries: int
    n_eval_documents: int
    objects_by_library: dict[str, int]
    versions: dict[str, str]
    shortfall: str

    def summary(self) -> str:
        """What was written, for people."""
        libraries = ", ".join(f"{name} {self.versions[name]} ({count})" for name, count in self.objects_by_library.items())
        lines = [
            f"{self.training_file}: {counted(self.n_train_pairs, 'training pair')}",
            f"{self.evaluation_dir}: {self.n_eval_queries:,} queries, {self.n_eval_documents:,} documents",
            f"{self.table_file}: {counted(sum(self.objects_by_library.values()), 'row')} to embed, labelled by library",
            f"from the documentation of {libraries}",
            self.shortfall,
        ]
        return "\n".join(filter(None, lines))

    def parts(self) -> list[Part]:
        """The same."""
        return [self.summary()]


def sample_places(output_root: Path) -> tuple[Path, Path, Path]:
    """Where the training file, the table and the evaluation folder of a sample go."""
    return (
        output_root / "train_text" / "api_docs.json",
        output_root / "infer_data" / "api_docs.csv",
        output_root / "datasets" / "api_docs",
    )


def build_sample(
    output_root: Path, *, train_pairs: int, eval_queries: int, seed: int, libraries: Sequence[str] = LIBRARIES
) -> SampleCorpus:
    """Write train_text/api_docs.json, infer_data/api_docs.csv and datasets/api_docs/ below `output_root`.

    train_pairs, eval_queries: how many at most; both shrink in proportion when the libraries hold less, and the result says so.
    Objects of one name and near-duplicate texts are kept once, so none is on both sides. The same seed and the same versions of
    the libraries give the same bytes. Raises DataError when fewer than two usable descriptions are found.
    """
    package_dirs = _package_dirs(libraries)
    docs = _without_duplicates(_read_all(package_dirs.values()))
    if len(docs) < 2:
        searched = ", ".join(package_dirs) or f"none of {', '.join(libraries)} is installed"
        raise DataError(
            f"no documented functions or classes to build a sample from (searched: {searched}); install numpy or scipy"
        )
    wanted = train_pairs + eval_queries * _DOCUMENTS_PER_QUERY
    chosen = _balanced(docs, wanted, random.Random(seed))
    n_train = len(chosen) * train_pairs // wanted
    train, held_out = chosen[:n_train], chosen[n_train:]
    counts = Counter(doc.library for doc in chosen)
    training_file, table_file, evaluation_dir = sample_places(output_root)
    corpus = SampleCorpus(
        training_file=training_file,
        table_file=table_file,
        evaluation_dir=evaluation_dir,
        n_train_pairs=n_train,
        n_eval_queries=min(eval_queries, len(held_out)),
        n_eval_documents=len(held_out),
        objects_by_library=dict(sorted(counts.items())),
        versions=_versions(sorted(counts)),
        shortfall=_shortfall(len(chosen), wanted),
    )
    _write_training(corpus.training_file, train)
    _write_table(corpus.table_file, chosen)
    _write_evaluation(corpus.evaluation_dir, held_out[: corpus.n_eval_queries], held_out)
    return corpus


def _shortfall(n_found: int, n_wanted: int) -> str:
    if n_found == n_wanted:
        return ""
    shortfall = f"only {n_found:,} of {n_wanted:,} objects found: both sides are smaller than asked"
    _log.warning("%s", shortfall)
    return shortfall


def _package_dirs(libraries: Sequence[str]) -> dict[str, Path]:
    """Where the installed ones lie. Finding the spec of a top-level package does not import it."""
    specs = {library: find_spec(library) for library in libraries}
    # A folder such as ./datasets has a spec too, but no __init__.py and therefore no origin.
    return {
        library: Path(spec.origin).parent
        for library, spec in specs.items()
        if spec and spec.origin and spec.submodule_search_locations
    }


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    distributions = metadata.packages_distributions()
    return {
        name: metadata.version(distributions[name][0]) if name in distributions else "of unknown version" for name in libraries
    }


def _read_all(package_dirs: Iterable[Path]) -> list[ApiDoc]:
    sources = [(path, package_dir) for package_dir in package_dirs for path in source_files(package_dir)]
    progress = progress_bar(sources, desc="Reading documentation", unit="file")
    return list(chain.from_iterable(read_api_docs(path, package_dir) for path, package_dir in progress))


def _without_duplicates(docs: list[ApiDoc]) -> list[ApiDoc]:
    """One object for all that share a name or nearly a text, so that no query has an answer which the judgements do not know.

    Functions and classes come before methods, so a method stands for a group only where it holds nothing else.
    """
    docs = sorted(docs, key=lambda doc: (doc.is_method, doc.name, doc.summary, doc.description))
    groups = Groups(len(docs))
    groups.join_equal(doc.name.rpartition(".")[2].casefold() for doc in docs)
    groups.join_similar([doc.summary for doc in docs], threshold=NEAR_DUPLICATE)
    groups.join_similar([doc.description for doc in docs], threshold=NEAR_DUPLICATE)
    return [doc for item, doc in enumerate(docs) if groups.root(item) == item]


def _balanced(docs: list[ApiDoc], wanted: int, rng: random.Random) -> list[ApiDoc]:
    """At most `wanted`, in random order: the libraries give one object each in turn until they have no more to give."""
    of_library: defaultdict[str, list[ApiDoc]] = defaultdict(list)
    for doc in rng.sample(docs, len(docs)):
        of_library[doc.library].append(doc)
    queues = [sorted(of_library[library], key=lambda doc: doc.is_method) for library in sorted(of_library)]
    in_turn = [doc for turn in zip_longest(*queues) for doc in turn if doc is not None]
    return rng.sample(in_turn[:wanted], min(wanted, len(in_turn)))


def _write_training(path: Path, docs: list[ApiDoc]) -> None:
    pairs = (_json({"anchor": doc.summary, "positive": doc.description}) for doc in docs)
    _write(path, "[\n" + ",\n".join(pairs) + "\n]\n")


def _write_table(path: Path, docs: list[ApiDoc]) -> None:
    rows = (
        (doc.name, f"{doc.summary}{'' if doc.summary.endswith('?') else '.'} {doc.description}", doc.library) for doc in docs
    )
    by_id = sorted(rows)
    _write(path, "".join("\x01".join(row) + "\n" for row in [("id", "description", "label"), *by_id]))


def _write_evaluation(folder: Path, queried: list[ApiDoc], documents: list[ApiDoc]) -> None:
    # Query ids differ from document ids: some evaluators take equal ids for a query that finds itself, and drop the hit.
    queries = ({"_id": f"query:{doc.name}", "text": doc.summary} for doc in queried)
    corpus = ({"_id": doc.name, "title": "", "text": doc.description} for doc in documents)
    judgements = (f"query:{doc.name}\t{doc.name}\t1\n" for doc in queried)
    _write(folder / "queries.jsonl", "".join(_json(record) + "\n" for record in queries))
    _write(folder / "corpus.jsonl", "".join(_json(record) + "\n" for record in corpus))
    _write(folder / "qrels.tsv", "query-id\tcorpus-id\tscore\n" + "".join(judgements))


def _json(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
