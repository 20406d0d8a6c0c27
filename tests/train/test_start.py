"""`isinglass train` on photos made up here: one command trains, the same command goes on, the file matches."""

import functools
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from isinglass.cli import cli
from isinglass.errors import InputError
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.superglue import SuperGlueConfig
from isinglass.pipeline import Pipeline
from isinglass.train.posed import PosedPairs
from isinglass.train.recipes import RECIPES, recipe
from isinglass.train.sources import HomographyPairs, MixedPairs
from isinglass.train.start import Data, pairs_of
from posed_scene import Known, write_scene
from support import write_photos

RECIPE = "lightglue-sift-homography-small"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three photos and a file that is none; the recipe is a smaller one, for tests that train."""
    pytest.importorskip("cv2")
    pytest.importorskip("lightning_fabric")
    made = RECIPES[RECIPE]()
    model = replace(made.config.model, width=32, heads=1, layers=2)
    tiny = replace(made, config=replace(made.config, model=model, validation_pairs=4), used_keypoints=64)
    monkeypatch.setitem(RECIPES, RECIPE, lambda: replace(tiny, max_keypoints=64, views_a_photo=3))
    folder = write_photos(tmp_path / "photos", 3)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def run(photos, output, *options):
    command = ["train", "--recipe", RECIPE, "--images", str(photos), "-o", str(output), "--batch-size", "2", *options]
    return CliRunner().invoke(cli, command, standalone_mode=False, catch_exceptions=False)


@pytest.mark.timeout(300)
def test_one_command_trains_and_the_same_goes_on(photos, tmp_path):
    output = tmp_path / "run"
    first = run(photos, output, "--steps", "2", "--weights-name", "mine")
    assert first.return_value == 1 and "done at step 2" in first.stderr
    assert "left out" in first.stderr and "broken.jpg" in first.stderr
    again = run(photos, output, "--steps", "3", "--weights-name", "mine")
    assert "done at step 3" in again.stderr
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "f1" in row] == [2, 3]
    model = LightGlue.pretrained(output / "best.safetensors")
    assert (model.weights_name, model.accepts) == ("mine", ("rootsift",))
    pipeline = Pipeline(extractor="rootsift", matcher=str(output / "last.safetensors"), max_keypoints=50)
    assert pipeline.match(photos / "0.png", photos / "1.png").matches.matcher == "mine"


def test_recipes_are_what_their_names_say():
    for name in RECIPES:
        made = recipe(name)
        assert made.config.name == name
        kind = LightGlueConfig if name.startswith("lightglue") else SuperGlueConfig
        assert isinstance(made.config.model, kind)
    weights = {
        name: sum(value.numel() for value in recipe(name).config.make_model().parameters())
        for name in (RECIPE, RECIPE.removesuffix("-small"), RECIPE.replace("lightglue", "superglue"))
    }
    small, full, other = weights.values()
    assert 0.05 * full < small < 0.15 * full and 0.8 < other / small < 1.25
    with pytest.raises(
        InputError, match="no recipe 'lightglue-sift-homografy'; did you mean lightglue-sift-homography "
    ):
        recipe("lightglue-sift-homografy")
    shown = CliRunner().invoke(cli, ["recipes"], standalone_mode=False)
    assert shown.stdout.split() == list(RECIPES)


@pytest.mark.parametrize("given", [{}, {"colmap": "model"}, {"colmap": "model", "rgbd": "frames"}])
def test_data_that_is_missing_is_named(given):
    with pytest.raises(InputError, match="images is missing"):
        Data(**given)


def test_posed_data_is_not_for_homographies(photos, tmp_path):
    with pytest.raises(InputError, match="learns from photos alone"):
        run(photos, tmp_path / "run", "--rgbd", str(tmp_path))


def test_confidence_is_learnt_from_what_is_given(photos, tmp_path, monkeypatch):
    confidence = recipe("lightglue-sift-confidence-small")
    views = pairs_of(confidence, Data(images=photos), tmp_path / "views", device="cpu")
    assert isinstance(views.source, HomographyPairs)
    assert [name.rsplit("/")[-1] for name in views.problems] == ["broken.jpg"]
    monkeypatch.setattr("isinglass.train.start.load_extractor", lambda options, device: Known())
    monkeypatch.setattr("isinglass.train.start.PosedPairs", functools.partial(PosedPairs, overlap=(0.1, 1.0)))
    posed = pairs_of(confidence, Data(rgbd=write_scene(tmp_path / "scene")), tmp_path / "posed", device="cpu")
    assert isinstance(posed.source, MixedPairs) and [type(one) for one in posed.source.sources] == [PosedPairs]
