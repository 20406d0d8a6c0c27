"""The table of records, the page made from it, and that neither needs torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isinglass.errors import InputError
from isinglass.weights import Pretrained, record, records
from isinglass.weights.records import DATA_TERMS, Installed, Url, Wheel

GENERATOR = Path(__file__).resolve().parents[2] / "docs" / "generate_weights.py"


def test_records_are_whole():
    assert len(records()) == 20
    assert len({one.name for one in records()}) == len({one.file for one in records()}) == 20
    for one in records():
        assert re.fullmatch(r"[a-z0-9-]+", one.name)
        assert one.sources
        assert one.about and one.licence and one.trained_on
        own = isinstance(one.sources[0], Installed) and len(one.sources) == 1  # in the package
        assert one.homepage.startswith("training.md" if own else "https://") and one.paper.startswith("https://")
        assert one.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", one.sha256)
        for source in one.sources:
            match source:
                case Url(address):
                    assert address.startswith("https://") and address.endswith(one.file)
                case Wheel(requirement, member):
                    assert re.fullmatch(r"[a-z-]+==[0-9.]+", requirement)
                    assert Installed(member) in one.sources  # an installed copy saves the download
                    assert one.sha256, "what a wheel has is at hand, so its hash is known"


def test_licences_and_what_matchers_accept():
    assert {one.name for one in records() if not one.commercial_use} == {
        "superpoint",
        "superglue-indoor",
        "superglue-outdoor",
    }
    assert all(("non-commercial" in one.licence) is not one.commercial_use for one in records())
    for one in records():
        is_matcher = one.model in ("LightGlue", "SuperGlue")
        assert (one.accepts is not None) is is_matcher
    assert record("lightglue-aliked").accepts == ("aliked-n16",)
    assert record("lightglue-sift").accepts == ("rootsift",)
    assert {data for data in DATA_TERMS if any(data in one.trained_on for one in records())} == set(DATA_TERMS)


def test_every_record_has_a_class_that_takes_its_options():
    from isinglass.extractors.aliked import ALIKED
    from isinglass.extractors.disk import DISK
    from isinglass.extractors.superpoint import SuperPoint
    from isinglass.extractors.xfeat import XFeat
    from isinglass.matchers.lightglue import LightGlue
    from isinglass.matchers.superglue import SuperGlue

    models: dict[str, type[Pretrained]] = {
        one.__name__: one for one in (ALIKED, DISK, SuperPoint, XFeat, LightGlue, SuperGlue)
    }
    assert {one.model for one in records()} == set(models)
    for one in records():
        config = models[one.model].Config(**one.config)
        assert all(getattr(config, key) == value for key, value in one.config.items())
    for name, model in models.items():
        default = record(model.default_weights)
        assert default.model == name
        assert default.commercial_use or not any(one.commercial_use for one in records(name))


def test_unknown_names_get_near_ones():
    with pytest.raises(InputError, match=r"'aliked-n61'.*did you mean 'aliked-n16'"):
        record("aliked-n61")
    with pytest.raises(InputError, match="known are aliked-n16, aliked-n16rot"):
        record("zzzz")


@pytest.mark.parametrize("module", ["isinglass.weights", "isinglass.weights.records"])
def test_importing_needs_no_torch(module):
    code = f"import {module}, sys; from isinglass.weights import is_present; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_is_up_to_date(tmp_path):
    check = [sys.executable, str(GENERATOR), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}: run python docs/generate_weights.py"
    copy = shutil.copy(GENERATOR, tmp_path)
    (tmp_path / "weights.md").write_text(GENERATOR.with_name("weights.md").read_text("utf-8") + "\n", "utf-8")
    stale = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True, check=False)
    assert stale.returncode == 1
    assert subprocess.run([sys.executable, copy], check=False).returncode == 0
    assert (tmp_path / "weights.md").read_text("utf-8") == GENERATOR.with_name("weights.md").read_text("utf-8")
    page = (tmp_path / "weights.md").read_text("utf-8")
    assert all(f"`{one.name}`" in page and one.licence in page for one in records())
