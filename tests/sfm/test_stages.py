"""Stages of a map: done once, and again where what they left is not whole."""

from __future__ import annotations

from isinglass.sfm.stages import Stages


def test_a_stage_is_done_again_where_its_file_or_its_outputs_are_damaged(tmp_path):
    done = []

    def run(is_whole=lambda result: True):
        stage = Stages(tmp_path).run("a", "key", [], lambda: done.append(1) or {"names": ["b.jpg"]}, is_whole)
        return stage.reused, stage.result

    assert run() == (False, {"names": ["b.jpg"]})
    assert run() == (True, {"names": ["b.jpg"]})
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace("b.jpg", "c.jpg"))  # no longer what its hash says
    assert run() == (False, {"names": ["b.jpg"]})
    assert run(lambda result: result["names"] == ["b.jpg"])[0]
    assert not run(lambda result: False)[0]
    assert len(done) == 3
