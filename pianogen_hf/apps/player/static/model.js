// The note transformer (V8) in the browser: its decoder is an ONNX graph, its heads are small and stand here.
// What generation/onnx/note_engine.py and note_heads.py do.

import { END_CLASS, MIDDLE_STEPS, NUM_TIME_CLASSES, rint, timeClass } from "./classes.js";

export const TIME_SHIFT = 0, PITCH = 1, VELOCITY = 2, DURATION = 3; // columns of rows
export const NUM_PITCHES = 128;
const NUM_VELOCITIES = 128, MIDDLE_PITCH = 60;
const END_ROW = [0, 129, 0, 0];
const CHUNK = 128; // rows of a window at a time
const FIELDS = ["time_shift", "pitch", "velocity", "duration"];

export class NoteModel {
  // `runtime`: the module of onnxruntime-web; `graph`: bytes; `heads`: bytes of a safetensors file;
  // `config`: what `pianogen space --static` wrote of the model's.
  static async open(runtime, graph, heads, config) {
    const session = await runtime.InferenceSession.create(graph, { executionProviders: ["wasm"], enableMemPattern: false });
    return new NoteModel(runtime, session, readSafetensors(heads), config);
  }

  constructor(runtime, session, weights, config) {
    this.runtime = runtime;
    this.session = session;
    this.config = config;
    this.heads = new NoteHeads(weights, config);
    this.frequencies = config.frequencies.flatMap((each, coordinate) => each.map((value) => [coordinate, Math.fround(value)]));
    const sizes = [NUM_TIME_CLASSES, config.vocab_size, NUM_VELOCITIES, NUM_TIME_CLASSES, 3, ...config.control_sizes];
    this.firstIds = sizes.map((_, index) => sizes.slice(0, index).reduce((sum, size) => sum + size, 0));
  }

  newCache() {
    return new NoteCache(this);
  }

  // Read rows (of 4 fields) that follow those in a cache; gives the hidden state of the last one.
  // `roles`: whether each is given; `controlIds`: classes of what is asked after each.
  async read(cache, rows, roles, controlIds) {
    cache.append(rows.map((row, index) => this.#angles(cache, row, roles[index])));
    const ids = rows.map((row, index) => this.#classIds(row, roles[index], controlIds[index]));
    let hidden = null;
    for (let begin = 0; begin < ids.length; begin += CHUNK) hidden = await cache.run(ids.slice(begin, begin + CHUNK));
    return hidden;
  }

  // Let a cache forget all but the first rows that it took up.
  rewind(cache, rows, roles) {
    cache.length = rows.length;
    cache.numWritten = roles.filter((isGiven) => !isGiven).length;
    cache.clock = rows.reduce((sum, row, index) => sum + (roles[index] ? 0 : this.#steps(row[TIME_SHIFT])), 0);
  }

  #steps(seconds) {
    return rint(Math.fround(Math.fround(seconds) * this.config.sampling_rate));
  }

  #classIds(row, isGiven, controlIds) {
    const ids = [
      timeClass(this.#steps(Math.abs(row[TIME_SHIFT]))),
      row[PITCH],
      Math.min(Math.max(Math.trunc(row[VELOCITY]), 0), NUM_VELOCITIES - 1),
      timeClass(Math.max(this.#steps(Math.abs(row[DURATION])) - 1, 0)),
      isGiven ? 1 + (row[TIME_SHIFT] < 0) : 0,
      ...controlIds,
    ];
    return ids.map((id, column) => id + this.firstIds[column]);
  }

  // Angles of the rotated pairs, of a row's index, onset and pitch; the cache keeps count.
  #angles(cache, row, isGiven) {
    const shift = this.#steps(row[TIME_SHIFT]);
    if (!isGiven) {
      cache.clock += shift;
      cache.numWritten += 1;
    }
    const pitch = row[PITCH] < NUM_PITCHES ? row[PITCH] : MIDDLE_PITCH;
    const places = [cache.numWritten - 1, cache.clock + (isGiven ? shift : 0), pitch];
    return this.frequencies.map(([coordinate, frequency]) => Math.fround(places[coordinate] * frequency));
  }
}

class NoteCache {
  constructor(model) {
    const { config, runtime } = model;
    this.model = model;
    this.length = this.numWritten = this.clock = 0;
    this.halfDim = config.head_dim / 2;
    this.capacity = config.max_position_embeddings;
    this.cosines = new Float32Array(this.capacity * this.halfDim);
    this.sines = new Float32Array(this.capacity * this.halfDim);
    this.past = {}; // grows with the rows: every run copies it in and out
    for (let layer = 0; layer < config.num_hidden_layers; layer++) {
      for (const kind of ["key", "value"]) {
        const shape = [1, config.num_attention_heads, 0, config.head_dim];
        this.past[`past_${kind}.${layer}`] = new runtime.Tensor("float32", new Float32Array(0), shape);
      }
    }
  }

  append(angles) {
    if (this.length + angles.length > this.capacity) throw new Error("a window has no room for so many rows");
    angles.forEach((each, index) => {
      const at = (this.length + index) * this.halfDim;
      this.cosines.set(each.map(Math.cos), at);
      this.sines.set(each.map(Math.sin), at);
    });
  }

  async run(ids) {
    const { Tensor } = this.model.runtime, table = [this.capacity, this.halfDim];
    this.length += ids.length;
    const outputs = await this.model.session.run({
      class_ids: new Tensor("int64", BigInt64Array.from(ids.flat().map(BigInt)), [1, ids.length, ids[0].length]),
      cosines: new Tensor("float32", this.cosines, table),
      sines: new Tensor("float32", this.sines, table),
      total_length: new Tensor("int32", Int32Array.of(this.length), []),
      last_key: new Tensor("int32", Int32Array.of(this.length - 1), [1]),
      ...this.past,
    });
    for (const name of Object.keys(this.past)) this.past[name] = outputs[name.replace("past", "present")];
    const size = this.model.config.hidden_size;
    return outputs.hidden_states.data.slice(-size);
  }
}

// Draws a note's fields one after the other.
class NoteHeads {
  constructor(weights, config) {
    const names = config.num_recent_offsets ? [...FIELDS, "offset"] : FIELDS;
    this.layers = names.map((name) => ["fc1.weight", "fc2.weight", "fc2.bias"].map((part) => weights[`${name}_head.${part}`]));
    this.told = FIELDS.slice(0, DURATION).map((name) => weights[`embed_${name}.weight`]); // of what was drawn, to later heads
    this.size = config.hidden_size;
    this.numRecentOffsets = config.num_recent_offsets;
    this.isCascade = config.is_cascade;
    this.rate = config.sampling_rate;
  }

  // `states`: hidden states, one, or one of what is asked and one of which nothing is; `recentOffsets`: where the latest
  // rows end, in steps after the onset before; `drawClass(column, logits of each state)`: gives a class.
  drawNote(states, writtenPitch, recentOffsets, drawClass) {
    const shift = drawClass(TIME_SHIFT, states.map((state) => this.#logits(TIME_SHIFT, state)));
    if (shift === END_CLASS) return [...END_ROW];
    states = this.#knowing(TIME_SHIFT, states, shift);
    const pitch = drawClass(PITCH, states.map((state) => this.#pitchLogits(state, shift, writtenPitch)));
    states = this.#knowing(PITCH, states, pitch);
    const velocity = drawClass(VELOCITY, states.map((state) => this.#logits(VELOCITY, state))) + 1;
    states = this.#knowing(VELOCITY, states, velocity);
    const left = Array.from(recentOffsets, (offset) => offset - MIDDLE_STEPS[shift]);
    const duration = drawClass(DURATION, states.map((state) => this.#durationLogits(state, left)));
    const steps = duration < NUM_TIME_CLASSES ? MIDDLE_STEPS[duration] + 1 : left[duration - NUM_TIME_CLASSES];
    return [Math.fround(MIDDLE_STEPS[shift] / this.rate), pitch, velocity, Math.fround(steps / this.rate)];
  }

  #logits(head, state) {
    const [first, second, bias] = this.layers[head];
    const inner = product(first, state);
    for (let index = 0; index < inner.length; index++) inner[index] = Math.max(inner[index], 0) ** 2;
    const logits = product(second, inner);
    return logits.map((value, index) => value + bias[index]);
  }

  #knowing(column, states, value) {
    if (!this.isCascade) return states;
    const told = this.told[column].subarray(value * this.size, (value + 1) * this.size);
    return states.map((state) => state.map((each, index) => each + told[index]));
  }

  // Absolute plus relative logits, minus infinity where a chord would go downwards.
  #pitchLogits(state, shift, writtenPitch) {
    const both = this.#logits(PITCH, state);
    const before = writtenPitch < 0 ? MIDDLE_PITCH : writtenPitch;
    const nearest = 2 * NUM_PITCHES - 1 - before; // where the relative logit of pitch 0 lies
    const goesUp = this.isCascade && shift === 0 && writtenPitch < NUM_PITCHES - 1;
    return both.slice(0, NUM_PITCHES).map((value, pitch) =>
      (goesUp && pitch <= writtenPitch ? -Infinity : value + both[nearest + pitch]));
  }

  // Logits of classes, then of ending together with each of the latest notes, minus infinity if it is over.
  #durationLogits(state, left) {
    const logits = this.#logits(DURATION, state);
    if (!this.numRecentOffsets) return logits;
    const shared = this.#logits(FIELDS.length, state);
    const byTime = shared.subarray(this.numRecentOffsets);
    const ends = left.map((steps, order) => (steps < 1 ? -Infinity : shared[order] + byTime[timeClass(steps - 1)]));
    return Float32Array.of(...logits, ...ends);
  }
}

// A matrix, row by row, times a vector.
function product(matrix, vector) {
  const size = vector.length, result = new Float32Array(matrix.length / size);
  for (let row = 0, at = 0; row < result.length; row++) {
    let sum = 0;
    for (let column = 0; column < size; column++) sum += matrix[at++] * vector[column];
    result[row] = sum;
  }
  return result;
}

// Tensors of a safetensors file, float32 or bfloat16, by name: all numbers of each as a Float32Array.
export function readSafetensors(bytes) {
  const size = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, size)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, data_offsets: [begin, end] }] of Object.entries(header)) {
    const content = bytes.slice(8 + size + begin, 8 + size + end);
    if (dtype === "F32") tensors[name] = new Float32Array(content);
    else if (dtype === "BF16") tensors[name] = new Float32Array(Uint32Array.from(new Uint16Array(content), (half) => half << 16).buffer);
    else throw new Error(`numbers of the kind ${dtype} are not read here`);
  }
  return tensors;
}
