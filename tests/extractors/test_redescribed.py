"""Keypoints of one extractor, descriptors of another."""

import pytest
import torch
from click.testing import CliRunner

from isinglass.cli import cli
from isinglass.errors import InputError
from isinglass.extractors.aliked import ALIKED, ALIKEDConfig
from isinglass.extractors.disk import DISK
from isinglass.extractors.redescribed import Redescribed
from isinglass.extractors.superpoint import SuperPoint, SuperPointConfig
from isinglass.matchers.lightglue import LightGlue
from isinglass.pipeline import Pipeline
from support import write_photos

IMAGE = torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ALIKED(ALIKEDConfig(variant="t16", max_keypoints=50, detection_threshold=0.0)),
        lambda: SuperPoint(SuperPointConfig(max_keypoints=50, detection_threshold=0.0)),
    ],
)
def test_points_are_described_as_keypoints_are(make):
    torch.manual_seed(0)
    extractor = make().eval()
    found = extractor.extract(IMAGE[None])
    described = extractor.describe_points(IMAGE, found.keypoints[0])
    assert len(described) == 50
    torch.testing.assert_close(described, found.descriptors[0], atol=1e-5, rtol=1e-5)


def test_keypoints_of_the_one_descriptors_of_the_other():
    torch.manual_seed(0)
    detector, describer = DISK().eval(), ALIKED(ALIKEDConfig(variant="t16")).eval()
    both = Redescribed(detector, describer)
    found, detected = both.extract(IMAGE[None].expand(2, -1, -1, -1)), detector.extract(IMAGE[None])
    assert torch.equal(found[0].keypoints, detected.keypoints) and torch.equal(found[1].scores, detected.scores)
    torch.testing.assert_close(found[0].descriptors[0], describer.describe_points(IMAGE, detected.keypoints[0]))
    assert found.signature.descriptors == describer.signature.extractor
    assert found.signature.extractor == f"{detector.signature.extractor}+{describer.signature.extractor}"
    assert both.bytes_per_pixel == max(DISK.bytes_per_pixel, ALIKED.bytes_per_pixel)
    with pytest.raises(InputError, match="describes its own keypoints alone"):
        Redescribed(describer, detector)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 2, size=(320, 240), every=8)


@pytest.mark.weights
def test_a_matcher_takes_them_by_name(photos):
    pipeline = Pipeline(extractor="rootsift+aliked", max_keypoints=60, device="cpu")
    assert pipeline.extractor.signature.extractor == "rootsift+aliked-n16"
    result = pipeline.match(photos / "0.png", photos / "0.png")
    assert result.matches.matcher == "lightglue-aliked"
    assert (result.points0 == result.points1).all() and len(result.points0) > 20


@pytest.mark.weights
@pytest.mark.timeout(300)
def test_one_run_learns_from_keypoints_of_several(photos, tmp_path):
    pytest.importorskip("lightning_fabric")
    command = [
        "train",
        "--recipe",
        "lightglue-aliked-homography-small",
        "--images",
        str(photos),
        "--detector",
        "rootsift",
    ]
    command += ["-o", str(tmp_path / "run"), "--steps", "3", "--batch-size", "2", "--device", "cpu"]
    CliRunner().invoke(cli, command, standalone_mode=False, catch_exceptions=False)
    assert (tmp_path / "run/features/views").is_dir() and (tmp_path / "run/features/views-rootsift").is_dir()
    assert LightGlue.pretrained(tmp_path / "run/best.safetensors").accepts == ("aliked-n16",)
