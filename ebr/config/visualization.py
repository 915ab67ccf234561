"""Options of the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ebr.config.options import Config, Language, Names, option
from ebr.config.shared.vectors import vector_column_option, vector_delimiter_option
from ebr.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")
PAGE = ".html"
LABEL_COLUMN = "label"


class _Main(Config):
    """What matters first."""

    embeddings_path: Path = option(Path("./faiss/embeds_2.txt"), "the vector file", "向量文件")
    before_path: Path | None = option(
        None,
        "before and after: the vectors of the same rows by the model before tuning; rows are matched by id_column",
        "前后对比：同样的行在微调前模型下的向量；按 id_column 对应各行",
    )
    label_column: str | None = option(
        LABEL_COLUMN,
        "the column that colours the points; none = all in one colour, as where there is no label column and no other is named",
        "用于着色的列；none 表示所有点同色，没有 label 列且未指定其他列时也是如此",
    )
    method: Literal["tsne", "umap", "pca", "both"] = option(
        "both",
        "which projection; both = t-SNE and UMAP side by side, pca = the straight-line baseline",
        "投影方法；both 为 t-SNE 与 UMAP 并排，pca 为线性基线",
    )
    output_path: Path = option(
        Path("./embedding_scatter.png"),
        "the picture (.png, .svg, .pdf) with an interactive page of the same name beside it, or the page alone (.html); its "
        "numbers go beside it as .json",
        "图片（.png、.svg、.pdf），旁边写入同名的交互网页；或只写网页（.html）；指标写入同名 .json",
    )
    title: str | None = option(None, "above the map; not set = the model, or the file", "图的标题；未设置时为模型名或文件名")
    max_points: int = option(
        20000, "more rows than this are too many to project: see over_max_points", "超过此行数时按 over_max_points 处理", ge=1
    )
    language: Language = option("en", "words on picture and page: en or zh", "图片与网页的语言：en 或 zh")
    theme: Literal["light", "dark"] = option("light", "colours of picture and page", "图片与网页的配色")


class _Columns(Config):
    """Columns."""

    delimiter: str = vector_delimiter_option()
    vector_column: str | None = vector_column_option()
    label_kind: Literal["auto", "categories", "numbers"] = option(
        "auto",
        "what label_column holds: names with a colour each, or numbers with a colour bar; auto = by its values",
        "label_column 的内容：每个名称一种颜色，或用颜色条表示的数值；auto 按取值判断",
    )
    id_column: str | None = option(
        None, "the column with the ids of rows; not set = id, where there is one", "各行 id 所在的列；未设置时为 id（若有）"
    )
    text_column: str | None = option(
        None,
        "the column that the page shows as a row's text; not set = the one with the longest texts",
        "网页中作为该行文本显示的列；未设置时取文本最长的列",
    )


class _Projection(Config):
    """Projection."""

    tsne_engine: Literal["opentsne", "sklearn"] = option(
        "opentsne",
        "who computes t-SNE: openTSNE, its time linear in the rows, or scikit-learn",
        "t-SNE 的实现：openTSNE（耗时与行数成线性）或 scikit-learn",
    )
    tsne_perplexity: float | None = option(
        None,
        "t-SNE: about how many neighbours count; not set = 30, lowered for few points",
        "t-SNE 困惑度（有效邻居数）；未设置时为 30，点少时自动降低",
        ge=1,
    )
    tsne_learning_rate: float | None = option(
        None, "t-SNE step size; not set = N / early exaggeration", "t-SNE 学习率；未设置时为 N / early exaggeration", gt=0
    )
    umap_neighbors: int | None = option(
        None,
        "UMAP: neighbours of a point; not set = 15, more beyond 10,000 points, fewer for few",
        "UMAP 邻居数；未设置时为 15，超过一万点时增加，点少时减少",
        ge=2,
    )
    umap_min_dist: float = option(0.1, "UMAP: smallest distance between points on the map", "UMAP 图上点间最小距离", ge=0, le=1)
    mode: Literal["reproducible", "fast"] = option(
        "reproducible",
        "reproducible: seeded, one thread, the same map each time; fast: every core",
        "reproducible：固定种子、单线程，每次结果相同；fast：使用全部核心",
    )
    over_max_points: Literal["sample", "place", "project"] = option(
        "sample",
        "beyond max_points: sample = draw a sample, every label kept in proportion; place = project the sample and place the "
        "rest by their neighbours in it; project = all of them whatever it takes",
        "超过 max_points 时：sample 只画按标签比例抽取的样本；place 投影样本，其余按其在样本中的邻居放置；project 全部投影",
    )
    seed: int = option(42, "the same seed gives the same map", "相同种子得到相同的图", ge=0, le=2**32 - 1)


class _Picture(Config):
    """Picture and page."""

    chinese_fonts: Names = option(
        [],
        "fonts to try first for Chinese labels; the installed ones are searched anyway",
        "优先尝试的中文字体；总会搜索已安装字体",
    )
    page: bool | None = option(
        None,
        "write the interactive page beside the picture; not set = up to 200,000 rows",
        "在图片旁写入交互网页；未设置时不超过 200,000 行才写",
    )
    export: Literal["atlas"] | None = option(
        None,
        "atlas: also write the Parquet with x, y and neighbours that embedding-atlas opens, for millions of points",
        "atlas：另存含 x、y 与邻居的 Parquet，供 embedding-atlas 打开，适合百万级点数",
    )
    cache: bool = option(
        True,
        "keep coordinates and figures, so that another title, colour or format redraws in seconds",
        "缓存坐标与指标，更换标题、着色或格式时数秒即可重画",
    )


# Fields come in the order of the classes from the last to the first.
class VisualizationConfig(_Picture, _Projection, _Columns, _Main):
    """Draw a vector file as a t-SNE / UMAP map and measure its clusters."""

    def check(self) -> None:
        """Refuse a picture that cannot be drawn before anything is computed. Raises ConfigError."""
        known = (*PICTURES, PAGE)
        if self.output_path.suffix.lower() not in known:
            raise ConfigError(f"output_path: {self.output_path} must end in {', '.join(known)}")
        if self.before_path is not None and self.over_max_points == "place":
            raise ConfigError("over_max_points place: not with before_path, whose maps share one sample; use sample or project")
