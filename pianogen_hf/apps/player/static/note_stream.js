// A note transformer at work on one piece: it writes note after note, in sight of notes that are given.
// What generation/note_stream.py does where given notes are seen as early as there is room for them.
// A note is [onset in seconds, pitch, velocity, duration in seconds].

import { Controls, END_CLASS, FIRST_STEPS, GAP_LEFT, LAST_STEPS, MIDDLE_STEPS, NUM_TIME_CLASSES, classesOf, rint } from "./classes.js";
import { choose, guided } from "./drawing.js";
import { DURATION, NUM_PITCHES, PITCH, TIME_SHIFT } from "./model.js";

export const ONSET = 0;
export const AHEAD_SHARE = 0.375; // of the window, for notes that are given ahead
const KEPT_SHARE = 0.5; // of the window, for what was written before, when it is full
const FAR_SEC = 1e12;
const TINY = 1e-4; // what onsets differ by for being floating-point numbers

class NothingLeft extends Error {} // of a field may be drawn

export class NoteStream {
  // `random`: gives numbers in [0, 1).
  constructor(model, random = Math.random) {
    this.model = model;
    this.random = random;
    this.rate = model.config.sampling_rate;
    this.window = model.config.max_position_embeddings;
    this.controls = new Controls({}, model.config.control_sizes);
    this.processors = [];
    this.beginSec = 0; // before this no new note begins
    this.lookaheadSec = Infinity; // how long before its onset a given note is seen
    this.cache = this.freeCache = null; // the second is of the same rows, of which nothing is asked
    this.states = null; // hidden states of the last row
    this.offsets = []; // where the latest rows in the cache end, the latest first, in steps
    this.hear([]);
  }

  // How many of the latest notes a window from scratch holds.
  get room() {
    return Math.max(Math.trunc(this.window * KEPT_SHARE) - 1, 1);
  }

  // Begin anew with these notes, which are heard and stay. `given`: among them new ones are written; both by onset and pitch.
  hear(past, given = [], isBeginning = true) {
    Object.assign(this, { past, given, isBeginning, written: [], cache: null });
    this.pastEnd = past.length ? past.at(-1)[ONSET] : 0;
    this.pastClasses = classesOf(past, this.model.config);
    this.shown = given.length; // given notes that this window may meet
  }

  // Onset of the last note.
  get clock() {
    return this.written.length ? this.written.at(-1)[ONSET] : this.pastEnd;
  }

  // The next note; null for the end, or where no note is possible.
  async write(mayEnd, beforeSec = Infinity) {
    await this.meetAll();
    const note = this.#drawn(mayEnd, beforeSec);
    if (note !== null) this.written.push(note);
    return note;
  }

  // Forget the last note written; the window is read again.
  takeBack() {
    this.written.pop();
    this.cache = null;
  }

  // Notes as they are written. One that would begin at `endSec` or later is taken back, and is the last, but the first
  // begins earlier; from `mayEndSec` on the model may end.
  async *writtenUntil(endSec, mayEndSec = Infinity) {
    for (;;) {
      const note = await this.write(this.clock >= mayEndSec, this.written.length ? Infinity : endSec);
      if (note === null) return;
      if (note[ONSET] >= endSec) {
        this.takeBack();
        return;
      }
      yield note;
    }
  }

  // What is drawn ------------------------------------------------------------------------------------------------------

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
      const drawn = choose(scores, this.random);
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

  // Let the model meet what was written since it met something last, or a window from scratch.
  async meetAll() {
    const isNew = this.written.length > this.numRead;
    if (this.cache === null || this.#runsOut() || this.length + isNew > this.window) {
      this.cache = this.model.newCache();
      this.freeCache = this.controls.isGuided ? this.model.newCache() : null;
      [this.length, this.offsets] = [0, []];
      const { rows, roles, clock } = this.#wholeWindow();
      await this.#feed(rows, roles, clock);
    } else if (isNew) {
      const [, ...others] = this.written.at(-1), before = this.written.at(-2)?.[ONSET] ?? this.pastEnd;
      await this.#feed([[this.clock - before, ...others]], [false], [this.clock]);
    }
    this.numRead = this.written.length;
  }

  async #feed(rows, roles, clock) {
    await this.takeIn(rows, roles, clock);
    this.length += rows.length;
    const number = this.model.config.num_recent_offsets;
    this.offsets = [...this.ends(rows, roles, clock).reverse(), ...this.offsets, ...new Array(number).fill(0)].slice(0, number);
  }

  // Let the caches take up rows; where it is guided, the second one without what is guided.
  async takeIn(rows, roles, clock) {
    const asked = (controls) => clock.map((each) => this.controlIds(each, controls));
    this.states = [await this.model.read(this.cache, rows, roles, asked(this.controls))];
    if (!this.controls.isGuided) return;
    this.states.push(await this.model.read(this.freeCache, rows, roles, asked(this.controls.withoutGuided())));
  }

  // Where rows end, in steps.
  ends(rows, roles, clock) {
    return rows.map((row, index) => rint((clock[index] + (roles[index] ? row[TIME_SHIFT] : 0) + row[DURATION]) * this.rate));
  }

  // Whether there is more to give, and little of what this window may meet still lies ahead.
  #runsOut() {
    if (this.shown === this.given.length) return false;
    return this.shown - this.givenBefore(this.clock) < (this.window * AHEAD_SHARE) / 4;
  }

  // How many given notes begin before a moment.
  givenBefore(second) {
    return firstAtLeast(this.given.map((note) => note[ONSET]), second);
  }

  // What is asked after a row; of the past, what it was like itself, and no end of a gap that lay ahead.
  controlIds(clock, controls) {
    const ids = controls.at(clock);
    if (clock >= this.pastEnd) return ids;
    ids[GAP_LEFT] = 0;
    return ids.map((id, control) => (id > 0 && this.pastClasses[control] > 0 ? this.pastClasses[control] : id));
  }

  // A window from scratch: of what was written the latest part, of what is given what lies beside and ahead.
  #wholeWindow() {
    const written = [...this.past, ...this.written], ahead = this.givenBefore(this.clock);
    this.shown = this.seenUntil = Math.min(this.given.length, ahead + Math.trunc(this.window * AHEAD_SHARE));
    const onsets = [...written, ...this.given.slice(0, ahead)].map((note) => note[ONSET]).sort((one, other) => one - other);
    const oldest = onsets.length > this.room ? onsets.at(-this.room) : -Infinity;
    const isInSight = (note) => note[ONSET] >= oldest;
    const kept = written.filter(isInSight);
    if (!kept.length || (kept.length === written.length && this.isBeginning)) kept.unshift([0, this.model.config.bos_token_id, 0, 0]);
    return arranged(kept, this.given.slice(0, this.shown).filter(isInSight), this.beginSec, this.lookaheadSec);
  }
}

// Rows of notes in the order in which a model meets them, their roles (whether each is given), and the onset of the last
// written one at each. `helpedFromSec`: from here on given notes help to predict written ones.
export function arranged(kept, shown, helpedFromSec, lookaheadSec) {
  const notes = [...kept.map((note) => [note, false]), ...shown.map((note) => [note, true])];
  notes.sort(([one, oneGiven], [other, otherGiven]) => one[ONSET] - other[ONSET] || oneGiven - otherGiven);
  const begin = Math.max(kept.filter((note) => note[ONSET] < helpedFromSec).length, 1);
  const onsets = [...notes.map(([note]) => note[ONSET]), FAR_SEC]; // and the note that is written next
  const order = metOrder(onsets, [...notes.map(([, isGiven]) => isGiven), false], begin, lookaheadSec).slice(0, -1);
  const onset = order.map((index) => onsets[index]), roles = order.map((index) => notes[index][1]);
  const clock = writtenOnsets(onset, roles);
  const rows = order.map((index, place) => {
    const [, pitch, velocity, duration] = notes[index][0];
    return [rint((onset[place] - clock[Math.max(place - 1, 0)]) * 1000) / 1000, pitch, velocity, duration];
  });
  return { rows, roles, clock };
}

// Place of the first of rising values that is at least `value`.
export function firstAtLeast(values, value) {
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
