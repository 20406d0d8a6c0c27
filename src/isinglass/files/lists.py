"""Lists of pairs and of images as text: one reader and one writer for every command.

A line holds two names and, after them, anything; blank lines and comments ("# ...") are skipped. Names are separated by
white space, or by tabs where the line has any. A name that holds white space, or begins with "#" or a quote, is written
in double quotes, a quote within it doubled. Where the names of all images are known, a line may also hold names with
spaces as hloc writes them, without quotes, as long as there is one way to read it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isinglass.errors import InputError
from isinglass.files.atomic import PathLike, write_atomically
from isinglass.names import is_one_line, printable

Known = Callable[[str], bool] | Collection[str] | None
_TOKEN = re.compile(r'"((?:[^"]|"")*)"(?=\s|$)|(\S+)')
_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?")
_REMEDY = "put names that hold spaces in double quotes"
_EXPECTED = ("the name of an image", "two names of images")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_MAX_WORDS = 60  # of a line whose names may hold spaces; more columns are not names


@dataclass(frozen=True, kw_only=True)
class PairList:
    """The pairs of a list, in its order, with the number of each one's line; and what is wrong with other lines.

    left_out  pairs of images that were left out by choice
    """

    pairs: list[tuple[str, str]]
    lines: list[int]
    problems: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def read_pair_list(
    file: PathLike, known: Known = None, root: PathLike | None = None, *, allow_none: bool = False
) -> PairList:
    """Read the pairs of a text file; see the module.

    known  the names of all images, or whether there is an image of a name. A pair with another name is still a pair of
           the list where the line can be read in one way only; who uses the list reports it
    root   the folder that names are relative to: an absolute path below it becomes such a name

    Raises InputError where the file cannot be read, is UTF-16 or separated by commas, a line has no two names, or,
    unless `allow_none`, there is no line.
    """
    is_known = known if known is None or callable(known) else set(known).__contains__
    pairs: list[tuple[str, str]] = []
    lines: list[int] = []
    problems: dict[str, str] = {}
    for number, line in _lines(file):
        found = _readings(line, is_known, root)
        resolved = is_known is not None and any(is_known(name0) and is_known(name1) for name0, name1 in found)
        if line.startswith("#") and not resolved:
            continue
        where = f"line {number} of {str(file)!r} is {printable(line)!r}"
        if not resolved and _is_separated_by_commas(line, found):
            raise InputError(f"{where}; expected names separated by white space or tabs, not by commas")
        if len(found) == 1:
            pairs.append(found[0])
            lines.append(number)
        elif found:
            problems[f"line {number}"] = f"{where}, which may be {' or '.join(map(str, found[:3]))}; {_REMEDY}"
        elif is_known is None or len(columns_of(line)) < 2:
            raise InputError(f"{where}; expected the names of two images. {_REMEDY.capitalize()}")
        else:
            problems[f"line {number}"] = f"{where}; expected two names of the images that are there. {_REMEDY}"
    if not pairs and not problems and not allow_none:
        raise InputError(f"the list {str(file)!r} holds no pair; expected two names of images per line")
    return PairList(pairs=pairs, lines=lines, problems=problems)


def read_pairs_among(
    file: PathLike,
    names: Collection[str],
    root: PathLike | None = None,
    is_left_out: Callable[[str], bool] = lambda name: False,
) -> PairList:
    """Read the pairs of a list that are of the images `names`; see `read_pair_list`.

    Any other name is a problem, under that name, unless it is that of an image that is there and left out by choice:
    `is_left_out` says so.
    """
    known = set(names)
    listed = read_pair_list(file, lambda name: name in known or is_left_out(name), root)
    kept = PairList(pairs=[], lines=[], problems=problems_by_place(listed, file))
    strangers: dict[str, list[int]] = {}
    for number, pair in zip(listed.lines, listed.pairs, strict=True):
        others = [name for name in dict.fromkeys(pair) if name not in known]
        if pair[0] == pair[1] and not others:
            kept.problems[f"line {number} of {str(file)!r}"] = "it pairs an image with itself. Take the line out"
        elif not others:
            kept.pairs.append(pair)
            kept.lines.append(number)
        elif all(map(is_left_out, others)):
            kept.left_out.append(pair)
        for name in others:
            if not is_left_out(name):
                strangers.setdefault(name, []).append(number)
    for name, numbers in strangers.items():
        more = f" and in {len(numbers) - 1} more" if len(numbers) > 1 else ""
        kept.problems[printable(name)] = (
            f"line {numbers[0]} of {str(file)!r}{more} names it, and it is none of the {len(known)} images that can be "
            "used. Correct the name, or take the line out"
        )
    return kept


def problems_by_place(listed: PairList, file: PathLike) -> dict[str, str]:
    """Return the problems of a list by line and file, as those of photos are by name."""
    places = {line: f"{line} of {str(file)!r}" for line in listed.problems}
    return {places[line]: f"it {why.removeprefix(places[line]).strip()}" for line, why in listed.problems.items()}


def check_list(file: PathLike, *, columns: int = 1) -> None:
    """Raise InputError where a list of names cannot be read, is empty, or a line has too few columns.

    For use before any work: what depends on the images that are there is found when the list is read.
    """
    lines = _lines(file)
    if not lines:
        raise InputError(f"the list {str(file)!r} is empty; expected {_EXPECTED[columns - 1]} per line")
    for number, line in lines:
        if not line.startswith("#") and len(columns_of(line)) < columns:
            what = "names separated by white space or tabs, not by commas" if "," in line else _EXPECTED[columns - 1]
            raise InputError(f"line {number} of {str(file)!r} is {printable(line)!r}; expected {what}")


def read_image_list(file: PathLike, root: PathLike | None = None) -> list[str]:
    """Read the names of a text file, one a line, each once; a name with spaces may be in quotes or not.

    Raises InputError where the file cannot be read, or is UTF-16.
    """
    names = []
    for _, line in _lines(file):
        if line.startswith("#"):
            continue
        columns = line.split("\t") if "\t" in line else [line]
        names.append(_resolved(_unquoted(columns[0].strip()), None, root))
    return list(dict.fromkeys(names))


def write_pair_list(file: PathLike, pairs: Iterable[tuple[str, str]]) -> None:
    """Write one pair a line, in the order given; names as they are, as hloc and COLMAP read them, or in quotes.

    Raises InputError for names that a line cannot hold, WriteError where the file cannot be written.
    """
    lines = []
    for pair in pairs:
        if any(not name.strip() or not is_one_line(name) for name in pair):
            raise InputError(f"the pair {pair} cannot be a line of a list: rename the images")
        lines.append(" ".join(map(quoted, pair)) + "\n")
    with write_atomically(file) as temporary:
        temporary.write_text("".join(lines), "utf-8")


def quoted(name: str) -> str:
    """Return the name as a list holds it: as it is, or in quotes where it would not be read back otherwise."""
    if re.search(r"\s", name) or name[:1] in ('"', "#"):
        return '"' + name.replace('"', '""') + '"'
    return name


def columns_of(line: str) -> list[str]:
    """Return the columns of a line: at tabs, or else at white space outside of quotes."""
    if "\t" in line:
        return [_unquoted(column.strip()) for column in line.split("\t")]
    return tokens_of(line)


def tokens_of(line: str) -> list[str]:
    """Return what is between white space outside of quotes, tabs being like spaces: a line of names and numbers."""
    return [match[2] if match[1] is None else match[1].replace('""', '"') for match in _TOKEN.finditer(line)]


def _lines(file: PathLike) -> list[tuple[int, str]]:
    """Return the lines that hold something, with their numbers."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"the list {str(file)!r} cannot be read: {error}. Check the path") from error
    if content.startswith(_UTF16) or b"\0" in content[:1000]:
        raise InputError(
            f"the list {str(file)!r} cannot be read: it is UTF-16, or no text; expected UTF-8. Save it as UTF-8"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"the list {str(file)!r} is not UTF-8 in line {number}; expected UTF-8. Save it as UTF-8, and "
            "rename images whose names are not"
        ) from error
    lines = enumerate(re.split(r"\r\n|\n|\r", text), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _readings(line: str, is_known: Callable[[str], bool] | None, root: PathLike | None) -> list[tuple[str, str]]:
    """Return the ways to read a line: none, one, or several."""
    columns = [_resolved(column, is_known, root) for column in columns_of(line)]
    plain = [(columns[0], columns[1])] if len(columns) > 1 and all(columns[:2]) else []
    if is_known is None:
        unclosed = any(match[1] is None and match[2].startswith('"') for match in _TOKEN.finditer(line))
        return [] if unclosed and "\t" not in line else plain
    only_numbers = all(map(_NUMBER.fullmatch, columns[2:]))  # in further columns
    if plain and ("\t" in line or (only_numbers and all(map(is_known, plain[0])))):
        return plain
    return _spaced(line.split(" "), is_known, root) or (plain if only_numbers else [])


def _spaced(words: list[str], is_known: Callable[[str], bool], root: PathLike | None) -> list[tuple[str, str]]:
    """Return the ways to make two known names of words: of all of them, or else of the first of them."""
    words = words[:_MAX_WORDS]
    count = len(words)
    names = {
        (start, end): _resolved(" ".join(words[start:end]), is_known, root)
        for start in range(count)
        for end in range(start + 1, count + 1)
    }
    known = {span for span, name in names.items() if is_known(name)}
    ways = [(end, last) for start, end in known if start == 0 for begin, last in known if begin == end]
    whole = [way for way in ways if way[1] == count]
    return sorted({(names[0, end], names[end, last]) for end, last in whole or ways})


def _resolved(name: str, is_known: Callable[[str], bool] | None, root: PathLike | None) -> str:
    """Return the name as images have it: relative to the root, with "/", without "./"."""
    if root is not None and Path(name).is_absolute():
        with suppress(ValueError):  # it is elsewhere
            name = Path(name).resolve().relative_to(Path(root).resolve()).as_posix()
    if is_known is None or is_known(name):
        return name
    others = (posixpath.normpath(name), posixpath.normpath(name.replace("\\", "/")))
    return next((other for other in others if other != name and is_known(other)), name)


def _is_separated_by_commas(line: str, found: list[tuple[str, str]]) -> bool:
    if not {",", ";"} & set(line):
        return False
    return not found or found[0][0].endswith((",", ";")) or found[0][1].startswith((",", ";"))


def _unquoted(name: str) -> str:
    match = _TOKEN.fullmatch(name)
    return name if match is None or match[1] is None else match[1].replace('""', '"')
