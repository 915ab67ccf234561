"""Options of training data: several sources with their own weight and prompts, and who shares a batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from ebr.config.options import Config, option
from ebr.errors import ConfigError


def _file_or_entries(value: object) -> object:
    """A file's path, or the entries themselves; what an entry holds is judged where it is read, beside the file's."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, Mapping) for entry in value):
        return tuple({str(key): _plain(item) for key, item in entry.items()} for entry in value)
    if value is None or isinstance(value, Path) or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError('must be a JSON file or a list of entries like {"data_path": "faq.jsonl", "weight": 0.5}')


def _plain(item: object) -> object:
    """A record is JSON, which has no paths."""
    return str(item) if isinstance(item, Path) else item


class SourceOptions(Config):
    """Data."""

    sources: Annotated[Path | tuple[dict[str, Any], ...] | None, BeforeValidator(_file_or_entries)] = option(
        None,
        "several training sources instead of data_path: a JSON list of {data_path, weight, query_prompt, passage_prompt, name}",
        "多个训练数据源，代替 data_path：JSON 列表，每项为 {data_path, weight, query_prompt, passage_prompt, name}",
    )
    neg_nums: int = option(
        2,
        "negatives drawn a record and epoch, where it has any; 0 = only the batch's",
        "每轮为每条记录抽取的负例数（若有）；0 表示只用批内负例",
        ge=0,
    )
    validation_split: float = option(
        0.1,
        "share of the records held out for the validation loss; records that share a query or a positive stay together",
        "留作验证集的比例；共享查询或正例的记录不会被拆开",
        ge=0,
        lt=1,
    )
    group_by_length: bool = option(
        False,
        "whole batches of texts of like length: less padding, but in-batch negatives of like length, which can teach less",
        "按长度相近的文本组成整批：填充更少，但批内负例长度也相近，学到的可能更少",
    )

    @model_validator(mode="before")
    @classmethod
    def _sources_stand_for_data_path(cls, values: Any) -> Any:  # noqa: ANN401
        """Where data_path has no default, sources take its place."""
        field = cls.model_fields.get("data_path")
        if isinstance(values, dict) and values.get("sources") is not None and field is not None and field.is_required():
            return {"data_path": "", **values}
        return values

    def check_sources(self) -> None:
        """Refuse data_path and sources together. Raises ConfigError."""
        if self.sources is None:
            return
        field = type(self).model_fields["data_path"]
        if self["data_path"] != ("" if field.is_required() else field.default):
            raise ConfigError(
                f"{self.spelling('data_path')}, sources: both say what to train on; leave one of the two out, "
                f"or make {self['data_path']} one of the sources"
            )
