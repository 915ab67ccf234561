"""Look at a model: its ranking of a few texts of one's own, and its metrics beside those of another model."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ebr.config import FinetuneConfig
from ebr.data.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.files import read_json
from ebr.errors import DataError
from ebr.workflow.speech import Say

if TYPE_CHECKING:
    from ebr.retrieval.evaluation import Comparison, Evaluation

_TEXT_COLUMNS = 72
_ROW = "{:>4}  {}  {:>7}"
# What a reader of the folder needs to know about pooling, prompts and lengths.
_ENCODER_FILES = ("1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Q queries against N documents, in the order in which they were given."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    query_vectors: npt.NDArray[np.float32] = field(repr=False)
    """(Q, D) unit rows."""
    document_vectors: npt.NDArray[np.float32] = field(repr=False)
    """(N, D) unit rows."""
    scores: npt.NDArray[np.float32] = field(repr=False)
    """(Q, N) cosines."""
    order: npt.NDArray[np.int64] = field(repr=False)
    """(Q, N) rows of the documents by falling cosine; equal ones stand as they were given."""
    model_folder: Path | None
    """What AutoModel and AutoTokenizer can open, with pooling, prompts and lengths beside the weights. None for a hub id, for a
    folder that sentence-transformers did not write, and for an adapter whose base is no longer where it was."""

    def table(self, k: int = 5) -> str:
        """Each query and its k best documents with their cosines, as aligned text; long texts are cut.

        Raises ValueError when k is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; a table shows at least 1 document of each query")
        order = self.order[:, :k]
        shown = {row: _cut(self.documents[row], _TEXT_COLUMNS) for row in np.unique(order).tolist()}
        columns = max(_columns("document"), *map(_columns, shown.values()))
        lines = [_ROW.format("rank", _pad("document", columns), "cosine")]
        for query, rows, scores in zip(self.queries, order.tolist(), self.scores, strict=True):
            lines += ["", _cut(query, _TEXT_COLUMNS)]
            lines += [
                _ROW.format(rank, _pad(shown[row], columns), f"{scores[row]:.4f}") for rank, row in enumerate(rows, start=1)
            ]
        return "\n".join(lines)


def rank_texts(
    model_path: str | Path, queries: Sequence[str], documents: Sequence[str], *, trust_remote_code: bool = False
) -> Ranking:
    """Rank the documents for each query by cosine, with the prompts, pooling and lengths that the model was saved with.

    model_path: a merged or whole model's folder, an adapter's folder, the embedded model's name, or a hub id.
    Raises DataError when there is nothing to rank, ModelError when the model cannot be found or loaded, or gives nan.
    """
    from ebr.inference.engines import RetrievalEncoder
    from ebr.model.encoder import load_encoder
    from ebr.retrieval.search import exact_search

    _check_texts("queries", queries)
    _check_texts("documents", documents)
    encoder = RetrievalEncoder(load_encoder(str(model_path), trust_remote_code=trust_remote_code), show_progress=False)
    query_vectors, document_vectors = encoder.encode_queries(queries), encoder.encode_documents(documents)
    best_first, order = exact_search(query_vectors, document_vectors, len(documents))
    scores = np.empty_like(best_first)
    np.put_along_axis(scores, order, best_first, axis=1)
    return Ranking(
        queries=tuple(queries),
        documents=tuple(documents),
        query_vectors=query_vectors,
        document_vectors=document_vectors,
        scores=scores,
        order=order,
        model_folder=_plain_folder(str(model_path)),
    )


def compare_models(
    base_path: str | Path,
    tuned_path: str | Path,
    eval_dataset: str | Path,
    *,
    trust_remote_code: bool = False,
    batch_size: int = 32,
    say: Say = print,
) -> Comparison:
    """Evaluate two models on one evaluation folder, each with the prompts and lengths that it was saved with.

    Training reads its base at the tuned model's length, so that its figures for the base may differ a little from these.
    Raises DataError when the folder cannot be read, ModelError when a model cannot be found or loaded.
    """
    from ebr.model.encoder import resolve_model
    from ebr.retrieval.evaluation import compare

    dataset = read_evaluation_set(Path(eval_dataset))
    paths = {"base": str(base_path), "tuned": str(tuned_path)}
    for path in paths.values():
        resolve_model(path)  # a wrong second path would otherwise show only after the first evaluation
    before, after = (_evaluate(role, path, dataset, trust_remote_code, batch_size, say) for role, path in paths.items())
    return compare(before, after, seed=FinetuneConfig.model_fields["seed"].default)


def _evaluate(role: str, path: str, dataset: EvaluationSet, trust_remote_code: bool, batch_size: int, say: Say) -> Evaluation:
    from ebr.inference.engines import RetrievalEncoder
    from ebr.model.encoder import load_encoder
    from ebr.retrieval.evaluation import evaluate_encoder

    model = load_encoder(path, trust_remote_code=trust_remote_code)
    evaluation = evaluate_encoder(RetrievalEncoder(model, batch_size=batch_size), dataset)
    say(f"{role} {path}: nDCG@10 {evaluation.mean('ndcg@10'):.4f} on {dataset.name}")
    return evaluation


def _check_texts(what: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise DataError(f"{what}: is one text; give a list of texts, like [{texts[:40]!r}]")
    if not texts:
        raise DataError(f"{what}: is empty; give at least one text")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"{what}: number {number} is {text!r}, not a text")


def _plain_folder(model_path: str) -> Path | None:
    from ebr.model.encoder import ADAPTER_CONFIG, resolve_model

    folder = Path(resolve_model(model_path).location)
    if not all((folder / file).is_file() for file in _ENCODER_FILES):
        return None
    if (folder / ADAPTER_CONFIG).is_file():
        base = Path(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"])
        if base.is_absolute() and not base.is_dir():
            return None
    return folder


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes: two for a Chinese character, none for a combining mark."""
    return sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, columns: int) -> str:
    """A text on one line, closed with … where it is longer than so many columns."""
    line = " ".join(text.split())
    if _columns(line) <= columns:
        return line
    ends = np.cumsum([_character_columns(character) for character in line])
    # One column is kept for the ellipsis.
    return line[: int(np.searchsorted(ends, columns - 1, side="right"))].rstrip() + "…"


def _pad(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))
