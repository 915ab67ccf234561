"""Build the sample corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebr.config import SampleConfig
from ebr.data.files.write import FOLDER_MANIFEST, read_manifest, write_json
from ebr.data.speech import Say, speak
from ebr.errors import ConfigError

if TYPE_CHECKING:
    from ebr.data.sample.corpus import SampleCorpus


@dataclass(frozen=True)
class SamplePlan:
    """Where a sample corpus would go."""

    config: SampleConfig

    def lines(self) -> list[str]:
        """The plan, for people."""
        root, config = self.config.output_root, self.config
        return [
            f"output  {root / 'train_text'}: {config.train_pairs:,} training pairs at most",
            f"output  {root / 'datasets' / 'api_docs'}: {config.eval_queries:,} evaluation queries at most",
            f"output  {root / 'infer_data'}: the same objects as a table",
        ]


def plan_sample(config: SampleConfig) -> SamplePlan:
    """Say where a sample corpus would go. Raises ConfigError where something else lies there."""
    from ebr.data.sample.corpus import sample_places

    places = sample_places(config.output_root)
    is_sample = places[-1].is_dir() and (read_manifest(places[-1]) or {}).get("kind") == "sample"
    foreign = next((place for place in places if place.is_file() or (place.is_dir() and any(place.iterdir()))), None)
    if foreign and not is_sample:
        raise ConfigError(f"output_root {config.output_root}: {foreign} is no sample of ours; move it, or give another folder")
    return SamplePlan(config)


def build_sample_corpus(config: SampleConfig, *, say: Say = speak) -> SampleCorpus:
    """Build the sample corpus from the documentation of the installed libraries."""
    from ebr.data.sample.corpus import build_sample

    plan_sample(config)
    say("reading the documentation of the installed libraries")
    corpus = build_sample(
        config.output_root, train_pairs=config.train_pairs, eval_queries=config.eval_queries, seed=config.seed
    )
    manifest = {"kind": "sample", "config": config.to_json(), "documented": corpus.versions}
    write_json(corpus.evaluation_dir / FOLDER_MANIFEST, manifest)
    return corpus
