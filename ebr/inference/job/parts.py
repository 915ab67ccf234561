"""A part of the output: what it is called, where its files lie, and what the journal keeps of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ebr.data.tables.shards import Schema, Shard
from ebr.data.vectors.embeddings import PART_FILE
from ebr.data.vectors.formats import VectorFormat, suffix_of
from ebr.inference.job.dedup import Dedup

PARTS, STORE = "parts", "vectors.sqlite"
"""Names in the folder of an output's state."""

MEND_THE_ROW = "mend the row, or set on_bad_row reject to list such rows and go on"


@dataclass(frozen=True)
class PartOptions:
    """What every part of an output has in common."""

    schema: Schema
    format: VectorFormat
    vector_dtype: str
    fail_on_bad_row: bool
    dedup: Dedup
    parts_dir: Path
    work_dir: Path
    """Where the rejects and digests of parts lie."""
    incremental: bool = False

    @property
    def are_joined(self) -> bool:
        """Whether the parts become one file, and lie with the output's state until then."""
        return self.parts_dir == self.work_dir / PARTS

    @property
    def store_path(self) -> Path | None:
        """The vectors of other shards and of the run before; None where nobody asks for them."""
        return self.work_dir / STORE if self.incremental or self.dedup is Dedup.GLOBAL else None

    def part_path(self, name: str) -> Path:
        """The part's file; of npy, the vectors."""
        return self.parts_dir / (name + suffix_of(self.format))

    def rejects_path(self, key: str) -> Path:
        """The rows of the part's shard that could not be used; absent when there are none."""
        return self.work_dir / "rejects" / f"{key}.jsonl"

    def digests_path(self, key: str) -> Path:
        """(N, 33) bytes: the digests of the key and of the text of each row of the part, and whether the text was cut."""
        return self.work_dir / "digests" / f"{key}.npy"


@dataclass(frozen=True)
class ShardTask:
    """A shard, and what its part is called: its place among all, and the digest of everything that makes it what it is."""

    index: int
    key: str
    shard: Shard

    @property
    def name(self) -> str:
        """The part's name without its suffix."""
        return part_name(self.index, self.key)


def part_name(index: int, key: str) -> str:
    """A part's name: parts sort by their place, and say which content they hold."""
    return f"part-{index:06d}-{key[:12]}"


def remove_parts(folder: Path, *, keep: Collection[str]) -> None:
    """Remove the files of all parts but those of these names; what is no part stays."""
    for file in sorted(folder.iterdir()):
        part = PART_FILE.fullmatch(file.name)
        if part and part[1] not in keep:
            file.unlink()


def inputs_digest(keys: Iterable[str]) -> str:
    """What stands for everything that an output is made of: the keys of its parts, in their order."""
    return sha256("".join(keys).encode()).hexdigest()


@dataclass(frozen=True)
class PartRecord:
    """A finished part: what the journal keeps of it."""

    index: int
    key: str
    n_rows: int
    n_rejected: int
    n_encoded: int
    """Texts that went through the model."""
    n_reused: int
    """Rows whose vector was taken over from the run before."""
    n_changed: int
    """Rows whose key was known with another text."""
    dim: int
    token_budget: int
    """Tokens a forward pass, in the end."""
    files: dict[str, str]
    """sha256 by file name."""
    n_bytes: int
    first_rejects: list[str]
    n_cut: int | None = None
    """Rows whose text is longer than the model reads; None = made by a version that did not count."""
    n_overruled: int = 0
    """Cells of columns that their folders give, which say something else."""
    first_overruled: str = ""

    @property
    def name(self) -> str:
        """The part's name without its suffix."""
        return part_name(self.index, self.key)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def moved(self, index: int) -> PartRecord:
        """The same part at another place."""
        name = part_name(index, self.key)
        return replace(self, index=index, files={file.replace(self.name, name): digest for file, digest in self.files.items()})
