"""A map in the browser: points, cameras with their photos, the graph of matches, and each pair's matches.

One server has one state: whoever else opens the page sees the same selection.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isinglass.errors import InputError, MissingExtra
from isinglass.sfm.scene import Layout, Scene, angle_to_segments

THUMBNAIL_PX, PAIR_PX, LARGE_PX = 160, 240, 720
MOST_POINTS, MOST_EDGES, MOST_THUMBNAILS = 1_000_000, 20_000, 2_000
_DARK, _ORANGE = (60, 66, 74), (255, 140, 0)
_WEAK, _STRONG = np.array([205, 214, 222]), np.array([20, 90, 160])
_NEAR_RAD = 0.012  # a click that passes an edge within that is at it
_NO_PAIR = "no pair chosen"


class MapViewer:
    """A server for one `Scene`, which runs in threads of its own until `close`.

    Points can be filtered by reprojection error and by the number of images that see them, edges by weight. Two clicks
    on cameras, one on an edge, or two choices in the lists show a pair's matches.

    host, port  where it listens; only this machine by default. A port that is taken is followed by the next free one,
                0 is any: `url` says where it is

    Raises InputError for a port that is none, MissingExtra without viser.
    """

    def __init__(self, scene: Scene, host: str = "127.0.0.1", port: int = 8080) -> None:
        if not 0 <= port < 65536:
            raise InputError(f"port is {port}; expected 0 (any) to 65535")
        viser = _viser()
        self.scene, self._lock = scene, threading.RLock()
        self.layout = Layout(scene)
        with _silent():
            self.server: Any = viser.ViserServer(host=host, port=port, label="Isinglass", verbose=False)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        self.url = f"http://{shown}:{self.server.get_port()}"
        self.selected: int | None = None
        self.pair: tuple[int, int] | None = None
        self._marked: set[int] = set()
        self.thumbnails_done, self._closing = threading.Event(), threading.Event()
        self._clicked: tuple[float, float] | None = None
        self._set_up_view()
        self._add_points()
        self._add_cameras()
        self._add_graph()
        self._add_panel()
        self._update_points()
        self._thumbnails = threading.Thread(target=self._add_thumbnails, daemon=True)
        self._thumbnails.start()

    def close(self) -> None:
        """Stop the server and let go of the map."""
        self._closing.set()
        self._thumbnails.join(timeout=10)
        with _silent():
            self.server.stop()
        self.scene.close()

    def show_pair(self, i: int, j: int) -> None:
        """Draw the matches of two cameras in the panel, and mark both."""
        if i == j:
            return
        with self._lock:
            self.pair, self.selected = (i, j), None
            self._lists.choose(i, j)
            picture, text = self.scene.picture(i, j, PAIR_PX)
            self._picture.image = np.asarray(picture)
            self._picture.visible = self._save.visible = True
            self._about.content = f"**{self._name(i)}** and **{self._name(j)}**: {text}"
            self._mark({i, j})

    def select(self, i: int) -> None:
        """Choose a camera; the second one makes a pair."""
        with self._lock:
            first, self.selected = self.selected, i
            if first is not None and first != i:
                self.show_pair(first, i)
                return
            self._mark({i})
            self._about.content = f"**{self._name(i)}** chosen; click another camera to see their matches"

    def reset_view(self, client: Any) -> None:
        """Move a client's camera to where it was at first."""
        camera = client.camera
        with client.atomic():
            camera.up_direction = self.layout.up
            camera.position = self.layout.position
            camera.look_at = np.zeros(3)

    def _mark(self, cameras: set[int]) -> None:
        for i in self._marked ^ cameras:
            self.frusta[i].color = _ORANGE if i in cameras else _DARK
        self._marked = cameras

    # --- the scene

    def _set_up_view(self) -> None:
        server, layout = self.server, self.layout
        server.gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        server.scene.set_up_direction(tuple(layout.up))
        view = server.initial_camera
        view.position, view.look_at, view.up = layout.position, np.zeros(3), layout.up
        view.near, view.far = layout.radius / 500, layout.radius * 200

    def _add_points(self) -> None:
        count = len(self.scene.points_P3)
        rng = np.random.default_rng(0)
        self._shown_P = np.sort(rng.choice(count, min(count, MOST_POINTS), replace=False))
        self._cloud = self.server.scene.add_point_cloud(
            "/points",
            points=np.zeros((0, 3), np.float32),
            colors=np.zeros((0, 3), np.uint8),
            point_size=self.layout.point_size,
            point_shape="circle",
            precision="float32",
        )

    def _add_cameras(self) -> None:
        import viser.transforms

        self.frusta: list[Any] = []
        for i, camera in enumerate(self.scene.cameras):
            frustum = self.server.scene.add_camera_frustum(
                f"/cameras/{i}",
                fov=min(camera.fov_rad, 2.6),
                aspect=camera.aspect,
                scale=self.layout.camera_size,
                color=_DARK,
                thickness=1.5,
                thickness_units="screen",
                wxyz=viser.transforms.SO3.from_matrix(camera.world_from_cam[:, :3]).wxyz,
                position=self.layout.centres_C3[i],
            )

            @frustum.on_click
            async def _(event: Any, i: int = i) -> None:
                self._clicked = event.screen_pos  # so that the scene's own callback, which follows, leaves it
                threading.Thread(target=self.select, args=(i,), daemon=True).start()

            self.frusta.append(frustum)

        @self.server.scene.on_click()
        async def _(event: Any) -> None:
            if self._clicked == event.screen_pos:
                self._clicked = None
            elif (pair := self._edge_at(event.ray_origin, event.ray_direction)) is not None:
                threading.Thread(target=self.show_pair, args=pair, daemon=True).start()

    def _add_graph(self) -> None:
        heaviest = sorted(self.scene.weights, key=lambda pair: -self.scene.weights[pair])[:MOST_EDGES]
        self._edges_E2 = np.array(heaviest, np.int64).reshape(-1, 2)
        self._weights_E = np.array([self.scene.weights[pair] for pair in heaviest], np.int64)
        self._lines: Any = None

    def _draw_graph(self) -> None:
        kept = self._weights_E >= self._least_weight.value
        share_E = np.sqrt(self._weights_E / max(self._weights_E.max(initial=1), 1))[kept, None]
        colours = (_WEAK + share_E * (_STRONG - _WEAK)).astype(np.uint8)
        if self._lines is not None:
            self._lines.remove()
            self._lines = None
        if kept.any():
            self._lines = self.server.scene.add_line_segments(
                "/graph",
                points=self.layout.centres_C3[self._edges_E2[kept]].astype(np.float32),
                colors=np.repeat(colours[:, None], 2, axis=1),
                thickness=1.2,
                thickness_units="screen",
                visible=self._show["graph"].value,
            )

    def _edge_at(self, origin: Any, direction: Any) -> tuple[int, int] | None:
        """The edge that a ray from the eye passes nearest, if it is near."""
        if self._lines is None or not self._show["graph"].value:
            return None
        kept = np.flatnonzero(self._weights_E >= self._least_weight.value)
        ends_E23 = self.layout.centres_C3[self._edges_E2[kept]]
        angle = angle_to_segments(np.array(origin), np.array(direction), ends_E23[:, 0], ends_E23[:, 1])
        best = int(angle.argmin())
        if angle[best] > _NEAR_RAD:
            return None
        i, j = self._edges_E2[kept[best]].tolist()
        return i, j

    def _add_thumbnails(self) -> None:
        count = len(self.frusta)
        for i in np.unique(np.linspace(0, count - 1, min(count, MOST_THUMBNAILS)).astype(int)).tolist():
            if self._closing.is_set():
                return
            photo = self.scene.photo(i, THUMBNAIL_PX)
            if photo is not None:
                self.frusta[i].image = np.asarray(photo)
        self.thumbnails_done.set()

    # --- the panel

    def _add_panel(self) -> None:
        gui, scene = self.server.gui, self.scene
        gui.add_markdown(self._summary())
        reset = gui.add_button("Reset view")
        reset.on_click(lambda event: self.reset_view(event.client))
        with gui.add_folder("Pair"):
            self._lists = _Lists(gui, scene, self.show_pair)
            self._about = gui.add_markdown(f"*{_NO_PAIR}*: click two cameras, or a line between two")
            self._picture = gui.add_image(np.full((8, 8, 3), 255, np.uint8), format="jpeg", visible=False)
            self._save = gui.add_button("Save picture", visible=False)
            self._save.on_click(lambda event: self._send_picture(event.client))
        with gui.add_folder("Show"):
            self._show = {name: gui.add_checkbox(name.capitalize(), True) for name in ("points", "cameras", "graph")}
            size = gui.add_slider("Point size", min=0.1, max=5.0, step=0.1, initial_value=1.0)
            most = float(np.ceil(10 * np.nanmax(scene.errors_px_P, initial=0.1)) / 10)
            self._most_error = gui.add_slider("Max error (px)", min=0.0, max=most, step=0.1, initial_value=most)
            longest = max(int(scene.lengths_P.max(initial=2)), 3)
            self._least_length = gui.add_slider("Min track length", min=2, max=longest, step=1, initial_value=2)
            heaviest = max(int(self._weights_E.max(initial=1)), 2)
            self._least_weight = gui.add_slider(
                f"Min {scene.weights_are}", min=1, max=heaviest, step=1, initial_value=1
            )
            self._count = gui.add_markdown("")
        size.on_update(lambda _: setattr(self._cloud, "point_size", self.layout.point_size * size.value))
        for slider in (self._most_error, self._least_length):
            slider.on_update(lambda _: self._update_points())
        self._least_weight.on_update(lambda _: self._locked(self._draw_graph))
        for box in self._show.values():
            box.on_update(lambda _: self._locked(self._update_visible))
        self._draw_graph()

    def _summary(self) -> str:
        scene, parts = self.scene, []
        parts.append(f"**{len(scene.cameras)} photos, {len(scene.points_P3)} points, {len(scene.weights)} pairs**")
        parts.append(f"lines: {scene.weights_are}")
        if len(scene.weights) > MOST_EDGES:
            parts.append(f"the {MOST_EDGES} heaviest pairs are drawn")
        if scene.photos is None:
            parts.append("the photos' folder is not known: give it with --photos")
        return "; ".join(parts)

    def _update_points(self) -> None:
        with self._lock:
            scene, shown_P = self.scene, self._shown_P
            error_P = np.nan_to_num(scene.errors_px_P[shown_P], nan=0.0)
            good_P = (error_P <= self._most_error.value) & (scene.lengths_P[shown_P] >= self._least_length.value)
            chosen_P = shown_P[good_P]
            with self.server.atomic():
                self._cloud.points = (scene.points_P3[chosen_P] - self.layout.origin).astype(np.float32)
                self._cloud.colors = scene.colours_P3[chosen_P]
            self._count.content = f"{len(chosen_P)} of {len(scene.points_P3)} points shown"

    def _update_visible(self) -> None:
        self._cloud.visible = self._show["points"].value
        for frustum in self.frusta:
            frustum.visible = self._show["cameras"].value
        if self._lines is not None:
            self._lines.visible = self._show["graph"].value

    def _send_picture(self, client: Any) -> None:
        """The pair's picture as a file, larger."""
        if self.pair is None:
            return
        file = io.BytesIO()
        self.scene.picture(*self.pair, LARGE_PX)[0].save(file, format="PNG")
        names = [Path(self._name(i)).stem for i in self.pair]
        client.send_file_download(f"{names[0]}-{names[1]}.png", file.getvalue())

    def _locked(self, update: Any) -> None:
        with self._lock:
            update()

    def _name(self, i: int) -> str:
        return self.scene.cameras[i].name


class _Lists:
    """Two lists: a photo, and those that match it, the best first."""

    def __init__(self, gui: Any, scene: Scene, show_pair: Any) -> None:
        self.scene, self.show_pair = scene, show_pair
        self._shown: tuple[int, int | None] = (0, None)  # callbacks also come of values that are set here
        names = [camera.name for camera in scene.cameras]
        self.first = gui.add_dropdown("Photo", names, initial_value=names[0])
        self.second = gui.add_dropdown("Matched with", self._partners(0))
        self.first.on_update(lambda _: self._first_chosen())
        self.second.on_update(lambda _: self._second_chosen())

    def choose(self, i: int, j: int) -> None:
        """Show this pair, as it was chosen elsewhere."""
        if self._shown == (i, j):
            return
        self._shown = i, j
        partners = self._partners(i, also=j)
        self.first.value = self.scene.cameras[i].name
        self.second.options = partners
        self.second.value = next(one for one in partners if self._partner(one) == j)

    def _partners(self, i: int, also: int | None = None) -> list[str]:
        found = self.scene.neighbours(i)
        if also is not None and also not in [j for j, _ in found]:
            found.append((also, 0))
        return [_NO_PAIR] + [f"{self.scene.cameras[j].name} ({weight})" for j, weight in found]

    def _partner(self, text: str) -> int | None:
        return self.scene.index.get(text.rpartition(" (")[0])

    def _first_chosen(self) -> None:
        i = self.scene.index[self.first.value]
        if i != self._shown[0]:
            self._shown = i, None
            self.second.options = self._partners(i)
            self.second.value = _NO_PAIR

    def _second_chosen(self) -> None:
        i, j = self.scene.index[self.first.value], self._partner(self.second.value)
        if j is not None and (i, j) != self._shown:
            self._shown = i, j
            self.show_pair(i, j)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """viser greets on stdout, which is the caller's."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise MissingExtra("viser", "viewer") from error
    return viser
