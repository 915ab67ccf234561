"""Trials: one recipe, so many steps, what it is worth on the part to choose on, and what it took; each is kept.

And soups: the mean of what several trials learnt, measured as a trial is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ebr.config import (
    EvaluationConfig,
    ExtendConfig,
    FinetuneConfig,
    MiningConfig,
    PairsConfig,
    TuneConfig,
)
from ebr.config.mining import HYBRID
from ebr.config.shared.objective import LOSSES
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.files.write import FOLDER_MANIFEST, manifest_path, read_json, write_json
from ebr.data.speech import silence
from ebr.data.text.counted import counted
from ebr.data.training.answers import SameAnswer
from ebr.workflow.tune.parts import Parts, Split, thinned, write_parts
from ebr.workflow.tune.recipes import Ingredient, Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.measures.measurement import Evaluation

Scores = npt.NDArray[np.float64]
METRIC, LIKELIHOOD = "ndcg@10", "log-likelihood"
DEPTH = 100
"""Documents ranked a query: as deep as Recall@100 looks."""
_RECORD, _BASE = "trial.json", "base.json"
_SAVES = 4
"""Checkpoints that a trial writes on its way, so that a killed one loses a quarter of itself at most."""


@dataclass(frozen=True, eq=False)
class Figures:
    """Of a model on the part to choose on, by query: (Q,) each, higher is better.

    ndcg: nDCG@10, 0 to 1. likelihood: see ebr.retrieval.measures.likelihood.
    """

    ndcg: Scores
    likelihood: Scores

    @classmethod
    def of(cls, evaluation: Evaluation) -> Figures:
        """Those of Workshop.evaluate."""
        return cls(evaluation.scores[METRIC], evaluation.scores[LIKELIHOOD])

    @classmethod
    def joined(cls, several: Sequence[Figures]) -> Figures:
        """Of the queries of several parts."""
        return cls(np.concatenate([one.ndcg for one in several]), np.concatenate([one.likelihood for one in several]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"ndcg": self.ndcg.tolist(), "likelihood": self.likelihood.tolist()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Figures:
        """What to_json wrote."""
        return cls(np.asarray(record["ndcg"], np.float64), np.asarray(record["likelihood"], np.float64))


class _Measured:
    """What was measured on the part to choose on. figures: None = nothing was."""

    figures: Figures | None

    @property
    def ndcg(self) -> Scores:
        """(Q,) nDCG@10 by query."""
        return self.measured.ndcg

    @property
    def measured(self) -> Figures:
        """The figures of what has some."""
        assert self.figures is not None
        return self.figures

    @property
    def mean(self) -> float:
        """nDCG@10."""
        return float(np.mean(self.ndcg))


@dataclass(frozen=True, eq=False)
class Trial(_Measured):
    """One recipe tried. model: the folder of the trained model, an adapter or a whole one."""

    recipe: Recipe
    steps: int
    model: str
    figures: Figures | None
    train_s: float
    took_s: float
    """With what was made for it first, loading, and the evaluation."""

    @property
    def told(self) -> str:
        """As people are told of it."""
        return f"{self.recipe.name} with {self.steps:,} steps"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = self.figures.to_json() if self.figures else None
        return {**vars(self), "recipe": self.recipe.to_json(), "figures": figures}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trial:
        """What to_json wrote."""
        figures = Figures.from_json(record["figures"]) if record["figures"] else None
        return cls(**{**record, "recipe": Recipe.from_json(record["recipe"]), "figures": figures})


@dataclass(frozen=True, eq=False)
class Soup(_Measured):
    """Trials of one base as one model, the mean of what they learnt: Wortsman et al. 2022, "Model soups"; or one alone.

    took_s: of merging and measuring it, its trials apart.
    """

    members: tuple[Trial, ...]
    figures: Figures | None = None
    took_s: float = 0.0

    @classmethod
    def of(cls, trial: Trial) -> Soup:
        """One trial alone."""
        return cls((trial,), trial.figures)

    @property
    def name(self) -> str:
        """As people are told of it."""
        return self.members[0].recipe.name if len(self.members) == 1 else f"soup of {len(self.members)}"

    @property
    def told(self) -> str:
        """Every training, in words."""
        return f"{'the mean of ' if len(self.members) > 1 else ''}{', '.join(one.told for one in self.members)}"

    @property
    def steps(self) -> int:
        """Of all that went into it."""
        return sum(one.steps for one in self.members)


@dataclass(frozen=True)
class Workshop:
    """Makes what recipes need, trains them, and measures them; whatever is there already is not made again.

    bf16: whether products are in bfloat16, found out once for all trials. choose: the set of the part to choose on.
    number: of a further one, 0 = the first. on_all: whether it trains on the records of that part too.
    """

    config: TuneConfig
    parts: Parts
    choose: EvaluationSet
    same_answer: SameAnswer
    bf16: bool
    work: Path
    on_all: bool = False
    number: int = 0

    @property
    def label(self) -> str:
        """What it does, in a word or two."""
        if self.on_all:
            return "on all"
        return f"part {self.number + 1}" if self.number else "trial"

    def with_what_was_chosen_on(self) -> Workshop:
        """The same, trained on all records but those of the test part; what it makes has a place of its own."""
        return replace(self, parts=self.parts.with_what_was_chosen_on(), work=self.work / "on_all", on_all=True)

    def on_further_part(self, split: Split, number: int, share: float) -> Workshop:
        """The same with other records to choose on, in a folder of its own. share: see ebr.workflow.tune.parts.thinned."""
        work = self.work / f"further_{number}"
        parts = write_parts(split, self.config, work / "parts")
        choose = thinned(read_evaluation_set(parts.choose), share, self.config.seed)
        return replace(self, parts=replace(parts, test=self.parts.test), choose=choose, work=work, number=number)

    def on(self) -> str:
        """What is chosen on, for people."""
        queries = counted(len(self.choose.queries), "query", "queries")
        return f"{queries} and {counted(len(self.choose.documents), 'document')} to choose on"

    # ---------------------------------------------------------------- ingredients

    def base(self, recipe: Recipe) -> str:
        """The model that a recipe tunes, made where it has to be."""
        if Ingredient.EXTENDED not in recipe.ingredients:
            return self.config.model_name
        folder = self.work / "extended"
        if not (folder / FOLDER_MANIFEST).is_file():
            from ebr.model.vocabulary.command import extend_vocabulary

            extend_vocabulary(self.extending(folder), say=silence)
        return str(folder)

    def extending(self, folder: Path) -> ExtendConfig:
        """How the vocabulary is extended: by the characters of what is trained on, and of the texts beside it."""
        config = self.config
        return ExtendConfig(
            model_name=config.model_name,
            data_path=str(self.parts.train),
            corpus=[str(self.parts.corpus)],
            output_path=folder,
            seed=config.seed,
            pooling=config.pooling,
            trust_remote_code=config.trust_remote_code,
        )

    def _data(self, recipe: Recipe, base: str) -> dict[str, Any]:
        """The options that say what a recipe is trained on, made where it has to be."""
        if Ingredient.PAIRS in recipe.ingredients:
            of_each = [{"data_path": str(self.parts.train)}, {"data_path": str(self._pairs()), "weight": 0.5}]
            return {"sources": of_each}
        if recipe.is_mined:
            return {"data_path": str(self._mined(recipe, base))}
        return {"data_path": str(self.parts.train)}

    def _pairs(self) -> Path:
        path = self.work / "pairs.jsonl"
        if not manifest_path(path).is_file():
            from ebr.data.pairs.command import make_pairs

            make_pairs(PairsConfig(corpus=[str(self.parts.corpus)], output_path=path, seed=self.config.seed), say=silence)
        return path

    def _mined_path(self, recipe: Recipe) -> Path:
        return self.work / f"mined{'-extended' if Ingredient.EXTENDED in recipe.ingredients else ''}.jsonl"

    def has_mined(self, recipe: Recipe) -> bool:
        """Whether the negatives of a recipe are there."""
        return manifest_path(self._mined_path(recipe)).is_file()

    def _mined(self, recipe: Recipe, base: str) -> Path:
        """Records with negatives that the base mines, and the hybrid's scores of them, which not every recipe reads."""
        path = self._mined_path(recipe)
        if not self.has_mined(recipe):
            from ebr.retrieval.mining.command import mine_hard_negatives

            config = self.config
            mining = MiningConfig(
                model_path=base,
                data_path=str(self.parts.train),
                corpus=self.parts.corpus,
                output_path=path,
                teacher=HYBRID,
                same_answer=self.same_answer,
                seed=config.seed,
                max_seq_length=config.max_seq_length,
                query_prompt=config.query_prompt,
                passage_prompt=config.passage_prompt,
                pooling=config.pooling,
                trust_remote_code=config.trust_remote_code,
            )
            mine_hard_negatives(mining, say=silence)
        return path

    # ---------------------------------------------------------------- training

    def finetuning(self, recipe: Recipe, steps: int, folder: Path) -> FinetuneConfig:
        """The options of a trial's training; what it needs is made first."""
        config, base = self.config, self.base(recipe)
        masks = LOSSES[str(recipe.options.get("loss", "info_nce"))].masks
        options = {
            "model_name": base,
            "output_dir": folder,
            "finetune_type": config.finetune_type,
            "train_batch_size": config.train_batch_size,
            "max_seq_length": config.max_seq_length,
            "query_prompt": config.query_prompt,
            "passage_prompt": config.passage_prompt,
            "pooling": config.pooling,
            "trust_remote_code": config.trust_remote_code,
            "seed": config.seed,
            "bf16": self.bf16,
            "validation_split": 0,
            "max_steps": steps,
            "save_steps": max(1, steps // _SAVES),
            "save_total_limit": 1,
            "report_to": ["none"],
        }
        same_answer = {"same_answer": self.same_answer} if masks else {}
        return FinetuneConfig(**{**options, **same_answer, **self._data(recipe, base), **recipe.options})

    def trained(self, recipe: Recipe, steps: int, folder: Path) -> tuple[str, float]:
        """The folder of the model that a recipe gives, and the seconds of training; a training that was killed goes on."""
        from ebr.training.loop.checkpoints import whole_checkpoints
        from ebr.training.plan import layout_of
        from ebr.workflow.finetuning import train_sentence_transformer

        config = self.finetuning(recipe, steps, folder)
        if whole_checkpoints(layout_of(config).work):
            config.resume_from_checkpoint = True
        result = train_sentence_transformer(config, say=silence, ask=_nobody)
        # Its checkpoints and logs: the model is whole. Half of them would pass for a run of somebody else.
        done = folder / "done"
        shutil.rmtree(done, ignore_errors=True)
        layout_of(config).work.rename(done)
        shutil.rmtree(done, ignore_errors=True)
        return str(result.model_path), result.record.duration_s

    # ---------------------------------------------------------------- measuring

    def loaded(self, path: str) -> LoadedModel:
        """A model as it is measured: the base with the prompts and lengths of the tuning, a tuned one as it was saved."""
        from ebr.retrieval.evaluation.models import load_for_evaluation

        config = self.config
        own: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
        if path == config.model_name:
            own |= {
                "max_seq_length": config.max_seq_length,
                "query_prompt": config.query_prompt,
                "passage_prompt": config.passage_prompt,
                "pooling": config.pooling,
            }
        return load_for_evaluation(EvaluationConfig(models=[path], eval_dataset=self.parts.choose, **own), path)

    def evaluate(self, path: str) -> Evaluation:
        """A model on the part to choose on, LIKELIHOOD among its scores."""
        return self.measured(self.loaded(path).model)

    def figures_of_base(self) -> Figures:
        """The untuned model's, measured once."""
        path = self.work / _BASE
        if not path.is_file():
            write_json(path, Figures.of(self.evaluate(self.config.model_name)).to_json())
        return Figures.from_json(read_json(path))

    def measured(self, model: SentenceTransformer) -> Evaluation:
        """A loaded model on the part to choose on, likewise."""
        from ebr.model.compute.local_engine import RetrievalEncoder
        from ebr.retrieval.measures.likelihood import log_likelihoods
        from ebr.retrieval.measures.measurement import evaluate_vectors

        encode, dataset = RetrievalEncoder(model, show_progress=False), self.choose
        queries, documents = encode.encode_queries(dataset.queries), encode.encode_documents(dataset.documents)
        found = evaluate_vectors(queries, documents, dataset, k=DEPTH)
        return replace(found, scores=found.scores | {LIKELIHOOD: log_likelihoods(queries, documents, dataset)})

    def _folder(self, recipe: Recipe, steps: int) -> Path:
        return self.work / "trials" / f"{recipe.name}-{steps}"

    def has_tried(self, recipe: Recipe, steps: int) -> bool:
        """Whether a trial is kept from before."""
        return (self._folder(recipe, steps) / _RECORD).is_file()

    def run(self, recipe: Recipe, steps: int, *, measure: bool = True) -> tuple[Trial, bool]:
        """The trial of a recipe with so many steps, and whether it is new: one that is kept is not run again.

        measure: False leaves it without figures, where nothing is chosen by them.
        """
        folder = self._folder(recipe, steps)
        if self.has_tried(recipe, steps):
            kept = Trial.from_json(read_json(folder / _RECORD))
            return replace(kept, model=str(folder / kept.model)), False  # the whole work may have moved
        started = time.perf_counter()
        model, train_s = self.trained(recipe, steps, folder)
        figures = Figures.of(self.evaluate(model)) if measure else None
        took_s = time.perf_counter() - started
        trial = Trial(recipe, steps, model, figures, round(train_s, 1), round(took_s, 1))
        write_json(folder / _RECORD, trial.to_json() | {"model": Path(model).relative_to(folder).as_posix()})
        return trial, True


def _nobody(question: str) -> str:
    """Nobody is asked where else to save a trial."""
    return ""
