// A note transformer that listens: what it heard may change at any time, and is read while more of it comes.
// What generation/note_stream.py and live_stream.py do. A note is [onset in seconds, pitch, velocity, duration in seconds].

import { Controls, END_CLASS, FIRST_STEPS, LAST_STEPS, MIDDLE_STEPS, NUM_TIME_CLASSES, rint } from "./classes.js";
import { draw, guided } from "./drawing.js";
import { DURATION, NUM_PITCHES, PITCH, TIME_SHIFT } from "./model.js";

const ONSET = 0;
const AHEAD_SHARE = 0.375; // of the window, for notes that are given ahead
const KEPT_SHARE = 0.5; // of the window, for what was written before, when it is full
const FAR_SEC = 1e12;
const TINY = 1e-4; // what onsets differ by for being floating-point numbers
const PART = 32; // rows read at a time while somebody plays, so that a hand-over waits for few

class NothingLeft extends Error {} // of a field may be drawn

export class LiveStream {
  // `random`: gives numbers in [0, 1).
  constructor(model, random = Math.random) {
    this.model = model;
    this.random = random;
    this.rate = model.config.sampling_rate;
    this.window = model.config.max_position_embeddings;
    this.controls = new Controls({}, model.config.control_sizes);
    this.processors = [];
    this.beginSec = 0;
    this.lookaheadSec = 0; // how long before its onset a given note is seen
    this.helpedFromSec = -Infinity; // from here on given notes help to predict written ones
    this.oldest = -Infinity; // onset from which on the window reaches
    this.rows = []; // in the caches
    this.roles = [];
    this.asked = [];
    this.cache = this.freeCache = null; // the second is of the same rows, of which nothing is asked
    this.states = null; // hidden states of the last row
    this.offsets = []; // where the latest rows in the cache end, the latest first, in steps
    this.hear([]);
  }

  // Take these notes for all that was heard so far, and is given.
  hear(past, given = [], isBeginning = true) {
    Object.assign(this, { past, given, isBeginning, written: [] });
    this.pastEnd = past.length ? past.at(-1)[ONSET] : this.#beginning();
  }

  // Where the row of the beginning lies: at the first note, or where new music begins if that is earlier.
  #beginning() {
    return Math.min(this.beginSec, ...[this.past, this.given].filter((notes) => notes.length).map((notes) => notes[0][ONSET]));
  }

  // Onset of the last note.
  get clock() {
    return this.written.length ? this.written.at(-1)[ONSET] : this.pastEnd;
  }

  // Read a part of what was heard and not yet read; whether there is more to read.
  read() {
    return this.#read(PART);
  }

  // The next note; null for the end, or where no note is possible.
  async write(mayEnd, beforeSec = Infinity) {
    await this.#read(this.window);
    const note = this.#drawn(mayEnd, beforeSec);
    if (note !== null) this.written.push(note);
    return note;
  }

  #drawn(mayEnd, beforeSec) {
    const last = this.written.at(-1) ?? this.past.at(-1);
    const before = last ? last[PITCH] : -1;
    const lastMet = this.seenUntil ? this.given[this.seenUntil - 1][ONSET] : -Infinity;
    const earliest = Math.max(this.beginSec, lastMet - this.lookaheadSec);
    const least = Math.max(Math.ceil((earliest - this.clock) * this.rate - TINY), before === NUM_PITCHES - 1 ? 1 : 0);
    const most = Math.ceil(Math.min((beforeSec - this.clock) * this.rate - TINY, 1e9)) - 1;
    const recent = this.offsets.map((offset) => offset - rint(this.clock * this.rate));
    const refused = new Set(); // time shifts at which no pitch is possible
    for (;;) {
      const shifts = [];
      try {
        const note = this.model.heads.drawNote(this.states, before, recent, this.#drawClass(mayEnd, least, most, refused, shifts));
        if (note[PITCH] >= NUM_PITCHES) return null;
        const steps = Math.min(Math.max(rint(note[TIME_SHIFT] * this.rate), least), most);
        note[ONSET] = rint(this.clock * this.rate + steps) / this.rate;
        return note;
      } catch (error) {
        if (!(error instanceof NothingLeft)) throw error;
        if (!shifts.length) return null;
        shifts.forEach((shift) => refused.add(shift));
      }
    }
  }

  // What draws the fields of a note; it notes down the class of its time shift in `shifts`.
  #drawClass(mayEnd, least, most, refused, shifts) {
    let onset = this.clock;
    const mayBegin = (index) => least <= LAST_STEPS[index] && most >= FIRST_STEPS[index] && least <= most;
    return (column, logits) => {
      let scores = logits.length === 2 ? guided(logits[0], logits[1], this.controls.guidanceScale) : logits[0];
      if (column === TIME_SHIFT) {
        scores = scores.map((score, index) =>
          ((index === END_CLASS ? mayEnd : mayBegin(index)) && !refused.has(index) ? score : -Infinity));
      }
      for (const process of [(...asked) => this.#towardKey(...asked), ...this.processors]) {
        scores = process(column, scores, onset);
        if (!scores.some(Number.isFinite)) throw new NothingLeft();
      }
      const drawn = draw(scores, this.random);
      if (column === TIME_SHIFT && drawn < NUM_TIME_CLASSES) {
        shifts.push(drawn);
        onset += Math.min(Math.max(MIDDLE_STEPS[drawn], least), most) / this.rate;
      }
      return drawn;
    };
  }

  // The processor of a key that is asked for: pitches that are rare in it become less likely.
  #towardKey(column, scores) {
    if (column !== PITCH || !this.controls.key) return scores;
    const { key_profiles: profiles, key_weight } = this.model.config;
    const weight = key_weight * this.controls.guidanceScale;
    return scores.map((score, pitch) => score + Math.fround(weight * profiles[this.controls.key - 1][pitch % 12]));
  }

  // What the model reads --------------------------------------------------------------------------------------------

  // Read at most so many rows; whether others are left. Only those from the first that differs on are read.
  async #read(most) {
    const { rows, roles, clock } = this.#wholeWindow();
    const asked = clock.map((each) => this.#controlIds(each, this.controls));
    let same = this.#numSame(rows, roles, asked);
    if (same === rows.length && same === this.rows.length) return false;
    same = Math.min(same, rows.length - 1); // the last one is always read: from its hidden state notes are drawn
    const end = Math.min(same + most, rows.length), part = (values) => values.slice(same, end);
    this.#rewind(rows.slice(0, same), roles.slice(0, same));
    const free = this.controls.withoutGuided();
    const states = [await this.model.read(this.cache, part(rows), part(roles), part(asked))];
    if (this.controls.isGuided) {
      const ids = part(clock).map((each) => this.#controlIds(each, free));
      states.push(await this.model.read(this.freeCache, part(rows), part(roles), ids));
    }
    this.states = states;
    [this.rows, this.roles, this.asked] = [rows, roles, asked].map((values) => values.slice(0, end));
    const number = this.model.config.num_recent_offsets;
    const ends = rows.slice(0, end).map((row, index) =>
      rint((clock[index] + (roles[index] ? row[TIME_SHIFT] : 0) + row[DURATION]) * this.rate));
    this.offsets = [...ends.slice(Math.max(end - number, 0)).reverse(), ...new Array(number).fill(0)].slice(0, number);
    return end < rows.length;
  }

  // Let the caches hold these rows, which they begin with, and no others.
  #rewind(rows, roles) {
    for (const name of ["cache", "freeCache"]) {
      if (name === "freeCache" && !this.controls.isGuided) this[name] = null;
      else if (!rows.length || this[name] === null) this[name] = this.model.newCache();
      else if (rows.length < this.rows.length) this.model.rewind(this[name], rows, roles);
    }
  }

  // How many rows of the caches need not be read again.
  #numSame(rows, roles, asked) {
    if (this.controls.isGuided && this.freeCache === null) return 0;
    const size = Math.min(rows.length, this.rows.length);
    const equal = (one, other) => one.every((value, index) => value === other[index]);
    for (let index = 0; index < size; index++) {
      const isSame = roles[index] === this.roles[index] && equal(rows[index], this.rows[index]);
      if (!isSame || !equal(asked[index], this.asked[index])) return index;
    }
    return size;
  }

  // What is asked after a row: of what follows the last note that was heard, and of nothing before.
  #controlIds(clock, controls) {
    return clock >= this.pastEnd ? controls.at(clock) : new Array(controls.sizes.length).fill(0);
  }

  // The window; its beginning stays where it is for as long as there is room, so that little is read again.
  #wholeWindow() {
    const written = [...this.past, ...this.written];
    const ahead = firstAtLeast(this.given.map((note) => note[ONSET]), this.clock);
    const until = this.lookaheadSec === Infinity ? ahead + Math.trunc(this.window * AHEAD_SHARE) : this.given.length;
    const given = this.given.slice(0, until);
    this.seenUntil = given.length;
    const onsets = [...written, ...given].map((note) => note[ONSET]).sort((one, other) => one - other);
    this.#move(onsets);
    const [inSight, shown] = [written, given].map((notes) => notes.filter((note) => note[ONSET] >= this.oldest));
    const kept = inSight.length ? inSight : written.slice(-1);
    if (!kept.length || (this.isBeginning && this.oldest <= onsets[0])) {
      kept.unshift([this.#beginning(), this.model.config.bos_token_id, 0, 0]);
    }
    return this.#arranged(kept, shown);
  }

  // Begin the window later if it has no more room, and earlier again if notes were taken back.
  #move(onsets) {
    const size = onsets.length - firstAtLeast(onsets, this.oldest);
    const room = Math.max(Math.trunc(this.window * KEPT_SHARE) - 1, 1);
    if (size > this.window - 2 || (size < Math.floor(room / 2) && size < onsets.length)) {
      this.oldest = onsets.length > room ? onsets.at(-room) : -Infinity;
    }
  }

  #arranged(kept, shown) {
    const notes = [...kept.map((note) => [note, false]), ...shown.map((note) => [note, true])];
    notes.sort(([one, oneGiven], [other, otherGiven]) => one[ONSET] - other[ONSET] || oneGiven - otherGiven);
    const begin = Math.max(kept.filter((note) => note[ONSET] < this.helpedFromSec).length, 1);
    const onsets = [...notes.map(([note]) => note[ONSET]), FAR_SEC]; // and the note that is written next
    const order = metOrder(onsets, [...notes.map(([, isGiven]) => isGiven), false], begin, this.lookaheadSec).slice(0, -1);
    const onset = order.map((index) => onsets[index]), roles = order.map((index) => notes[index][1]);
    const clock = writtenOnsets(onset, roles);
    const rows = order.map((index, place) => {
      const [, pitch, velocity, duration] = notes[index][0];
      return [rint((onset[place] - clock[Math.max(place - 1, 0)]) * 1000) / 1000, pitch, velocity, duration];
    });
    return { rows, roles, clock };
  }
}

// Place of the first of rising values that is at least `value`.
function firstAtLeast(values, value) {
  const place = values.findIndex((each) => each >= value);
  return place < 0 ? values.length : place;
}

// The order in which a model meets rows; see models/note_rows.py.
function metOrder(onsets, roles, begin, lookahead) {
  const writtenAt = onsets.filter((_, index) => !roles[index]);
  let count = -1;
  const places = onsets.map((onset, index) => {
    if (!roles[index]) return ++count;
    const helped = firstAtLeast(writtenAt, onset - lookahead);
    return Math.min(Math.max(helped, begin), writtenAt.length - 1) - 1;
  });
  const indices = onsets.map((_, index) => index);
  return indices.sort((one, other) => places[one] - places[other] || roles[other] - roles[one] || one - other);
}

// Onset of the last written row so far, at each row; before the first one, its own.
function writtenOnsets(onsets, roles) {
  let last = onsets[roles.indexOf(false)];
  return onsets.map((onset, index) => (last = roles[index] ? last : onset));
}
