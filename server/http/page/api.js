// Talks to the server that this page came from, and to nobody else.

/** An answer that is no success: its sentence and its status. */
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

/** fetch with the key, refusing everything but success. */
export async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer; is it running?");
  }
  if (response.ok) return response;
  let sentence = `The server answered ${response.status}.`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch {
    // a proxy in between answers in its own words
  }
  throw new Refused(response.status, sentence);
}

export const json = async (path, options) => (await ask(path, options)).json();

/** The form of a scan: its files, the model, the form of the answer. */
export function formOf(files, model, answer) {
  const form = new FormData();
  // Names on this machine may say who the patient is: the server gets numbers.
  files.forEach((file, k) => form.append("scan", file, String(k + 1).padStart(5, "0")));
  if (model) form.append("model", model);
  form.append("answer", answer);
  return form;
}

/** Sends a form by XMLHttpRequest, since fetch tells nothing of how much has been sent; the bytes of the answer. */
export function upload(path, form, told, signal, same) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    if (same) request.setRequestHeader("Idempotency-Key", same);
    if (key.get()) request.setRequestHeader("Authorization", `Bearer ${key.get()}`);
    request.upload.onprogress = (event) => event.lengthComputable && told(event.loaded, event.total);
    request.responseType = "arraybuffer";
    request.onerror = () => reject(new Refused(0, "The connection broke off; send the scan again."));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onload = () => {
      if (request.status < 300) return resolve(request.response);
      let sentence = `The server answered ${request.status}.`;
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

/** Tells each change of a job until it ends; asked again when nobody answers. The job as it ended. */
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
