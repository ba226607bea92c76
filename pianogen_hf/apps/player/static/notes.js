// Notes as a model reads them: what ContinuousNotesFeatureExtractor and `placed` make of notes in seconds.

import { rint } from "./classes.js";

const MAX_WAIT_SEC = 900;

const by = (...keys) => (one, other) => {
  for (const key of keys) if (key(one) !== key(other)) return key(one) - key(other);
  return 0;
};

// Rows [onset in seconds, pitch, velocity, duration in seconds] on a grid, by onset and pitch.
// `notes`: of a piece, {onset, end, pitch, velocity}, times in seconds. Of two strikes of one key in a step the longer one
// is kept, and a note ends where its key is struck again.
export function onGrid(notes, rate = 100) {
  const stepped = notes.map(({ onset, end, pitch, velocity }) => {
    const begin = rint(onset * rate);
    return { onset: begin, offset: Math.max(rint(end * rate), begin + 1), pitch, velocity };
  });
  const kept = withoutDoubles(stepped);
  kept.sort(by((note) => note.onset, (note) => note.pitch));
  let step = 0, sum = 0;
  return kept.map(({ onset, offset, pitch, velocity }) => {
    sum += Math.fround(Math.min((onset - step) / rate, MAX_WAIT_SEC));
    step = onset;
    return [rint(sum * rate) / rate, pitch, velocity, Math.fround(Math.min((offset - onset) / rate, MAX_WAIT_SEC))];
  });
}

// The same of notes that are being played, which are heard in milliseconds.
export function placed(notes, rate = 100) {
  const heard = notes.map(({ onset, end, pitch, velocity }) => {
    const [first, last] = [milliseconds(onset), milliseconds(onset + Math.max(end - onset, 0.001))];
    return { first, last, onset: secondsOf(first), end: secondsOf(last), pitch, velocity };
  });
  return onGrid(heard.sort(by(...["first", "pitch", "last", "velocity"].map((name) => (note) => note[name]))), rate);
}

const milliseconds = (seconds) => rint(seconds * 1000);
const secondsOf = (ms) => (ms * 500_000 * 1e-6) / 500; // as ticks of 120 quarters a minute: the same digits as there

function withoutDoubles(notes) {
  const ordered = [...notes].sort(by((note) => note.pitch, (note) => note.onset, (note) => -note.offset));
  const kept = ordered.filter((note, index) =>
    !index || note.pitch !== ordered[index - 1].pitch || note.onset !== ordered[index - 1].onset);
  kept.forEach((note, index) => {
    const next = kept[index + 1];
    if (next && next.pitch === note.pitch) note.offset = Math.min(note.offset, next.onset);
  });
  return kept;
}
