// Reads a zip with uncompressed members, as the server writes a viewer bundle (APPNOTE.TXT 4.3.7, 4.3.12).

const END = 0x06054b50;
const ENTRY = 0x02014b50;

/** The members of the zip in `buffer`: a Map from name to Uint8Array. */
export function unzip(buffer) {
  const view = new DataView(buffer);
  let at = buffer.byteLength - 22;
  while (at >= 0 && view.getUint32(at, true) !== END) at -= 1;
  if (at < 0) throw new Error("The server's response is incomplete; try again.");
  const count = view.getUint16(at + 10, true);
  let entry = view.getUint32(at + 16, true);
  const members = new Map();
  for (let k = 0; k < count; k += 1) {
    if (view.getUint32(entry, true) !== ENTRY || view.getUint16(entry + 10, true) !== 0) {
      throw new Error("This page cannot read the server's response.");
    }
    const size = view.getUint32(entry + 20, true);
    const nameLength = view.getUint16(entry + 28, true);
    const name = new TextDecoder().decode(new Uint8Array(buffer, entry + 46, nameLength));
    const local = view.getUint32(entry + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    members.set(name, new Uint8Array(buffer, start, size));
    entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return members;
}
