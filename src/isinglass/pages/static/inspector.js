/* What a matcher did, step by step: a slider over layers or iterations, charts, and one keypoint's story. */
"use strict";
(() => {
  const { el, unpack, colour } = Isinglass;
  const { lineChart, percent, share, shade, legend, controls, story } = Isinglass.inspecting;
  const NONE = 65535; // no keypoint
  const [GONE, GOING] = ["#8b96a3", "#ff4d4d"];
  const HEADS = ["#ffb000", "#35e0dc", "#ff6ec7", "#9be86a", "#86a8ff", "#ff8a5c", "#d3b8ff", "#f2f26b"]; // on photos
  const LEAST = 0.002; // probability of alternatives that are drawn
  const MANY = 150; // matches, from which on lines are faint where points are drawn
  const LINES = { all: "all", new: "new at this step", lost: "given up later", none: "none" };
  const COLOURS = {
    lightglue: { confidence: "confidence", matchability: "matchability", left: "when they left" },
    superglue: { matched: "probability of a match" },
    nearest: { best: "score of the nearest" },
  };

  /** The inspector of a payload of the kind "inspect", in `container`. */
  class Inspector {
    #numbers = new Map(); // packed -> its numbers
    #lists = new Map();

    constructor(container, payload) {
      Object.assign(this, { payload, trace: payload.trace, step: Math.max(0, payload.trace.steps.length - 1) });
      Object.assign(this, { chosen: null, head: -1, shown: { self: true, cross: true, alternatives: true } });
      this.names = payload.views.map((view) => view.name);
      this.counts = payload.keypoints.map((packed) => packed.shape[0]);
      this.unit = Math.max(0, (this.trace.attention || []).length - 1); // of SuperGlue
      this.left = this.#lefts();
      this.final = new Set(this.pairs(payload.matches.pairs).map(String));
      this.container = el("div", { class: "inspector" });
      container.replaceChildren(this.container);
      this.#build();
      this.ready = this.view.setPayload(payload);
      this.#update();
    }

    // --- what the payload says

    /** The numbers of a packed array, null of null. */
    of(packed) {
      if (!packed) return null;
      if (!this.#numbers.has(packed)) this.#numbers.set(packed, unpack(packed).data);
      return this.#numbers.get(packed);
    }

    /** Packed (M, 2) as a list of pairs. */
    pairs(packed) {
      if (!this.#lists.has(packed)) {
        const [flat, made] = [this.of(packed), []];
        for (let i = 0; i < flat.length; i += 2) made.push([flat[i], flat[i + 1]]);
        this.#lists.set(packed, made);
      }
      return this.#lists.get(packed);
    }

    /** Of each keypoint the step after which it left, from 1; 0 = it stayed. */
    #lefts() {
      return this.counts.map((count, view) => {
        const left = new Uint8Array(count);
        this.trace.steps.forEach((step, i) => {
          if (step.pruned) for (const index of this.of(step.pruned[view])) left[index] = i + 1;
        });
        return left;
      });
    }

    /** Whether a keypoint had left before step `step` (from 0). */
    isGone(view, index, step) { return this.left[view][index] > 0 && this.left[view][index] <= step; }

    /** What the points of a view are coloured by at this step, and the number that it is held against. */
    values(view) {
      const step = this.trace.steps[this.step];
      const by = this.colours.value;
      const other = this.trace.alternatives[this.step].views[view];
      if (by === "confidence" && step.confidence)
        return { data: this.of(step.confidence[view]), least: step.threshold, name: "confidence" };
      if (by === "confidence" || by === "matchability") {
        const least = this.trace.width_confidence === null ? null : 1 - this.trace.width_confidence;
        return { data: this.of(step.matchability[view]), least, name: "matchability" };
      }
      if (by === "matched") return { data: this.of(other.unmatched).map((none) => 1 - none), least: null, name: by };
      const [best, most] = [this.of(other.probability), other.probability.shape[1]];
      if (by === "best") return { data: best.filter((_, i) => i % most === 0), least: null, name: by };
      const last = this.trace.steps.length;
      return { data: Float32Array.from(this.left[view], (left) => (left || last) / last), least: null, name: by };
    }

    /** What a keypoint matches among {pairs, scores}, or null. */
    partner({ pairs, scores }, view, index) {
      const found = this.pairs(pairs).findIndex((pair) => pair[view] === index);
      return found < 0 ? null : { index: this.pairs(pairs)[found][1 - view], score: this.of(scores)[found] };
    }

    /** Of a keypoint at a step: `found`, its best partners, best first, and the probability `unmatched` of none. */
    alternatives(step, view, index) {
      const packed = this.trace.alternatives[step].views[view];
      const most = packed.index.shape[1];
      const [indices, values] = [this.of(packed.index), this.of(packed.probability)];
      const found = [];
      for (let k = index * most; k < (index + 1) * most; k++)
        if (indices[k] !== NONE) found.push({ index: indices[k], probability: values[k] });
      return { found, unmatched: this.of(packed.unmatched)[index] };
    }

    /** The units of attention to show: those of this layer, or, of SuperGlue, the one that is chosen. */
    units() {
      const all = this.trace.attention || [];
      return this.trace.kind === "superglue" ? all.slice(this.unit, this.unit + 1)
        : all.filter((unit) => unit.layer === this.step + 1);
    }

    /** What a keypoint attends to, by head, the most first: {head, index, weight}. */
    attended(unit, view, index) {
      const { index: packed, weight } = unit.views[view];
      const [, heads, most] = packed.shape;
      const [indices, weights] = [this.of(packed), this.of(weight)];
      const found = [];
      for (let head = 0; head < heads; head++)
        for (let k = 0; k < most; k++) {
          const at = (index * heads + head) * most + k;
          if (indices[at] !== NONE) found.push({ head, index: indices[at], weight: weights[at] / 255 });
        }
      return found;
    }

    // --- the page

    #build() {
      const { steps, kind, attention } = this.trace;
      const what = { lightglue: "Layer", superglue: "Iteration", nearest: "Step" }[kind];
      const holder = el("div");
      this.view = new Isinglass.PairView(holder, {
        label: "Two photos, with what the matcher says at the chosen step. Click a keypoint to follow it.",
        tip: (row) => this.#tip(row),
      });
      holder.addEventListener("keypoint-click", ({ detail }) => {
        this.clicked = performance.now();
        this.select(detail.view, detail.index);
      });
      holder.addEventListener("match-click", ({ detail }) => {
        if (performance.now() - (this.clicked || -1000) > 60)
          this.select(0, this.pairs(this.trace.steps[this.step].pairs)[this.rows[detail.row]][0]);
      });
      this.slider = this.#range(what, steps.length, this.step, (value) => this.goTo(value), "inspect-step");
      this.said = el("p", { class: "inspect-said", role: "status", "aria-live": "polite" });
      this.lines = choice("Matches", LINES, () => this.#update());
      this.colours = choice("Points by", { ...COLOURS[kind], none: "no points" }, () => this.#update());
      const overlays = { side: "side by side", overlay: "overlaid", blink: "blinking" };
      this.mode = choice("Photos", overlays, (value) => { this.view.mode = value; });
      this.legend = el("div", { class: "inspect-legend" });
      this.charts = el("div", { class: "inspect-charts" });
      const options = el("div", { class: "inspect-options" },
        this.lines.label, this.colours.label, this.mode.label, this.#picker());
      if (kind === "superglue" && attention)
        this.units_range = this.#range("Layer", attention.length, this.unit, (value) => {
          this.unit = value;
          this.#update();
        }, "inspect-unit");
      this.panels = el("div", { class: "inspect-panels" }, this.#buildPanel(), this.charts);
      this.container.append(this.slider.row, this.said, options, holder, this.legend, this.panels);
    }

    #range(what, count, value, act, id) {
      const input = el("input", { type: "range", id, min: 0, max: Math.max(0, count - 1), step: 1, value });
      const text = el("span", { class: "inspect-at", "aria-hidden": "true" }); // the slider says it aloud
      const move = (by) => act(Math.min(count - 1, Math.max(0, Number(input.value) + by)));
      const button = (by, name, sign) =>
        el("button", { type: "button", "aria-label": name, onclick: () => move(by) }, sign);
      input.addEventListener("input", () => act(Number(input.value)));
      const show = (place, label) => {
        input.value = place;
        input.setAttribute("aria-valuetext", label);
        text.textContent = label;
      };
      input.disabled = count < 2;
      const row = el("div", { class: "inspect-range" }, el("label", { htmlFor: id }, what),
        button(-1, `${what}: one back`, "‹"), input, button(1, `${what}: one on`, "›"), text);
      return { row, show };
    }

    /** Choosing a keypoint without a pointer. */
    #picker() {
      const view = el("select", { "aria-label": "Photo of the keypoint" },
        this.names.map((name, i) => el("option", { value: i }, `${i + 1}: ${name}`)));
      const number = el("input", { type: "number", min: 0, step: 1, "aria-label": "Number of the keypoint" });
      const choose = () => {
        const index = Number(number.value);
        if (number.value !== "" && Number.isInteger(index) && index >= 0 && index < this.counts[view.value])
          this.select(Number(view.value), index);
      };
      number.addEventListener("change", choose);
      view.addEventListener("change", choose);
      this.picked = { view, number };
      return el("span", { class: "inspect-pick" }, "Keypoint ", view, number);
    }

    /** Show step `step`, from 0. */
    goTo(step) {
      this.step = step;
      this.#update();
    }

    /** Follow keypoint `index` of `view`; null = none. */
    select(view, index) {
      this.chosen = index === null ? null : { view, index };
      this.picked.number.value = index === null ? "" : index;
      if (index !== null) this.picked.view.value = view;
      this.#update();
    }

    /** Whether "self", "cross" or "alternatives" of the chosen keypoint are drawn. */
    show(name, is) {
      this.shown[name] = is;
      this.#update();
    }

    /** Only the attention of this head, from 0; -1 = of all. */
    showHead(head) {
      this.head = head;
      this.#update();
    }

    #update() {
      const step = this.trace.steps[this.step];
      if (!step) {
        this.slider.show(0, "none");
        this.said.textContent = "A photo has no keypoints, so there was nothing to match.";
        return;
      }
      this.slider.show(this.step, `${step.name} (${this.step + 1} of ${this.trace.steps.length})`);
      this.said.replaceChildren(...this.#sentences(step).map((text) => el("span", {}, `${text} `)));
      this.#drawMatches(step);
      this.#drawPoints();
      this.#drawLegend();
      this.#drawCharts();
      this.#drawPanel();
    }

    #sentences(step) {
      const { trace, payload } = this;
      const said = [`${step.pairs.shape[0]} matches are predicted.`];
      const last = this.step === trace.steps.length - 1;
      if (trace.kind === "superglue") {
        said.push(`${percent(step.marginal_error)} of the probability is not yet where the constraints want it.`);
        return last ? [...said, "These are the matches that are given."] : said;
      }
      if (trace.kind === "nearest") return said;
      if (step.confident_share !== null) {
        const ask = trace.exit_share === null ? "nobody asks: this run is not adaptive in depth"
          : `to stop it takes more than ${percent(trace.exit_share)}`;
        const sure = `${percent(step.confident_share)} of the points are sure`;
        said.push(`${sure} (${share(step.threshold)} or more), ${ask}.`);
      }
      const gone = step.pruned.map((packed) => packed.shape[0]);
      if (gone[0] + gone[1]) said.push(`${gone[0]} + ${gone[1]} points leave after it.`);
      if (step.exits) said.push(`So it stopped here, after ${this.step + 1} of ${payload.num_layers} layers.`);
      else if (last && trace.ended === "layers") said.push("It is the last layer.");
      else if (last && trace.ended === "pruned") said.push("No point is left in one photo, so nothing matches.");
      return said;
    }

    #drawMatches(step) {
      const pairs = this.pairs(step.pairs);
      const scores = this.of(step.scores);
      const earlier = this.step ? this.trace.steps[this.step - 1].pairs : null;
      const before = new Set(earlier ? this.pairs(earlier).map(String) : []);
      const kept = { all: () => true, new: (pair) => !before.has(String(pair)), none: () => false,
        lost: (pair) => !this.final.has(String(pair)) }[this.lines.value];
      const own = (pair) => !this.chosen || pair[this.chosen.view] === this.chosen.index;
      this.rows = pairs.map((_, row) => row).filter((row) => kept(pairs[row]) && own(pairs[row]));
      const isCrowded = this.rows.length > MANY && this.colours.value !== "none";
      this.view.setMatches({
        pairs: Int32Array.from(this.rows.flatMap((row) => pairs[row])),
        values: Float32Array.from(this.rows, (row) => scores[row]),
        dashed: Uint8Array.from(this.rows, (row) => (this.final.has(String(pairs[row])) ? 0 : 1)),
      }, { lines: true, points: false, opacity: isCrowded ? 0.3 : 0.85 });
    }

    #drawPoints() {
      this.view.selectKeypoint(this.chosen ? this.chosen.view : 0, this.chosen ? this.chosen.index : null);
      if (this.chosen) return this.#drawChosen();
      this.view.setRays([]);
      for (const view of [0, 1]) this.view.setPoints(view, this.colours.value === "none" ? null : this.#marks(view));
    }

    #marks(view) {
      const { data, least, name } = this.values(view);
      return Array.from(data, (value, index) => {
        if (this.isGone(view, index, this.step)) return { index, colour: GONE, shape: "cross", size: 3 };
        if (this.isGone(view, index, this.step + 1)) return { index, colour: GOING, shape: "cross", size: 4 };
        const css = colour(name === "confidence" ? shade(value, least) : value);
        return { index, colour: css, shape: least !== null && value < least ? "ring" : "disc", size: 3.2 };
      });
    }

    #drawChosen() {
      const { view, index } = this.chosen;
      const [marks, rays] = [[[], []], []];
      for (const unit of this.units()) {
        if (!this.shown[unit.cross ? "cross" : "self"]) continue;
        const toView = unit.cross ? 1 - view : view;
        const found = this.attended(unit, view, index).filter(({ head }) => this.head < 0 || head === this.head);
        const most = Math.max(...found.map(({ weight }) => weight), 1e-6);
        for (const one of found) {
          const css = HEADS[one.head % HEADS.length];
          rays.push({ view, from: index, toView, to: one.index, weight: one.weight / most, colour: css });
          marks[toView].push({ index: one.index, colour: css, shape: "disc", size: 1.5 + 2.5 * (one.weight / most) });
        }
      }
      if (this.shown.alternatives)
        for (const one of this.alternatives(this.step, view, index).found.filter((other) => other.probability > LEAST))
          marks[1 - view].push({ index: one.index, colour: colour(one.probability), shape: "ring", size: 7 });
      this.view.setRays(rays);
      [0, 1].forEach((one) => this.view.setPoints(one, marks[one]));
    }

    #tip(row) {
      const step = this.trace.steps[this.step];
      const pair = this.pairs(step.pairs)[this.rows[row]];
      const has = (one) => this.pairs(one.pairs).some((other) => `${other}` === `${pair}`);
      const since = this.trace.steps.findIndex(has);
      const end = this.final.has(String(pair)) ? "" : "\nnot a match in the end";
      const first = this.trace.steps.length > 1 ? `\nfirst predicted at ${this.trace.steps[since].name}` : "";
      return `score ${share(this.of(step.scores)[this.rows[row]])}\nkeypoints ${pair[0]} and ${pair[1]}${first}${end}`;
    }

    #drawLegend() { this.legend.replaceChildren(...legend(this, HEADS, [GONE, GOING])); }

    #drawCharts() {
      const { steps, exit_share: alpha, kind } = this.trace;
      const names = steps.map((step) => step.name.replace(/^\w+ /, ""));
      const pick = (place) => this.goTo(place);
      const chart = (title, values, more = {}) =>
        lineChart({ title, values, names, at: this.step, pick, xlabel: steps[0].name.replace(/ .*/, ""), ...more });
      const made = [];
      if (kind === "lightglue") {
        const line = alpha === null ? null : { value: alpha, text: `over ${percent(alpha)} ends it` };
        made.push(chart("Share of points that are sure", steps.map((one) => one.confident_share),
          { top: 1, line, format: percent }));
        const left = steps.map((_, i) => [0, 1].reduce((sum, view) =>
          sum + this.left[view].reduce((count, at) => count + (at === 0 || at > i), 0), 0));
        made.push(chart("Points in the layer", left, { top: this.counts[0] + this.counts[1] }));
      }
      if (kind === "superglue")
        made.push(chart("Probability out of place", steps.map((one) => one.marginal_error),
          { format: percent }));
      if (steps.length > 1) made.push(chart("Matches", steps.map((one) => one.pairs.shape[0])));
      this.charts.replaceChildren(...made);
    }

    #drawPanel() {
      if (this.units_range) this.units_range.show(this.unit, this.trace.attention[this.unit].name);
      this.panels.classList.toggle("one", this.chosen !== null);
      this.help.hidden = this.chosen !== null;
      this.story.hidden = this.chosen === null;
      if (!this.chosen) return;
      for (const [name, made] of Object.entries(story(this))) this.parts[name].replaceChildren(...made);
    }

    #zoom() {
      const { view, index } = this.chosen;
      this.view.fit();
      const at = this.view.place(view, index);
      this.view.zoomBy(4, ...at);
      this.view.panBy(this.view.width / 2 - at[0], this.view.height / 2 - at[1]);
      this.view.container.scrollIntoView({ block: "nearest" });
    }

    /** The parts of the panel; what is in the first four changes, the rest stays. */
    #buildPanel() {
      this.parts = Object.fromEntries(["head", "row", "weights", "history"].map((name) => [name, el("div")]));
      const { head, row, weights, history } = this.parts;
      this.help = el("p", { class: "note" }, "Click a keypoint in a photo, or give its number, to see where it looks, "
        + "what it might match, and when and why it left.");
      const all = el("button", { type: "button", onclick: () => this.select(0, null) }, "Show all keypoints");
      const near = el("button", { type: "button", onclick: () => this.#zoom() }, "Zoom in on it");
      const buttons = el("div", { class: "inspect-options" }, all, near);
      this.story = el("div", { hidden: true }, head, buttons, row, controls(this),
        el("details", {}, el("summary", {}, "Attention in numbers"), weights), history);
      return el("section", { class: "inspect-panel", "aria-label": "One keypoint" }, this.help, this.story);
    }
  }

  function choice(name, texts, act) {
    const options = Object.entries(texts).map(([value, text]) => el("option", { value }, text));
    const select = el("select", { "aria-label": name }, options);
    select.addEventListener("change", () => act(select.value));
    return { label: el("label", {}, `${name} `, select), get value() { return select.value; } };
  }

  Isinglass.Inspector = Inspector;
})();
