"""Embed: tables in, vectors out."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config import InferenceConfig
from ebr.data.files.dialects import parse_dialect
from ebr.data.files.places import check_place
from ebr.data.files.write import read_manifest
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.speech import Say, speak
from ebr.data.text.counted import counted, were
from ebr.data.text.cut_texts import CutTexts
from ebr.data.versions import library_versions
from ebr.errors import ConfigError

if TYPE_CHECKING:
    from ebr.data.tables.shards import TableSource
    from ebr.data.vectors.formats import VectorFormat
    from ebr.inference.job.output import Output
    from ebr.inference.job.pipeline import EmbeddedTables
    from ebr.model.compute.settings import ComputeSettings


@dataclass(frozen=True)
class InferencePlan:
    """Which tables a run would embed, and what it would write."""

    config: InferenceConfig
    source: TableSource
    format: VectorFormat

    @property
    def is_file(self) -> bool:
        """Whether the output is one file; a folder of parts otherwise."""
        return bool(self.config.output_path.suffix)

    def lines(self, *, count: bool = True) -> list[str]:
        """The plan, for people. count: with the number of rows, for which every text table is read once."""
        from ebr.data.tables.doubts import doubts_of
        from ebr.data.tables.shards import count_rows

        source, config = self.source, self.config
        rows = f"{counted(count_rows(source), 'row')}, " if count else ""
        what = "one file" if self.is_file else f"a part for each {config.shard_rows:,} rows"
        lines = [
            f"input   {counted(len(source.files), 'table')}, {rows}{source.n_bytes / 1e6:,.1f} MB: {config.description_column}",
            f"output  {config.output_path}, {self.format.value}, {what}: {', '.join([*source.schema.columns, 'vector'])}",
        ]
        if source.empty_files:
            lines.append(f"empty   {counted(len(source.empty_files), 'table')} without a row, like {source.empty_files[0]}")
        if source.unfinished_files:
            left = counted(len(source.unfinished_files), "file")
            lines.append(f"left    {left} still being written, like {source.unfinished_files[0]}")
        if lacking := source.lacking():
            (file, names), of = lacking[0], counted(len(lacking), "table")
            lines.append(
                f"note    older than others, {of}: columns that came later are null, in {file.name} {', '.join(names)}"
            )
        lines += [f"note    {doubt}" for doubt in doubts_of(source)]
        return lines

    def output(self) -> Output:
        """What is written, and where."""
        from ebr.inference.job.dedup import Dedup
        from ebr.inference.job.ledger import work_folder
        from ebr.inference.job.output import Output
        from ebr.inference.job.parts import PARTS, PartOptions

        config, work_dir = self.config, work_folder(self.config.output_path)
        options = PartOptions(
            schema=self.source.schema,
            format=self.format,
            vector_dtype=config.vector_dtype,
            fail_on_bad_row=config.on_bad_row == "fail",
            dedup=Dedup(config.dedup),
            parts_dir=work_dir / PARTS if self.is_file else config.output_path,
            work_dir=work_dir,
            incremental=config.incremental_key is not None,
        )
        return Output(config.output_path, self.is_file, options)


@dataclass(frozen=True)
class InferenceResult(Shown):
    """Finished vectors."""

    embedded: EmbeddedTables
    prompt: str
    settings: ComputeSettings
    seconds: float
    cut: CutTexts | None = None
    """Rows whose text is longer than the model reads; None = parts of an earlier version did not count them."""

    def summary(self) -> str:
        """What was written, how, and what was left out and why."""
        return "\n".join([*fact_lines(self._facts(), 9), *(f"  {line}" for line in self.embedded.first_rejects)])

    def parts(self) -> list[Part]:
        """The same, and the rows that could not be used."""
        return [self._facts(), *([self.rejects] if self.embedded.rejects_path else [])]

    @property
    def rejects(self) -> Table:
        """The rows that could not be used: file, line, reason, and the row as text; read from the file that lists them."""
        path = self.embedded.rejects_path
        records = map(json.loads, path.read_bytes().splitlines()) if path else ()
        named = ("file", "line", "reason")
        rows = ({**{name: one[name] for name in named}, "row": _as_text(one["raw_base64"])} for one in records)
        return Table.of(rows, (*named, "row"))

    def to_frame(self) -> DataFrame:
        """The vectors as a DataFrame: ids and whatever columns were kept, then vector, (D,) float32; all rows, in memory.

        Raises DataError when the output has changed since it was finished.
        """
        from ebr.data.vectors.embeddings import read_embeddings

        return read_embeddings(self.embedded.output_path).to_frame()

    def _facts(self) -> list[Fact]:
        done = self.embedded
        rows = f"{counted(done.n_rows, 'row')} of {done.dim} from {counted(done.n_files, 'table')}"
        facts = [("vectors", f"{done.output_path}: {rows}"), ("texts", self._texts())]
        if self.cut is None:
            facts.append(("cut", "not counted: some shards were finished by an earlier version of ebr, which did not"))
        elif said := self.cut.line():
            facts.append(("cut", said))
        if done.n_kept:
            facts.append(("kept", f"{done.n_kept:,} of {counted(done.n_shards, 'shard')} {were(done.n_kept)} finished before"))
        facts += [("computed", self.settings.describe()), ("prompt", repr(self.prompt) if self.prompt else "none")]
        facts.append(("took", f"{self.seconds:,.1f} s"))
        if done.n_overruled:
            says = f"{counted(done.n_overruled, 'cell')} of their columns {'says' if done.n_overruled == 1 else 'say'}"
            facts.append(("folders", f"{says} something else, like {done.first_overruled}: the folder's value was taken"))
        if done.rejects_path:
            facts.append(("rejected", f"{counted(done.n_rejected, 'row')}, listed in {done.rejects_path}"))
        return facts

    def _texts(self) -> str:
        """What this run did; the shards that were finished before are another line's."""
        done = self.embedded
        wanted = done.n_fresh - done.n_reused
        if not done.n_fresh:
            return "none had to go through the model"
        said = f"{done.n_encoded:,} of {wanted:,} went through the model"
        if done.n_encoded < wanted:
            said += f"; {1 - done.n_encoded / wanted:.1%} saved, for each distinct text is encoded once"
        if done.n_reused or done.n_changed:
            new = wanted - done.n_changed
            said += f"; {counted(done.n_reused, 'row')} as before, {done.n_changed:,} with a changed text, {new:,} new"
        return said


def _as_text(raw: str) -> str:
    """Bytes in base64, read as UTF-8 as far as they are."""
    return base64.b64decode(raw).decode("utf-8", "replace")


def plan_inference(config: InferenceConfig) -> InferencePlan:
    """Find the tables and check their headers, and embed nothing. Raises EBRError subclasses that say what to mend."""
    from ebr.data.tables.shards import open_source
    from ebr.data.vectors.formats import check_dtype, check_output_columns, format_of
    from ebr.model.origin import resolve_model

    config.check()
    output_format = format_of(config.output_path, config.output_format)
    check_dtype(output_format, config.vector_dtype)
    # Vectors, manifest and state lie together, whatever link names them.
    given, config = config.output_path, config.model_copy(update={"output_path": check_place(config.output_path)})
    _check_output(config, given, output_format)
    source = open_source(
        config.input_dir,
        config.file_pattern,
        parse_dialect(
            config.delimiter,
            quote=config.quote,
            escape=config.escape,
            null_values=config.null_values or (),
            encoding=config.encoding,
        ),
        config.description_column,
        config.output_columns,
        column_names=config.column_names,
        key_column=config.incremental_key,
    )
    check_output_columns(source.schema.columns, output_format, source.schema.delimiter)
    resolve_model(config.model_path)
    return InferencePlan(config, source, output_format)


def _check_output(config: InferenceConfig, given: Path, fmt: VectorFormat) -> None:
    """Refuse an output that would overwrite what is none, or be read by the next run. Raises ConfigError.

    given: its name before links were followed.
    """
    path, home = config.output_path, config.input_dir.resolve()
    if path.suffix and path.is_dir():
        raise ConfigError(f"output_path {path}: is a folder; give a file in it, like {path / 'embeds.txt'}")
    if not path.suffix and path.is_file():
        raise ConfigError(f"output_path {path}: is a file; without a suffix it names a folder")
    if home in (path.resolve(), *path.resolve().parents, *(given.absolute().parent.resolve() / given.name).parents):
        raise ConfigError(f"output_path {path}: lies in input_dir {config.input_dir}; write elsewhere")
    kind = (read_manifest(path) or {}).get("kind") if path.exists() else None
    if kind not in (None, "embeddings"):
        raise ConfigError(f"output_path {path}: is a {kind} of ebr; write elsewhere")
    if path.is_dir() and kind is None and any(map(_is_foreign, path.iterdir())):
        raise ConfigError(
            f"output_path {path}: holds other files; give a new folder, or a file in it like {path / 'embeds.txt'}"
        )
    if path.suffix and kind is None and (foreign := _foreign_file(path, fmt)):
        raise ConfigError(
            f"output_path {path}: {foreign} is there already and was not made by ebr; delete or move it, or write elsewhere"
        )


def _is_foreign(file: Path) -> bool:
    """Of a file in the folder of an output without a manifest: whether no run of ours made it."""
    from ebr.data.vectors.embeddings import PART_FILE

    return not (PART_FILE.fullmatch(file.name) or file.name.startswith("."))


def _foreign_file(path: Path, fmt: VectorFormat) -> Path | None:
    """What would be replaced by a vector file without a manifest, and is not of a run that was killed before it wrote that."""
    from ebr.data.vectors.formats import files_of
    from ebr.inference.job.ledger import was_begun

    if was_begun(path):
        return None
    return next((file for file in files_of(path, fmt) if file.is_file() and file.stat().st_size), None)


def run_batch_inference(config: InferenceConfig, *, say: Say = speak) -> InferenceResult:
    """Embed a folder of tables, with the document prompt that the model was saved with.

    Interrupted, by whatever, it goes on from there when it is called again.
    Raises EBRError subclasses that say what to mend; what was at output_path stays until the new output is whole.
    """
    from ebr.inference.job.incremental import fill_store
    from ebr.inference.job.ledger import open_ledger
    from ebr.inference.job.pipeline import embed_source
    from ebr.inference.workers.computing import asked_for, computing, load_for_inference, make_recipe

    started = time.perf_counter()
    plan = plan_inference(config)
    config = plan.config
    for line in plan.lines(count=False):
        say(line)
    loaded = load_for_inference(config, say)
    output = plan.output()
    with open_ledger(config.output_path, make_recipe(config, loaded.facts, output.options)) as ledger:
        if ledger.changed:
            taken_over = output.options.incremental and ledger.brought_up_to_date
            what = "rows with an unchanged text are taken over" if taken_over else "everything is embedded anew"
            say(f"what was embedded before was made with another {', '.join(ledger.changed)}: {what}")
        output.sweep()
        with computing(config, loaded, output.options, plan.source, ledger, say) as (workers, settings):
            ledger.begin(settings.to_json(), asked_for(config))
            if output.options.incremental and ledger.brought_up_to_date:
                fill_store(config.output_path, ledger.brought_up_to_date, output.options, output.digests)
            facts = {
                **loaded.facts,
                "config": config.to_json(),
                "settings": settings.to_json(),
                "versions": library_versions(),
            }
            embedded = embed_source(plan.source, output, ledger, workers, config.shard_rows, facts)
    length = loaded.facts["passage_max_len"] or loaded.facts["max_seq_length"]
    cut = None if embedded.n_cut is None else CutTexts(embedded.n_rows, embedded.n_cut, length)
    return InferenceResult(embedded, loaded.facts["prompt"], settings, time.perf_counter() - started, cut)
