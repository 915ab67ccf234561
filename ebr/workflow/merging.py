"""Merge: what was tuned goes into its base, as much of it as was asked for, or as is best on an evaluation set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebr.config import MergeConfig
from ebr.data.speech import Say, speak
from ebr.model.command import MergeResult, merge_planned
from ebr.model.merge_plan import MergePlan, plan_merge

if TYPE_CHECKING:
    from ebr.retrieval.evaluation.weight_search import WeightSearch


def merge_adapter(config: MergeConfig, *, say: Say = speak) -> MergeResult:
    """Merge adapters or tuned models into their unquantised base, in float32, and save a whole sentence-transformers folder.

    weight says how much of the tuning, auto that it is chosen on eval_dataset. The saved model is loaded again and compared
    with what it was merged from before it takes its place; what was at output_path stays until then. Raises EBRError subclasses
    that say what to mend.
    """
    plan = plan_merge(config)
    for line in plan.lines():
        say(line)
    return merge_planned(plan, _search(plan, say) if plan.datasets else None, say=say)


def _search(plan: MergePlan, say: Say) -> WeightSearch:
    from ebr.retrieval.evaluation.command import dataset_origin
    from ebr.retrieval.evaluation.weight_search import WeightSearch

    config = plan.config
    folders = [folder for folder in (config.eval_dataset, config.forgetting_dataset) if folder]
    sets = [(dataset, dataset_origin(folder)) for dataset, folder in zip(plan.datasets, folders, strict=True)]
    return WeightSearch(sets, [str(one.folder) for one in plan.tuned], config.to_json(), say)
