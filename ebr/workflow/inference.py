"""Embed: tables in, one vector file out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config import InferenceConfig
from ebr.data.files import read_manifest
from ebr.data.tables import parse_delimiter
from ebr.errors import ConfigError
from ebr.workflow.speech import Say, library_versions

if TYPE_CHECKING:
    from ebr.inference.pipeline import EmbeddedTables, Source


@dataclass(frozen=True)
class InferencePlan:
    """Which tables a run would embed."""

    config: InferenceConfig
    source: Source

    def lines(self) -> list[str]:
        """The plan, for people."""
        return [
            f"input   {len(self.source.tables)} tables, {self.source.n_lines:,} rows: {self.config.description_column}",
            f"output  {self.config.output_path}: {', '.join([*self.source.columns, 'vector'])}",
        ]


@dataclass(frozen=True)
class InferenceResult:
    """A finished vector file."""

    embedded: EmbeddedTables
    prompt: str

    def summary(self) -> str:
        """What was written, and what was left out and why."""
        done = self.embedded
        lines = [
            f"vectors  {done.output_path}: {done.n_rows:,} rows of {done.dim} from {done.n_files} tables",
            f"prompt   {self.prompt!r}" if self.prompt else "prompt   none",
        ]
        if done.rejects_path:
            lines += [
                f"rejected {done.n_rejected:,} rows, listed in {done.rejects_path}",
                *(f"  {line}" for line in done.first_rejects),
            ]
        return "\n".join(lines)


def _check_output(path: Path, source: Source) -> None:
    if path.is_dir():
        raise ConfigError(f"output_path {path}: is a folder; give a file in it, like {path / 'embeds.txt'}")
    if path.resolve() in {table.path.resolve() for table in source.tables}:
        raise ConfigError(f"output_path {path}: is one of the input tables; write elsewhere, or narrow file_pattern")


def plan_inference(config: InferenceConfig) -> InferencePlan:
    """Find the tables and check their headers, and embed nothing."""
    from ebr.inference.pipeline import open_source
    from ebr.model.encoder import resolve_model

    delimiter = parse_delimiter(config.delimiter)
    source = open_source(config.input_dir, config.file_pattern, delimiter, config.description_column, config.output_columns)
    _check_output(config.output_path, source)
    resolve_model(config.model_path)
    return InferencePlan(config, source)


def run_batch_inference(config: InferenceConfig, *, say: Say = print) -> InferenceResult:
    """Embed a folder of tables into one vector file, with the document prompt that the model was saved with.

    Raises EBRError subclasses that say what to mend; what was at output_path stays until the new file is whole.
    """
    from ebr.inference.engines import LocalEngine
    from ebr.inference.pipeline import embed_tables
    from ebr.model.encoder import Role, fingerprint, load_encoder, pooling_name

    plan = plan_inference(config)
    for line in plan.lines():
        say(line)
    model = load_encoder(config.model_path, max_seq_length=config.max_seq_length, trust_remote_code=config.trust_remote_code)
    if read_manifest(Path(config.model_path)) is None:
        say(f"{config.model_path} was not made by ebr: its pooling ({pooling_name(model)}) and prompts are taken as they are")
    engine = LocalEngine(
        model,
        Role.DOCUMENT,
        prompt=config.prompt,
        batch_size=config.batch_size,
        normalize_embeddings=config.normalize_embeddings,
        truncate_dim=config.truncate_dim,
    )
    manifest = {
        "config": config.to_json(),
        "model": config.model_path,
        "model_sha256": fingerprint(model),
        "pooling": pooling_name(model),
        "prompt": engine.prompt,
        "max_seq_length": model.max_seq_length,
        "normalized": config.normalize_embeddings,
        "versions": library_versions(),
    }
    return InferenceResult(embed_tables(plan.source, engine, config.output_path, manifest), engine.prompt)
