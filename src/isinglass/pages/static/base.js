/* What all pages share: packed arrays, elements, colours, 3 x 3 matrices, and gestures on a canvas. */
"use strict";
globalThis.Isinglass = globalThis.Isinglass || {};
(() => {
  const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };

  /** {data: TypedArray, shape} of a packed array of a payload; null stays null. */
  function unpack(array) {
    if (!array) return null;
    const bytes = Uint8Array.from(atob(array.data), (character) => character.charCodeAt(0));
    return { data: new TYPES[array.dtype](bytes.buffer), shape: array.shape };
  }

  /** The numbers of a packed array, an unpacked one, or a list (of lists); null stays null. */
  function flat(array) {
    if (!array) return null;
    if (typeof array.data === "string") return unpack(array).data;
    if (array.data) return array.data;
    return Array.isArray(array) && Array.isArray(array[0]) ? array.flat() : array;
  }

  const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "open", "htmlFor", "textContent"]);

  /** An element: attributes, `on...` listeners, `style` and `dataset` as objects; children are elements or text. */
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined) continue;
      if (name.startsWith("on") && typeof value === "function") made.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, one] of Object.entries(value)) setStyle(made, key, one);
      else if (name === "dataset") Object.assign(made.dataset, value);
      else if (PROPERTIES.has(name)) made[name] = value;
      else if (typeof value === "boolean") made.toggleAttribute(name, value);
      else made.setAttribute(name, value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  function setStyle(element, name, value) {
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.style[name] = value;
  }

  // Plasma between 0.12 and 0.95: dark ends would be lost on photos.
  const STOPS = [
    [76, 2, 161], [126, 3, 168], [168, 34, 150], [203, 70, 121],
    [229, 107, 93], [248, 148, 65], [253, 195, 40], [240, 240, 50],
  ];

  /** The colour of a score of 0 to 1: lightness rises with it. NaN is grey. */
  function colour(score) {
    if (!(score === score)) return "rgb(128, 128, 128)";
    const place = Math.min(1, Math.max(0, score)) * (STOPS.length - 1);
    const low = Math.min(STOPS.length - 2, Math.floor(place));
    const part = place - low;
    return `rgb(${STOPS[low].map((value, i) => Math.round(value + part * (STOPS[low + 1][i] - value))).join(", ")})`;
  }

  /** The value of a CSS variable of the page, such as "--ink", in the present colour scheme. */
  function variable(name, element = document.documentElement) {
    return getComputedStyle(element).getPropertyValue(name).trim();
  }

  // Canvases are told to draw again, so that nothing outlives its place in the page by listening itself.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const canvas of document.querySelectorAll("canvas")) canvas.dispatchEvent(new Event("scheme-change"));
  });

  const affine = (six) => [...six, 0, 0, 1];

  function times(a, b) {
    const made = [];
    for (let row = 0; row < 9; row += 3)
      for (let column = 0; column < 3; column++)
        made.push(a[row] * b[column] + a[row + 1] * b[column + 3] + a[row + 2] * b[column + 6]);
    return made;
  }

  function inverse(m) {
    const [a, b, c, d, e, f, g, h, i] = m;
    const all = [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f,
      d * h - e * g, b * g - a * h, a * e - b * d];
    const determinant = a * all[0] + b * all[3] + c * all[6];
    return determinant ? all.map((value) => value / determinant) : null;
  }

  function apply(m, x, y) {
    const w = m[6] * x + m[7] * y + m[8];
    return [(m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w];
  }

  /** A canvas of `width` x `height`: what `source` shows at `toSource` of each pixel's centre, clear outside. */
  function warped(source, toSource, width, height) {
    const from = pixels(source);
    const made = new ImageData(width, height);
    for (let y = 0, to = 0; y < height; y++)
      for (let x = 0; x < width; x++, to += 4) {
        const w = toSource[6] * x + toSource[7] * y + toSource[8];
        if (w > 0) sample(from, (toSource[0] * x + toSource[1] * y + toSource[2]) / w,
          (toSource[3] * x + toSource[4] * y + toSource[5]) / w, made.data, to);
      }
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").putImageData(made, 0, 0);
    return canvas;
  }

  function pixels(source) {
    const [width, height] = [source.naturalWidth || source.width, source.naturalHeight || source.height];
    const canvas = el("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(source, 0, 0);
    return context.getImageData(0, 0, width, height);
  }

  /** Writes the bilinear colour at (x, y) into `out` from index `to` on; nothing outside. */
  function sample({ data, width, height }, x, y, out, to) {
    if (!(x > -0.5 && y > -0.5 && x < width - 0.5 && y < height - 0.5)) return;
    const left = Math.max(0, Math.min(width - 2, Math.floor(x)));
    const top = Math.max(0, Math.min(height - 2, Math.floor(y)));
    const u = Math.min(1, Math.max(0, x - left));
    const v = Math.min(1, Math.max(0, y - top));
    const at = 4 * (top * width + left);
    const under = at + (height > 1 ? 4 * width : 0);
    const right = width > 1 ? 4 : 0;
    for (let i = 0; i < 3; i++)
      out[to + i] = (1 - v) * ((1 - u) * data[at + i] + u * data[at + right + i])
        + v * ((1 - u) * data[under + i] + u * data[under + right + i]);
    out[to + 3] = 255;
  }

  const STEP_PX = 60; // an arrow key
  const ZOOM_STEP = 1.3;
  const TAP_PX = 5; // farther is a drag

  /**
   * Wheel, pinch, drag and keys on a canvas as calls of `target`: zoomBy(factor, x, y), panBy(dx, dy), fit(),
   * hover(x, y), leave(), tap(x, y), step(by), choose(), and isFitted(), while which a single finger scrolls the page.
   */
  function gestures(canvas, target) {
    const down = new Map();
    let moved = 0;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      if (event.deltaY > 0 && target.isFitted()) return; // the page scrolls on
      event.preventDefault();
      target.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...place(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (event.pointerType !== "touch") canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      down.set(event.pointerId, place(event));
      if (down.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (!down.has(event.pointerId)) {
        if (event.pointerType !== "touch") target.hover(...at);
        return;
      }
      const before = down.get(event.pointerId);
      moved += Math.hypot(at[0] - before[0], at[1] - before[1]);
      down.set(event.pointerId, at);
      if (down.size === 1 && moved > TAP_PX) target.panBy(at[0] - before[0], at[1] - before[1]);
      if (down.size === 2) pinch(event.pointerId, before, at);
    });
    const pinch = (moving, before, at) => {
      const other = [...down].find(([id]) => id !== moving)[1];
      const apart = (point) => Math.max(8, Math.hypot(point[0] - other[0], point[1] - other[1]));
      target.zoomBy(apart(at) / apart(before), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
      target.panBy((at[0] - before[0]) / 2, (at[1] - before[1]) / 2);
      moved = Infinity;
    };
    const up = (event) => {
      if (down.delete(event.pointerId) && event.type === "pointerup" && moved <= TAP_PX) target.tap(...place(event));
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") target.leave(); // a finger that is lifted leaves, too
    });
    canvas.addEventListener("dblclick", () => target.fit());
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
      const acts = {
        ArrowLeft: () => target.panBy(STEP_PX, 0), ArrowRight: () => target.panBy(-STEP_PX, 0),
        ArrowUp: () => target.panBy(0, STEP_PX), ArrowDown: () => target.panBy(0, -STEP_PX),
        "+": () => target.zoomBy(ZOOM_STEP, ...middle), "=": () => target.zoomBy(ZOOM_STEP, ...middle),
        "-": () => target.zoomBy(1 / ZOOM_STEP, ...middle), 0: () => target.fit(),
        "]": () => target.step(1), "[": () => target.step(-1), Enter: () => target.choose(),
        Escape: () => target.leave(),
      };
      if (!acts[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      acts[event.key]();
    });
  }

  async function decoded(source) {
    if (typeof source !== "string") return source;
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  function segmentDistance(x, y, x0, y0, x1, y1) {
    const [dx, dy] = [x1 - x0, y1 - y0];
    const along = Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1)));
    return Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
  }

  function stroke(context, lines, css, width, alpha, dash = []) {
    context.globalAlpha = alpha;
    Object.assign(context, { strokeStyle: css, lineWidth: width, lineCap: dash.length ? "butt" : "round" });
    context.setLineDash(dash);
    context.beginPath();
    for (const [x0, y0, x1, y1] of lines) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  function discs(context, places, css, radius, alpha) {
    context.globalAlpha = alpha;
    context.fillStyle = css;
    context.beginPath();
    for (const [x, y] of places) { context.moveTo(x + radius, y); context.arc(x, y, radius, 0, 2 * Math.PI); }
    context.fill();
    context.globalAlpha = 1;
  }

  function ring(context, [x, y], radius, css, width, around = null) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    if (around) { Object.assign(context, { strokeStyle: around, lineWidth: width * 2 }); context.stroke(); }
    Object.assign(context, { strokeStyle: css, lineWidth: width });
    context.stroke();
  }

  function cross(context, [x, y], radius, css, width) {
    const r = radius * 0.8;
    stroke(context, [[x - r, y - r, x + r, y + r], [x - r, y + r, x + r, y - r]], css, width, 1);
  }

  Object.assign(Isinglass, { unpack, flat, el, colour, variable, affine, times, inverse, apply, warped, gestures });
  Object.assign(Isinglass, { decoded, segmentDistance, stroke, discs, ring, cross });
})();
