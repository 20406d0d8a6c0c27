"""Features and Matches: shapes, padding, views as the extractor saw them, and what a matcher refuses."""

import numpy as np
import pytest
import torch

from isinglass.errors import InputError
from isinglass.types import Features, Matches, Signature, check_pairs
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
