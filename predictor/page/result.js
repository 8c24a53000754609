// The transcript that is shown, what is known of it, and its downloads.

import { codeOf, nameOf } from "./languages.js";
import { Player } from "./player.js";
import { text, toSrt, toVtt } from "./subtitles.js";
import { $, announce, copies, showDigest } from "./view.js";

const READ_MS = 10_000; // browsers have read a download by then

const FORMATS = {
  srt: ["application/x-subrip", ({ words }) => toSrt(words)],
  vtt: ["text/vtt", ({ words }) => toVtt(words)],
  txt: ["text/plain", ({ words }) => `${text(words)}\n`],
  json: ["application/json", ({ json }) => `${JSON.stringify(json, null, 2)}\n`],
};

export const player = new Player({
  audio: $("audio"), play: $("play"), seek: $("seek"), time: $("time"), speed: $("speed"),
  unplayable: $("unplayable"), transcript: $("transcript"),
});

/** `answer` is OpenAI's verbose JSON; `seconds` is how long it took, where that is known. */
export function showResult(file, { answer, seconds, model, version, digest, requestId }) {
  const words = (answer.words ?? []).map(({ word, start, end }) => ({ text: word, start, end }));
  const language = codeOf(answer.language);
  const result = {
    name: file.name.replace(/\.[^.]+$/, ""),
    words,
    json: { ...answer, model, version, bundle_digest: digest, request_id: requestId },
  };
  $("result").hidden = false;
  $("silent").hidden = words.length > 0;
  $("keys").hidden = $("exports").hidden = words.length === 0;
  player.load(file, words, answer.duration, language);
  copies($("copy"), text(words));
  for (const button of document.querySelectorAll("[data-format]")) {
    button.onclick = () => download(result, button.dataset.format);
  }
  const digestButton = Object.assign(document.createElement("button"), { type: "button", className: "digest" });
  if (digest) showDigest(digestButton, digest);
  showFacts({
    Recording: file.name,
    Language: language && nameOf(language),
    Length: `${answer.duration.toFixed(1)} s`,
    "Answered in": seconds && `${seconds.toFixed(2)} s`,
    "Real-time factor": seconds && (seconds / answer.duration).toFixed(3),
    Model: version ? `${model}, version ${version}` : model,
    Digest: digest && digestButton,
  });
  announce(`The transcript is ready: ${words.length} words.`);
  $("result").scrollIntoView({ block: "nearest" });
  $("play").focus({ preventScroll: true });
}

function showFacts(facts) {
  const entries = Object.entries(facts).filter(([, value]) => value);
  $("facts").replaceChildren(
    ...entries.map(([name, value]) => {
      const [entry, term, description] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      term.append(name);
      description.append(value);
      entry.append(term, description);
      return entry;
    }),
  );
}

function download(result, format) {
  const [type, write] = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(result)], { type }));
  link.download = `${result.name}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), READ_MS);
}
