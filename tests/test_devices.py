"""The whole pipeline, inspector, doctor and app on other devices find what they find on the CPU."""

import io
import json

import pytest
import torch
from PIL import Image

from fake_devices import pretend
from isinglass.app.pipelines import Pipelines
from isinglass.app.uploads import Upload
from isinglass.app.work import Task, run
from isinglass.doctor import diagnose
from isinglass.extractors.superpoint import SuperPoint
from isinglass.inspection import inspect_result
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlue, SuperGlueConfig
from isinglass.options import Options
from isinglass.pipeline import Pipeline
from isinglass.result import geometry_if_installed
from support import HOMOGRAPHY, pattern, warp

SMALL = {"max_keypoints": 80, "resize": 160}
MODELS = [
    ("rootsift", "nearest"),
    ("rootsift", "lightglue"),
    ("rootsift", "superglue"),
    pytest.param("aliked", "lightglue", marks=pytest.mark.weights),
    pytest.param("disk", "lightglue", marks=pytest.mark.weights),
    pytest.param("xfeat", "nearest", marks=pytest.mark.weights),
    pytest.param("disk+aliked-n16", "nearest", marks=[pytest.mark.weights, pytest.mark.slow]),
]


@pytest.fixture(params=["mps", "cuda"])
def place(request):
    return request.param


@pytest.fixture(scope="module")
def photos(motorcycle):
    return motorcycle[0], warp(motorcycle[0], HOMOGRAPHY)


def assert_alike(found, expected):
    """Two results, but for rounding: the same keypoints, nearly all the same matches."""
    views = zip((found.features0, found.features1), (expected.features0, expected.features1), strict=True)
    for here, there in views:
        assert here.keypoints.shape == there.keypoints.shape
        assert torch.allclose(here.keypoints.cpu(), there.keypoints, atol=1e-2)
    index0, index1 = found.matches.indices.cpu(), expected.matches.indices
    assert (index0 == index1).float().mean() > 0.98 and (index1 >= 0).any()


@pytest.mark.parametrize(("extractor", "matcher"), MODELS)
def test_matches_are_those_of_the_cpu(photos, place, extractor, matcher):
    """The device is the one that the machine has: nobody asks for it."""
    options = {"extractor": extractor, "matcher": matcher, "precision": "float32", **SMALL}
    expected = Pipeline(device="cpu", **options).match(*photos)
    with pretend(place) as device:
        found = Pipeline(**options).match(*photos)
        for tensor in (found.points0, found.scores, found.matches.indices, found.features1.descriptors):
            assert tensor.device == device
        if expected.probabilities is not None:
            assert torch.allclose(found.probabilities.cpu().mean(), expected.probabilities.mean(), atol=0.02)
        assert geometry_if_installed(found).num_inliers > 0
    assert_alike(found, expected)


def test_superpoint_and_superglue(photos, place):
    """With random weights, as the published ones are not free."""
    torch.manual_seed(0)
    models = {
        "custom_extractor": SuperPoint(SuperPoint.Config(detection_threshold=0.0, max_keypoints=100)).eval(),
        "custom_matcher": SuperGlue(SuperGlueConfig(layers=2, sinkhorn_iterations=10, filter_threshold=0.0)).eval(),
    }
    expected = Pipeline(device="cpu", **models, **SMALL).match(*photos)
    with pretend(place):
        on_device = {name: model.to(place) for name, model in models.items()}
        found = Pipeline(device=place, precision="float32", **on_device, **SMALL).match(*photos)
    assert found.features0.keypoints.shape == expected.features0.keypoints.shape
    assert torch.allclose(found.matches.scores.cpu().sum(), expected.matches.scores.sum(), rtol=0.05)


OPTIONS = {
    "tiles": {"resize": 300, "tile": 160, "tile_overlap": 32},
    "turns": {"rotation": "auto"},
    "all": {"adaptive": False, "max_keypoints": None, "min_distance": 0.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_and_masks(photos, place, options):
    mask = torch.zeros(photos[0].shape[1:], dtype=torch.bool)
    mask[:, 200:] = True
    options = {"extractor": "rootsift", "precision": "float32", **SMALL, **options}
    expected = Pipeline(device="cpu", **options).match(*photos, mask0=mask)
    with pretend(place):
        found = Pipeline(**options).match(*photos, mask0=mask)
    assert_alike(found, expected)


def test_many_pairs_of_unequal_size(photos, place):
    options = {"extractor": "rootsift", "precision": "float32", "device": "cpu", "resize": 300}
    features = [f for n in (200, 50) for f in Pipeline(max_keypoints=n, **options).extract_many(photos)]
    pairs = [features[0], features[2], features[0]], [features[1], features[3], features[3]]
    nothing = features[0].select(torch.zeros(0, dtype=torch.int64))
    pairs = [*pairs[0], nothing], [*pairs[1], features[1]]
    for matcher in ("lightglue", "superglue", "nearest"):
        expected = Pipeline(matcher=matcher, **options).match_many(*pairs)
        with pretend(place):
            found = Pipeline(matcher=matcher, **{**options, "device": place}).match_many(*pairs)
        for here, there in zip(found, expected, strict=True):
            assert (here.indices.cpu() == there.indices).float().mean() > 0.97 or not there.indices.numel()


@pytest.mark.parametrize("matcher", ["lightglue", "superglue", "nearest"])
def test_inspector(photos, place, matcher):
    with pretend(place):
        pipeline = Pipeline(extractor="rootsift", matcher=matcher, precision="float32", **SMALL)
        inspection = inspect_result(pipeline.match(*photos), photos, pipeline)
        payload = inspection.payload()
    assert len(json.dumps(payload)) > 1000


def test_doctor(photos, place):
    with pretend(place):
        diagnosis = diagnose(*photos, pipeline=Pipeline(extractor="rootsift", precision="float32", **SMALL))
        assert diagnosis.as_dict()["findings"]


@pytest.mark.parametrize("kind", ["match", "inspect", "doctor"])
def test_app(photos, place, kind):
    """What the app's thread does with one task."""
    uploads = []
    for i in (0, 1):
        file = io.BytesIO()
        Image.fromarray((photos[i] * 255).byte().permute(1, 2, 0).numpy()).save(file, "png")
        uploads.append(Upload(name=f"{i}.png", content=file.getvalue(), size=tuple(photos[i].shape[:0:-1])))
    options = Options(extractor="rootsift", device=place, precision="float32", **SMALL)
    with pretend(place):
        files = run(Task(kind=kind, photos=tuple(uploads), options=options), Pipelines(1), lambda step: None)
    assert json.loads(files["payload.json"])


@pytest.mark.parametrize("network", ["lightglue", "superglue"])
def test_networks_learn(place, network):
    """`forward` and its gradients on the device, padding included."""
    torch.manual_seed(0)
    keypoints, descriptors = torch.rand(2, 2, 9, 2) * 100, torch.randn(2, 2, 9, 32)
    size, mask = torch.full((2, 2, 2), 100), torch.ones(2, 2, 9, dtype=torch.bool)
    mask[1, 0, 6:] = False
    if network == "lightglue":
        model = LightGlue(LightGlueConfig(input_size=32, width=32, layers=2, heads=2))
    else:
        model = SuperGlue(SuperGlueConfig(width=32, layers=2, heads=2, encoder_widths=(8,), sinkhorn_iterations=5))

    def loss_and_gradient(device):
        model.to(device).zero_grad()
        given = [x.to(device) for x in (keypoints, descriptors)]
        if network == "lightglue":
            predictions = model(*given, size.to(device), mask_B2N=mask.to(device), every_layer=True)
            loss = sum(one.log_assignment_BNN[mask.to(device)[:, 0]].clamp(min=-50).mean() for one in predictions)
        else:
            scores = torch.full((2, 2, 9), 0.5, device=device)
            loss = model(*given, scores, size.to(device), mask.to(device)).clamp(min=-50).mean()
        loss.backward()
        return loss.item(), sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)

    expected = loss_and_gradient("cpu")
    with pretend(place):
        found = loss_and_gradient(place)
        model.to("cpu")
    assert found == pytest.approx(expected, rel=1e-3)


def test_an_image_of_one_colour_and_a_tiny_one(place):
    with pretend(place):
        pipeline = Pipeline(extractor="rootsift", **SMALL)
        result = pipeline.match(torch.full((3, 40, 40), 0.5), pattern(30, 20))
        assert result.points0.shape == (0, 2)
