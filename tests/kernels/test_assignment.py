import pytest
import torch
from torch import Tensor

from isinglass.kernels import assignment
from isinglass.kernels.assignment import (
    double_softmax_matches,
    log_double_softmax,
    log_sinkhorn,
    mutual_matches,
    sinkhorn_matches,
)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- double softmax


def test_double_softmax_by_loops():
    similarity, a, b = randn(2, 3, 4), randn(2, 3, seed=1), randn(2, 4, seed=2)
    p = log_double_softmax(similarity, a, b).exp()
    for batch in range(2):
        for i in range(3):
            for j in range(4):
                s = similarity[batch].exp()
                expected = s[i, j] / s[i].sum() * s[i, j] / s[:, j].sum()
                expected = expected / ((1 + (-a[batch, i]).exp()) * (1 + (-b[batch, j]).exp()))
                assert p[batch, i, j].item() == pytest.approx(expected.item())


def test_double_softmax_stays_finite_at_extremes():
    p = log_double_softmax(torch.tensor([[[1e4, -1e4]]]), torch.tensor([[-1e4]]), torch.tensor([[1e4, 1e4]]))
    assert p.isfinite().all()
    assert p[0, 0, 0].item() == pytest.approx(-1e4)


def test_double_softmax_of_swapped_views_is_transposed():
    similarity, a, b = randn(2, 3, 4), randn(2, 3, seed=1), randn(2, 4, seed=2)
    torch.testing.assert_close(log_double_softmax(similarity, a, b).mT, log_double_softmax(similarity.mT, b, a))


def test_double_softmax_gradient():
    inputs = [randn(1, 2, 3).requires_grad_(), randn(1, 2).requires_grad_(), randn(1, 3).requires_grad_()]
    assert torch.autograd.gradcheck(log_double_softmax, inputs)


# --- Sinkhorn


def slow_sinkhorn(similarity_MN: Tensor, bin_score: float, iterations: int) -> Tensor:
    """The twin: probabilities, rows and columns scaled to their sums in turn (Sinkhorn and Knopp 1967)."""
    m, n = similarity_MN.shape
    p = torch.full((m + 1, n + 1), bin_score, dtype=similarity_MN.dtype)
    p[:m, :n] = similarity_MN
    p = p.exp()
    for _ in range(iterations):
        for i in range(m + 1):
            p[i] *= (n if i == m else 1) / p[i].sum()
        for j in range(n + 1):
            p[:, j] *= (m if j == n else 1) / p[:, j].sum()
    return p


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (6, 2)])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_is_its_slow_twin(m, n, iterations):
    similarity = 2 * randn(2, m, n, seed=m)
    log_p = log_sinkhorn(similarity, torch.tensor(0.7, dtype=torch.float64), iterations)
    for batch in range(2):
        torch.testing.assert_close(log_p[batch].exp(), slow_sinkhorn(similarity[batch], 0.7, iterations))


def test_sinkhorn_marginals():
    p = log_sinkhorn(3 * randn(2, 5, 7), torch.tensor(1.0), 300).exp()
    torch.testing.assert_close(p.sum(dim=2), torch.tensor([[1.0] * 5 + [7.0]] * 2, dtype=torch.float64))
    torch.testing.assert_close(p.sum(dim=1), torch.tensor([[1.0] * 7 + [5.0]] * 2, dtype=torch.float64))


def test_sinkhorn_closed_form():
    """One keypoint each: p + q = 1 and p r = q^2 with all sums 1, so p = q sqrt(e^(s - z)) for the scores s and z."""
    s, z = 2.0, 0.5
    p = log_sinkhorn(torch.tensor([[[s]]], dtype=torch.float64), torch.tensor(z, dtype=torch.float64), 500).exp()
    expected = 1 / (1 + torch.tensor((z - s) / 2).exp())
    assert p[0, 0, 0].item() == pytest.approx(expected.item())
    flat = log_sinkhorn(torch.ones(1, 3, 3), torch.tensor(1.0), 10).exp()  # all scores alike
    torch.testing.assert_close(flat[0, :3, :3], torch.full((3, 3), 1 / 6))  # 1 = 3 p + q, 3 = 3 q + r, p r = q^2


def test_sinkhorn_far_scores_match_or_leave():
    similarity = torch.tensor([[[60.0, -60.0], [-60.0, -60.0]]])
    p = log_sinkhorn(similarity, torch.tensor(0.0), 100).exp()
    torch.testing.assert_close(p[0, :2, :2], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=1e-2, rtol=0)
    torch.testing.assert_close(p[0, 1, 2], torch.tensor(1.0), atol=1e-2, rtol=0)


def test_sinkhorn_padding_changes_nothing():
    m, n = [3, 5, 2], [4, 1, 6]
    mask0, mask1 = (torch.arange(6) < torch.tensor(count)[:, None] for count in (m, n))
    mask0[0] = mask0[0].flip(0)  # padding may stand anywhere
    similarity, z = randn(3, 6, 6), torch.tensor(0.3, dtype=torch.float64)
    padded = log_sinkhorn(similarity, z, 20, mask0, mask1)
    other = similarity.masked_fill(~(mask0[:, :, None] & mask1[:, None, :]), 1e4)
    assert padded.isfinite().all()
    for i in range(3):
        real0, real1 = (torch.cat([mask[i], torch.tensor([True])]) for mask in (mask0, mask1))
        alone = log_sinkhorn(similarity[i : i + 1, mask0[i]][:, :, mask1[i]], z, 20)[0]
        torch.testing.assert_close(padded[i, real0][:, real1], alone)
        torch.testing.assert_close(log_sinkhorn(other, z, 20, mask0, mask1)[i, real0][:, real1], alone)
        assert padded[i, ~real0].exp().sum() == 0
        assert padded[i, :, ~real1].exp().sum() == 0


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_sinkhorn_of_empty_views(m, n):
    p = log_sinkhorn(torch.zeros(1, m, n), torch.tensor(1.0), 20)
    assert p.isfinite().all()
    torch.testing.assert_close(p[0, :m, n].exp(), torch.ones(m))
    torch.testing.assert_close(p[0, m, :n].exp(), torch.ones(n))
    masked = log_sinkhorn(
        torch.zeros(1, 3, 3), torch.tensor(1.0), 20, torch.arange(3)[None] < m, torch.arange(3)[None] < n
    )
    assert masked.isfinite().all()
    torch.testing.assert_close(masked[0, :m, 3].exp(), torch.ones(m))


@pytest.mark.parametrize("masked", [False, True])
def test_sinkhorn_gradient(masked):
    masks = (torch.tensor([[True, True, False]]), torch.tensor([[True, False, True, True]])) if masked else ()
    rows, columns = ([0, 1, 3], [0, 2, 3, 4]) if masked else (range(4), range(5))

    def real(similarity: Tensor, z: Tensor) -> Tensor:
        return log_sinkhorn(similarity, z, 7, *masks)[:, list(rows)][:, :, list(columns)]

    z = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(real, [randn(1, 3, 4).requires_grad_(), z])


def test_sinkhorn_of_halves_is_computed_in_float32():
    similarity = randn(1, 300, 300, dtype=torch.float32).half()
    p = log_sinkhorn(similarity, torch.tensor(1.0), 50)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p, log_sinkhorn(similarity.float(), torch.tensor(1.0), 50))


# --- the mutual check


def matches_of(p: list[list[float]], threshold: float) -> tuple[list[int], list[float]]:
    indices, scores = mutual_matches(torch.tensor([p]).log(), threshold)
    return indices[0].tolist(), scores[0].tolist()


def test_mutual_matches_by_hand():
    indices, scores = matches_of([[0.9, 0.1, 0.0], [0.8, 0.3, 0.2], [0.0, 0.4, 0.15]], threshold=0.2)
    assert indices == [0, -1, 1]  # row 1 prefers column 0, which prefers row 0
    assert scores == pytest.approx([0.9, 0.0, 0.4])


def test_mutual_matches_threshold_is_exclusive_and_leaves_scores():
    indices, scores = matches_of([[0.5, 0.0], [0.0, 0.25]], threshold=0.5)
    assert indices == [-1, -1]
    assert scores == pytest.approx([0.5, 0.25])


def test_mutual_matches_ties_go_to_the_first():
    assert matches_of([[0.5, 0.5], [0.5, 0.5]], threshold=0.1)[0] == [0, -1]


def test_mutual_matches_of_swapped_views_are_swapped():
    p = randn(4, 20, 30).log_softmax(dim=2)
    forward, backward = mutual_matches(p, 0.1), mutual_matches(p.mT, 0.1)
    for i in range(4):
        pairs = {(a, b) for a, b in enumerate(forward[0][i].tolist()) if b >= 0}
        assert pairs == {(b, a) for a, b in enumerate(backward[0][i].tolist()) if b >= 0}
        assert len(pairs) > 3
        matched = forward[0][i] >= 0
        torch.testing.assert_close(forward[1][i, matched], backward[1][i, forward[0][i, matched]])


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_mutual_matches_of_empty_views(m, n):
    indices, scores = mutual_matches(torch.zeros(2, m, n), 0.1)
    assert indices.shape == scores.shape == (2, m)
    assert indices.dtype == torch.int64
    assert (indices == -1).all()
    assert (scores == 0).all()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 9), (70, 33), (0, 4), (4, 0)])
def test_double_softmax_matches_are_those_of_the_matrix(monkeypatch, m, n):
    """The twin holds the (M, N) matrix; here only blocks of rows of it exist."""
    monkeypatch.setattr(assignment, "BLOCK", 16)
    generator = torch.Generator().manual_seed(m + n)
    x0, x1 = torch.randn(m, 8, generator=generator), torch.randn(n, 8, generator=generator)
    x1[: min(m, n) // 2] = 2 * x0[: min(m, n) // 2]  # some clear matches
    z0, z1 = torch.randn(m, generator=generator), torch.randn(n, generator=generator)
    indices, scores = double_softmax_matches(x0, x1, z0, z1, 0.1)
    expected = log_double_softmax((x0 @ x1.T)[None], z0[None], z1[None])
    expected_indices, expected_scores = mutual_matches(expected, 0.1)
    assert torch.equal(indices, expected_indices[0])
    torch.testing.assert_close(scores, expected_scores[0])
    assert m * n < 100 or int((indices >= 0).sum()) > 3


@pytest.mark.parametrize("spread", [1.0, 10.0, 200.0])
@pytest.mark.parametrize(("m", "n", "iterations"), [(1, 1, 3), (30, 50, 100), (30, 31, 5), (0, 3, 5), (3, 0, 5)])
def test_sinkhorn_matches_are_those_of_the_log_domain(m, n, iterations, spread):
    """Also where products leave the range of numbers."""
    generator = torch.Generator().manual_seed(m)
    similarity = torch.randn(m, n, generator=generator) * spread
    similarity.diagonal().add_(4 * spread)
    given, bin_score = similarity.clone(), torch.tensor(1.0)
    indices, scores = sinkhorn_matches(given, bin_score, iterations, 0.2)
    expected = log_sinkhorn(similarity[None], bin_score, iterations)[:, :-1, :-1]
    expected_indices, expected_scores = mutual_matches(expected, 0.2)
    assert torch.equal(indices, expected_indices[0])
    torch.testing.assert_close(scores, expected_scores[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(given, similarity)


def test_sinkhorn_falls_back_where_products_do_not_hold(monkeypatch):
    called = []
    monkeypatch.setattr(assignment, "log_sinkhorn", lambda *args: called.append(args) or log_sinkhorn(*args))
    similarity = torch.tensor([[500.0, -500.0], [400.0, -600.0]])
    indices, scores = sinkhorn_matches(similarity, torch.tensor(-400.0), 20, 0.2)
    expected = mutual_matches(log_sinkhorn(similarity[None], torch.tensor(-400.0), 20)[:, :-1, :-1], 0.2)
    assert torch.equal(indices, expected[0][0]) and scores.isfinite().all()
    torch.testing.assert_close(scores, expected[1][0])
