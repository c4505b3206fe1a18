// A scan with a label map that can be drawn on, by NiiVue. Values of the label map are those of the dataset.

const LEVELS = { all: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 }; // NiiVue's slice types

/** An error whose message is for the user. */
function shownError(message) {
  return Object.assign(new Error(message), { shown: true });
}

export class LabelEditor {
  /** Opens a scan; `labels` are the segments, and `onPlace` is called with the position of the crosshair as a text. */
  static async open(parent, file, name, labels, onPlace) {
    if (!document.createElement("canvas").getContext("webgl2")) {
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
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Axial, coronal and sagittal slices of the scan with the label, and a 3D view");
    host.append(canvas);
    parent.replaceChildren(host);
    const niivue = new library.Niivue({
      backColor: [0, 0, 0, 1],
      clipPlaneHotKey: "", // label.js handles the keyboard
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
      crosshairColor: [0.5, 0.7, 1, 0.6],
      crosshairWidth: 0.3,
      dragAndDropEnabled: false,
      isColorbar: false,
      isRadiologicalConvention: true,
      loadingText: "",
      multiplanarShowRender: 1,
      show3Dcrosshair: true,
    });
    await niivue.attachToCanvas(canvas);
    const image = await library.NVImage.loadFromFile({ file: new File([file], name), name, colormap: "gray" });
    niivue.addVolume(image);
    niivue.setSliceType(LEVELS.all);
    const editor = new LabelEditor(host, niivue, library, labels);
    niivue.onLocationChange = (data) => onPlace(placeOf(data));
    return editor;
  }

  constructor(host, niivue, library, labels) {
    Object.assign(this, { host, niivue, library, value: null, filled: false, changed: false });
    niivue.createEmptyDrawing();
    const rows = [[0, 0, 0, 0, 0, ""], ...labels.map((one) => [one.value, ...one.colour, 255, one.name])];
    const column = (k) => rows.map((row) => row[k]);
    niivue.setDrawColormap({ I: column(0), R: column(1), G: column(2), B: column(3), A: column(4), labels: column(5) });
    niivue.onDrawingChanged = (action) => {
      if (["draw", "undo"].includes(action)) this.changed = true;
    };
    host.addEventListener("pointerup", () => this.value !== null && (this.changed = true), true);
  }

  /** Replaces the label by a label map in a NIfTI file. */
  async load(file) {
    const drawing = await this.library.NVImage.loadFromFile({ file: new File([file], "label.nii.gz"), name: "label.nii.gz" });
    drawing.img = Uint8Array.from(drawing.img);
    if (!this.niivue.loadDrawing(drawing)) throw shownError("The label has another grid than the scan.");
    this.changed = false;
  }

  /** The label as a compressed NIfTI file with the header of the scan. */
  async file() {
    const scan = this.niivue.volumes[0];
    return scan.saveToUint8Array("label.nii.gz", this.niivue.drawBitmap);
  }

  /** Draws with a value; 0 erases; with null, the pointer moves the crosshair. */
  pen(value, filled) {
    this.value = value;
    this.filled = filled;
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

  undo() {
    this.niivue.drawUndo();
  }

  clear() {
    this.niivue.drawBitmap.fill(0);
    this.niivue.drawAddUndoBitmap();
    this.niivue.refreshDrawing(true);
    this.changed = true;
  }

  opacity(value) {
    this.niivue.setDrawOpacity(value);
  }

  view(name) {
    this.niivue.setSliceType(LEVELS[name]);
  }

  close() {
    this.niivue.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.host.remove();
  }
}

/** The position of the crosshair: the voxel, counted from 1, and RAS coordinates in mm. */
function placeOf(data) {
  const voxel = [...data.vox].map((v) => Math.round(v) + 1).join(", ");
  const mm = [...data.mm].slice(0, 3).map((v) => v.toFixed(1)).join(", ");
  return `voxel ${voxel}; ${mm} mm`;
}
