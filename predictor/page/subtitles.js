// Words ({text, start, end}, in seconds) to groups of them, and groups to the text of subtitle files.

// One subtitle, by the same rule as predictor/transcript.py: a file from here is the file from there.
const CUE = { characters: 84, seconds: 7, pauseSeconds: 0.8 };
const PARAGRAPH = { characters: 600, seconds: 60, pauseSeconds: 1.5 };

export const paragraphs = (words) => grouped(words, PARAGRAPH);

function grouped(words, limit) {
  const groups = [];
  let group = [];
  for (const word of words) {
    const full =
      group.length > 0 &&
      (word.start - group.at(-1).end > limit.pauseSeconds ||
        word.end - group[0].start > limit.seconds ||
        [...text([...group, word])].length > limit.characters);
    if (full || group.length === 0) groups.push((group = []));
    group.push(word);
  }
  return groups;
}

export const text = (words) => words.map((word) => word.text).join(" ");

export function toSrt(words) {
  return grouped(words, CUE).map((cue, index) => `${index + 1}\n${span(cue, ",")}\n${text(cue)}\n`).join("\n");
}

export function toVtt(words) {
  const cues = grouped(words, CUE).map((cue) => `${span(cue, ".")}\n${escaped(text(cue))}\n`);
  return "WEBVTT\n\n" + cues.join("\n");
}

const escaped = (line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const span = (cue, mark) => `${timestamp(cue[0].start, mark)} --> ${timestamp(cue.at(-1).end, mark)}`;

function timestamp(seconds, mark) {
  const milliseconds = Math.round(seconds * 1000);
  const pad = (number, digits) => String(Math.floor(number)).padStart(digits, "0");
  const [hours, minutes] = [milliseconds / 3_600_000, (milliseconds / 60_000) % 60];
  return `${pad(hours, 2)}:${pad(minutes, 2)}:${pad((milliseconds / 1000) % 60, 2)}${mark}${pad(milliseconds % 1000, 3)}`;
}

/** 75.3 as "1:15". */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}
