"""`isinglass train` is killed at random moments; see fuzz_train.py, which does it for longer."""

import sys

import pytest

import fuzz_train


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_a_run_killed_thrice_ends_as_if_it_had_not_been(tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("lightning_fabric")
    counts = fuzz_train.campaign(tmp_path, kills=3, seed=1)
    assert counts["differences"] == 0 and counts["kills"] == 3
