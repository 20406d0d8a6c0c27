"""Custom parts are refused where another process would build the pipeline of its options, before any work."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from skimage import data

from isinglass.distributed import Cluster
from isinglass.errors import InputError
from isinglass.extractors.sift import SIFT
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.parts import custom_parts
from isinglass.pipeline import Pipeline
from isinglass.sfm.computing import Here
from isinglass.sfm.localisation import Map
from isinglass.sfm.mapping import make_map, pipeline_of
from isinglass.sfm.store import FeatureStore

NEAREST = {"extractor": "rootsift", "matcher": "nearest", "max_keypoints": 60, "resize": 200, "device": "cpu"}
LEARNED = NEAREST | {"matcher": "lightglue-sift-small"}


class Mine(Nearest):
    """Matches nothing."""

    name = "mine"


class Disguised(Nearest):
    """Says that it is another one."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.fromarray(data.astronaut()[10 * i : 300, 10 * i : 300]).save(folder / f"{i}.png")
    return folder


def other_threshold(pipeline):
    pipeline.matcher.config = replace(pipeline.matcher.config, filter_threshold=0.5)


def other_dtype(pipeline):
    pipeline.matcher.compute_dtype = (
        torch.bfloat16 if pipeline.matcher.compute_dtype == torch.float32 else torch.float32
    )


def other_tokens(pipeline):
    pipeline.matcher.max_tokens = 7


def other_execution(pipeline):
    pipeline.matcher.execution = "plain"


def other_weights(pipeline):
    next(pipeline.matcher.parameters()).data[0] += 1


def other_buffers_of_none(pipeline):
    pipeline.matcher.layers[0].register_forward_hook(lambda *given: None)


def other_matcher(pipeline):
    pipeline.matcher = Nearest()


def other_extractor(pipeline):
    pipeline.extractor.config = replace(pipeline.extractor.config, max_keypoints=7)


def other_options(pipeline):
    pipeline.options = replace(pipeline.options, filter_threshold=0.4)


CHANGES = [other_threshold, other_dtype, other_tokens, other_execution, other_weights, other_buffers_of_none,
           other_matcher, other_extractor, other_options]  # fmt: skip


@pytest.mark.parametrize("options", [NEAREST, LEARNED, LEARNED | {"memory_mb": 300, "adaptive": False}])
def test_a_pipeline_is_what_its_options_say(options):
    if "memory_mb" in options:
        options = options | {"extractor": "rootsift"}
        options.pop("memory_mb")  # SIFT does not say what it needs
    assert custom_parts(Pipeline(**options)) == []


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_by_hand_is_found(change):
    pipeline = Pipeline(**LEARNED)
    change(pipeline)
    assert len(custom_parts(pipeline)) == 1


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"custom_matcher": Mine()}, NEAREST),
        ({"custom_matcher": Mine()}, {"device": "cpu", "extractor": "rootsift"}),
        ({"custom_matcher": Disguised()}, NEAREST),
        ({"custom_matcher": Nearest(NearestConfig(distance=0.7))}, NEAREST),
        ({"custom_extractor": SIFT(SIFT.Config(rootsift=True, max_keypoints=9))}, NEAREST),
    ],
)
def test_what_was_given_by_hand_is_found(given, options):
    assert len(custom_parts(Pipeline(**options, **given))) == 1


def test_workers_and_clusters_refuse_a_matcher_before_any_work(photos, tmp_path):
    pipeline = Pipeline(**NEAREST, custom_matcher=Mine())
    for computing in (Here(workers=2), Cluster(address="local")):
        with pytest.raises(
            InputError, match=r"the matcher 'mine': the options say 'nearest'\. .*(workers=1|Compute here)"
        ):
            make_map(photos, tmp_path / "map", pipeline, computing=computing)
        assert not (tmp_path / "map").exists()
    with FeatureStore(tmp_path / "features.h5", pipeline.extractor.signature) as store:
        for computing in (Here(workers=2), Cluster(address="local")):
            with pytest.raises(InputError, match="'mine'"):
                computing.match(store, [("0.png", "1.png")], tmp_path / "matches.h5", pipeline)
    assert not (tmp_path / "matches.h5").exists()


def test_a_cluster_refuses_an_extractor(photos, tmp_path):
    pipeline = Pipeline(**NEAREST, custom_extractor=SIFT(SIFT.Config(rootsift=True, max_keypoints=9)))
    with pytest.raises(InputError, match="the extractor 'rootsift': its config is"):
        Cluster(address="local").extract(tmp_path / "features.h5", photos, ["0.png"], pipeline)
    assert not (tmp_path / "features.h5").exists()


def test_one_process_matches_with_the_custom_matcher(photos, tmp_path):
    """And so do two, once it is that of the options."""
    pipeline = Pipeline(**NEAREST)
    matched = {}
    for name, matcher in {"own": Mine(), "options'": pipeline.matcher}.items():
        whole = copy.copy(pipeline)
        whole.matcher = matcher
        store = tmp_path / "features.h5"
        Here().extract(store, photos, ["0.png", "1.png"], whole)
        with FeatureStore(store) as features:
            run = Here().match(features, [("0.png", "1.png")], tmp_path / f"{name}.h5", whole)
        matched[name] = run.made
    assert matched == {"own": 1, "options'": 1}


def test_a_map_of_custom_parts_is_opened_with_them_alone(tmp_path):
    told = {"schema": "isinglass map 1", "photos": "x", "pipeline": NEAREST, "options": {}}
    (tmp_path / "map.json").write_text(json.dumps(told | {"custom": ["the matcher 'mine': the options say 'nearest'"]}))
    with pytest.raises(InputError, match=r"custom parts.*'mine'.*Give the same pipeline"):
        pipeline_of(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "features.h5").touch()
    with pytest.raises(InputError):
        Map.open(tmp_path)
    (tmp_path / "map.json").write_text(json.dumps(told))
    assert pipeline_of(tmp_path).matcher.name == "nearest"
