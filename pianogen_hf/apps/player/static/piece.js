// A piece that was opened, and what the model can do with it: generation/filling.py and note_verbs.py.
// A piece: {notes: [{onset, offset, end, pitch, velocity, part, isNew}], pedals: [[second, value]], timing}, as `readMidi` gives
// it, times in seconds; `end` is when a note has died away with the pedal, and `part` 1 are notes of an accompaniment.

import { Controls, KEY, classesOf } from "./classes.js";
import { processor } from "./drawing.js";
import { onGrid } from "./notes.js";

const TINY_SEC = 1e-4; // what times differ by for being floating-point numbers
const END_SLACK = 0.15; // share of a wished length by which a piece may be longer or shorter when it ends by itself
const TRIES = 3; // of a plan of which no note comes
const PEDAL_DOWN = 64;
const isBefore = (note, second) => note.onset < second - TINY_SEC;
const isIn = (note, start, end) => !isBefore(note, start) && isBefore(note, end);
const latest = (values) => values.reduce((one, other) => Math.max(one, other), 0);
const lastOffset = (piece) => latest(piece.notes.map((note) => note.offset));

// What a stream is to write is a plan: {past, given, beginSec, endSec, processors}, with `mayEndSec` where the model may end
// earlier, `gapEndSec` of a gap, `pieceEndSec` where the piece is to end, and a `usual` wish. `config`: the model's.

// A gap between two times, in sight of both sides.
export function fillPlan(piece, start, end, { sampling_rate: rate }) {
  [start, end] = checkedSpan(piece, start, end);
  const kept = piece.notes.filter((note) => !isIn(note, start, end));
  return {
    past: onGrid(piece.notes.filter((note) => isBefore(note, start)), rate),
    given: onGrid(piece.notes.filter((note) => !isBefore(note, end)), rate),
    beginSec: start, endSec: end, gapEndSec: end,
    mayEndSec: (start + end) / 2, // a gap may end in a rest, but not be one
    processors: [["notSounding", { kept: heldKeys(kept) }]],
  };
}

// A second part below or above the piece.
export function accompanyPlan(piece, side, config) {
  const given = onGrid(piece.notes, config.sampling_rate);
  const end = latest([lastOffset(piece), ...given.map(([onset, , , duration]) => onset + duration)]);
  const [factor, exponent] = config.usual_density[side]; // of a part beside another one
  const density = Math.min(Math.max(factor * (given.length / end) ** exponent, 0.5), 20);
  const usual = { density, key: classesOf(given, config)[KEY] };
  return { past: [], given, beginSec: 0, endSec: end, usual, processors: [["beside", { given: heldKeys(piece.notes), side }]] };
}

// What follows the piece and comes to its end after about so many seconds.
export function endPlan(piece, seconds, { sampling_rate: rate }) {
  const beginSec = latest(piece.notes.map((note) => note.end)), pieceEndSec = beginSec + seconds, slack = END_SLACK * seconds;
  return {
    past: onGrid(piece.notes, rate), given: [], beginSec, endSec: pieceEndSec + slack, mayEndSec: pieceEndSec - slack, pieceEndSec,
    processors: [],
  };
}

// Keys as fingers hold them, without pedal.
const heldKeys = (notes) => notes.map(({ onset, offset, pitch, velocity }) => [onset, pitch, velocity, offset - onset]);

function checkedSpan(piece, start, end) {
  const last = Math.min(end, lastOffset(piece));
  if (!(start >= 0 && start < last)) throw new Error(`from ${start} to ${end} s there is nothing to fill: give a start and a later end`);
  return [start, last];
}

// Notes that a stream writes by a plan. `wish`: what is asked of them; `choice`: {temperature, topP}; `onShare`: told how
// much is done.
export async function written(stream, plan, wish, choice, onShare = () => {}) {
  const times = { gapEndSec: plan.gapEndSec, endSec: plan.pieceEndSec }, density = wish.density ?? plan.usual?.density;
  stream.controls = new Controls({ ...wish, ...times, density, key: plan.usual?.key }, stream.model.config.control_sizes);
  stream.processors = [...plan.processors, ["warped", choice]].map(processor);
  stream.beginSec = plan.beginSec;
  const notes = [];
  for (let tries = 0; tries < TRIES && !notes.length; tries++) {
    stream.hear(plan.past, plan.given);
    for await (const note of stream.writtenUntil(plan.endSec, plan.mayEndSec ?? Infinity)) {
      notes.push(note);
      onShare(Math.min(Math.max((note[0] - plan.beginSec) / (plan.endSec - plan.beginSec), 0), 1));
    }
  }
  if (!notes.length) throw new Error("no new note is possible here: give more room, or leave something out");
  return notes;
}

// The piece with new rows; what stood in a gap is gone, with its pedal.
export function withNew(piece, rows, plan, part) {
  const { beginSec: start, endSec: end } = plan, isFilled = Boolean(plan.gapEndSec);
  const base = isFilled ? withoutGap(piece, start, end) : piece;
  const kept = base.notes.map((note) => ({ ...note }));
  const struck = new Set(kept.map(strikeOf));
  const fresh = rows.map(([onset, pitch, velocity, duration]) => {
    const begin = Math.min(Math.max(onset, start), Math.max(end - 0.001, start));
    const offset = Math.max(Math.min(onset + duration, end), begin + 0.001);
    return { onset: begin, offset, end: offset, pitch, velocity, part, isNew: true };
  });
  const first = fresh.filter((note) => !struck.has(strikeOf(note)) && struck.add(strikeOf(note)));
  const notes = [...kept, ...first].sort((one, other) => one.onset - other.onset || one.pitch - other.pitch);
  for (const note of first) { // it ends where its key is struck again
    const next = notes.find((other) => other.pitch === note.pitch && other.onset > note.onset);
    if (next) note.offset = note.end = Math.min(note.offset, next.onset);
  }
  return { ...base, notes };
}

const strikeOf = ({ onset, pitch }) => 128 * Math.round(1000 * onset) + pitch;

// What stays around a gap: its pedal is up within, and as it was from its end on.
function withoutGap(piece, start, end) {
  const notes = piece.notes.filter((note) => !isIn(note, start, end)).map((note) =>
    (isBefore(note, start) ? { ...note, end: Math.max(note.offset, Math.min(note.end, start)) } : note));
  const lastBefore = (second) => piece.pedals.findLast(([at]) => at < second)?.[1] ?? 0;
  const pedals = piece.pedals.filter(([at]) => at < start || at >= end);
  if (lastBefore(start) >= PEDAL_DOWN) pedals.push([start, 0]);
  if (lastBefore(end) >= PEDAL_DOWN) pedals.push([end, lastBefore(end)]);
  pedals.sort(([one], [other]) => one - other);
  return { ...piece, notes, pedals };
}
