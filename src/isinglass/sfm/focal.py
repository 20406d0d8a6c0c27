"""Focal lengths of EXIF that are plausible but false: a map that fails with them is tried without them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import WriteError
from isinglass.sfm.colmap import Project, pycolmap_module, quiet, remove_database
from isinglass.sfm.options import GUESSED_FOCAL

LEAST_PLACED = 0.5  # share of the photos; where the largest model has fewer, focal lengths are doubted


def priors_of(cameras: Sequence[Any]) -> list[float]:
    """Return the focal lengths, in px and each once, that cameras have from EXIF; fisheye cameras need theirs."""
    known = (camera for camera in cameras if camera.has_prior_focal_length and not camera.is_perspective_fisheye())
    return sorted({round(float(camera.mean_focal_length()), 1) for camera in known})


def priors_in(database: Path) -> list[float]:
    """Return the focal lengths from EXIF that a database has. Raises InputError where it cannot be read."""
    with Project(database, in_place=True) as project:
        return priors_of([project.camera(name) for name in project.names])


def copy_without_priors(database: Path, target: Path) -> None:
    """Copy a database, with guessed focal lengths in place of those of EXIF, and no pair verified.

    Raises InputError where the database cannot be read, WriteError where the copy cannot be written.
    """
    remove_database(target)
    Project(database, in_place=True).close()  # which works the log of a process that was killed into the file
    try:
        shutil.copyfile(database, target)
        with quiet(), closing(pycolmap_module().Database.open(target)) as copied:
            for camera in copied.read_all_cameras():
                if priors_of([camera]):
                    params = np.array(camera.params, np.float64)
                    params[list(camera.focal_length_idxs())] = GUESSED_FOCAL * max(camera.width, camera.height)
                    camera.params, camera.has_prior_focal_length = params, False
                    copied.update_camera(camera)
            copied.clear_two_view_geometries()
    except (OSError, RuntimeError) as error:
        raise WriteError(f"{str(target)!r} cannot be written ({error}). Free space, and run again") from error


def explain_false_priors(priors: Sequence[float], placed: int, photos: int) -> str:
    """Return what a person should know where focal lengths of EXIF were not used."""
    values = f"{priors[0]:.0f}" if len(priors) == 1 else f"{priors[0]:.0f} to {priors[-1]:.0f}"
    return (
        f"the focal length that EXIF gives ({values} px) seems to be false and was not used: with it under half of the "
        f"photos could be placed, without it {placed} of {photos}. Give --camera-params if the camera is known"
    )
