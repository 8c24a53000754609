// The page: what happens when. A recording comes from a file or the microphone, goes to the server, and is shown.

import { dictate, models, transcribe } from "./api.js";
import { option } from "./languages.js";
import { capture, record } from "./microphone.js";
import { player, showResult } from "./result.js";
import { clock } from "./subtitles.js";
import { $, announce, enter, idle, phase, showDigest, showLevel, showProblem, TITLES } from "./view.js";

const RETRIES = 5; // of a busy server; then the person decides

let served = []; // the models
let stop = null; // ends the recording under way, and goes on with it
let cancel = null; // gives up what is under way

const chosen = () => ({ model: $("model").value, language: $("language").value, hotwords: $("hotwords").value.trim() });

// Models and languages

async function loadModels(then = () => {}) {
  try {
    served = await models();
  } catch (error) {
    if (idle()) showProblem(error, () => loadModels(then));
    return;
  }
  const names = [...new Set(served.map(({ id }) => id))]; // one may be served in several versions
  $("model").replaceChildren(...names.map((name) => new Option(name)));
  $("model").disabled = names.length < 2;
  $("served").hidden = names.length === 0;
  showModel();
  if (idle()) then();
}

const modelOf = (name, digest) =>
  served.findLast(({ id, bundle_digest }) => id === name && (!digest || bundle_digest === digest));

function showModel() {
  const model = modelOf($("model").value);
  if (!model) return;
  $("version").textContent = `version ${model.version}`;
  showDigest($("digest"), model.bundle_digest);
  const before = $("language").value;
  $("language").replaceChildren($("language").options[0], ...model.languages.map(option));
  $("language").value = model.languages.includes(before) ? before : "";
}

/** An action again, once the models are known: without a key they were not. */
const afterModels = (action) => () => (served.length > 0 ? action() : loadModels(action));

// From a file to a transcript

async function submit(file) {
  const aborting = new AbortController();
  const { signal } = aborting;
  cancel = () => aborting.abort();
  player.stop();
  enter("busy");
  let outcome;
  try {
    outcome = await sendUntilTaken(file, signal);
  } catch (error) {
    enter("idle");
    if (signal.aborted) announce("Cancelled.");
    else showProblem(error, afterModels(() => submit(file)));
    return;
  }
  enter("idle");
  showResult(file, outcome);
}

async function sendUntilTaken(file, signal) {
  for (let attempt = 1; ; attempt += 1) {
    const sending = showSending(file);
    try {
      return await transcribe(file, chosen(), sending.onUpload, signal);
    } catch (error) {
      if (!error.retryAfterSeconds || attempt > RETRIES) throw error;
      await countDown(error, signal);
    } finally {
      sending.stop();
    }
  }
}

function showSending(file) {
  let timer = null;
  phase(`Sending ${file.name}`, 0);
  return {
    onUpload(fraction) {
      if (timer) return;
      $("progress").value = fraction;
      $("elapsed").textContent = `${Math.round(fraction * 100)} % of ${megabytes(file.size)}`;
      if (fraction < 1) return;
      phase("Transcribing");
      const start = performance.now();
      const tick = () => ($("elapsed").textContent = clock((performance.now() - start) / 1000));
      tick();
      timer = setInterval(tick, 1000);
    },
    stop: () => clearInterval(timer),
  };
}

const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

async function countDown({ status, retryAfterSeconds }, signal) {
  const aborted = new Promise((resolve) => signal.addEventListener("abort", resolve));
  phase(TITLES[status] ?? TITLES[503]);
  for (let left = retryAfterSeconds; left > 0; left -= 1) {
    $("elapsed").textContent = `Trying again in ${left} s`;
    await Promise.race([aborted, new Promise((resolve) => setTimeout(resolve, 1000))]);
    signal.throwIfAborted();
  }
}

// The microphone

/**
 * Show what `open(onEnded)` opens until a person ends it, and hand its File to `finish`; `discard` is told when there
 * will be none, and `again` is what to try after a refusal.
 */
async function listen(open, finish, discard, again) {
  let wanted = true; // browsers may ask the person, for as long as that takes
  cancel = () => {
    wanted = false;
    enter("idle");
  };
  player.stop();
  enter("busy");
  phase("Waiting for the microphone");
  let microphone;
  try {
    microphone = await open(() => stop?.());
  } catch (error) {
    if (!wanted) return;
    enter("idle");
    return showProblem(error, again);
  }
  if (!wanted) {
    microphone.stop();
    return discard();
  }
  const stopMeter = showLevel(microphone.level);
  const end = () => {
    stop = null;
    stopMeter();
    return microphone.stop();
  };
  stop = async () => {
    enter("busy");
    phase("Finishing");
    cancel = () => {}; // until `finish` knows how
    finish(await end());
  };
  cancel = () => {
    end();
    discard();
    enter("idle");
    announce("Discarded.");
  };
  enter("recording");
  announce("Recording.");
}

function recordFile() {
  $("dictation").hidden = true;
  $("stop").textContent = "Stop and transcribe";
  listen(record, submit, () => {}, recordFile);
}

function dictateLive() {
  const words = [];
  let language = null;
  let socket = null;
  let ready = {};
  let failure = null;
  let listening = true; // `stop` may be that of a later recording
  $("dictation").hidden = false;
  $("stop").textContent = "Stop";
  $("final").textContent = $("partial").textContent = "";

  const open = async (onEnded) => {
    const microphone = await capture((block) => socket?.send(block), onEnded);
    socket = dictate(chosen(), {
      ready: (message) => (ready = message),
      partial: (message) => showHeard("", message.text),
      final(message) {
        words.push(...message.words.map((w) => ({ word: w.text, start: w.start_seconds, end: w.end_seconds })));
        language = message.language;
        showHeard(`${message.text} `, "");
      },
    });
    socket.done.catch((error) => {
      failure = error;
      if (listening) stop?.();
    });
    return microphone;
  };

  const finish = async (file) => {
    listening = false;
    let given = false;
    cancel = () => {
      given = true;
      socket.cancel();
    };
    socket.end();
    try {
      await socket.done;
    } catch {
      enter("idle");
      if (given) announce("Cancelled.");
      else if (failure.status === 401) showProblem(failure, afterModels(dictateLive));
      else showProblem(failure, () => submit(file), "Transcribe what was recorded");
      return;
    }
    enter("idle");
    const heard = words.map(({ word }) => word).join(" ");
    const answer = { text: heard, language, duration: (file.size - 44) / 32_000, words };
    const { version } = modelOf(ready.model, ready.bundle_digest) ?? {};
    showResult(file, { answer, model: ready.model, version, digest: ready.bundle_digest });
  };
  const discard = () => {
    listening = false;
    socket.cancel();
  };
  listen(open, finish, discard, dictateLive);
}

function showHeard(final, partial) {
  $("final").append(final);
  $("partial").textContent = partial;
  $("heard").scrollTop = $("heard").scrollHeight;
}

// Wiring

$("model").onchange = showModel;
$("choose").onclick = () => $("file").click();
$("file").onchange = ({ target }) => {
  const [file] = target.files;
  target.value = ""; // the same file again is a choice too
  if (file && idle()) submit(file);
};
$("record").onclick = () => idle() && recordFile();
$("live").onclick = () => idle() && dictateLive();
$("stop").onclick = () => stop?.();
$("discard").onclick = $("cancel").onclick = () => cancel();

const brings = (event) => event.dataTransfer.types.includes("Files"); // and not words for a field
document.ondragover = (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  document.body.classList.toggle("dropping", idle());
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file && idle()) submit(file);
};
document.onkeydown = (event) => {
  const other = event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.repeat;
  const taken = event.target.closest("input, select, button");
  if (event.key !== " " || other || taken || $("result").hidden || !idle()) return;
  event.preventDefault(); // the page would scroll
  player.toggle();
};
window.onbeforeunload = (event) => {
  if (!stop) return;
  event.preventDefault();
  return ""; // what older browsers look at
};

loadModels();
