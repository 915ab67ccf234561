"""Options of batch inference."""

from __future__ import annotations

from pathlib import Path

from ebr.config.options import Config, Names, option


class InferenceConfig(Config):
    """Embed one text column of delimited tables into a vector file."""

    model_path: str = option(
        "all-MiniLM-L6-v2",
        "model: a local folder (a tuned adapter too), the embedded model by its name, or a hub id",
        "模型：本地目录（包括微调得到的适配器）、内置模型名或 hub id",
    )
    trust_remote_code: bool = option(
        False,
        "run Python code that comes with the model; only for sources you trust",
        "运行模型自带的 Python 代码；仅用于可信来源",
    )
    input_dir: Path = option(Path("./infer_data"), "folder of tables, subfolders included", "输入表所在目录（含子目录）")
    file_pattern: str = option("*.csv", "which files of the folder", "目录中的文件匹配模式")
    delimiter: str = option(
        "\x01", "between columns: \\001, \\t, or the character itself", "列分隔符：\\001、\\t 或字符本身", min_length=1
    )
    description_column: str = option("description", "the column to embed", "要编码的文本列")
    prompt: str | None = option(
        None,
        "put before every text; not set = the prompt saved with the model; '' = none",
        "加在每条文本之前的提示；未设置时用模型保存的提示；'' 表示不加",
    )
    output_columns: Names | None = option(
        None, "columns copied to the output; not set = every input column", "输出中保留的列；未设置时保留所有输入列"
    )
    output_path: Path = option(Path("./faiss/embeds_2.txt"), "the vector file", "向量文件")
    batch_size: int = option(32, "texts a forward pass", "每次前向计算的文本数", ge=1)
    normalize_embeddings: bool = option(True, "unit vectors, so that inner product is cosine", "归一化为单位向量，内积即余弦")
    max_seq_length: int | None = option(
        None, "tokens kept of a text; not set = as the model was saved", "每条文本保留的 token 数；未设置时按模型保存值", ge=4
    )
    truncate_dim: int | None = option(
        None, "keep only the first N dimensions (Matryoshka models)", "只保留前 N 维（Matryoshka 模型）", ge=1
    )
