/* Work that the server does: sent, watched, cancelled. */
"use strict";
(() => {
  const { el } = Isinglass;
  const LOOK_MS = [120, 200, 300, 500]; // from one look to the next, the last again and again
  const STAGES = { queued: "Waiting", running: "At work" };

  /** What went wrong, in words for people. */
  class Trouble extends Error {}

  /** The JSON of an answer, or Trouble with what the server says. */
  async function ask(address, request = {}) {
    let answer;
    try { answer = await fetch(address, request); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server does not answer. Is `isinglass app` still running?");
    }
    if (answer.ok) return answer.json();
    const told = await answer.json().catch(() => null);
    throw new Trouble(told?.detail ? sentence(said(told.detail)) : `The server answered ${answer.status}.`);
  }

  const said = (detail) => (typeof detail === "string" ? detail : detail.map((one) => one.msg).join("; "));
  /** With a capital, unless it begins with the name of a file or option, and a full stop. */
  function sentence(text) {
    const isName = /[._]/.test(text.split(" ")[0].replace(/[.:]$/, ""));
    return (isName ? text[0] : text.charAt(0).toUpperCase()) + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
  }


  /**
   * Does the work of a form: `tell(job)` hears where it stands; `signal` cancels it. The result {id, payload}, or null
   * if it was cancelled. Throws Trouble.
   */
  async function runJob(form, tell, signal) {
    const { id } = await ask("/jobs", { method: "POST", body: form });
    const cancel = () => ask(`/jobs/${id}`, { method: "DELETE", keepalive: true }).catch(() => null);
    const leaving = new AbortController();
    window.addEventListener("pagehide", cancel, { signal: leaving.signal });
    try { return await watch(id, cancel, tell, signal); } finally { leaving.abort(); }
  }

  async function watch(id, cancel, tell, signal) {
    for (let look = 0; ; look++) {
      if (signal.aborted) { await cancel(); return null; }
      const job = await ask(`/jobs/${id}`);
      if (job.state === "done") return { id, payload: await ask(`/jobs/${id}/result`) };
      if (job.state === "failed") throw new Trouble(sentence(job.error || "The job failed"));
      if (job.state === "cancelled") return null;
      tell(job);
      await pause(LOOK_MS[Math.min(look, LOOK_MS.length - 1)], signal);
    }
  }

  function pause(ms, signal) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
    });
  }

  /** Where a job stands, in `place`. */
  function showProgress(place, job) {
    if (!job) return place.replaceChildren();
    const before = job.position === 1 ? "1 job is before it" : `${job.position} jobs are before it`;
    const isBehind = job.state === "queued" && job.position > 0;
    const text = isBehind ? `Waiting: ${before}` : sentence(job.stage || STAGES[job.state]);
    let bar = place.querySelector("progress");
    if (!bar) place.replaceChildren(el("p", {}), bar = el("progress", { max: 1, "aria-label": "Progress" }));
    place.firstChild.textContent = text.replace(/\.$/, "");
    if (job.state === "running" && typeof job.progress === "number") bar.value = job.progress;
    else bar.removeAttribute("value");
  }

  Object.assign(Isinglass, { Trouble, ask, runJob, showProgress });
})();
