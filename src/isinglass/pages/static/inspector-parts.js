/* Parts of the inspector: charts, legend, and the story of one keypoint. Loaded before inspector.js. */
"use strict";
(() => {
  const { el, colour } = Isinglass;
  const [UNSURE, SURE] = [0.6, 0.8]; // of the colours: up to, and from the threshold of confidence on
  const SHADES = [0, 0.25, 0.5, 0.75, 1];
  const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [360, 158, 44, 12, 12, 30]; // of a chart

  const percent = (value) => (value > 0 && value < 0.0001 ? "<\u00a00.01\u00a0%"
    : `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 2 : 1)}\u00a0%`);
  const share = (value) => (value !== value ? "–" : value > 0 && value < 0.0001 ? "< 0.0001"
    : value.toFixed(value > 0 && value < 0.0995 ? 4 : 2));

  /** Where a confidence lies among the colours: there is a step at the threshold. */
  function shade(value, least) {
    if (value < least) return UNSURE * (value / least);
    return SURE + (1 - SURE) * (least < 1 ? (value - least) / (1 - least) : 1);
  }

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /**
   * A line over the steps, null where there is no value; `at` is marked, and a click calls `pick` with a step.
   * `line` {value, text} is a limit that is drawn; `top` the least upper end of the scale.
   */
  function lineChart({ title, values, names, at, pick, xlabel, top = 0, line = null, format = String }) {
    const most = Math.max(top, line ? line.value : 0, ...values.filter((value) => value !== null)) || 1;
    const x = (place) => LEFT + (WIDE - LEFT - RIGHT) * (names.length > 1 ? place / (names.length - 1) : 0.5);
    const y = (value) => TOP + (HIGH - TOP - BOTTOM) * (1 - value / most);
    const parts = [0, 0.5, 1].flatMap((part) => [
      svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(part * most), y2: y(part * most), class: "grid" }),
      svg("text", { x: LEFT - 5, y: y(part * most) + 4, class: "tick end" }, short(part * most, format)),
    ]);
    const every = Math.ceil(names.length / 12);
    names.forEach((name, place) => {
      if (place % every === 0 || place === names.length - 1)
        parts.push(svg("text", { x: x(place), y: HIGH - 15, class: `tick middle${place === at ? " now" : ""}` }, name));
    });
    parts.push(svg("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 2, class: "tick middle" }, xlabel));
    parts.push(svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: HIGH - BOTTOM, class: "now" }));
    if (line)
      parts.push(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(line.value), y2: y(line.value), class: "limit" }));
    const known = values.map((value, place) => [value, place]).filter(([value]) => value !== null);
    parts.push(svg("polyline", { points: known.map(([value, place]) => `${x(place)},${y(value)}`).join(" ") }));
    for (const [value, place] of known)
      parts.push(svg("circle", { cx: x(place), cy: y(value), r: place === at ? 5 : 3 },
        svg("title", {}, `${xlabel} ${names[place]}: ${format(value)}`)));
    const told = known.map(([value, place]) => `${names[place]}: ${format(value)}`).join(", ");
    const label = `${title} by ${xlabel}. ${told}`;
    const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": label },
      ...parts);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const along = ((event.clientX - box.left) / box.width * WIDE - LEFT) / (WIDE - LEFT - RIGHT);
      pick(Math.min(names.length - 1, Math.max(0, Math.round(along * (names.length - 1)))));
    });
    const now = values[at] === null ? "" : format(values[at]);
    const limit = line ? el("span", { class: "inspect-limit" }, line.text) : null;
    const caption = el("figcaption", {}, `${title} `, el("b", {}, now), limit);
    return el("figure", { class: "inspect-chart" }, caption, picture);
  }

  const short = (value, format) => (format === String ? String(Math.round(value)) : format(value).replace(/\.\d+/, ""));

  function table(heads, rows, caption) {
    return el("div", { class: "inspect-scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", {}, caption),
        el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", {}, rows.map(({ cells, now, act }) => el("tr", { class: now ? "now" : null, onclick: act || null },
          cells.map((cell) => el("td", {}, cell)))))));
  }

  /** What the marks and lines of the picture mean at this step. */
  function legend(it, heads, [gone, going]) {
    const strip = (low, high) => el("span", { class: "inspect-bar", style: {
      background: `linear-gradient(to right, ${SHADES.map((at) => colour(low + at * (high - low))).join(", ")})` } });
    const bar = (name) => el("span", { class: "inspect-key" }, `${name}: 0 `, strip(0, 1), " 1");
    const key = (sign, css, text) => el("span", { class: "inspect-key" },
      el("i", { style: { color: css }, "aria-hidden": "true" }, sign), text);
    const made = [];
    if (it.lines.value !== "none")
      made.push(bar("matches, by score"), key("╌", "var(--muted)", "not a match in the end"));
    if (it.chosen) {
      const found = it.units().length ? it.units()[0].views[0].index.shape[1] : 0;
      for (let head = 0; head < found; head++)
        made.push(key("●", heads[head % heads.length], `attention of head ${head + 1}`));
      return [...made, key("○", "var(--ink)", "what else it might match")];
    }
    if (it.colours.value === "none") return made;
    const { least, name } = it.values(0);
    const names = { left: "points, by the layer they left after", matched: "points, by probability of a match",
      best: "points, by score of the nearest" };
    const text = names[name] || `points, by ${name}`;
    if (name === "confidence") made.push(el("span", { class: "inspect-key" }, `${text}: 0 `, strip(0, UNSURE),
      ` ${share(least)} `, strip(SURE, 1), " 1"));
    else made.push(bar(text));
    const asked = it.colours.value === "confidence" && name === "matchability";
    if (asked) made.push(key("", "", "the last layer asks for no confidence: matchability is shown"));
    if (least !== null)
      made.push(key("●", "var(--ink)", `${share(least)} or more`), key("○", "var(--ink)", "less"));
    if (it.trace.kind === "lightglue") made.push(key("✕", going, "leaves here"), key("✕", gone, "left earlier"));
    return made;
  }

  /** When a keypoint left and why, or how it ended. */
  function fate(it, view, index) {
    const { steps, width_confidence: width, exit_share: depth, kind } = it.trace;
    const partner = it.partner(it.payload.matches, view, index);
    const end = partner ? `In the end it matches keypoint ${partner.index} with a score of ${share(partner.score)}.`
      : "In the end it has no match";
    const left = it.left[view][index];
    if (partner) return end;
    if (kind !== "lightglue" || !left) return `${end}: ${reason(it, view, index)}.`;
    const step = steps[left - 1];
    const sure = depth === null ? "" : `was sure (confidence ${share(it.of(step.confidence[view])[index])}, more than `
      + `${share(step.threshold)}) and `;
    return `It left after layer ${left}: it ${sure}has no partner (matchability `
      + `${share(it.of(step.matchability[view])[index])}, at most ${share(1 - width)}).`;
  }

  /** Why a keypoint that stayed to the end has no match. */
  function reason(it, view, index) {
    const last = it.trace.steps.length - 1;
    const { found: [best], unmatched } = it.alternatives(last, view, index);
    if (!best || it.trace.ended === "pruned") return "nobody was left to match";
    if (unmatched > 0.5) return `that it has no partner is likeliest (${share(unmatched)})`;
    const [rival] = it.alternatives(last, 1 - view, best.index).found;
    if (rival && rival.index !== index)
      return `its best, keypoint ${best.index}, fits keypoint ${rival.index} better `
        + `(${share(rival.probability)} against ${share(best.probability)})`;
    if (it.trace.kind === "nearest") return "a test of the matcher (ratio or distance) refuses its best";
    return `the score of its best, keypoint ${best.index}, is ${share(best.probability)}, not over `
      + `${share(it.trace.filter_threshold)}`;
  }

  /** Everything about the chosen keypoint, part by part. */
  function story(it) {
    const { view, index } = it.chosen;
    const place = it.of(it.payload.keypoints[view]);
    const xy = `(${place[2 * index].toFixed(1)}, ${place[2 * index + 1].toFixed(1)}) px`;
    const score = it.of(it.payload.scores[view])[index];
    return {
      head: [el("h3", {}, `Keypoint ${index} of ${it.names[view]}`),
        el("p", { class: "note" }, `At ${xy}, detection score ${score.toPrecision(3)}.`),
        el("p", { class: "inspect-fate" }, fate(it, view, index))],
      row: [row(it, view, index)],
      weights: it.trace.attention ? [weights(it, view, index)] : [],
      history: it.trace.steps.length > 1 ? [history(it, view, index)] : [],
    };
  }

  /** The keypoint's row of the assignment at this step. */
  function row(it, view, index) {
    const { found, unmatched } = it.alternatives(it.step, view, index);
    const partner = it.partner(it.trace.steps[it.step], view, index);
    const what = it.trace.kind === "nearest" ? "score" : "probability";
    const meter = (value) => [el("meter", { min: 0, max: 1, value, "aria-hidden": "true" }), ` ${share(value)}`];
    const rows = found.map((one) => ({
      cells: [[el("button", { type: "button", onclick: () => it.select(1 - view, one.index) }, `keypoint ${one.index}`),
        partner && partner.index === one.index ? " matched" : ""], meter(one.probability)],
    }));
    if (unmatched === unmatched) rows.push({ cells: ["no partner", meter(unmatched)] });
    if (!rows.length) return el("p", { class: "note" }, "It is in no assignment here.");
    return table([`in ${it.names[1 - view]}`, what], rows, "What it might match here");
  }

  /** What of the chosen keypoint is drawn; made once, so that it keeps the focus. */
  function controls(it) {
    const box = (name, text) => {
      const act = (event) => it.show(name, event.target.checked);
      return el("label", {}, el("input", { type: "checkbox", checked: it.shown[name], onchange: act }), ` ${text}`);
    };
    const attention = it.trace.attention;
    const heads = attention ? attention[0].views[0].index.shape[1] : 0;
    const select = el("select", { "aria-label": "Head", onchange: (event) => it.showHead(Number(event.target.value)) },
      [-1, ...Array(heads).keys()].map((head) => el("option", { value: head }, head < 0 ? "all" : `${head + 1}`)));
    return [
      attention ? el("h4", {}, "Where it looks") : null,
      it.units_range ? it.units_range.row : null,
      el("div", { class: "inspect-options" },
        attention ? [box("self", "in its own photo (self)"), box("cross", "in the other photo (cross)")] : null,
        box("alternatives", "what it might match"),
        attention ? el("label", {}, "Head ", select) : null),
    ].filter((part) => part);
  }

  function weights(it, view, index) {
    const units = it.units();
    const [, heads, most] = units.length ? units[0].views[view].index.shape : [0, 0, 0];
    const rows = units.flatMap((unit) => [...Array(heads).keys()].map((head) => {
      const found = it.attended(unit, view, index).filter((one) => one.head === head);
      const sum = found.reduce((total, { weight }) => total + weight, 0);
      const first = found.slice(0, 3).map((one) => `${one.index} (${percent(one.weight)})`).join(", ");
      return { cells: [unit.cross ? "cross" : "self", String(head + 1), first || "–", percent(sum)] };
    }));
    const names = units.map((unit) => unit.name).join(" and ");
    return table(["", "head", "most on keypoints", `first ${most}`], rows, names);
  }

  function history(it, view, index) {
    const { kind, steps } = it.trace;
    const rows = steps.map((step, i) => {
      const gone = it.isGone(view, index, i);
      const { found, unmatched } = it.alternatives(i, view, index);
      const partner = it.partner(step, view, index);
      const best = partner ? `${partner.index} (${share(partner.score)})` : "none";
      const name = step.name.replace(/^\w+ /, "");
      const value = (packed) => (packed ? share(it.of(packed[view])[index]) : "–");
      const cells = kind === "superglue"
        ? [name, found.length ? share(found[0].probability) : "–", share(unmatched), best]
        : [name, value(step.confidence), step.threshold === null ? "–" : share(step.threshold),
          value(step.matchability), gone ? "gone" : best];
      return { cells, now: i === it.step, act: () => it.goTo(i) };
    });
    const heads = kind === "superglue" ? ["iteration", "best", "no partner", "match"]
      : ["layer", "confidence", "threshold", "matchability", "match"];
    return table(heads, rows, "Step by step");
  }

  Isinglass.inspecting = { lineChart, percent, share, shade, legend, controls, story };
})();
