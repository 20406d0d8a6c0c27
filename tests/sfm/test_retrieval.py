"""Images that look alike: VLAD against a plain loop, a ring whose overlaps are known, files that are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from isinglass.errors import InputError, WriteError
from isinglass.sfm import retrieval as module
from isinglass.sfm import vlad
from isinglass.sfm.retrieval import Retrieval, retrieval_of
from isinglass.sfm.vlad import Vocabulary, learn_vocabulary, principal_axes, unit_descriptors
from isinglass.types import Signature
from ring_of_images import CHANNELS, IMAGES, NAMES, SIGNATURE, features_at, overlapping, steps_between, write_ring

BLANK = "blank.jpg"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_ring(tmp_path_factory.mktemp("ring") / "features.h5", **{BLANK: features_at(0, count=0)})


@pytest.fixture(scope="module")
def ring(store):
    return Retrieval.learn(store).add(store)


def plain_vocabulary(seed=0, words=4):
    return Vocabulary(signature=SIGNATURE, words=np.random.default_rng(seed).normal(size=(words, CHANNELS)).astype("f"))


# --- vectors


def test_vlad_is_what_a_plain_loop_sums():
    rng = np.random.default_rng(0)
    words = rng.normal(size=(5, 3))
    descriptors = np.concatenate([rng.normal(size=(30, 3)), words[:1]])  # one is a word itself
    sums = np.zeros((5, 3))
    for one in descriptors:
        nearest = min(range(5), key=lambda word: np.linalg.norm(one - words[word]))
        difference = one - words[nearest]
        if difference.any():
            sums[nearest] += difference / np.linalg.norm(difference)
    lengths = np.linalg.norm(sums, axis=1)
    expected = sums / np.where(lengths > 0, lengths, 1)[:, None]
    assert np.allclose(vlad.vlad(descriptors, words), expected / np.linalg.norm(expected))
    assert not vlad.vlad(np.zeros((0, 3)), words).any()


def test_sift_counts_as_rootsift():
    sift = torch.rand(1, 10, CHANNELS)
    features = replace(features_at(0, count=10), descriptors=sift, signature=Signature(extractor="sift"))
    expected = (sift[0] / sift[0].sum(dim=1, keepdim=True)).sqrt().numpy()
    assert np.allclose(unit_descriptors(features), expected, atol=1e-6)


def test_axes_are_those_of_a_singular_value_decomposition():
    values = np.random.default_rng(0).normal(size=(9, 40)).astype("f")
    mean, axes = principal_axes(values, 5)
    _, _, expected = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    assert np.allclose(mean, values.mean(axis=0), atol=1e-6)
    assert np.allclose(np.abs(expected[:5] @ axes), np.eye(5), atol=1e-3)
    assert principal_axes(np.ones((4, 6), "f"), 3)[1].shape == (6, 0)


def test_vectors_are_of_unit_length_or_nothing(store, ring):
    vector = ring.describe(store.get("00.jpg"))
    assert vector.dtype == np.float32 and vector.shape == (ring.vocabulary.size,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert not ring.describe(store.get(BLANK)).any()


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (features_at(0, signature=Signature(extractor="other")), "features of other@"),
        (replace(features_at(0), descriptors=torch.zeros(1, 60, 7)), "7 channels"),
        (replace(features_at(0), descriptors=torch.full((1, 60, CHANNELS), torch.nan)), "NaN"),
        (type(features_at(0)).stack([features_at(0), features_at(1)]), "batch of 2"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(ring, features, why):
    with pytest.raises(InputError, match=why):
        ring.query(features, 3)


# --- the vocabulary


def test_a_seed_makes_the_same_words(store):
    first, again, other = (learn_vocabulary(store, words=8, seed=seed) for seed in (0, 0, 1))
    assert first.words.shape == (8, CHANNELS)
    assert np.array_equal(first.words, again.words) and first.digest == again.digest
    assert first.digest != other.digest
    assert replace(first, signature=Signature(extractor="other")).digest != first.digest


def test_few_descriptors_make_few_words(tmp_path):
    few = write_ring(tmp_path / "few.h5", [], **{"a.jpg": features_at(0, count=40), "b.jpg": features_at(1, count=3)})
    assert learn_vocabulary(few, words=64).words.shape == (43 // vlad.LEAST_A_WORD, CHANNELS)
    one = write_ring(tmp_path / "one.h5", [], **{"a.jpg": features_at(0, count=1)})
    made = Retrieval.learn(one).add(one)
    assert made.vocabulary.words.shape == (1, CHANNELS) and made.pairs() == []
    none = write_ring(tmp_path / "none.h5", [], **{"a.jpg": features_at(0, count=0)})
    with pytest.raises(InputError, match="no keypoints to learn from"):
        Retrieval.learn(none)
    for wrong in ({"words": 0}, {"dimensions": -1}):
        with pytest.raises(InputError, match="words is"):
            Retrieval.learn(one, **wrong)


def test_a_sample_bounds_what_is_read(store, monkeypatch):
    monkeypatch.setattr(vlad, "SAMPLED_IMAGES", 6)
    monkeypatch.setattr(vlad, "SAMPLED_A_WORD", 20)
    read, trained = [], []
    get, means = store.get, vlad._means
    monkeypatch.setattr(store, "get", lambda name: read.append(name) or get(name))
    monkeypatch.setattr(vlad, "_means", lambda sample, *rest: trained.append(len(sample)) or means(sample, *rest))
    told = []
    learn_vocabulary(store, words=4, tell=lambda done, of: told.append((done, of)))
    assert len(read) == 6 and trained[0] <= 80 and told[-1] == (6, 6)


def test_projected_vectors_find_the_same(store):
    made = Retrieval.learn(store, dimensions=10).add(store)
    assert made.vectors.shape == (IMAGES + 1, 10)
    assert not made.describe(store.get(BLANK)).any()
    assert {pair for pair in overlapping() if steps_between(*pair) == 1} <= set(made.pairs(count=4))


def test_images_that_are_all_the_same_are_not_projected(tmp_path):
    same = write_ring(tmp_path / "same.h5", [], **{f"{i}.jpg": features_at(0) for i in range(5)})
    made = Retrieval.learn(same, dimensions=3).add(same)
    assert made.vocabulary.axes is None
    assert made.query(same.get("3.jpg"), 2, expand=False) == [
        ("0.jpg", pytest.approx(1, abs=1e-3)),
        ("1.jpg", pytest.approx(1, abs=1e-3)),
    ]
    assert len(made.pairs(count=2)) >= 5


# --- what is alike


def test_images_that_overlap_are_found(ring):
    found = ring.pairs(count=4)
    assert found == sorted(found) and not [pair for pair in found if BLANK in pair]
    assert len(set(found) & overlapping()) / len(found) > 0.9
    assert {pair for pair in overlapping() if steps_between(*pair) <= 2} <= set(found)


def test_a_query_takes_on_what_is_nearest_to_it(store, ring):
    query = features_at(5, seed=7)
    vector = ring.describe(query)
    similar = {name: float(ring.vectors[i].astype("f") @ vector) for i, name in enumerate(ring.names)}
    plain = sorted(similar.items(), key=lambda item: -item[1])
    assert ring.query(query, 3, expand=False) == [(name, pytest.approx(s, abs=1e-5)) for name, s in plain[:3]]
    taken = [s * ring.vectors[ring.names.index(name)].astype("f") for name, s in plain[:5] if s > 0]
    expanded = vector + np.sum(taken, axis=0)
    expected = ring.vectors.astype("f") @ (expanded / np.linalg.norm(expanded))
    found = ring.query(query, IMAGES)
    assert found[0][0] == "05.jpg" and len(found) == IMAGES
    assert [s for _, s in found] == pytest.approx(np.sort(expected)[::-1][:IMAGES], abs=1e-5)
    assert ring.query(vector, IMAGES) == found


def test_only_some_are_looked_among(store, ring):
    among = ["11.jpg", "03.jpg", BLANK]
    found = [name for name, _ in ring.query(features_at(4), 5, among=among)]
    assert found[0] == "03.jpg" and sorted(found) == sorted(among)
    assert ring.query(features_at(4), 5, among=[]) == ring.query(features_at(0, count=0), 5) == []
    assert ring.pairs(["02.jpg", "12.jpg"], 1, among=["03.jpg", "13.jpg", "02.jpg"]) == [
        ("02.jpg", "03.jpg"),
        ("12.jpg", "13.jpg"),
    ]
    for names, looked in ((["x"], None), (None, ["x"])):
        with pytest.raises(InputError, match="'x' has not been added"):
            ring.pairs(names, among=looked)


def test_loops_are_far_apart_in_the_sequence(ring):
    sequence = [NAMES[i % IMAGES] for i in range(12, 12 + IMAGES)]  # a ring: its ends meet
    found = ring.pairs(sequence, 2, among=sequence, apart=6)
    place = {name: i for i, name in enumerate(sequence)}
    assert all(place[other] - place[one] > 6 for one, other in found)
    assert ("12.jpg", "11.jpg") in found
    alike = ring.pairs(sequence, 2, among=sequence, apart=6, least_similarity=0.5)
    assert alike and set(alike) <= overlapping() | {pair[::-1] for pair in overlapping()}


def test_cells_find_what_the_flat_index_finds(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 64))
    vectors = vlad.unit(np.repeat(centres, 20, axis=0) + 0.5 * rng.normal(size=(800, 64))).astype(np.float16)
    made = Retrieval(plain_vocabulary())
    names = [f"{i:04}" for i in range(800)]
    made._take(names, [""] * 800, vectors)
    flat = [[name for name, _ in made.query(vectors[i], 5)] for i in range(0, 800, 40)]
    monkeypatch.setattr(module, "FLAT", 500)
    monkeypatch.setattr(module, "_ROWS", 300)
    made._take(names, [""] * 800, vectors)
    cells = [[name for name, _ in made.query(vectors[i], 5)] for i in range(0, 800, 40)]
    assert type(made._built()).__name__ == "IndexIVFScalarQuantizer"
    assert np.mean([len(set(one) & set(other)) / 5 for one, other in zip(flat, cells, strict=True)]) > 0.9
    for among in (names[::2], names[:4]):
        expected = sorted(among, key=lambda name: -float(vectors[int(name)].astype("f") @ vectors[0].astype("f")))[:3]
        assert [name for name, _ in made.query(vectors[0], 3, among=among, expand=False)] == expected


# --- sets that grow, files


def test_images_are_described_once_and_kept_by_name(store, ring, monkeypatch):
    made = Retrieval(ring.vocabulary)
    for some in (NAMES[10:], NAMES[:12], [BLANK]):
        made.add(store, some)
    assert made.names == sorted([*NAMES, BLANK]) and np.array_equal(made.vectors, ring.vectors)
    described = []
    describe = made.describe
    monkeypatch.setattr(made, "describe", lambda features: described.append(1) or describe(features))
    assert len(made.add(store)) == IMAGES + 1 and not described
    monkeypatch.setattr(store, "digest", lambda name: "new" if name == "03.jpg" else f"digest of {name}")
    assert len(made.add(store)) == IMAGES + 1 and len(described) == 1
    with pytest.raises(InputError, match="'x'"):
        made.add(store, ["x"])


def test_what_is_saved_is_what_is_loaded(store, ring, tmp_path):
    ring.save(tmp_path / "retrieval.npz")
    again = Retrieval.load(tmp_path / "retrieval.npz", SIGNATURE)
    assert again.names == ring.names and again.vocabulary.digest == ring.vocabulary.digest
    assert np.array_equal(again.vectors, ring.vectors)
    assert again.query(features_at(3), 4) == ring.query(features_at(3), 4) and again.pairs() == ring.pairs()
    projected = Retrieval.learn(store, dimensions=5).add(store)
    projected.save(tmp_path / "projected.npz")
    assert Retrieval.load(tmp_path / "projected.npz").query(features_at(3), 4) == projected.query(features_at(3), 4)


def test_files_that_are_wrong_are_told(ring, tmp_path):
    file = tmp_path / "retrieval.npz"
    with pytest.raises(InputError, match="cannot be read"):
        Retrieval.load(file)
    ring.save(file)
    with pytest.raises(InputError, match="is of ring@none"):
        Retrieval.load(file, Signature(extractor="rootsift"))
    content = file.read_bytes()
    with np.load(file) as archive:
        fields = dict(archive)
    changes = {
        "its schema": {"schema": np.array("isinglass retrieval 0")},
        "its vocabulary": {"words": fields["words"] + 1},
        "names": {"names": fields["names"][:-1]},
        "vectors": {"vectors": fields["vectors"][:, :-1]},
    }
    for why, change in changes.items():
        np.savez(file, **(fields | change))
        with pytest.raises(InputError, match=why):
            Retrieval.load(file)
    for size in (0, 10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(InputError, match="cannot be read as a retrieval"):
            Retrieval.load(file)
    with pytest.raises(WriteError):
        ring.save(file / "below a file.npz")


def test_a_run_that_was_stopped_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVED_EVERY", 4)
    monkeypatch.setattr(module, "_SAVED_EVERY_S", 0.0)
    file, described = tmp_path / "retrieval.npz", []
    describe = Vocabulary.describe

    def dying(vocabulary, features):
        described.append(1)
        if len(described) == 11:
            raise KeyboardInterrupt
        return describe(vocabulary, features)

    monkeypatch.setattr(Vocabulary, "describe", dying)
    with pytest.raises(KeyboardInterrupt):
        retrieval_of(store, file)
    assert len(Retrieval.load(file)) == 8
    made = retrieval_of(store, file)
    assert len(described) == 11 + IMAGES + 1  # under a half was there: words and all are made again
    described[:] = [0] * 11
    made = Retrieval(made.vocabulary).add(store, NAMES[:20])
    made.save(file)
    whole = retrieval_of(store, file)
    assert len(described) == 11 + 20 + IMAGES + 1 - 20 and len(whole) == IMAGES + 1
    assert np.array_equal(Retrieval.load(file).vectors, whole.vectors)


def test_a_damaged_file_is_made_again(store, ring, tmp_path):
    file = tmp_path / "retrieval.npz"
    file.write_bytes(b"half a file")
    made = retrieval_of(store, file)
    assert np.array_equal(made.vectors, ring.vectors) and np.array_equal(Retrieval.load(file).vectors, ring.vectors)
