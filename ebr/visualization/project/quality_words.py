"""The words of the figures of a map, in English and in Chinese: names, meanings, and why a number is undefined."""

from __future__ import annotations

from collections.abc import Mapping

from ebr.config.options import Language

MEANINGS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "silhouette": "-1..1; higher = labels form tight, separate groups",
        "calinski_harabasz": "0 and up; higher = more spread between labels than within them; compare equal row counts only",
        "davies_bouldin": "0 and up; lower = every label lies far from its most similar other label",
        "knn_agreement": "0..1; higher = a vector's nearest neighbours carry its label",
        "chance_agreement": "what the line above would be if the labels were shuffled",
        "kmeans_nmi": "0..1; higher = clusters found without the labels tell the labels; many labels raise it by chance",
        "kmeans_ari": "-0.5..1; higher = pairs of rows clustered together share a label; 0 = by chance",
        "trustworthiness": "0..1; higher = neighbours on the map are neighbours in the original space",
        "continuity": "0..1; higher = neighbours in the original space are still neighbours on the map",
        "neighbour_overlap": "0..1; the share of a point's nearest neighbours that the map keeps",
        "chance_overlap": "what the line above would be if the points were placed at random",
    },
    "zh": {
        "silhouette": "-1..1；越高，各标签越紧密且彼此分开",
        "calinski_harabasz": "≥ 0；越高，标签间差异相对标签内越大；仅在行数相同时可比",
        "davies_bouldin": "≥ 0；越低，每个标签离最相似的另一标签越远",
        "knn_agreement": "0..1；越高，向量的最近邻越多与其标签相同",
        "chance_agreement": "把标签打乱后，上一行会是多少",
        "kmeans_nmi": "0..1；越高，不看标签得到的聚类越能说明标签；标签多时随机值也偏高",
        "kmeans_ari": "-0.5..1；越高，聚在一起的行越多同属一个标签；0 为随机水平",
        "trustworthiness": "0..1；越高，图上的邻居在原空间也是邻居",
        "continuity": "0..1；越高，原空间的邻居在图上仍是邻居",
        "neighbour_overlap": "0..1；图上保留了多少最近邻",
        "chance_overlap": "把点随机摆放时，上一行会是多少",
    },
}
"""What each metric means, in one sentence; the keys are the fields of ClusterQuality and MapTrust."""

NAMES: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "silhouette": "silhouette (cosine)",
        "calinski_harabasz": "Calinski-Harabasz",
        "davies_bouldin": "Davies-Bouldin",
        "knn_agreement": "kNN label agreement, k={k}",
        "chance_agreement": "agreement by chance",
        "kmeans_nmi": "k-means NMI",
        "kmeans_ari": "k-means ARI",
        "trustworthiness": "trustworthiness",
        "continuity": "continuity",
        "neighbour_overlap": "neighbours kept, k={k}",
        "chance_overlap": "kept by chance",
    },
    "zh": {
        "silhouette": "轮廓系数（余弦）",
        "calinski_harabasz": "Calinski-Harabasz",
        "davies_bouldin": "Davies-Bouldin",
        "knn_agreement": "近邻标签一致率，k={k}",
        "chance_agreement": "随机一致率",
        "kmeans_nmi": "k-means NMI",
        "kmeans_ari": "k-means ARI",
        "trustworthiness": "可信度",
        "continuity": "连续性",
        "neighbour_overlap": "邻居保留率，k={k}",
        "chance_overlap": "随机保留率",
    },
}
"""What each metric is called in a table."""

HEADS: Mapping[Language, tuple[str, str, str, str]] = {
    "en": ("", "value", "rows", "meaning"),
    "zh": ("", "数值", "行数", "含义"),
}
"""Over the columns of the table."""

REASONS = {
    "fewer than 2 labels": "标签少于 2 种",
    "every label occurs only once": "每种标签只出现一次",
    "more than 1,000 labels": "标签多于 1,000 种",
    "all vectors are equal": "所有向量相同",
    "all vectors point the same way": "所有向量方向相同",
    "fewer than 3 points": "少于 3 个点",
    "the vectors' numbers are too large or too small": "向量数值过大或过小",
    "the column holds numbers, not labels (label_kind)": "该列是数值，不是标签（label_kind）",
}
"""Why a number can be undefined: in English, as it is recorded, and in Chinese."""
