/* The page: its tabs, what starts and stops work, and its keys. */
"use strict";
(() => {
  const { el, OptionForm, Photos, ResultView, CompareView, DoctorView, LiveView } = Isinglass;
  const { ask, runJob, showProgress, readAddress, writeAddress } = Isinglass;
  const TABS = ["match", "inspect", "compare", "doctor", "live"];
  const TEXTS = { match: "Match", inspect: "Inspect", compare: "Compare", doctor: "Examine", live: "Start" };
  const IDLE = {
    match: "Two photos of one thing. Isinglass finds the points that are the same.",
    inspect: "Look into the matcher: what it believes after each layer, and where it looks.",
    compare: "Two matchers on the same pair, and whose each match is.",
    doctor: "Few matches? The doctor finds out at which stage they were lost.",
  };
  const OTHER = ["extractor", "matcher", "filter_threshold", "ratio", "adaptive"];
  const NARROW_PX = 900; // as in app.css
  const part = (id) => document.getElementById(id);
  const page = { tab: "match", running: null, views: {} };

  async function begin() {
    page.choices = await ask("/choices");
    page.options = new OptionForm(part("options"), page.choices);
    const other = { prefix: "other_", names: OTHER, title: "Against" };
    page.other = new OptionForm(part("other-options"), page.choices, other);
    page.photos = new Photos(part("photos"), page.choices);
    const places = { source: part("live-source"), panel: part("panel-live") };
    page.live = new LiveView({ ...places, choices: page.choices, trouble: tell });
    for (const tab of TABS.slice(0, -1)) part(`panel-${tab}`).append(idle(tab));
    part("options-fold").open = innerWidth >= NARROW_PX;
    restore();
    listen();
  }

  /** What a panel shows before there is a result: what it is for, and examples to try. */
  function idle(tab) {
    const source = (name, view) => `/examples/${encodeURIComponent(name)}/${view}`;
    const photo = (name, view) => el("img", { src: source(name, view), alt: "", loading: "lazy" });
    const example = ({ name, title }) => el("button",
      { type: "button", class: "sheets", onclick: () => page.photos.load(name) },
      el("span", {}, photo(name, 0), photo(name, 1)), title);
    return el("div", { class: "idle" }, el("p", {}, IDLE[tab]), el("p", { class: "note" }, "Drop two photos, or try:"),
      el("div", { class: "samples" }, page.choices.examples.map(example)));
  }

  function restore() {
    const { tab, values } = readAddress();
    const startsWith = (prefix) => Object.fromEntries(Object.entries(values)
      .filter(([name]) => name.startsWith(prefix)).map(([name, value]) => [name.slice(prefix.length), value]));
    page.options.set(values);
    page.isRivalChosen = Object.keys(startsWith("other_")).length > 0;
    page.other.set(page.isRivalChosen ? startsWith("other_") : rival());
    page.live.options.set(startsWith("live_"));
    show(TABS.includes(tab) ? tab : "match", false);
  }

  /** What there is to compare with at first: nearest neighbours. */
  function rival() {
    const { extractor, matcher } = page.options.values();
    return matcher === "nearest" ? { extractor, matcher: undefined } : { extractor, matcher: "nearest", ratio: 0.8 };
  }

  function listen() {
    part("setup").addEventListener("submit", (event) => { event.preventDefault(); start(); });
    part("setup").addEventListener("change", ({ target }) => {
      page.isRivalChosen ||= part("other-options").contains(target);
      if (!page.isRivalChosen) page.other.set(rival());
      keep();
      enable();
    });
    part("setup").addEventListener("photos-change", enable, true);
    part("photos").addEventListener("photos-change", () => { tell(""); enable(); });
    part("photos").addEventListener("photos-trouble", ({ detail }) => tell(detail.text));
    part("panel-live").addEventListener("live-change", enable);
    part("cancel").addEventListener("click", cancel);
    part("help-button").addEventListener("click", () => part("help").showModal());
    const tabs = document.querySelector("[role=tablist]");
    tabs.addEventListener("click", ({ target }) => target.dataset.tab && show(target.dataset.tab));
    tabs.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      show(TABS[(TABS.indexOf(page.tab) + by + TABS.length) % TABS.length]);
      part(`tab-${page.tab}`).focus();
    });
    window.addEventListener("hashchange", restore);
    document.addEventListener("keydown", key);
  }

  /** Shows a tab. Results of others stay as they are. */
  function show(tab, isKept = true) {
    if (page.tab === "live" && tab !== "live") page.live.stop();
    page.tab = tab;
    for (const one of TABS) {
      const button = part(`tab-${one}`);
      button.setAttribute("aria-selected", String(one === tab));
      button.tabIndex = one === tab ? 0 : -1;
      part(`panel-${one}`).hidden = one !== tab;
    }
    part("stage").setAttribute("aria-labelledby", `tab-${tab}`);
    part("photos").hidden = part("options-fold").hidden = tab === "live";
    part("live-source").hidden = tab !== "live";
    part("other-options").hidden = tab !== "compare";
    document.title = tab === "match" ? "Isinglass" : `${TEXTS[tab]} · Isinglass`;
    tell("");
    enable();
    if (isKept) keep();
  }

  const keep = () => writeAddress(page.tab, { ...page.options.unusual(), ...page.live.options.unusual(),
    ...(page.isRivalChosen ? page.other.unusual() : {}) });

  function enable() {
    const isLive = page.tab === "live";
    const isOn = isLive && page.live.isRunning;
    part("run").textContent = isOn ? "Stop" : TEXTS[page.tab];
    part("run").disabled = !isLive && (Boolean(page.running) || !page.photos.isComplete);
    part("cancel").hidden = isLive || !page.running;
  }

  /** What is wrong, or "" for nothing. */
  function tell(text) { part("trouble").replaceChildren(text ? el("p", {}, text) : ""); }

  function cancel() { page.running?.abort(); }

  async function start() {
    tell("");
    if (page.tab === "live") return startLive();
    if (page.running || !page.photos.isComplete) return;
    const forms = page.tab === "compare" ? [page.options, page.other] : [page.options];
    const wrong = forms.map((form) => form.invalid()).find(Boolean);
    if (wrong) return wrong.reportValidity();
    const running = (page.running = new AbortController());
    enable();
    const tab = page.tab;
    part(`panel-${tab}`).setAttribute("aria-busy", "true");
    try {
      const form = await filled(tab);
      if (running.signal.aborted) return;
      const found = await runJob(form, (job) => showProgress(part("progress"), job), running.signal);
      if (found) draw(tab, found);
    } catch (error) {
      tell(String(error.message || error));
    } finally {
      page.running = null;
      part(`panel-${tab}`).removeAttribute("aria-busy");
      showProgress(part("progress"), null);
      enable();
    }
  }

  async function startLive() {
    if (page.live.isRunning) return page.live.stop();
    try { await page.live.start(); } catch (error) { page.live.stop(); tell(String(error.message || error)); }
    enable();
  }

  async function filled(kind) {
    const form = new FormData();
    form.append("kind", kind);
    for (const [name, value] of Object.entries(page.options.values())) form.append(name, value);
    if (kind === "compare")
      for (const [name, value] of Object.entries(page.other.values())) form.append(`other_${name}`, value);
    await page.photos.append(form);
    return form;
  }

  function draw(tab, found) {
    const panel = part(`panel-${tab}`);
    const makers = { match: ResultView, compare: CompareView, doctor: DoctorView, inspect: InspectView };
    page.views[tab] = new makers[tab](panel, found);
    if (innerWidth < NARROW_PX) panel.scrollIntoView({ behavior: "smooth", block: "start" });
  }

  class InspectView {
    constructor(container, { id, payload }) {
      const [inner, away] = [el("div"), el("div", { class: "under" })];
      container.replaceChildren(...Isinglass.notices(payload.notes), inner, away);
      this.inspector = new Isinglass.Inspector(inner, payload);
      away.append(el("section", {}, el("h3", {}, "Take it with you"),
        Isinglass.takeAway(id, this.inspector.view, payload.code)));
    }
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input[type=number], textarea, select")) return;
    const acts = {
      "?": () => part("help").showModal(), Escape: cancel, m: start, x: () => page.photos.swap(),
      v: () => page.views[page.tab]?.nextMode?.(),
    };
    const act = /^[1-5]$/.test(event.key) ? () => show(TABS[event.key - 1]) : acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  Isinglass.page = page;
  begin().catch((error) => tell(String(error.message || error)));
})();
