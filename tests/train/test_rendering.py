"""Ray casting against closed form: what is seen, how far away, in which colour, and where a point lands."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isinglass.geometry.camera import lift, project
from isinglass.train.rendering import Camera, box, cast, depth_map, landing, placed, render, texture_levels, tiled
from isinglass.train.scenes import _turn

SIZE = (64, 48)
FOCAL_PX = 50.0


def camera(centre=(0.0, 0.0, 0.0), rotation=None, size=SIZE, focal_px=FOCAL_PX):
    """Looks along +z unless turned; its optical axis meets the middle of the image."""
    rotation = np.eye(3) if rotation is None else rotation
    matrix = np.array([[focal_px, 0, (size[0] - 1) / 2], [0, focal_px, (size[1] - 1) / 2], [0, 0, 1]])
    return Camera(size=size, matrix=matrix, rotation=rotation, translation=-rotation @ np.asarray(centre, float))


def facing(depth_m, width_m, height_m, x=0.0, y=0.0):
    """A rectangle parallel to the image of `camera()`, its middle at (x, y)."""
    return np.array([[x - width_m / 2, y - height_m / 2, depth_m], [width_m, 0, 0], [0, height_m, 0]])


def plain(value):
    return texture_levels(torch.full((3, 8, 8), float(value)))


def smooth(height, width):
    """A texture (3, H, W), 0 to 255, without detail finer than some 30 px, and not the same mirrored."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    waves = torch.stack([torch.sin(x / 21), torch.cos(y / 17 + 1), torch.sin((x + 2 * y) / 40)])
    return 127.5 + 100 * waves


@pytest.mark.parametrize("times", [1, 2, 3, 8])
def test_a_plane_that_fills_the_image_is_its_texture_resized(times):
    """At 2 m, 64 px of a focal length of 50 px are 2.56 m wide."""
    texture = smooth(48 * times, 64 * times)
    one = facing(2.0, 2 * SIZE[0] / FOCAL_PX, 2 * SIZE[1] / FOCAL_PX)[None]
    found = render(one, [texture_levels(texture)], camera())
    expected = F.adaptive_avg_pool2d(texture, (48, 64)) / 255
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert (found - expected)[inner].abs().max() < 0.02
    assert (found.flip(2) - expected)[inner].abs().max() > 0.2
    assert (
        torch.equal(depth_map(one, camera()), torch.full((48, 64), 2.0, dtype=torch.float64))
        or (depth_map(one, camera()) - 2).abs().max() < 1e-12
    )


def test_fine_texture_far_away_turns_grey_rather_than_to_noise():
    board = ((torch.arange(512)[:, None] + torch.arange(512)) % 2 * 255.0).expand(3, -1, -1)
    found = render(facing(2.0, 4.0, 4.0)[None], [texture_levels(board)], camera())
    assert (found - 0.5).abs().max() < 0.02


def test_fine_texture_on_a_slanted_floor_turns_grey_too():
    """Stripes of 8 cm across the view on a floor 0.3 m below: far down, a sample is 30 times as long as wide."""
    stripes = (torch.arange(2000)[:, None] // 8 % 2 * 255.0).expand(3, 2000, 2000)
    floor, here = np.array([[[-10.0, 0.3, 30], [20, 0, 0], [0, 0, -20]]]), camera(focal_px=1000)
    is_floor = torch.isfinite(depth_map(floor, here))
    is_floor[:35] = False  # its far end
    assert is_floor.sum() == 13 * 64
    assert (render(floor, [texture_levels(stripes)], here)[:, is_floor] - 0.5).abs().max() < 0.05


def test_a_nearer_plane_hides_and_the_order_does_not_matter():
    far, near = facing(4.0, 20, 20), facing(2.0, 0.8, 0.4)
    for order in ([far, near], [near, far]):
        textures = [plain(50 if one is far else 200) for one in order]
        image, depth = render(np.array(order), textures, camera()), depth_map(np.array(order), camera())
        assert depth[24, 32] == pytest.approx(2) and depth[0, 0] == pytest.approx(4)
        assert image[0, 24, 32] == pytest.approx(200 / 255) and image[0, 0, 0] == pytest.approx(50 / 255)
        assert int((depth < 3).sum()) == 20 * 10  # 0.8 m and 0.4 m at 2 m
        assert torch.allclose(image[0] > 0.5, depth < 3)


def test_a_rectangle_is_not_there_from_behind_and_nothing_is_black_and_infinitely_far():
    one, behind = facing(2.0, 9, 9)[None], camera((0, 0, 4), np.diag([-1.0, 1, -1]))
    assert torch.isinf(depth_map(one, behind)).all() and not torch.isinf(depth_map(one, camera())).any()
    assert not render(one, [plain(200)], behind).any()
    assert cast(one, behind, torch.tensor([[30.0, 20]])).index_N.tolist() == [-1]


def test_a_room_is_seen_from_within_on_every_pixel_at_the_depth_of_its_walls():
    room = box((4, 3, 6), inside=True)
    turned = _turn(1, 0.7) @ _turn(0, 0.4)
    here = camera((0.5, -0.3, 1), turned, focal_px=20)
    depth = depth_map(room, here).numpy()
    y, x = np.mgrid[:48, :64]
    rays = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)]) @ here.to_rays.T
    with np.errstate(divide="ignore"):
        to_walls = (np.sign(rays) * np.array([4, 3, 6]) / 2 - here.centre) / rays  # the first wall that a ray leaves by
    np.testing.assert_allclose(depth.ravel(), to_walls.min(axis=1), rtol=1e-9)
    image = render(room, [plain(40 * (k + 1)) for k in range(6)], here)
    seen = cast(room, here, torch.from_numpy(np.column_stack([x.ravel(), y.ravel()]))).index_N
    expected = 40 * (seen.reshape(48, 64) + 1) / 255
    assert len(seen.unique()) >= 3 and (image[0] - expected).abs().lt(0.01).double().mean() > 0.9


def test_a_box_from_without_shows_its_near_side():
    at_origin = placed(box((1, 1, 1)), np.eye(3), (0, 0, 3))
    assert cast(at_origin, camera(), torch.tensor([[31.5, 23.5]])).index_N.tolist() == [4]
    assert depth_map(at_origin, camera())[23, 31] == pytest.approx(2.5)


def test_tiles_cover_a_rectangle_once():
    one = facing(2.0, 3, 2)
    tiles = tiled(one, 3, 2)
    assert tiles.shape == (6, 3, 3)
    points = torch.rand(200, 2, dtype=torch.float64) * torch.tensor([60.0, 44]) + 2
    whole, part = cast(one[None], camera(), points), cast(tiles, camera(), points)
    assert torch.allclose(whole.inverse_depth_N, part.inverse_depth_N)
    assert set(part.index_N.tolist()) == set(range(6))


def test_points_land_where_their_point_in_space_is_seen():
    wall, turned = facing(3.0, 20, 20)[None], _turn(1, 0.15) @ _turn(2, 0.3)
    first, second = camera(), camera((0.4, 0.1, -0.2), turned)
    points = torch.rand(100, 2, dtype=torch.float64) * torch.tensor(SIZE) - 0.5
    found = landing(wall, (first, second), points)
    space = lift(points.numpy(), np.full(100, 3.0), first.matrix) @ second.rotation.T + second.translation
    expected = project(space, second.matrix)
    np.testing.assert_allclose(found.point_N2.numpy(), expected, atol=1e-9)
    outside = ((expected < -0.5) | (expected >= np.array(SIZE) - 0.5)).any(axis=1)
    assert 0 < outside.sum() < 100
    assert found.hidden_N.tolist() == outside.tolist()


def test_points_behind_something_nearer_are_hidden_and_edges_of_depth_are_not_known():
    """From 1 m to the right, a plane at 2 m stands 25 px to the left of where it did, the wall at 4 m 12.5 px."""
    surfaces = np.array([facing(4.0, 20, 20), facing(2.0, 0.8, 0.4)])
    pair = camera(), camera((1, 0, 0))
    points = torch.tensor([[31.5, 23.5], [19.0, 23.5], [19.0, 30.0], [21.5, 23.5], [5.0, 23.5]], dtype=torch.float64)
    found = landing(surfaces, pair, points)
    np.testing.assert_allclose(found.point_N2[:3, 0], [6.5, 6.5, 6.5])
    assert found.hidden_N.tolist() == [False, True, False, False, True]
    assert found.point_N2[3].isnan().all()
    assert landing(surfaces, pair, points, edge_px=0).point_N2[3, 0] == pytest.approx(-3.5)


def test_the_two_sides_of_a_poster_are_not_the_same():
    poster = placed(box((2, 2, 0))[4:], np.eye(3), (0, 0, 2))
    front, back = camera(), camera((0, 0, 4), np.diag([-1.0, 1, -1]))
    found = landing(poster, (front, back), torch.tensor([[31.5, 23.5]]))
    assert found.hidden_N.tolist() == [True]
    assert not landing(poster, (front, camera((0.1, 0, 0))), torch.tensor([[31.5, 23.5]])).hidden_N.any()


def test_nothing_is_not_known_and_what_is_behind_the_other_camera_is_hidden():
    wall, point = facing(3.0, 20, 20)[None], torch.tensor([[31.5, 23.5]])
    found = landing(wall, (camera(), camera((0, 0, 4))), point)
    assert found.hidden_N.tolist() == [True] and found.point_N2.isnan().all()
    found = landing(wall, (camera((0, 0, 4)), camera()), point)
    assert found.hidden_N.tolist() == [False] and found.point_N2.isnan().all()
