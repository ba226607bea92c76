// A session without a server: the model runs in a thread of the browser. To the page it is what `ServerSession` is.

import { LiveEngine } from "./live.js";
import { readMidi } from "./midi.js";

const TICK_MS = 10; // notes are told a second or so ahead: nothing is late by that

// The model, as the engine asks it.
class DistantModel {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

  // Fetch the model; `onProgress` is told the share that has come.
  load(folder, onProgress) {
    return new Promise((resolve, reject) => {
      this.#worker.onerror = (event) => reject(new Error(event.message || "this browser runs no threads made of modules"));
      this.#worker.onmessage = ({ data }) => {
        if (data.type === "loading") onProgress(data.share);
        if (data.type === "failed") reject(new Error(data.message));
        if (data.type !== "ready") return;
        this.windowSize = data.config.max_position_embeddings;
        this.rate = data.config.sampling_rate;
        resolve(this);
      };
      this.#worker.postMessage({ type: "load", folder });
    });
  }

  // Do one piece of work; a promise of {drawn, isMore}.
  work(job) {
    return new Promise((resolve, reject) => {
      this.#worker.onmessage = ({ data }) => (data.type === "done" ? resolve(data) : reject(new Error(data.message)));
      this.#worker.postMessage({ type: "work", job });
    });
  }
}

export class BrowserSession {
  changesPieces = false;
  #piece = null;
  #files = new Map(); // addresses that were given for files, by name

  async begin(onEvent) {
    try {
      const model = await new DistantModel().load(new URL("model/", location.href).href, (share) =>
        onEvent({ type: "state", state: `loading ${Math.floor(100 * share)} %` }));
      this.engine = new LiveEngine(model, onEvent);
      onEvent(this.engine.summary());
      setInterval(() => this.engine.tick(), TICK_MS);
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
    this.#piece = readMidi(bytes);
    return this.#shown();
  }

  async changePiece() {
    if (!this.engine) throw new Error("the model is still on its way");
    this.engine.load(this.#piece);
    this.engine.handOver();
    return this.#shown();
  }

  #shown() {
    const milliseconds = (seconds) => Math.round(1000 * seconds);
    const notes = this.#piece.notes.map(({ onset, offset, pitch, velocity }) =>
      [milliseconds(onset), milliseconds(offset - onset), pitch, velocity, 0]);
    return { notes };
  }

  fileAddress(name) {
    URL.revokeObjectURL(this.#files.get(name));
    const file = new Blob([this.engine?.midi() ?? new Uint8Array()], { type: "audio/midi" });
    this.#files.set(name, URL.createObjectURL(file));
    return this.#files.get(name);
  }

  address(path) {
    return path;
  }
}
