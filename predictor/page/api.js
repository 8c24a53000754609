// The server's routes. What fails, fails with a Problem that a person can read.

const address = (path) => new URL(path, document.baseURI);

/** A failure in words; `status` is HTTP's, or 0 where no answer came. */
export class Problem extends Error {
  constructor(status, message, { requestId = null, retryAfterSeconds = null } = {}) {
    super(message);
    Object.assign(this, { status, requestId, retryAfterSeconds });
  }
}

const LOST = "The server could not be reached. Check the connection and try again.";
const NOT_SENT = "The connection ended before the file was sent. The file may be larger than this server accepts.";

/** The caller's API key, forgotten when the tab is closed. */
export const key = {
  get: () => sessionStorage.getItem("vani-api-key") ?? "",
  set: (value) => sessionStorage.setItem("vani-api-key", value),
};

const authorization = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

/** [{id, version, bundle_digest, languages, ready, ...}] */
export async function models() {
  let response;
  try {
    response = await fetch(address("models"), { headers: authorization() });
  } catch {
    throw new Problem(0, LOST);
  }
  if (!response.ok) throw problemOf(response.status, await response.text(), (name) => response.headers.get(name));
  return response.json();
}

/**
 * Send a File and return {answer, seconds, model, version, digest, requestId}: `seconds` is what a person waits, the
 * upload included. `onUpload` is told the fraction that is sent.
 */
export async function transcribe(file, { model, language, hotwords }, onUpload, signal) {
  const form = new FormData();
  form.set("file", file);
  form.set("model", model);
  if (language) form.set("language", language);
  if (hotwords) form.set("prompt", hotwords);
  form.set("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");

  const { status, body, header, seconds } = await post(address("v1/audio/transcriptions"), form, onUpload, signal);
  if (status !== 200) throw problemOf(status, body, header);
  return {
    answer: JSON.parse(body),
    seconds,
    model: header("x-vani-model") ?? model,
    version: header("x-vani-version"),
    digest: header("x-vani-bundle-digest"),
    requestId: header("x-request-id"),
  };
}

function post(url, form, onUpload, signal) {
  const request = new XMLHttpRequest(); // fetch cannot tell how much it has sent
  request.open("POST", url);
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  return new Promise((resolve, reject) => {
    const start = performance.now();
    let sent = false;
    request.upload.onprogress = (event) => onUpload(event.loaded / event.total);
    request.upload.onload = () => {
      sent = true;
      onUpload(1);
    };
    request.onload = () =>
      resolve({
        status: request.status,
        body: request.responseText,
        header: (name) => request.getResponseHeader(name),
        seconds: (performance.now() - start) / 1000,
      });
    request.onerror = () => reject(new Problem(0, sent ? LOST : NOT_SENT));
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function problemOf(status, body, header) {
  let message;
  try {
    const { error } = JSON.parse(body);
    message = error?.message ?? error;
  } catch {
    // a proxy's page: its markup says nothing to a person
  }
  const known = typeof message === "string" && message !== "";
  const retryAfter = Number(header("retry-after")); // a date, which it may be too, is NaN
  return new Problem(status, known ? message : `The server answered with status ${status}.`, {
    requestId: header("x-request-id"),
    retryAfterSeconds: retryAfter > 0 ? retryAfter : null,
  });
}

/**
 * Live dictation: a socket that takes 16 kHz PCM16 blocks and tells `on.ready`, `on.partial` and `on.final` their
 * messages. `done` resolves after `end()`, when every word is final, and rejects with a Problem.
 */
export function dictate({ model, language }, on) {
  const url = address("v1/audio/stream");
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("model", model);
  if (language) url.searchParams.set("language", language);
  const socket = new WebSocket(url);
  const tell = (message) => socket.send(JSON.stringify(message));
  const unsent = []; // what is said while the connection is made
  let ready = false;
  let ended = false;

  const done = new Promise((resolve, reject) => {
    socket.onopen = () => tell({ type: "start", key: key.get() }); // "" too: who needs one then says so at once
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "ready") {
        ready = true;
        for (const block of unsent.splice(0)) socket.send(block);
        if (ended) tell({ type: "end" });
      }
      if (message.type === "done") resolve();
      else if (message.type === "error") {
        const status = /unauth/i.test(message.error_code) ? 401 : 500;
        reject(new Problem(status, message.message));
      } else on[message.type]?.(message);
    };
    socket.onclose = () => reject(new Problem(0, "The live connection was lost."));
  });
  return {
    done: done.finally(() => socket.close()),
    send: (block) => (ready ? socket.readyState === WebSocket.OPEN && socket.send(block) : unsent.push(block)),
    end: () => {
      ended = true;
      if (ready && socket.readyState === WebSocket.OPEN) tell({ type: "end" });
    },
    cancel: () => socket.close(),
  };
}
