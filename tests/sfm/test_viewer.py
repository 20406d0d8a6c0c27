"""A small made map in a real browser; and what the browser shows, without one."""

import io
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from isinglass.errors import InputError
from isinglass.sfm.colmap import pycolmap_module
from isinglass.sfm.scene import Scene, angle_to_segments
from isinglass.sfm.viewer import MapViewer

WIDTH, HEIGHT = 320, 240
PAGE = {"width": 1200, "height": 800}


def write_photo(file, number):
    """One colour, and a grid."""
    pixels = np.full((HEIGHT, WIDTH, 3), (30 * number, 255 - 30 * number, 120), np.uint8)
    pixels[::20] = pixels[:, ::20] = 255
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """project/sparse/0, project/images and project/database.db, as COLMAP has them: 8 photos of 300 points."""
    colmap = pycolmap_module()
    folder = tmp_path_factory.mktemp("project")
    (folder / "sparse" / "0").mkdir(parents=True)
    (folder / "images").mkdir()
    options = colmap.SyntheticDatasetOptions()
    options.num_points3D, options.num_frames_per_rig = 300, 4
    options.camera_width, options.camera_height, options.camera_params = WIDTH, HEIGHT, [300, 160, 120, 0]
    options.inlier_match_ratio = 0.8
    colmap.set_random_seed(0)
    with colmap.Database.open(folder / "database.db") as database:
        model = colmap.synthesize_dataset(options, database)
    rng = np.random.default_rng(0)
    for number, point in enumerate(model.points3D.values()):
        point.color = rng.integers(0, 256, 3).astype(np.uint8)
        point.error = number / 100  # 0 to 3 px
    model.write(folder / "sparse" / "0")
    for number, name in enumerate(sorted(image.name for image in model.images.values())):
        write_photo(folder / "images" / name, number)
    return folder


@pytest.fixture
def scene(project):
    made = Scene(project / "sparse" / "0")
    yield made
    made.close()


@pytest.fixture(scope="module")
def viewer(project):
    made = MapViewer(Scene(project / "sparse" / "0"), port=0)
    assert made.thumbnails_done.wait(30)
    yield made
    made.close()


@pytest.fixture
def page(browser, viewer):
    opened = browser.new_page(viewport=PAGE)
    problems = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(viewer.url)
    opened.get_by_text("Reset view", exact=True).wait_for(timeout=60_000)
    until(lambda: viewer.server.get_clients() and len(drawn(opened)) > 2000, 60)
    yield opened
    opened.close()
    assert problems == []


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def drawn(page):
    """(K, 3) uint8, the colours of what is drawn left of the panel and below the browser's warning."""
    clip = {"x": 0, "y": 200, "width": 780, "height": 600}
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).reshape(-1, 3)
    return pixels[pixels.min(axis=1) < 200]


def pixel_of(viewer, point):
    """Where on the page a client sees a point of the scene."""
    import viser.transforms

    (client,) = viewer.server.get_clients().values()
    camera = client.camera
    local = viser.transforms.SO3(camera.wxyz).as_matrix().T @ (np.asarray(point) - camera.position)
    focal = PAGE["height"] / 2 / np.tan(camera.fov / 2)
    assert local[2] > 0
    return PAGE["width"] / 2 + focal * local[0] / local[2], PAGE["height"] / 2 + focal * local[1] / local[2]


def in_sight(viewer):
    """Cameras that are left of the panel and below the browser's warning, and apart from each other."""
    at = {i: pixel_of(viewer, viewer.layout.centres_C3[i]) for i in range(len(viewer.frusta))}
    inside = {i: place for i, place in at.items() if 20 < place[0] < 780 and 180 < place[1] < 780}
    return {
        i: place
        for i, place in inside.items()
        if all(np.hypot(place[0] - x, place[1] - y) > 60 for j, (x, y) in at.items() if j != i)
    }


def lonely_line(viewer):
    """A line that has no other near its middle, not the one chosen already, and where its middle is seen."""
    ends = viewer.layout.centres_C3[viewer._edges_E2]
    eye = viewer.layout.position
    for k, middle in enumerate(ends.mean(axis=1)):
        angle = np.delete(angle_to_segments(eye, middle - eye, ends[:, 0], ends[:, 1]), k)
        x, y = pixel_of(viewer, middle)
        pair = tuple(viewer._edges_E2[k].tolist())
        if angle.min() > 0.02 and 20 < x < 780 and 180 < y < 780 and pair != viewer.pair:
            return pair, (x, y)
    raise AssertionError("every line's middle has another one near it")


# --- in the browser


def test_the_page_shows_points_and_photos(page, viewer):
    assert page.get_by_text("8 photos, 300 points, 28 pairs").is_visible()
    assert page.get_by_text("300 of 300 points shown").is_visible()
    assert len(np.unique(drawn(page), axis=0)) > 100
    for name in viewer._show:
        for shown in (False, True):
            before = len(drawn(page))
            page.get_by_label(name.capitalize(), exact=True).click()
            until(
                lambda before=before, more=shown: (len(drawn(page)) > before) if more else (len(drawn(page)) < before)
            )


def test_choosing_a_pair_in_the_lists_shows_its_matches(page, viewer):
    names = [camera.name for camera in viewer.scene.cameras]
    page.get_by_label("Photo", exact=True).first.click()
    page.get_by_role("option", name=names[3]).click()
    until(lambda: names[0] in "".join(viewer._lists.second.options))
    page.get_by_label("Matched with", exact=True).first.click()
    page.get_by_role("option", name=names[5]).click()
    until(lambda: viewer.pair == (3, 5))
    page.get_by_text("verified of").wait_for()
    picture = page.locator("img").last
    picture.wait_for()
    until(lambda: picture.evaluate("image => image.naturalWidth") > 500)
    shown = np.asarray(viewer._picture.image)
    assert (np.abs(shown.astype(int) - (0, 200, 90)).sum(axis=2) < 40).mean() > 0.02  # green lines


def test_clicking_two_cameras_shows_their_matches(page, viewer):
    free = list(in_sight(viewer).items())
    assert len(free) >= 2, "the first view shows too few cameras"
    (i, place0), (j, place1) = free[:2]
    viewer.selected = None
    page.mouse.click(*place0)
    until(lambda: viewer.selected == i)
    page.get_by_text("chosen; click another camera").wait_for()
    page.mouse.click(*place1)
    until(lambda: viewer.pair == (i, j))
    page.get_by_text(viewer.scene.matches(i, j).text).wait_for()
    marked = [k for k, frustum in enumerate(viewer.frusta) if tuple(frustum.color) == (255, 140, 0)]
    assert marked == [i, j]


def test_clicking_a_line_shows_its_matches(page, viewer):
    box = page.get_by_label("Cameras", exact=True)
    box.click()  # they would be in the way
    pair, place = lonely_line(viewer)
    before = viewer.pair
    page.mouse.click(5, 790)
    time.sleep(1)
    assert viewer.pair == before
    page.mouse.click(*place)
    until(lambda: viewer.pair == pair)
    page.get_by_text(viewer.scene.matches(*pair).text).wait_for()
    box.click()


def test_a_view_is_reset(page, viewer):
    (client,) = viewer.server.get_clients().values()
    start = np.array(client.camera.position)
    assert start == pytest.approx(viewer.layout.position, rel=0.02)
    page.mouse.move(300, 600)
    page.mouse.down()
    page.mouse.move(400, 500, steps=5)
    page.mouse.up()
    until(lambda: np.linalg.norm(client.camera.position - start) > 0.1 * viewer.layout.radius)
    page.get_by_text("Reset view", exact=True).click()
    until(lambda: np.linalg.norm(client.camera.position - start) < 0.02 * viewer.layout.radius)


# --- without one


def test_filters_keep_what_they_say(viewer):
    scene = viewer.scene
    viewer._most_error.value = 1.0
    until(lambda: len(viewer._cloud.points) == (scene.errors_px_P <= 1).sum())
    assert len(viewer._cloud.points) in range(95, 105)
    assert len(viewer._cloud.colors) == len(viewer._cloud.points)
    viewer._most_error.value = 10.0
    viewer._least_length.value = 9  # of 8 photos
    until(lambda: len(viewer._cloud.points) == 0)
    viewer._least_length.value = 2
    until(lambda: len(viewer._cloud.points) == 300)


def test_a_line_is_found_by_the_ray_that_passes_it(viewer):
    i, j = viewer._edges_E2[5].tolist()
    start, stop = viewer.layout.centres_C3[[i, j]]
    eye = viewer.layout.position
    assert viewer._edge_at(eye, 0.7 * start + 0.3 * stop - eye) is not None
    assert viewer._edge_at(eye, -(start + stop) / 2 + eye * 3) is None


def test_the_angle_to_a_segment():
    start = np.array([[-1.0, 1.0, 1.0], [1.0, 0.0, -5.0], [0.0, 0.0, -1.0], [2.0, 0.0, 2.0]])
    stop = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 5.0], [1.0, 0.0, -1.0], [2.0, 0.0, 2.0]])
    angle = angle_to_segments(np.zeros(3), np.array([0.0, 0.0, 3.0]), start, stop)
    assert angle == pytest.approx([np.pi / 4, np.arctan2(1, 5), np.pi, np.pi / 4])


def test_a_scene_is_that_of_the_model(scene, project):
    model = pycolmap_module().Reconstruction(project / "sparse" / "0")
    assert [camera.name for camera in scene.cameras] == sorted(image.name for image in model.images.values())
    for image in model.images.values():
        camera = scene.cameras[scene.index[image.name]]
        assert camera.world_from_cam[:, 3] == pytest.approx(image.projection_center())
        assert camera.world_from_cam[:, 2] == pytest.approx(image.viewing_direction())
        assert camera.fov_rad == pytest.approx(2 * np.arctan(120 / 300))
    assert scene.photos == project / "images"
    assert scene.weights_are == "verified matches"
    pair = scene.matches(0, 1)
    assert pair.inliers.sum() == scene.weights[0, 1]
    assert 0 < pair.inliers.sum() < len(pair.points0)


def test_without_a_database_pairs_are_of_points_in_common(project, tmp_path):
    shutil.copytree(project / "sparse" / "0", tmp_path / "model")
    scene = Scene(tmp_path, photos=project / "images")
    assert scene.weights_are == "common points"
    assert scene.weights[0, 1] == len(scene.matches(0, 1).points0) > 100
    assert [weight for _, weight in scene.neighbours(2)] == sorted(
        (w for pair, w in scene.weights.items() if 2 in pair), reverse=True
    )
    model = pycolmap_module().Reconstruction(tmp_path / "model")
    image = next(one for one in model.images.values() if one.name == scene.cameras[0].name)
    first = next(one for one in image.points2D if one.has_point3D())
    assert (np.abs(scene.matches(0, 1).points0 + 0.5 - first.xy).max(axis=1) < 1e-6).any()


def test_lines_begin_and_end_at_what_matched(scene):
    pair = scene.matches(0, 1)
    picture, _ = scene.picture(0, 1, height_px=HEIGHT)
    pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (HEIGHT, 2 * WIDTH + 4, 3)
    drawn = np.flatnonzero(pair.inliers)[[0, -1]]
    for points, shift in ((pair.points0, 0), (pair.points1, WIDTH + 4)):
        for x, y in points[drawn]:
            near = pixels[int(y) - 3 : int(y) + 4, int(x) + shift - 3 : int(x) + shift + 4]
            assert (np.abs(near - (0, 200, 90)).sum(axis=2) < 10).any()


def test_photos_that_are_not_there(project, tmp_path):
    shutil.copytree(project / "sparse" / "0", tmp_path / "model")
    scene = Scene(tmp_path / "model")
    assert scene.photos is None
    assert scene.photo(0, 100) is None
    picture, text = scene.picture(0, 1)
    assert picture.height == 480
    assert "points in common" in text


def test_bad_input(tmp_path, scene):
    with pytest.raises(InputError, match="there is no folder"):
        Scene(tmp_path / "none")
    with pytest.raises(InputError, match="no model of COLMAP"):
        Scene(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        Scene(scene.folder, photos=tmp_path / "none")
    with pytest.raises(InputError, match="port is 70000"):
        MapViewer(scene, port=70000)


def test_the_command_runs_until_it_is_interrupted(project):
    begun = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # which may come in ignored
    command = [sys.executable, "-c", f"{begun}; from isinglass.cli import main; main()", "view"]
    command += [project / "sparse" / "0", "--no-browser"]
    running = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = running.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, out, err) == (0, "", "Ctrl-C ends it\n")
