// Labels of the page.

export const VIEWS = { all: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3D" };
export const PRESETS = { // centre and width in Hounsfield units
  "Soft tissue": [40, 400],
  Lung: [-600, 1500],
  Bone: [400, 1800],
  Brain: [40, 80],
  Liver: [60, 160],
};
export const FORMS = {
  nifti: "NIfTI mask",
  "nifti-labelmap": "NIfTI label map",
  seg: "DICOM SEG",
  "seg-labelmap": "DICOM SEG (label map)",
  "seg-fractional": "DICOM SEG (probabilities)",
  rtstruct: "DICOM RTSTRUCT",
  sr: "DICOM SR",
  overlay: "DICOM images with outlines",
  json: "JSON report",
  "viewer-bundle": "Viewer bundle",
  "seg-nrrd": "3D Slicer segmentation",
  nrrd: "NRRD mask",
};
