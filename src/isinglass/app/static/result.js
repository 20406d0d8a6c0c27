/* The Match tab: the picture, what filters it, and what can be taken away. */
"use strict";
(() => {
  const { el, flat, PairView, ScoreFilter, segments, check, timingBars, takeAway, notices, readout } = Isinglass;
  const { milliseconds, totalMs, variable } = Isinglass;
  const MODES = [["side", "Side by side"], ["overlay", "Overlay"], ["blink", "Blink"]];

  const modelName = (model) => (model.kind === "fundamental" ? "fundamental matrix" : model.kind);

  /** What is known of one match, for the box beside the pointer. */
  function matchText(payload, row) {
    const { matches, model } = payload;
    const inliers = model && flat(matches.inliers);
    const lines = [`score ${flat(matches.scores)[row].toFixed(3)}`];
    if (matches.probabilities) lines.push(`right with probability ${flat(matches.probabilities)[row].toFixed(2)}`);
    if (inliers) lines.push(`${inliers[row] ? "agrees" : "disagrees"} with the ${modelName(model)}`);
    if (matches.layers) lines.push(`predicted from layer ${flat(matches.layers)[row]} on`);
    else if (payload.stop_layer) lines.push(`read after layer ${payload.stop_layer} of ${payload.num_layers}`);
    const [first, second] = flat(matches.pairs).slice(2 * row, 2 * row + 2);
    return [...lines, `keypoints ${first} and ${second}`].join("\n");
  }

  /** A hue for each match by where its keypoint is in the first photo: the same place, the same colour. */
  function placeColours(payload) {
    const [wide, high] = payload.views[0].size;
    const points = flat(payload.keypoints[0]);
    return [...everySecond(flat(payload.matches.pairs))].map((index) => {
      const [x, y] = [points[2 * index] / wide, points[2 * index + 1] / high];
      return `hsl(${Math.round(330 * x)}, 90%, ${Math.round(42 + 30 * y)}%)`;
    });
  }

  function* everySecond(values) { for (let i = 0; i < values.length; i += 2) yield values[i]; }

  /** The numbers above the picture. */
  function summary(payload) {
    const { matches, model } = payload;
    const count = matches.pairs.shape[0];
    const percent = model && count ? (100 * model.num_inliers) / count : 0;
    const share = percent ? `, ${percent.toFixed(percent > 99 && percent < 100 ? 1 : 0)} %` : "";
    return readout([
      [String(count), count === 1 ? "match" : "matches"],
      model && [String(model.num_inliers), `agree on a ${modelName(model)}${share}`],
      [payload.keypoints.map((points) => points.shape[0]).join(" and "), "keypoints"],
      payload.stop_layer && [`${payload.stop_layer} of ${payload.num_layers}`, "layers"],
      [milliseconds(totalMs(payload.timings_ms)), "in all"],
    ]);
  }

  class ResultView {
    constructor(container, { id, payload }) {
      const { matches, model } = payload;
      this.payload = payload;
      this.scores = flat(matches.scores);
      this.inliers = model ? flat(matches.inliers) : null;
      Object.assign(this, { least: 0, shown: { inliers: true, outliers: true } });
      this.by = this.inliers ? "agreement" : "score";
      const picture = el("div", { class: "picture-box" });
      this.pair = new PairView(picture, { tip: (row) => matchText(payload, row),
        label: `${payload.views.map((view) => view.name).join(" and ")} with ${this.scores.length} matches` });
      this.filter = new ScoreFilter(this.scores, this.inliers, (least) => { this.least = least; this.apply(); });
      container.replaceChildren(...notices(payload.notes), summary(payload), this.#tools(), picture,
        el("div", { class: "under" },
          el("section", {}, el("h3", {}, "Least score shown"), this.filter.element),
          el("section", {}, el("h3", {}, "Time by stage"), timingBars([{ timings: payload.timings_ms }])),
          el("section", {}, el("h3", {}, "Take it with you"), takeAway(id, this.pair, payload.code))));
      this.ready = this.pair.setPayload(payload);
      this.paint();
      this.apply();
    }

    #tools() {
      const range = { type: "range", min: 0, max: 1, step: 0.02, value: "0.5", "aria-label": "Share of each photo" };
      const mix = el("input", { ...range, oninput: () => { this.pair.mix = Number(mix.value); } });
      this.mix = el("label", { class: "mix", hidden: true }, "first", mix, "second");
      this.modes = segments("View", MODES, "side", (mode) => this.setMode(mode));
      const why = "The first photo is not warped onto the second, as there is no homography. Choose one under "
        + "Agreement, and match again.";
      this.unwarped = el("p", { class: "note unwarped", hidden: true }, why);
      const colourings = [["agreement", "agreement", null, !this.inliers], ["score", "score"], ["place", "place"]];
      const show = (name) => (is) => { this.shown[name] = is; this.apply(); };
      const style = (name) => (is) => this.pair.setStyle({ [name]: is });
      return el("div", { class: "tools" }, this.modes, this.mix,
        el("span", { class: "labelled" }, "Colour by",
          segments("Colour by", colourings, this.by, (by) => { this.by = by; this.paint(); this.apply(); })),
        this.inliers && check("agree", true, show("inliers"), "var(--inlier)"),
        this.inliers && check("disagree", true, show("outliers"), "var(--outlier)"),
        check("lines", true, style("lines")), check("keypoints", false, style("points")), this.unwarped);
    }

    setMode(mode) {
      this.pair.mode = mode;
      this.mix.hidden = mode !== "overlay";
      this.unwarped.hidden = mode === "side" || this.pair.homography !== null;
    }

    /** For the key v. */
    nextMode() {
      const buttons = [...this.modes.querySelectorAll("input:not(:disabled)")];
      const after = buttons[(buttons.findIndex((one) => one.checked) + 1) % buttons.length];
      after.checked = true;
      this.setMode(after.value);
    }

    /** Gives every match its colour. */
    paint() {
      const { pairs } = this.payload.matches;
      const known = { place: () => placeColours(this.payload), agreement: () => this.#agreement(), score: () => null };
      const colours = known[this.by]();
      const dashed = this.inliers && this.by === "agreement" ? this.inliers.map((is) => 1 - is) : null;
      this.pair.setMatches({ pairs, values: this.scores, colours, dashed });
    }

    #agreement() {
      const [right, wrong] = [variable("--inlier"), variable("--outlier")];
      return Array.from(this.inliers, (is) => (is ? right : wrong));
    }

    /** Shows the matches that pass all filters. */
    apply() {
      const passes = (score, row) => score >= this.least
        && (!this.inliers || this.shown[this.inliers[row] ? "inliers" : "outliers"]);
      const mask = Uint8Array.from(this.scores, (score, row) => (passes(score, row) ? 1 : 0));
      this.pair.setVisible(mask);
      this.filter.tell(mask.reduce((sum, is) => sum + is, 0));
    }
  }

  Object.assign(Isinglass, { ResultView, matchText });
})();
