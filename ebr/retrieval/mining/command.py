"""Mine hard negatives: a training file in, a training file with better negatives out."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ebr.config import MiningConfig
from ebr.config.mining import HYBRID
from ebr.data.evaluation.corpus import count_texts, find_corpus, read_corpus
from ebr.data.files.places import check_place
from ebr.data.files.write import hash_file, hash_files, manifest_path, read_manifest, write_aside, write_json
from ebr.data.records.layouts import RecordFormat
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, fact_lines
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted
from ebr.data.text.cut_texts import CutTexts, cut_facts, cut_lines
from ebr.data.text.terminal_text import one_line
from ebr.data.training.answers import SameAnswer, chain_of_each, count_chains
from ebr.data.training.examples import Example, find_training_files
from ebr.data.training.files import Record, as_format, read_training_records, to_object, training_file
from ebr.data.training.text_table import TextTable
from ebr.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.mining.report import MiningCounts
    from ebr.retrieval.mining.rules import Mined, Rules

KIND = "mined"
_EXAMPLES_WRITTEN, _EXAMPLES_SHOWN = 20, 3
_COLUMNS_SHOWN = 88


@dataclass(frozen=True)
class MiningPlan:
    """The records, where candidates come from, and what would be written."""

    config: MiningConfig
    files: list[Path]
    records: list[Record]
    """In the format that is written."""
    format: RecordFormat
    n_read: int
    corpus: Path | None
    n_candidates: int

    @property
    def examples_path(self) -> Path:
        """Where the examples to read go."""
        return _examples_path(self.config.output_path)

    def lines(self) -> list[str]:
        """The plan, for people."""
        config, what = self.config, "text" if self.corpus else "positive"
        as_written = f", {len(self.records):,} as {self.format.value}" if len(self.records) != self.n_read else ""
        return [
            f"records     {self.n_read:,} from {counted(len(self.files), 'file')}{as_written}",
            f"candidates  {counted(self.n_candidates, what)} of {self.corpus or 'the records'}",
            f"model       {config.model_path}",
            *([f"teacher     {config.teacher}"] if config.teacher else []),
            f"output      {config.output_path}, {self.format.value}: up to {config.num_negatives} new negatives a record",
            f"examples    {self.examples_path}",
        ]


@dataclass(frozen=True)
class MiningResult(Shown):
    """A finished training file."""

    path: Path
    format: RecordFormat
    counts: MiningCounts
    examples_path: Path
    shown: tuple[str, ...]
    """A few examples, with their texts cut."""
    seconds: float
    cut: tuple[CutTexts, CutTexts] = (CutTexts(), CutTexts())
    """Queries and candidates that are longer than the model reads."""

    def summary(self) -> str:
        """How many negatives were kept, why other candidates went, and a few records to read."""
        lines = [self.counts.table(), "", *fact_lines(self._facts(), 10)]
        return "\n\n".join(["\n".join(lines), *self.shown])

    def parts(self) -> list[Part]:
        """The same, as tables."""
        counts = self.counts
        return [counts.candidates(), counts.records(), counts.means(), self._facts(), *self.shown]

    def to_frame(self) -> DataFrame:
        """What became of the candidates: candidates (in words), count, share of all that were looked at."""
        return self.counts.candidates().to_frame()

    def _facts(self) -> list[Fact]:
        counts = self.counts
        facts = [("file", f"{self.path}: {counted(counts.n_records, 'record')}, {self.format.value}")]
        if counts.n_kept:
            facts.append(("kept", f"{counted(counts.n_kept, 'negative')} that the records had before"))
        if counts.n_contradictions:
            what = "negatives of before that are positives of their query in some record"
            facts.append(("dropped", f"{counts.n_contradictions:,} {what}"))
        if not_helped := counts.records_by_mined[0]:
            they_are = "it is" if not_helped == 1 else "they are"
            facts.append(("no new", f"{counted(not_helped, 'record')} got no new negative; {they_are} in the file without one"))
        facts += [("cut", said) for said in cut_lines(self.cut)]
        return [*facts, ("examples", str(self.examples_path)), ("took", f"{self.seconds:,.1f} s")]


def plan_mining(config: MiningConfig) -> MiningPlan:
    """Read and check the records and the corpus, and mine nothing. Raises EBRError subclasses that say what to mend."""
    from ebr.model.origin import resolve_model

    config.check()
    # The file, its manifest and its page lie together, whatever link names them.
    given, config = config.output_path, config.model_copy(update={"output_path": check_place(config.output_path)})
    files = find_training_files(config.data_path)
    corpus = find_corpus(config.corpus) if config.corpus else None
    _check_output(config, given, [*files, *([corpus] if corpus else [])])
    found, records = read_training_records(files)
    wanted = RecordFormat(config.output_format) if config.output_format else found
    n_positives = len({text.strip() for record in records for text in record.positives})
    n_candidates = count_texts(corpus) if corpus else n_positives
    resolve_model(config.model_path)
    if config.teacher not in (None, HYBRID):
        resolve_model(config.teacher)
    return MiningPlan(config, files, as_format(records, found, wanted), wanted, len(records), corpus, n_candidates)


def mine_hard_negatives(config: MiningConfig, *, say: Say = speak) -> MiningResult:
    """Write a new training file whose records have, as further negatives, what the model takes for answers and is none.

    The same records, candidates and model give the same file. Beside it stand its manifest and a page of examples.
    Raises EBRError subclasses that say what to mend; what was at output_path stays until the new file is whole. A manifest is
    only ever there with the file that it describes, and what a killed run leaves can be written over by the next.
    """
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.encoder import COSINE
    from ebr.retrieval.mining.rules import mine

    started = time.perf_counter()
    plan = plan_mining(config)
    config = plan.config
    for line in plan.lines():
        say(line)
    inputs = _input_hashes(plan)
    loaded, teacher = _load(config), _load_teacher(config)
    home = config.output_path.absolute().parent
    home.mkdir(parents=True, exist_ok=True)
    # The rules are shares of a cosine, and it is by cosine that training compares.
    encoder = RetrievalEncoder(loaded.model, batch_size=config.batch_size, show_progress=False, similarity=COSINE)
    mined = mine(
        plan.records,
        read_corpus(plan.corpus) if plan.corpus else None,
        encoder,
        _rules(config),
        scratch=home,
        n_candidates=plan.n_candidates,
        by_words_too=config.teacher == HYBRID,
        chain_of=_chain_of(plan.records, config.same_answer),
    )
    with closing(mined):
        result = _write(plan, _scored(plan, mined, teacher), started)
    result = replace(result, cut=encoder.cut_texts)
    manifest = {
        "kind": KIND,
        "config": config.to_json(),
        "model": config.model_path,
        **loaded.facts(),
        "teacher": {"name": config.teacher, **(teacher.facts() if teacher else {})} if config.teacher else None,
        **inputs,
        "sha256": hash_file(result.path),
        "format": plan.format.value,
        "counts": result.counts.to_json(),
        "cut": cut_facts(encoder.cut_texts),
    }
    write_json(manifest_path(result.path), manifest)
    return result


def _load(config: MiningConfig) -> LoadedModel:
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.encoder.prompts import set_prompts
    from ebr.model.origin import resolve_model

    model = load_encoder(
        config.model_path,
        max_seq_length=config.max_seq_length,
        trust_remote_code=config.trust_remote_code,
        pooling=config.pooling,
        base_model_path=config.base_model_path,
    )
    set_prompts(model, prompt=config.prompt, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    return LoadedModel.of(model, resolve_model(config.model_path))


def _load_teacher(config: MiningConfig) -> LoadedModel | None:
    """The model that gives the scores, with its own prompts and lengths; None where none is needed."""
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.origin import resolve_model

    if config.teacher is None or config.teacher == HYBRID:
        return None
    model = load_encoder(config.teacher, trust_remote_code=config.trust_remote_code)
    return LoadedModel.of(model, resolve_model(config.teacher))


def _scored(plan: MiningPlan, mined: Iterator[Mined], teacher: LoadedModel | None) -> Iterator[Mined]:
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.encoder import COSINE
    from ebr.retrieval.mining.teachers import scored_by

    if teacher is None:
        return mined
    encoder = RetrievalEncoder(teacher.model, batch_size=plan.config.batch_size, show_progress=False, similarity=COSINE)
    return scored_by(encoder, plan.records, mined)


def _chain_of(records: Sequence[Record], wanted: SameAnswer | Literal["auto"]) -> dict[str, int] | None:
    """By normal form, the chain of each text of the records; None where a chain has no one answer, or is not to have it."""
    if wanted == "text":
        return None
    examples = [Example(one.query, one.positives, one.negatives) for one in records]
    texts = TextTable.of(examples)
    ids = texts.records(examples)
    if wanted == "auto" and count_chains(ids, batch_size=2).shows == "text":
        return None
    chains = chain_of_each(ids)
    return {form: chains[number] for form, number in texts.forms.items() if number in chains}


def _rules(config: MiningConfig) -> Rules:
    from ebr.retrieval.mining.rules import Rules

    return Rules(
        num_negatives=config.num_negatives,
        top_k=config.top_k,
        skip_top=config.skip_top,
        max_relative_score=config.max_relative_score,
        near_duplicate=config.near_duplicate,
        keep_negatives=config.keep_negatives,
    )


def _write(plan: MiningPlan, mined: Iterator[Mined], started: float) -> MiningResult:
    """Write what the records got, as it comes, and the examples; take the old manifest away. started: by time.perf_counter."""
    from ebr.retrieval.mining.report import Tally, chosen_records, example_lines, examples_markdown

    config, tally = plan.config, Tally(plan.config.num_negatives)
    chosen = set(chosen_records(len(plan.records), _EXAMPLES_WRITTEN, config.seed))
    examples: list[tuple[int, Record, Mined]] = []
    with write_aside(config.output_path) as aside:
        with training_file(aside) as append:
            for row, (record, one) in enumerate(zip(plan.records, mined, strict=True)):
                append(to_object(record, plan.format, *one.as_taught()))
                tally.add(one)
                if row in chosen:
                    examples.append((row, record, one))
        # The page first: by it a file whose manifest was never written is known for ours.
        with write_aside(plan.examples_path) as page:
            page.write_text(examples_markdown(examples, _page_title(config.output_path)), encoding="utf-8")
        manifest_path(config.output_path).unlink(missing_ok=True)
    shown = [example_lines(record, one, columns=_COLUMNS_SHOWN) for _, record, one in examples[:_EXAMPLES_SHOWN]]
    return MiningResult(
        path=config.output_path,
        format=plan.format,
        counts=tally.counts(),
        examples_path=plan.examples_path,
        shown=tuple("\n".join(lines) for lines in shown),
        seconds=time.perf_counter() - started,
    )


def _input_hashes(plan: MiningPlan) -> dict[str, Any]:
    corpus_sha256 = hash_file(plan.corpus) if plan.corpus else None
    return {"data_sha256": hash_files(plan.files), "corpus_sha256": corpus_sha256}


def _examples_path(output: Path) -> Path:
    return output.with_name(output.name + ".examples.md")


def _page_title(output: Path) -> str:
    return f"Mined for {one_line(output.name)}"


def _check_output(config: MiningConfig, given: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that is an input, would become one, or would overwrite what is not ours. Raises ConfigError.

    given: its name before links were followed.
    """
    path = config.output_path
    if path.is_dir():
        raise ConfigError(f"output_path {path}: is a folder; give a file in it, like {path / 'mined.jsonl'}")
    for target in (path, manifest_path(path), _examples_path(path)):
        # By the file, not by its name: it may be reached through links.
        same = next((file for file in inputs if target.exists() and target.samefile(file)), None)
        if same:
            raise ConfigError(f"output_path {path}: {target} is {same}, an input; nothing is mined in place, write elsewhere")
    if _is_found_by(path, config.data_path) or _is_found_by(given, config.data_path):
        raise ConfigError(
            f"output_path {path}: lies where data_path {config.data_path} looks for records, beside those it was made from; "
            "write elsewhere"
        )
    foreign = next(_not_ours(path), None)
    if foreign:
        raise ConfigError(
            f"output_path {path}: {foreign} is there already and was not mined by ebr; delete or move it, or write elsewhere"
        )


def _not_ours(output: Path) -> Iterator[Path]:
    """What a run would overwrite and no run has written; of a killed run, the page of examples vouches for the file."""
    manifest, page = manifest_path(output), _examples_path(output)
    if manifest.exists() and not _is_mined(output):
        yield manifest
    if page.exists() and not _is_page_of(page, output):
        yield page
    if output.exists() and not manifest.exists() and not page.exists():
        yield output


def _is_mined(output: Path) -> bool:
    try:
        return (read_manifest(output) or {}).get("kind") == KIND
    except DataError:
        return False


def _is_page_of(page: Path, output: Path) -> bool:
    try:
        with page.open("rb") as file:
            return file.readline(1 << 16).rstrip(b"\r\n") == f"# {_page_title(output)}".encode()
    except OSError:
        return False


def _is_found_by(path: Path, data_path: str) -> bool:
    """Whether find_training_files(data_path) would find the file once it is there; a file named itself is checked before.

    Through whatever links and '..' either leads; the file's folder need not be there yet.
    """
    wanted, home = Path(data_path), path.absolute().parent.resolve()
    if wanted.is_dir():
        return home == wanted.resolve()
    if wanted.is_file():
        return False
    parts = wanted.absolute().parts
    n_plain = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    plain, patterns = Path(*parts[:n_plain]).resolve(), parts[n_plain:]
    if home.is_relative_to(plain):
        names = (home / path.name).relative_to(plain).parts
        if len(names) == len(patterns) and all(map(fnmatchcase, names, patterns)):
            return True
    # Folders that are links are there already, under the names that the pattern gives them.
    folders = glob.glob(str(wanted.parent))  # noqa: PTH207
    return fnmatchcase(path.name, wanted.name) and any(Path(folder).resolve() == home for folder in folders)
