/* Small parts of the panels: switches, bars, the score filter, downloads. */
"use strict";
(() => {
  const { el, flat, variable } = Isinglass;
  const BINS = 40;
  let counter = 0;

  /** Radio buttons in a row. `choices` are [value, text, title or null, disabled]. */
  function segments(label, choices, value, act) {
    const name = `segments-${counter++}`;
    return el("fieldset", { class: "segments" }, el("legend", { class: "unseen" }, label),
      choices.map(([one, text, title, disabled]) => el("label", { title: title || null },
        el("input", { type: "radio", name, value: one, checked: one === value, disabled: Boolean(disabled),
          onchange: () => act(one) }), el("span", {}, text))));
  }

  function check(text, checked, act, colour = null) {
    const input = el("input", { type: "checkbox", checked, onchange: () => act(input.checked) });
    const dot = colour && el("i", { class: "dot", style: { background: colour } });
    return el("label", { class: "check" }, input, dot, el("span", {}, text));
  }

  const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

  /** Bars of how long each stage took; of several runs one below the other, on one scale. */
  function timingBars(runs) {
    const most = Math.max(1, ...runs.flatMap(({ timings }) => Object.values(timings)));
    const row = ([stage, ms]) => el("div", { class: "timing", dataset: { stage } }, el("span", {}, stage),
      el("span", { class: "track" }, el("i", { style: { width: `${Math.max(0.6, (100 * ms) / most)}%` } })),
      el("b", {}, milliseconds(ms)));
    return el("div", { class: "timings" }, runs.map(({ title, timings }) => [title ? el("h4", {}, title) : null,
      Object.entries(timings).map(row)]));
  }

  /**
   * A slider under a histogram of scores; `act(least)` hears of it. Bars are split by `marked`, if that is given.
   */
  class ScoreFilter {
    constructor(scores, marked, act) {
      Object.assign(this, { scores, marked, least: 0 });
      this.canvas = el("canvas", { class: "histogram", width: 600, height: 120, "aria-hidden": "true" });
      this.left = el("output", { class: "left" });
      const range = { type: "range", min: 0, max: 1, step: 0.005, value: "0", "aria-label": "Least score shown" };
      this.slider = el("input", { ...range, oninput: () => {
        this.least = Number(this.slider.value);
        this.draw();
        act(this.least);
      } });
      this.element = el("div", { class: "score-filter" }, this.canvas, this.slider, this.left);
      this.canvas.addEventListener("scheme-change", () => this.draw());
      requestAnimationFrame(() => this.draw());
    }

    tell(shown) {
      const from = this.least ? `, score ${this.least.toFixed(3)} and more` : "";
      this.left.textContent = `${shown} of ${this.scores.length} matches shown${from}`;
    }

    draw() {
      const counts = [new Float64Array(BINS), new Float64Array(BINS)];
      this.scores.forEach((score, row) => {
        counts[this.marked?.[row] ? 1 : 0][Math.min(BINS - 1, Math.floor(score * BINS))] += 1;
      });
      const most = Math.max(1, ...counts[0].map((count, bin) => count + counts[1][bin]));
      const context = this.canvas.getContext("2d");
      const [width, height] = [this.canvas.width, this.canvas.height];
      const colours = [variable(this.marked ? "--outlier" : "--accent"), variable("--inlier")];
      context.clearRect(0, 0, width, height);
      for (let bin = 0; bin < BINS; bin++) {
        context.globalAlpha = (bin + 1) / BINS <= this.least ? 0.22 : 1;
        let top = height;
        for (const part of [1, 0]) {
          const high = counts[part][bin] ? Math.max(2, Math.sqrt(counts[part][bin] / most) * height) : 0;
          context.fillStyle = colours[part];
          context.fillRect((bin * width) / BINS + 1, (top -= high), width / BINS - 2, high);
        }
      }
      context.globalAlpha = 1;
    }
  }

  function save(blob, name) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  /** The Python that gives the same, with a button that copies it. */
  function codeBlock(code) {
    const button = el("button", { type: "button", class: "plain", onclick: async () => {
      button.textContent = (await copied(code)) ? "Copied" : "Select it and copy";
      setTimeout(() => { button.textContent = "Copy"; }, 1800);
    } }, "Copy");
    return el("details", { class: "code" }, el("summary", {}, "The Python code for this"),
      el("div", {}, button, el("pre", { tabindex: "0" }, el("code", {}, code))));
  }

  async function copied(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed, or no https */ }
    const field = el("textarea", { value: text, class: "unseen" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }

  /** Links and buttons that take a result away: PNG of `pair`, JSON and npz of the job. */
  function takeAway(id, pair, code) {
    const png = el("button", { type: "button", dataset: { save: "png" },
      onclick: async () => save(await pair.toBlob(), "matches.png") }, "PNG");
    const link = (path, text, name) => el("a", { class: "button", href: `/jobs/${id}/${path}`, download: name }, text);
    return el("div", { class: "take-away" }, el("div", { class: "buttons" }, png,
      link("result.json", "JSON", "matches.json"), link("result.npz", "npz", "matches.npz")), codeBlock(code));
  }

  /** What people should know of a result. */
  const notices = (texts) => (texts || []).map((text) => el("p", { class: "notice" }, text));

  /** Numbers of a result in a row: [number, what it is]. */
  const readout = (parts) => el("div", { class: "readout" },
    parts.filter(Boolean).map(([number, text]) => el("div", {}, el("b", {}, number), el("span", {}, text))));

  const total = (timings) => Object.values(timings).reduce((sum, ms) => sum + ms, 0);

  Object.assign(Isinglass, { segments, check, timingBars, ScoreFilter, takeAway, notices, readout, codeBlock });
  Object.assign(Isinglass, { milliseconds, totalMs: total, numbers: (array) => Array.from(flat(array) || []) });
})();
