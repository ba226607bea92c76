// A note transformer that listens: what it heard may change at any time, and is read while more of it comes.
// What generation/live_stream.py does.

import { AHEAD_SHARE, NoteStream, ONSET, arranged, firstAtLeast } from "./note_stream.js";

const PART = 32; // rows read at a time while somebody plays, so that a hand-over waits for few

// Differs from its parent: `hear` puts other notes in place of what was heard, and only rows from the first that differs
// on are read again; the music begins with its first note, and what is asked is asked of new notes alone.
export class LiveStream extends NoteStream {
  constructor(model, random) {
    super(model, random);
    this.lookaheadSec = 0;
    this.helpedFromSec = -Infinity; // from here on given notes help to predict written ones
    this.oldest = -Infinity; // onset from which on the window reaches
    this.rows = []; // in the caches
    this.roles = [];
    this.asked = [];
  }

  // Take these notes for all that was heard so far, and is given.
  hear(past, given = [], isBeginning = true) {
    Object.assign(this, { past, given, isBeginning, written: [] });
    this.pastEnd = past.length ? past.at(-1)[ONSET] : this.beginning();
  }

  // Where the row of the beginning lies: at the first note, or where new music begins if that is earlier.
  beginning() {
    return Math.min(this.beginSec, ...[this.past, this.given].filter((notes) => notes.length).map((notes) => notes[0][ONSET]));
  }

  // Read a part of what was heard and not yet read; whether there is more to read.
  read() {
    return this.#read(PART);
  }

  async meetAll() {
    await this.#read(this.window);
  }

  // Read at most so many rows; whether others are left. Only those from the first that differs on are read.
  async #read(most) {
    const { rows, roles, clock } = this.#wholeWindow();
    const asked = clock.map((each) => this.controlIds(each, this.controls));
    let same = this.#numSame(rows, roles, asked);
    if (same === rows.length && same === this.rows.length) return false;
    same = Math.min(same, rows.length - 1); // the last one is always read: from its hidden state notes are drawn
    const end = Math.min(same + most, rows.length), part = (values) => values.slice(same, end);
    this.#rewind(rows.slice(0, same), roles.slice(0, same));
    await this.takeIn(part(rows), part(roles), part(clock));
    [this.rows, this.roles, this.asked] = [rows, roles, asked].map((values) => values.slice(0, end));
    const number = this.model.config.num_recent_offsets, ends = this.ends(this.rows, roles, clock);
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
  controlIds(clock, controls) {
    return clock >= this.pastEnd ? controls.at(clock) : new Array(controls.sizes.length).fill(0);
  }

  // The window; its beginning stays where it is for as long as there is room, so that little is read again.
  #wholeWindow() {
    const written = [...this.past, ...this.written];
    const ahead = this.givenBefore(this.clock);
    const until = this.lookaheadSec === Infinity ? ahead + Math.trunc(this.window * AHEAD_SHARE) : this.given.length;
    const given = this.given.slice(0, until);
    this.seenUntil = given.length;
    const onsets = [...written, ...given].map((note) => note[ONSET]).sort((one, other) => one - other);
    this.#move(onsets);
    const [inSight, shown] = [written, given].map((notes) => notes.filter((note) => note[ONSET] >= this.oldest));
    const kept = inSight.length ? inSight : written.slice(-1);
    if (!kept.length || (this.isBeginning && this.oldest <= onsets[0])) {
      kept.unshift([this.beginning(), this.model.config.bos_token_id, 0, 0]);
    }
    return arranged(kept, shown, this.helpedFromSec, this.lookaheadSec);
  }

  // Begin the window later if it has no more room, and earlier again if notes were taken back.
  #move(onsets) {
    const size = onsets.length - firstAtLeast(onsets, this.oldest);
    if (size > this.window - 2 || (size < Math.floor(this.room / 2) && size < onsets.length)) {
      this.oldest = onsets.length > this.room ? onsets.at(-this.room) : -Infinity;
    }
  }
}
