"""Texts to choose from, one after another: a corpus need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ebr.data.faults import Faults
from ebr.data.files.contents import contents_of, open_text
from ebr.data.records.documents import Document
from ebr.data.records.lines import each_line
from ebr.data.records.texts import DOCUMENTS, find_records, is_named_like_texts, read_text_records
from ebr.data.text.blank import is_blank
from ebr.errors import DataError

CORPUS_FILE = "corpus.jsonl"


def find_corpus(path: Path) -> Path:
    """The file of texts: `path` itself, or the corpus in it. Raises DataError when there is none, or of another format."""
    file = find_records(path, Path(CORPUS_FILE).stem) if path.is_dir() else path
    if file is None or not file.is_file():
        what = f"holds no {CORPUS_FILE}" if path.is_dir() else "there is no such file"
        raise DataError(f"corpus {path}: {what}; give {CORPUS_FILE}, the folder that holds it, or a text file, one text a line")
    if is_named_like_texts(file):
        contents_of(file)
    else:
        open_text(file).close()
    return file


def read_corpus(file: Path) -> Iterator[Document]:
    """The documents of a file, in its order; those without any text that can be seen are passed over.

    A file of records, as BEIR and others write them: see ebr.data.records.texts. Of any other name: one text a line, without
    titles. Raises one DataError that lists what is wrong: at the end of the file, or when 20 different problems were found.
    """
    faults = Faults(stops=True)
    for document in _documents(file, faults):
        if not is_blank(document.whole):
            yield document
    faults.raise_if_any()


def _documents(file: Path, faults: Faults) -> Iterator[Document]:
    if is_named_like_texts(file):
        for record in read_text_records(file, DOCUMENTS, faults, with_ids=False):
            yield Document(record.title, record.text, record.id)
        return
    for where, line in each_line(file):
        if isinstance(line, DataError):
            faults.add(file, where, str(line))
        else:
            yield Document("", line.strip())


def count_texts(file: Path) -> int:
    """How many documents read_corpus gives. Raises DataError for wrong lines, or when there is none."""
    n_texts = sum(1 for _ in read_corpus(file))
    if not n_texts:
        raise DataError(f"{file}: holds no texts; write one text a line")
    return n_texts
