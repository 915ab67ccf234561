"""Extend: find what a tokenizer cannot spell, give it tokens and the table rows for them, and write the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import ExtendConfig
from ebr.data.evaluation.corpus import find_corpus, read_corpus
from ebr.data.files.places import check_place
from ebr.data.files.write import FOLDER_MANIFEST, hash_files, write_folder_aside, write_json
from ebr.data.result_tables import Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.training.examples import find_training_files, read_examples
from ebr.errors import DataError, ModelError
from ebr.model.card import write_extended_card
from ebr.model.output import check_output

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.origin import ModelOrigin
    from ebr.model.vocabulary.missing import MissingTokens, Unspelt
    from ebr.model.vocabulary.new_tokens import NewTokens
    from ebr.model.vocabulary.spelling import Spelling

_SHOWN = 40
_COMPARED = 8
"""Texts of the data that are embedded before and after, beside built-in ones."""
_LOOKED_AT = 10_000
_MANY_LEFT = 0.05


@dataclass(frozen=True)
class ExtendPlan:
    """What a tokenizer lacks for some texts, and where the model that has it would go."""

    config: ExtendConfig
    base: ModelOrigin
    encoder: SentenceTransformer
    spelling: Spelling
    missing: MissingTokens
    files: tuple[Path, ...]
    """Whatever was looked through, training files first."""
    n_training: int
    """How many of the files are those."""
    output: Path

    def lines(self) -> list[str]:
        """The plan, for people."""
        missing = self.missing
        shown = " ".join(missing.tokens[:_SHOWN]) + (" …" if len(missing.tokens) > _SHOWN else "")
        lines = [
            f"base    {self.config.model_name}",
            f"texts   {missing.before.n_texts:,} of {counted(len(self.files), 'file')}",
            f"new     {counted(len(missing.tokens), 'token')} of {missing.n_missing:,} that are lacking: {shown}",
            f"unknown {_unknown(missing.before)} before",
            f"        {_unknown(missing.after)} after",
            f"output  {self.output}",
        ]
        if missing.after.share > _MANY_LEFT and len(missing.tokens) < missing.n_missing:
            lines.append("warning: much stays unknown; raise max_new_tokens")
        return lines

    def texts(self) -> Iterator[str]:
        """Every text that is looked through."""
        return _texts(self.files[: self.n_training], self.files[self.n_training :])


@dataclass(frozen=True)
class ExtendResult(Shown):
    """An extended model, and what it could and can spell."""

    model_path: Path
    new_tokens: tuple[str, ...]
    unknown_before: Unspelt
    unknown_after: Unspelt

    def summary(self) -> str:
        """What was made, where, and what is still unknown to it."""
        return "\n".join(fact_lines(self._facts(), 8))

    def parts(self) -> list[Part]:
        """The same, as a table."""
        return [self._facts()]

    def _facts(self) -> list[Fact]:
        return [
            ("model", str(self.model_path)),
            ("new", f"{counted(len(self.new_tokens), 'token')}; vectors of texts without them are as before, bit for bit"),
            ("unknown", f"{_unknown(self.unknown_before)} before"),
            ("", f"{_unknown(self.unknown_after)} after"),
            (
                "next",
                "tune it: its new rows mean nothing yet. A base that was made for the language is better, where there is one",
            ),
        ]


def _unknown(one: Unspelt) -> str:
    return f"{one.share:.1%} of the characters, in {one.share_of_texts:.1%} of the texts"


def plan_extend(config: ExtendConfig) -> ExtendPlan:
    """Load the base, look through the texts, count what is unknown, and change nothing.

    Raises ModelError for an adapter, a quantised model, and a tokenizer that knows everything or cannot be extended; DataError
    where the texts hold nothing that is unknown to it.
    """
    from ebr.model.encoder.encoder import load_encoder, require_transformer
    from ebr.model.files.quantization import is_quantized
    from ebr.model.origin import is_adapter, resolve_model
    from ebr.model.vocabulary.missing import find_missing
    from ebr.model.vocabulary.spelling import spelling_of

    config.check()
    base = resolve_model(config.model_name)
    if is_adapter(base):
        raise ModelError(
            f"model_name {config.model_name}: is an adapter, whose base has the vocabulary; merge it first (ebr merge)"
        )
    output = check_place(config.output_path.expanduser(), is_folder=True).resolve()
    check_output(output, [("model_name", base.folder)] if base.folder else [], mark="new_tokens", work="extension")
    training = find_training_files(config.data_path) if config.data_path is not None else []
    corpora = [find_corpus(Path(name).expanduser()) for name in config.corpus or ()]
    encoder = load_encoder(config.model_name, pooling=config.pooling, trust_remote_code=config.trust_remote_code, device="cpu")
    require_transformer(encoder, "model_name", config.model_name)
    if is_quantized(encoder):
        raise ModelError(f"model_name {config.model_name}: its weights are quantised; give the unquantised model")
    spelling = spelling_of(encoder.tokenizer, base.where, lower_case=bool(encoder[0].do_lower_case))
    missing = find_missing(spelling, _texts(training, corpora), config.max_new_tokens)
    if not missing.tokens:
        raise DataError(
            f"{', '.join(map(str, [*training, *corpora]))}: {base.where} spells every character that it can be taught; "
            "there is nothing to extend"
        )
    return ExtendPlan(config, base, encoder, spelling, missing, (*training, *corpora), len(training), output)


def _texts(training: Sequence[Path], corpora: Sequence[Path]) -> Iterator[str]:
    if training:
        for example in read_examples(training):
            yield from example.texts()
    for file in corpora:
        for document in read_corpus(file):
            yield document.whole


def extend_vocabulary(config: ExtendConfig, *, say: Say = speak) -> ExtendResult:
    """Give a model's tokenizer the characters that it lacks for some texts, and its table of embeddings a row for each.

    A text that was spelt before keeps its tokens and its vector, bit for bit: the saved model is loaded again as its users will
    load it, and compared, before it takes its place. Raises EBRError subclasses that say what to mend.
    """
    import numpy as np

    from ebr.model.encoder.encoder import save_whole
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.encoder.merging import load_saved
    from ebr.model.files.identity import fingerprint
    from ebr.model.origin import public_name
    from ebr.model.vocabulary.rows import widen

    plan = plan_extend(config)
    for line in plan.lines():
        say(line)
    encoder, tokens = plan.encoder, plan.missing.tokens
    known = _spelt_texts(plan)
    before, base_sha256 = encoder.encode(known, show_progress_bar=False), fingerprint(encoder)
    words = plan.spelling.whole_words()
    first = plan.spelling.add(tokens)
    rng = np.random.default_rng(config.seed)
    new = widen(encoder[0].model, first, len(tokens), words, rng, plan.base.where)
    with write_folder_aside(plan.output) as aside:
        save_whole(encoder, aside)
        saved = load_saved(aside, trust_remote_code=config.trust_remote_code)
        _check(plan, saved, known, before)
        manifest = _manifest(plan, LoadedModel.of(saved), base_sha256, new)
        write_extended_card(aside, public_name(plan.output), manifest)
        write_json(aside / FOLDER_MANIFEST, manifest)
    return ExtendResult(plan.output, tokens, plan.missing.before, plan.missing.after)


def _spelt_texts(plan: ExtendPlan) -> list[str]:
    """Texts of the data that hold nothing unknown, and built-in ones."""
    from ebr.model.encoder.merging import SAMPLES

    spelling = plan.spelling

    def is_spelt(text: str) -> bool:
        return not any(spelling.n_lost(word, spelling.lacking(word)) for word in spelling.words(text))

    drawn = islice(filter(is_spelt, islice(plan.texts(), _LOOKED_AT)), _COMPARED)
    return [*filter(is_spelt, SAMPLES), *drawn]


def _check(plan: ExtendPlan, saved: SentenceTransformer, known: list[str], before: Any) -> None:  # noqa: ANN401
    """Whether the saved model knows the new tokens and embeds the known texts as before. Raises ModelError."""
    import numpy as np

    vocabulary = saved.tokenizer.get_vocab()
    if lost := [token for token in plan.missing.tokens if token not in vocabulary]:
        raise ModelError(
            f"{plan.base.where}: its tokenizer does not keep new tokens when it is saved ({lost[0]!r}); nothing was written"
        )
    if not np.array_equal(before, saved.encode(known, show_progress_bar=False)):
        raise ModelError(
            f"{plan.base.where}: the extended model gives other vectors for texts that it knew; nothing was written"
        )


def _manifest(plan: ExtendPlan, saved: LoadedModel, base_sha256: str, new: NewTokens) -> dict[str, Any]:
    from ebr.model.base_card import base_card

    missing = plan.missing
    return {
        "kind": "model",
        "config": plan.config.to_json(),
        "base_model": plan.config.model_name,
        "base_card": base_card(plan.base),
        "base_sha256": base_sha256,
        "data_sha256": hash_files(plan.files),
        "new_tokens": {"first": new.first, "count": new.count, "added": len(missing.tokens)},
        "unknown": {"before": missing.before.to_json(), "after": missing.after.to_json()},
        **saved.facts(),
    }
