// The microphone: a file to upload, or PCM while it is spoken; and how loud it is, so that people see they are heard.

import { Problem } from "./api.js";

const PCM_HZ = 16_000; // what the model hears
const OPUS_BITS_PER_SECOND = 64_000; // speech loses nothing at this, and a minute is half a megabyte

/** Ask for the microphone. Without the filters for human listeners: a model trained on raw speech is worse with them. */
async function opened() {
  if (!navigator.mediaDevices) {
    throw new Problem(0, "Browsers give the microphone to secure pages only: open this page over https.");
  }
  const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The browser did not allow the microphone. Allow it for this page, then try again.",
      NotFoundError: "There is no microphone.",
      NotReadableError: "Another program is using the microphone.",
    };
    throw new Problem(0, reasons[error.name] ?? "The microphone cannot be used.");
  }
}

/** Open the microphone and `build(stream, context)` on it; it is closed again if that fails. */
async function onMicrophone(options, build, failure) {
  const stream = await opened();
  let context = null;
  try {
    context = new AudioContext(options);
    return await build(stream, context);
  } catch {
    close(stream, context);
    throw new Problem(0, failure);
  }
}

function close(stream, context) {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
  return context?.close();
}

/** The peak of the last instant, 0 to 1. */
function levelOf(context, source) {
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  const samples = new Float32Array(analyser.fftSize);
  source.connect(analyser);
  return () => {
    analyser.getFloatTimeDomainData(samples);
    return samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
  };
}

/** Record until `stop()`, which returns a File; `onEnded` is called when the microphone goes away by itself. */
export function record(onEnded) {
  const build = (stream, context) => {
    const level = levelOf(context, context.createMediaStreamSource(stream));
    const recorder = new MediaRecorder(stream, { audioBitsPerSecond: OPUS_BITS_PER_SECOND });
    const parts = [];
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.start(1000);
    stream.getAudioTracks()[0].onended = onEnded;
    const stop = async () => {
      if (recorder.state !== "inactive") recorder.stop();
      await stopped;
      await close(stream, context);
      const type = recorder.mimeType.split(";")[0];
      return new File(parts, named(type.split("/")[1]), { type });
    };
    return { level, stop };
  };
  return onMicrophone({}, build, "This browser cannot record.");
}

/** As `record`, and every 40 ms of it goes to `onPcm` as a buffer of 16 kHz PCM16 while it is spoken. */
export function capture(onPcm, onEnded) {
  const build = async (stream, context) => {
    const source = context.createMediaStreamSource(stream);
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    const worklet = new AudioWorkletNode(context, "pcm", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    const blocks = [];
    worklet.port.onmessage = ({ data }) => {
      blocks.push(data);
      onPcm(data);
    };
    source.connect(worklet);
    stream.getAudioTracks()[0].onended = onEnded;
    const stop = async () => {
      await close(stream, context);
      return new File([wavHeader(blocks), ...blocks], named("wav"), { type: "audio/wav" });
    };
    return { level: levelOf(context, source), stop };
  };
  const failure = "This browser cannot give the microphone at 16 kHz, which live dictation needs. Recording works.";
  return onMicrophone({ sampleRate: PCM_HZ }, build, failure);
}

function wavHeader(blocks) {
  const bytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const ascii = (offset, letters) => [...letters].forEach((c, i) => header.setUint8(offset + i, c.charCodeAt(0)));
  ascii(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  ascii(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // the size of what follows, then: PCM, mono
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, PCM_HZ, true);
  header.setUint32(28, PCM_HZ * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  ascii(36, "data");
  header.setUint32(40, bytes, true);
  return header;
}

function named(extension) {
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000); // toISOString, at the local hour
  return `recording-${now.toISOString().slice(0, 19).replaceAll(":", "-")}.${extension}`;
}
