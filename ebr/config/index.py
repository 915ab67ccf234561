"""Options of indexing and searching."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ByteSize

from ebr.config.options import Config, Names, option
from ebr.config.shared.encoder import PoolingMode, base_model_option, pooling_option, trust_option
from ebr.config.shared.vectors import vector_column_option, vector_delimiter_option
from ebr.errors import ConfigError

IndexKind = Literal[
    "auto", "flat", "ivf", "hnsw", "pq", "ivf_sq8", "hnsw_sq8", "ivf_pq", "ivf_pq_sq8", "ivf_pq_fp16", "ivf_pq_flat"
]
SearchMode = Literal["dense", "lexical", "hybrid"]

_OF_VECTORS = ("search_effort", "model_path", "trust_remote_code", "pooling", "base_model_path")


class _IndexMain(Config):
    """What matters first."""

    embeddings_path: Path = option(
        Path("./faiss/embeds_2.txt"), "the vectors: a file, or a folder of parts", "向量：单个文件，或由分片组成的目录"
    )
    index_path: Path = option(Path("./faiss/index"), "folder of the index", "索引目录")
    kind: IndexKind = option(
        "auto",
        "auto = by row count, dimension and memory_budget; flat is exact; hnsw = a graph; ivf = lists; sq8 = 8 bits a number; "
        "pq = short codes, the best ranked again by what follows",
        "auto 按行数、维度与 memory_budget 选择；flat 为精确检索；hnsw 为图；ivf 为倒排表；sq8 每个数 8 位；"
        "pq 为短码，其后的 sq8、fp16、flat 用于重排",
    )
    memory_budget: ByteSize | None = option(
        None,
        "what the index may take in memory, like 512MiB or 8GB: auto keeps to it; not set = half of what is free",
        "索引可用的内存，如 512MiB 或 8GB（auto 据此选择）；未设置时取可用内存的一半",
    )
    id_column: str | None = option(
        "id",
        "the column with each row's own id; none = ids are the row numbers, from 0",
        "每行 id 所在的列；none 表示用行号（从 0 开始）作 id",
    )
    output_columns: Names | None = option(
        None, "columns kept to show with a hit; not set = every column", "随命中结果显示的列；未设置时保留所有列"
    )
    lexical_column: str | None = option(
        None,
        "also index the words of this column, one that is kept, with BM25: for search in mode lexical or hybrid; not set = "
        "vectors only, with add as the index has it",
        "同时用 BM25 为该列（须为保留的列）的词建立索引，供 lexical 与 hybrid 模式检索；未设置时只有向量，追加时沿用原有设置",
    )
    add: bool = option(
        False,
        "add the rows to the index that is there, of the same model; ids that it has already are refused",
        "把新行加入已有索引（须为同一模型）；已存在的 id 会被拒绝",
    )


class _Vectors(Config):
    """Vectors."""

    delimiter: str = vector_delimiter_option()
    vector_column: str | None = vector_column_option()
    metric: Literal["cosine", "inner_product"] = option(
        "cosine",
        "cosine = inner product of vectors scaled to length 1, always",
        "cosine 即单位向量的内积；inner_product 为原始向量的内积",
    )


class _Searcher(Config):
    """The model that searches."""

    model_path: str | None = option(
        None,
        "the model that searches encode queries with; not set = the one that the vectors' manifest names",
        "检索时编码查询所用的模型；未设置时取向量清单中记录的模型",
    )
    pooling: PoolingMode | None = option(
        None,
        "how that model pools, for vectors made elsewhere: recorded for searches",
        "该模型的池化方式，用于外来向量：记录下来供检索使用",
    )
    base_model_path: str | None = option(
        None,
        "where the base of that model lies, if it is an adapter: recorded for searches",
        "该模型为适配器时其基础模型的位置：记录下来供检索使用",
    )


class _Measuring(Config):
    """Measuring."""

    min_recall: float = option(
        0.95,
        "recall@10 against exact search that the search effort is tuned to",
        "搜索力度按此 recall@10（相对精确检索）调节",
        gt=0,
        le=1,
    )
    query_embeddings: Path | None = option(
        None,
        "vectors of real queries to measure recall with; not set = rows of the index, each leaving itself out",
        "用于测量召回率的真实查询向量；未设置时取索引中的行（各自排除自身）",
    )
    sample_queries: int = option(1000, "queries that recall and speed are measured with", "测量召回率与速度所用的查询数", ge=10)
    seed: int = option(
        42, "the same seed gives the same sample and the same clusters", "相同种子得到相同的样本与聚类", ge=0, le=2**31 - 1
    )


# Fields come in the order of the classes from the last to the first.
class IndexConfig(_Measuring, _Searcher, _Vectors, _IndexMain):
    """Build a FAISS index from the embeddings of a run, measured against exact search."""


class _SearchMain(Config):
    """What matters first."""

    query: str | None = option(None, "the text to search for", "要检索的文本", min_length=1)
    queries_path: Path | None = option(
        None,
        "a file of queries: .txt (one a line), .json, .jsonl, .tsv, .csv, Parquet (id, text), also as .gz; - = standard input",
        "查询文件：.txt（每行一条）、.json、.jsonl、.tsv、.csv 或 Parquet（id 与文本），也可为 .gz；- 表示标准输入",
    )
    index_path: Path = option(Path("./faiss/index"), "folder of the index, or a FAISS file", "索引目录，或 FAISS 索引文件")
    k: int = option(10, "hits a query", "每个查询返回的条数", ge=1)
    mode: SearchMode = option(
        "dense",
        "dense = by vectors; lexical = by words (BM25); hybrid = both rankings by reciprocal rank fusion; the last two need an "
        "index with lexical_column",
        "dense 按向量；lexical 按词（BM25）；hybrid 以倒数排名融合（RRF）合并两者；后两种需要索引带有 lexical_column",
    )
    min_precision: float | None = option(
        None,
        "leave out hits below the similarity from which this share of them was relevant when the model was evaluated; what "
        "lies between 0.5, 0.6, 0.7, 0.8, 0.9 and 0.95 counts as the next higher",
        "略去低于某相似度的命中：评测该模型时，自此相似度起命中的相关比例达到此值；取 0.5、0.6、0.7、0.8、0.9、0.95，"
        "介于其间时取较高者",
        gt=0,
        le=1,
    )
    evaluation_path: Path | None = option(
        None,
        "for min_precision: what ebr evaluate wrote about the model, a folder or its report.json; not set = the model's folder",
        "用于 min_precision：ebr evaluate 对该模型的评测结果，目录或其中的 report.json；未设置时取模型目录",
    )
    output_format: Literal["table", "jsonl"] = option("table", "how hits are printed", "命中结果的输出格式")
    output_path: Path | None = option(None, "write the hits there as JSON lines", "把命中结果以 JSON 行写入此文件")


class _Opened(Config):
    """Model and index."""

    model_path: str | None = option(
        None, "where the index's model lies now; not set = where it was", "索引所用模型现在的位置；未设置时用原位置"
    )
    trust_remote_code: bool = trust_option()
    pooling: PoolingMode | None = pooling_option()
    base_model_path: str | None = base_model_option()
    trust_index: bool = option(
        False,
        "open an index file without a manifest; only from sources you trust, and with model_path",
        "打开没有清单的索引文件；仅用于可信来源，并须给出 model_path",
    )
    search_effort: int | None = option(
        None,
        "lists (ivf) or candidates (hnsw) looked at a query; not set = as the index was tuned",
        "每个查询查看的倒排表数（ivf）或候选数（hnsw）；未设置时按建索引时的调节值",
        ge=1,
    )


# Fields come in the order of the classes from the last to the first.
class SearchConfig(_Opened, _SearchMain):
    """Search an index with texts: its model and prompt encode them."""

    def check(self) -> None:
        """Refuse a search for nothing, or for two things at once, and what its mode would not read. Raises ConfigError."""
        if bool(self.query) == bool(self.queries_path):
            raise ConfigError('query, queries_path: give one of the two, as in: ebr search "red shoes"')
        unread = [name for name in _OF_VECTORS if self[name]] if self.mode == "lexical" else []
        if unread:
            raise ConfigError(
                f"{', '.join(unread)}: mode lexical reads no vectors and needs no model; leave out, or take hybrid"
            )
        if self.evaluation_path is not None and self.min_precision is None:
            raise ConfigError("evaluation_path: is read for min_precision only; set that, or leave it out")
        if self.min_precision is not None and self.mode != "dense":
            raise ConfigError(f"min_precision: the scores of mode {self.mode} are no similarities; leave it out, or take dense")
