// The panel beside the viewer: warnings, volumes and downloads. Data from files and the server is inserted as text.

import { FORMS } from "./words.js";

const at = (id) => document.getElementById(id);

/** Creates an element with text and attributes. */
export function made(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

/** Formats a duration in seconds. */
export function seconds(value) {
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return `${Math.round(value / 60)} min`;
}

/** Shows warnings, volumes, skipped series and downloads; `toggled` is called when a segment is switched on or off,
 * `wanted` when one of the output formats `kinds` is requested. */
export function showFacts(report, segments, kinds, toggled, wanted) {
  items("remarks", report.remarks.map((remark) => made("li", remark.text, { "data-code": remark.code })));
  const out = report.selection.filter((series) => series.channel === null);
  items("left-out", out.map((series) => made("li", `${series.description || series.uid}: ${series.reason}`)));
  table(report, segments, toggled);
  downloads(kinds, wanted);
  const counts = report.window_counts;
  const skipped = counts && counts.run < counts.planned
    ? ` ${counts.run} of the ${counts.planned} windows of a full pass were run. ${counts.reason}` : "";
  at("model-told").textContent =
    `Segmented by ${report.model.name} (${report.model.method}, ${report.model.precision}) in ` +
    `${report.windows} windows, ${seconds(Object.values(report.seconds).reduce((a, b) => a + b, 0))}.` +
    `${skipped} ${report.notice}.`;
}

function items(id, found) {
  at(id).hidden = !found.length;
  at(id).querySelector("ul").replaceChildren(...found);
}

function table(report, segments, toggled) {
  const colours = new Map(segments.map((segment) => [segment.name, segment.colour]));
  at("segments").tBodies[0].replaceChildren(
    ...report.segments.map(({ name, ml }) => {
      const box = made("input", "", { type: "checkbox", "aria-label": `show ${name}`, "data-segment": name });
      box.checked = true;
      box.onchange = toggled;
      const swatch = made("span", "", { class: "swatch" });
      swatch.style.background = `rgb(${colours.get(name) || [128, 128, 128]})`;
      const row = made("tr");
      const [first, second] = [made("td"), made("th", "", { scope: "row" })];
      first.append(box);
      second.append(swatch, name);
      row.append(first, second, made("td", ml.toFixed(2), { class: "number" }));
      return row;
    }),
  );
}

function downloads(kinds, wanted) {
  at("downloads").replaceChildren(
    ...kinds.map((kind) => {
      const button = made("button", FORMS[kind] || kind, { type: "button", "data-kind": kind });
      button.onclick = () => wanted(kind, button);
      const item = made("li");
      item.append(button);
      return item;
    }),
  );
}
