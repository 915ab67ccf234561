"""Options of the objective: what training minimises, and which options and data each objective reads."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ebr.config.options import Config, option
from ebr.errors import ConfigError

INFO_NCE, DISTILLATION = "info_nce", "distillation"


class Need(Enum):
    """Whether an objective reads something of the data: never, where it is there, or in every record."""

    NEVER = "never"
    WHERE_GIVEN = "where given"
    ALWAYS = "always"


@dataclass(frozen=True)
class LossTraits:
    """What an objective reads. options: of those that not every objective reads; the record's own negatives; teacher scores.

    masks: whether it leaves out a candidate that is a right answer to the query, as far as no teacher scores it.
    """

    options: frozenset[str]
    negatives: Need
    scores: Need
    masks: bool

    @property
    def in_batch(self) -> bool:
        """Whether a query is compared with the texts of the batch's other records."""
        return "gather_negatives" in self.options


def _reads(*options: str, negatives: Need = Need.NEVER, scores: Need = Need.NEVER, masks: bool = True) -> LossTraits:
    return LossTraits(frozenset(options) | ({"same_answer"} if masks else set()), negatives, scores, masks)


_CONTRASTIVE = ("temperature", "label_smoothing", "bidirectional", "gather_negatives", "several_positives")
_SCORED = (Need.ALWAYS, Need.ALWAYS, False)
"""Negatives and scores in every record; right answers are told by their score."""

LOSSES: dict[str, LossTraits] = {
    INFO_NCE: _reads(*_CONTRASTIVE, negatives=Need.WHERE_GIVEN),
    DISTILLATION: _reads(
        *_CONTRASTIVE, "contrastive_weight", "teacher_temperature", negatives=Need.WHERE_GIVEN, scores=Need.ALWAYS
    ),
    "MultipleNegativesRankingLoss": _reads(
        "temperature", "bidirectional", "gather_negatives", negatives=Need.WHERE_GIVEN, masks=False
    ),
    "TripletLoss": _reads(negatives=Need.ALWAYS),
    "ContrastiveLoss": _reads(negatives=Need.ALWAYS),
    "OnlineContrastiveLoss": _reads(negatives=Need.ALWAYS),
    # Without scores a positive counts as 1 and a negative as 0: then each record needs both; see check_data.
    "CoSENTLoss": _reads("temperature", negatives=Need.WHERE_GIVEN, scores=Need.WHERE_GIVEN),
    "AnglELoss": _reads("temperature", negatives=Need.WHERE_GIVEN, scores=Need.WHERE_GIVEN),
    "CosineSimilarityLoss": _reads(negatives=Need.WHERE_GIVEN, scores=Need.WHERE_GIVEN),
    "MarginMSELoss": LossTraits(frozenset(), *_SCORED),
    "DistillKLDivLoss": LossTraits(frozenset({"temperature", "teacher_temperature"}), *_SCORED),
}
"""By name: ours, then those of sentence-transformers that work from the vectors of pairs, negatives and scores."""

# What a user of sentence-transformers may look for, and what does that here.
_INSTEAD = {
    "CachedMultipleNegativesRankingLoss": "MultipleNegativesRankingLoss, or info_nce; either is cached when memory asks for it",
    "MultipleNegativesSymmetricRankingLoss": "MultipleNegativesRankingLoss, or info_nce, with bidirectional",
    "CachedMultipleNegativesSymmetricRankingLoss": "info_nce with bidirectional; it is cached when memory asks for it",
    "GISTEmbedLoss": "info_nce, which hides false negatives by their text, without a guide model",
    "CachedGISTEmbedLoss": "info_nce, which hides false negatives by their text, without a guide model",
    "MatryoshkaLoss": "matryoshka_dims with any loss",
}


def _split_numbers(value: object) -> object:
    """`--matryoshka_dims 384,128` comes as a list of one text, the notebook's "384 128" as the text itself."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list):
        return [number for item in value for number in (item.replace(",", " ").split() if isinstance(item, str) else [item])]
    return value


Dimensions = Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_split_numbers)]
"""Numbers of dimensions; '384 128', '384,128' and [384, 128] are the same."""


class ObjectiveOptions(Config):
    """Objective."""

    loss: str = option(
        INFO_NCE,
        "info_nce: pick the positive among the batch's candidates; distillation: agree with the data's teacher scores; "
        "or a loss of sentence-transformers by name, like CoSENTLoss",
        "info_nce：在批内候选中选出正例；distillation：贴近数据中的教师分数；或 sentence-transformers 的损失名，如 CoSENTLoss",
    )
    temperature: float = option(0.05, "logits are cosine / temperature", "logit = 余弦相似度 / temperature", gt=0)
    bidirectional: bool = option(
        False, "the in-batch loss also picks the query for each positive", "批内对比损失同时为每个正例选出其查询（双向）"
    )
    same_answer: Literal["auto", "text", "chain"] = option(
        "auto",
        "which texts of a batch are right for a query and no negatives: text = what its records say; chain = whatever records "
        "lead to from it (intents, duplicates); auto = chain where the records join texts of one kind",
        "批内哪些文本也是查询的正确答案、不作负例：text 只看该查询的记录；chain 还包括经由记录链可达的文本（意图、重复问题）；"
        "auto 在记录连接同类文本时取 chain",
    )
    several_positives: bool = option(
        False,
        "right answers that stand in the batch by chance are learned as positives too, rather than hidden",
        "批内碰巧出现的其他正确答案也作为正例学习，而不是屏蔽",
    )
    gather_negatives: bool = option(
        False,
        "with several processes: every query also sees the candidates of the other processes",
        "多进程训练时，每个查询也以其他进程的候选为负例",
    )
    label_smoothing: float = option(
        0.0, "share of the target spread evenly over all candidates", "均分给所有候选的目标概率", ge=0, lt=1
    )
    matryoshka_dims: Dimensions | None = option(
        None,
        "minimise the mean loss over these first dimensions, like 384 128 64, so that shortened vectors work too; "
        "not set = the whole vector, which must be named too where it is to stay good",
        "对向量的前若干维（如 384 128 64）取平均损失，截短的向量也可用；未设置时只用整个向量；整个向量也要保持质量时须一并列出",
    )
    teacher_temperature: float = option(
        1.0, "the teacher's scores are divided by this before the softmax", "教师分数先除以此值再做 softmax", gt=0
    )
    contrastive_weight: float = option(
        1.0, "share of info_nce that distillation adds; 0 = none", "distillation 中附加的 info_nce 的权重；0 表示不加", ge=0
    )


def reads_same_answer(config: Any) -> bool:  # noqa: ANN401 - a FinetuneConfig, as below
    """Whether the loss hides, or learns, right answers that stand in the batch by chance; distillation in its info_nce."""
    return LOSSES[config.loss].masks and not (config.loss == DISTILLATION and config.contrastive_weight == 0)


def check_objective(config: Any) -> None:  # noqa: ANN401 - a FinetuneConfig, which is made from the class above
    """Refuse an objective that there is not, and options that it never reads. Raises ConfigError."""
    traits = LOSSES.get(config.loss)
    if traits is None:
        raise ConfigError(_unknown(config.loss))
    idle = {name for other in LOSSES.values() for name in other.options} - traits.options
    if config.loss == DISTILLATION and config.contrastive_weight == 0:
        idle |= {"label_smoothing", "bidirectional", "gather_negatives", "same_answer", "several_positives"}
    for name in sorted(idle):
        if getattr(config, name) != type(config).model_fields[name].default:
            alone = " alone (contrastive_weight 0)" if name in traits.options else ""
            raise ConfigError(
                f"{config.spelling(name)}: has no meaning with loss {config.loss}{alone}; leave one of the two out"
            )
    if config.neg_nums == 0 and (traits.negatives is Need.ALWAYS or config.loss == DISTILLATION):
        raise ConfigError(f"neg_nums: loss {config.loss} learns from a record's own negatives; set it to 1 or more")


def _unknown(loss: str) -> str:
    if loss in _INSTEAD:
        return f"loss: {loss} is not needed here; use {_INSTEAD[loss]}"
    # It may well be a loss of sentence-transformers, but one that wants a guide, a decoder, classes or a layer.
    by_lower = {name.lower(): name for name in LOSSES}
    near = difflib.get_close_matches(loss.lower(), by_lower, n=1, cutoff=0.75)
    meant = f"; did you mean {by_lower[near[0]]}?" if near else ""
    return f"loss: {loss} is none that learns from queries, positives and negatives here{meant}; there is {', '.join(LOSSES)}"
