"""Names of results: valid everywhere, short enough, and always the same."""

from pathlib import Path

import pytest

import isinglass
from isinglass.datasets.layout import image_of
from isinglass.errors import IsinglassError
from isinglass.names import distinguished, exists, file_name, folded, is_file, is_one_line, pair_name, printable


def test_plain_names_stay():
    assert pair_name("IMG_1", "my photo ä") == "IMG_1-my photo ä"
    assert file_name("IMG_1", "-0123.npz") == "IMG_1-0123.npz"


@pytest.mark.parametrize("letter", ["a", "ä", "写", "👩‍👩‍👧"])
def test_long_names_fit_into_255_bytes_and_differ(letter):
    stems = [letter * 140, letter * 140 + "2", letter * 141]
    names = {pair_name(one, other) for one in stems for other in stems}
    assert len(names) == 9
    assert all(len(f"{name}-01234567.json".encode()) <= 255 for name in names)
    assert all(len(file_name(stem, "-0123456789ab-turn3.npz").encode()) <= 255 for stem in stems)


@pytest.mark.parametrize("stem", ['a:b?"<>|*', "back\\slash", "line\nbreak", "caf\udce9", ".hidden", "\x00"])
def test_characters_that_some_system_refuses_are_replaced(stem):
    name = pair_name(stem, "b")
    name.encode()
    assert not set(name) & set('<>:"/\\|?*\n\0') and name[0] != "."


def test_names_that_some_file_system_takes_for_one():
    assert folded("IMG") == folded("img") and folded("a\u0308") == folded("ä")
    assert distinguished("a-b", "/x/a.jpg\n/x/b.jpg") != distinguished("a-b", "/y/a.jpg\n/y/b.jpg")


def test_names_can_be_shown():
    assert printable("caf\udce9\n.jpg") == "caf\\udce9\\n.jpg"
    assert is_one_line("👩‍👩‍👧 ä.jpg") and not is_one_line("a\tb") and not is_one_line("\udce9")


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000 + "b", "a\0b", "\udc80" * 300])
def test_a_path_that_no_file_can_have_is_one_that_is_not_there(tmp_path, name):
    assert not is_file(tmp_path / name) and not exists(tmp_path / name)
    for read in (
        lambda: image_of(tmp_path, name),
        lambda: isinglass.match(tmp_path / name, tmp_path / "b.jpg"),
        lambda: isinglass.match(name, "b.jpg"),
        lambda: isinglass.Pipeline(matcher=name),
        lambda: isinglass.LightGlue.pretrained(Path(name)),
    ):
        with pytest.raises(IsinglassError):
            read()
