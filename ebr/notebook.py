"""Run a notebook without a browser, its output shown as it comes: python -m ebr.notebook EBR_workflow.ipynb."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from ebr.cli import spell_anything


class StreamingClient(NotebookClient):  # type: ignore[misc]
    """An executor that passes the cells' text on while they run."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:  # noqa: ANN401
        """Print streams at once; everything else is kept in the notebook as usual."""
        if msg["msg_type"] == "stream":
            stream = sys.stderr if msg["content"]["name"] == "stderr" else sys.stdout
            stream.write(msg["content"]["text"])
            stream.flush()
        return super().process_message(msg, cell, cell_index)


def run_notebook(path: Path, executed: Path) -> None:
    """Execute the notebook at path, in its folder, and write it with its outputs to executed.

    Raises nbclient's CellExecutionError when a cell fails; what ran until then is written all the same.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    with tempfile.TemporaryDirectory() as sockets:
        # The kernel is reached through the file system: no port is opened.
        private = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client = StreamingClient(notebook, timeout=None, resources=folder, config=private)
        try:
            client.execute()
        finally:
            nbformat.write(notebook, executed)


if __name__ == "__main__":
    spell_anything()
    source = Path(sys.argv[1])
    try:
        run_notebook(source, source.with_name("demo.ipynb"))
    except CellExecutionError as error:
        raise SystemExit(str(error)) from None
