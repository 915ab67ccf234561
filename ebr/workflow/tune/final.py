"""The model that a tuning ends with: the chosen trial merged into its base, as much of it as is best."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config import MergeConfig, TuneConfig
from ebr.config.models.merge import AUTO
from ebr.data.evaluation.comparison import EVALUATION_JSON
from ebr.data.files.write import FOLDER_MANIFEST, read_manifest, write_json
from ebr.data.speech import Say, silence
from ebr.workflow.tune.state import MODEL
from ebr.workflow.tune.trials import Trial, Workshop

if TYPE_CHECKING:
    from ebr.retrieval.report.write import Report

WEIGHTS = (0.0, 0.4, 0.6, 0.8, 1.0)
"""How much of a tuning is tried."""


@dataclass(frozen=True)
class FinalModel:
    """A whole model on its way to its place. weight: how much of the trial was merged."""

    folder: Path
    trial: Trial
    weight: float

    def describe(self, config: TuneConfig, inputs: Mapping[str, str], report: Report | None) -> None:
        """Say what the model was made of, and put the proof beside it: report, thresholds, card.

        Its base and records are those of the tuning: the folders that it was made in are gone afterwards. report: with the
        model first after the base; None = none was made.
        """
        from ebr.model.base_card import base_card
        from ebr.model.card import read_report, write_card
        from ebr.model.origin import resolve_model
        from ebr.retrieval.report.write import write_report

        of_tuning = {"base_model": config.model_name, "base_card": base_card(resolve_model(config.model_name))}
        manifest, trained = ((read_manifest(one) or {}) | of_tuning for one in (self.folder, Path(self.trial.model)))
        manifest |= {"config": config.to_json(), "data_sha256": inputs["data_path"], "recipe": self.trial.recipe.to_json()}
        manifest.pop("adapter", None)
        if report:
            write_json(self.folder / EVALUATION_JSON, report.main.evaluation_json())
            write_report(self.folder, report, config.language)
        write_card(self.folder, MODEL, manifest, trained, read_report(self.folder))
        write_json(self.folder / FOLDER_MANIFEST, manifest)

    def move_to(self, place: Path) -> None:
        """Give it its place."""
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed between this and its manifest
        self.folder.rename(place)


def make_final(shop: Workshop, trial: Trial, say: Say, weight: float | None = None) -> FinalModel:
    """Merge a trial into its base. weight: None = the best of WEIGHTS on the part to choose on."""
    base = shop.base(trial.recipe)
    if weight is None:
        weight = _best_weight(shop, trial, base, say)
    folder = shop.work / "final"
    shutil.rmtree(folder, ignore_errors=True)
    from ebr.workflow.merging import merge_adapter

    merge_adapter(_merging(shop, trial, base, folder, weight), say=silence)
    return FinalModel(folder, trial, weight)


def _best_weight(shop: Workshop, trial: Trial, base: str, say: Say) -> float:
    """Of equals the smallest: it changes least of what the base could."""
    from ebr.model.command import merge_planned
    from ebr.model.merge_plan import plan_merge
    from ebr.retrieval.evaluation.weight_search import WeightSearch

    folder = shop.work / "dial"
    shutil.rmtree(folder, ignore_errors=True)
    config = _merging(shop, trial, base, folder, AUTO)
    search = WeightSearch([(shop.choose, {})], [trial.model], config.to_json(), silence, weights=WEIGHTS)
    found = merge_planned(plan_merge(config), search, say=silence)
    shutil.rmtree(folder, ignore_errors=True)
    tried = (
        ", ".join(f"{one['weight']:g}: {one['ndcg@10'][0]:.4f}" for one in found.choice.record["tried"]) if found.choice else ""
    )
    say(f"dial    weight {found.weight:g} is taken ({tried})")
    return found.weight


def _merging(shop: Workshop, trial: Trial, base: str, folder: Path, weight: float | str) -> MergeConfig:
    is_whole = shop.config.finetune_type == "full"
    tuned = {"adapters": [trial.model]} if is_whole else {"lora_adapter_path": trial.model}
    chosen_on = {"eval_dataset": shop.parts.choose} if weight == AUTO else {}
    return MergeConfig(
        base_model_path=base,
        output_path=folder,
        weight=weight,
        trust_remote_code=shop.config.trust_remote_code,
        **tuned,
        **chosen_on,
    )
