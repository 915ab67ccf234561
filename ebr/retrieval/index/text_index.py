"""An index that is open: texts in, the rows that answer them out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebr.config import IndexConfig
from ebr.data.files.write import read_manifest
from ebr.data.speech import Say, speak
from ebr.data.text.blank import is_blank
from ebr.data.text.cut_texts import CutTexts
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.exact_search import Ids, Scores
from ebr.errors import ConfigError, DataError, ModelError
from ebr.retrieval.index.matches import BM25, RRF, Hits, Match, Mode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.model.compute.local_engine import LocalEngine
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.index.faiss_index import FaissIndex
    from ebr.retrieval.index.store import RowsReader, Sidecar
    from ebr.retrieval.measures.lexical import LexicalIndex

log = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class QueryModel:
    """How the model of an index is loaded, as far as that is not as its sidecar says: see open_index."""

    model_path: str | None = None
    trust_remote_code: bool = False
    pooling: str | None = None
    base_model_path: str | None = None


class TextIndex:
    """An index that is open, and the model that its vectors are of, which is loaded with the first text.

    Made by open_index. sidecar: None for a bare FAISS file. open_lexical: opens BM25 of its rows, which a search by vectors
    does without; gives None for an index of vectors only.
    """

    def __init__(
        self,
        path: Path,
        index: FaissIndex,
        rows: RowsReader | None,
        sidecar: Sidecar | None,
        how: QueryModel = QueryModel(),
        open_lexical: Callable[[], LexicalIndex | None] = lambda: None,
    ) -> None:
        self.path = path
        self.sidecar = sidecar
        self._index = index
        self._rows = rows
        self._how = how
        self._open_lexical = open_lexical
        self.queries_sha256: str | None = None
        """Of the model that queries go through, once it is loaded; None where nothing says which model the vectors are of."""
        self.model_path = how.model_path or (str(self._facts["model"]) if self._facts.get("model") else None)

    @cached_property
    def _lexical(self) -> LexicalIndex | None:
        return self._open_lexical()

    def __len__(self) -> int:
        """Rows in the index."""
        return self._index.n_rows

    @property
    def dim(self) -> int:
        """D, the numbers of a vector."""
        return self._index.dim

    @property
    def cut_queries(self) -> CutTexts:
        """How many of the texts that were searched for are longer than the model reads."""
        # A search by words alone loads no model, and cuts nothing.
        return self._engine.cut_texts if "_engine" in self.__dict__ else CutTexts()

    @property
    def columns(self) -> tuple[str, ...]:
        """What is kept of each row beside its id."""
        return self.sidecar.columns if self.sidecar else ()

    @property
    def _facts(self) -> Mapping[str, Any]:
        return self.sidecar.facts if self.sidecar else {}

    @property
    def _metric(self) -> str:
        return str(self._facts.get("metric", "cosine"))

    @property
    def _is_cosine(self) -> bool:
        return self._metric == "cosine"

    def search(self, texts: Sequence[str], k: int = 10, *, effort: int | None = None, mode: Mode | str = Mode.DENSE) -> Hits:
        """The k best rows of each text, best first; all rows when the index has no more.

        effort: lists (ivf) or candidates (hnsw) looked at; None = as the index was tuned.
        mode: dense, by vectors; lexical, by words, the rows that share one with the text, by BM25; hybrid, both rankings by
        reciprocal rank fusion (Cormack et al. 2009), as the report of an evaluation has it: of the best 100 of each, or k if
        that is more, with equal scores in the order of the rows.
        Raises DataError for what is no text, ModelError when the model is not the one of the index, ConfigError for an effort
        that the index has not, and for a mode that reads words where it has none.
        """
        try:
            mode = Mode(mode)
        except ValueError:
            raise ConfigError(f"mode {mode!r}: is none of {', '.join(one.value for one in Mode)}") from None
        if isinstance(texts, str):
            raise DataError(f"texts: is one text; give a list of texts, like [{texts[:40]!r}]")
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or is_blank(text):
                raise DataError(f"texts: number {number} is {text!r}; there is nothing to search for")
        if not texts:
            return Hits([])
        return Hits(self._search(texts, k, effort, mode), texts)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """N texts → (N, D) float32, as queries of this index. Raises ModelError when the model is not that of the index."""
        return self._engine.encode(list(texts))

    def search_vectors(self, vectors: Vectors, k: int = 10, *, effort: int | None = None) -> Hits:
        """Search by (Q, D) vectors of queries. Raises DataError when their dimension is not the index's, or one is zero."""
        return self._hits(*self._nearest(vectors, k, effort), self._metric)

    def _search(self, texts: Sequence[str], k: int, effort: int | None, mode: Mode) -> Hits:
        if mode is Mode.DENSE:
            return self.search_vectors(self.encode(texts), k, effort=effort)
        from ebr.retrieval.measures.lexical import FUSION_DEPTH, reciprocal_rank_fusion

        if mode is Mode.LEXICAL:
            if effort is not None:
                raise ConfigError("search_effort: mode lexical reads no vectors; leave it out")
            return self._hits(*self._sharing_words(texts, k), BM25)
        depth = max(k, FUSION_DEPTH)
        _, lexical = self._sharing_words(texts, depth)
        scores, dense = self._nearest(self.encode(texts), depth, effort)
        # Equal scores in the order of the rows, as those of BM25 stand: not in that of lists or graphs.
        dense = np.take_along_axis(dense, np.lexsort((dense, -scores), axis=1), axis=1)
        return self._hits(*reciprocal_rank_fusion([lexical, dense], min(k, len(self))), RRF)

    def _sharing_words(self, texts: Sequence[str], k: int) -> tuple[Scores, Ids]:
        """(Q, min(k, N)) BM25 and rows; 0 and -1 where fewer share a word. Raises ConfigError when the index knows no words."""
        from ebr.retrieval.index.store import no_words

        if self._lexical is None:
            raise no_words(self.path, self.sidecar)
        return self._lexical.search(texts, min(_checked(k), len(self)), show_progress=False)

    def _nearest(self, vectors: Vectors, k: int, effort: int | None) -> tuple[Scores, Ids]:
        """(Q, min(k, N)) scores and rows of (Q, D) vectors; -inf and -1 for what is not found."""
        from ebr.retrieval.index.source import scaled

        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(f"queries of shape {vectors.shape}: the index {self.path} needs (Q, {self.dim}); use its own model")
        _checked(k)
        queries = vectors.astype(np.float32)
        broken = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if broken.size:
            raise DataError(f"query {int(broken[0]) + 1}: its vector holds nan or inf; the model that made it is broken")
        if self._is_cosine:
            queries = scaled(queries, [f"query {row + 1}" for row in range(len(queries))], self.path)
        return self._index.search(queries, k, self._effort(effort))

    def _hits(self, scores: Scores, rows: Ids, scored_by: str) -> Hits:
        return Hits(
            [
                Match(rank, score, *self._row(row), scored_by)
                for rank, (score, row) in enumerate(zip(*pair, strict=True), start=1)
                if row >= 0
            ]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        )

    def _row(self, row: int) -> tuple[str, dict[str, str | None]]:
        return self._rows.row(row) if self._rows else (str(row), {})

    def _effort(self, asked: int | None) -> dict[str, int]:
        tuned = dict(self.sidecar.effort) if self.sidecar else self._index.default_effort
        if asked is None:
            return tuned
        main = next((name for name in ("nprobe", "efSearch") if name in tuned), None)
        if main is None:
            raise ConfigError("search_effort: this index looks at every row of each query; leave it out")
        return {**tuned, main: asked}

    @cached_property
    def _engine(self) -> LocalEngine:
        """The model that its queries go through. Raises ModelError when it is absent, or not the one of the index."""
        from ebr.model.compute.local_engine import LocalEngine
        from ebr.model.encoder.encoder import load_encoder
        from ebr.model.encoder.lengths import set_lengths
        from ebr.model.encoder.pooling import pooling_name
        from ebr.model.encoder.prompts import Role
        from ebr.model.origin import resolve_model

        facts = self._facts
        if self._how.model_path is None and self.model_path is not None:
            try:
                resolve_model(self.model_path)
            except ModelError as error:
                raise ModelError(f"{error}; {self.path} names it; give where it lies now with --model_path") from None
        if self.model_path is None:
            raise ModelError(f"model_path: nothing says which model made the vectors of {self.path}; name it")
        pooling, recorded = self._how.pooling, str(facts.get("pooling") or "")
        if recorded and pooling not in (None, recorded):
            raise ConfigError(f"pooling {pooling}: the vectors of {self.path} were pooled by {recorded}; leave it out")
        model = load_encoder(
            self.model_path,
            trust_remote_code=self._how.trust_remote_code,
            # Of several modes at once ("cls+mean") none can be asked for; such a model says so itself.
            pooling=pooling or (recorded if recorded and "+" not in recorded else None),
            base_model_path=self._base_model_path(),
        )
        self.queries_sha256 = self._check_model(model)
        # What is recorded of queries is of the very model that made the vectors. One that only its documents join to it, an
        # adapted model or its base, says itself how its queries are read.
        own = self.queries_sha256 != whole_sha256(facts)
        if not own and (length := facts.get("query_max_len") or facts.get("max_seq_length")) is not None:
            set_lengths(model, length)
        if recorded and pooling_name(model) != recorded:
            raise ModelError(
                f"model {self.model_path!r}: pools by {pooling_name(model)}, the vectors of {self.path} {recorded}"
            )
        engine = LocalEngine(
            model,
            Role.QUERY,
            prompt=None if own else facts.get("query_prompt"),
            normalize_embeddings=self._is_cosine or bool(facts.get("normalized")),
            truncate_dim=facts.get("truncate_dim"),
        )
        if engine.dim != self.dim:
            raise ModelError(f"model {self.model_path!r}: its vectors have {engine.dim} numbers, the index's {self.dim}")
        return engine

    def _base_model_path(self) -> str | None:
        """Where the base of the index's model lies, if that is an adapter: as given, else as recorded, unless it has moved."""
        from ebr.model.origin import is_adapter, resolve_model

        recorded = self._facts.get("base_model_path")
        if self._how.base_model_path is None and recorded and self.model_path and is_adapter(resolve_model(self.model_path)):
            return str(recorded)
        return self._how.base_model_path

    def _check_model(self, model: SentenceTransformer) -> str | None:
        """Refuse a model that does not give the vectors of the index; the sha256 of its weights, None where none is recorded.

        What counts are its documents: a model with modules of its own for queries (ebr adapt) fits an index of its base, and
        the other way round. Raises ModelError that says what differs.
        """
        from ebr.model.encoder.loaded import LoadedModel
        from ebr.model.encoder.routes import document_side, is_routed

        if not self._facts.get("model_sha256"):
            log.warning("%s: nothing says which model made its vectors; %s is taken at your word", self.path, self.model_path)
            return None
        loaded = LoadedModel.of(model)
        differs = self._differences(loaded)
        if differs and is_routed(model):
            differs = self._differences(LoadedModel.of(document_side(model)))
        if differs:
            raise ModelError(
                f"model {self.model_path!r}: is not the model that made the vectors of {self.path} ({'; '.join(differs)}); "
                "give that one with model_path (and trust_remote_code, if it was loaded with it), or embed and index anew"
            )
        return loaded.sha256

    def _differences(self, loaded: LoadedModel) -> list[str]:
        """Between a model and the one that made the vectors of the index, in words."""
        from ebr.model.files.identity import differences

        facts, differs = self._facts, []
        if loaded.sha256 != facts["model_sha256"]:
            differs.append("its weights differ")
        # Indexes of before do not record these.
        if facts.get("architecture"):
            differs += differences(facts["architecture"], loaded.architecture)[:_NAMED]
        if facts.get("spelling_sha256") and loaded.spelling_sha256 != facts["spelling_sha256"]:
            differs.append("its tokenizer differs")
        return differs

    def add(self, embeddings_path: Path | str, *, delimiter: str = "\x01", say: Say = speak) -> TextIndex:
        """Add the rows of finished vectors of the same model, and return the index opened anew; ids it has are refused.

        The index on disk is replaced once the new one is whole; this object still searches what it had.
        """
        from ebr.retrieval.index.command import build_index

        if self.sidecar is None:
            raise DataError(f"{self.path}: has no sidecar, so nothing says what would fit; build an index with ebr index")
        config = IndexConfig(
            embeddings_path=Path(embeddings_path),
            delimiter=delimiter,
            index_path=self.path,
            add=True,
            metric=self.sidecar.metric.value,
            id_column=self._facts["id_column"],
            output_columns=list(self.columns),
        )
        build_index(config, say=say)
        return _open(self.path, replace(self._how, model_path=self.model_path))

    def delete(self, ids: Sequence[str]) -> None:
        """Always refused. Raises DataError that says why, and what to do."""
        raise DataError(
            f"{self.path}: rows cannot be deleted: a graph would lose the links through them, lists would keep clusters that "
            f"were learned from them, and the recall that was measured would no longer hold ({len(ids):,} ids asked for); take "
            "them out of the vectors and build the index anew with ebr index"
        )


def whole_sha256(facts: Mapping[str, Any]) -> str | None:
    """Of all weights of the model that made the vectors, those of its queries too; None where nothing says."""
    found = facts.get("whole_model_sha256") or facts.get("model_sha256")
    return None if found is None else str(found)


def open_index(
    path: Path | str,
    *,
    model_path: str | None = None,
    trust_remote_code: bool = False,
    trust_index: bool = False,
    pooling: str | None = None,
    base_model_path: str | None = None,
) -> TextIndex:
    """Open an index for searching, and check that its files, its sidecar and each other agree.

    model_path, base_model_path: where the model, and the base of an adapter, lie now; None = where the sidecar says.
    pooling: of a model whose vectors were made elsewhere; None = as recorded, or the model's own. trust_index: also open a bare
    FAISS file; such files can do harm when they are read, so only from sources you trust.
    Raises DataError that names what does not fit.
    """
    path, how = Path(path), QueryModel(model_path, trust_remote_code, pooling, base_model_path)
    if trust_index and path.exists() and (path.is_file() or read_manifest(path) is None):
        return _open_bare(path, how)
    return _open(path, how)


def _open(path: Path, how: QueryModel) -> TextIndex:
    from ebr.retrieval.index.faiss_index import read_index
    from ebr.retrieval.index.store import (
        INDEX_FILE,
        ROWS_FILE,
        RowsReader,
        check_files,
        check_index,
        open_lexical,
        read_sidecar,
    )

    if path.is_file():
        raise DataError(
            f"index_path {path}: is a file without a sidecar, so nothing says what its vectors are; give the folder of an "
            "index, or trust_index and model_path to open it as it is"
        )
    sidecar = read_sidecar(path)
    check_files(path, sidecar)
    index, rows = read_index(path / INDEX_FILE), RowsReader(path / ROWS_FILE)
    check_index(path / INDEX_FILE, index, sidecar, rows)
    return TextIndex(path, index, rows, sidecar, how, lambda: open_lexical(path, sidecar, rows))


def _checked(k: int) -> int:
    if k < 1:
        raise DataError(f"k is {k}; it must be at least 1")
    return k


def _open_bare(path: Path, how: QueryModel) -> TextIndex:
    from ebr.retrieval.index.faiss_index import read_index
    from ebr.retrieval.index.store import INDEX_FILE

    file = path / INDEX_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"index_path {path}: holds no {INDEX_FILE}; name the FAISS file itself")
    index = read_index(file)
    if not index.is_inner_product:
        raise DataError(
            f"{file}: its metric is a distance; EBR searches by inner product only, so build it anew with ebr index"
        )
    log.warning("%s: no sidecar: assuming unit vectors (cosine), ids that are row numbers, and no prompt but the model's", file)
    return TextIndex(file, index, None, None, how)
