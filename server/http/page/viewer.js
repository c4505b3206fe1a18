// Shows a scan with its mask: with NiiVue if it is installed and the browser has WebGL 2, otherwise as images that the
// server has rendered.

import { closeCanvas, hasWebGL2, LEVELS, openCanvas, openVolume } from "./canvas.js";

/** Creates a viewer in a new element, `viewer.host`; `case_` is a Map of the files of the viewer bundle. */
export async function makeViewer(parent, case_, report, segments) {
  const host = document.createElement("div");
  host.className = "view";
  parent.append(host); // the canvas needs its size
  try {
    return await Volumes.open(host, case_, report, segments);
  } catch (error) {
    console.info(`Images are shown instead of the viewer: ${error.message}`);
    host.replaceChildren();
    return new Pictures(host, case_);
  }
}

class Volumes {
  static async open(host, case_, report, segments) {
    if (!hasWebGL2()) throw new Error("this browser has no WebGL 2");
    const library = await import("./niivue.js");
    const volumes = report.segments.map((s) => `${s.name} ${s.ml.toFixed(1)} ml`).join(", ");
    const description = `Axial, coronal and sagittal slices and a 3D view. ${volumes}.`;
    const niivue = await openCanvas(host, library, description);
    const viewer = new Volumes(host, niivue, segments);
    const image = (name, options) => openVolume(library, case_.get(name), name, options);
    niivue.addVolume(await image("scan.nii.gz", { colormap: "gray" }));
    const regions = segments.some((segment) => segment.values.length > 0);
    const masks = regions ? segments.map((segment) => [segment]) : [segments];
    for (const [frame, shown] of masks.entries()) {
      const mask = await image("mask.nii.gz", { opacity: 0.5, frame4D: regions ? frame : 0 });
      niivue.addVolume(mask);
      viewer.masks.push({ mask, shown, regions });
    }
    niivue.setSliceType(LEVELS.all);
    viewer.show(new Set(segments.map((segment) => segment.name)));
    const scan = niivue.volumes[0];
    viewer.automatic = [scan.cal_min, scan.cal_max];
    return viewer;
  }

  constructor(host, niivue, segments) {
    this.host = host;
    this.niivue = niivue;
    this.segments = segments;
    this.masks = [];
    this.plain = false;
  }

  /** Shows the segments with these names in their colours and hides the others. */
  show(names) {
    for (const { mask, shown, regions } of this.masks) {
      const labels = [[0, 0, 0, 0, 0, ""]];
      for (const segment of shown) {
        labels.push([regions ? 1 : segment.label, ...segment.colour, names.has(segment.name) ? 255 : 0, segment.name]);
      }
      mask.setColormapLabel({
        I: labels.map((row) => row[0]),
        R: labels.map((row) => row[1]),
        G: labels.map((row) => row[2]),
        B: labels.map((row) => row[3]),
        A: labels.map((row) => row[4]),
        labels: labels.map((row) => row[5]),
      });
    }
    this.niivue.updateGLVolume();
  }

  opacity(value) {
    this.masks.forEach((_, k) => this.niivue.setOpacity(k + 1, value));
  }

  view(name) {
    this.niivue.setSliceType(LEVELS[name]);
  }

  /** Sets the range of values from black to white; null restores the scan's default. */
  window(range) {
    const scan = this.niivue.volumes[0];
    [scan.cal_min, scan.cal_max] = range || this.automatic;
    this.niivue.updateGLVolume();
  }

  move(x, y, z) {
    this.niivue.moveCrosshairInVox(x, y, z);
  }

  close() {
    closeCanvas(this.niivue);
    this.host.remove();
  }
}

class Pictures {
  constructor(host, case_) {
    this.host = host;
    this.plain = true;
    this.addresses = [];
    const all = document.createElement("div");
    all.className = "pictures";
    this.figures = new Map();
    for (const plane of ["axial", "coronal", "sagittal"]) {
      const names = [...case_.keys()].filter((name) => name.startsWith(plane)).sort();
      const figure = document.createElement("figure");
      const image = document.createElement("img");
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: 0, max: names.length - 1, value: Math.floor(names.length / 2) });
      slider.setAttribute("aria-label", `${plane} slice`);
      const addresses = names.map((name) => URL.createObjectURL(new Blob([case_.get(name)], { type: "image/png" })));
      this.addresses.push(...addresses);
      const draw = () => {
        image.src = addresses[slider.value];
        image.alt = `${plane} slice ${Number(slider.value) + 1} of ${names.length}, with outlines`;
      };
      slider.oninput = draw;
      draw();
      figure.append(image, slider);
      all.append(figure);
      this.figures.set(plane, figure);
    }
    host.append(all);
  }

  show() {}

  opacity() {}

  window() {}

  move() {}

  view(name) {
    const one = this.figures.has(name);
    for (const [plane, figure] of this.figures) figure.hidden = one && name !== plane;
  }

  close() {
    this.addresses.forEach((address) => URL.revokeObjectURL(address));
    this.host.remove();
  }
}
