/* Two photos and their matches on one canvas: zoom, pan, hover, filter; side by side, overlaid or blinking. */
"use strict";
(() => {
  const { el, flat, colour, variable, affine, times, inverse, apply, warped, gestures } = Isinglass;
  const { decoded, segmentDistance, stroke, discs, ring, cross } = Isinglass;
  const GAP = 0.012; // between the photos, in heights
  const MOST_HEIGHT = 0.74; // of the window
  const WARP_SIDE_PX = 1100;
  const NEAR_END_PX = 9;
  const NEAR_LINE_PX = 5;
  const NEAR_POINT_PX = 10;
  const MOST_ZOOM = 60; // canvas px of one photo px
  const BLINK_MS = 700;
  const SHARES = { side: () => [1, 1], overlay: (pair) => [1 - pair.mix, 1], blink: ({ phase }) => [phase, 1 - phase] };
  const SHADES = 24; // of a colour scale, so that lines of a colour are one path

  /**
   * The view of a pair in `container`; see docs/app.md. `tip(row)` is text shown beside a match that is pointed at.
   * Dispatches "match-hover" {row or null, x, y}, "match-click" {row}, "keypoint-click" {view, index} on `container`.
   */
  class PairView {
    #mode = "side";
    #mix = 0.5;
    #asked = false;

    constructor(container, { label = "Two photos and their matches", tip = null } = {}) {
      this.container = container;
      this.tip = tip;
      this.canvas = el("canvas", { class: "pair-canvas", tabindex: "0", role: "application", "aria-label": label });
      this.tipBox = el("div", { class: "pair-tip", role: "status", "aria-live": "polite", hidden: true });
      container.classList.add("pair");
      container.append(this.canvas, this.tipBox);
      Object.assign(this, { photos: [null, null], points: [null, null], marks: [null, null], chosen: [null, null] });
      Object.assign(this, { pairs: new Int32Array(0), groups: [], visible: null, lit: null, rays: [] });
      this.at = { zoom: 1, x: 0, y: 0 };
      this.style = { lines: true, points: false, opacity: 0.85 };
      gestures(this.canvas, this);
      new ResizeObserver(() => this.#resize()).observe(container);
      this.canvas.addEventListener("scheme-change", () => this.draw());
    }

    /** Photos and keypoints of a payload; the promise ends when the photos are decoded. */
    async setPayload(payload) {
      const shape = this.payload && JSON.stringify(this.payload.views.map((view) => view.preview.size));
      this.payload = payload;
      this.warpedPhoto = this.warpedPoints = null;
      payload.views.forEach((view, v) => {
        const [a, b, c, d, e, f] = view.preview.matrix;
        const stored = flat(payload.keypoints[v]);
        const points = new Float32Array(stored.length);
        for (let i = 0; i < stored.length; i += 2) {
          points[i] = a * stored[i] + b * stored[i + 1] + c;
          points[i + 1] = d * stored[i] + e * stored[i + 1] + f;
        }
        this.points[v] = points;
      });
      this.highlight(null);
      if (shape !== JSON.stringify(payload.views.map((view) => view.preview.size))) this.#resize(true);
      if (payload.matches) this.setMatches({ pairs: payload.matches.pairs, values: payload.matches.scores });
      const photos = await Promise.all(payload.views.map((view) => decoded(view.preview.src)));
      if (this.payload !== payload) return;
      Object.assign(this, { photos, warpedPhoto: null });
      this.draw();
    }

    /** Rows (keypoint of view 0, of view 1); one colour a row, or values of 0 to 1; `dashed` is a mask of rows. */
    setMatches({ pairs, colours = null, values = null, dashed = null }, style = {}) {
      this.pairs = flat(pairs) || new Int32Array(0);
      const numbers = flat(values);
      const groups = new Map();
      for (let row = 0; row < this.pairs.length / 2; row++) {
        const shade = numbers ? Math.round(numbers[row] * SHADES) / SHADES : 1;
        const css = colours ? colours[row] : colour(shade);
        const key = `${css}|${dashed && dashed[row] ? 1 : 0}`;
        if (!groups.has(key)) groups.set(key, { css, dashed: key.endsWith("1"), order: colours ? 0 : shade, rows: [] });
        groups.get(key).rows.push(row);
      }
      this.groups = [...groups.values()].sort((one, other) => other.dashed - one.dashed || one.order - other.order);
      Object.assign(this, { visible: null, lit: null });
      this.setStyle(style);
    }

    setVisible(mask) { this.visible = mask; this.draw(); }
    setStyle(style) { Object.assign(this.style, style); this.draw(); }
    setPoints(view, marks) { this.marks[view] = marks; this.draw(); }
    setRays(rays) { this.rays = rays || []; this.draw(); }
    selectKeypoint(view, index) { this.chosen = [null, null]; this.chosen[view] = index; this.draw(); }
    highlight(row) { this.lit = row; if (row === null) this.tipBox.hidden = true; this.draw(); }

    get mode() { return this.#mode; }
    set mode(mode) {
      if (!SHARES[mode]) throw new Error(`mode is ${mode}; expected ${Object.keys(SHARES).join(", ")}`);
      clearInterval(this.blinking);
      this.phase = 0;
      if (mode === "blink") this.blinking = setInterval(() => this.#blink(), BLINK_MS);
      this.#mode = mode;
      this.highlight(null);
      this.#resize(true);
    }

    get mix() { return this.#mix; }
    set mix(share) { this.#mix = share; this.draw(); } // 0 to 1, of the second photo in an overlay

    /** The 3 x 3 matrix from preview 0 to preview 1, or null without a homography. */
    get homography() {
      const { model, views } = this.payload || {};
      if (!model || model.kind !== "homography") return null;
      const [from, to] = views.map((view) => affine(view.preview.matrix));
      return times(to, times(model.matrix.flat(), inverse(from)));
    }

    #blink() {
      if (!this.canvas.isConnected) return clearInterval(this.blinking);
      this.phase = 1 - this.phase;
      this.draw();
    }

    // --- where things are

    #layout(width, mostHeight) {
      const sizes = this.payload.views.map((view) => view.preview.size);
      if (this.#mode !== "side") {
        const size = sizes[1];
        const scales = sizes.map((one, view) => (view || this.homography ? 1 : fitting(one, size)));
        return { size, frames: scales.map((scale) => ({ x: 0, y: 0, scale })) };
      }
      const [high, wide] = [Math.max(sizes[0][1], sizes[1][1]), Math.max(sizes[0][0], sizes[1][0])];
      const gap = GAP * high;
      const beside = sizes.map((size) => high / size[1]);
      const first = sizes[0][0] * beside[0];
      const across = [first + gap + sizes[1][0] * beside[1], high];
      const above = sizes.map((size) => wide / size[0]);
      const upper = sizes[0][1] * above[0];
      const down = [wide, upper + gap + sizes[1][1] * above[1]];
      const scaled = (size, scales) => Math.min(width / size[0], mostHeight / size[1]) * Math.min(...scales);
      if (width > 900 || scaled(across, beside) >= scaled(down, above))
        return { size: across, frames: [{ x: 0, y: 0, scale: beside[0] }, { x: first + gap, y: 0, scale: beside[1] }] };
      return { size: down, frames: [{ x: 0, y: 0, scale: above[0] }, { x: 0, y: upper + gap, scale: above[1] }] };
    }

    #resize(again = false) {
      const width = this.container.clientWidth;
      if (!width || !this.payload || (!again && width === this.width)) return;
      const mostHeight = Math.max(240, MOST_HEIGHT * innerHeight);
      this.width = width;
      this.layout = this.#layout(width, mostHeight);
      this.fitted = Math.min(width / this.layout.size[0], mostHeight / this.layout.size[1]);
      this.height = Math.round(this.fitted * this.layout.size[1]);
      this.canvas.style.height = `${this.height}px`;
      this.fit();
    }

    fit() {
      if (!this.layout) return;
      const [wide, high] = this.layout.size.map((side) => side * this.fitted);
      this.at = { zoom: this.fitted, x: (this.width - wide) / 2, y: (this.height - high) / 2 };
      this.canvas.style.touchAction = "pan-y";
      this.draw();
    }

    isFitted() { return !this.layout || this.at.zoom <= this.fitted * 1.001; }

    zoomBy(factor, x, y) {
      if (!this.layout) return;
      const zoom = Math.min(MOST_ZOOM / this.layout.frames[1].scale, this.at.zoom * factor);
      if (zoom <= this.fitted) return this.fit();
      const by = zoom / this.at.zoom;
      this.at = { zoom, x: x - by * (x - this.at.x), y: y - by * (y - this.at.y) };
      this.canvas.style.touchAction = "none";
      this.panBy(0, 0);
    }

    panBy(dx, dy) {
      if (!this.layout || this.isFitted()) return;
      const kept = (place, size, room) => Math.min(room / 2, Math.max(room / 2 - size, place));
      const [wide, high] = this.layout.size.map((side) => side * this.at.zoom);
      this.at.x = kept(this.at.x + dx, wide, this.width);
      this.at.y = kept(this.at.y + dy, high, this.height);
      this.draw();
    }

    /** Canvas px of keypoint `index` of `view`, as things are drawn. */
    place(view, index, at = this.at) {
      const points = view === 0 && this.#mode !== "side" ? this.#overlaid() : this.points[view];
      return this.#screen(view, points[2 * index], points[2 * index + 1], at);
    }

    #screen(view, x, y, at) {
      const frame = this.layout.frames[view];
      const [wide, high] = [frame.x + frame.scale * (x + 0.5), frame.y + frame.scale * (y + 0.5)];
      return [at.x + at.zoom * wide, at.y + at.zoom * high];
    }

    #overlaid() {
      const matrix = this.homography;
      if (!matrix) return this.points[0];
      if (!this.warpedPoints) {
        this.warpedPoints = this.points[0].slice();
        for (let i = 0; i < this.warpedPoints.length; i += 2)
          this.warpedPoints.set(apply(matrix, this.points[0][i], this.points[0][i + 1]), i);
      }
      return this.warpedPoints;
    }

    #ends(row, at = this.at) {
      return [...this.place(0, this.pairs[2 * row], at), ...this.place(1, this.pairs[2 * row + 1], at)];
    }

    #isShown(row) { return !this.visible || Boolean(this.visible[row]); }

    // --- what is pointed at

    hover(x, y) {
      const row = this.#rowAt(x, y);
      this.canvas.style.cursor = row === null ? "" : "pointer";
      if (this.lit !== null || row !== null) this.#tell(row, x, y);
    }

    leave() { if (this.lit !== null) this.#tell(null, 0, 0); }

    tap(x, y) {
      const row = this.#rowAt(x, y);
      this.#tell(row, x, y);
      const point = this.#pointAt(x, y);
      if (point) this.#dispatch("keypoint-click", point);
      this.choose();
    }

    /** The next match that is shown, for the keys [ and ]. */
    step(by) {
      const count = this.pairs.length / 2;
      let row = this.lit ?? (by > 0 ? -1 : count);
      do row += by; while (row >= 0 && row < count && !this.#isShown(row));
      if (row >= 0 && row < count) this.#tell(row, ...this.place(1, this.pairs[2 * row + 1]));
    }

    choose() { if (this.lit !== null) this.#dispatch("match-click", { row: this.lit }); }

    #tell(row, x, y) {
      this.lit = row;
      const text = row === null || !this.tip ? null : this.tip(row);
      this.tipBox.hidden = !text;
      if (text) {
        this.tipBox.replaceChildren(text);
        const room = this.width - this.tipBox.offsetWidth - 4;
        this.tipBox.style.left = `${Math.max(4, Math.min(room, x + 14))}px`;
        const below = y + 16 + this.tipBox.offsetHeight <= this.height;
        this.tipBox.style.top = `${below ? y + 16 : Math.max(4, y - 10 - this.tipBox.offsetHeight)}px`;
      }
      this.draw();
      this.#dispatch("match-hover", { row, x, y });
    }

    #dispatch(name, detail) { this.container.dispatchEvent(new CustomEvent(name, { detail, bubbles: true })); }

    #rowAt(x, y) {
      let [best, least] = [null, Infinity];
      if (!this.layout || !this.style.lines) return best;
      for (let row = 0; row < this.pairs.length / 2; row++) {
        if (!this.#isShown(row)) continue;
        const [x0, y0, x1, y1] = this.#ends(row);
        const end = Math.min(Math.hypot(x - x0, y - y0), Math.hypot(x - x1, y - y1));
        const line = segmentDistance(x, y, x0, y0, x1, y1);
        const far = end < NEAR_END_PX ? end - NEAR_END_PX : line < NEAR_LINE_PX ? line : Infinity; // ends come first
        if (far < least) [best, least] = [row, far];
      }
      return best;
    }

    #pointAt(x, y) {
      let [found, least] = [null, NEAR_POINT_PX];
      for (const view of this.layout ? [0, 1] : [])
        for (let index = 0; index < this.points[view].length / 2; index++) {
          const [px, py] = this.place(view, index);
          const far = Math.hypot(px - x, py - y);
          if (far < least) [found, least] = [{ view, index }, far];
        }
      return found;
    }

    // --- drawing

    draw() {
      if (this.#asked) return;
      this.#asked = true;
      requestAnimationFrame(() => {
        this.#asked = false;
        if (!this.layout) return;
        const ratio = Math.min(3, devicePixelRatio || 1);
        [this.canvas.width, this.canvas.height] = [this.width, this.height].map((side) => Math.round(side * ratio));
        const context = this.canvas.getContext("2d");
        context.scale(ratio, ratio);
        this.#paint(context, this.at, this.width, this.height);
      });
    }

    /** The whole picture as PNG, at the previews' size, with the filters and marks of now. */
    toBlob() {
      const [wide, high] = this.layout.size;
      const least = Math.min(...this.layout.frames.map((frame) => frame.scale));
      const zoom = Math.min(1 / least, 4000 / Math.max(wide, high));
      const canvas = el("canvas", { width: Math.round(wide * zoom), height: Math.round(high * zoom) });
      this.#paint(canvas.getContext("2d"), { zoom, x: 0, y: 0 }, canvas.width, canvas.height, zoom / this.fitted);
      return new Promise((done) => canvas.toBlob(done, "image/png"));
    }

    #paint(context, at, width, height, unit = 1) {
      context.fillStyle = variable("--pair-back", this.container) || "#888";
      context.fillRect(0, 0, width, height);
      this.#paintPhotos(context, at);
      if (this.style.points) for (const view of [0, 1]) this.#paintKeypoints(context, at, view, unit);
      if (this.style.lines) this.#paintLines(context, at, unit, this.lit === null ? 1 : 0.3);
      this.marks.forEach((marks, view) => marks && this.#paintMarks(context, at, view, marks, unit));
      for (const ray of this.rays) {
        const ends = [...this.place(ray.view, ray.from, at), ...this.place(ray.toView, ray.to, at)];
        stroke(context, [ends], ray.colour, (0.6 + 3 * ray.weight) * unit, 0.15 + 0.85 * ray.weight);
      }
      this.chosen.forEach((index, view) => {
        if (index !== null) ring(context, this.place(view, index, at), 8 * unit, "#fff", 3 * unit, "#000");
      });
      if (this.lit !== null && this.pairs.length > 2 * this.lit) this.#paintLit(context, at, unit);
    }

    #paintPhotos(context, at) {
      context.imageSmoothingEnabled = at.zoom * this.layout.frames[1].scale < 4;
      context.imageSmoothingQuality = "high";
      const shares = SHARES[this.#mode](this);
      for (const view of [1, 0]) if (shares[view]) this.#photo(context, at, view, shares[view]);
      context.globalAlpha = 1;
    }

    #photo(context, at, view, share) {
      const isWarped = view === 0 && this.#mode !== "side" && this.homography !== null;
      const size = this.payload.views[isWarped ? 1 : view].preview.size;
      const photo = isWarped ? this.#warpedPhoto() : this.photos[view];
      const [x, y] = this.#screen(view, -0.5, -0.5, at);
      const scale = at.zoom * this.layout.frames[view].scale;
      context.globalAlpha = share;
      if (photo) context.drawImage(photo, x, y, size[0] * scale, size[1] * scale);
    }

    #warpedPhoto() {
      const size = this.payload.views[1].preview.size;
      if (!this.warpedPhoto && this.photos[0]) {
        const small = Math.min(1, WARP_SIDE_PX / Math.max(...size));
        const shift = 0.5 / small - 0.5;
        const matrix = times(inverse(this.homography), [1 / small, 0, shift, 0, 1 / small, shift, 0, 0, 1]);
        const sides = size.map((side) => Math.max(1, Math.round(side * small)));
        this.warpedPhoto = warped(this.photos[0], facing(matrix, sides), ...sides);
      }
      return this.warpedPhoto;
    }

    #paintLines(context, at, unit, opacity) {
      const count = this.groups.reduce((sum, group) => sum + group.rows.length, 0);
      const [thick, faint] = count > 1200 ? [0.8 * unit, 0.3] : count > 250 ? [unit, 0.48] : [1.5 * unit, 0.85];
      for (const group of this.groups) {
        const lines = group.rows.filter((row) => this.#isShown(row)).map((row) => this.#ends(row, at));
        const alpha = this.style.opacity * opacity;
        stroke(context, lines, group.css, thick, alpha * faint, group.dashed ? [5 * unit, 4 * unit] : []);
        discs(context, lines.flatMap(([x0, y0, x1, y1]) => [[x0, y0], [x1, y1]]), group.css, 2.2 * unit, alpha);
      }
    }

    #paintKeypoints(context, at, view, unit) {
      const places = [];
      for (let i = 0; i < this.points[view].length / 2; i++) places.push(this.place(view, i, at));
      discs(context, places, "rgba(0, 0, 0, 0.55)", 2.4 * unit, 1);
      discs(context, places, "#e8f4ff", 1.4 * unit, 1);
    }

    #paintMarks(context, at, view, marks, unit) {
      for (const mark of marks) {
        const spot = this.place(view, mark.index, at);
        const size = (mark.size || 4) * unit;
        if (mark.shape === "ring") ring(context, spot, size, mark.colour, 1.6 * unit);
        else if (mark.shape === "cross") cross(context, spot, size, mark.colour, 1.6 * unit);
        else discs(context, [spot], mark.colour, size, 1);
      }
    }

    #paintLit(context, at, unit) {
      const ends = this.#ends(this.lit, at);
      const { css } = this.groups.find((group) => group.rows.includes(this.lit)) || { css: "#fff" };
      stroke(context, [ends], "#000", 5 * unit, 0.55);
      stroke(context, [ends], css, 2.6 * unit, 1);
      for (const end of [ends.slice(0, 2), ends.slice(2)]) ring(context, end, 6 * unit, "#fff", 2 * unit, css);
    }
  }

  const fitting = (size, into) => Math.min(into[0] / size[0], into[1] / size[1]);

  /** The matrix with the sign that makes its weight positive in the middle of an image of these sides. */
  function facing(matrix, [width, height]) {
    const weight = (matrix[6] * width) / 2 + (matrix[7] * height) / 2 + matrix[8];
    return weight < 0 ? matrix.map((value) => -value) : matrix;
  }

  Isinglass.PairView = PairView;
})();
