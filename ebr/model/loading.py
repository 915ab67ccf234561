"""What the loader of transformers left out or made up: it fills gaps with random numbers and goes on, so it is asked.

Everything that loads a model does so within `watch_loading`; `check_weights` then judges what was found.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from ebr.errors import ModelError
from ebr.model.quantization import keep_trainable

log = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.RLock()
_NAMED = 3
# What models have beside the part that an embedding is made of, by the names that transformers gives them.
_HEADS = re.compile(
    r"(^|\.)(lm_head|mlm_head|embed_out|cls|classifier|score|qa_outputs|pooler|decoder|predictions|seq_relationship"
    r"|vocab_(transform|projector|layer_norm)|\w+_predictions|\w+_head)(\.|$)"
)
_ADAPTER = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")
_TRIAL = ["a b c d e f g h"]


@dataclass(frozen=True)
class LoadedWeights:
    """One model that transformers loaded: names of weights that its file lacks, that it has too many, or in another shape."""

    model: PreTrainedModel
    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """(name, shape in the file, shape in the model)."""

    @property
    def made_up(self) -> set[str]:
        """Weights that the file does not give, whatever the reason."""
        return {*self.missing, *(name for name, _, _ in self.mismatched)}


@contextmanager
def watch_loading() -> Iterator[list[LoadedWeights]]:
    """Every model that transformers loads until the block ends, by whatever way, with what its files did not give.

    4-bit layers are told at once not to pack their weights: the first forward pass would, see keep_trainable.
    """
    found: list[LoadedWeights] = []
    stock: Any = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(
        cls: type[PreTrainedModel],
        /,
        *args: Any,  # noqa: ANN401
        output_loading_info: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        # Shapes that do not fit would raise, and name none of them.
        options.setdefault("ignore_mismatched_sizes", True)
        model, info = stock.__func__(cls, *args, output_loading_info=True, **options)
        keep_trainable(model)
        mismatched = tuple((name, tuple(theirs), tuple(ours)) for name, theirs, ours in info["mismatched_keys"])
        found.append(LoadedWeights(model, frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]), mismatched))
        return (model, info) if output_loading_info else model

    reports = logging.getLogger("transformers.modeling_utils")
    with _ONE_AT_A_TIME:
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)
        reports.addFilter(_no_report)
        try:
            yield found
        finally:
            PreTrainedModel.from_pretrained = stock
            reports.removeFilter(_no_report)


def _no_report(record: logging.LogRecord) -> bool:
    """A table of keys is not shown: one line of ours says what they mean."""
    return "LOAD REPORT" not in record.getMessage()


def check_weights(encoder: SentenceTransformer, loaded: Sequence[LoadedWeights], where: str) -> None:
    """Refuse an encoder some of whose weights are random; say which weights of its file are used nowhere.

    where: the model, for messages. Raises ModelError that names the first of them.
    """
    for one in loaded:
        _refuse_adapter_keys(one, where)
        if gaps := _read_gaps(encoder, one):
            raise ModelError(_gap_message(one, gaps, where))
        unused = sorted(name for name in one.unexpected if not _HEADS.search(name))
        if unused:
            log.warning(
                "%s: %s in its file have no place in %s and are not used: %s",
                where,
                _counted(len(unused), "weight"),
                type(one.model).__name__,
                first_names(unused),
            )


def _refuse_adapter_keys(one: LoadedWeights, where: str) -> None:
    if parts := sorted(name for name in one.unexpected if _ADAPTER.search(name) or ".base_layer." in name):
        raise ModelError(
            f"{where}: its weights are those of a base with an adapter that was never merged ({first_names(parts)}); "
            "merge the adapter where it was trained (merge_and_unload) and save the model, or give base and adapter apart"
        )


def _read_gaps(encoder: SentenceTransformer, one: LoadedWeights) -> list[str]:
    """The weights that were made up and that an embedding reads.

    A pooler (BERT's) or the tower of pictures may be absent. One whose like is in the file, layer 3 of 12 say, may not: that an
    expert was not asked for these words proves nothing.
    """
    parameters = dict(one.model.named_parameters())
    gaps = [name for name in sorted(one.made_up) if name in parameters]
    given = {_pattern(name) for name in parameters if name not in one.made_up}
    unclear = [name for name in gaps if _pattern(name) not in given]
    read = _names_read(encoder, {name: parameters[name] for name in unclear})
    return [name for name in gaps if name not in unclear or name in read]


def _pattern(name: str) -> str:
    """A weight's name without the numbers of its layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _names_read(encoder: SentenceTransformer, parameters: dict[str, torch.nn.Parameter]) -> set[str]:
    """The parameters that the vector of a text depends on: those that a gradient reaches."""
    if not parameters:
        return set()
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(_trial_vectors(encoder).sum(), list(parameters.values()), allow_unused=True)
    except RuntimeError as error:  # no gradient reaches any of them
        if "does not require grad" not in str(error):
            raise
        return set()
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _trial_vectors(encoder: SentenceTransformer) -> torch.Tensor:
    """(2, D): one text, as a query and as a document."""
    with torch.enable_grad():
        vectors = []
        for task in ("query", "document"):
            features = encoder.preprocess(_TRIAL, task=task)
            features = {
                name: value.to(encoder.device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
            }
            vectors.append(encoder(features, task=task)["sentence_embedding"])
        return torch.cat(vectors)


def _gap_message(one: LoadedWeights, gaps: Sequence[str], where: str) -> str:
    bent = {name: f"{name} {theirs} where {ours} is wanted" for name, theirs, ours in one.mismatched}
    there = f"; it has {first_names(sorted(one.unexpected))} instead" if one.unexpected else ""
    return (
        f"{where}: its file lacks {_counted(len(gaps), 'weight')} that an embedding reads, which would be random numbers "
        f"({first_names([bent.get(name, name) for name in gaps])}{there}); copy the model again, or save it from the program "
        "that trained it under the names of the model itself"
    )


def first_names(names: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    names = list(names)
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
