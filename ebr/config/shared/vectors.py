"""Options that every command that reads vector files made elsewhere has, each defined once."""

from __future__ import annotations

from typing import Any

from ebr.config.options import option


def vector_delimiter_option() -> Any:  # noqa: ANN401
    """delimiter, as every command that reads vector files has it."""
    return option(
        "\x01",
        "between columns, for a vector file made elsewhere: \\001, \\t, or the character",
        "列分隔符（用于外来向量文件）：\\001、\\t 或字符本身",
        min_length=1,
    )


def vector_column_option() -> Any:  # noqa: ANN401
    """vector_column, as every command that reads vector files has it."""
    return option(
        None,
        "the vectors' column in a file made elsewhere, or what stands before the number in the names of one column a number; "
        "not set = vector, embedding or the like, or columns like x_0, x_1",
        "外来向量文件中向量所在的列，或每列一个数时序号前的部分；未设置时为 vector、embedding 等，或 x_0、x_1 这样的列",
        min_length=1,
    )
