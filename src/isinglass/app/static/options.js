/* The options: what there is to choose comes from the server, what is chosen is kept in the address after #. */
"use strict";
(() => {
  const { el } = Isinglass;

  /** Each option: its label, kind, and what it means; "as it is" of a number is an empty field. */
  const FIELDS = {
    extractor: { label: "Extractor", kind: "select" },
    matcher: { label: "Matcher", kind: "select" },
    max_keypoints: { label: "Keypoints", kind: "number", least: 16, step: 1, hint: "of each photo, at most" },
    resize: { label: "Size", kind: "number", step: 1, hint: "px of the longer side, as extracted" },
    rotation: {
      label: "Rotation", kind: "select",
      choices: [["exif", "upright, as the file says"], ["auto", "best of four quarter turns"], ["none", "as stored"]],
    },
    stretch: {
      label: "Values", kind: "select",
      choices: [["auto", "stretched where 16 bits are hardly used"], ["percentile", "stretched to the whole range"],
        ["none", "as they are"]],
    },
    filter_threshold: {
      label: "Least score", kind: "number", least: 0, most: 1, step: 0.01, empty: "the matcher's own",
    },
    ratio: { label: "Ratio test", kind: "number", least: 0.1, most: 1, step: 0.01, empty: "none" },
    geometry: {
      label: "Agreement", kind: "select",
      choices: [["auto", "on what fits"], ["homography", "on a homography"],
        ["fundamental", "on two views' geometry"], ["none", "not checked"]],
    },
    adaptive: { label: "Adaptive: stop early, drop points", kind: "checkbox" },
    min_distance: {
      label: "Distance", kind: "number", least: 0, most: 100, step: 0.5, hint: "px between keypoints, as extracted",
    },
    precision: {
      label: "Precision", kind: "select",
      choices: [["auto", "by the device"], ["float32", "float32"], ["bfloat16", "bfloat16"], ["float16", "float16"]],
    },
    execution: {
      label: "Execution", kind: "select",
      choices: [["auto", "by the device"], ["plain", "layers as written"], ["fused", "fused layers"],
        ["cuda_graph", "CUDA graphs"]],
    },
  };

  /** The fields of one set of options in `container`; `prefix` is theirs in requests and in the address. */
  class OptionForm {
    constructor(container, choices, { prefix = "", names = Object.keys(FIELDS), title = "" } = {}) {
      Object.assign(this, { container, choices, prefix, names, inputs: {}, rows: {} });
      this.defaults = choices.defaults;
      container.classList.add("options");
      container.append(title ? el("h2", {}, title) : "", ...names.map((name) => this.#row(name)));
      this.licence = el("p", { class: "licence note", hidden: true });
      this.rows.matcher.after(this.licence);
      container.addEventListener("change", (event) => this.#changed(event));
      this.set({});
    }

    /** What is chosen, by name; an empty number is left out. */
    values() {
      const chosen = {};
      for (const name of this.names) {
        const input = this.inputs[name];
        if (this.rows[name].hidden) continue;
        if (FIELDS[name].kind === "checkbox") chosen[name] = input.checked;
        else if (input.value !== "") chosen[name] = input.value;
      }
      return chosen;
    }

    /** The first field that holds what cannot be, told by the browser; null if all is well. */
    invalid() {
      return Object.values(this.inputs).find((input) => !input.closest("[hidden]") && !input.checkValidity()) || null;
    }

    set(values) {
      const all = { ...this.defaults, ...values };
      this.inputs.extractor.replaceChildren(...this.#extractors());
      for (const name of this.names) {
        if (name === "matcher") this.#fit(all.matcher);
        else if (FIELDS[name].kind === "checkbox") this.inputs[name].checked = String(all[name]) === "true";
        else this.#put(this.inputs[name], all[name]);
      }
      this.#follow();
    }

    /** The options that are not the defaults, for the address. */
    unusual() {
      const chosen = this.values();
      const isUsual = (name, value) => String(value) === String(this.defaults[name] ?? "");
      const kept = Object.entries(chosen).filter(([name, value]) => !isUsual(name, value));
      return Object.fromEntries(kept.map(([name, value]) => [this.prefix + name, String(value)]));
    }

    #row(name) {
      const field = FIELDS[name];
      const id = `option-${this.prefix}${name}`;
      const limits = this.choices.limits || {};
      const most = { max_keypoints: limits.max_keypoints, resize: limits.most_resize }[name] ?? field.most;
      const least = name === "resize" ? limits.least_resize ?? 64 : field.least;
      let input;
      if (field.kind === "select") {
        input = el("select", { id }, (field.choices || []).map(([value, text]) => el("option", { value }, text)));
      } else if (field.kind === "checkbox") input = el("input", { id, type: "checkbox" });
      else {
        input = el("input", { id, type: "number", inputmode: "decimal", min: least, max: most, step: field.step });
        if (field.empty) input.placeholder = field.empty;
        else input.required = true;
      }
      this.inputs[name] = input;
      const label = el("label", { for: id }, field.label);
      const hint = field.hint ? el("span", { class: "note" }, field.hint) : null;
      const parts = field.kind === "checkbox" ? [input, label] : [label, input, hint];
      this.rows[name] = el("div", { class: `field of-${field.kind}`, dataset: { option: name } }, parts);
      return this.rows[name];
    }

    #put(input, value) {
      const text = value === null || value === undefined ? "" : String(value);
      if (input.tagName === "SELECT" && ![...input.options].some((option) => option.value === text)) return;
      input.value = text;
    }

    #extractors() {
      const option = (one) => el("option", { value: one.name, disabled: !one.available }, named(one));
      return this.choices.extractors.map(option);
    }

    fitting(extractor) {
      const descriptors = extractor.split("+").pop();
      return this.choices.matchers.filter((one) => !one.accepts || one.accepts.includes(descriptors));
    }

    /** The matchers that fit; where the one chosen before does not, the first of its family that may be used. */
    #fit(wanted) {
      const known = this.fitting(this.inputs.extractor.value);
      const usable = known.filter((one) => one.available && one.commercial_use);
      const likely = usable.find((one) => one.family === this.#record(wanted)?.family) || usable[0] || known[0];
      this.inputs.matcher.replaceChildren(
        ...known.map((one) => el("option", { value: one.name, disabled: !one.available }, named(one))));
      this.inputs.matcher.value = known.some((one) => one.name === wanted) ? wanted : likely.name;
    }

    #record(name) { return this.choices.matchers.find((one) => one.name === name); }

    #changed(event) {
      if (event.target === this.inputs.extractor) this.#fit(this.inputs.matcher.value);
      this.#follow();
    }

    /** Shows the fields that the chosen models have, and their licence where it forbids commercial use. */
    #follow() {
      const [extractor, matcher] = [this.inputs.extractor.value, this.inputs.matcher.value];
      const show = { ratio: matcher === "nearest", filter_threshold: matcher !== "nearest" };
      show.precision = show.execution = matcher !== "nearest";
      show.adaptive = this.#record(matcher)?.family === "lightglue";
      const records = [...this.choices.extractors, ...this.choices.matchers];
      const bound = records.filter((one) => [extractor, matcher].includes(one.name) && one.commercial_use === false);
      for (const [name, is] of Object.entries(show)) if (this.rows[name]) this.rows[name].hidden = !is;
      this.licence.hidden = !bound.length;
      this.licence.textContent = bound.map((one) => `${one.name}: ${one.licence}.`).join(" ");
    }
  }

  function named(one) {
    const remarks = [];
    if (one.commercial_use === false) remarks.push("non-commercial");
    if (!one.available) remarks.push(one.commercial_use ? "weights not here" : "licence not accepted");
    return one.name + (remarks.length ? ` (${remarks.join(", ")})` : "");
  }

  /** {tab, values} of the address; values are text by name. */
  function readAddress() {
    const [tab, query] = location.hash.replace(/^#/, "").split("?");
    return { tab, values: Object.fromEntries(new URLSearchParams(query || "")) };
  }

  /** Keeps them in the address without a step of the history. */
  function writeAddress(tab, values) {
    const query = new URLSearchParams(values).toString();
    history.replaceState(null, "", `#${tab}${query ? `?${query}` : ""}`);
  }

  Object.assign(Isinglass, { OptionForm, readAddress, writeAddress });
})();
