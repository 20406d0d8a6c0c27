"""Photos of a room with pictures on its walls, from known places, and a COLMAP model of it whose truth is exact."""

import numpy as np
from PIL import Image

from made_map import camera_of, model_of

SIZE, FOCAL_PX = (320, 240), 260.0
HALF_M = 3.0  # the room is a cube with the origin in its middle
TEXTURE_PX = 512


class Pictures:
    """Six walls, each with a soft random picture; `seed` says which."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.walls = []
        for _ in range(6):
            layers = [
                np.asarray(
                    Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8)).resize(
                        (TEXTURE_PX, TEXTURE_PX), Image.Resampling.BICUBIC
                    ),
                    np.float64,
                )
                for cells in (16, 48, 128)
            ]
            self.walls.append(np.mean(layers, axis=0))

    def hit(self, pose, camera, pixels):
        """(M, 3) where the rays of pixels (M, 2) (ours) hit a wall, and the brightness there (M,)."""
        rays = np.asarray(camera.cam_from_img(np.asarray(pixels, float) + 0.5))  # COLMAP's half pixel
        directions = np.column_stack([rays, np.ones(len(rays))]) @ pose[:, :3]
        centre = -pose[:, :3].T @ pose[:, 3]
        with np.errstate(divide="ignore"):
            lengths = (np.sign(directions) * HALF_M - centre) / directions
        axis = lengths.argmin(axis=1)
        rows = np.arange(len(axis))
        points = centre + lengths[rows, axis][:, None] * directions
        wall = 2 * axis + (directions[rows, axis] > 0)
        others = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        where = (points[rows[:, None], others] / HALF_M + 1) / 2 * (TEXTURE_PX - 1)
        return points, self._sampled(wall, where.clip(0, TEXTURE_PX - 1.001))

    def photo(self, pose, camera):
        """The picture that a camera takes."""
        y, x = np.indices((camera.height, camera.width))
        _, brightness = self.hit(pose, camera, np.column_stack([x.ravel(), y.ravel()]))
        return Image.fromarray(brightness.reshape(y.shape).round().astype(np.uint8)).convert("RGB")

    def _sampled(self, wall, where):
        whole = where.astype(int)
        (column, row), (right, down) = whole.T, (where - whole).T
        textures = np.stack(self.walls)
        result = np.zeros(len(wall))
        for dy, along_y in ((0, 1 - down), (1, down)):
            for dx, along_x in ((0, 1 - right), (1, right)):
                result += along_y * along_x * textures[wall, row + dy, column + dx]
        return result


def write_photos(folder, poses, seed=0, prefix="photo"):
    """The names of the photos written."""
    folder.mkdir(parents=True, exist_ok=True)
    room, names = Pictures(seed), []
    for i, pose in enumerate(poses):
        names.append(f"{prefix}{i:02}.png")
        room.photo(pose, camera_of(FOCAL_PX, SIZE)).save(folder / names[-1])
    return names


def exact_model(pipeline, folder, names, poses, seed=0):
    """A model of the photos: each keypoint is a point, seen wherever it is in a photo (nothing hides in a room)."""
    room, camera, points = Pictures(seed), camera_of(FOCAL_PX, SIZE), []
    for name, pose in zip(names, poses, strict=True):
        keypoints = pipeline.extract(folder / name).top(250).keypoints[0].numpy()
        points.append(room.hit(pose, camera, keypoints)[0])
    points = np.concatenate(points)
    photos = {}
    for name, pose in zip(names, poses, strict=True):
        seen = points @ pose[:, :3].T + pose[:, 3]
        pixels = np.asarray(camera.img_from_cam(seen)) - 0.5
        which = np.flatnonzero((seen[:, 2] > 0) & ((pixels > 0) & (pixels < np.array(SIZE) - 1)).all(axis=1))
        photos[name] = pixels[which], which, pose
    return model_of(photos, points, dict.fromkeys(names, camera))
