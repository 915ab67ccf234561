"""What a run is computed with: readers of its texts, the embedder, the loss, and how a model is made ready for speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig
from ebr.config.shared.objective import reads_same_answer
from ebr.data.training.answers import SameAnswer, count_chains
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds
from ebr.model.compute.dropout import light_dropout
from ebr.model.compute.lora_linear import fused_lora
from ebr.model.compute.serving import as_served, frozen_in_bfloat16, unpadded
from ebr.model.compute.token_rows import light_token_rows
from ebr.model.encoder.text_reader import TextReader, asks_for_role
from ebr.training.batches.collator import DOCUMENT, QUERY, Collator, Noise
from ebr.training.batches.gradient_cache import GradientCache
from ebr.training.batches.token_cache import TokenCache, cache_folder, sweep
from ebr.training.loss.batch_loss import BatchLoss
from ebr.training.loss.named_losses import objective_from
from ebr.training.resources.cost import KEPT_SHARE, token_budget_of
from ebr.training.resources.memory import available_bytes
from ebr.training.resources.mixed_precision import mixed_precision
from ebr.training.resources.processes import Processes

Say = Callable[[str], None]

_GIB = 2**30
_PROBE = "What does this model make of these words?"


@dataclass(frozen=True)
class Mixture:
    """Several training sources. source_of: of each row, the training rows first, then those held out.

    weights, prompts: of each source; a prompt by its role, query or document.
    """

    source_of: Sequence[int]
    weights: Sequence[float]
    prompts: Sequence[Mapping[str, str]]

    def of_each(self, n_train: int) -> list[tuple[int, float]]:
        """Training rows and weight of each source."""
        rows = list(self.source_of[:n_train])
        return [(rows.count(source), weight) for source, weight in enumerate(self.weights)]


@dataclass
class Engine:
    """The parts that the trainer is built around."""

    batches: Collator
    embedder: GradientCache
    loss: BatchLoss
    caches: list[dict[str, TokenCache]] = field(repr=False)

    def lengths(self) -> list[int]:
        """Tokens of each training row, its query and its first positive; characters for a model that reads no plain tokens."""
        known = [{role: cache.lengths() for role, cache in caches.items()} for caches in self.caches]
        rows = []
        for row, example in enumerate(self.batches.train):
            source = self.batches.source_of[row] if self.batches.source_of is not None else 0
            caches, lengths = self.caches[source], known[source]
            texts = ((QUERY, example.query), (DOCUMENT, example.positives[0]))
            rows.append(
                sum(
                    int(lengths[role][caches[role].places[text]] if caches[role].reads_tokens else len(text))
                    for role, text in texts
                )
            )
        return rows


def build_engine(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    *,
    ids: Mapping[str, int],
    processes: Processes,
    mixture: Mixture | None,
    say: Say,
) -> Engine:
    """Tokenise the texts, once for all processes, and put the parts together. ids: the number of each text, see TextTable."""
    mixture = mixture or Mixture([0] * (len(train) + len(validation)), [1.0], [model.prompts])
    readers = [{role: TextReader(model, role, prompts[role]) for role in (QUERY, DOCUMENT)} for prompts in mixture.prompts]
    if not processes.is_main:
        processes.wait()  # the first makes the files, the others read them
    caches = [
        {
            role: TokenCache(one[role], texts, cache_folder() if config.token_cache else None)
            for role, texts in of_source.items()
        }
        for one, of_source in zip(readers, _texts(train, validation, mixture), strict=True)
    ]
    if processes.is_main:
        sweep(cache_folder(), at_least=2 * len(caches))
        processes.wait()
    batches = Collator(
        train,
        validation,
        ids,
        caches,
        config.neg_nums,
        config.seed,
        noise_of(config),
        source_of=mixture.source_of,
        by_role=asks_for_role(model),
        same_answer=same_answer_of(config, (*train, *validation), ids),
    )
    memory = _memory(model, config, processes)
    embedder = GradientCache(model, readers, token_budget_of(model, config), memory, say)
    loss = BatchLoss(
        embedder,
        batches,
        objective_from(
            loss=config.loss,
            temperature=config.temperature,
            label_smoothing=config.label_smoothing,
            bidirectional=config.bidirectional,
            matryoshka_dims=config.matryoshka_dims,
            teacher_temperature=config.teacher_temperature,
            contrastive_weight=config.contrastive_weight,
            model=model,
        ),
        l1=config.l1_regularization,
        gather_from=processes if config.gather_negatives and processes.count > 1 else None,
        several_positives=config.several_positives,
    )
    return Engine(batches, embedder, loss, caches)


def same_answer_of(config: FinetuneConfig, examples: Sequence[Example], ids: Mapping[str, int]) -> SameAnswer:
    """What the option same_answer comes to for all records of a run; by text for a loss that never asks."""
    if not reads_same_answer(config):
        return "text"
    if config.same_answer != "auto":
        return config.same_answer  # not counted where it is known: ten million pairs take minutes
    return count_chains([RecordIds.of(one, ids) for one in examples], config.train_batch_size).shows


def noise_of(config: FinetuneConfig) -> Noise | None:
    """The noise that the options ask for."""
    if not config.noise_enabled or config.noise_type == "none":
        return None
    return Noise(config.noise_type, config.noise_prob, frozenset(config.noise_apply_to_fields))


def _texts(train: Sequence[Example], validation: Sequence[Example], mixture: Mixture) -> list[dict[str, list[str]]]:
    """For each source, the distinct texts of each role, in the order in which they come."""
    found: list[dict[str, dict[str, None]]] = [{QUERY: {}, DOCUMENT: {}} for _ in mixture.weights]
    for example, source in zip([*train, *validation], mixture.source_of, strict=True):
        found[source][QUERY][example.query] = None
        found[source][DOCUMENT].update(dict.fromkeys([*example.positives, *example.negatives]))
    return [{role: list(texts) for role, texts in of_source.items()} for of_source in found]


def _memory(model: SentenceTransformer, config: FinetuneConfig, processes: Processes) -> float:
    if config.activation_memory_gb is not None:
        return config.activation_memory_gb * _GIB
    # Processes on the CPU share what is free; those of a GPU have one each.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", processes.count)) if model.device.type == "cpu" else 1
    return available_bytes(model.device) * KEPT_SHARE / sharing


@contextmanager
def made_fast(model: SentenceTransformer, config: FinetuneConfig) -> Iterator[None]:
    """The model computes the same with less work, until the block ends; an evaluation on the way sees it unchanged."""
    precision = mixed_precision(config)
    with ExitStack() as stack:
        if precision == "bf16" and config.finetune_type != "full":
            stack.enter_context(frozen_in_bfloat16(model))
        if precision != "no" and config.attn_implementation is None:
            stack.enter_context(unpadded(model))
        stack.enter_context(fused_lora(model))
        stack.enter_context(light_token_rows(model))
        stack.enter_context(light_dropout(model))
        yield


def probe(model: SentenceTransformer) -> npt.NDArray[np.float32]:
    """(D,): the vector of a fixed text as the model is now, by which a dead adapter is known."""
    with as_served(model):
        vector: npt.NDArray[np.float32] = model.encode([_PROBE], show_progress_bar=False)[0]
    return vector
