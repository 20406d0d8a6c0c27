"""Training on pretended GPUs: labels, views, stores and whole steps, with the restrictions of each device enforced."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fake_devices import DEVICES, pretend
from isinglass.matchers.lightglue import LightGlueConfig
from isinglass.models import load_extractor
from isinglass.options import Options
from isinglass.train.labels import landing_by_homography, targets
from isinglass.train.loop import Trainer
from isinglass.train.precision import FABRIC, choose_precision
from isinglass.train.scenes import SceneConfig, ScenePairs, Scenes, scene_views
from isinglass.train.sources import HomographyPairs
from isinglass.train.store import DrawnViews, StoredViews
from isinglass.train.views import Photos, ViewConfig
from made_training import LIGHTGLUE, SUPERGLUE, Corners, MadeUp, config
from support import write_photos

pytest.importorskip("lightning_fabric")
SMALL = ViewConfig(size=(96, 64))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 3)


def fabric_on(device, precision):
    """Fabric on a device that is pretended: only what it asks of the device's driver is left out."""
    from lightning_fabric import Fabric
    from lightning_fabric.accelerators import CPUAccelerator
    from lightning_fabric.plugins.precision import MixedPrecision, Precision
    from lightning_fabric.strategies import SingleDeviceStrategy

    class Pretended(CPUAccelerator):
        def setup_device(self, device):
            pass

    plugin = Precision() if precision == "float32" else MixedPrecision(FABRIC[precision], device.type)
    fabric = Fabric(strategy=SingleDeviceStrategy(device, Pretended(), precision=plugin))
    fabric.launch()
    return fabric


@pytest.mark.parametrize("name", DEVICES)
def test_labels_are_those_of_the_cpu(name):
    generator = torch.Generator().manual_seed(0)
    points0, points1 = (torch.rand(30, 2, generator=generator) * 90 for _ in range(2))
    homography = torch.tensor([[1, 0.02, 3], [0.01, 1, -2], [1e-4, 0, 1]], dtype=torch.float64)

    def labels(device):
        here = [points.to(device) for points in (points0, points1)]
        landings = [
            landing_by_homography(points, matrix, (96, 64))
            for points, matrix in zip(here, (homography, torch.linalg.inv(homography)), strict=True)
        ]
        return targets(*here, *landings)

    with pretend(name) as device:
        found = [value.cpu() for value in labels(device)]
    expected = labels(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", DEVICES)
def test_pairs_of_views_drawn_on_the_device_are_those_of_the_cpu(photos, name):
    def batch(device):
        views = DrawnViews(Photos(photos, SMALL), Corners(), max_keypoints=30, device=device)
        return HomographyPairs(views).batch(2, np.random.default_rng(1))

    if name == "mps":  # which has no antialiased interpolation everywhere, and keeps views that the CPU drew
        pytest.skip("views are drawn on the CPU for mps")
    with pretend(name) as device:
        made = batch(device)
        assert made.keypoints_B2N2.device.type == name
        found = made.to(torch.device("cpu"))
    assert (found.target_B2N >= 0).any()
    expected = batch(torch.device("cpu"))
    torch.testing.assert_close(found.keypoints_B2N2, expected.keypoints_B2N2)
    assert torch.equal(found.target_B2N, expected.target_B2N)


@pytest.mark.parametrize("name", DEVICES)
def test_stored_views_are_extracted_on_the_device(photos, tmp_path, name):
    class OnDevice(Corners):
        def extract(self, images, mask=None):
            assert images.device.type == name
            return super().extract(images, mask)

    with pretend(name) as device:
        made = StoredViews(tmp_path / "a", Photos(photos, SMALL), OnDevice(), per_photo=2, device=device)
        made.fill()
        found = made.features(1, 1)[0]
    same = StoredViews(tmp_path / "b", Photos(photos, SMALL), Corners(), per_photo=2)
    same.fill()
    assert torch.equal(found.keypoints, same.features(1, 1)[0].keypoints)


def test_pairs_of_rooms_drawn_on_a_gpu_are_those_of_the_cpu(photos):
    def batch(device):
        scenes = Scenes(Photos(photos, SMALL), SceneConfig(count=3, size=(96, 64), photos_a_scene=2))
        views = scene_views(scenes, Corners(), max_keypoints=30, device=device)
        return ScenePairs(replace_per_photo(views), scenes).batch(1, np.random.default_rng(0))

    def replace_per_photo(views):
        views.per_photo = 4
        return views

    with pretend("cuda") as device:
        found = batch(device).to(torch.device("cpu"))
    expected = batch(torch.device("cpu"))
    torch.testing.assert_close(found.keypoints_B2N2, expected.keypoints_B2N2)
    assert torch.equal(found.target_B2N, expected.target_B2N)


CASES = {
    "lightglue": config(LIGHTGLUE),
    "superglue": config(SUPERGLUE),
    "low rank": config(LIGHTGLUE, lora_rank=2),
    "confidence": config(LIGHTGLUE, learn="confidence"),
}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_steps_on_the_device_lose_what_steps_on_the_cpu_lose(tmp_path, name, case):
    """Four steps, a validation, a checkpoint, and two steps more after it is taken up again."""
    settled = replace(CASES[case], steps=4, validate_every=4, validation_pairs=4)

    def losses(folder, device):
        rows = []
        for steps in (4, 6):
            made = replace(settled, steps=steps)
            fabric = fabric_on(device, "float32")
            run = Trainer(made, MadeUp(), MadeUp(), folder, trained_on="made up", fabric=fabric)
            run.run(tell=rows.append)
        return [row["loss"] for row in rows if "loss" in row]

    with pretend(name) as device:
        found = losses(tmp_path / "a", device)
    expected = losses(tmp_path / "b", torch.device("cpu"))
    assert len(found) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", DEVICES)
def test_every_extractor_of_a_recipe_gives_features_to_learn_from(tmp_path, photos, name):
    """ALIKED with random weights would match nothing: what counts is that the device can make and keep its views."""
    pytest.importorskip("cv2")
    with pretend(name) as device:
        extractor = load_extractor(Options(extractor="rootsift", max_keypoints=20, min_distance=0), device)
        views = StoredViews(tmp_path / "a", Photos(photos, SMALL), extractor, per_photo=2, device=device)
        views.fill()
        batch = HomographyPairs(views).batch(2, np.random.default_rng(0)).to(device)
        assert batch.keypoints_B2N2.dtype == torch.float32


def test_precision_follows_the_device(monkeypatch):
    model = LightGlueConfig(input_size=8)
    with pretend("mps") as device:
        assert choose_precision("auto", device, model).precision == "float32"
    with pretend("cuda") as device:
        for supported, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
            monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda supported=supported, **_: supported)
            assert choose_precision("auto", device, model).precision == expected
