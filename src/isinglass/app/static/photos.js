/* The two photos: picked, dropped, pasted, taken with the camera, or examples of the server. */
"use strict";
(() => {
  const { el, Mask, editMask, orientationOf, shadeRegions } = Isinglass;
  const NAMES = ["First photo", "Second photo"];

  /** The places of both photos in `container`. Dispatches "photos-change" and "photos-trouble" {text} on it. */
  class Photos {
    constructor(container, choices) {
      Object.assign(this, { container, choices, places: [0, 1].map((view) => new Place(this, view)) });
      const swap = el("button", { type: "button", class: "plain round", title: "Swap (x)",
        "aria-label": "Swap the photos", onclick: () => this.swap() }, "⇄");
      container.append(el("div", { class: "places" }, this.places[0].element, swap, this.places[1].element));
      if (choices.examples?.length) container.append(this.#examples());
      document.addEventListener("paste", (event) => this.#paste(event));
      document.addEventListener("dragover", (event) => event.preventDefault());
      document.addEventListener("drop", (event) => this.#drop(event));
    }

    get isComplete() { return this.places.every((place) => place.file); }

    /** What is sent: photos, and masks where regions were drawn. */
    async append(form) {
      for (const [view, place] of this.places.entries()) {
        form.append(`image${view}`, place.file, place.file.name);
        const mask = await place.maskBlob();
        if (mask) form.append(`mask${view}`, mask, `mask${view}.png`);
      }
    }

    swap() {
      const [one, other] = this.places.map((place) => place.content);
      this.places[0].put(other);
      this.places[1].put(one);
      this.changed();
    }

    /** Puts files into the empty places, or from `first` on. */
    take(files, first = null) {
      const empty = this.places.findIndex((place) => !place.file);
      let view = first ?? (empty < 0 ? 0 : empty);
      for (const file of [...files].slice(0, 2)) this.places[view++ % 2].load(file);
    }

    changed() { this.container.dispatchEvent(new CustomEvent("photos-change")); }
    trouble(text) { this.container.dispatchEvent(new CustomEvent("photos-trouble", { detail: { text } })); }

    /** Beside the places: into the empty ones. */
    #drop(event) {
      event.preventDefault();
      if (!this.container.hidden && !event.target.closest(".place")) this.take(event.dataTransfer.files);
    }

    #paste(event) {
      const files = [...(event.clipboardData?.files || [])];
      if (!files.length || this.container.hidden) return;
      event.preventDefault();
      this.take(files);
    }

    #examples() {
      const button = (one) => el("button", { type: "button", class: "plain", dataset: { example: one.name },
        onclick: () => this.load(one.name) }, one.title || one.name);
      const label = el("span", { class: "note" }, "Examples: ");
      return el("p", { class: "examples" }, label, this.choices.examples.map(button));
    }

    /** An example of the server. */
    async load(example) {
      try {
        const files = await Promise.all([0, 1].map(async (view) => {
          const answer = await fetch(`/examples/${encodeURIComponent(example)}/${view}`);
          if (!answer.ok) throw new Error(`the server answered ${answer.status} for the example ${example}`);
          const content = await answer.blob();
          const kind = (content.type.split("/")[1] || "jpeg").replace("jpeg", "jpg");
          return new File([content], `${example}-${view}.${kind}`, { type: content.type });
        }));
        this.take(files, 0);
      } catch (error) { this.trouble(String(error.message || error)); }
    }
  }

  /** One photo's place. */
  class Place {
    constructor(photos, view) {
      Object.assign(this, { photos, view, content: null });
      this.picker = el("input", { type: "file", accept: "image/*", id: `photo-${view}`, class: "hidden-input",
        "aria-label": NAMES[view], onchange: () => this.#picked() });
      this.picture = el("div", { class: "picture" });
      this.caption = el("figcaption");
      this.element = el("figure", { class: "place" }, this.picture, this.caption, this.picker);
      this.element.addEventListener("dragover", () => this.element.classList.add("over"));
      for (const name of ["dragleave", "drop"])
        this.element.addEventListener(name, () => this.element.classList.remove("over"));
      this.element.addEventListener("drop", (event) => {
        if (event.dataTransfer.files.length) this.photos.take(event.dataTransfer.files, view);
      });
      this.put(null);
    }

    get file() { return this.content?.file || null; }

    async maskBlob() {
      const { mask, image, orientation, inStored } = this.content;
      if (!image || mask.isEmpty) return null;
      return mask.toBlob(inStored, orientation);
    }

    #picked() {
      if (this.picker.files.length) this.photos.take(this.picker.files, this.view);
      this.picker.value = "";
    }

    async load(file) {
      const { file_bytes: most, pixels } = this.photos.choices.limits;
      const refuse = (has, limit, remedy) =>
        this.photos.trouble(`${file.name} has ${has}; expected at most ${limit}. ${remedy}.`);
      const [has, limit] = [file.size, most].map((bytes) => `${(bytes / 1e6).toFixed(0)} MB`);
      if (file.size > most) return refuse(has, limit, "Save it as JPEG, or smaller");
      const image = el("img", { alt: file.name });
      const content = { file, mask: new Mask(), image, orientation: await orientationOf(file) };
      try {
        await loaded(image, URL.createObjectURL(file)); // its head: decoding comes after the check
        const size = [image.naturalWidth, image.naturalHeight];
        if (size[0] * size[1] > pixels) {
          URL.revokeObjectURL(image.src);
          return refuse(size.join(" x ") + " px", `${pixels / 1e6} megapixels`, "Make it smaller");
        }
        await image.decode();
        content.inStored = content.orientation > 4 ? size.reverse() : size;
      } catch { content.image = null; } // TIFF, or no photo at all: the server will tell
      this.#forget();
      this.put(content);
      this.photos.changed();
    }

    #forget() { if (this.content?.image) URL.revokeObjectURL(this.content.image.src); }

    put(content) {
      this.content = content;
      this.element.classList.toggle("full", Boolean(content));
      if (!content) return this.#empty();
      const { file, image, inStored } = content;
      const absent = () => el("p", { class: "note" }, "no preview in this browser");
      this.picture.replaceChildren(image ? this.#thumbnail() : absent());
      const remove = el("button", { type: "button", class: "plain", title: `Remove ${file.name}`,
        onclick: () => { this.#forget(); this.put(null); this.photos.changed(); } }, "Remove");
      const region = image && el("button", { type: "button", class: "plain", title: `Draw regions on ${file.name}`,
        onclick: () => this.#draw() }, content.mask.isEmpty ? "Region" : `Region (${content.mask.regions.length})`);
      this.caption.replaceChildren(el("span", { class: "file-name", title: file.name }, file.name),
        el("span", { class: "note" }, inStored ? `${inStored[0]} × ${inStored[1]}` : kilobytes(file.size)),
        el("span", { class: "acts" }, region || "", remove));
    }

    #thumbnail() {
      const { image, mask } = this.content;
      const scale = Math.min(1, 360 / image.naturalWidth);
      const scaled = (side) => Math.max(1, Math.round(side * scale));
      const [width, height] = [scaled(image.naturalWidth), scaled(image.naturalHeight)];
      const canvas = el("canvas", { role: "img", "aria-label": image.alt, width, height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (!mask.isEmpty) shadeRegions(context, mask.regions, mask.inverted, canvas.width, canvas.height);
      return canvas;
    }

    async #draw() {
      await editMask(this.content.image, this.content.mask, this.content.file.name);
      this.put(this.content);
      this.photos.changed();
    }

    #empty() {
      const camera = navigator.mediaDevices?.getUserMedia && el("button", { type: "button", class: "plain",
        onclick: () => this.#snapshot() }, "Camera");
      const choose = el("label", { class: "choose", for: this.picker.id }, el("b", {}, NAMES[this.view]),
        el("span", { class: "note" }, "choose, drop or paste"));
      this.picture.replaceChildren(choose);
      this.caption.replaceChildren(camera || "");
    }

    async #snapshot() {
      try {
        const file = await takeSnapshot();
        if (file) this.load(file);
      } catch (error) { this.photos.trouble(cameraTrouble(error)); }
    }
  }

  const loaded = (image, source) => new Promise((done, failed) => {
    image.addEventListener("load", done);
    image.addEventListener("error", () => failed(new Error(`${image.alt} cannot be shown`)));
    image.src = source;
  });

  const kilobytes = (bytes) => `${Math.max(1, Math.round(bytes / 1000))} kB`;

  /** What to tell when the camera cannot be had. */
  function cameraTrouble(error) {
    const known = { NotAllowedError: "the browser may not use it", NotFoundError: "there is none",
      NotReadableError: "another program uses it" };
    const why = known[error.name] || error.message;
    return `No picture from the camera: ${why}. Allow it for this page, or choose a file.`;
  }

  /** A dialog with the camera's picture; the photo that was taken as a file, or null. */
  async function takeSnapshot() {
    const wanted = { width: { ideal: 1920 }, facingMode: "environment" };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    const video = el("video", { playsinline: true, muted: true });
    video.srcObject = stream;
    const dialog = el("dialog", { class: "camera", "aria-label": "Camera" }, video, el("form", { method: "dialog" },
      el("button", { class: "primary", value: "take" }, "Take the photo"), el("button", { value: "" }, "Cancel")));
    document.body.append(dialog);
    dialog.showModal();
    await video.play();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    stream.getTracks().forEach((track) => track.stop());
    dialog.remove();
    if (dialog.returnValue !== "take" || !canvas.width) return null;
    const content = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    return new File([content], `camera-${Date.now() % 1e6}.jpg`, { type: "image/jpeg" });
  }

  Object.assign(Isinglass, { Photos, cameraTrouble });
})();
