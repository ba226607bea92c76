// The model's thread: it is handed work with a number, does one after the other, and gives back what came of it. Work is a
// step of a session (see `#nextJob` in live.js) or a plan for a piece (see piece.js).

import * as runtime from "./onnxruntime/ort.wasm.min.mjs";

import { Controls } from "./classes.js";
import { processor } from "./drawing.js";
import { NoteModel } from "./model.js";
import { LiveStream } from "./live_stream.js";
import { NoteStream } from "./note_stream.js";
import { written } from "./piece.js";
import { seeded } from "./random.js";

runtime.env.wasm.wasmPaths = new URL("./onnxruntime/", import.meta.url).href;
runtime.env.wasm.numThreads = 1; // more need headers that a static host does not send
runtime.env.logLevel = "error";

let stream = null;

// Files of a folder as ArrayBuffers; `onProgress` is told the share that has come.
async function fetched(folder, sizes, onProgress) {
  const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
  let count = 0;
  return Promise.all(Object.entries(sizes).map(async ([name, size]) => {
    const answer = await fetch(folder + name);
    if (!answer.ok) throw new Error(`${name} is not there: ${answer.status}`);
    const content = new Uint8Array(size), reader = answer.body.getReader();
    let at = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      content.set(part.value, at);
      at += part.value.length;
      onProgress((count += part.value.length) / total);
    }
    if (at !== size) throw new Error(`${name} is cut off`);
    return content.buffer;
  }));
}

async function load(folder) {
  const config = await (await fetch(`${folder}config.json`)).json();
  const [graph, heads] = await fetched(folder, config.files, (share) => postMessage({ type: "loading", share }));
  stream = new LiveStream(await NoteModel.open(runtime, new Uint8Array(graph), heads, config));
  stream.hear([]);
  await stream.write(false); // the first run of a graph takes longer than others
  postMessage({ type: "ready", config });
}

async function live(job) {
  stream.beginSec = job.beginSec;
  stream.lookaheadSec = job.lookaheadSec;
  stream.helpedFromSec = job.helpedFromSec;
  stream.controls = new Controls(job.wish, stream.model.config.control_sizes);
  stream.processors = job.processors.map(processor);
  stream.hear(job.past, job.given);
  if (!job.isWriting) return { drawn: null, isMore: await stream.read() };
  return { drawn: await stream.write(false, job.beforeSec), isMore: false };
}

// Rows of new notes. `seed`: null, or a number that makes them repeatable.
async function write({ plan, wish, choice, seed }, number) {
  const onPiece = new NoteStream(stream.model, seed === null ? Math.random : seeded(seed));
  return { rows: await written(onPiece, plan, wish, choice, (share) => postMessage({ type: "progress", number, share })) };
}

async function obey({ type, number, ...message }) {
  try {
    if (type === "load") await load(message.folder);
    else postMessage({ type: "done", number, ...(await (type === "live" ? live(message.job) : write(message.job, number))) });
  } catch (error) {
    if (stream !== null && type === "live") stream = new LiveStream(stream.model);
    postMessage({ type: "failed", number, message: error.message });
  }
}

let last = Promise.resolve(); // a graph is run by one at a time
self.onmessage = ({ data }) => { last = last.then(() => obey(data)); };
