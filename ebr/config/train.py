"""Options of `train.py`: those of fine-tuning, by the names and with the defaults that its users know."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from ebr.config.finetune import FinetuneConfig

_SPELLINGS = {
    "model_name": "model_name_or_path",
    "data_path": "train_dataset",
    "train_batch_size": "batch_size",
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "warmup_ratio": "warmup_proportion",
    "dataloader_num_workers": "num_workers",
    "report_to": "log_with",
}
_DEFAULTS = {
    "model_name": ...,
    "data_path": ...,
    "output_dir": ...,
    "train_batch_size": ...,
    "finetune_type": "qlora",
    "learning_rate": 1e-4,
    "num_epochs": 2,
    "temperature": 0.02,
    "query_max_len": 256,
    "passage_max_len": 1024,
    "save_on_epoch_end": 1,
    "save_steps": 0,
    "gradient_accumulation_steps": 4,
    "warmup_ratio": 0.05,
    "validation_split": 0.0,
}
_HELP = {
    "data_path": (
        "training records {query, pos: [...], neg: [...]} (.json, .jsonl, .csv, .tsv, .parquet; .gz): a file, glob or folder",
        "训练数据 {query, pos: [...], neg: [...]}（.json、.jsonl、.csv、.tsv、.parquet，可为 .gz）：文件、通配符或目录",
    ),
    "sources": (
        "several training sources instead of train_dataset: "
        "a JSON list of {data_path, weight, query_prompt, passage_prompt, name}",
        "多个训练数据源，代替 train_dataset：JSON 列表，每项为 {data_path, weight, query_prompt, passage_prompt, name}",
    ),
    "output_dir": ("the finished model goes to <output_dir>/final", "训练好的模型写入 <output_dir>/final"),
    "learning_rate": ("peak learning rate; for full, start from 1e-5", "学习率峰值；full 建议从 1e-5 开始"),
}


def _respelled(name: str, field: FieldInfo) -> tuple[Any, FieldInfo]:
    """The same field - type, limits, meaning - by its other name and with its other default."""
    extra = field.json_schema_extra
    zh = extra["zh"] if isinstance(extra, dict) else ""
    help_en, help_zh = _HELP.get(name, (field.description, zh))
    limits: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    other: Any = Field(
        _DEFAULTS.get(name, field.default),
        alias=_SPELLINGS.get(name),
        description=help_en,
        json_schema_extra={"zh": str(help_zh)},
        validate_default=False,
    )
    return limits, other


_fields: dict[str, Any] = {
    name: _respelled(name, field)
    for name, field in FinetuneConfig.model_fields.items()
    if name in {*_SPELLINGS, *_DEFAULTS, *_HELP}
}
TrainConfig: type[FinetuneConfig] = create_model(
    "TrainConfig",
    __base__=FinetuneConfig,
    __doc__="Fine-tune an embedding model from queries with lists of positive and negative passages (JSONL).",
    __module__=__name__,
    **_fields,
)
