"""Make training pairs from corpora, as a training file like any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebr.config import PairsConfig
from ebr.data.evaluation.corpus import count_texts, find_corpus, read_corpus
from ebr.data.files.places import check_place
from ebr.data.files.write import hash_files, manifest_path, read_manifest, write_aside, write_json
from ebr.data.pairs.making import PairKind, PairMaker
from ebr.data.progress import progress_bar
from ebr.data.records.documents import Document
from ebr.data.result_tables import Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.text.normal_form import form_digest, normal_form
from ebr.data.training.files import training_file
from ebr.data.versions import own_version
from ebr.errors import ConfigError, DataError

_KIND = "pairs"


@dataclass(frozen=True)
class PairsPlan:
    """Which texts pairs would be made of, and where they would go."""

    config: PairsConfig
    corpora: tuple[Path, ...]
    n_texts: int
    output: Path

    def lines(self) -> list[str]:
        """The plan, for people."""
        return [
            f"texts   {self.n_texts:,} of {counted(len(self.corpora), 'file')}",
            f"pairs   {', '.join(self.config.kinds)}: one of each a text, at most",
            f"output  {self.output}",
        ]


@dataclass(frozen=True)
class PairsResult(Shown):
    """A training file of pairs."""

    path: Path
    n_texts: int
    n_repeated: int
    """Texts that were there before, and make no more pairs."""
    made: dict[str, int]
    """Pairs of each kind."""
    left_out: dict[str, int]
    """Of each kind, the texts that were too short for a pair, had no title, or would have been paired with themselves."""

    def summary(self) -> str:
        """What was made, where, and of how many texts nothing could be."""
        return "\n".join(fact_lines(self._facts(), 16))

    def parts(self) -> list[Part]:
        """The same, as a table."""
        return [self._facts()]

    def _facts(self) -> list[Fact]:
        repeated = f", {self.n_repeated:,} of them repeated and left out" if self.n_repeated else ""
        facts = [
            ("file", f"{self.path}: {counted(sum(self.made.values()), 'pair')}"),
            ("texts", f"{self.n_texts:,}{repeated}"),
        ]
        for kind, n_made in self.made.items():
            why = "too short or without a title" if kind == PairKind.TITLE.value else "too short"
            facts.append((kind, f"{counted(n_made, 'pair')}; {counted(self.left_out[kind], 'text')} {why}"))
        return facts


def plan_pairs(config: PairsConfig) -> PairsPlan:
    """Find and count the texts, and make nothing. Raises EBRError subclasses that say what to mend."""
    config.check()
    corpora = tuple(find_corpus(Path(name).expanduser()) for name in config.corpus)
    output = check_place(config.output_path.expanduser())
    _check_output(output, corpora)
    return PairsPlan(config, corpora, sum(map(count_texts, corpora)), output)


def _check_output(output: Path, corpora: Sequence[Path]) -> None:
    """Refuse to write over a corpus, or over what no run of this command wrote. Raises ConfigError."""
    if output.is_dir():
        raise ConfigError(f"output_path {output}: is a folder; give a file in it, like {output / 'pairs.jsonl'}")
    if output.exists() and any(output.samefile(corpus) for corpus in corpora):
        raise ConfigError(f"output_path {output}: is a corpus that pairs are made of; write elsewhere")
    if output.exists() and (read_manifest(output) or {}).get("kind") != _KIND:
        raise ConfigError(f"output_path {output}: is there already and was not made by ebr pairs; move it, or write elsewhere")


def make_pairs(config: PairsConfig, *, say: Say = speak) -> PairsResult:
    """Write a training file of pairs, {"anchor", "positive"}, that are made of the texts of corpora.

    The same corpora and seed give the same file. No text is paired with itself; one that is there twice, by its normal form,
    counts once. Raises EBRError subclasses that say what to mend; what was at output_path stays until the new file is whole.
    """
    plan = plan_pairs(config)
    for line in plan.lines():
        say(line)
    kinds = [PairKind(kind) for kind in dict.fromkeys(config.kinds)]
    maker = PairMaker(config.min_words, np.random.default_rng(config.seed))
    made, left_out = Counter[PairKind](), Counter[PairKind]()
    n_distinct = 0
    with write_aside(plan.output) as aside:
        with training_file(aside) as append:
            for document in progress_bar(_distinct(plan.corpora), desc="make pairs", unit="text", delay=2):
                n_distinct += 1
                for kind in kinds:
                    pair = maker.make(kind, document)
                    (left_out if pair is None else made)[kind] += 1
                    if pair is not None:
                        append({"anchor": pair.query, "positive": pair.answer})
        if not made:
            raise DataError(
                f"{', '.join(map(str, plan.corpora))}: no text makes a pair ({', '.join(config.kinds)}): all are shorter than "
                f"{counted(config.min_words, 'word')}, or have no title; lower min_words, or choose other kinds"
            )
        corpus_sha256 = hash_files(plan.corpora)  # before the file is put in place: its manifest must follow at once
        manifest_path(plan.output).unlink(missing_ok=True)
    result = PairsResult(
        plan.output,
        plan.n_texts,
        plan.n_texts - n_distinct,
        {kind.value: made[kind] for kind in kinds},
        {kind.value: left_out[kind] for kind in kinds},
    )
    manifest = {
        "kind": _KIND,
        "config": config.to_json(),
        "corpus_sha256": corpus_sha256,
        "texts": result.n_texts,
        "repeated": result.n_repeated,
        "made": result.made,
        "left_out": result.left_out,
        "versions": {"ebr": own_version()},
    }
    write_json(manifest_path(plan.output), manifest)
    return result


def _distinct(corpora: Sequence[Path]) -> Iterator[Document]:
    """Each document once, by its text's normal form. Takes a digest of each in memory, not the text."""
    seen: set[bytes] = set()
    for file in corpora:
        for document in read_corpus(file):
            digest = form_digest(normal_form(document.text))
            if digest not in seen:
                seen.add(digest)
                yield document
