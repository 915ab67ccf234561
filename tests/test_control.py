"""Fine-tuning helps because of the pairs: the same texts, dealt out wrongly, do not help."""

import subprocess
import sys

import pytest

from tests.conftest import REPO


@pytest.mark.slow
def test_only_the_arm_with_true_pairs_gains():
    if not (REPO / "train_text" / "api_docs.json").is_file():
        pytest.skip("run `ebr sample` first")
    done = subprocess.run([sys.executable, "benchmarks/control.py"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
