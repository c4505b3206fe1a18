// A canvas with NiiVue, for the page of the segmentation server and that of the labelling server.

export const LEVELS = { all: 3, axial: 0, coronal: 1, sagittal: 2, render: 4 }; // NiiVue's slice types

export const hasWebGL2 = () => Boolean(document.createElement("canvas").getContext("webgl2"));

/** Adds a canvas with a description to an element; resolves to NiiVue's object, which draws on it. */
export async function openCanvas(host, { Niivue }, description) {
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", description);
  host.append(canvas);
  const niivue = new Niivue({
    backColor: [0, 0, 0, 1],
    clipPlaneHotKey: "", // the pages handle the keyboard
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
  return niivue;
}

/** Opens a file with a volume. */
export const openVolume = ({ NVImage }, content, name, options) =>
  NVImage.loadFromFile({ file: new File([content], name), name, ...options });

/** Gives the memory of a canvas back. */
export function closeCanvas(niivue) {
  niivue.gl?.getExtension("WEBGL_lose_context")?.loseContext();
}
