// A scan with a label map that can be drawn on, by NiiVue. Values of the label map are those of the dataset.

import { closeCanvas, hasWebGL2, LEVELS, openCanvas, openVolume } from "./canvas.js";

const UNDOABLE = 6; // strokes; NiiVue keeps 8 states of the drawing

/** An error whose message is for the user. */
function shownError(message) {
  return Object.assign(new Error(message), { shown: true });
}

export class LabelEditor {
  /** Opens a scan; `labels` are the segments, and `onPlace` is called with the position of the crosshair as a text. */
  static async open(parent, file, name, labels, onPlace) {
    if (!hasWebGL2()) {
      throw shownError("Drawing needs a browser with WebGL 2. 3D Slicer with the extension MONAI Label can be used instead.");
    }
    let library;
    try {
      library = await import("./niivue.js");
    } catch {
      throw shownError("The viewer is not installed on this server (`make page`); 3D Slicer can be used instead.");
    }
    const host = document.createElement("div");
    host.className = "view";
    parent.replaceChildren(host);
    const description = "Axial, coronal and sagittal slices of the scan with the label, and a 3D view";
    const niivue = await openCanvas(host, library, description);
    const image = await openVolume(library, file, name, { colormap: "gray" });
    niivue.addVolume(image);
    niivue.setSliceType(LEVELS.all);
    const editor = new LabelEditor(host, niivue, library, labels);
    niivue.onLocationChange = (data) => onPlace(placeOf(data));
    return editor;
  }

  constructor(host, niivue, library, labels) {
    Object.assign(this, { host, niivue, library, value: null, changed: false });
    niivue.createEmptyDrawing();
    const rows = [[0, 0, 0, 0, 0, ""], ...labels.map((one) => [one.value, ...one.colour, 255, one.name])];
    const column = (k) => rows.map((row) => row[k]);
    niivue.setDrawColormap({ I: column(0), R: column(1), G: column(2), B: column(3), A: column(4), labels: column(5) });
    this.drawing = false; // the button of the pointer is down, and something is drawn
    this.strokes = 0; // number of strokes that can be undone
    host.addEventListener("pointerdown", () => this.begin(), true);
    window.addEventListener("pointerup", this.ended = () => setTimeout(() => this.end(), 0)); // after NiiVue's listener
  }

  begin() {
    if (this.value === null) return;
    this.drawing = true;
    this.changed = true;
    this.before = this.niivue.currentDrawUndoBitmap;
  }

  end() {
    if (!this.drawing) return;
    this.drawing = false;
    // NiiVue keeps no state of a stroke that ends outside the canvas.
    if (this.niivue.currentDrawUndoBitmap === this.before) this.niivue.drawAddUndoBitmap();
    this.strokes = Math.min(this.strokes + 1, UNDOABLE);
  }

  /** Replaces the label by a label map in a file. */
  async load(file, name) {
    let drawing;
    try {
      drawing = await openVolume(this.library, file, name);
    } catch {
      throw shownError("The label of this scan cannot be read by the viewer; 3D Slicer can be used instead.");
    }
    const { scl_slope: slope, scl_inter: offset } = drawing.hdr;
    const scale = slope && Number.isFinite(slope) ? slope : 1;
    drawing.img = Uint8Array.from(drawing.img, (value) => Math.round(value * scale + (offset || 0)));
    if (!this.niivue.loadDrawing(drawing)) throw shownError("The label has another grid than the scan.");
    this.strokes = 0;
    this.changed = false;
  }

  /** The label as a compressed NIfTI file with the header of the scan, which is 3D also if the scan has channels. */
  async file() {
    const scan = this.niivue.volumes[0];
    const dims = scan.hdr.dims;
    scan.hdr.dims = [3, dims[1], dims[2], dims[3], 1, 1, 1, 1];
    try {
      return await scan.saveToUint8Array("label.nii.gz", this.niivue.drawBitmap);
    } finally {
      scan.hdr.dims = dims;
    }
  }

  /** Draws with a value; 0 erases; with null, the pointer moves the crosshair. */
  pen(value, filled) {
    this.value = value;
    this.niivue.setDrawingEnabled(value !== null);
    if (value !== null) this.niivue.setPenValue(value, filled && value > 0);
  }

  fill(filled) {
    this.pen(this.value, filled);
  }

  /** The width of the brush in voxels. */
  brush(size) {
    this.niivue.opts.penSize = size;
  }

  /** Takes back the last stroke; NiiVue's history is a ring, so no more is undone than was drawn. */
  undo() {
    if (!this.strokes) return;
    this.strokes -= 1;
    this.niivue.drawUndo();
    this.changed = true;
  }

  clear() {
    this.niivue.drawBitmap.fill(0);
    this.niivue.drawAddUndoBitmap();
    this.niivue.refreshDrawing(true);
    this.strokes = Math.min(this.strokes + 1, UNDOABLE);
    this.changed = true;
  }

  opacity(value) {
    this.niivue.setDrawOpacity(value);
  }

  view(name) {
    this.niivue.setSliceType(LEVELS[name]);
  }

  close() {
    window.removeEventListener("pointerup", this.ended);
    closeCanvas(this.niivue);
    this.host.remove();
  }
}

/** The position of the crosshair: the voxel, counted from 1, and RAS coordinates in mm. */
function placeOf(data) {
  const voxel = [...data.vox].map((v) => Math.round(v) + 1).join(", ");
  const mm = [...data.mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ");
  return `voxel ${voxel}; ${mm} mm`;
}
