"""Masks of photos by all usual names, and what has no partner."""

import pytest

from isinglass.errors import InputError
from isinglass.images.masks import check_masks, find_masks


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a mask")


@pytest.mark.parametrize(
    "mask",
    [
        "IMG.jpg.png", "IMG.jpg", "IMG.png", "IMG.mask.png", "IMG_mask.png", "IMG.jpg.mask.png", "IMG.PNG", "img.png",
        "IMG.jpg.PNG", "IMG.tif",
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "day1/"])
def test_usual_names(tmp_path, mask, folder):
    put(tmp_path, folder + mask)
    found = find_masks(tmp_path, [f"{folder}IMG.jpg"])
    assert found.of == {f"{folder}IMG.jpg": tmp_path / folder / mask}
    assert not found.notes


def test_each_photo_takes_its_own(tmp_path):
    put(tmp_path, "a.jpg.png", "a.png", "a.png.png", "day/a.png")
    found = find_masks(tmp_path, ["a.jpg", "a.png", "day/a.jpg"])
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.of.items()} == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "day/a.jpg": "day/a.png",
    }
    assert found.unused == ["a.png"]


def test_what_has_no_partner_is_named(tmp_path):
    put(tmp_path, "a.png", "x.png", "day/y.mask.png", ".z.png")
    found = find_masks(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    assert found.unused == ["day/y.mask.png", "x.png"] and found.without == ["b.jpg", "c.jpg"]
    assert "2 masks (day/y.mask.png, x.png) fit no photo" in found.notes[0]
    assert "2 photos without a mask, used whole: b.jpg, c.jpg" in found.notes[1]


def test_one_mask_for_all(tmp_path):
    put(tmp_path, "bonnet.png")
    mask = tmp_path / "bonnet.png"
    assert find_masks(mask, ["a.jpg", "day/b.jpg"]).of == {"a.jpg": mask, "day/b.jpg": mask}


def test_photos_are_not_masks_of_themselves(tmp_path):
    put(tmp_path, "a.jpg", "a.mask.png", "b.jpg", "b.png")
    found = find_masks(tmp_path, ["a.jpg", "b.jpg", "b.png"], tmp_path)
    assert found.of == {"a.jpg": tmp_path / "a.mask.png"}


def test_masks_that_are_not_there_or_fit_nothing_are_errors(tmp_path):
    for use in (check_masks, lambda place: find_masks(place, ["a.jpg"])):
        with pytest.raises(InputError, match="there are no masks at"):
            use(tmp_path / "none")
    put(tmp_path, "masks/DSC1.png")
    with pytest.raises(
        InputError, match=r"no mask in .* fits a photo: it holds 1 images, such as 'DSC1.png'; .*a.jpg.png"
    ):
        find_masks(tmp_path / "masks", ["a.jpg"])
    assert find_masks(None, ["a.jpg"]).of == {}
