"""Options of batch inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ebr.config.options import Config, Names, option
from ebr.config.shared.encoder import PoolingMode, base_model_option, pooling_option, trust_option
from ebr.errors import ConfigError


class _Main(Config):
    """What matters first."""

    model_path: str = option(
        "all-MiniLM-L6-v2",
        "model: a local folder (a tuned adapter too), the embedded model by its name, or a hub id",
        "模型：本地目录（包括微调得到的适配器）、内置模型名或 hub id",
    )
    input_dir: Path = option(
        Path("./infer_data"),
        "folder of tables, subfolders included; folders like dt=2026-01-01 become columns",
        "输入表所在目录（含子目录）；dt=2026-01-01 这样的目录会成为列",
    )
    file_pattern: str = option("*", "which files of the folder, like *.parquet", "目录中的文件匹配模式，如 *.parquet")
    description_column: str = option("description", "the column to embed", "要编码的文本列")
    prompt: str | None = option(
        None,
        "put before every text; not set = the prompt saved with the model; '' = none",
        "加在每条文本之前的提示；未设置时用模型保存的提示；'' 表示不加",
    )
    max_seq_length: int | None = option(
        None, "tokens kept of a text; not set = as the model was saved", "每条文本保留的 token 数；未设置时按模型保存值", ge=4
    )
    output_path: Path = option(
        Path("./faiss/embeds_2.txt"),
        "with a suffix: one vector file; without: a folder of one part a shard",
        "带后缀为单个向量文件；不带后缀为目录，每个分片一个文件",
    )
    output_columns: Names | None = option(
        None, "columns copied to the output; not set = every input column", "输出中保留的列；未设置时保留所有输入列"
    )
    output_format: Literal["txt", "parquet", "npy"] | None = option(
        None,
        "txt, parquet or npy; not set = by the suffix of output_path, txt for a folder",
        "txt、parquet 或 npy；未设置时由 output_path 的后缀决定，目录为 txt",
    )
    batch_size: int | None = option(
        None,
        "at most so many texts a forward pass; not set = token_budget alone decides",
        "每次前向计算最多的文本数；未设置时只由 token_budget 决定",
        ge=1,
    )
    incremental_key: str | None = option(
        None,
        "column that names a row: over a finished output, only rows whose text changed are embedded again",
        "标识一行的列：在已完成的输出上重跑时，只重新编码文本有变化的行",
    )
    engine: Literal["local", "processes", "ray"] = option(
        "local",
        "who computes: this process, one process a GPU or group of cores, or actors of a Ray cluster",
        "由谁计算：本进程、每个 GPU 或一组核心一个进程，或 Ray 集群的 actor",
    )


class _TextFiles(Config):
    """Text files."""

    delimiter: str = option(
        "\x01", "between columns: \\001, \\t, or the character itself", "列分隔符：\\001、\\t 或字符本身", min_length=1
    )
    column_names: Names | None = option(
        None,
        "names of the columns, for text files without a header line (Hive's part files); not set = the first line names them",
        "列名，用于没有表头的文本文件（如 Hive 的 part 文件）；未设置时首行即表头",
        min_length=1,
    )
    encoding: str = option(
        "utf-8",
        "of text files: gb18030 (GBK), big5, utf-16, latin-1, …; a byte-order mark goes before it",
        "文本文件的编码：gb18030（含 GBK）、big5、utf-16、latin-1 等；文件带 BOM 时以 BOM 为准",
        min_length=1,
    )
    null_values: Names | None = option(
        None,
        "words of text files that mean null, beside \\N: NULL, as hive -e and beeline print it",
        "文本文件中除 \\N 外表示空值的词，如 hive -e 与 beeline 输出的 NULL",
    )
    quote: str | None = option(
        None,
        "around cells of text files that hold delimiters or line breaks; not set = \" under a comma; '' = none",
        "文本文件中包住含分隔符或换行的单元格的引号；未设置时仅逗号分隔用 \"；'' 表示没有",
    )
    escape: str | None = option(
        None,
        "before a quote in a quoted cell (Spark: \\), or, without quotes, before any character (Hive's ESCAPED BY)",
        "引号内写在引号之前的转义符（Spark 为 \\）；没有引号时可写在任何字符之前（Hive 的 ESCAPED BY）",
    )


class _Model(Config):
    """Model and vectors."""

    trust_remote_code: bool = trust_option()
    pooling: PoolingMode | None = pooling_option()
    base_model_path: str | None = base_model_option()
    normalize_embeddings: bool = option(True, "unit vectors, so that inner product is cosine", "归一化为单位向量，内积即余弦")
    truncate_dim: int | None = option(
        None, "keep only the first N dimensions (Matryoshka models)", "只保留前 N 维（Matryoshka 模型）", ge=1
    )


class _Output(Config):
    """Output."""

    vector_dtype: Literal["float32", "float16"] = option(
        "float32",
        "precision of the stored vectors; float16 for parquet and npy",
        "向量的存储精度；float16 仅用于 parquet 与 npy",
    )
    on_bad_row: Literal["reject", "fail"] = option(
        "reject",
        "a row that cannot be used: list it in the rejects file and go on, or stop",
        "遇到无法使用的行：写入 rejects 文件并继续，或停止",
    )
    shard_rows: int = option(
        16384,
        "rows a shard: the unit of work, what an interruption costs at most, and a part's size",
        "每个分片的行数：工作单元，也是中断时最多损失的量和每个输出分片的大小",
        ge=1,
    )


class _Speed(Config):
    """Speed and machines."""

    token_budget: int | None = option(
        None,
        "tokens a forward pass, padding included; not set = by the processor's cache or the GPU's memory",
        "每次前向计算的 token 数（含填充）；未设置时按处理器缓存或显存决定",
        ge=1,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "auto = the fastest that min_cosine allows, tried on your texts; float32 is exact; float16 needs a GPU",
        "auto 会在你的文本上试算，取满足 min_cosine 的最快者；float32 为精确；float16 需要 GPU",
    )
    min_cosine: float = option(
        0.9995,
        "of precision auto: smallest cosine to float32 that a faster way may have on the texts tried",
        "用于 precision auto：更快的方式与 float32 的最小余弦下限",
        gt=0,
        le=1,
    )
    torch_compile: Literal["auto", "always", "never"] = option(
        "auto",
        "compile the model; auto = when the work is long enough to pay for it and it is measured faster",
        "编译模型；auto 表示工作量足够大且实测更快时才用",
    )
    dedup: Literal["shard", "global", "none"] = option(
        "shard",
        "encode each distinct text once: of a shard, of all files (kept on disk meanwhile), or not",
        "相同文本只编码一次：分片内、所有文件间（期间存于磁盘），或不去重",
    )
    num_workers: int | None = option(
        None,
        "processes or Ray actors; not set = one a GPU; without GPUs one for 8 cores, at least 2 processes or 1 actor",
        "进程或 Ray actor 的个数；未设置时每个 GPU 一个；没有 GPU 时每 8 核一个，至少 2 个进程或 1 个 actor",
        ge=1,
    )
    ray_address: str | None = option(
        None,
        "the Ray cluster, like auto or ray://host:10001; not set = one on this machine",
        "Ray 集群地址，如 auto；未设置时在本机启动",
    )


# Fields come in the order of the classes from the last to the first.
class InferenceConfig(_Speed, _Output, _Model, _TextFiles, _Main):
    """Embed one text column of tables into vectors: fast, resumable, on one machine or a Ray cluster."""

    def check(self) -> None:
        """Refuse options that contradict each other, or that nothing would read. Raises ConfigError."""
        self._idle("min_cosine", self.precision == "auto", "precision auto")
        self._idle("num_workers", self.engine != "local", "engine processes or ray")
        self._idle("ray_address", self.engine == "ray", "engine ray")
        if self.engine == "ray" and self.dedup == "global":
            raise ConfigError("dedup global: needs every text on one machine; use dedup shard with engine ray")
        if self.engine == "ray" and self.incremental_key:
            raise ConfigError("incremental_key: needs the vectors of before on one machine; use engine local or processes")

    def _idle(self, name: str, read: bool, reader: str) -> None:
        default: Any = type(self).model_fields[name].default
        if not read and self[name] != default:
            raise ConfigError(f"{name}: is only read with {reader}; leave it out, or set that too")
