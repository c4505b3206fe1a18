// The page: sends scans, follows their jobs, and shows the results. Data from files and the server is inserted as text.

import { Refused, ask, formOf, json, key, upload, watch } from "./api.js";
import { made, seconds, showFacts } from "./facts.js";
import { makeViewer } from "./viewer.js";
import { PRESETS, VIEWS } from "./words.js";
import { unzip } from "./zip.js";

const HISTORY = "semiseg-cases";
const KEPT = 50; // maximum number of cases in the history
const SOON = 500; // milliseconds between polls of the selected case
const LATER = 3000; // milliseconds between polls of the other cases
const at = (id) => document.getElementById(id);
const server = { models: [], jobs: false, kinds: [], dicomKinds: [] };
const cases = [];
let current = null;
let viewer = null;

// ---- start

async function begin() {
  try {
    server.models = await json("models");
    const document_ = await json("docs.json");
    server.jobs = "/jobs" in document_.paths;
    const form = document_.paths["/segment"].post.requestBody.content["multipart/form-data"].schema;
    server.kinds = form.properties.output_format.anyOf[0].enum;
    server.dicomKinds = form.properties.output_format["x-needs-dicom"];
  } catch (error) {
    at("key-form").hidden = !(error instanceof Refused && error.status === 401);
    at("form").hidden = !at("key-form").hidden;
    if (error.status !== 401 || key.get()) fail(null, error.message);
    return;
  }
  at("key-form").hidden = true;
  at("form").hidden = false;
  clearError();
  const chosen = at("model").value;
  at("model").replaceChildren(...server.models.map(({ identity }) => made("option", identity.name)));
  if (chosen) at("model").value = chosen;
  at("model-row").hidden = server.models.length < 2;
  if (!server.jobs) return;
  remember();
  for (const one of cases.filter((each) => each.locked)) {
    one.locked = false;
    follow(one);
  }
}

const stored = () => JSON.parse(localStorage.getItem(HISTORY) || "[]");

/** Restores the cases in this browser's history and follows their jobs. */
function remember() {
  for (const { number, id, time } of stored()) {
    if (cases.some((one) => one.id === id)) continue;
    cases.push({ number, id, time, files: null, state: "waiting", told: "", stop: new AbortController() });
    follow(cases[cases.length - 1]);
  }
  list();
}

/** Writes the cases of this tab and of other tabs to the history, without the case `gone`. */
function writeHistory(gone) {
  if (!server.jobs) return;
  const mine = cases.filter((one) => one.id).map(({ number, id, time }) => ({ number, id, time }));
  const others = stored().filter(({ id }) => !mine.some((one) => one.id === id));
  const kept = [...others, ...mine].filter(({ id }) => id !== gone).slice(-KEPT);
  localStorage.setItem(HISTORY, JSON.stringify(kept));
}

// ---- the states of a case

function send(files) {
  if (!files.length) return;
  const number = 1 + Math.max(0, ...cases.map((one) => one.number));
  const time = new Date().toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const one = { number, id: null, time, files, state: "sending", told: "", stop: new AbortController() };
  one.model = server.models.length > 1 ? at("model").value : "";
  cases.push(one);
  choose(one);
  live(one);
}

async function live(one) {
  const sent = (done, total) => {
    one.sent = done >= total;
    tell(one, one.sent ? "running" : "sending", done, total, "");
  };
  try {
    const form = () => formOf(one.files, one.model, "viewer-bundle");
    if (server.jobs) {
      const same = crypto.getRandomValues(new Uint32Array(4)).join("-");
      const post = () => upload("jobs", form(), sent, one.stop.signal, same);
      // Retried once after a lost connection: with the same Idempotency-Key there is only one job.
      const answer = await post().catch((error) => (error.status === 0 ? post() : Promise.reject(error)));
      one.id = JSON.parse(new TextDecoder().decode(answer)).id;
      writeHistory();
      if (one.unwanted) await cancel(one);
      await follow(one);
    } else {
      one.case = unzip(await upload("segment", form(), sent, one.stop.signal));
      end(one, "done");
    }
  } catch (error) {
    stopped(one, error);
  }
}

async function follow(one) {
  try {
    const pause = () => (one === current ? SOON : LATER);
    const job = await watch(one.id, (told) => {
      const left = told.seconds_left === null ? "" : `, ${seconds(told.seconds_left)} left`;
      const ahead = told.ahead ? `, ${told.ahead} ahead of it` : "";
      tell(one, told.state, told.windows_done, told.windows_total, told.state === "waiting" ? ahead : left);
    }, pause);
    if (job.state === "failed") one.error = job.error;
    end(one, job.state);
  } catch (error) {
    stopped(one, error);
  }
}

function stopped(one, error) {
  if (error.name === "AbortError") return end(one, "cancelled");
  if (error.status === 404 && !one.files) return end(one, "gone");
  if (error.status === 401) begin();
  if (error.status === 401 && one.id) {
    one.locked = true; // followed again once there is a valid key
    return undefined;
  }
  one.error = error.message;
  return end(one, "failed");
}

function tell(one, state, done, total, more) {
  const words = { sending: "Sending", waiting: "Waiting", running: "Segmenting", done: "Done" };
  Object.assign(one, { state, done, total, told: `${words[state] || state}${more}` });
  list();
  if (one === current) progress(one);
}

function end(one, state) {
  one.state = state;
  if (state === "gone") cases.splice(cases.indexOf(one), 1);
  writeHistory(state === "gone" ? one.id : undefined);
  list();
  const words = { done: "is segmented", failed: "failed", cancelled: "was stopped" };
  if (words[state]) at("said").textContent = `Case ${one.number} ${words[state]}.`;
  if (one === current) choose(one);
}

async function cancel(one) {
  if (one.id) {
    await ask(`jobs/${one.id}?only=stop`, { method: "DELETE" }).catch((error) => fail(one, error.message));
  } else if (one.sent && server.jobs) {
    one.unwanted = true; // the server has made a job of it, which is stopped as soon as its id is known
  } else {
    one.stop.abort();
  }
}

// ---- display

/** Updates the list; the buttons are reused, so that none loses the focus. */
function list() {
  at("no-cases").hidden = cases.length > 0;
  at("forget").hidden = !cases.length;
  const words = { done: "segmented", failed: "failed", cancelled: "stopped" };
  for (const one of cases) {
    if (!one.item) {
      one.item = made("li");
      one.button = made("button", `Case ${one.number}`, { type: "button" });
      one.button.append(made("small"));
      one.button.onclick = () => choose(one);
      one.item.append(one.button);
    }
    const percent = one.total && one.state === "running" ? ` ${Math.floor((100 * one.done) / one.total)} %` : "";
    one.button.querySelector("small").textContent = `${one.time}, ${words[one.state] || one.told || one.state}${percent}`;
    one.button.setAttribute("aria-current", String(one === current));
    if (one.item.parentNode !== at("cases")) at("cases").append(one.item);
  }
  [...at("cases").children].forEach((item) => cases.some((one) => one.item === item) || item.remove());
}

function progress(one) {
  const going = ["sending", "waiting", "running"].includes(one.state);
  at("progress").hidden = !going;
  if (!going) return;
  at("progress-title").textContent = `Case ${one.number}`;
  const bar = at("bar");
  if (one.total && one.state !== "waiting") {
    bar.max = one.total;
    bar.value = one.done;
  } else {
    bar.removeAttribute("value");
  }
  at("status").textContent = one.told;
}

let turn = 0; // number of the selection; late results of an earlier selection are discarded

async function choose(one) {
  turn += 1;
  const mine = turn;
  if (current && current !== one && current.id) current.case = undefined; // can be fetched from the server again
  current = one;
  clearError();
  list();
  progress(one);
  at("welcome").hidden = true;
  at("case").hidden = true;
  delete at("viewer").dataset.shown;
  viewer?.close();
  viewer = null;
  if (one.state === "failed") fail(one, one.error);
  if (one.state === "cancelled") fail(one, "This case was stopped.");
  if (one.state !== "done") return;
  try {
    one.case ??= unzip(await (await ask(`jobs/${one.id}/result`)).arrayBuffer());
    if (mine === turn) await show(one, mine);
  } catch (error) {
    if (mine === turn) fail(one, error.message);
  }
}

async function show(one, mine) {
  const report = JSON.parse(new TextDecoder().decode(one.case.get("report.json")));
  const model = server.models.find(({ identity }) => identity.sha256 === report.model.sha256);
  const segments = model ? model.segments : report.segments.map((s) => ({ ...s, colour: [230, 60, 60], values: [] }));
  at("case").hidden = false;
  const kinds = server.kinds.filter((kind) => report.series || !server.dicomKinds.includes(kind));
  showFacts(report, segments, kinds, shown, (kind, button) => save(one, kind, button));
  const opened = await makeViewer(at("viewer"), one.case, report, segments);
  if (mine !== turn) {
    opened.close();
    return;
  }
  viewer = opened;
  at("opacity").disabled = viewer.plain;
  at("preset-row").hidden = viewer.plain || report.series?.modality !== "CT";
  at("preset").value = "";
  viewer.opacity(Number(at("opacity").value));
  press("all");
  document.querySelectorAll("#segments input").forEach((box) => (box.disabled = viewer.plain));
  at("viewer").dataset.shown = viewer.plain ? "pictures" : "volumes";
}

function shown() {
  const boxes = [...document.querySelectorAll("#segments input")];
  viewer?.show(new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.segment)));
}

async function save(one, kind, button) {
  button.disabled = true;
  clearError();
  try {
    const response = await answer(one, kind);
    const link = made("a", "", { href: URL.createObjectURL(await response.blob()) });
    link.download = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition"))[1];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    fail(one, error.message);
  } finally {
    button.disabled = false;
  }
}

/** Fetches one output format from the job or, if the job cannot provide it, by sending the scan again. */
async function answer(one, kind) {
  const again = () => ask("segment", { method: "POST", body: formOf(one.files, one.model, kind) });
  if (!one.id) return again();
  try {
    return await ask(`jobs/${one.id}/result?output_format=${kind}`);
  } catch (error) {
    if (error.status === 400 && one.files) return again();
    throw error;
  }
}

/** Shows an error of the selected case or, with null, of the page; errors of other cases are not shown. */
function fail(one, sentence) {
  if (one && one !== current) return;
  at("error").textContent = sentence;
  at("error").hidden = false;
}

function clearError() {
  at("error").hidden = true;
  at("error").textContent = "";
}

// ---- user input

function press(view) {
  document.querySelectorAll("#views button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.view === view)));
  viewer?.view(view);
}

function step(by) {
  const k = cases.indexOf(current) + by;
  if (cases[k]) choose(cases[k]);
}

/** The dropped files, including those in dropped folders. */
async function dropped(items_) {
  const entries = [...items_].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  const open = async (entry) => {
    if (entry.isFile) return files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    const reader = entry.createReader();
    for (;;) {
      const found = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!found.length) return undefined;
      for (const one of found) await open(one);
    }
  };
  for (const entry of entries) await open(entry);
  return files.filter((file) => !file.name.startsWith("."));
}

for (const id of ["scan", "folder"]) {
  at(id).onchange = () => {
    send([...at(id).files].filter((file) => !file.name.startsWith(".")));
    at(id).value = "";
  };
}
const drop = at("drop");
drop.ondragover = (event) => {
  event.preventDefault();
  drop.classList.add("over");
};
drop.ondragleave = () => drop.classList.remove("over");
document.ondragover = (event) => event.preventDefault();
document.ondrop = async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (at("form").hidden) return; // an API key is needed first
  send(await dropped(event.dataTransfer.items));
};
at("key-form").onsubmit = (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  at("key").value = "";
  begin();
};
at("cancel").onclick = () => cancel(current);
at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
at("opacity").oninput = () => viewer?.opacity(Number(at("opacity").value));
at("forget").onclick = async () => {
  for (const one of cases) if (one.id) await ask(`jobs/${one.id}`, { method: "DELETE" }).catch(() => {});
  localStorage.removeItem(HISTORY);
  location.reload();
};
at("views").append(
  ...Object.entries(VIEWS).map(([view, words]) => {
    const button = made("button", words, { type: "button", "data-view": view, "aria-pressed": "false" });
    button.onclick = () => press(view);
    return button;
  }),
);
at("preset").append(made("option", "Default", { value: "" }), ...Object.keys(PRESETS).map((name) => made("option", name)));
at("preset").onchange = () => {
  const preset = PRESETS[at("preset").value];
  viewer?.window(preset ? [preset[0] - preset[1] / 2, preset[0] + preset[1] / 2] : null);
};
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const moves = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0] };
  if (event.key === "n") step(1);
  else if (event.key === "p") step(-1);
  else if (event.key === "m") {
    at("opacity").value = Number(at("opacity").value) > 0 ? 0 : 0.5;
    viewer?.opacity(Number(at("opacity").value));
  } else if (/^[1-5]$/.test(event.key)) press(Object.keys(VIEWS)[Number(event.key) - 1]);
  else if (moves[event.key] && event.target.tagName === "CANVAS") viewer?.move(...moves[event.key]);
  else return;
  event.preventDefault();
  event.stopPropagation();
}
document.addEventListener("keydown", pressed, true); // in the capture phase, before the viewer's own shortcuts

begin();
