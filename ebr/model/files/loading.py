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

from ebr.data.text.counted import counted
from ebr.errors import ModelError
from ebr.model.files.kind import TRUST_HINT, unused_code
from ebr.model.files.quantization import keep_trainable

log = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.RLock()
_NAMED = 3
# What models have beside the part that an embedding is made of, by the names that transformers gives them.
_HEADS = re.compile(
    r"(^|\.)(head|embed_out|cls|(\w+_)?classifier|score|qa_outputs|(start|end)_logits|answer_class|pooler|decoder|predictions"
    r"|seq_relationship|vocab_(transform|projector|layer_norm)|\w+_predictions|\w+_(head|loss)|final_logits_bias|pred_layer"
    r"|attn\.(masked_)?bias)(\.|$)"
)
_ADAPTER = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
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
def watch_loading(where: str) -> Iterator[list[LoadedWeights]]:
    """Every model that transformers loads until the block ends, by whatever way, with what its files did not give.

    where: the model, for messages.

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

    logger, report = logging.getLogger("transformers.modeling_utils"), ""

    def keep_report(record: logging.LogRecord) -> bool:
        # A table of keys is not shown: one line of ours says what they mean.
        nonlocal report
        is_report = "LOAD REPORT" in record.getMessage()
        report = record.getMessage() if is_report else report
        return not is_report

    with _ONE_AT_A_TIME:
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)
        logger.addFilter(keep_report)
        try:
            yield found
        except RuntimeError as error:
            if "above report" in str(error):
                raise ModelError(_conversion_message(report, where)) from error
            raise
        finally:
            PreTrainedModel.from_pretrained = stock
            logger.removeFilter(keep_report)


def _conversion_message(report: str, where: str) -> str:
    """Which weights, as the report of transformers tells, could not be put together from those of the file, and why."""
    report = _COLOUR.sub("", report)
    names = re.findall(r"^(\S+) +\| CONVERSION", report, re.MULTILINE)
    why = re.search(r"^(.+)\nError:", report, re.MULTILINE)
    reason = f" ({why.group(1)})" if why else ""
    return (
        f"{where}: its weights {first_names(names)} cannot be put together from those of its file{reason}; copy the model again"
    )


def check_weights(encoder: SentenceTransformer, loaded: Sequence[LoadedWeights], where: str) -> None:
    """Refuse an encoder some of whose weights are random; say which weights of its file are used nowhere.

    where: the model, for messages. Raises ModelError that names the first of them.
    """
    for one in loaded:
        _refuse_adapter_keys(one, where)
        if gaps := _read_gaps(encoder, one):
            raise ModelError(_gap_message(one, gaps, where))
        unused = sorted(name for name in one.unexpected if not _is_head(name, one.model))
        if unused:
            log.warning(
                "%s: %s in its file have no place in %s and are not used: %s",
                where,
                counted(len(unused), "weight"),
                type(one.model).__name__,
                first_names(unused),
            )


def _is_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight is of something beside the part that an embedding is made of; OPT's `decoder` is that part."""
    head = _HEADS.search(name)
    if head is None:
        return False
    parts, modules = name[: head.end()].rstrip(".").split("."), dict(model.named_modules())
    return not any(".".join(parts[start:]) in modules for start in range(len(parts)))


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
    parameters, buffers = dict(one.model.named_parameters()), dict(one.model.named_buffers())
    gaps = [name for name in sorted(one.made_up) if name in parameters or name in buffers]
    given = {_pattern(name) for name in {*parameters, *buffers} if name not in one.made_up}
    unclear = [name for name in gaps if _pattern(name) not in given]
    read = _names_read(encoder, {name: parameters[name] for name in unclear if name in parameters})
    read |= _buffers_read(encoder, {name: buffers[name] for name in unclear if name in buffers})
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


@torch.no_grad()
def _buffers_read(encoder: SentenceTransformer, buffers: dict[str, torch.Tensor]) -> set[str]:
    """The buffers that the vector of a text depends on, by a choice perhaps, of experts say, which no gradient shows."""
    read: set[str] = set()
    before = _trial_vectors(encoder) if buffers else torch.empty(0)
    for name, buffer in buffers.items():
        if not buffer.is_floating_point():
            continue  # numbers of positions: the loader counts them out
        saved = buffer.clone()
        # Several times as large as any score, and no two alike.
        buffer.add_(torch.linspace(-100, 100, max(buffer.numel(), 2))[: buffer.numel()].reshape(buffer.shape).to(buffer))
        if not torch.equal(_trial_vectors(encoder), before):
            read.add(name)
        buffer.copy_(saved)
    return read


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
    code = unused_code(one.model)
    mend = (
        f"config.json names code of its own, {code}, which may know their names: {TRUST_HINT}"
        if code
        else "copy the model again, or save it from the program that trained it under the names of the model itself"
    )
    there = f"; it has {first_names(sorted(one.unexpected))} instead" if one.unexpected else ""
    return (
        f"{where}: its file lacks {counted(len(gaps), 'weight')} that an embedding reads, which would be random numbers "
        f"({first_names([bent.get(name, name) for name in gaps])}{there}); {mend}"
    )


def first_names(names: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    names = list(names)
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
