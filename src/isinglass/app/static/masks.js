/* Regions drawn on a photo: keypoints are wanted inside them only, or outside them only. */
"use strict";
(() => {
  const { el, variable } = Isinglass;
  const LEAST_PX = 4; // of the dialog; a smaller region is a slip of the hand
  const STEP = 0.02; // of the photo, an arrow key

  /** Regions of one photo: rings of points from 0 to 1 of its width and height as it is shown. */
  class Mask {
    constructor() { Object.assign(this, { regions: [], inverted: false }); }

    get isEmpty() { return this.regions.length === 0; }

    /** PNG of the photo's stored pixels, white where keypoints are wanted. `orientation` is that of EXIF, 1 to 8. */
    toBlob([width, height], orientation = 1) {
      const canvas = el("canvas", { width, height });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.fillStyle = this.inverted ? "#fff" : "#000";
      context.fillRect(0, 0, width, height);
      context.fillStyle = this.inverted ? "#000" : "#fff";
      for (const ring of this.regions) {
        context.beginPath();
        for (const point of ring) {
          const [x, y] = stored(point, orientation);
          context.lineTo(x * width, y * height);
        }
        context.fill();
      }
      return new Promise((done) => canvas.toBlob(done, "image/png"));
    }
  }

  /** Where a point of the upright photo is in the stored one, both from 0 to 1. */
  function stored([x, y], orientation) {
    const upright = [[x, y], [1 - x, y], [1 - x, 1 - y], [x, 1 - y]];
    return [...upright, [y, x], [y, 1 - x], [1 - y, 1 - x], [1 - y, x]][orientation - 1];
  }

  /** EXIF's orientation, 1 to 8, of the kinds that browsers turn by it: JPEG and PNG; 1 where there is none. */
  async function orientationOf(file) {
    const view = new DataView(await file.slice(0, 256 * 1024).arrayBuffer());
    if (view.byteLength < 16) return 1;
    return view.getUint32(0) === 0x89504e47 ? inPng(view) : view.getUint16(0) === 0xffd8 ? inJpeg(view) : 1;
  }

  function inPng(view) {
    for (let at = 8; at + 12 < view.byteLength; at += 12 + view.getUint32(at))
      if (view.getUint32(at + 4) === 0x65584966) return exifOrientation(view, at + 8);
    return 1;
  }

  function inJpeg(view) {
    for (let at = 2; at + 10 < view.byteLength && view.getUint8(at) === 0xff;) {
      const [marker, length] = [view.getUint8(at + 1), view.getUint16(at + 2)];
      if (marker === 0xe1 && view.getUint32(at + 4) === 0x45786966) return exifOrientation(view, at + 10);
      if (marker === 0xda) break;
      at += 2 + length;
    }
    return 1;
  }

  function exifOrientation(view, start) {
    try {
      const little = view.getUint16(start) === 0x4949;
      const directory = start + view.getUint32(start + 4, little);
      for (let i = 0; i < view.getUint16(directory, little); i++) {
        const entry = directory + 2 + 12 * i;
        if (view.getUint16(entry, little) !== 0x0112) continue;
        const value = view.getUint16(entry + 8, little);
        return value >= 1 && value <= 8 ? value : 1;
      }
    } catch { /* a damaged block of metadata: as stored */ }
    return 1;
  }

  /** Lets people draw the regions of `mask` on `image` (an element with a picture); ends when they are done. */
  function editMask(image, mask, name) {
    const editor = new Editor(image, mask);
    const dialog = el("dialog", { class: "masking", "aria-label": `Regions of ${name}` },
      el("h2", {}, `Regions of ${name}`), editor.bar, editor.canvas, editor.note,
      el("form", { method: "dialog" }, el("button", { class: "primary" }, "Done")));
    document.body.append(dialog);
    dialog.showModal();
    editor.fit();
    return new Promise((done) => dialog.addEventListener("close", done, { once: true })).then(() => dialog.remove());
  }

  class Editor {
    constructor(image, mask) {
      Object.assign(this, { image, mask, shape: "rectangle", ring: null, cursor: [0.5, 0.5], corner: null });
      this.canvas = el("canvas", { class: "mask-canvas", tabindex: "0", role: "application",
        "aria-label": "Photo to draw on: arrows move a cross, Enter sets a corner of a rectangle" });
      this.bar = this.#bar();
      this.note = el("p", { class: "note" }, "Drag over the photo. With keys: arrows, and Enter at two corners.");
      const acts = { pointerdown: "down", pointermove: "move", pointerup: "up", keydown: "key" };
      for (const [name, act] of Object.entries(acts))
        this.canvas.addEventListener(name, (event) => this[act](event));
    }

    #bar() {
      const choose = (shape, text) => el("label", {},
        el("input", { type: "radio", name: "shape", checked: shape === this.shape,
          onchange: () => { this.shape = shape; } }), el("span", {}, text));
      const keep = (inverted, text) => el("label", {},
        el("input", { type: "radio", name: "keep", checked: inverted === this.mask.inverted,
          onchange: () => { this.mask.inverted = inverted; this.draw(); } }), el("span", {}, text));
      const clear = (kept) => { this.mask.regions = this.mask.regions.slice(0, kept); this.draw(); };
      return el("div", { class: "tools" },
        el("fieldset", { class: "segments" }, choose("rectangle", "Rectangle"), choose("freehand", "Freehand")),
        el("fieldset", { class: "segments" }, keep(false, "Keep inside"), keep(true, "Leave out")),
        el("button", { type: "button", onclick: () => clear(-1) }, "Undo"),
        el("button", { type: "button", onclick: () => clear(0) }, "Clear"));
    }

    fit() {
      const [wide, high] = [this.image.naturalWidth, this.image.naturalHeight];
      const scale = Math.min((this.canvas.parentElement.clientWidth - 40) / wide, (0.6 * innerHeight) / high);
      Object.assign(this.canvas, { width: Math.round(wide * scale), height: Math.round(high * scale) });
      this.draw();
    }

    #point(event) {
      const box = this.canvas.getBoundingClientRect();
      const inside = (value) => Math.min(1, Math.max(0, value));
      return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
    }

    down(event) {
      this.canvas.setPointerCapture(event.pointerId);
      this.start = this.#point(event);
      this.ring = [this.start];
    }

    move(event) {
      if (!this.ring) return;
      const point = this.#point(event);
      if (this.shape === "rectangle") this.ring = rectangle(this.start, point);
      else this.ring.push(point);
      this.draw();
    }

    up() {
      if (this.ring) this.#add(this.ring);
      this.ring = null;
      this.draw();
    }

    #add(ring) {
      const [xs, ys] = [0, 1].map((axis) => ring.map((point) => point[axis]));
      const spans = [xs, ys].map((values) => Math.max(...values) - Math.min(...values));
      const isLarge = spans[0] * this.canvas.width >= LEAST_PX && spans[1] * this.canvas.height >= LEAST_PX;
      if (isLarge && ring.length > 2) this.mask.regions.push(ring);
    }

    key(event) {
      const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
      if (moves[event.key]) {
        this.cursor = this.cursor.map((value, axis) => Math.min(1, Math.max(0, value + moves[event.key][axis])));
        this.shown = true;
      } else if (event.key === "Enter") {
        if (this.corner) this.#add(rectangle(this.corner, this.cursor));
        this.corner = this.corner ? null : this.cursor;
      } else return;
      event.preventDefault();
      this.draw();
    }

    draw() {
      const context = this.canvas.getContext("2d");
      const [width, height] = [this.canvas.width, this.canvas.height];
      context.drawImage(this.image, 0, 0, width, height);
      const pending = this.ring || (this.corner && rectangle(this.corner, this.cursor));
      const rings = pending ? [...this.mask.regions, pending] : this.mask.regions;
      if (rings.length) shade(context, rings, this.mask.inverted, width, height);
      if (!this.shown) return;
      const [x, y] = [this.cursor[0] * width, this.cursor[1] * height];
      context.fillStyle = variable("--accent");
      context.fillRect(x - 8, y - 1, 17, 3);
      context.fillRect(x - 1, y - 8, 3, 17);
    }
  }

  const rectangle = ([x0, y0], [x1, y1]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];

  /** Darkens what is left out and draws the regions' edges. */
  function shade(context, rings, inverted, width, height) {
    const veil = el("canvas", { width, height });
    const over = veil.getContext("2d");
    const trace = (on) => rings.forEach((ring) => {
      on.beginPath();
      ring.forEach(([x, y]) => on.lineTo(x * width, y * height));
      on.closePath();
      if (on === over) over.fill();
      else on.stroke();
    });
    if (!inverted) {
      over.fillRect(0, 0, width, height);
      over.globalCompositeOperation = "destination-out";
    }
    trace(over);
    context.globalAlpha = 0.62;
    context.drawImage(veil, 0, 0);
    context.globalAlpha = 1;
    Object.assign(context, { strokeStyle: "#fff", lineWidth: 1.5 });
    trace(context);
  }

  Object.assign(Isinglass, { Mask, editMask, orientationOf, shadeRegions: shade });
})();
