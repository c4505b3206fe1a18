// Read each case's SEG with the adapters that OHIF uses, and compare voxel by voxel; a Markdown table.
//
//     npm install @cornerstonejs/adapters @babel/runtime       (in a folder of its own, NODE below)
//     cp docs/results/readers_of_results/*.mjs NODE && node NODE/read_cornerstone.mjs FOLDER > .../cornerstone.md
//
// FOLDER is the one that cases.py wrote; truth.py's `python truth.py FOLDER` has written truth.json and truth.bin there.

import fs from "node:fs";
import path from "node:path";
import { cache, metaData } from "@cornerstonejs/core";
import { adaptersSEG } from "@cornerstonejs/adapters";
import dcmjs from "dcmjs";

const { createFromDICOMSegBuffer } = adaptersSEG.Cornerstone3D.Segmentation;
const { DicomMessage, DicomMetaDictionary } = dcmjs.data;
const folder = process.argv[2];
const FORMATS = ["seg.dcm", "seg-labelmap.dcm", "seg-fractional.dcm"];

/** What OHIF's metadata provider tells of each image of a source, in the order of its positions. */
function sourceImages(source, truth) {
  const headers = new Map();
  for (const name of fs.readdirSync(source)) {
    const read = DicomMessage.readFile(bufferOf(path.join(source, name)), { ignoreErrors: true });
    const header = DicomMetaDictionary.naturalizeDataset(read.dict);
    headers.set(header.SOPInstanceUID, header);
  }
  return truth.uids.map((uid, n) => {
    const header = headers.get(uid);
    const frame = truth.frames[n];
    const step = (v) => Math.hypot(...v);
    const unit = (v) => v.map((one) => one / step(v));
    return {
      imageId: frame < 0 ? `wadors:http://pacs/instances/${uid}/frames/1` : `wadors:http://pacs/instances/${uid}/frames/${frame + 1}`,
      instance: { ...header, PixelData: undefined },
      generalSeriesModule: { seriesInstanceUID: header.SeriesInstanceUID, modality: header.Modality },
      generalImageModule: { sopInstanceUID: uid },
      imagePlaneModule: {
        frameOfReferenceUID: header.FrameOfReferenceUID,
        rows: truth.rows,
        columns: truth.columns,
        imagePositionPatient: truth.positions[n],
        rowCosines: unit(truth.along_row),
        columnCosines: unit(truth.along_column),
        imageOrientationPatient: [...unit(truth.along_row), ...unit(truth.along_column)],
        pixelSpacing: [step(truth.along_column), step(truth.along_row)],
        rowPixelSpacing: step(truth.along_column),
        columnPixelSpacing: step(truth.along_row),
      },
      imagePixelModule: {
        rows: truth.rows, columns: truth.columns, bitsAllocated: 16, bitsStored: 16, highBit: 15,
        samplesPerPixel: 1, pixelRepresentation: 0, photometricInterpretation: "MONOCHROME2",
      },
    };
  });
}

/** The masks that the adapters make, (K, N, rows, columns) as one array. */
async function masksOf(file, images, truth) {
  const told = new Map(images.map((one) => [one.imageId, one]));
  const provider = {
    get: (type, imageId) => told.get(imageId)?.[type],
    add: (imageId, type, value) => told.set(imageId, { ...told.get(imageId), [type]: value }),
  };
  const imageIds = images.map((one) => one.imageId);
  metaData.removeAllProviders();
  metaData.addProvider(provider.get);
  const { labelMapImages } = await createFromDICOMSegBuffer(imageIds, bufferOf(file), { metadataProvider: provider });
  const size = truth.rows * truth.columns;
  const masks = new Uint8Array(truth.names.length * imageIds.length * size);
  for (const map of labelMapImages) {
    map.forEach((image, n) => {
      image.voxelManager.getScalarData().forEach((number, pixel) => {
        if (number) masks[((number - 1) * imageIds.length + n) * size + pixel] = 1;
      });
    });
  }
  return masks;
}

function bufferOf(file) {
  const read = fs.readFileSync(file);
  return read.buffer.slice(read.byteOffset, read.byteOffset + read.byteLength);
}

function compared(written, found) {
  let [all, more, fewer] = [0, 0, 0];
  for (let k = 0; k < written.length; k++) {
    all += written[k];
    more += found[k] && !written[k] ? 1 : 0;
    fewer += written[k] && !found[k] ? 1 : 0;
  }
  return more || fewer ? `${more} more, ${fewer} fewer of ${all}` : `all ${all}`;
}

const versions = ["@cornerstonejs/adapters", "@cornerstonejs/core", "dcmjs"].map((name) => {
  const file = path.join(import.meta.dirname, "node_modules", name, "package.json");
  return `${name} ${JSON.parse(fs.readFileSync(file, "utf-8")).version}`;
});
console.log(`${versions.join(", ")}, Node.js ${process.version}\n`);
console.log("| case | BINARY | LABELMAP | FRACTIONAL |\n|---|---|---|---|");
const cases = fs.readdirSync(path.join(folder, "cases")).sort();
const warn = console.warn;
let warnings = [];
console.warn = (...said) => warnings.push(said.join(" "));
for (const name of cases) {
  const at = path.join(folder, "cases", name);
  if (!fs.existsSync(path.join(at, "truth.json"))) continue;
  const truth = JSON.parse(fs.readFileSync(path.join(at, "truth.json"), "utf-8"));
  const written = new Uint8Array(bufferOf(path.join(at, "truth.bin")));
  const images = sourceImages(path.join(at, "source"), truth);
  const cells = [];
  for (const format of FORMATS) {
    if (!fs.existsSync(path.join(at, format))) {
      cells.push("-");
      continue;
    }
    try {
      cache.purgeCache();
      cells.push(compared(written, await masksOf(path.join(at, format), images, truth)));
    } catch (error) {
      cells.push(String(error).split("\n")[0].slice(0, 140));
    }
  }
  console.log(`| ${name} | ${cells.join(" | ")} |`);
}
for (const one of new Set(warnings)) warn(one);
