"""A map that is made again keeps its frame: new models are moved to where the earlier ones have the same photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isinglass.geometry.two_view import Floats
from isinglass.sfm.options import pycolmap_module

_LEAST_PHOTOS = 2  # that two models have in common, else nothing says how large one is in the other's frame
_ROUNDS = 5
_OUTLIER = 3.0  # photos are left out that are further off than so many medians
_MOVED = 0.02  # of the extent: photos that are further off on average have moved


def keep_frame(models: Sequence[Any], earlier: Sequence[Any]) -> str:
    """Move each model (a `pycolmap.Reconstruction`) into the frame of the earlier one with most photos in common.

    Returns what became of the frame, for a person; "" where there was no earlier model.
    """
    if not earlier or not models:
        return ""
    told = [_moved(model, max(earlier, key=lambda old: len(_common(model, old)))) for model in models]
    if len(told) == 1:
        return told[0]
    return "; ".join(f"model{f'/{i}' if i else ''}: {text}" for i, text in enumerate(told))


def _moved(model: Any, old: Any) -> str:
    names = _common(model, old)
    new_poses, old_poses = _poses(model, names), _poses(old, names)
    similarity = _similarity(new_poses, old_poses) if len(names) >= _LEAST_PHOTOS else None
    if similarity is None:
        return (
            f"the map has a new frame: it has {len(names)} photos in common with the earlier one, too few to align "
            "them. Poses that were found in the earlier one do not hold in it"
        )
    scale, rotation, shift = similarity
    model.transform(pycolmap_module().Sim3d(scale, pycolmap_module().Rotation3d(rotation), shift))
    centres, old_centres = _poses(model, names)[1], old_poses[1]
    extent = float(np.linalg.norm(np.ptp(old_centres, axis=0)))
    off = float(np.median(np.linalg.norm(centres - old_centres, axis=1))) / extent
    how = f"by {len(names)} common photos, which are off by {100 * off:.2g} % of their extent in the median"
    if off > _MOVED:
        return f"the map moved: its frame was aligned to the earlier one {how}"
    return f"the frame of the earlier map was kept, {how}"


def _common(model: Any, old: Any) -> list[str]:
    """The names of photos that both have placed."""
    placed = [{image.name for image in one.images.values() if image.has_pose} for one in (model, old)]
    return sorted(placed[0] & placed[1])


def _poses(model: Any, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the rotations world_from_cam (K, 3, 3) and the centres (K, 3) of K photos."""
    images = {image.name: image for image in model.images.values() if image.has_pose}
    rotations = [images[name].cam_from_world().rotation.matrix().T for name in names]
    centres = [images[name].projection_center() for name in names]
    return np.array(rotations).reshape(-1, 3, 3), np.array(centres).reshape(-1, 3)


def _similarity(new: tuple[Floats, Floats], old: tuple[Floats, Floats]) -> tuple[float, Floats, Floats] | None:
    """Scale, rotation (3, 3) and shift (3,) from the new frame to the old; None where the centres do not tell.

    Rotations of cameras tell the rotation, also where all centres are on a line, as those of a vehicle.
    """
    kept = np.ones(len(new[0]), bool)
    result = None
    for _ in range(_ROUNDS):
        rotation = _nearest_rotation((old[0][kept] @ new[0][kept].transpose(0, 2, 1)).sum(axis=0))
        turned, target = new[1] @ rotation.T, old[1]
        middle, old_middle = turned[kept].mean(axis=0), target[kept].mean(axis=0)
        spread, old_spread = (
            np.linalg.norm(points[kept] - centre, axis=1).sum()
            for points, centre in ((turned, middle), (target, old_middle))
        )
        if not (spread > 0 and old_spread > 0):
            return result
        scale = float(old_spread / spread)
        shift = old_middle - scale * middle
        result = scale, rotation, shift
        off = np.linalg.norm(scale * turned + shift - target, axis=1)
        again = off <= max(_OUTLIER * float(np.median(off)), 1e-9 * float(old_spread))
        if again.sum() < _LEAST_PHOTOS or (again == kept).all():
            return result
        kept = again
    return result


def _nearest_rotation(matrix: Floats) -> Floats:
    left, _, right = np.linalg.svd(matrix)
    return left @ np.diag([1, 1, np.sign(np.linalg.det(left @ right))]) @ right
