"""What the texts' tokens, the options and the machine say against a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebr.config import FinetuneConfig
from ebr.training.doctor.data_checks import percent
from ebr.training.doctor.report import Finding, Severity
from ebr.training.doctor.text_figures import SMALL_BUDGET, Lengths, TextFigures
from ebr.training.loop.disk import Checkpoints, DiskNeeds
from ebr.training.resources.cost import Cost, Workload, duration_text, size_text, ways_to_fit

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_CUT_NOTE, _CUT_WARNING = 0.01, 0.05
_UNKNOWN_WARNING, _UNKNOWN_CRITICAL = 0.01, 0.2
_BYTES_A_CHARACTER = 1.5
"""Tokens a character above which characters are spelt in pieces: Chinese has about 0.6, English 0.25."""
_OF_THIS_LANGUAGE = "a base made for this language, for example a multilingual one"
_MUCH_PADDING = 0.3
_FEW_STEPS, _GOOD_STEPS = 20, 100
_MANY_PASSES, _SOON_LEARNT = 10, 2_000
_USUAL_RATES = {"full": (1e-6, 1e-4, "2e-5"), "lora": (1e-5, 2e-3, "2e-4"), "qlora": (1e-5, 2e-3, "2e-4")}
"""Lowest and highest usual learning rate of each way of tuning, and where to start."""
_DAY_S = 86_400
_TIGHT = 0.8


@dataclass(frozen=True)
class RunFigures:
    """Sizes of a run. n_records: to train on; warm_up: steps in which the learning rate rises."""

    n_records: int
    n_steps: int
    warm_up: int
    n_processes: int

    @classmethod
    def of(cls, n_records: int, n_steps: int, config: FinetuneConfig, n_processes: int) -> RunFigures:
        """As the trainer will take the options."""
        warm_up = 0 if config.lr_scheduler_type == "constant" else math.ceil(n_steps * config.warmup_ratio)
        return cls(n_records, n_steps, warm_up, n_processes)

    def passes(self, config: FinetuneConfig) -> float:
        """How often each record is seen; of several sources, on average."""
        if not config.max_steps and config.sources is None:
            return config.num_epochs
        a_step = config.train_batch_size * config.gradient_accumulation_steps * self.n_processes
        return self.n_steps * a_step / self.n_records

    def workload(self, texts: TextFigures, config: FinetuneConfig) -> Workload:
        """What one process computes, by the figures of the sampled texts."""
        n_records = round(self.passes(config) * self.n_records / self.n_processes)
        in_a_batch = min(config.train_batch_size, self.n_records)
        return Workload(in_a_batch, n_records, texts.tokens_a_record, texts.padding_ours, texts.longest)


def judge_options(run: RunFigures, config: FinetuneConfig) -> list[Finding]:
    """Findings about steps, warm-up, passes, batch and learning rate."""
    return [*_steps(run, config), *_passes(run, config), *_batch(run, config), *_rate(config)]


def _steps(run: RunFigures, config: FinetuneConfig) -> Iterator[Finding]:
    if run.n_steps < _FEW_STEPS:
        yield Finding(
            "few-steps",
            Severity.WARNING,
            f"{run.n_steps} optimiser steps",
            "the weights hardly move: the result will be nearly the base model",
            _more_steps(run, config),
        )
    if run.n_steps and run.warm_up >= run.n_steps / 2:
        yield Finding(
            "long-warm-up",
            Severity.WARNING,
            f"{run.warm_up} of {run.n_steps} steps are warm-up",
            "the learning rate reaches its peak when the run is half over; most of it learns at less",
            f"{config.spelling('warmup_ratio')} 0.1 or less",
        )


def _more_steps(run: RunFigures, config: FinetuneConfig) -> str:
    """How to come to enough steps, in fewer passes than those that _passes warns of."""
    in_a_pass = run.n_steps / (run.passes(config) if config.max_steps else config.num_epochs)
    passes = min(_MANY_PASSES - 1, math.ceil(_GOOD_STEPS / in_a_pass))
    n_steps = min(_GOOD_STEPS, math.floor(passes * in_a_pass + 1e-9))
    ways = []
    if config.gradient_accumulation_steps > 1:
        ways.append(f"{config.spelling('gradient_accumulation_steps')} 1")
    if n_steps > run.n_steps:
        more = f"{config.spelling('max_steps')} {n_steps}" if config.max_steps else f"{config.spelling('num_epochs')} {passes}"
        ways.append(f"{more}, for about {n_steps} steps")
    if n_steps < _GOOD_STEPS:
        ways.append(f"a smaller {config.spelling('train_batch_size')}")
    return f"{', or '.join(ways)}; more records are better than more passes"


def _passes(run: RunFigures, config: FinetuneConfig) -> Iterator[Finding]:
    passes = run.passes(config)
    if passes >= _MANY_PASSES and run.n_records < _SOON_LEARNT and not config.early_stopping_patience:
        fewer = f"{config.spelling('num_epochs')} 3" if not config.max_steps else f"{config.spelling('max_steps')} fewer"
        yield Finding(
            "many-passes",
            Severity.WARNING,
            f"each of {run.n_records:,} records is seen {passes:.0f} times",
            "a small set is learnt by heart long before: the training loss goes on falling, the validation loss rises",
            f"{fewer}, or {config.spelling('early_stopping_patience')} 3 with {config.spelling('validation_split')} 0.1; "
            f"{config.spelling('noise_enabled')} helps a little",
        )


def _batch(run: RunFigures, config: FinetuneConfig) -> Iterator[Finding]:
    if config.train_batch_size * run.n_processes <= run.n_records:
        return
    processes = f" in each of {run.n_processes} processes" if run.n_processes > 1 else ""
    # A query that sees only its own process's batch may meet others in the next step.
    in_sight = config.train_batch_size * (run.n_processes if config.gather_negatives else 1)
    negatives = ", and negatives never change" if in_sight > run.n_records else ""
    yield Finding(
        "batch-over-set",
        Severity.WARNING,
        f"a batch of {config.train_batch_size:,}{processes} for {run.n_records:,} records",
        f"one step holds the whole set, so every step sees the same{negatives}",
        f"{config.spelling('train_batch_size')} {max(2, run.n_records // (8 * run.n_processes))} or less",
    )


def _rate(config: FinetuneConfig) -> Iterator[Finding]:
    low, high, start = _USUAL_RATES[config.finetune_type]
    rate, name = config.learning_rate, config.spelling("learning_rate")
    usual = f"usual for {config.finetune_type}: {low:g} to {high:g}"
    if rate > high:
        why = "the model forgets what it knew, and the loss may diverge"
        yield Finding("high-learning-rate", Severity.WARNING, f"{name} {rate:g}; {usual}", why, f"{name} {start}")
    elif rate < low:
        why = "the weights hardly move: the result will be nearly the base model"
        yield Finding("low-learning-rate", Severity.WARNING, f"{name} {rate:g}; {usual}", why, f"{name} {start}")


# ---------------------------------------------------------------- texts


def judge_texts(figures: TextFigures, config: FinetuneConfig) -> list[Finding]:
    """Findings about what the model makes of the texts."""
    return [
        *_cut("queries", figures.queries, "query_max_len", figures.positions, config),
        *_cut("passages", figures.passages, "passage_max_len", figures.positions, config),
        *_spelling(figures, config),
        *_padding(figures, config),
    ]


def _cut(what: str, lengths: Lengths, own: str, positions: int | None, config: FinetuneConfig) -> Iterator[Finding]:
    share = lengths.share_cut
    if share <= _CUT_NOTE:
        return
    option, wanted = config.spelling(own if config[own] else "max_seq_length"), lengths.cutting(_CUT_NOTE)
    advice = f"{option} {wanted} would cut 1 %; longer is slower and takes more memory"
    if positions is not None and wanted > positions:
        at_most = f"{option} {positions} at most; or " if lengths.limit < positions else ""
        advice = (
            f"{at_most}cut the texts into passages: {wanted} tokens would cut 1 %, and the model has positions for {positions} "
            f"({config.spelling('model_name')}: one with a longer context)"
        )
    yield Finding(
        f"{what}-cut",
        Severity.WARNING if share > _CUT_WARNING else Severity.NOTE,
        f"{percent(share)} of the {what} are longer than {lengths.limit} tokens, and cut there",
        "what stands behind the cut is not learnt, nor found later",
        advice,
    )


def _spelling(figures: TextFigures, config: FinetuneConfig) -> Iterator[Finding]:
    share = sum(figures.unknown.values()) / max(1, figures.n_tokens)
    if share > _UNKNOWN_WARNING:
        shares = {script: number / figures.n_tokens for script, number in figures.unknown.most_common(3)}
        scripts = ", ".join(f"{script} {percent(part)}" for script, part in shares.items() if part >= share / 20)
        yield Finding(
            "unknown-tokens",
            Severity.CRITICAL if share > _UNKNOWN_CRITICAL else Severity.WARNING,
            f"{percent(share)} of the tokens are unknown to the tokenizer ({scripts})",
            "texts that differ only in what it cannot spell are the same to the model, whatever it learns",
            f"{config.spelling('model_name')}: {_OF_THIS_LANGUAGE}{_extending(figures)}",
        )
    elif figures.tokens_a_character > _BYTES_A_CHARACTER:
        yield Finding(
            "spelt-in-bytes",
            Severity.WARNING,
            f"a character takes {figures.tokens_a_character:.1f} tokens",
            "the tokenizer knows this script only by its bytes: texts are long and slow, and the model has hardly seen it",
            f"{config.spelling('model_name')}: {_OF_THIS_LANGUAGE}",
        )


def _extending(figures: TextFigures) -> str:
    """What ebr extend would mend, where it can."""
    found = figures.extended
    if found is None or not found.tokens:
        return ""
    shares = f"about {percent(found.after.share)} of the characters unknown, of {percent(found.before.share)}"
    return f"; where none can be had, ebr extend, which would leave {shares}"


def _padding(figures: TextFigures, config: FinetuneConfig) -> Iterator[Finding]:
    if figures.padding_small is not None and figures.padding_ours > max(_MUCH_PADDING, figures.padding_small):
        yield Finding(
            "much-padding",
            Severity.NOTE,
            f"{percent(figures.padding_ours)} of the tokens computed are padding, although texts are sorted by length",
            "a micro-batch holds short texts beside long ones; padding costs time and teaches nothing",
            f"{config.spelling('micro_batch_tokens')} {SMALL_BUDGET}, for {percent(figures.padding_small)} of padding",
        )


# ---------------------------------------------------------------- cost


def judge_cost(cost: Cost | None, model: SentenceTransformer, config: FinetuneConfig) -> list[Finding]:
    """Findings about memory and time. cost: None = not even a few short texts found memory."""
    if cost is None:
        what = "a forward and backward pass of a few short texts ran out of memory"
        helps = [
            *([f"{config.spelling('finetune_type')} lora"] if config.finetune_type == "full" else []),
            *([] if config.gradient_checkpointing else [f"{config.spelling('gradient_checkpointing')} true"]),
            f"{config.spelling('model_name')}: a smaller one",
        ]
        return [Finding("memory-short", Severity.CRITICAL, what, "the first step would end the run", ", ".join(helps))]
    return [*_memory(cost, ways_to_fit(cost, model, config), config), *_time(cost, config)]


def _memory(cost: Cost, ways: Sequence[str], config: FinetuneConfig) -> Iterator[Finding]:
    if cost.least <= _TIGHT * cost.room:
        return
    short = cost.least > cost.room
    what = (
        f"about {size_text(cost.least)} needed beside the weights ({size_text(cost.trained)} for gradients and optimiser, "
        f"{size_text(cost.longest * cost.a_token)} for one text of {cost.longest} tokens), {size_text(cost.room)} free"
    )
    helps = (
        "what would fit: " + "; ".join(ways)
        if ways
        else f"no one setting would; {config.spelling('model_name')}: a smaller one"
    )
    yield Finding(
        "memory-short" if short else "memory-tight",
        Severity.CRITICAL if short else Severity.WARNING,
        what,
        "a smaller batch does not help: one text needs this much, and batches are cut into micro-batches already",
        helps,
    )


def judge_disk(needs: DiskNeeds, config: FinetuneConfig) -> list[Finding]:
    """Findings about the room for checkpoints and for the finished model."""
    if needs.holds_all or needs.free is None:
        return []
    elsewhere = f"make room, or give an {config.spelling('output_dir')} on another disk"
    free = f"{size_text(needs.free)} free in {needs.folder}"
    if not needs.holds_the_model:
        return [
            Finding(
                "disk-short",
                Severity.CRITICAL,
                f"the finished model takes about {size_text(needs.finished)}, {free}",
                "a run would not begin: at its end the model would have nowhere to go",
                elsewhere,
            )
        ]
    checkpoints = needs.checkpoints.count + needs.checkpoints.one_more
    return [
        Finding(
            "disk-tight",
            Severity.WARNING,
            f"about {size_text(needs.most)} needed at the fullest moment ({checkpoints:,} checkpoints of "
            f"{size_text(needs.checkpoint)} each, {size_text(needs.finished)} for the finished model), {free}",
            "checkpoints that find no room are left out: a run that is interrupted goes back further, or to its start",
            "; or ".join([*_fewer_checkpoints(needs.checkpoints, config), elsewhere]),
        )
    ]


def _fewer_checkpoints(checkpoints: Checkpoints, config: FinetuneConfig) -> list[str]:
    """The options that leave fewer of them standing."""
    options = {"save_on_epoch_end": (0, checkpoints.of_epochs > 0), "save_total_limit": (1, config.save_total_limit > 1)}
    ways = ", ".join(f"{config.spelling(name)} {value}" for name, (value, helps) in options.items() if helps)
    return [f"fewer checkpoints ({ways})"] if ways else []


def _time(cost: Cost, config: FinetuneConfig) -> Iterator[Finding]:
    if cost.duration_s > _DAY_S:
        yield Finding(
            "long-run",
            Severity.NOTE,
            f"about {duration_text(cost.duration_s)} of computing on this machine",
            "a long run is interrupted some day, and a mistake shows late",
            f"{config.spelling('save_steps')} 100 keeps checkpoints; first try {config.spelling('max_steps')} 100",
        )
