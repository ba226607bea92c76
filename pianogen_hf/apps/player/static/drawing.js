// Drawing from logits, and what may be drawn: functions (column, scores, onset) => scores, as generation/processors.py.

import { PITCH } from "./model.js";

const NEAR_SEC = 0.03; // strikes of one key that lie nearer to each other than this are one

// A class, drawn with one number from logits of which at least one is finite, as `choose` of generation/drawing.py does.
// `random`: gives numbers in [0, 1).
export function choose(scores, random) {
  const most = scores.reduce((one, other) => Math.max(one, other), -Infinity);
  let sum = 0;
  const sums = Float64Array.from(scores, (score) => (sum += Math.exp(Math.fround(score - most))));
  const wanted = random() * sum;
  return sums.findIndex((each) => each > wanted);
}

// Logits that differ from the free ones by `scale` times as much as those of a model that was asked for something do.
export function guided(asked, free, scale) {
  return asked.map((value, index) =>
    (Number.isFinite(value) && Number.isFinite(free[index]) ? free[index] + scale * (value - free[index]) : -Infinity));
}

// Temperature, then nucleus, of every field; a temperature of 0 leaves the likeliest alone.
function warped({ temperature, topP }) {
  return (column, scores) => {
    const most = Math.max(...scores);
    if (temperature === 0) return scores.map((score) => (score === most ? 0 : -Infinity));
    const warm = scores.map((score) => score / temperature), warmest = Math.max(...warm);
    if (topP >= 1) return warm;
    const weights = warm.map((score) => Math.exp(score - warmest));
    const least = leastOfNucleus(weights, topP);
    return warm.map((score, index) => (weights[index] >= least ? score : -Infinity));
  };
}

// The smallest of the largest weights that together have the share `topP` of all.
function leastOfNucleus(weights, topP) {
  const ordered = Float64Array.from(weights).sort();
  const total = ordered.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  return ordered.find((weight) => (sum += weight) > (1 - topP) * total) ?? ordered.at(-1);
}

// Only the pitches that are allowed at an onset.
const pitches = (allowedAt) => (column, scores, onset) => {
  if (column !== PITCH) return scores;
  const isAllowed = allowedAt(onset);
  return scores.map((score, pitch) => (isAllowed(pitch) ? score : -Infinity));
};

const soundsAt = ([onset, , , duration], second) => onset <= second + NEAR_SEC && onset + duration > second;

// Pitches below (or above) all given notes that sound, or the nearest of them where none does.
function beside({ given, side }) {
  return pitches((onset) => {
    let sounding = given.filter((note) => soundsAt(note, onset));
    if (!sounding.length) {
      const distances = given.map((note) => Math.abs(note[0] - onset));
      sounding = [given[distances.indexOf(Math.min(...distances))]];
    }
    const bound = sounding.map((note) => note[1]);
    return side === "below" ? (pitch) => pitch < Math.min(...bound) : (pitch) => pitch > Math.max(...bound);
  });
}

// No key that a kept note holds, or strikes at the same moment.
function notSounding({ kept }) {
  return pitches((onset) => {
    const held = new Set(kept.filter((note) => soundsAt(note, onset)).map((note) => note[1]));
    return (pitch) => !held.has(pitch);
  });
}

const PROCESSORS = { warped, beside, notSounding };
export const processor = ([name, options]) => PROCESSORS[name](options);
