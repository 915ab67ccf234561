"""The notebook's dict literals become validated configs, with overrides from outside merged in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebr.config import Config
from ebr.config.options import parse_overrides, unknown_option
from ebr.errors import ConfigError
from ebr.workflow.verbs import VERBS

CONFIGS: dict[str, type[Config]] = {verb.in_notebook: verb.config for verb in VERBS.values() if verb.in_notebook}
"""Config classes by the name that the notebook gives them."""


def notebook_configs(overrides: str, **literals: Mapping[str, Any]) -> list[Config]:
    """Validate the notebook's dicts, in the order given.

    overrides: a JSON object by config name, as EBR_CONFIG_OVERRIDES holds it: '{"FINETUNE_CONFIG": {"num_epochs": 2}}'; its
    values win. Raises ConfigError that names what is unknown or out of range.
    """
    by_name = parse_overrides(overrides)
    for name in [*literals, *by_name]:
        if name not in CONFIGS:
            raise ConfigError(unknown_option(name, CONFIGS))
    for name, part in by_name.items():
        if not isinstance(part, dict):
            raise ConfigError(f"EBR_CONFIG_OVERRIDES: {name} must be a JSON object of options")
    return [CONFIGS[name].from_dict(values, by_name.get(name)) for name, values in literals.items()]
