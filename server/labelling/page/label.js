// The page of the labelling server: it opens a scan with its newest label, lets a person draw, and saves a new version.

import { ask, json, key, Refused } from "./api.js";
import { LabelEditor } from "./editor.js";
import { VIEWS } from "./words.js";

const NAME = "semiseg-annotator";
const TRAINING_POLL = 5000; // milliseconds between two requests for the state of a training
const $ = (id) => document.getElementById(id);

const state = {
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
    report(load);
  };
  $("next").onclick = () => report(next);
  $("scans").onchange = () => report(() => open($("scans").value));
  $("erase").onclick = () => draw(0);
  $("move").onclick = () => draw(null);
  $("fill").onchange = () => state.editor.fill($("fill").checked);
  $("size").oninput = () => state.editor.brush(Number($("size").value));
  $("opacity").oninput = () => state.editor.opacity(Number($("opacity").value));
  $("undo").onclick = () => state.editor.undo();
  $("clear").onclick = () => mayDiscard("Remove the whole label? It can be undone.") && state.editor.clear();
  $("draft").onclick = () => report(draft);
  $("save").onclick = () => report(() => save("final"));
  $("save-draft").onclick = () => report(() => save("draft"));
  $("train").onclick = () => report(train);
  $("stop").onclick = () => report(stopTraining);
  for (const [name, words] of Object.entries(VIEWS)) {
    $("views").append(button(words, () => {
      state.editor.view(name);
      pressed($("views"), words);
    }));
  }
  document.addEventListener("keydown", shortcut);
  window.addEventListener("beforeunload", (event) => state.editor?.changed && event.preventDefault());
  await report(load);
}

async function load() {
  const access = await json("auth/");
  $("name-row").hidden = access.enabled; // the owner of the key is the annotator then
  try {
    state.labels = await json("labels/");
  } catch (error) {
    if (error.status !== 401) throw error;
    $("key-form").hidden = false;
    if (key.get()) throw error;
    return;
  }
  $("key-form").hidden = true;
  $("segments").replaceChildren(...state.labels.map((label, k) => segmentButton(label, k)));
  await refresh();
  $("work").hidden = false;
  if (state.trainer) await report(watchTraining);
}

/** Reads the list of scans and the model in use. */
async function refresh() {
  const info = await json("info/");
  state.model = Object.keys(info.models)[0] || "";
  state.trainer = Object.keys(info.trainers)[0] || "";
  state.objects = (await json("datastore/?output=all")).objects;
  $("draft").hidden = !state.model;
  $("training").hidden = !state.trainer && !state.model;
  $("train").hidden = !state.trainer;
  if (!state.trainer) $("training-state").textContent = state.model && `The model in use is ${state.model}.`;
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

/** The tag of the newest label of a scan: a final label comes before drafts. */
function newestTag(id) {
  const tags = Object.keys(state.objects[id].labels);
  return tags.includes("final") ? "final" : tags.at(-1);
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
  state.editor?.close();
  state.editor = null;
  state.image = "";
  state.source = "";
  $("case").hidden = false; // the canvas needs its size
  $("welcome").hidden = true;
  try {
    const name = state.objects[id].image.info.name;
    state.editor = await LabelEditor.open($("viewer"), file, name, state.labels, (place) => ($("place").textContent = place));
  } catch (error) {
    $("case").hidden = true;
    throw error;
  }
  state.image = id;
  $("scans").value = id;
  $("scan-title").textContent = id;
  $("case").dataset.image = "";
  const tag = newestTag(id);
  if (tag) {
    const label = await (await ask(`datastore/label?label=${encodeURIComponent(id)}&tag=${encodeURIComponent(tag)}`)).arrayBuffer();
    await state.editor.load(label);
    const info = state.objects[id].labels[tag].info;
    state.source = info.model || "";
    const from = info.model ? ` by the model ${info.model}` : info.who ? ` by ${info.who}` : "";
    say(`The ${stateOf(id) === "final" ? "final label" : "draft"}${from} is shown.`);
  } else {
    say("This scan has no label yet.");
  }
  state.editor.opacity(Number($("opacity").value));
  state.editor.brush(Number($("size").value));
  pressed($("views"), VIEWS.all);
  draw(null);
  $("case").dataset.image = id; // everything is drawn
}

/** Draws a segment by its value; 0 erases, and null moves the crosshair instead. */
function draw(value) {
  state.editor.pen(value, $("fill").checked);
  $("erase").setAttribute("aria-pressed", value === 0);
  $("move").setAttribute("aria-pressed", value === null);
  for (const one of $("segments").children) one.setAttribute("aria-pressed", Number(one.value) === value);
}

async function draft() {
  if (!mayDiscard("Replace the label by the model's draft?")) return;
  say("The model segments the scan.");
  const form = new FormData();
  form.append("params", JSON.stringify({ client_id: annotator(), result_extension: ".nii.gz" }));
  const path = `infer/${encodeURIComponent(state.model)}?image=${encodeURIComponent(state.image)}&output=image`;
  const result = await (await ask(path, { method: "POST", body: form })).arrayBuffer();
  await state.editor.load(result);
  state.source = state.model;
  say(`The draft by the model ${state.model} is shown. It may be wrong.`);
  await refresh();
}

async function save(tag) {
  const form = new FormData();
  const params = { client_id: annotator(), ...(state.source ? { model: state.source } : {}) };
  form.append("params", JSON.stringify(params));
  form.append("label", new Blob([await state.editor.file()]), "label.nii.gz");
  const path = `datastore/label?image=${encodeURIComponent(state.image)}&tag=${tag}`;
  const saved = await json(path, { method: "PUT", body: form });
  state.editor.changed = false;
  const names = Object.keys(saved.voxels);
  const told = names.length ? names.map((name) => `${name} ${saved.voxels[name]} voxels`).join(", ") : "nothing is drawn";
  say(`Saved as version ${saved.version} (${tag}): ${told}.`);
  await refresh();
}

async function train() {
  await json(`train/${encodeURIComponent(state.trainer)}`, {
    method: "POST",
    body: JSON.stringify({ client_id: annotator() }),
  });
  await watchTraining();
}

async function stopTraining() {
  await json("train/", { method: "DELETE" });
}

/** Shows the state of the training until it ends. */
async function watchTraining() {
  for (;;) {
    let task = null;
    try {
      task = await json("train/");
    } catch (error) {
      if (error.status !== 404) throw error; // there was no training yet
    }
    const running = task && ["SUBMITTED", "RUNNING"].includes(task.status);
    const words = task ? [`Training: ${task.status.toLowerCase()}.`, task.details?.at(-1) || ""] : [];
    $("training-state").textContent = [...words, state.model && `The model in use is ${state.model}.`].filter(Boolean).join(" ");
    $("train").hidden = Boolean(running);
    $("stop").hidden = !running;
    if (!running) return refresh();
    await new Promise((resolve) => setTimeout(resolve, TRAINING_POLL));
  }
}

const annotator = () => $("name").value.trim();

function mayDiscard(question = "The label has changes that are not saved. Discard them?") {
  return !state.editor?.changed || window.confirm(question);
}

function shortcut(event) {
  if (!state.editor || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select")) return;
  const brush = (step) => {
    $("size").value = Number($("size").value) + step;
    state.editor.brush(Number($("size").value));
  };
  const label = state.labels[Number(event.key) - 1];
  const actions = {
    e: () => draw(0),
    x: () => draw(null),
    f: () => $("fill").click(),
    "[": () => brush(-2),
    "]": () => brush(2),
    z: () => state.editor.undo(),
    n: () => report(next),
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
    say("");
  }
}

start();
