"""Texts to choose from, one after another: a corpus need not fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ebr.data.blank import is_blank
from ebr.errors import DataError

CORPUS_FILE = "corpus.jsonl"
_RECORD_SUFFIXES = (".jsonl", ".ndjson")
_OTHER_FORMATS = (".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".npy", ".xlsx")
_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Document:
    """A text to choose from, with its title where it has one."""

    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title + space + text, stripped, as in evaluation sets."""
        return f"{self.title} {self.text}".strip()


def find_corpus(path: Path) -> Path:
    """The file of texts: `path` itself, or corpus.jsonl in it. Raises DataError when there is none, or of another format."""
    file = path / CORPUS_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {CORPUS_FILE}" if path.is_dir() else "there is no such file"
        raise DataError(f"corpus {path}: {what}; give {CORPUS_FILE}, the folder that holds it, or a text file, one text a line")
    if file.suffix.lower() in _OTHER_FORMATS:
        raise DataError(f"corpus {file}: is {file.suffix}; give {CORPUS_FILE}, or a text file, one text a line")
    return file


def read_corpus(file: Path) -> Iterator[Document]:
    """The documents of a file, in its order; those without any text that can be seen are passed over.

    .jsonl: objects with 'text' and maybe 'title', as BEIR writes them. Any other suffix: one text a line, without titles.
    Raises one DataError that lists the wrong lines, the first 20 in full: at the end of the file, or at the twentieth.
    """
    is_records = file.suffix.lower() in _RECORD_SUFFIXES
    faults: list[str] = []
    # Bytes, because they split on \n alone: U+2028 and its kin occur inside texts.
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                document = _record_document(line) if is_records and line else Document("", line)
            except (UnicodeError, DataError) as error:
                faults.append(f"{file}:{number}: {_fault(error)}")
                if len(faults) == _FAULTS_SHOWN:
                    raise DataError("\n".join([*faults, "and perhaps more"])) from None
                continue
            if not is_blank(document.whole):
                yield document
    if faults:
        raise DataError("\n".join(faults))


def _fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8"
    return str(error)


def _record_document(line: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}; write one object a line") from None
    if not isinstance(record, dict):
        raise DataError(f"is {type(record).__name__}, not an object with 'text'")
    # BEIR's own sets hold documents with an empty text or a null title; a missing text is a slip.
    title, text = record.get("title") or "", record.get("text")
    if not isinstance(title, str) or not isinstance(text, str):
        raise DataError("'text' must be a string, and 'title' too where it is given")
    try:
        (title + text).encode()
    except UnicodeEncodeError:
        raise DataError("holds half a character (a lone \\ud800–\\udfff escape); repair the text") from None
    return Document(title, text)


def count_texts(file: Path) -> int:
    """How many documents read_corpus gives. Raises DataError for wrong lines, or when there is none."""
    n_texts = sum(1 for _ in read_corpus(file))
    if not n_texts:
        raise DataError(f"{file}: holds no texts; write one text a line")
    return n_texts
