// A session without a server: the model runs in a thread of the browser. To the page it is what `ServerSession` is.

import { LiveEngine, wishOf } from "./live.js";
import { readMidi, writeMidi } from "./midi.js";
import { accompanyPlan, endPlan, fillPlan, withNew } from "./piece.js";

const TICK_MS = 10; // notes are told a second or so ahead: nothing is late by that
const ENDING_SEC = 15; // of a piece that is to come to its end, where nobody says how long
const PARTS = ["piece", "accompaniment"];

// The model, as the engine asks it.
class DistantModel {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #waiting = new Map(); // for answers, by number of the question
  #number = 0;

  // Fetch the model; `onProgress` is told the share that has come.
  load(folder, onProgress) {
    return new Promise((resolve, reject) => {
      this.#worker.onerror = (event) => reject(new Error(event.message || "this browser runs no threads made of modules"));
      this.#worker.onmessage = ({ data }) => {
        if (data.type === "loading") onProgress(data.share);
        if (data.type === "failed") reject(new Error(data.message));
        if (data.type !== "ready") return;
        this.config = data.config;
        this.windowSize = data.config.max_position_embeddings;
        this.rate = data.config.sampling_rate;
        this.#worker.onmessage = (event) => this.#take(event.data);
        resolve(this);
      };
      this.#worker.postMessage({ type: "load", folder });
    });
  }

  // Do one step of a session; a promise of {drawn, isMore}.
  work(job) {
    return this.#ask("live", job);
  }

  // Write what a plan for a piece says; a promise of rows. `onShare` is told how much is done.
  async write(job, onShare) {
    return (await this.#ask("write", job, onShare)).rows;
  }

  #ask(type, job, onShare) {
    const number = this.#number++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject, onShare });
      this.#worker.postMessage({ type, number, job });
    });
  }

  #take({ type, number, share, message, ...answer }) {
    const { resolve, reject, onShare } = this.#waiting.get(number);
    if (type === "progress") {
      onShare(share);
      return;
    }
    this.#waiting.delete(number);
    if (type === "done") resolve(answer);
    else reject(new Error(message));
  }
}

export class BrowserSession {
  #pieces = []; // as it was opened, and after each change
  #files = new Map(); // addresses that were given for files, by name

  async begin(onEvent) {
    this.onEvent = onEvent;
    try {
      this.model = await new DistantModel().load(new URL("model/", location.href).href, (share) =>
        onEvent({ type: "state", state: `loading ${Math.floor(100 * share)} %` }));
      this.engine = new LiveEngine(this.model, onEvent);
      onEvent(this.engine.summary());
      const clock = new Worker(new URL("./clock.js", import.meta.url), { type: "module" });
      clock.onmessage = () => this.engine.tick();
      clock.postMessage(TICK_MS);
    } catch (error) {
      onEvent({ type: "lost", message: `The model can't be loaded: ${error.message}` });
    }
  }

  send(message) {
    const { engine } = this;
    if (!engine) return;
    if (message.type === "midi") engine.receive(message.bytes);
    else if (message.type === "knobs") engine.turnKnobs(message.values);
    else if (message.type === "hand_over") engine.handOver();
    else if (["stop", "undo", "record"].includes(message.type)) engine[message.type]();
  }

  async openPiece(bytes) {
    const { notes, ...others } = readMidi(bytes);
    this.#pieces = [{ notes: notes.map((note) => ({ ...note, part: 0, isNew: false })), ...others }];
    return this.#shown();
  }

  // As `POST /verb` of `pianogen play`. `wish`: {verb, start, end, side, seed}.
  async changePiece(wish) {
    if (!this.engine) throw new Error("the model is still on its way");
    const piece = this.#pieces.at(-1);
    if (wish.verb === "undo") {
      if (this.#pieces.length > 1) this.#pieces.pop();
    } else if (wish.verb === "continue") {
      this.engine.load(piece);
      this.engine.handOver();
    } else {
      const plan = this.#plan(piece, wish), { knobs } = this.engine;
      const choice = { temperature: knobs.temperature, topP: knobs.top_p };
      const job = { plan, wish: wishOf(knobs), choice, seed: wish.seed ?? null };
      const rows = await this.model.write(job, (share) => this.onEvent({ type: "progress", share }));
      this.#pieces.push(withNew(piece, rows, plan, wish.verb === "accompany" ? 1 : 0));
    }
    return this.#shown();
  }

  #plan(piece, { verb, start, end, side }) {
    const { config } = this.model;
    if (verb === "fill") return fillPlan(piece, start, end, config);
    if (verb === "accompany") return accompanyPlan(piece, side, config);
    return endPlan(piece, this.engine.knobs.answer_sec ?? ENDING_SEC, config);
  }

  #shown() {
    const milliseconds = (seconds) => Math.round(1000 * seconds);
    const notes = this.#pieces.at(-1).notes.map(({ onset, offset, pitch, velocity, isNew }) =>
      [milliseconds(onset), milliseconds(offset - onset), pitch, velocity, Number(isNew)]);
    return { notes };
  }

  // Where what was played, or the piece, can be had as a MIDI file: "session.mid" or "piece.mid".
  fileAddress(name) {
    URL.revokeObjectURL(this.#files.get(name));
    const bytes = name === "piece.mid" ? this.#pieceFile() : this.engine?.midi() ?? new Uint8Array();
    this.#files.set(name, URL.createObjectURL(new Blob([bytes], { type: "audio/midi" })));
    return this.#files.get(name);
  }

  #pieceFile() {
    const { notes, pedals, timing } = this.#pieces.at(-1), voices = notes.map((note) => ({ ...note, voice: note.part }));
    return writeMidi(voices, pedals, notes.some((note) => note.part) ? PARTS : PARTS.slice(0, 1), timing);
  }

  address(path) {
    return path;
  }
}
