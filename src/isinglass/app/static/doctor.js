/* The Doctor tab: why few matches; what each stage left, what was found, what to do. */
"use strict";
(() => {
  const { el, notices } = Isinglass;
  const LOST = { detector: "too few keypoints", descriptors: "no partners for them", threshold: "scores are too low",
    geometry: "matches do not agree" };
  const SIGNS = { ok: "✓", warning: "!", problem: "✕" };

  /** [what, how many, the stage that `lost_at` would name] of every stage. */
  function stagesOf(stages) {
    return [
      ["keypoints", Math.min(stages.keypoints0, stages.keypoints1), "detector",
        `${stages.keypoints0} and ${stages.keypoints1}`],
      ["mutual partners", stages.candidates, "descriptors"],
      ["matches", stages.matches, "threshold"],
      ["in agreement", stages.inliers, "geometry"],
    ];
  }

  function bars(stages) {
    const rows = stagesOf(stages);
    const most = Math.max(1, ...rows.map(([, count]) => count || 0));
    return el("div", { class: "stages" }, rows.map(([name, count, stage, text]) => {
      const isLost = stages.lost_at === stage;
      return el("div", { class: `stage${isLost ? " lost" : ""}`, dataset: { stage: name } }, el("span", {}, name),
        el("span", { class: "track" }, el("i", { style: { width: `${(100 * (count || 0)) / most}%` } })),
        el("b", {}, count === null ? "not checked" : text || String(count)),
        isLost && el("em", {}, `lost here: ${LOST[stage]}`));
    }));
  }

  const finding = (one) => el("li", { class: `finding ${one.status}`, dataset: { check: one.check } },
    el("i", { class: "sign", "aria-label": one.status, role: "img" }, SIGNS[one.status]),
    el("div", {}, el("b", {}, one.check), el("p", {}, one.measured),
      one.advice && el("p", { class: "advice" }, one.advice)));

  const list = (findings) => el("ul", { class: "findings" }, findings.map(finding));

  class DoctorView {
    constructor(container, { payload }) {
      const order = Object.keys(SIGNS).reverse();
      const rank = (one) => order.indexOf(one.status);
      const findings = [...payload.findings].sort((one, other) => rank(one) - rank(other));
      const worst = findings[0]?.status;
      const told = findings.filter((one) => one.status !== "ok");
      const fine = findings.slice(told.length);
      container.replaceChildren(...notices(payload.notes),
        el("p", { class: `verdict ${payload.stages.lost_at ? worst : "ok"}` }, payload.verdict),
        el("section", {}, el("h3", {}, "What each stage leaves"), bars(payload.stages)),
        el("section", { hidden: !told.length }, el("h3", {}, "Findings"), list(told)),
        el("details", { class: "fine", open: !told.length }, 
          el("summary", {}, `${fine.length} checks are fine`), list(fine)));
      this.ready = Promise.resolve();
    }
  }

  Object.assign(Isinglass, { DoctorView });
})();
