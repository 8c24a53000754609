// What a person sees of the page's state: one of idle, recording and busy; and what went wrong.

import { key, Problem } from "./api.js";
import { clock } from "./subtitles.js";

const SILENT_SECONDS = 3;
const COPIED_MS = 2000;

const FINAL = [401, 413, 415, 422]; // the same again would fail again; a key's own form goes on

export const TITLES = {
  0: "Something is in the way",
  401: "An API key is needed",
  413: "Too long or too large",
  415: "This cannot be read as audio",
  422: "This recording cannot be used",
  429: "Too much for this minute",
  503: "The server is busy",
  504: "This took too long",
};

export const $ = (id) => document.getElementById(id);

/** For screen readers: what everybody else sees happen. */
export const announce = (message) => ($("status").textContent = message);

/** Every action begins in idle and ends there: so no two run at once. */
export const idle = () => $("input").dataset.state === "idle";

export function enter(state) {
  $("problem").hidden ||= state !== "idle";
  $("input").dataset.state = state;
  $("options").disabled = state !== "idle";
  $({ recording: "stop", busy: "cancel", idle: "choose" }[state]).focus({ preventScroll: true });
}

/** What the server or the browser is doing; `fraction` is how much of it is done, null where nobody knows. */
export function phase(message, fraction = null) {
  $("phase").textContent = message;
  $("elapsed").textContent = "";
  announce(message);
  if (fraction === null) $("progress").removeAttribute("value");
  else $("progress").value = fraction;
}

/** Say what went wrong, and offer `again`, in the words of `label`. */
export function showProblem(error, again, label = "Try again") {
  const problem = error instanceof Problem ? error : new Problem(500, "The page made a mistake; its console says more.");
  if (problem !== error) console.error(error);
  const keyless = problem.status === 401;
  announce("");
  $("problem-title").textContent = TITLES[problem.status] ?? "The server could not do this";
  $("problem-text").textContent =
    keyless && !key.get() ? "This server answers those who have a key. Enter yours above." : sentence(problem.message);
  $("problem-request").hidden = !problem.requestId || keyless;
  $("problem-request").textContent = `Request ${problem.requestId}`;
  $("again").textContent = label;
  $("again").onclick = again;
  $("again").hidden = FINAL.includes(problem.status);
  $("problem").hidden = false;
  $("access").hidden = !keyless;
  $("access").onsubmit = (event) => {
    event.preventDefault();
    key.set($("key").value.trim());
    $("access").hidden = $("problem").hidden = true;
    again();
  };
  if (keyless) $("key").focus();
  else $("problem").scrollIntoView({ block: "nearest" });
}

const sentence = (message) => message.charAt(0).toUpperCase() + message.slice(1).replace(/([^.!?])$/, "$1.");

/** Draw `level()`, 0 to 1, and the time since now, until the returned function is called. */
export function showLevel(level) {
  const canvas = $("level");
  const pen = canvas.getContext("2d");
  const start = performance.now();
  const levels = [];
  let heardAt = start;
  const draw = () => {
    const now = performance.now();
    levels.unshift(level());
    levels.length = Math.min(levels.length, 80);
    if (levels[0] > 0.01) heardAt = now;
    $("unheard").hidden = now - heardAt < SILENT_SECONDS * 1000;
    $("recorded").textContent = clock((now - start) / 1000);
    pen.fillStyle = getComputedStyle(canvas).color;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    levels.forEach((peak, index) => {
      const height = Math.max(3, Math.sqrt(peak) * canvas.height); // the root, as loudness is heard
      pen.fillRect(canvas.width - 8 * (index + 1), (canvas.height - height) / 2, 4, height);
    });
  };
  draw();
  const timer = setInterval(draw, 50);
  return () => clearInterval(timer);
}

/** A button that copies `content`, and says that it did. */
export function copies(button, content) {
  const label = button.textContent;
  let timer = null;
  button.onclick = async () => {
    const message = (await copied(content)) ? "Copied" : "Not allowed";
    announce(message);
    button.textContent = message;
    clearTimeout(timer);
    timer = setTimeout(() => (button.textContent = label), COPIED_MS);
  };
}

async function copied(content) {
  if (navigator.clipboard) return navigator.clipboard.writeText(content).then(() => true, () => false);
  const area = Object.assign(document.createElement("textarea"), { value: content, className: "unseen" });
  const focused = document.activeElement; // without https there is only the old way: by selecting
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

export function showDigest(button, digest) {
  button.textContent = digest.replace(/^(sha256:.{8}).*/, "$1…");
  button.title = `${digest} (click to copy)`;
  copies(button, digest);
}
