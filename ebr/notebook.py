"""Run a notebook without a browser, its output shown as it comes: python -m ebr.notebook EBR_workflow.ipynb."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebr.cli import guarded
from ebr.errors import ConfigError, require_extra

_LIVE = "EBR_LIVE_PROGRESS"
"""As in ebr.data.progress: bars that move in this terminal, and of which the notebook keeps the last state."""


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
