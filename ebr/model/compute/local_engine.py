"""The engine of one model on this machine, and a pair of them for queries and documents."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from ebr.data.progress import progress_bar
from ebr.data.text.counted import counted
from ebr.data.text.cut_texts import CutTexts
from ebr.data.vectors.batch import Vectors
from ebr.errors import ModelError
from ebr.model.compute.attention import PADDED, attention_of, compiled_forward, exact_products, is_out_of_memory
from ebr.model.compute.engine import NO_DIRECTION, TOO_LARGE, OnBatch, UnfitTexts
from ebr.model.compute.packed_weights import packed_for, packed_forward
from ebr.model.compute.passes import at_once, how_many
from ebr.model.compute.settings import ComputeSettings, apply_settings, settings_of
from ebr.model.encoder.batching import Bools, Ints, cost_of, token_budget_batches
from ebr.model.encoder.encoder import COSINE, similarity_of
from ebr.model.encoder.lengths import kept_length
from ebr.model.encoder.prompts import Role, prompt_for
from ebr.model.encoder.text_reader import Prepared, TextReader
from ebr.model.files.quantization import is_quantized

log = logging.getLogger(__name__)

# Tokens of a corpus of millions would take more memory than its vectors.
_TEXTS_AT_ONCE = 16384
# Vectors stay on the device for so many passes: a copy waits for all that was asked of the device before.
_PASSES_A_COPY = 16
# Seconds to wait before each new try of a pass that had room before, while others may give memory back.
_WAITS = (1.0, 3.0, 10.0)
_LONG_S = 2.0


class LocalEngine:
    """One model on this machine's processor or GPU.

    prompt: None = the one saved with the model for this role. batch_size: most texts a forward pass; None = as many as
    token_budget lets in. token_budget: None = that of the settings, or default_token_budget. truncate_dim: keep the first
    dimensions; a shortened vector is normalised after the cut. show_progress: a bar over the texts, with their rate.
    settings: the model is made to compute so, in place; None = as it stands. sleep: waits so many seconds for memory. Raises
    ModelError for attention that it cannot do.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        role: Role,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        token_budget: int | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        show_progress: bool = False,
        settings: ComputeSettings | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        self.role = role
        self.prompt = prompt_for(model, role) if prompt is None else prompt
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.show_progress = show_progress
        self._n_threads = settings.n_threads if settings is not None else None
        settings = apply_settings(model, settings) if settings is not None else settings_of(model)
        self._settings = replace(settings, token_budget=token_budget or settings.token_budget)
        self.reader = TextReader(model, role.value, self.prompt)
        self._sleep = sleep
        self.cut_texts = CutTexts(length=kept_length(model, role.value))
        """Of all texts that encode was given."""
        # The most tokens of a pass, and of a text, that memory has sufficed for.
        self._longest = 0
        # Whether memory did not suffice for several passes at once.
        self._is_short = False
        # Where the texts that are computed stand among those that were given, for messages.
        self._first_text = 0

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        full = int(self.model.get_embedding_dimension())
        return min(full, self.truncate_dim or full)

    @property
    def settings(self) -> ComputeSettings:
        """How it computes now: with a lower token_budget once memory ran out, and eager once compiling failed."""
        compiled = self._settings.compiled and compiled_forward(self.model) is not None
        packed = packed_forward(self.model) is not None
        return replace(self._settings, compiled=compiled, attention=attention_of(self.model), packed_weights=packed)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """N texts → (N, D) float32, in their order; says in a warning which have no direction. Raises UnfitTexts."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        unfit: dict[int, str] = {}
        with (
            packed_for(self.model, len(texts)),
            progress_bar(total=len(texts), desc="encode", unit="text", disable=not self.show_progress, delay=_LONG_S) as bar,
        ):
            try:
                for start in range(0, len(texts), _TEXTS_AT_ONCE):
                    block, self._first_text = slice(start, start + _TEXTS_AT_ONCE), start
                    prepared = self.prepare(texts[block])
                    try:
                        vectors[block] = self.compute(prepared, bar.update)
                    except UnfitTexts as error:
                        vectors[block] = error.vectors
                        unfit |= {start + index: reason for index, reason in error.reasons.items()}
                    self.cut_texts = self.cut_texts.and_more(len(prepared.lengths), int(prepared.cut.sum()))
            finally:
                self._first_text = 0
        if unfit:
            raise UnfitTexts(unfit, vectors)
        if (lost := np.flatnonzero(~vectors.any(axis=1))).size:
            others = f" (and {counted(lost.size - 1, 'other')})" if lost.size > 1 else ""
            log.warning("text %d %s%s", lost[0], NO_DIRECTION, others)
        return vectors

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Tokens of N texts; the texts themselves for a model that has its own way with them. Safe beside compute."""
        return self.reader.prepare(texts)

    def cut(self, prepared: Prepared) -> Bools:
        """(N,) which texts were longer than the model reads; see Engine."""
        return prepared.cut

    @property
    def token_budget(self) -> int:
        """Tokens a forward pass."""
        return self._settings.token_budget

    def compute(self, prepared: Prepared, on_batch: OnBatch | None = None) -> Vectors:
        """What prepare made of N texts → (N, D) float32, in their order; see Engine.

        on_batch: told how many texts each forward pass held; what it raises ends the work.
        """
        if self._n_threads is not None and torch.get_num_threads() != self._n_threads:
            # A setting of the calling thread, so it is not made where the engine is built.
            torch.set_num_threads(self._n_threads)
        self.model.eval()
        vectors = np.full((len(prepared.lengths), self.dim), np.nan, dtype=np.float32)
        vectors[prepared.wordless] = 0
        with _as_settled(self.model):
            too_large = self._fill(vectors, prepared, on_batch or (lambda _: None))
        unfit = dict(prepared.unfit) | dict.fromkeys(too_large, TOO_LARGE)
        self._check_finite(vectors, list(unfit))
        if unfit:
            raise UnfitTexts(unfit, vectors)
        return vectors

    def _fill(self, vectors: Vectors, prepared: Prepared, on_batch: OnBatch) -> list[int]:
        """Compute every row of vectors that has tokens to compute; the texts that do not fit, even alone."""
        skipped = np.union1d(prepared.wordless, np.fromiter(prepared.unfit, np.int64))
        if skipped.size:
            on_batch(skipped.size)
        texts = np.setdiff1d(np.arange(len(vectors)), skipped)
        waiting = self._fill_at_once(vectors, prepared, texts, on_batch)
        too_large: list[int] = []
        computed: list[tuple[Ints, torch.Tensor]] = []
        budget = self._settings.token_budget
        while waiting:
            batch = waiting.popleft()
            rows = self._attempt(prepared, batch)
            if rows is None:
                _collect(computed, vectors)  # frees what they hold
                rows = self._attempt_again(prepared, batch)
            if rows is None:
                budget = self._lower_budget(self._tokens_of(prepared, batch), len(batch), budget)
                too_large += batch.tolist() if len(batch) == 1 else []
                rest = [batch, *waiting] if len(batch) > 1 else [*waiting]
                waiting = self._plan(prepared, np.concatenate([*rest, np.empty(0, dtype=np.int64)]), budget)
                continue
            self._longest = max(self._longest, int(prepared.lengths[batch].max()))
            computed.append((batch, rows))
            if len(computed) == _PASSES_A_COPY or not waiting:
                _collect(computed, vectors)
            on_batch(len(batch))
        _collect(computed, vectors)
        return too_large

    def _fill_at_once(self, vectors: Vectors, prepared: Prepared, texts: Ints, on_batch: OnBatch) -> deque[Ints]:
        """Compute rows of vectors by several passes at once, where that can be; the passes that are left for one at a time.

        Once memory runs out no passes share it any more: what fits alone must not be lost for its neighbours.
        """
        n_at_once, budget = self._passes_at_once(prepared, texts)
        waiting = self._plan(prepared, texts, budget)
        if n_at_once < 2:
            return waiting
        unfit: list[Ints] = []
        for batch, rows in at_once(partial(self._attempt, prepared), waiting, n_at_once):
            if rows is None:
                unfit.append(batch)
                continue
            self._longest = max(self._longest, int(prepared.lengths[batch].max()))
            vectors[batch] = rows.numpy()
            on_batch(len(batch))
        self._is_short = self._is_short or bool(unfit)
        return deque([*unfit, *waiting])

    def _passes_at_once(self, prepared: Prepared, texts: Ints) -> tuple[int, int]:
        """How many passes are computed at once, and the tokens of each."""
        budget = self._settings.token_budget
        # A compiled pass, and a model with its own way with texts, are for one thread.
        if not texts.size or prepared.tokens is None or self.settings.compiled or self._packs(prepared) or self._is_short:
            return 1, budget
        lengths = prepared.lengths[texts]
        return how_many(self.model, int(lengths.sum()), int(lengths.max()), budget)

    def _plan(self, prepared: Prepared, indices: Ints, budget: int) -> deque[Ints]:
        batches = token_budget_batches(
            prepared.lengths[indices], budget, batch_size=self.batch_size, padded=not self._packs(prepared)
        )
        return deque(indices[batch] for batch in batches)

    def _packs(self, prepared: Prepared) -> bool:
        return prepared.tokens is not None and attention_of(self.model) != PADDED

    def _empty_cache(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _lower_budget(self, tried: int, n_texts: int, before: int) -> int:
        """Less a pass for the rest of these texts: half of what did not fit; less than a text that did not fit alone.

        What later texts get does not sink below the longest text that did fit: others may have held the memory for a while.
        """
        # Halving for every text that is too large would leave one token a pass after a handful of them.
        budget = max(1, min(tried, before) // 2 if n_texts > 1 else min(tried - 1, before))
        log.warning("out of memory at %d tokens a pass (%d texts): token_budget %d → %d", tried, n_texts, before, budget)
        kept = min(self._settings.token_budget, max(budget, self._longest))
        self._settings = replace(self._settings, token_budget=kept)
        return budget

    def _tokens_of(self, prepared: Prepared, batch: Ints) -> int:
        return cost_of(prepared.lengths[batch], padded=not self._packs(prepared))

    def _attempt_again(self, prepared: Prepared, batch: Ints) -> torch.Tensor | None:
        """Vectors of a text that memory sufficed for before, once it does again; None for what may be too large.

        Raises ModelError when memory stays short.
        """
        self._empty_cache()
        # A text alone is as long as its tokens; attention takes memory by their square, so short ones prove nothing.
        if len(batch) > 1 or self._tokens_of(prepared, batch) > self._longest:
            return None
        for seconds in _WAITS:
            log.warning("out of memory for a text no larger than what did fit: waiting %g s", seconds)
            self._sleep(seconds)
            self._empty_cache()
            rows = self._attempt(prepared, batch)
            if rows is not None:
                return rows
        raise ModelError(
            f"out of memory for a text of {prepared.lengths[batch[0]]} tokens, though one of {self._longest} fitted before; "
            "free memory and run the same command again"
        )

    def _check_finite(self, vectors: Vectors, unfit: list[int]) -> None:
        """Raise ModelError when a vector that was computed holds something that is not a number."""
        lost = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        lost = lost[~np.isin(lost, unfit)]
        if not len(lost):
            return
        first = self._first_text + int(lost[0])
        precision, texts = self._settings.precision, counted(len(lost), "text")
        if precision == "float16":
            raise ModelError(f"float16 overflows for {texts} (first: text {first}); use precision bfloat16 or float32")
        raise ModelError(
            f"vectors in {precision} are not finite for {texts} (first: text {first}); the model's weights are broken"
        )

    def _attempt(self, prepared: Prepared, batch: Ints) -> torch.Tensor | None:
        """(B, D) vectors of a batch, on the device; None when it does not fit in memory."""
        try:
            features = self.reader.features(prepared, batch, packed=self._packs(prepared))
            self.reader.mark_cut(prepared, batch, features)
            return self._forward(features)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only now are the error and, with its frames, the tensors of the failed pass gone.
        return None

    @torch.inference_mode()
    def _forward(self, features: dict[str, Any]) -> torch.Tensor:
        embedded: torch.Tensor = self.model(features, task=self.role.value)["sentence_embedding"][:, : self.dim].float()
        return normalize(embedded, dim=1) if self.normalize_embeddings else embedded


@contextmanager
def _as_settled(model: SentenceTransformer) -> Iterator[None]:
    """Products in the precision of the settings, whatever a notebook has set; a quantised model in what it chooses itself."""
    with exact_products(), torch.autocast(model.device.type, enabled=False) if not is_quantized(model) else nullcontext():
        yield


def _collect(computed: list[tuple[Ints, torch.Tensor]], vectors: Vectors) -> None:
    """Move computed rows to where they belong, and forget them."""
    for batch, rows in computed:
        vectors[batch] = rows.cpu().numpy()
    computed.clear()


class RetrievalEncoder:
    """Queries and documents of one model, each with its own prompt and length; their inner product is their similarity.

    similarity: cosine (unit rows) or dot (rows as the model gives them); None = what the model was made for.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        batch_size: int | None = None,
        show_progress: bool = True,
        similarity: str | None = None,
    ) -> None:
        self.similarity = similarity or similarity_of(model)
        engine = partial(LocalEngine, model, batch_size=batch_size, normalize_embeddings=self.similarity == COSINE)
        self.queries, self.documents = engine(Role.QUERY), engine(Role.DOCUMENT, show_progress=show_progress)
        self.documents.reader.lock = self.queries.reader.lock

    @property
    def cut_texts(self) -> tuple[CutTexts, CutTexts]:
        """Of all queries and of all documents that it was given."""
        return self.queries.cut_texts, self.documents.cut_texts

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """N queries → (N, D) float32."""
        return self.queries.encode(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """N documents → (N, D) float32."""
        return self.documents.encode(texts)
