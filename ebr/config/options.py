"""One field, five uses: a config field is also its argparse argument, its dict key, its validation and its row in the docs."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from typing_extensions import Self

from ebr.errors import ConfigError, why_not_utf8


def option(default: Any, help: str, zh: str, **limits: Any) -> Any:  # noqa: ANN401
    """A config field: its default, one line of help in English and in Chinese, and pydantic limits (gt=0, le=1, …)."""
    return Field(default, description=help, json_schema_extra={"zh": zh}, validate_default=False, **limits)


def _unwrapped(value: object) -> object:
    """`--report_to a,b` comes as a list of one text, the notebook's "a,b" as the text itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _split_words(value: object) -> object:
    text = _unwrapped(value)
    return text.replace(",", " ").split() if isinstance(text, str) else value


def _split_names(value: object) -> object:
    text = _unwrapped(value)
    return [name.strip() for name in text.split(",") if name.strip()] if isinstance(text, str) else value


Language = Literal["en", "zh"]

Words = Annotated[list[str], BeforeValidator(_split_words)]
"""A list of words; 'a b', 'a,b' and ['a', 'b'] are the same."""

Names = Annotated[list[str], BeforeValidator(_split_names)]
"""A list of names that may hold spaces; 'Noto Sans, SimHei' and ['Noto Sans', 'SimHei'] are the same."""


class Config(BaseModel):
    """A set of options; `config["name"]` and `config.name` read and write the same validated field."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:  # noqa: ANN401
        """Validate values. Raises ConfigError that lists every wrong option at once."""
        values = self._by_field_name(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _is_utf8(cls, value: object, info: ValidationInfo) -> object:
        """Every record holds the options: one that cannot be written there would cost the whole work at its end."""
        is_path = Path in _inner_types(cls.model_fields[str(info.field_name)])
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str | Path) and (reason := why_not_utf8(str(one), is_path=is_path)):
                raise ValueError(reason)
        return value

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Mapping[str, Any] | str | None = None) -> Self:
        """Validate a dict; overrides, a dict or a JSON object, win over it."""
        if isinstance(overrides, str):
            overrides = parse_overrides(overrides)
        return cls(**{**cls._by_field_name(values), **cls._by_field_name(overrides or {})})

    @classmethod
    def _by_field_name(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        twice = sorted(name for name in values if cls.field_name(name) != name and cls.field_name(name) in values)
        if twice:
            raise ConfigError("\n".join(f"{name}, {cls.field_name(name)}: one option by two names; give one" for name in twice))
        return {cls.field_name(name): value for name, value in values.items()}

    @classmethod
    def field_name(cls, spelling: str) -> str:
        """The field behind a spelling: `lr` → `learning_rate` where this config spells it so; any other text as it is."""
        return next((name for name, field in cls.model_fields.items() if field.alias == spelling), spelling)

    @classmethod
    def spelling(cls, name: str) -> str:
        """How this config spells a field: `learning_rate`, or `lr`."""
        return cls.model_fields[name].alias or name

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set one option, validated like at the start."""
        try:
            super().__setattr__(self.field_name(name), value)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """`config.lr` where the field's own name is learning_rate."""
        field = type(self).field_name(name)
        return getattr(self, field) if field != name else super().__getattr__(name)  # type: ignore[misc]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        """`config["name"]`."""
        if name not in self:
            raise KeyError(unknown_option(name, type(self).spellings()))
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """`config["name"] = value`."""
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        """`"name" in config`."""
        return isinstance(name, str) and self.field_name(name) in type(self).model_fields

    @classmethod
    def spellings(cls) -> list[str]:
        """Every option as this config spells it."""
        return [cls.spelling(name) for name in cls.model_fields]

    @classmethod
    def may_be_unset(cls, name: str) -> bool:
        """Whether None is a value of the field."""
        return type(None) in _inner_types(cls.model_fields[name])

    def keys(self) -> Iterator[str]:
        """The option names; with `[]` this makes `dict(config)` and `{**config}` work."""
        return iter(type(self).model_fields)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict(to_json())` gives the same config."""
        return self.model_dump(mode="json")


def read_record(path: Path) -> dict[str, Any]:
    """Options recorded in a JSON file: a plain object, or the manifest that lies beside any output.

    A record never switches trust_remote_code on: running a model's own code needs the user's word each time.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: is not JSON ({error})") from None
    options = record.get("config", record) if isinstance(record, dict) else None
    if not isinstance(options, dict):
        raise ConfigError(f"--config {path}: must hold a JSON object of options")
    return {name: value for name, value in options.items() if name != "trust_remote_code"}


def parse_overrides(text: str) -> dict[str, Any]:
    """The JSON object in EBR_CONFIG_OVERRIDES; empty text is no overrides. Raises ConfigError."""
    try:
        overrides = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"EBR_CONFIG_OVERRIDES is not JSON ({error}): {text!r}") from None
    if not isinstance(overrides, dict):
        raise ConfigError(f"EBR_CONFIG_OVERRIDES must be a JSON object, got {text!r}")
    return overrides


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is no option: the nearest one that is."""
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"{name}: unknown option" + (f"; did you mean {near[0]}?" if near else "")


def _explain(config: type[Config], error: ValidationError) -> str:
    """Every wrong option on a line of its own, in words."""
    lines = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0]) if detail["loc"] else config.__name__
        name = config.spelling(name) if name in config.model_fields else name
        if detail["type"] in {"extra_forbidden", "no_such_attribute"}:
            lines.append(unknown_option(name, [*config.spellings(), *config.model_fields]))
        elif detail["type"] == "missing":
            lines.append(f"{name}: is required")
        else:
            lines.append(f"{name}: {_reason(detail)} (got {detail['input']!r})")
    return "\n".join(lines)


def _reason(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


# ---------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """One argument a field, by its spelling and by its own name, in the config's groups.

    Values stay text here: pydantic alone judges them, as it does for the notebook.
    """
    for title, names in option_groups(config).items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_argument(group, config, name)


def option_groups(config: type[Config]) -> dict[str, list[str]]:
    """Field names by group: a group is a class that defines fields, its title the first line of the class's docstring."""
    groups: dict[str, list[str]] = {}
    for name in config.model_fields:
        # A front end defines some anew, for its spelling: the group is that of the first definition.
        home = next(base for base in reversed(config.__mro__) if name in vars(base).get("__annotations__", {}))
        groups.setdefault((home.__doc__ or "").split("\n", 1)[0].rstrip("."), []).append(name)
    return groups


def _add_argument(group: argparse._ArgumentGroup, config: type[Config], name: str) -> None:
    field = config.model_fields[name]
    flags = dict.fromkeys([f"--{config.spelling(name)}", f"--{name}"])
    group.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=_help(field), **_shape(field))
    if set(_inner_types(field)) <= {bool, NoneType, Literal["auto"]}:
        group.add_argument(
            f"--no_{name}", dest=name, action="store_const", const=False, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _shape(field: FieldInfo) -> dict[str, Any]:
    if bool in _inner_types(field):
        words = ["true", "FOLDER"] if Path in _inner_types(field) else choices(field) or ["true", "false"]
        return {"nargs": "?", "const": True, "metavar": "|".join(words)}
    if _is_list(field):
        return {"nargs": "*", "metavar": "WORD"}
    return {"metavar": type_name(field).upper() if not choices(field) else "|".join(choices(field))}


def _help(field: FieldInfo) -> str:
    return f"{field.description} (default: {default_text(field)})".replace("%", "%%")


def flag_to_name(token: str) -> str:
    """`--eval-steps=5` → `--eval_steps=5`: dashes and underscores are the same in a flag, never in its value."""
    if not token.startswith("--") or token == "--":
        return token
    flag, equals, value = token.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


# ---------------------------------------------------------------- docs


def _inner_types(field: FieldInfo) -> list[Any]:
    """The types of a field, unions opened: `list[str] | None` → [list[str], NoneType]."""
    annotation = field.annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    is_union = origin is not None and getattr(origin, "__name__", str(origin)) in {"Union", "UnionType"}
    parts = list(get_args(annotation)) if is_union else [annotation]
    return [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(part) is list for part in _inner_types(field))


def choices(field: FieldInfo) -> list[str]:
    """The words that the field takes, where it takes no others."""
    parts = [part for part in _inner_types(field) if part is not NoneType]
    if any(part is not bool and get_origin(part) is not Literal for part in parts):
        return []
    words = [str(choice) for part in parts for choice in get_args(part)]
    return [*words, "true", "false"] if words and bool in parts else words


def type_name(field: FieldInfo) -> str:
    """The field's type in one word: int, float, text, path, true/false, words."""
    names = {int: "int", float: "float", str: "text", Path: "path", bool: "true/false"}
    for part in _inner_types(field):
        if part in names:
            return names[part]
    return "words" if _is_list(field) else "text"


def default_text(field: FieldInfo, language: Language = "en") -> str:
    """The default as a user would type it."""
    default = field.default
    if default is PydanticUndefined:
        return {"en": "required", "zh": "必填"}[language]
    if default is None or default == []:
        return {"en": "not set", "zh": "未设置"}[language]
    if isinstance(default, Path):
        return f"./{default}" if not default.is_absolute() and default != Path() else str(default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return " ".join(default)
    return _visible(str(default))


def _visible(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii").replace("\\x01", "\\001") if text == "\x01" else text
