"""Look at a model: its ranking of a few texts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.files.write import read_json
from ebr.data.result_tables import DataFrame, Part, Shown, Table
from ebr.data.text.terminal_text import cut_text, pad_text, text_columns
from ebr.errors import DataError

_TEXT_COLUMNS = 72
_SHOWN = 5
_ROW = "{:>4}  {}  {:>7}"
# What a reader of the folder needs to know about pooling, prompts and lengths.
_ENCODER_FILES = ("1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json")


@dataclass(frozen=True, eq=False)
class Ranking(Shown):
    """Q queries against N documents, in the order in which they were given."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    query_vectors: npt.NDArray[np.float32] = field(repr=False)
    """(Q, D) rows, of length 1 where the similarity is the cosine."""
    document_vectors: npt.NDArray[np.float32] = field(repr=False)
    """(N, D) rows likewise."""
    scores: npt.NDArray[np.float32] = field(repr=False)
    """(Q, N) similarities."""
    order: npt.NDArray[np.int64] = field(repr=False)
    """(Q, N) rows of the documents by falling similarity; equal ones stand as they were given."""
    model_folder: Path | None
    """What AutoModel and AutoTokenizer can open, with pooling, prompts and lengths beside the weights. None for a hub id, for a
    folder that sentence-transformers did not write, for a model with modules of its own for queries, and for an adapter whose
    base is no longer where it was."""
    similarity: str = "cosine"
    """What the scores are: cosine, or dot for a model that was made for it."""

    def summary(self) -> str:
        """The table."""
        return self.table()

    def parts(self) -> list[Part]:
        """A table for each query, of its best documents."""
        return [part for row, query in enumerate(self.queries) for part in (query, self._ranked(row).first(_SHOWN))]

    def to_frame(self) -> DataFrame:
        """A row for each query and document, best first: query, rank, document, and the similarity by its name."""
        ranked = [{"query": query, **one} for row, query in enumerate(self.queries) for one in self._ranked(row).records()]
        return Table.of(ranked).to_frame()

    def _ranked(self, row: int) -> Table:
        order = self.order[row].tolist()
        columns = {"rank": range(1, len(order) + 1), "document": [self.documents[place] for place in order]}
        return Table({**columns, self.similarity: self.scores[row, order].tolist()}, {self.similarity: ".4f"})

    def table(self, k: int = _SHOWN) -> str:
        """Each query and its k best documents with their similarities, as aligned text; long texts are cut.

        Raises ValueError when k is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; a table shows at least 1 document of each query")
        order = self.order[:, :k]
        shown = {row: cut_text(self.documents[row], _TEXT_COLUMNS) for row in np.unique(order).tolist()}
        columns = max(text_columns("document"), *map(text_columns, shown.values()))
        lines = [_ROW.format("rank", pad_text("document", columns), self.similarity)]
        for query, rows, scores in zip(self.queries, order.tolist(), self.scores, strict=True):
            lines += ["", cut_text(query, _TEXT_COLUMNS)]
            lines += [
                _ROW.format(rank, pad_text(shown[row], columns), f"{scores[row]:.4f}") for rank, row in enumerate(rows, start=1)
            ]
        return "\n".join(lines)


def rank_texts(
    model_path: str | Path,
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    trust_remote_code: bool = False,
    pooling: str | None = None,
    base_model_path: str | None = None,
) -> Ranking:
    """Rank the documents for each query, with the prompts, pooling and lengths that the model was saved with.

    By cosine, or by inner product for a model that was made for it. model_path: a merged or whole model's folder, an adapter's
    folder, the embedded model's name, or a hub id. pooling: None = the model's own. base_model_path: where the base of an
    adapter lies now; None = where its files say.
    Raises DataError when there is nothing to rank, ModelError when the model cannot be found or loaded, or gives nan.
    """
    from ebr.data.vectors.exact_search import exact_search
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.encoder import load_encoder

    _check_texts("queries", queries)
    _check_texts("documents", documents)
    model = load_encoder(str(model_path), trust_remote_code=trust_remote_code, pooling=pooling, base_model_path=base_model_path)
    encoder = RetrievalEncoder(model, show_progress=False)
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
        similarity=encoder.similarity,
    )


def _check_texts(what: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise DataError(f"{what}: is one text; give a list of texts, like [{texts[:40]!r}]")
    if not texts:
        raise DataError(f"{what}: is empty; give at least one text")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"{what}: number {number} is {text!r}, not a text")


def _plain_folder(model_path: str) -> Path | None:
    from ebr.model.encoder.routes import has_routes
    from ebr.model.origin import ADAPTER_CONFIG, is_adapter, looks_like_hub_id, resolve_model

    source = resolve_model(model_path)
    folder = Path(source.location)
    if not all((folder / file).is_file() for file in _ENCODER_FILES) or has_routes(folder):
        return None
    if is_adapter(source):
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")  # as other programs read it
        if not base or not (Path(base).is_dir() or looks_like_hub_id(base)):
            return None
    return folder
