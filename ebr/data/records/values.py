"""Values of other tools' records: texts wrapped in passages or messages, and labels that say which texts belong together."""

from __future__ import annotations

from typing import Any

from ebr.data.records.documents import Document
from ebr.errors import DataError

# ---------------------------------------------------------------- texts in something


def texts_of_passages(name: str, value: Any) -> Any:  # noqa: ANN401
    """Tevatron's list of passages, {docid, title, text}, as a list of texts: title + space + text, as in a corpus.

    What is no passage stays as it is, for the reader of texts to judge. Raises DataError for a passage without a text.
    """
    if not isinstance(value, list):
        return value
    return [_text_of_passage(f"{name}[{place}]", one) if isinstance(one, dict) else one for place, one in enumerate(value)]


def _text_of_passage(name: str, passage: dict[str, Any]) -> str:
    title, text = passage.get("title") or "", passage.get("text")
    if not isinstance(title, str) or not isinstance(text, str):
        raise DataError(f"{name}: 'text' must be a string, and 'title' too where it is given")
    return Document(title, text).whole


def texts_of_conversations(name: str, value: Any) -> Any:  # noqa: ANN401
    """ms-swift's list of lists of messages as a list of texts; errors as in text_of_messages."""
    return [text_of_messages(f"{name}[{place}]", one) for place, one in enumerate(value)] if isinstance(value, list) else value


def text_of_messages(name: str, value: Any) -> Any:  # noqa: ANN401
    """ms-swift's list of one message, {role, content}, as its content. Raises DataError for more, or for an instruction."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise DataError(f'{name} is no list of messages; write [{{"role": "user", "content": "…"}}]')
    # What a template makes of an instruction, and of a conversation, differs from model to model.
    if len(value) > 1 or value[0].get("role") == "system":
        roles = ", ".join(str(one.get("role")) for one in value)
        raise DataError(f"{name} has messages of {roles}; leave one, and give an instruction as query_prompt or passage_prompt")
    return value[0].get("content")


# ---------------------------------------------------------------- labels

_WORDS = {"true": 1.0, "false": 0.0}
_COLUMNS_SHOWN = 40


def refuse_judged(key: str, value: Any, *, is_plain: bool) -> None:  # noqa: ANN401
    """Raise DataError for a label or a score that is not 1: its texts do not belong together, or not wholly.

    is_plain: the record says by itself which texts are positives, so a label that is no number is a topic, and nobody's
    judgement.
    """
    numbers = [_number(one) for one in (value if isinstance(value, list) else [value])]
    if (None in numbers and is_plain) or all(number == 1 for number in numbers):
        return
    if isinstance(value, list):
        mend = "give the texts that belong to the query as 'positive' and the others as 'negative'"
    elif numbers == [0]:
        mend = "leave the record out, or give its text as a negative of the query"
    else:
        mend = f"keep the pairs that belong together without {key!r}, or call a teacher's score 'positive_score'"
    shown = str(value)[:_COLUMNS_SHOWN]
    raise DataError(f"{key!r} is {shown}, and only texts that belong together (1) are trained on as a pair; {mend}")


def _number(value: object) -> float | None:
    """A number, also one in a text, as tables have it."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
