// Requests to the server of this page; no other server is contacted.

/** An error response, with its message and status. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const KEY = "semiseg-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** Calls fetch with the API key; throws Refused for every error response. */
export async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not respond; is it running?");
  }
  if (response.ok) return response;
  let sentence = `The server responded with the status ${response.status}.`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch {
    // the response of a proxy, which is not JSON
  }
  throw new Refused(response.status, sentence);
}

export const json = async (path, options) => (await ask(path, options)).json();

/** Makes the form of a scan: its files, the model, and its output format. */
export function formOf(files, model, outputFormat) {
  const form = new FormData();
  // File names may identify the patient, so the server gets numbers instead.
  files.forEach((file, k) => form.append("scan", file, String(k + 1).padStart(5, "0")));
  if (model) form.append("model", model);
  form.append("output_format", outputFormat);
  return form;
}

/** Sends a form by XMLHttpRequest, since fetch reports no upload progress; resolves to the bytes of the response. */
export function upload(path, form, told, signal, same) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    if (same) request.setRequestHeader("Idempotency-Key", same);
    if (key.get()) request.setRequestHeader("Authorization", `Bearer ${key.get()}`);
    request.upload.onprogress = (event) => event.lengthComputable && told(event.loaded, event.total);
    request.responseType = "arraybuffer";
    request.onerror = () => reject(new Refused(0, "The connection was lost; send the scan again."));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onload = () => {
      if (request.status < 300) return resolve(request.response);
      let sentence = `The server responded with the status ${request.status}.`;
      try {
        sentence = JSON.parse(new TextDecoder().decode(request.response)).error;
      } catch {
        // as above
      }
      return reject(new Refused(request.status, sentence));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** Polls a job until it ends, calls `told` at each change, and retries after errors; resolves to the ended job. */
export async function watch(id, told, pause) {
  let last = "";
  for (;;) {
    try {
      const job = await json(`jobs/${id}`);
      if (JSON.stringify(job) !== last) told(job);
      last = JSON.stringify(job);
      if (["done", "failed", "cancelled"].includes(job.state)) return job;
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause()));
  }
}
