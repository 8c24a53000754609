// A recording and its words: playing, following the words, and going to where one was said.

import { clock, paragraphs } from "./subtitles.js";

const HOPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };

/** `parts` are elements: audio, play, seek, time, speed, unplayable, transcript. */
export class Player {
  #parts;
  #words = []; // {text, start, end, element}
  #seconds = 0;
  #spoken = null; // the word that is highlighted
  #url = null;
  #frame = null; // the next look at where it plays

  constructor(parts) {
    this.#parts = parts;
    const { audio, play, seek, speed, transcript } = parts;
    play.onclick = () => this.toggle();
    seek.oninput = () => this.#goTo(Number(seek.value));
    speed.onchange = () => (audio.playbackRate = Number(speed.value));
    audio.onplay = () => {
      play.setAttribute("aria-label", "Pause");
      play.classList.add("playing");
      this.#follow();
    };
    audio.onpause = () => {
      play.setAttribute("aria-label", "Play");
      play.classList.remove("playing");
    };
    audio.onseeked = () => this.#show(audio.currentTime);
    audio.onerror = () => this.#playable(false);
    transcript.onclick = ({ target }) => this.#clicked(target);
    transcript.onkeydown = (event) => this.#pressed(event);
  }

  /** Take a recording of `seconds` and its words, in a language whose code may be null. */
  load(file, words, seconds, language) {
    const { audio, seek, speed, transcript } = this.#parts;
    const before = this.#url;
    this.#url = URL.createObjectURL(file);
    this.#playable(true);
    audio.src = this.#url;
    if (before) URL.revokeObjectURL(before);
    audio.defaultPlaybackRate = Number(speed.value); // a new source starts with this
    this.#seconds = seconds;
    seek.max = seconds;
    this.#words = words.map((word) => ({ ...word, element: this.#element(word) }));
    if (language) transcript.lang = language;
    else transcript.removeAttribute("lang");
    transcript.replaceChildren(...paragraphs(this.#words).map(paragraph));
    if (words.length > 0) this.#words[0].element.tabIndex = 0;
    this.#spoken = null;
    this.#show(0);
  }

  toggle() {
    const { audio } = this.#parts;
    if (audio.paused) audio.play().catch(() => {}); // paused again before it began; or an error, which `onerror` shows
    else audio.pause();
  }

  stop() {
    this.#parts.audio.pause();
  }

  #element(word) {
    const element = document.createElement("span");
    element.className = "word";
    element.tabIndex = -1; // the transcript is one stop of the tab key; arrows go from word to word
    element.textContent = word.text;
    element.title = clock(word.start);
    return element;
  }

  #playable(yes) {
    this.#parts.play.disabled = this.#parts.seek.disabled = this.#parts.speed.disabled = !yes;
    this.#parts.unplayable.hidden = yes;
  }

  #follow() {
    const { audio } = this.#parts;
    cancelAnimationFrame(this.#frame);
    this.#show(audio.currentTime);
    if (!audio.paused) this.#frame = requestAnimationFrame(() => this.#follow());
  }

  #show(seconds) {
    const { seek, time, transcript, audio } = this.#parts;
    const at = Math.min(seconds, this.#seconds);
    seek.value = at;
    const [now, whole] = [clock(at), clock(this.#seconds)];
    if (time.textContent !== `${now} / ${whole}`) {
      time.textContent = `${now} / ${whole}`;
      seek.setAttribute("aria-valuetext", `${now} of ${whole}`);
    }
    const started = audio.ended || seconds === 0 ? 0 : this.#startedBefore(seconds);
    const spoken = started > 0 ? this.#words[started - 1].element : null;
    if (spoken === this.#spoken) return;
    this.#spoken?.classList.remove("spoken");
    spoken?.classList.add("spoken");
    this.#spoken = spoken;
    if (!spoken || audio.paused) return;
    const [word, box] = [spoken.getBoundingClientRect(), transcript.getBoundingClientRect()];
    if (word.top < box.top || word.bottom > box.bottom) transcript.scrollTop += word.top - box.top - box.height / 3;
  }

  /** How many words have begun by then: there may be ten thousand, sixty times a second. */
  #startedBefore(seconds) {
    let [low, high] = [0, this.#words.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#words[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #goTo(seconds) {
    this.#parts.audio.currentTime = seconds;
    this.#show(seconds);
  }

  #clicked(target) {
    const word = this.#words.find(({ element }) => element === target);
    if (!word || !getSelection().isCollapsed) return; // a selection is for copying
    this.#focus(word);
    this.#playFrom(word);
  }

  #playFrom(word) {
    this.#goTo(word.start);
    if (this.#parts.audio.paused) this.toggle();
  }

  #pressed(event) {
    const index = this.#words.findIndex(({ element }) => element === event.target);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      this.#playFrom(this.#words[index]);
    } else if (event.key in HOPS) {
      event.preventDefault();
      const last = this.#words.length - 1;
      this.#focus(this.#words[Math.max(0, Math.min(last, index + HOPS[event.key]))]);
    }
  }

  #focus(word) {
    for (const { element } of this.#words) if (element.tabIndex === 0) element.tabIndex = -1;
    word.element.tabIndex = 0;
    word.element.focus();
  }
}

function paragraph(words) {
  const element = document.createElement("p");
  element.dir = "auto";
  const time = document.createElement("time");
  time.textContent = clock(words[0].start);
  element.append(time, ...words.flatMap((word, index) => (index ? [" ", word.element] : [word.element])));
  return element;
}
