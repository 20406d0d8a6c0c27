"""The examples run: on photos made up here, for a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import write_photos

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.timeout(300)
def test_fine_tuning_measures_before_and_after(tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("lightning_fabric")
    for seed, name in enumerate(("photos", "test")):
        write_photos(tmp_path / name, 3, seed=seed)
    run = tmp_path / "run"
    command = [sys.executable, EXAMPLES / "finetune.py", tmp_path / "photos", tmp_path / "test", "-o", run]
    command += ["--steps", "4", "--batch-size", "2", "--test-pairs", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    gain = json.loads((run / "gain.json").read_text())
    assert gain["before"]["f1"] > 0.5  # the shipped weights match what they have never seen
    assert set(gain["after"]) == {"precision", "recall", "f1"}
    assert "before precision" in done.stdout and "after precision" in done.stdout
    assert (run / "best.safetensors").is_file()
