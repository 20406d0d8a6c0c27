/* The Compare tab: two matchers on one pair, and whose each match is. */
"use strict";
(() => {
  const { el, flat, PairView, check, timingBars, takeAway, notices, readout } = Isinglass;
  const { milliseconds, totalMs, variable } = Isinglass;
  const GROUPS = [["both", "--both"], ["first", "--only-first"], ["second", "--only-second"]];

  /** The matches of both runs as one list: pairs of keypoints, a group and a row of its run each. */
  function merged(payload) {
    const { both, only } = payload.difference;
    const found = [...pairsOf(flat(both)).map(([row]) => [0, 0, row]),
      ...[...flat(only[0])].map((row) => [1, 0, row]), ...[...flat(only[1])].map((row) => [2, 1, row])];
    return found.map(([group, run, row]) => ({ group, run, row }));
  }

  const pairsOf = (values) => Array.from({ length: values.length / 2 }, (_, i) => [values[2 * i], values[2 * i + 1]]);

  /** Keypoints of both runs, those of the second after those of the first. */
  const together = (payload, view) => {
    const [first, second] = [payload, payload.other].map((run) => flat(run.keypoints[view]));
    const all = new Float32Array(first.length + second.length);
    all.set(first);
    all.set(second, first.length);
    return { data: all, shape: [all.length / 2, 2] };
  };

  class CompareView {
    constructor(container, { id, payload }) {
      this.payload = payload;
      this.list = merged(payload);
      this.shown = [true, true, true];
      this.runs = [payload, payload.other];
      this.names = this.runs.map((run) => `${run.matcher}`);
      if (this.names[0] === this.names[1]) this.names = this.runs.map((run, i) => `${run.matcher} (${"AB"[i]})`);
      const picture = el("div", { class: "picture-box" });
      const label = `Matches of ${this.names.join(" and ")}`;
      this.pair = new PairView(picture, { tip: (row) => this.#text(row), label });
      container.replaceChildren(...notices(payload.notes), this.#summary(), this.#tools(), picture,
        el("div", { class: "under" },
          el("section", {}, el("h3", {}, "What they found"), this.#table()),
          el("section", {}, el("h3", {}, "Time by stage"), timingBars(this.runs.map((run, i) => (
            { title: this.names[i], timings: run.timings_ms })))),
          el("section", {}, el("h3", {}, "Take the first with you"), takeAway(id, this.pair, payload.code))));
      const keypoints = [0, 1].map((view) => together(payload, view));
      this.ready = this.pair.setPayload({ views: payload.views, keypoints, model: payload.model });
      this.paint();
    }

    #count(group) { return this.list.filter((one) => one.group === group).length; }

    #labels() { return ["found by both", `only ${this.names[0]}`, `only ${this.names[1]}`]; }

    #summary() {
      const labels = this.#labels();
      return readout(GROUPS.map((_, group) => [String(this.#count(group)), labels[group]]));
    }

    #tools() {
      const labels = this.#labels();
      return el("div", { class: "tools" }, GROUPS.map(([, colour], group) =>
        check(`${labels[group]} (${this.#count(group)})`, true, (is) => { this.shown[group] = is; this.apply(); },
          `var(${colour})`)));
    }

    #table() {
      const cells = (title, each) => el("tr", {}, el("th", { scope: "row" }, title),
        this.runs.map((run) => el("td", { class: "number" }, each(run))));
      return el("table", { class: "facts" }, el("thead", {}, el("tr", {}, el("th", {}, ""),
        this.names.map((name) => el("th", { class: "number" }, name)))), el("tbody", {},
        cells("extractor", (run) => run.extractor),
        cells("keypoints", (run) => run.keypoints.map((points) => points.shape[0]).join(" / ")),
        cells("matches", (run) => String(run.matches.pairs.shape[0])),
        cells("agree", (run) => (run.model ? String(run.model.num_inliers) : "–")),
        cells("layers", (run) => (run.stop_layer ? `${run.stop_layer} of ${run.num_layers}` : "–")),
        cells("time", (run) => milliseconds(totalMs(run.timings_ms)))));
    }

    #text(index) {
      const { group, run, row } = this.list[index];
      const score = flat(this.runs[run].matches.scores)[row].toFixed(3);
      const inliers = this.runs[run].model && flat(this.runs[run].matches.inliers);
      const agrees = inliers ? `\n${inliers[row] ? "agrees" : "disagrees"} with the geometry` : "";
      return `${this.#labels()[group]}\nscore ${score} of ${this.names[run]}${agrees}`;
    }

    paint() {
      const colours = GROUPS.map(([, name]) => variable(name));
      const shift = [0, 1].map((view) => this.payload.keypoints[view].shape[0]);
      const found = this.runs.map((run) => flat(run.matches.pairs));
      const pairs = new Int32Array(2 * this.list.length);
      this.list.forEach(({ run, row }, index) => {
        for (const view of [0, 1]) pairs[2 * index + view] = found[run][2 * row + view] + run * shift[view];
      });
      this.pair.setMatches({ pairs, colours: this.list.map(({ group }) => colours[group]) });
      this.apply();
    }

    apply() { this.pair.setVisible(Uint8Array.from(this.list, ({ group }) => (this.shown[group] ? 1 : 0))); }
  }

  Object.assign(Isinglass, { CompareView });
})();
