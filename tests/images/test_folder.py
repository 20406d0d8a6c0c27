"""The one lister of photos: what it finds, and what it leaves out by name."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.images.folder import MARKER, Selection, list_photos, mark_output


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture")


def kinds(listing):
    return {left.kind: left.count for left in listing.left_out}


def test_photos_are_found_at_any_depth_in_one_order(tmp_path):
    put(tmp_path, "b.jpg", "a.PNG", "deep/er/c.tif", "deep/a.jpeg", "notes.txt", "a,b 'c\".jpg", "-x.jpg", "#3/1.jpg")
    put(tmp_path, "👩‍👩‍👧.jpg", "CON.jpg", "10²000000.jpg")
    (tmp_path / "folder.jpg").mkdir()
    listing = list_photos(tmp_path)
    assert listing.names == sorted([
        "b.jpg", "a.PNG", "deep/er/c.tif", "deep/a.jpeg", "a,b 'c\".jpg", "-x.jpg", "#3/1.jpg", "👩‍👩‍👧.jpg", "CON.jpg",
        "10²000000.jpg",
    ])  # fmt: skip
    assert not listing.left_out and not listing.problems


def test_what_systems_and_programs_add_is_left_out_and_counted(tmp_path):
    put(tmp_path, "a.jpg", "._a.jpg", "day/b.jpg", "day/._b.jpg", "__MACOSX/a.jpg", "Thumbs.db")
    put(tmp_path, *(f"@eaDir/{name}/SYNOPHOTO_THUMB_{size}.jpg" for name in ("a.jpg", "b.jpg") for size in ("XL", "M")))
    put(
        tmp_path,
        ".thumbnails/a.png",
        "day/.@__thumb/s800b.jpg",
        "Catalog Previews.lrdata/0/a.jpg",
        ".hidden/c.jpg",
        ".d.jpg",
    )
    put(tmp_path, "$RECYCLE.BIN/a.jpg")
    listing = list_photos(tmp_path)
    assert listing.names == ["a.jpg", "day/b.jpg"]
    assert kinds(listing) == {
        "AppleDouble files of macOS": 2,
        "files that a system keeps": 2,
        "thumbnails and previews": 7,
        "photos in hidden folders": 1,
        "hidden photos": 1,
    }
    assert any("left out thumbnails and previews (7, such as" in note for note in listing.notes)


def test_own_pictures_are_left_out_and_photos_beside_them_are_not(tmp_path):
    put(tmp_path, "a.jpg", "b.png", "matches/a-b.png", "matches/reports/a-b.json", "matches/features/a-0123.npz")
    put(tmp_path, "reports/a-b.json", "a-b.png")  # written into the folder of the photos
    put(tmp_path, "tracks/track.json", "tracks/images/000000.jpg", "images/c.jpg")
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "map.json").write_text(json.dumps({"schema": "isinglass map 1"}))
    put(tmp_path, "map/d.jpg")  # a person's, in a folder that also holds a map
    put(tmp_path, "data/views/0.png")
    mark_output(tmp_path / "data")
    listing = list_photos(tmp_path)
    assert listing.names == ["a.jpg", "b.png", "images/c.jpg", "map/d.jpg"]
    assert kinds(listing) == {"pictures of matches": 2, "pictures that Isinglass wrote": 2}
    assert list_photos(tmp_path / "tracks" / "images").names == ["000000.jpg"]  # `isinglass map tracks/images`
    assert (tmp_path / "data" / MARKER).is_file() and list_photos(tmp_path / "data").names == ["views/0.png"]


def test_formats_that_are_not_read_are_named_with_the_remedy(tmp_path):
    put(tmp_path, "a.jpg", "b.DNG", "c.nef", "d.MOV", "e.psd", "f.txt")
    listing = list_photos(tmp_path)
    assert listing.names == ["a.jpg"]
    assert sum(kinds(listing).values()) == 4
    notes = " ".join(listing.notes)
    assert (
        "left out DNG files (1, such as b.DNG): raw sensor data" in notes
        and "isinglass track" in notes
        and "e.psd" in notes
    )


def test_linked_folders_are_entered_once(tmp_path):
    elsewhere, photos = tmp_path / "elsewhere", tmp_path / "photos"
    put(elsewhere, "day1/a.jpg", "day1/in/b.jpg", "c.jpg")
    put(photos, "own/d.jpg")
    (photos / "day1").symlink_to(elsewhere / "day1")
    (photos / "e.jpg").symlink_to(elsewhere / "c.jpg")
    (photos / "own" / "loop").symlink_to(photos)
    (elsewhere / "day1" / "in" / "back").symlink_to(elsewhere / "day1")
    (photos / "a_link_before_own").symlink_to(photos / "own")
    listing = list_photos(photos)
    assert listing.names == ["day1/a.jpg", "day1/in/b.jpg", "e.jpg", "own/d.jpg"]
    assert kinds(listing) == {"links to folders that are listed already": 3}


def test_photos_that_nothing_can_be_done_with_are_problems_by_name(tmp_path):
    put(tmp_path, "a.jpg", "line\nbreak.jpg", "tab\t.jpg", "sub\n/b.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "day2").symlink_to(tmp_path / "no disk")
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"a picture")
    listing = list_photos(tmp_path)
    assert listing.names == ["a.jpg"] and not listing.left_out
    assert {name: why.split(";")[0].split(".")[0] for name, why in listing.problems.items()} == {
        "line\\nbreak.jpg": "its name cannot be used",
        "tab\\t.jpg": "its name cannot be used",
        "sub\\n/b.jpg": "its name cannot be used",
        "caf\\udce9.jpg": "its name cannot be used",
        "empty.jpg": "it is an empty file",
        "gone.jpg": "the link leads nowhere",
        "day2": "the link leads nowhere",
        "pipe.jpg": "it is not a regular file",
    }
    json.dumps(listing.problems).encode(), "".join(listing.problems).encode()


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*_small.jpg", ["a.jpg", "day/b.jpg", "day/night/c.jpg"]),
        ("day", ["a.jpg", "a_small.jpg"]),
        ("day/", ["a.jpg", "a_small.jpg"]),
        ("./day/night", ["a.jpg", "a_small.jpg", "day/b.jpg"]),
        ("day/*", ["a.jpg", "a_small.jpg"]),
        ("night", ["a.jpg", "a_small.jpg", "day/b.jpg"]),
        ("?.jpg", ["a_small.jpg"]),
    ],
)
def test_excluded_photos(tmp_path, pattern, left):
    put(tmp_path, "a.jpg", "a_small.jpg", "day/b.jpg", "day/night/c.jpg")
    listing = list_photos(tmp_path, Selection(exclude=(pattern,)))
    assert listing.names == left
    assert kinds(listing) == {"photos that --exclude names": 4 - len(left)}


def test_the_photos_of_a_list(tmp_path):
    put(tmp_path, "a.jpg", "day/b.jpg", "c.jpg", ".hidden/d.jpg")
    names = ("day/b.jpg", "a.jpg", ".hidden/d.jpg", "gone.jpg", "../x.jpg", "/y.jpg", "c.jpg")
    listing = list_photos(tmp_path, Selection(names=names, exclude=("c.jpg",)))
    assert listing.names == [".hidden/d.jpg", "a.jpg", "day/b.jpg"]
    assert listing.problems["gone.jpg"] == "there is no such file"
    assert "it is not in" in listing.problems["../x.jpg"] and "it is not in" in listing.problems["/y.jpg"]
    with pytest.raises(InputError, match=r"gone.jpg: there is no such file"):
        list_photos(tmp_path, Selection(names=("gone.jpg",)))


def test_masks_among_the_photos_are_no_photos(tmp_path):
    put(tmp_path, "a.jpg", "a.mask.png", "b.jpg", "b_mask.png", "c.jpg", "c.jpg.png", "masks/a.png", "one.png")
    assert list_photos(tmp_path, Selection(masks=tmp_path / "masks")).names == [
        "a.jpg", "a.mask.png", "b.jpg", "b_mask.png", "c.jpg", "c.jpg.png", "one.png",
    ]  # fmt: skip
    names = list_photos(tmp_path, Selection(masks=tmp_path)).names
    assert names == ["a.jpg", "b.jpg", "c.jpg", "masks/a.png", "one.png"]
    assert "one.png" not in list_photos(tmp_path, Selection(masks=tmp_path / "one.png")).names


def test_a_folder_without_photos_says_what_was_left_out(tmp_path):
    put(tmp_path, "a.nef", "._a.jpg")
    with pytest.raises(InputError, match=r"there is no image in or below .*AppleDouble.*NEF files"):
        list_photos(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        list_photos(tmp_path / "none")
    assert list_photos(tmp_path, allow_none=True).names == []


def test_every_command_lists_the_same(tmp_path):
    from isinglass.batch import list_images
    from isinglass.datasets.layout import image_files
    from isinglass.sfm.extraction import image_names
    from isinglass.sfm.frames import open_frames
    from isinglass.train.views import Photos

    for name in ("a.jpg", "deep/b.png", "._a.jpg", "@eaDir/a.jpg/thumb.jpg", "10²000000.jpg", "out/a-b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / name)
    put(tmp_path, "out/reports/a-b.json")
    expected = ["10²000000.jpg", "a.jpg", "deep/b.png"]
    assert image_names(tmp_path) == expected
    paths = [tmp_path / name for name in expected]
    assert list_images(tmp_path) == paths and list(image_files(tmp_path)) == paths
    assert sorted(frame.name for frame in open_frames(tmp_path).read()) == expected
    shutil.rmtree(tmp_path / "out")
    assert Photos(tmp_path).files == paths


TOO_LONG = "it cannot be read (File name too long). Mend that, or --exclude it"


@pytest.mark.skipif(sys.platform == "win32", reason="needs folders that are opened from one another")
@pytest.mark.parametrize(("name", "levels", "is_listed"), [("f", 600, True), ("f" * 100, 60, False)])
def test_folders_of_any_depth(tmp_path, name, levels, is_listed):
    """Deeper than functions may call one another, and deeper than a path may be long."""
    (tmp_path / "a.jpg").write_bytes(b"photo")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=folder)
        deeper = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    photo = os.open("deep.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
    os.write(photo, b"photo")
    os.close(photo)
    os.close(folder)
    listing = list_photos(tmp_path)
    assert [len(found.split("/")) - 1 for found in listing.names] == [0] + [levels] * is_listed
    assert list(listing.problems.values()) == ([] if is_listed else [TOO_LONG])
    shutil.rmtree(tmp_path / name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a right from root as Linux does")
def test_a_folder_without_permission_is_left_out_by_name(tmp_path):
    put(tmp_path, "a.jpg", "locked/b.jpg", "lost+found/c.jpg")
    for name in ("locked", "lost+found"):
        (tmp_path / name).chmod(0)
    command = "import sys; from isinglass.images.folder import list_photos; found = list_photos(sys.argv[1]);"
    command += "print(found.names, found.problems)"
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if os.getuid() == 0 else []
    run = subprocess.run([*drop, sys.executable, "-c", command, tmp_path], capture_output=True, text=True, check=False)
    for name in ("locked", "lost+found"):
        (tmp_path / name).chmod(0o755)
    if drop and "setpriv" in run.stderr:
        pytest.skip("rights cannot be taken away here")
    problem = "it cannot be read (Permission denied). Mend that, or --exclude it"
    assert run.stdout.strip() == f"['a.jpg'] {{'locked': '{problem}'}}", run.stderr
