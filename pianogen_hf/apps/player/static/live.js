// A session without a server: what generation/live.py does, by the same rules. Notes are told as soon as they are known,
// with their times, and the page sounds them by the clock of its audio system.

import { placed } from "./notes.js";
import { writeMidi } from "./midi.js";

export const PLAYER = 0, MODEL = 1, LOOP = 2; // voices; LOOP is a phrase of the player's that comes again
const VOICES = ["player", "model", "loop"];
const ONSET = 0, PITCH = 1, VELOCITY = 2, DURATION = 3; // of placed notes
const AHEAD_SEC = { answer: 1.5, accompany: 0.4, loop: 2.0 }; // how far the model writes ahead
const FIRST_WITHIN_SEC = 0.03; // of its turn the model begins an answer
const GRACE_SEC = 0.08; // after a hand-over the rest of a chord may still come
const LONGEST_NOTE_SEC = 8; // of the model's
const RING_SEC = 1; // for which an answer may ring on after its time
const REST_SEC = 2.5; // after which an accompaniment waits for the player
const STUCK_SEC = 10; // a key that is held for longer does not keep a pause from being one
const SHORTEST_SEC = 2, LONGEST_SEC = 20; // of an answer that is as long as the phrase
const WITHOUT_PHRASE_SEC = 10; // of an answer to nothing, or to a piece that was loaded
const OPEN_SEC = 0.4; // what a note that is still held is taken to last, until the player has shown otherwise
const MARGIN_SEC = 0.003; // between the time a note is ready and its onset
const LATE_SEC = 0.05; // a note that is ready later than this after its time is left out
const MOST_FAILURES = 3; // of the model, one after the other
const NOTE_OFF = 0x80, NOTE_ON = 0x90, CONTROL = 0xb0, SUSTAIN = 64, PEDAL_DOWN = 64, DRUM_CHANNEL = 9;
const ENDING_CONTROLS = [120, 123]; // all sounds, all notes

const KNOBS = {
  mode: "answer", hand_over: "pause", pause_sec: 0.6, pedal: 67, key: 21, answer_sec: null, side: null, temperature: 1, top_p: 0.95,
  density: null, register: null, loudness: null, key_name: null, kind: null, guidance_scale: 2,
};

// What knobs ask of the model.
export function wishOf({ density, register, loudness, key_name: keyName, kind, guidance_scale: guidanceScale }) {
  return { density, register, loudness, keyName, kind, guidanceScale };
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
let numNotes = 0;

function makeNote(voice, onset, pitch, velocity, values = {}) {
  return { id: numNotes++, voice, onset, pitch, velocity, offset: null, end: null, turn: 0, isSent: false, row: null, ...values };
}

function finish(note, second) {
  note.offset = Math.min(note.offset ?? second, second);
  note.end = Math.min(note.end ?? second, second);
}

// What the player holds and has played.
class Keys {
  constructor() {
    Object.assign(this, { notes: [], pedals: [], held: new Map(), lastEvent: 0, ringing: new Map(), isDown: false });
  }

  // Take a message; gives the note that it began, if any.
  receive([status, number, value = 0], second) {
    const kind = status & 0xf0;
    if ((status & 0x0f) === DRUM_CHANNEL) return null;
    if (kind === NOTE_ON && value > 0) return this.#strike(number, value, second);
    if (kind === NOTE_ON || kind === NOTE_OFF) this.#release(number, second);
    else if (kind === CONTROL && number === SUSTAIN) this.#movePedal(value, second);
    else if (kind === CONTROL && ENDING_CONTROLS.includes(number)) this.releaseAll(second);
    return null;
  }

  releaseAll(second) {
    for (const pitch of [...this.held.keys()]) this.#release(pitch, second);
    if (this.isDown) this.#movePedal(0, second);
  }

  #strike(pitch, velocity, second) {
    this.#release(pitch, second);
    if (this.ringing.has(pitch)) this.ringing.get(pitch).end = second;
    this.ringing.delete(pitch);
    const note = makeNote(PLAYER, second, pitch, velocity, { isSent: true });
    this.held.set(pitch, note);
    this.notes.push(note);
    this.lastEvent = second;
    return note;
  }

  #release(pitch, second) {
    const note = this.held.get(pitch);
    if (!note) return;
    this.held.delete(pitch);
    note.offset = this.lastEvent = second;
    if (this.isDown) this.ringing.set(pitch, note);
    else note.end = second;
  }

  #movePedal(value, second) {
    this.pedals.push([second, value]);
    const wasDown = this.isDown;
    this.isDown = value >= PEDAL_DOWN;
    if (this.isDown || !wasDown) return;
    this.lastEvent = second;
    for (const note of this.ringing.values()) note.end = second;
    this.ringing.clear();
  }
}

// A session. `model`: {windowSize, rate, work(job)}, of which `work` gives a promise of {drawn, isMore};
// `clock`: seconds, never falling; `onEvent`: called with what happens, as the server of `pianogen play` tells it.
export class LiveEngine {
  constructor(model, onEvent, clock = () => performance.now() / 1000) {
    Object.assign(this, { model, onEvent, clock, knobs: { ...KNOBS }, keys: new Keys() });
    this.origin = clock();
    this.numRecent = 2 * model.windowSize; // more than a window: so it begins at the same note for a while
    this.others = []; // notes of the model and of the loop, in the order in which they begin
    this.waiting = new Set(); // notes whose time has not come
    this.turn = this.loop = null;
    this.turnNumber = this.epoch = this.version = this.numFailures = 0;
    this.readVersion = -1;
    this.phraseFrom = 0;
    this.handedOver = this.recordedFrom = -Infinity;
    this.toldState = "";
    this.drawSecs = [0.03];
    this.isWorking = false;
    this.numDropped = 0;
  }

  now() {
    return this.clock() - this.origin;
  }

  get state() {
    if (this.loop) return "looping";
    if (!this.turn?.isBegun) return "listening";
    return this.knobs.mode === "accompany" ? "accompanying" : "answering";
  }

  // Both sides since recording began, as the bytes of a MIDI file.
  midi() {
    const now = this.now();
    const notes = [...this.keys.notes, ...this.others].filter((note) => note.isSent && note.onset >= this.recordedFrom);
    const pedals = this.keys.pedals.filter(([second]) => second >= this.recordedFrom);
    const origin = Math.min(...notes.map((note) => note.onset), ...pedals.map(([second]) => second));
    return writeMidi(
      notes.map((note) => ({ ...note, onset: note.onset - origin, offset: (note.offset ?? now) - origin })),
      notes.length ? pedals.map(([second, value]) => [second - origin, value]) : [],
      VOICES,
    );
  }

  summary() {
    const notes = [...this.keys.notes, ...this.others].sort((one, other) => one.onset - other.onset);
    return { type: "hello", now: this.now(), state: this.state, knobs: this.knobs, notes: notes.map((note) => ({ ...note })) };
  }

  // What the player does --------------------------------------------------------------------------------------------

  receive(bytes) {
    if (this.#isHandOver(bytes)) return;
    const now = this.now(), held = [...this.keys.held.values()];
    const note = this.keys.receive(bytes, now);
    this.version++;
    if (this.keys.lastEvent === now) this.#endDraft(); // it was to begin after a pause
    if (note) {
      this.epoch++;
      note.turn = this.turnNumber;
      this.#struck(note);
    }
    const still = new Set(this.keys.held.values());
    for (const each of held) if (!still.has(each)) this.#tell("off", { id: each.id, offset: each.offset });
  }

  // It is the model's turn; in a loop, the loop begins or ends.
  handOver() {
    const now = this.now(), { mode } = this.knobs;
    if (mode === "accompany" || (this.turn?.isBegun && !this.loop)) return;
    if (this.numFailures >= MOST_FAILURES) this.#tell("error", { message: "the model has failed again and again: stop, and hand over once more" });
    else if (this.loop) this.#endTurn(now);
    else if (mode === "loop") this.#beginLoop(now);
    else this.#beginAnswer(now);
    this.#tellState();
  }

  turnKnobs(values) {
    const now = this.now();
    if (values.mode && values.mode !== this.knobs.mode) {
      this.#endTurn(now);
      this.phraseFrom = now;
    }
    Object.assign(this.knobs, values);
    this.version++; // other controls may ask for another reading
    this.#tell("knobs", { knobs: this.knobs });
    this.#tellState();
  }

  stop() {
    this.#endTurn(this.now());
    this.numFailures = 0;
    this.#tellState();
  }

  record() {
    this.recordedFrom = this.now();
  }

  // Take back the latest answer or phrase, whichever came last.
  undo() {
    this.#endTurn(this.now());
    const notes = [...this.keys.notes, ...this.others], held = new Set(this.keys.held.values());
    const last = Math.max(0, ...notes.map((note) => note.turn));
    const gone = new Set(notes.filter((note) => note.turn === last && !held.has(note)));
    this.#tell("cancel", { ids: [...gone].map((note) => note.id) });
    this.keys.notes = this.keys.notes.filter((note) => !gone.has(note));
    this.#drop(gone);
    this.epoch++;
    this.version++;
  }

  // Begin a new session with a piece, as if it had just been played.
  load(piece) {
    this.#endTurn(this.now());
    this.keys = new Keys();
    const end = Math.max(...piece.notes.map((note) => note.offset));
    this.origin = this.clock() - end - 0.01;
    this.keys.notes = piece.notes.map(({ onset, offset, end: died, pitch, velocity }) =>
      makeNote(PLAYER, onset, pitch, velocity, { offset, end: died, isSent: true }));
    this.keys.pedals = piece.pedals;
    this.others = [];
    this.turnNumber = 0;
    this.recordedFrom = this.handedOver = -Infinity;
    this.phraseFrom = this.keys.lastEvent = this.now();
    this.epoch++;
    this.version++;
    this.onEvent(this.summary());
  }

  // What is to be called again and again ----------------------------------------------------------------------------

  // See what has begun to sound, whose turn it is, and whether the model has something to do.
  tick() {
    const now = this.now();
    for (const note of this.waiting) if (note.onset <= now) this.#begin(note);
    this.#seeWhoseTurn(now);
    this.#work(now);
  }

  #begin(note) {
    this.waiting.delete(note);
    for (const other of this.others) { // a key ends where it is struck again
      if (other.isSent && other.pitch === note.pitch && other.offset > note.onset) finish(other, note.onset);
    }
    note.isSent = true;
  }

  async #work(now) {
    const job = this.isWorking ? null : this.#nextJob(now);
    if (!job) return;
    this.isWorking = true;
    try {
      const { drawn, isMore } = await this.model.work(job.order);
      if (job.turn) {
        this.numFailures = 0;
        this.drawSecs = [...this.drawSecs, this.now() - now].slice(-16);
        this.#take(job, drawn);
      } else if (!isMore) this.readVersion = job.version;
    } catch (error) {
      this.#fail(error);
    }
    this.isWorking = false;
    this.#work(this.now()); // at once: a tick would be milliseconds later
  }

  // Turns -----------------------------------------------------------------------------------------------------------

  // Whether a message is the sign that hands over; it is then no music.
  #isHandOver([status, number, value]) {
    const kind = status & 0xf0, { knobs } = this;
    if (knobs.hand_over === "pedal" && kind === CONTROL && number === knobs.pedal) {
      if (value >= PEDAL_DOWN) this.handOver();
      return true;
    }
    if (knobs.hand_over === "key" && (kind === NOTE_ON || kind === NOTE_OFF) && number === knobs.key) {
      if (kind === NOTE_ON && value > 0) this.handOver();
      return true;
    }
    return false;
  }

  // What a note of the player's does to the model's turn.
  #struck(note) {
    const { id, onset, pitch, velocity } = note;
    this.#tell("note", { id, voice: PLAYER, onset, pitch, velocity });
    if (this.knobs.mode === "accompany") {
      if (!this.turn) {
        this.turn = makeTurn(++this.turnNumber, onset, Infinity, true);
        this.#tellState();
      }
      this.#forget(this.turn);
      this.turn.isWritten = false;
    } else if (!this.turn) {
      return;
    } else if (onset - this.handedOver <= GRACE_SEC) {
      this.#forget(this.turn);
      note.turn = this.turn.number - 1;
    } else if (this.loop) {
      this.#forget(this.turn);
      this.turn.isWritten = true; // the player takes the gap
    } else {
      this.#endTurn(onset);
      this.phraseFrom = onset;
      note.turn = this.turnNumber;
      this.#tellState();
    }
  }

  // Take back what of a turn has not begun to sound.
  #forget(turn) {
    const gone = new Set(turn.notes.filter((note) => !turn.isBegun || this.waiting.has(note)));
    this.#drop(gone);
    turn.isWritten &&= !gone.size;
    if (gone.size && turn.isBegun) this.#tell("cancel", { ids: [...gone].map((note) => note.id) });
  }

  #drop(gone) {
    for (const note of gone) this.waiting.delete(note);
    this.others = this.others.filter((note) => !gone.has(note));
    if (this.turn) this.turn.notes = this.turn.notes.filter((note) => !gone.has(note));
  }

  #beginAnswer(now) {
    if (!this.turn || this.turn.isBegun) this.turn = this.#answer(now);
    const { turn } = this;
    if (Math.abs(now - turn.begin) > GRACE_SEC / 4) moveTurn(turn, now - turn.begin); // drafts for a pause that was not waited for
    turn.isBegun = true;
    this.turnNumber = turn.number;
    this.handedOver = now;
    for (const note of [...turn.notes]) this.#schedule(note);
  }

  // An answer to the phrase that was just played.
  #answer(begin) {
    let length = this.knobs.answer_sec;
    if (length === null) {
      const phrase = this.keys.notes.find((note) => note.onset >= this.phraseFrom);
      length = clamp(phrase ? this.keys.lastEvent - phrase.onset : WITHOUT_PHRASE_SEC, SHORTEST_SEC, LONGEST_SEC);
    }
    return makeTurn(this.turnNumber + 1, begin, begin + length, false);
  }

  // The phrase since the last turn becomes a loop, of which the first gap begins now.
  #beginLoop(now) {
    const phrase = this.keys.notes.filter((note) => note.onset >= this.phraseFrom);
    if (!phrase.length) {
      this.#tell("error", { message: "play a phrase first: it becomes the loop" });
      return;
    }
    const begin = phrase[0].onset;
    let end = Math.max(this.keys.lastEvent, phrase.at(-1).onset + 0.05);
    end = this.knobs.hand_over === "pause" ? Math.min(end, now) : now;
    const rows = this.#rows(phrase, now).map(([onset, ...others]) => [onset - begin, ...others]);
    const gapSec = this.knobs.answer_sec ?? clamp(end - begin, SHORTEST_SEC, LONGEST_SEC);
    this.loop = { rows, phraseSec: end - begin, gapSec, nextSec: now };
    this.#endDraft();
    this.#nextRound();
  }

  // The next gap, and the phrase after it.
  #nextRound() {
    const { loop } = this, begin = loop.nextSec, end = begin + loop.gapSec;
    const given = loop.rows.map(([onset, ...others]) => [onset + end, ...others]);
    this.turn = makeTurn(++this.turnNumber, begin, end, true, given);
    this.handedOver = begin;
    for (const [onset, pitch, velocity, duration] of given) {
      const offset = Math.min(onset + duration, end + loop.phraseSec + RING_SEC);
      const note = makeNote(LOOP, onset, pitch, velocity, { offset, end: offset, turn: this.turnNumber });
      this.others.push(note);
      this.#schedule(note);
    }
    loop.nextSec = end + loop.phraseSec;
  }

  #endDraft() {
    if (!this.turn || this.turn.isBegun) return;
    this.#forget(this.turn);
    this.turn = null;
    this.epoch++;
  }

  // The model's turn is over, with what it was about to play.
  #endTurn(now) {
    if (!this.turn && !this.loop) return;
    const wasBegun = this.turn?.isBegun;
    const gone = new Set(this.others.filter((note) => !note.isSent));
    for (const note of this.others) if (note.isSent && note.offset > now) finish(note, now);
    this.#drop(gone);
    this.#tell("silence", { ids: [...gone].map((note) => note.id), sec: now });
    this.turn = this.loop = null;
    this.epoch++;
    if (!wasBegun) return;
    this.turnNumber++;
    if (this.knobs.mode !== "accompany") this.phraseFrom = now;
  }

  #seeWhoseTurn(now) {
    const { turn, loop, knobs } = this;
    if (loop) {
      if (now >= loop.nextSec - AHEAD_SEC.loop && (!turn || now >= turn.end)) this.#nextRound();
    } else if (turn?.isBegun && turn.isWritten && !this.waiting.size) {
      if (now >= Math.max(turn.begin, ...turn.notes.map((note) => note.offset))) {
        this.turn = null; // played to its end
        this.turnNumber++;
        if (knobs.mode !== "accompany") this.phraseFrom = now;
      }
    } else if (knobs.mode === "accompany") {
      const isResting = now - this.keys.lastEvent > REST_SEC && !this.#holds(now);
      if (turn && !turn.isWritten && isResting) {
        this.#forget(turn);
        turn.isWritten = true;
      }
    } else if (knobs.hand_over === "pause" && now >= this.keys.lastEvent + knobs.pause_sec && this.#isWaiting(now)) {
      this.handOver();
    }
    this.#tellState();
  }

  // Whether the player has played a phrase and holds nothing any more.
  #isWaiting(now) {
    const last = this.keys.notes.at(-1);
    return last !== undefined && last.onset >= this.phraseFrom && !this.turn?.isBegun && !this.#holds(now);
  }

  #holds(now) {
    return [...this.keys.held.values()].some((note) => now - note.onset < STUCK_SEC);
  }

  // The model's work ------------------------------------------------------------------------------------------------

  #nextJob(now) {
    if (this.numFailures >= MOST_FAILURES) return null;
    const { mode, hand_over: handOver, pause_sec: pauseSec } = this.knobs;
    if (!this.turn && mode === "answer" && handOver === "pause" && this.#isWaiting(now)) {
      this.turn = this.#answer(Math.max(this.keys.lastEvent + pauseSec, now));
    }
    const { turn, epoch, version } = this;
    if (turn && !turn.isWritten) {
      const isDue = lastOnset(turn) < Math.max(now, turn.begin) + AHEAD_SEC[mode];
      const order = isDue ? this.#writing(turn, now) : null;
      return order && { turn, epoch, order };
    }
    if (this.readVersion === version) return null;
    const [past, given] = this.#heard(null, now);
    const times = { beginSec: now, lookaheadSec: 0, helpedFromSec: -Infinity };
    const order = { isWriting: false, past, given, ...times, wish: wishOf(this.knobs), processors: [] };
    return { turn: null, version, order };
  }

  // What the model is to do for the next note of a turn.
  #writing(turn, now) {
    const { knobs } = this, [past, given] = this.#heard(turn, now);
    if (knobs.mode === "accompany" && !given.length) return null;
    // A note is to be ready when its time comes; the first one leaves room for a chord.
    const usual = [...this.drawSecs].sort((one, other) => one - other)[Math.floor(0.75 * (this.drawSecs.length - 1))];
    const ready = now + (turn.notes.length ? 1 : 3) * usual + MARGIN_SEC;
    const beginSec = turn.isBegun ? Math.max(turn.begin, ready) : turn.begin;
    const kept = [...this.keys.held.values()].map((note) => [note.onset, note.pitch, note.velocity, Infinity]);
    const processors = [["warped", { temperature: knobs.temperature, topP: knobs.top_p }]];
    if (kept.length) processors.unshift(["notSounding", { kept }]);
    if (knobs.mode === "accompany" && knobs.side) processors.unshift(["beside", { given, side: knobs.side }]);
    const wish = { ...wishOf(this.knobs), gapEndSec: turn.given.length ? turn.end : null };
    return {
      isWriting: true, past, given, beginSec, beforeSec: this.#latest(turn, beginSec), wish, processors,
      lookaheadSec: turn.given.length ? Infinity : 0, helpedFromSec: turn.given.length ? turn.begin : -Infinity,
    };
  }


  // Before when the next note of a turn must begin; where that is after the turn, the turn may be over.
  #latest(turn, begin) {
    if (this.knobs.mode === "answer") return turn.notes.length ? turn.end + 1 : begin + FIRST_WITHIN_SEC;
    if (!turn.given.length) return turn.end + 1;
    if (!turn.notes.length) return Math.max(turn.begin + (turn.end - turn.begin) / 4, begin + FIRST_WITHIN_SEC); // no mere rest
    return lastOnset(turn) < (turn.begin + turn.end) / 2 ? turn.end : turn.end + 1;
  }

  // What the model hears as written and as given.
  #heard(turn, now) {
    now = turn ? Math.min(turn.begin, now) : now; // what is still held then has lasted until then
    const played = this.keys.notes.slice(-this.numRecent), others = this.others.slice(-this.numRecent);
    if (this.knobs.mode === "accompany") {
      const given = played.filter((note) => note.onset >= this.phraseFrom);
      const written = [...played.filter((note) => note.onset < this.phraseFrom), ...others];
      return [this.#rows(written, now), this.#rows(given, now, usualSec(given))];
    }
    const all = [...played, ...others];
    if (!turn?.given.length) {
      // As long as nobody knows how long a note lasts, reading what follows it would be for nothing.
      const still = turn ? Infinity : Math.min(...played.filter((note) => note.end === null).map((note) => note.onset));
      return [this.#rows(all.filter((note) => note.onset < still), now), []];
    }
    return [this.#rows(all.filter((note) => note.onset < turn.end), now), turn.given];
  }

  // Notes as they sounded; what still sounds is taken to end now, or to last for `openSec`.
  #rows(notes, now, openSec = null) {
    const latest = notes.sort((one, other) => one.onset - other.onset).slice(-this.numRecent);
    const ended = latest.map((note) => ({ ...note, end: note.end ?? (openSec === null ? now : note.onset + openSec) }));
    return placed(ended, this.model.rate);
  }

  // A note that was drawn becomes part of its turn, unless the session has gone another way meanwhile.
  #take({ turn, epoch, order }, drawn) {
    if (turn !== this.turn || epoch !== this.epoch) return;
    if (drawn === null || drawn[ONSET] >= turn.end) {
      turn.isWritten = true;
      return;
    }
    const onset = drawn[ONSET], pitch = drawn[PITCH], velocity = drawn[VELOCITY];
    const offset = Math.min(onset + Math.min(drawn[DURATION], LONGEST_NOTE_SEC), turn.end + RING_SEC);
    const before = order.past.length ? order.past.at(-1)[ONSET] : onset;
    const row = [onset - before, pitch, velocity, drawn[DURATION]];
    const note = makeNote(MODEL, onset, pitch, velocity, { offset, end: offset, turn: turn.number, row });
    turn.notes.push(note);
    this.others.push(note);
    if (turn.isBegun) this.#schedule(note);
  }

  #schedule(note) {
    if (this.now() - note.onset > LATE_SEC) {
      this.numDropped++;
      this.#drop(new Set([note]));
      this.epoch++;
      return;
    }
    this.waiting.add(note);
    const { id, voice, onset, pitch, velocity, offset, row } = note;
    this.#tell("note", { id, voice, onset, pitch, velocity, offset, row });
  }

  #fail(error) {
    this.numFailures++;
    this.#endTurn(this.now());
    this.readVersion = -1;
    this.#tell("error", { message: `the model failed: ${error.message}` });
    this.#tellState();
  }

  #tell(type, values) {
    this.onEvent({ type, now: this.now(), ...values });
  }

  #tellState() {
    if (this.state === this.toldState) return;
    this.toldState = this.state;
    this.#tell("state", { state: this.state });
  }
}

function makeTurn(number, begin, end, isBegun, given = []) {
  return { number, begin, end, isBegun, isWritten: false, given, notes: [] };
}

// Play all of a turn earlier or later.
function moveTurn(turn, seconds) {
  turn.begin += seconds;
  turn.end += seconds;
  for (const note of turn.notes) {
    note.onset += seconds;
    note.offset = note.end = note.offset + seconds;
  }
}

// Until when a turn is written.
const lastOnset = (turn) => turn.notes.at(-1)?.onset ?? turn.begin;

// How long notes usually are.
function usualSec(notes) {
  const known = notes.slice(-24).filter((note) => note.end !== null).map((note) => note.end - note.onset);
  if (!known.length) return OPEN_SEC;
  known.sort((one, other) => one - other);
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}
