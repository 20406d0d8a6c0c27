"""Features and Matches: shapes, padding, views as the extractor saw them, and what a matcher refuses."""

from unittest import mock

import numpy as np
import pytest
import torch

from fake_devices import DeviceTensor, pretend
from isinglass.errors import InputError
from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.matchers.nearest import Nearest
from isinglass.runtime.pairs import check_pairs
from isinglass.types import Features, Matches, Signature
from support import make_features


def test_a_signature_survives_its_text():
    signature = Signature(extractor="aliked-n16", weights="0123456789ab")
    assert Signature.parse(str(signature)) == signature
    with pytest.raises(InputError, match="no feature signature"):
        Signature.parse("aliked")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("keypoints", torch.zeros(1, 3, 3), r"expected \(B, N, 2\)"),
        ("keypoints", torch.zeros(1, 3, 2, dtype=torch.float16), "expected float32"),
        ("descriptors", torch.zeros(1, 4, 8), r"expected \(1, 3, D\)"),
        ("image_size", torch.zeros(2), r"expected \(1, 2\)"),
        ("mask", torch.ones(1, 4, dtype=torch.bool), r"expected \(1, 3\)"),
        ("turns", torch.zeros(2, dtype=torch.int64), r"expected \(1,\)"),
    ],
)
def test_a_wrong_shape_is_named(name, value, words):
    good = {
        "keypoints": torch.zeros(1, 3, 2),
        "descriptors": torch.zeros(1, 3, 8),
        "scores": torch.zeros(1, 3),
        "image_size": torch.ones(1, 2),
        "signature": Signature(extractor="x"),
    }
    with pytest.raises(InputError, match=words):
        Features(**(good | {name: value}))


def test_a_batch_gives_back_what_was_stacked():
    singles = [make_features(n, scales=torch.rand(1, n)) for n in (3, 0, 5)]
    batch = Features.stack(singles)
    assert batch.keypoints.shape == (3, 5, 2)
    assert batch.num_keypoints.tolist() == [3, 0, 5]
    for i, single in enumerate(singles):
        assert batch[i].mask is None
        assert torch.equal(batch[i].keypoints, single.keypoints)
        assert torch.equal(batch[i].scales, single.scales)
    with pytest.raises(IndexError):
        batch[3]


def test_features_of_two_extractors_share_no_batch():
    with pytest.raises(InputError, match="cannot share a batch"):
        Features.stack([make_features(2), make_features(2, extractor="y")])


def test_turned_and_plain_features_share_a_batch():
    batch = Features.stack([make_features(2), make_features(2, turns=torch.tensor([1]))])
    assert batch.turns.tolist() == [0, 1]


@pytest.mark.parametrize("turns", range(8))
def test_as_seen_is_what_numpy_does_to_the_pixels(turns):
    image = np.arange(35).reshape(5, 7)
    seen = np.rot90(image[:, ::-1] if turns >= 4 else image, turns % 4)
    points = torch.tensor([[[1.0, 2.0], [6.0, 0.0], [0.0, 4.0]]])
    features = Features(
        keypoints=points,
        descriptors=torch.zeros(1, 3, 1),
        scores=torch.zeros(1, 3),
        image_size=torch.tensor([[7, 5]]),
        orientations=torch.tensor([[0.0, 1.0, 2.0]]),
        turns=torch.tensor([turns]),
        signature=Signature(extractor="x"),
    ).as_seen()
    assert features.turns is None
    assert features.image_size.tolist() == [[seen.shape[1], seen.shape[0]]]
    for (x, y), (u, v) in zip(points[0].long().tolist(), features.keypoints[0].long().tolist(), strict=True):
        assert seen[v, u] == image[y, x]


@pytest.mark.parametrize("turns", range(8))
def test_as_seen_turns_orientations_with_the_points(turns):
    start, angle = torch.tensor([20.0, 15.0]), 0.7
    tip = start + 5 * torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
    features = Features(
        keypoints=torch.stack([start, tip])[None],
        descriptors=torch.zeros(1, 2, 1),
        scores=torch.zeros(1, 2),
        image_size=torch.tensor([[64, 48]]),
        orientations=torch.full((1, 2), angle),
        turns=torch.tensor([turns]),
        signature=Signature(extractor="x"),
    ).as_seen()
    x, y = (features.keypoints[0, 1] - features.keypoints[0, 0]).tolist()
    assert torch.cos(features.orientations[0, 0] - np.arctan2(y, x)) == pytest.approx(1, abs=1e-5)


def test_the_top_keypoints_are_the_best_first():
    top = make_features(9).top(4)
    assert top.keypoints.shape[1] == 4
    assert torch.equal(top.scores[0], make_features(9).scores[0].sort(descending=True).values[:4])


def test_matches_list_their_pairs_and_stack():
    one = Matches(indices=torch.tensor([[2, -1, 0]]), scores=torch.tensor([[0.9, 0.05, 0.4]]), matcher="m")
    other = Matches(indices=torch.tensor([[0]]), scores=torch.tensor([[0.7]]), matcher="m")
    assert one.pairs().tolist() == [[0, 2], [2, 0]]
    assert one.pair_scores().tolist() == pytest.approx([0.9, 0.4])
    both = Matches.stack([one, other])
    assert both.pairs(0).tolist() == [[0, 2], [2, 0]]
    assert both.pairs(1).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("pair", "options", "words"),
    [
        ((make_features(3, extractor="disk"), make_features(3)), {"accepts": ("x",)}, "made for 'x'"),
        ((make_features(3, extractor="y"), make_features(3)), {}, "extract both alike"),
        ((make_features(3, channels=4), make_features(3)), {}, "expects 4-d"),
        ((make_features(3), make_features(3)), {"descriptor_size": 16}, "expects 16-d"),
        ((Features.stack([make_features(3), make_features(2)]), make_features(3)), {}, "use f\\[i\\]"),
    ],
)
def test_a_matcher_refuses_by_name(pair, options, words):
    with pytest.raises(InputError, match=words):
        check_pairs(pair[:1], pair[1:], matcher="m", **options)


def test_a_matcher_refuses_numbers_that_are_none():
    bad = make_features(3)
    bad.descriptors[0, 1, 0] = torch.nan
    with pytest.raises(InputError, match="descriptors of view 1 of pair 0 hold NaN"):
        check_pairs([make_features(3)], [bad], matcher="m")
    with pytest.raises(InputError, match="expected as many"):
        check_pairs([make_features(3)], [], matcher="m")


def arrays(**more):
    """Features of three keypoints as NumPy arrays."""
    return {
        "keypoints": np.float32([[[1, 2], [30, 40], [5, 6]]]),
        "descriptors": np.eye(3, 8, dtype=np.float32)[None],
        "scores": np.float32([[0.1, 0.2, 0.3]]),
        "image_size": np.array([[64, 48]]),
        "signature": "rootsift",
        **more,
    }


def test_numpy_arrays_become_tensors_of_their_own():
    given = arrays(
        mask=np.ones((1, 3), bool),
        scales=np.float32([[3, 4, 5]])[:, ::-1],
        orientations=np.zeros((1, 3), ">f4"),
        turns=np.array([0]),
    )
    features = Features(**given)
    given["keypoints"][:] = 0
    assert features.keypoints[0, 1].tolist() == [30, 40]
    assert features.scales.tolist() == [[5, 4, 3]] and features.orientations.dtype == torch.float32
    assert features.signature == Signature(extractor="rootsift") and features.image_size.dtype == torch.int64


@pytest.mark.parametrize("text", ["aliked-n16@0123456789ab/pixel-centre-0", "rootsift"])
def test_a_signature_may_be_a_text(text):
    features = Features(**arrays(signature=text))
    assert features.signature.extractor == text.partition("@")[0] and features.signature.convention == "pixel-centre-0"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("keypoints", np.zeros((1, 3, 2)), "float64; expected float32.*astype"),
        ("keypoints", np.zeros((3, 2), np.float32), r"\(B, N, 2\).*\[None\]"),
        ("keypoints", [[[1, 2], [3, 4], [5, 6]]], "is a list; expected a tensor or a NumPy array"),
        ("descriptors", None, "is a NoneType"),
        ("descriptors", np.zeros((1, 3, 8), complex), "complex128; expected numbers"),
        ("descriptors", np.full((1, 3, 8), "x"), "expected numbers"),
        ("scores", np.ones((1, 3), int), "int64; expected floating point"),
        ("scores", torch.ones(1, 3, device="meta"), "on meta and keypoints on cpu"),
        ("mask", np.ones((1, 3)), "expected bool"),
        ("turns", np.zeros(1, np.float32), "expected int64"),
        ("image_size", np.ones((1, 2), bool), "expected numbers of px"),
        ("signature", None, "extractor's name"),
        ("signature", "a@b", "no feature signature"),
    ],
)
def test_a_wrong_kind_is_named(name, value, words):
    with pytest.raises(InputError, match=rf"{words}"):
        Features(**arrays(**{name: value}))


BAD_NUMBERS = [
    ("scales", [3, float("nan"), 5], "scales of view 1 of pair 0 hold NaN"),
    ("orientations", [0, float("inf"), 0], "orientations of view 1 of pair 0 hold NaN or infinity"),
    ("orientations", [0, 90, 180], "orientations .* to 180; expected radians.*deg2rad"),
    ("orientations", [0, -359, 0], "orientations .* from -359"),
    ("scales", [3, 0, 5], "scales .* begin at 0"),
    ("scales", [3, -1, 5], "scales .* begin at -1"),
    ("scores", [0.1, float("nan"), 0.3], "scores .* hold NaN"),
    ("keypoints", [[1, 2], [1e30, 4], [5, 6]], "far outside of its image"),
    ("keypoints", [[1, 2], [-70, 4], [5, 6]], "far outside of its image"),
    ("keypoints", [[1, 2], [float("nan"), 4], [5, 6]], "keypoints .* hold NaN"),
    ("image_size", [float("nan"), 48], "expected a width and height over 0"),
    ("image_size", [64, 0], "expected a width and height over 0"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD_NUMBERS)
def test_a_number_that_cannot_be_is_named(name, value, words):
    usual = arrays(scales=np.float32([[3, 4, 5]]), orientations=np.float32([[-6.28, 0, 6.28]]))
    good, bad = Features(**usual), Features(**usual | {name: np.float32(value)[None]})
    for matcher in (Nearest(), LightGlue(LightGlueConfig(input_size=8, width=8, layers=1, heads=1)).eval()):
        matcher.match_many([good], [good])
        with pytest.raises(InputError, match=words):
            matcher.match_many([good], [bad])


@pytest.mark.parametrize("name", ["scales", "orientations"])
def test_what_only_one_view_has_is_named(name):
    with pytest.raises(InputError, match=f"one view of pair 0 has {name} and the other none"):
        check_pairs([Features(**arrays())], [Features(**arrays(**{name: np.ones((1, 3), np.float32)}))], matcher="x")


def test_views_of_two_devices_and_no_features_are_named():
    one = Features(**arrays())
    with pytest.raises(InputError, match="view 1 of pair 0 is on meta and the first on cpu"):
        check_pairs([one], [one.to("meta")], matcher="x")
    with pytest.raises(InputError, match="view 0 of pair 0 is a Tensor; expected Features"):
        check_pairs([one.keypoints], [one], matcher="x")


def test_a_device_is_waited_for_once():
    """However many pairs are checked, and whatever fields they have."""
    with pretend("cuda"):
        one = Features(**arrays(scales=np.ones((1, 3), np.float32))).to("cuda")
        others = [one.select(torch.tensor([i], device="cuda")) for i in (0, 1, 2)]
        with mock.patch.object(DeviceTensor, "tolist", autospec=True, side_effect=DeviceTensor.tolist) as waits:
            check_pairs([one] * 3, others, matcher="x")
    assert waits.call_count == 1
