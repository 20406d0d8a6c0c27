"""The examples run: on photos made up here, for a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.timeout(300)
def test_fine_tuning_measures_before_and_after(tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("lightning_fabric")
    rng = np.random.default_rng(0)
    for folder in (tmp_path / "photos", tmp_path / "test"):
        folder.mkdir()
        for i in range(3):
            small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            small.resize((800, 600), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
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
