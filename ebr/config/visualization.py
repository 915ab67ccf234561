"""Options of the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ebr.config.options import Config, Names, option
from ebr.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")


class VisualizationConfig(Config):
    """Draw a vector file as a t-SNE / UMAP map and measure its clusters."""

    embeddings_path: Path = option(Path("./faiss/embeds_2.txt"), "the vector file", "向量文件")
    delimiter: str = option(
        "\x01",
        "between columns, for a vector file made elsewhere: \\001, \\t, or the character",
        "列分隔符（用于外来向量文件）：\\001、\\t 或字符本身",
        min_length=1,
    )
    label_column: str = option("label", "the column that colours the points", "用于着色的列")
    method: Literal["tsne", "umap", "both"] = option("both", "which projection", "投影方法")
    tsne_perplexity: float = option(
        30.0,
        "t-SNE: about how many neighbours count; lowered for few points",
        "t-SNE 困惑度（有效邻居数）；点少时自动降低",
        ge=1,
    )
    tsne_learning_rate: float | None = option(
        None, "t-SNE step size; not set = N / early exaggeration", "t-SNE 学习率；未设置时为 N / early exaggeration", gt=0
    )
    umap_neighbors: int = option(15, "UMAP: neighbours of a point; lowered for few points", "UMAP 邻居数；点少时自动降低", ge=2)
    umap_min_dist: float = option(0.1, "UMAP: smallest distance between points on the map", "UMAP 图上点间最小距离", ge=0, le=1)
    max_points: int = option(
        20000, "more rows than this: a sample, every label kept in proportion", "行数超过此值时按标签比例抽样", ge=1
    )
    chinese_fonts: Names = option(
        [],
        "fonts to try first for Chinese labels; the installed ones are searched anyway",
        "优先尝试的中文字体；总会搜索已安装字体",
    )
    output_path: Path = option(
        Path("./embedding_scatter.png"), "the picture; its numbers go beside it as .json", "图片路径；指标写入同名 .json"
    )
    seed: int = option(42, "the same seed gives the same map", "相同种子得到相同的图", ge=0, le=2**32 - 1)

    def check(self) -> None:
        """Refuse a picture that cannot be drawn before anything is computed. Raises ConfigError."""
        if self.output_path.suffix.lower() not in PICTURES:
            raise ConfigError(f"output_path: {self.output_path} must end in {', '.join(PICTURES)}")
