import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isinglass.errors import InputError
from isinglass.matchers import nearest
from isinglass.matchers.nearest import Nearest, NearestConfig
from isinglass.types import Features, Matcher, Signature


def features(descriptors: Tensor, extractor: str = "any") -> Features:
    count = len(descriptors)
    return Features(
        keypoints=torch.zeros(1, count, 2),
        descriptors=descriptors[None],
        scores=torch.zeros(1, count),
        image_size=torch.tensor([[640.0, 480.0]]),
        signature=Signature(extractor=extractor),
    )


def random_pair(m: int, n: int, size: int = 16, seed: int = 0) -> tuple[Features, Features]:
    """A third of view 1 is near a third of view 0."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(m, size, generator=generator), torch.randn(n, size, generator=generator)
    shared = min(m, n) // 3
    b[:shared] = a[:shared] + 0.4 * torch.randn(shared, size, generator=generator)
    return features(a), features(b[torch.randperm(n, generator=generator)])


def circle(*degrees: float) -> Features:
    """Unit descriptors by their angle: at angle d, two are 2 sin(d / 2) apart."""
    angle = torch.tensor(degrees).deg2rad()
    return features(torch.stack([angle.cos(), angle.sin()], dim=-1))


def brute_force(view0: Features, view1: Features, config: NearestConfig) -> tuple[list[int], list[float]]:
    """The twin: loops and distances."""
    a, b = (view.descriptors[0].double() / view.descriptors[0].double().norm(dim=1)[:, None] for view in (view0, view1))

    def passes(i: int, j: int, p: Tensor, q: Tensor) -> bool:
        d = [math.dist(p[i], other) for other in q]
        rivals = d[:j] + d[j + 1 :]
        ratio_is_low = config.ratio is None or not rivals or d[j] < config.ratio * min(rivals)
        return ratio_is_low and (config.distance is None or d[j] <= config.distance)

    def closest(p: Tensor, q: Tensor) -> int:
        d = [math.dist(p, other) for other in q]
        return d.index(min(d))

    indices, scores = [], []
    for i in range(len(a)):
        j = closest(a[i], b)
        candidate = not config.mutual or closest(b[j], a) == i
        good = passes(i, j, a, b) and (not config.mutual or passes(j, i, b, a))
        indices.append(j if candidate and good else -1)
        scores.append((1 + float(a[i] @ b[j])) / 2 if candidate else 0.0)
    return indices, scores


@pytest.mark.parametrize("max_similarities", [nearest.MAX_SIMILARITIES, 100, 1])
@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize(("ratio", "distance"), [(None, None), (0.8, None), (None, 0.6), (0.9, 0.7)])
def test_is_brute_force(monkeypatch, max_similarities, mutual, ratio, distance):
    monkeypatch.setattr(nearest, "MAX_SIMILARITIES", max_similarities)
    config = NearestConfig(ratio=ratio, distance=distance, mutual=mutual)
    view0, view1 = random_pair(40, 31)
    matches = Nearest(config).match(view0, view1)
    indices, scores = brute_force(view0, view1, config)
    assert matches.indices[0].tolist() == indices
    assert matches.scores[0].tolist() == pytest.approx(scores, abs=1e-6)
    assert 5 < len(matches.pairs()) < 40 or (ratio is distance is None and not mutual)


@settings(max_examples=50, deadline=None)
@given(
    m=st.integers(1, 8), n=st.integers(1, 8), seed=st.integers(0, 999), block=st.integers(1, 70), mutual=st.booleans()
)
def test_is_brute_force_at_any_size(m, n, seed, block, mutual):
    config = NearestConfig(ratio=0.9, mutual=mutual)
    view0, view1 = random_pair(m, n, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "MAX_SIMILARITIES", block)
        matches = Nearest(config).match(view0, view1)
    assert matches.indices[0].tolist() == brute_force(view0, view1, config)[0]


def test_is_the_matcher_of_opencv():
    cv2 = pytest.importorskip("cv2")
    view0, view1 = random_pair(300, 400, size=64)
    unit0, unit1 = (torch.nn.functional.normalize(v.descriptors[0], dim=1).numpy() for v in (view0, view1))
    theirs = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(unit0, unit1)
    ours = Nearest().match(view0, view1)
    assert {(a, b) for a, b in ours.pairs().tolist()} == {(m.queryIdx, m.trainIdx) for m in theirs}
    one_way = cv2.BFMatcher(cv2.NORM_L2).knnMatch(unit0, unit1, k=2)
    kept = {(a.queryIdx, a.trainIdx) for a, b in one_way if a.distance < 0.8 * b.distance}
    ours = Nearest(NearestConfig(ratio=0.8, mutual=False)).match(view0, view1)
    assert {(a, b) for a, b in ours.pairs().tolist()} == kept
    assert len(kept) > 50


# --- by hand


def test_scores_and_distance_by_hand():
    view0, view1 = circle(0, 90, 180), circle(60, 180)
    matches = Nearest().match(view0, view1)
    assert matches.indices.tolist() == [[-1, 0, 1]]
    assert matches.scores[0].tolist() == pytest.approx([0, (1 + math.cos(math.radians(30))) / 2, 1])
    matches = Nearest(NearestConfig(mutual=False)).match(view0, view1)
    assert matches.indices.tolist() == [[0, 0, 1]]
    assert matches.scores[0, 0].item() == pytest.approx(0.75)
    far = 2 * math.sin(math.radians(15))
    assert Nearest(NearestConfig(distance=far - 1e-3)).match(view0, view1).indices.tolist() == [[-1, -1, 1]]
    near_enough = Nearest(NearestConfig(distance=far + 1e-3)).match(view0, view1)
    assert near_enough.indices.tolist() == [[-1, 0, 1]]
    assert near_enough.stop_layer is near_enough.pruned_at0 is None
    assert near_enough.matcher == Nearest.name == "nearest"
    assert isinstance(Nearest(), Matcher)


def test_ratio_by_hand():
    view0, view1 = circle(0), circle(20, -40, 180)
    ratio = math.sin(math.radians(10)) / math.sin(math.radians(20))
    for add, expected in ((-1e-3, -1), (1e-3, 0)):
        matches = Nearest(NearestConfig(ratio=ratio + add)).match(view0, view1)
        assert matches.indices.tolist() == [[expected]]
        assert matches.scores.item() == pytest.approx((1 + math.cos(math.radians(20))) / 2)
        swapped = Nearest(NearestConfig(ratio=ratio + add)).match(view1, view0)
        assert swapped.indices.tolist() == [[0 if expected == 0 else -1, -1, -1]]


def test_a_single_neighbour_passes_the_ratio_test():
    assert Nearest(NearestConfig(ratio=0.1)).match(circle(0), circle(170)).indices.tolist() == [[0]]


def test_ties_go_to_the_first_and_fail_the_ratio_test(monkeypatch):
    view0, view1 = circle(90, 0, 0), circle(180, 0, 0, 0)
    for max_similarities in (nearest.MAX_SIMILARITIES, 4):
        monkeypatch.setattr(nearest, "MAX_SIMILARITIES", max_similarities)
        assert Nearest().match(view0, view1).indices.tolist() == [[0, 1, -1]]
        assert Nearest(NearestConfig(mutual=False)).match(view0, view1).indices.tolist() == [[0, 1, 1]]
        assert Nearest(NearestConfig(ratio=1.0)).match(view0, view1).indices.tolist() == [[-1, -1, -1]]


def test_length_does_not_matter():
    view0, view1 = random_pair(20, 30)
    scaled = features(view1.descriptors[0] * torch.linspace(0.1, 100, 30)[:, None])
    config = NearestConfig(ratio=0.9)
    assert torch.equal(Nearest(config).match(view0, scaled).indices, Nearest(config).match(view0, view1).indices)


@pytest.mark.parametrize("config", [NearestConfig(), NearestConfig(ratio=0.9), NearestConfig(distance=0.7)])
def test_swapped_views_swap_matches(config):
    view0, view1 = random_pair(60, 45)
    forward, backward = Nearest(config).match(view0, view1), Nearest(config).match(view1, view0)
    assert len(forward.pairs()) > 5
    assert sorted(forward.pairs().tolist()) == sorted(backward.pairs().flip(1).tolist())
    i, j = forward.pairs().T
    torch.testing.assert_close(forward.scores[0, i], backward.scores[0, j])


def test_a_pair_in_a_batch_is_the_pair_alone():
    pairs = [random_pair(m, n, seed=m) for m, n in ((10, 30), (25, 8), (0, 4), (1, 1))]
    views0, views1 = zip(*pairs, strict=True)
    alone = [Nearest().match(*both) for both in pairs]
    batch = Nearest().match(Features.stack(views0), Features.stack(views1))
    assert batch.indices.shape == (4, 25)
    for i, (one, listed) in enumerate(zip(alone, Nearest().match_many(views0, views1), strict=True)):
        assert torch.equal(one.indices, listed.indices)
        assert torch.equal(batch.indices[i, : one.indices.shape[1]], one.indices[0])
        assert batch.pairs(i).tolist() == one.pairs().tolist()


def test_halves_are_compared_in_float32():
    view0, view1 = random_pair(50, 60)
    halves = [features(view.descriptors[0].half()) for view in (view0, view1)]
    matches = Nearest().match(*halves)
    assert matches.scores.dtype == torch.float32
    assert torch.equal(matches.indices, Nearest().match(*(features(h.descriptors[0].float()) for h in halves)).indices)


# --- bad input


@pytest.mark.parametrize("config", [NearestConfig(ratio=0.8, distance=1.0), NearestConfig(mutual=False)])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (3, 0), (1, 0)])
def test_empty_views(config, m, n):
    matches = Nearest(config).match(*random_pair(m, n))
    assert matches.indices.tolist() == [[-1] * m]
    assert matches.indices.dtype == torch.int64
    assert matches.scores.tolist() == [[0.0] * m]
    assert Nearest(config).match_many([], []) == []


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_few_keypoints(m, n):
    config = NearestConfig(ratio=0.99)
    view0, view1 = random_pair(m, n)
    assert Nearest(config).match(view0, view1).indices[0].tolist() == brute_force(view0, view1, config)[0]


def test_a_descriptor_of_zeros_is_a_number():
    matches = Nearest(NearestConfig(ratio=0.8)).match(features(torch.zeros(2, 4)), features(torch.eye(4)))
    assert matches.indices.tolist() == [[-1, -1]]
    assert matches.scores.isfinite().all()


def test_foreign_features():
    broken = torch.eye(4)
    broken[1, 1] = torch.nan
    with pytest.raises(InputError, match="descriptors of view 1 of pair 0"):
        Nearest().match(features(torch.eye(4)), features(broken))
    with pytest.raises(InputError, match="5-d descriptors"):
        Nearest().match(features(torch.eye(4)), features(torch.eye(5)))
    with pytest.raises(InputError, match="extract both alike"):
        Nearest().match(features(torch.eye(4), "sift"), features(torch.eye(4), "disk"))
    with pytest.raises(InputError, match="expected as many"):
        Nearest().match_many([features(torch.eye(4))], [])
    assert Nearest().match(features(torch.eye(4), "sift"), features(torch.eye(4), "sift")).pairs().shape == (4, 2)


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.2}, {"distance": -0.1}, {"distance": 3.0}])
def test_impossible_configs(options):
    with pytest.raises(InputError):
        NearestConfig(**options)
