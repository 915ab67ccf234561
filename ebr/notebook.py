"""Notebooks: their dicts become configs, and they run without a browser: python -m ebr.notebook EBR_workflow.ipynb."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebr.cli import guarded
from ebr.config import Config
from ebr.config.options import parse_overrides, unknown_option
from ebr.errors import ConfigError, require_extra
from ebr.workflow.verbs import VERBS

_LIVE = "EBR_LIVE_PROGRESS"
"""As in ebr.data.progress: bars that move in this terminal, and of which the notebook keeps the last state."""
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


class _Streaming:
    """What our executor does that nbclient's does not: it passes the cells' text on while they run."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:  # noqa: ANN401
        """Print streams and tables as text at once; the notebook keeps them, and pictures, as usual."""
        content = msg["content"]
        if msg["msg_type"] == "stream":
            stream = sys.stderr if content["name"] == "stderr" else sys.stdout
            stream.write(content["text"])
            stream.flush()
        elif msg["msg_type"] in {"display_data", "execute_result"} and not any("image" in kind for kind in content["data"]):
            sys.stdout.write(content["data"].get("text/plain", "") + "\n")
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)  # type: ignore[misc]


def run_notebook(path: Path, executed: Path) -> None:
    """Execute the notebook at path, in its folder, and write it with its outputs to executed.

    Raises nbclient's CellExecutionError when a cell fails; what ran until then is written all the same. Raises ConfigError
    when the file is no notebook.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    try:
        notebook = nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError:
        raise ConfigError(f"{path}: is no notebook") from None
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    live = {_LIVE: "1"} if sys.stdout.isatty() else {}
    with tempfile.TemporaryDirectory() as sockets:
        # The kernel is reached through the file system: no port is opened.
        private = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client_class = type("StreamingClient", (_Streaming, NotebookClient), {})
        client = client_class(notebook, timeout=None, resources=folder, config=private, coalesce_streams=True)
        try:
            client.execute(env={**os.environ, **live})
        finally:
            nbformat.write(notebook, executed)


def main(arguments: Sequence[str]) -> int:
    """`python -m ebr.notebook NOTEBOOK`: the executed copy is demo.ipynb beside it."""
    if len(arguments) != 1:
        raise ConfigError("python -m ebr.notebook takes one notebook, like EBR_workflow.ipynb")
    require_extra("notebook", "running a notebook")
    from nbclient.exceptions import CellExecutionError

    source = Path(arguments[0])
    try:
        run_notebook(source, source.with_name("demo.ipynb"))
    except CellExecutionError as error:
        raise SystemExit(str(error)) from None
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
