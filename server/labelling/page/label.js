// The page of the labelling server: it opens a scan with its newest label, lets a person draw, and saves a new version.

import { ask, json, key, Refused } from "./api.js";
import { LabelEditor } from "./editor.js";
import { VIEWS } from "./words.js";

const NAME = "semiseg-annotator";
const TRAINING_POLL = 5000; // milliseconds between two requests for the state of a training
const $ = (id) => document.getElementById(id);

const state = {
  busy: false, // an action is running, which may replace the scan or the label
  watching: false, // the state of a training is being polled
  labels: [], // the segments of the dataset: name, value, colour
  model: "", // name of the model in use; empty if there is none
  trainer: "",
  objects: {}, // the images, by id, with their labels
  image: "", // id of the open scan
  source: "", // name of the model that drafted the label which is being edited
  editor: null,
};

async function start() {
  $("name").value = localStorage.getItem(NAME) || "";
  $("name").onchange = () => localStorage.setItem(NAME, $("name").value.trim());
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    key.set($("key").value);
    act(load);
  };
  $("next").onclick = () => act(next);
  $("scans").onchange = () => act(() => open($("scans").value));
  $("erase").onclick = () => draw(0);
  $("move").onclick = () => draw(null);
  $("fill").onchange = () => state.editor?.fill($("fill").checked);
  $("size").oninput = () => state.editor?.brush(Number($("size").value));
  $("opacity").oninput = () => state.editor?.opacity(Number($("opacity").value));
  $("undo").onclick = () => state.editor?.undo();
  $("clear").onclick = () => act(clear);
  $("draft").onclick = () => act(draft);
  $("save").onclick = () => act(() => save("final"));
  $("save-draft").onclick = () => act(() => save("draft"));
  $("train").onclick = () => act(train);
  $("stop").onclick = () => report(stopTraining);
  for (const [name, words] of Object.entries(VIEWS)) {
    $("views").append(button(words, () => {
      state.editor?.view(name);
      pressed($("views"), words);
    }));
  }
  document.addEventListener("keydown", shortcut);
  window.addEventListener("beforeunload", (event) => state.editor?.changed && event.preventDefault());
  await act(load);
}

async function load() {
  const access = await json("auth/");
  $("name-row").hidden = access.enabled; // the owner of the key is the annotator then
  try {
    state.labels = await json("labels/");
  } catch (error) {
    if (error.status === 401 && !key.get()) {
      $("key-form").hidden = false;
      return;
    }
    throw error;
  }
  $("key-form").hidden = true;
  $("segments").replaceChildren(...state.labels.map((label, k) => segmentButton(label, k)));
  await refresh();
  $("work").hidden = false;
  watchTraining(); // without waiting for its end
}

/** Reads the list of scans and the model in use. */
async function refresh() {
  const info = await json("info/");
  state.model = Object.keys(info.models)[0] || "";
  state.trainer = Object.keys(info.trainers)[0] || "";
  state.objects = (await json("datastore/?output=all")).objects;
  $("draft").hidden = !state.model;
  $("training").hidden = !state.trainer && !state.model;
  $("model").textContent = state.model && `The model in use is ${state.model}.`;
  const chosen = $("strategy").value;
  $("strategy").replaceChildren(...Object.keys(info.strategies).map((name) => new Option(name, name)));
  if (chosen) $("strategy").value = chosen;
  const nothing = new Option("—", "");
  $("scans").replaceChildren(nothing, ...Object.keys(state.objects).map((id) => new Option(`${id} (${stateOf(id)})`, id)));
  $("scans").value = state.image;
  $("counted").textContent = `${info.datastore.completed} of ${info.datastore.total} training scans are labelled.`;
}

function stateOf(id) {
  const labels = state.objects[id].labels;
  if (labels.final) return "final";
  return Object.keys(labels).length ? "draft" : "no label";
}

/** The tag of the label of a scan that was saved last; a person's draft comes before one that a model made later. */
function newestTag(id) {
  const labels = Object.entries(state.objects[id].labels);
  const version = ([, label]) => label.info.version || 0;
  const drawn = labels.filter(([tag]) => tag !== "original");
  return (drawn.length ? drawn : labels).sort((a, b) => version(a) - version(b)).at(-1)?.[0];
}

async function next() {
  if (!mayDiscard()) return;
  const strategy = $("strategy").value;
  const body = JSON.stringify({ client_id: annotator() });
  const found = await json(`activelearning/${encodeURIComponent(strategy)}`, { method: "POST", body });
  if (!found.id) return say("All training scans are labelled.");
  await show(found.id);
}

async function open(id) {
  if (!id || !mayDiscard()) {
    $("scans").value = state.image;
    return;
  }
  await show(id);
}

async function show(id) {
  say("The scan is loading.");
  await refresh();
  const file = await (await ask(`datastore/image?image=${encodeURIComponent(id)}`)).arrayBuffer();
  const tag = newestTag(id);
  const path = `datastore/label?label=${encodeURIComponent(id)}&tag=${encodeURIComponent(tag)}`;
  const label = tag ? await (await ask(path)).arrayBuffer() : null;
  close();
  $("case").hidden = false; // the canvas needs its size
  $("welcome").hidden = true;
  const known = state.objects[id];
  try {
    const name = known.image.info.name;
    const editor = await LabelEditor.open($("viewer"), file, name, state.labels, (place) => ($("place").textContent = place));
    state.editor = editor;
    if (label) await editor.load(label, `label${known.labels[tag].ext}`);
  } catch (error) {
    close(); // an empty label must not be taken for that of the scan
    $("scans").value = "";
    throw error;
  }
  state.image = id;
  $("scans").value = id;
  $("scan-title").textContent = id;
  if (tag) {
    const { who, model, state: kind } = known.labels[tag].info;
    state.source = model || "";
    const from = kind === "final" || tag !== "original" ? who && ` by ${who}` : model && ` by the model ${model}`;
    say(`The ${kind === "final" ? "final label" : "draft"}${from || ""} is shown.`);
  } else {
    say("This scan has no label yet.");
  }
  state.editor.opacity(Number($("opacity").value));
  state.editor.brush(Number($("size").value));
  pressed($("views"), VIEWS.all);
  draw(null);
  $("case").dataset.image = id; // everything is drawn
}

/** Closes the open scan. */
function close() {
  state.editor?.close();
  Object.assign(state, { editor: null, image: "", source: "" });
  $("case").dataset.image = "";
  $("case").hidden = true;
}

/** Draws a segment by its value; 0 erases, and null moves the crosshair instead. */
function draw(value) {
  if (!state.editor) return;
  state.editor.pen(value, $("fill").checked);
  $("erase").setAttribute("aria-pressed", value === 0);
  $("move").setAttribute("aria-pressed", value === null);
  for (const one of $("segments").children) one.setAttribute("aria-pressed", Number(one.value) === value);
}

function clear() {
  if (!mayDiscard("Remove the whole label? It can be undone.")) return;
  state.editor.clear();
  state.source = "";
}

async function draft() {
  if (!mayDiscard("Replace the label by the model's draft?")) return;
  const { editor, image, model } = state;
  say("The model segments the scan.");
  const form = new FormData();
  form.append("params", JSON.stringify({ client_id: annotator(), result_extension: ".nii.gz" }));
  const path = `infer/${encodeURIComponent(model)}?image=${encodeURIComponent(image)}&output=image`;
  const result = await (await ask(path, { method: "POST", body: form })).arrayBuffer();
  await editor.load(result, "label.nii.gz");
  state.source = model;
  say(`The draft by the model ${model} is shown. It may be wrong.`);
  await refresh();
}

async function save(tag) {
  const { editor, image, source } = state;
  const params = { client_id: annotator(), ...(source ? { model: source } : {}) };
  const form = new FormData();
  form.append("params", JSON.stringify(params));
  form.append("label", new Blob([await editor.file()]), "label.nii.gz");
  editor.changed = false; // strokes from here on are not in the file
  let saved;
  try {
    saved = await json(`datastore/label?image=${encodeURIComponent(image)}&tag=${tag}`, { method: "PUT", body: form });
  } catch (error) {
    editor.changed = true;
    throw error;
  }
  const names = Object.keys(saved.voxels);
  const told = names.length ? names.map((name) => `${name} ${saved.voxels[name]} voxels`).join(", ") : "nothing is drawn";
  say(`Saved as version ${saved.version} (${tag}): ${told}.`);
  await refresh();
}

async function train() {
  const body = JSON.stringify({ client_id: annotator() });
  await json(`train/${encodeURIComponent(state.trainer)}`, { method: "POST", body });
  watchTraining(); // without waiting for its end
}

async function stopTraining() {
  await json("train/", { method: "DELETE" });
}

/** Shows the state of the training until it ends; a server that does not respond is asked again. */
async function watchTraining() {
  if (state.watching || !state.trainer) return;
  state.watching = true;
  for (;;) {
    let task = null;
    let lost = false;
    try {
      task = await json("train/");
    } catch (error) {
      lost = error.status !== 404; // 404: there was no training yet
    }
    const running = task && ["SUBMITTED", "RUNNING"].includes(task.status);
    if (!lost) {
      $("training-state").textContent = task ? `Training: ${task.status.toLowerCase()}. ${task.details?.at(-1) || ""}` : "";
      $("train").hidden = Boolean(running);
      $("stop").hidden = !running;
      if (!running) break;
    }
    await new Promise((resolve) => setTimeout(resolve, TRAINING_POLL));
  }
  state.watching = false;
  await report(refresh);
}

const annotator = () => $("name").value.trim();

function mayDiscard(question = "The label has changes that are not saved. Discard them?") {
  return !state.editor?.changed || window.confirm(question);
}

function shortcut(event) {
  if (state.busy || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select")) return;
  const brush = (step) => {
    $("size").value = Number($("size").value) + step;
    state.editor?.brush(Number($("size").value));
  };
  const label = state.labels[Number(event.key) - 1];
  const actions = {
    e: () => draw(0),
    x: () => draw(null),
    f: () => $("fill").click(),
    "[": () => brush(-2),
    "]": () => brush(2),
    z: () => state.editor?.undo(),
    n: () => act(next),
  };
  const action = label ? () => draw(label.value) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function segmentButton(label, k) {
  const made = button("", () => draw(label.value));
  made.value = label.value;
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${label.colour.join(", ")})`;
  made.append(swatch, `${k < 9 ? `${k + 1} ` : ""}${label.name}`);
  return made;
}

function button(words, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = words;
  made.setAttribute("aria-pressed", "false");
  made.onclick = action;
  return made;
}

function pressed(group, words) {
  for (const one of group.children) one.setAttribute("aria-pressed", one.textContent === words);
}

function say(words) {
  $("said").textContent = words;
}

/** Runs an action that may replace the scan or the label; meanwhile nothing can be drawn and no other one begins. */
async function act(action) {
  if (state.busy) return;
  state.busy = true;
  for (const part of ["work", "case"]) $(part).inert = true;
  try {
    await report(action);
  } finally {
    for (const part of ["work", "case"]) $(part).inert = false;
    state.busy = false;
  }
}

/** Runs an action and shows its error. */
async function report(action) {
  $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    const known = error instanceof Refused || error.shown;
    if (!known) console.error(error);
    $("error").textContent = known ? error.message : `The page failed: ${error.message}`;
    $("error").hidden = false;
    if (error.status === 401) $("key-form").hidden = false; // the key was revoked, perhaps while somebody draws
    say("");
  }
}

start();
