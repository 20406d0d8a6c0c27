"""Hashes in our files: whatever byte is damaged, the content is as it was written, or refused."""

from __future__ import annotations

import json
import math

import pytest

from isinglass.errors import InputError
from isinglass.files import read_signed_json, signed_json, verify_json, write_signed_json
from isinglass.files.integrity import seal, unseal

CONTENT = {
    "schema": "made 1",
    "names": ["a.jpg", "größe.jpg", "\udcff.jpg"],
    "values": [1, 2.5, -0.0, None, True],
    "deep": {"3": {}},
}


def flips(content: bytes, step: int = 1):
    """The content with one bit changed, for every `step`-th bit."""
    for place in range(0, 8 * len(content), step):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def test_json_comes_back_without_its_hash(tmp_path):
    assert verify_json(signed_json(CONTENT)) == CONTENT
    assert verify_json(signed_json({**CONTENT, "sha256": "of an earlier one"}, indent=1)) == CONTENT
    assert verify_json(signed_json({3: (1, 2)})) == {"3": [1, 2]}
    write_signed_json(tmp_path / "a.json", CONTENT)
    assert read_signed_json(tmp_path / "a.json") == CONTENT
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["names"] == CONTENT["names"]


def test_json_of_earlier_versions_has_no_hash():
    assert verify_json(json.dumps(CONTENT)) == CONTENT
    assert verify_json("{}") == {}
    assert verify_json('{"x": Infinity}') == {"x": math.inf}


@pytest.mark.parametrize(
    "damage",
    [
        lambda name, digest: (name.replace("5", "95", 1), digest),
        lambda name, digest: ("sha25", digest[:-1]),
        lambda name, digest: ("size", digest[:20] + "x" + digest[21:60]),
    ],
)
def test_json_whose_hash_lost_its_name_is_damaged(damage):
    name, digest = list(json.loads(signed_json({"a": 1})).items())[-1]
    other_name, other_digest = damage(name, digest)
    with pytest.raises(ValueError, match="its hash has the name"):
        verify_json(json.dumps({"a": 2, other_name: other_digest}))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_not_written(tmp_path, number):
    write_signed_json(tmp_path / "a.json", CONTENT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_signed_json(tmp_path / "a.json", {"deep": [{"x": number}]})
    assert read_signed_json(tmp_path / "a.json") == CONTENT


def test_json_that_was_laid_out_anew_is_the_same():
    again = json.dumps(dict(reversed(json.loads(signed_json(CONTENT)).items())), indent=4)
    assert verify_json(again) == CONTENT


@pytest.mark.parametrize("indent", [None, 1])
def test_every_flipped_bit_of_json_is_refused_or_harmless(indent):
    text = signed_json(CONTENT, indent=indent).encode()
    refused = 0
    assert text.count(b'"sha256"') == 1
    for damaged in flips(text):
        try:
            found = verify_json(damaged)
        except ValueError:
            refused += 1
        else:  # case of a digit of an escape
            assert found == CONTENT
    assert refused > 0.9 * 8 * len(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100000, "nested too deeply"),
        ("[1]", "a list, expected an object"),
        ('{"a": 1, "a": 2}', "a field twice"),
        (b"\xff\xfe", "utf-8"),
        ('{"a": 1, "sha256": "12"}', "was written with 12"),
        ('{"a": 1, "sha256": null}', "was written with None"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_none_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"a\.json' is damaged .*{message}.*make it again"):
        read_signed_json(path)


def test_absent_json_is_refused_by_name(tmp_path):
    for path in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_signed_json(path)


def test_a_seal_covers_every_bit():
    content = b"some bytes" * 3
    assert unseal(seal(content)) == (content, True)
    assert unseal(content) == (content, False)
    assert unseal(b"") == (b"", False)
    for damaged in flips(seal(content)):
        try:
            found, sealed = unseal(damaged)
        except ValueError:
            continue
        assert not sealed  # the mark is damaged: formats refuse what follows their own end
        assert found == damaged
