/* The Live tab: a camera, a video file or the server's video against a reference or the previous keyframe. */
"use strict";
(() => {
  const { el, flat, OptionForm, PairView, cameraTrouble, check, segments, readout, variable } = Isinglass;
  const SHOWN = ["extractor", "matcher", "max_keypoints", "resize", "geometry", "filter_threshold", "ratio",
    "adaptive"];
  const SENT_PX = 960; // long side of frames that are sent
  const QUALITY = 0.82;
  const UPRIGHT = [1, 0, 0, 0, 1, 0];
  const OPEN = 1;

  const viewOf = (src, size) => ({ size, preview: { src, size, matrix: UPRIGHT } });

  class LiveView {
    /** `source` is the place of the controls, `panel` that of the picture; `trouble(text)` is told what goes wrong. */
    constructor({ source, panel, choices, trouble }) {
      Object.assign(this, { panel, choices, trouble, from: "camera", mode: "keyframe", lines: true });
      this.video = el("video", { muted: true, playsinline: true, loop: true, hidden: true });
      this.video.muted = true;
      this.#controls(source);
      this.#screen();
    }

    get isRunning() { return Boolean(this.socket); }

    #controls(source) {
      const known = [["camera", "Camera"], ["file", "Video file"]];
      if (this.choices.live?.source) known.push(["server", "Server"]);
      this.file = el("input", { type: "file", accept: "video/*", id: "live-file", onchange: () => this.stop() });
      this.fileRow = el("div", { class: "field", hidden: true }, el("label", { for: "live-file" }, "Video"), this.file,
        el("span", { class: "note" }, "Stays in the browser; frames are sent one at a time."));
      const file = { type: "file", accept: "image/*", id: "live-reference" };
      this.reference = el("input", { ...file, onchange: () => this.stop() });
      this.referenceRow = el("div", { class: "field", hidden: true },
        el("label", { for: "live-reference" }, "Reference photo"), this.reference,
        el("span", { class: "note" }, "Without one, the first frame is the reference."));
      const fields = el("div");
      const note = this.choices.live?.source ? `The server's: ${this.choices.live.source}.` : null;
      source.append(el("h2", {}, "Source"),
        segments("Source", known, this.from, (from) => this.#choose({ from })), this.fileRow,
        el("p", { class: "note", hidden: !note }, note), el("h2", {}, "Matched with"),
        segments("Matched with", [["keyframe", "the previous keyframe"], ["reference", "a reference"]], this.mode,
          (mode) => this.#choose({ mode })), this.referenceRow, el("h2", {}, "Options"), fields);
      const defaults = { ...this.choices.defaults, max_keypoints: 512, resize: 480, geometry: "homography",
        ...this.choices.live?.defaults };
      this.options = new OptionForm(fields, { ...this.choices, defaults }, { prefix: "live_", names: SHOWN });
      fields.addEventListener("change", () => this.isRunning && this.#tellSettings());
    }

    #choose(what) {
      this.stop();
      Object.assign(this, what);
      this.fileRow.hidden = this.from !== "file";
      this.referenceRow.hidden = this.mode !== "reference";
    }

    #screen() {
      this.numbers = el("div", { class: "live-numbers" });
      const picture = el("div", { class: "picture-box" });
      this.again = el("button", { type: "button", disabled: true,
        onclick: () => this.socket?.send(JSON.stringify({ type: "keyframe" })) }, "Take the next frame as reference");
      const tools = el("div", { class: "tools" }, this.again,
        check("lines", true, (is) => { this.lines = is; this.pair.setStyle({ lines: is, points: !is }); }));
      this.idle = el("div", { class: "idle" }, el("p", {}, "Choose a source and start. Frames that come while one is "
        + "matched are dropped, so what you see is always the newest."));
      this.stageBox = el("div", { hidden: true }, this.numbers, tools, picture);
      this.panel.replaceChildren(this.idle, this.stageBox, this.video);
      this.pair = new PairView(picture, { label: "Reference and newest frame" });
    }

    /** Starts; rejects with what to tell if the source cannot be had. */
    async start() {
      this.stop();
      const run = (this.run = { presented: 0, sent: 0, dropped: 0, count: 0 });
      await this.#open();
      if (run !== this.run) return;
      const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`;
      const socket = (this.socket = new WebSocket(address));
      Object.assign(this, { waiting: null, last: null, base: null, pending: null, frame: null });
      socket.binaryType = "blob";
      socket.onopen = () => this.#begin(run);
      socket.onmessage = ({ data }) => socket === this.socket && this.#hear(data, run);
      socket.onclose = ({ code, reason }) => {
        if (socket !== this.socket) return;
        this.stop();
        this.trouble(reason || (code === 1013 ? "Too many live pages are open." : "The live connection ended."));
      };
      this.numbers.replaceChildren(el("p", {}, "Waiting for the first answer. Models are loaded before it."));
      this.stageBox.hidden = false;
      this.idle.hidden = true;
      this.pair.setStyle({ lines: this.lines, points: !this.lines });
    }

    stop() {
      this.run = null;
      const socket = this.socket;
      this.socket = null;
      socket?.close();
      this.video.srcObject?.getTracks().forEach((track) => track.stop());
      this.video.srcObject = null;
      this.video.pause();
      if (this.address) URL.revokeObjectURL(this.address);
      this.video.removeAttribute("src");
      this.address = null;
      this.again.disabled = true;
      this.panel.dispatchEvent(new CustomEvent("live-change", { bubbles: true }));
    }

    async #open() {
      if (this.from === "server") return;
      if (this.from === "file") {
        const file = this.file.files[0];
        if (!file) throw new Error("No video was chosen; choose a file that this browser plays (MP4, WebM).");
        this.video.src = this.address = URL.createObjectURL(file);
        await this.video.play().catch(() => {
          throw new Error(`${file.name} is no video that this browser plays; convert it to MP4 (H.264) or WebM, or `
            + `start isinglass live ${file.name}.`);
        });
        return;
      }
      if (!navigator.mediaDevices?.getUserMedia)
        throw new Error("This page may not use a camera: browsers allow it on localhost and over https only.");
      try {
        const wanted = { width: { ideal: 1280 }, facingMode: "environment" };
        this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
      } catch (error) { throw new Error(cameraTrouble(error)); }
      await this.video.play();
    }

    #tellSettings() {
      const settings = { type: "settings", mode: this.mode, source: this.from === "server" ? "server" : "client" };
      if (!this.options.invalid()) this.socket.send(JSON.stringify({ ...settings, ...this.options.values() }));
    }

    #begin(run) {
      this.#tellSettings();
      this.again.disabled = false;
      const photo = this.mode === "reference" && this.from !== "server" && this.reference.files[0];
      if (photo) {
        this.socket.send(JSON.stringify({ type: "reference" }));
        this.socket.send(photo);
      }
      this.panel.dispatchEvent(new CustomEvent("live-change", { bubbles: true }));
      if (this.from !== "server") this.#onFrame(run);
    }

    /** Once for each frame that the video shows: it is sent if no answer is waited for, and dropped otherwise. */
    #onFrame(run) {
      if (run !== this.run) return;
      this.video.requestVideoFrameCallback((_, { presentedFrames }) => {
        if (run !== this.run) return;
        run.first ??= presentedFrames - 1;
        run.presented = presentedFrames - run.first;
        if (this.waiting === null && this.socket?.readyState === OPEN) this.#send(run);
        this.#onFrame(run);
      });
    }

    async #send(run) {
      const { videoWidth, videoHeight } = this.video;
      const scale = Math.min(1, SENT_PX / Math.max(videoWidth, videoHeight));
      const [width, height] = [videoWidth, videoHeight].map((side) => Math.round(side * scale));
      if (!width) return;
      const canvas = el("canvas", { width, height });
      canvas.getContext("2d").drawImage(this.video, 0, 0, width, height);
      this.waiting = { number: run.count++, picture: canvas, at: performance.now() };
      const content = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
      if (run !== this.run || this.socket?.readyState !== OPEN) return;
      run.sent += 1;
      this.socket.send(content);
    }

    async #hear(data, run) {
      if (typeof data !== "string") {
        const picture = await createImageBitmap(data);
        if (run === this.run && this.frame) this.#arrived({ number: this.frame.frame, picture }, run);
        return;
      }
      const message = JSON.parse(data);
      if (message.type === "problem") {
        this.waiting = null;
        this.trouble(message.detail);
      } else if (message.type === "ended") {
        this.stop();
        this.trouble("The video of the server has ended.");
      } else if (message.type === "reference") {
        this.pending = message;
        this.#settle();
      } else if (message.type === "frame") {
        this.frame = message;
        const waited = this.waiting;
        this.waiting = null;
        if (this.from !== "server" && waited) this.#arrived(waited, run);
      }
    }

    /** The picture of the frame that was answered last. */
    #arrived(last, run) {
      this.last = last;
      this.#show(run); // against the reference it was matched with
      this.#settle();
    }

    /** The reference that was told of, as soon as its picture is here. */
    #settle() {
      const message = this.pending;
      const near = message && [this.last, this.waiting].find((one) => one && one.number === message.frame);
      const view = message?.view || (near && viewOf(near.picture, message.size));
      if (!view) return;
      this.base = { frame: message.frame, keypoints: message.keypoints, view };
      this.pending = null;
    }

    #show(run) {
      if (this.pending) this.#settle();
      const { frame, base, last } = this;
      if (!base) return;
      const pairs = frame.reference === base.frame ? frame.pairs : new Int32Array(0);
      const views = [base.view, viewOf(last.picture, frame.size)];
      this.pair.setPayload({ views, keypoints: [base.keypoints, frame.keypoints], model: frame.model });
      const inliers = flat(frame.inliers);
      const colours = inliers && Array.from(inliers, (is) => variable(is ? "--inlier" : "--outlier"));
      this.pair.setMatches({ pairs, values: frame.scores, colours, dashed: inliers && inliers.map((is) => 1 - is) });
      this.#tell(run, last, inliers);
    }

    #tell(run, last, inliers) {
      const { frame } = this;
      const dropped = frame.dropped + (this.from === "server" ? 0 : Math.max(0, run.presented - run.sent));
      const latency = last.at ? performance.now() - last.at : frame.latency_ms;
      const count = frame.pairs.shape[0];
      this.numbers.replaceChildren(readout([
        [frame.rate === null ? "–" : frame.rate.toFixed(1), "frames a second"],
        [`${Math.round(latency)} ms`, "from frame to answer"],
        [String(dropped), "frames dropped"],
        [String(count), "matches"],
        inliers && [String(inliers.reduce((sum, is) => sum + is, 0)), "agree"],
      ]));
      Object.assign(this.numbers.dataset, { frame: frame.frame, dropped, matches: count });
    }
  }

  Object.assign(Isinglass, { LiveView });
})();
