"""Lists of pairs and images: one reader for all that people, hloc and editors of text write."""

import pytest

from isinglass.errors import InputError
from isinglass.files.lists import (
    check_list,
    columns_of,
    read_image_list,
    read_pair_list,
    read_pairs_among,
    tokens_of,
    write_pair_list,
)

NAMES = ["a.jpg", "b.jpg", "my photo 1.jpg", "my photo 2.jpg", "deep/c.jpg"]
SPACED = [("my photo 1.jpg", "my photo 2.jpg")]


def pairs_of(tmp_path, content, known=NAMES, **more):
    file = tmp_path / "pairs.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_pair_list(file, known, **more).pairs


@pytest.mark.parametrize(
    "pair",
    [
        ("a.jpg", "b.jpg"),
        ("my photo 1.jpg", "my photo 2.jpg"),
        ("#3/a.jpg", "#3/b.jpg"),
        ('6"lens.jpg', '"quoted" name.jpg'),
        ("-rf.jpg", "a,b.jpg"),
        ("ä ö.jpg", "👩‍👩‍👧.jpg"),
        (" leading.jpg", "double  space.jpg"),
        ("back\\slash.jpg", "it's.jpg"),
    ],
)
def test_any_name_is_read_back_whether_names_are_known_or_not(tmp_path, pair):
    write_pair_list(tmp_path / "pairs.txt", [pair, ("a.jpg", "b.jpg")])
    for known in (None, [*pair, "a.jpg", "b.jpg"], {*pair, "a.jpg", "b.jpg"}.__contains__):
        assert read_pair_list(tmp_path / "pairs.txt", known).pairs == [pair, ("a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    "line",
    [
        "my photo 1.jpg my photo 2.jpg",  # hloc
        '"my photo 1.jpg" "my photo 2.jpg"',
        "my photo 1.jpg\tmy photo 2.jpg",
        '"my photo 1.jpg"\t"my photo 2.jpg"\t0.5',
        "my photo 1.jpg my photo 2.jpg 0 0 1.5e-3",
        "  my photo 1.jpg my photo 2.jpg  ",
        "./my photo 1.jpg ./my photo 2.jpg",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_names_with_spaces(tmp_path, line, end):
    assert pairs_of(tmp_path, line + end) == SPACED


def test_what_editors_add_is_no_name(tmp_path):
    assert pairs_of(tmp_path, "\ufeffa.jpg b.jpg\n") == [("a.jpg", "b.jpg")]
    assert pairs_of(tmp_path, "\ufeffa.jpg b.jpg\n", None) == [("a.jpg", "b.jpg")]
    assert pairs_of(tmp_path, "   # an indented comment\na.jpg b.jpg\n", None) == [("a.jpg", "b.jpg")]
    assert pairs_of(tmp_path, "deep\\c.jpg a.jpg\n") == [("deep/c.jpg", "a.jpg")]
    assert pairs_of(tmp_path, "#3/a.jpg #3/b.jpg\n# b.jpg\n", ["#3/a.jpg", "#3/b.jpg"]) == [("#3/a.jpg", "#3/b.jpg")]


def test_absolute_paths_are_of_the_folder(tmp_path):
    line = f"{tmp_path}/photos/a.jpg {tmp_path}/photos/deep/c.jpg\n/elsewhere/a.jpg b.jpg\n"
    found = pairs_of(tmp_path, line, root=tmp_path / "photos")
    assert found == [("a.jpg", "deep/c.jpg"), ("/elsewhere/a.jpg", "b.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg b.jpg\n".encode("utf-16"), "UTF-16"),
        ("a.jpg b.jpg\n".encode("utf-16-le"), "UTF-16"),
        ("a.jpg b.jpg\né.jpg a.jpg\n".encode("latin-1"), "is not UTF-8 in line 2"),
        ("a.jpg,b.jpg\n", "not by commas"),
        ("a.jpg, b.jpg\n", "not by commas"),
        ('"a.jpg","b.jpg"\n', "not by commas"),
        ("a.jpg;b.jpg\n", "not by commas"),
        ("a.jpg b.jpg\nlonely.jpg\n", "line 2 .* expected the names of two images"),
    ],
)
@pytest.mark.parametrize("known", [None, NAMES])
def test_what_is_no_list_of_pairs_is_refused_by_name(tmp_path, content, message, known):
    with pytest.raises(InputError, match=message):
        pairs_of(tmp_path, content, known)


def test_commas_in_known_names_separate_nothing(tmp_path):
    assert pairs_of(tmp_path, "a,b.jpg c, d.jpg\n", ["a,b.jpg", "c, d.jpg"]) == [("a,b.jpg", "c, d.jpg")]


def test_a_line_that_can_be_read_in_two_ways_is_a_problem_of_that_line(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text('x y z\nx "y z"\nno photo of these here\n')
    found = read_pair_list(file, ["x", "y z", "x y", "z"])
    assert found.pairs == [("x", "y z")] and found.lines == [2]
    assert "may be ('x', 'y z') or ('x y', 'z')" in found.problems["line 1"]
    assert "expected two names of the images" in found.problems["line 3"]


def test_a_missing_photo_is_no_reason_to_refuse_the_list(tmp_path):
    assert pairs_of(tmp_path, "a.jpg gone.jpg\na.jpg b.jpg\n") == [("a.jpg", "gone.jpg"), ("a.jpg", "b.jpg")]


def test_names_that_a_line_cannot_hold_are_not_written(tmp_path):
    for name in ("a\nb", "a\tb", "a\u2028b", "\udce9.jpg", " "):
        with pytest.raises(InputError, match="cannot be a line"):
            write_pair_list(tmp_path / "pairs.txt", [("a.jpg", name)])
    assert not (tmp_path / "pairs.txt").exists()


def test_lists_of_images(tmp_path):
    file = tmp_path / "images.txt"
    lines = [
        "\ufeffa.jpg",
        "",
        "  # a comment",
        "my photo 1.jpg",
        '"my photo 2.jpg"',
        "a.jpg",
        f"{tmp_path}/deep/c.jpg",
    ]
    file.write_text("\r\n".join(lines))
    assert read_image_list(file, tmp_path) == ["a.jpg", "my photo 1.jpg", "my photo 2.jpg", "deep/c.jpg"]
    file.write_text("a.jpg\n", "utf-16")
    with pytest.raises(InputError, match="UTF-16"):
        read_image_list(file)


def test_columns():
    assert columns_of('"a b" c\td e') == ['"a b" c', "d e"]
    assert tokens_of('"a b.jpg" c.jpg\t0 1.5') == ["a b.jpg", "c.jpg", "0", "1.5"]


@pytest.mark.parametrize("content", ["", "\n \r\n", "# nothing but this\n"])
def test_a_list_without_a_pair_is_refused(tmp_path, content):
    file = tmp_path / "pairs.txt"
    file.write_text(content)
    with pytest.raises(InputError, match="holds no pair"):
        read_pair_list(file, ["a.jpg"])
    assert read_pair_list(file, ["a.jpg"], allow_none=True).pairs == []


def test_what_no_image_could_mend_is_refused_before_images_are_known(tmp_path):
    file = tmp_path / "pairs.txt"
    for content, why in ((b"", "is empty"), (b"a.jpg,b.jpg\n", "by commas"), (b"a.jpg b.jpg\nc.jpg\n", "line 2"),
                         ("a.jpg b.jpg".encode("utf-16"), "UTF-16"), (b"\xe9 b", "not UTF-8")):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(InputError, match=why):
            check_list(file, columns=2)
    file.write_text('my photo, 1.jpg my photo, 2.jpg\n"a b.jpg" "c.jpg"\n#3.jpg\n#3.jpg a.jpg 0.5\n')
    check_list(file, columns=2)
    check_list(file)


def test_a_pair_of_an_image_with_itself_is_named(tmp_path):
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\nb.jpg b.jpg\n")
    found = read_pairs_among(tmp_path / "pairs.txt", ["a.jpg", "b.jpg"])
    assert found.pairs == [("a.jpg", "b.jpg")] and found.lines == [1]
    ((where, why),) = found.problems.items()
    assert where.startswith("line 2 of ") and "with itself" in why
