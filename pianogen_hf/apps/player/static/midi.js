// MIDI files, as tokenizers/midi.py reads and writes them: what a channel says holds for all tracks.

const SUSTAIN = 64, ALL_SOUND_OFF = 120, ALL_NOTES_OFF = 123, PEDAL_DOWN = 64, DRUM_CHANNEL = 9;
const PIANO_PROGRAMS = 8; // General MIDI 0..7
const FRAMES = new Map([[24, [24, 1_000_000]], [25, [25, 1_000_000]], [29, [30, 1_001_000]], [30, [30, 1_000_000]]]);
const TEMPO = 0x51, TIME_SIGNATURE = 0x58, KEY_SIGNATURE = 0x59, END_OF_TRACK = 0x2f;
// How a file counts time: its division, what it says of tempo, bars and keys as [tick, bytes], and the tick of a second.
const IN_MILLISECONDS = { division: 500, signs: [[0, [0xff, TEMPO, 3, 0x07, 0xa1, 0x20]]], tickOf: (second) => 1000 * second };

// A piece: {notes: [{onset, offset, end, pitch, velocity}], pedals: [[second, value]], timing}, times in seconds; `end` is when
// a note has died away with the pedal; `timing` as `writeMidi` takes it. `bytes`: an ArrayBuffer.
export function readMidi(bytes) {
  const data = new Uint8Array(bytes), begin = find(data, "MThd");
  if (begin < 0) throw new Error("this is no MIDI file");
  const view = new DataView(bytes, begin), kind = view.getUint16(8), division = view.getUint16(12);
  if (kind > 1) throw new Error("files of several independent sequences (type 2) are not read here");
  const { messages, tempos, signs, endTick } = readTracks(view, 8 + view.getUint32(4));
  const pedals = pedalsOf(messages), notes = [];
  for (const [key, own] of strikesByKey(messages)) {
    const found = paired(own, endTick);
    const isPiano = key >> 7 !== DRUM_CHANNEL;
    if (isPiano) notes.push(...found.filter((note) => note.program < PIANO_PROGRAMS).map((note) => ({ ...note, key })));
  }
  if (!notes.length) throw new Error("this file has no notes of a piano");
  sustain(notes, pedals, Math.max(...notes.map((note) => note.offset), ...pedals.map(([tick]) => tick)));
  const { seconds, tickOf } = clockOf(division, tempos);
  notes.sort((one, other) => one.onset - other.onset || one.key % 128 - other.key % 128);
  return {
    notes: notes.map(({ onset, offset, end, key, velocity }) =>
      ({ onset: seconds(onset), offset: seconds(offset), end: seconds(end), pitch: key % 128, velocity })),
    pedals: pedals.map(([tick, value]) => [seconds(tick), value]),
    timing: { division, signs, tickOf },
  };
}

function find(data, name) {
  const wanted = [...name].map((each) => each.charCodeAt(0));
  for (let at = 0; at < Math.min(data.length - 14, 1024); at++) if (wanted.every((byte, index) => data[at + index] === byte)) return at;
  return -1;
}

// Messages of all track chunks, merged by time, what tempo holds from which tick on, and the signs of a piece's timing.
function readTracks(view, begin) {
  const messages = [], tempos = [[0, 500_000]], signs = [];
  let endTick = 0;
  for (let at = begin; at + 8 <= view.byteLength;) {
    const isTrack = view.getUint32(at) === 0x4d54726b, end = Math.min(at + 8 + view.getUint32(at + 4), view.byteLength);
    if (isTrack) endTick = Math.max(endTick, readTrack(view, at + 8, end, { messages, tempos, signs }));
    at = end;
  }
  messages.sort((one, other) => one.tick - other.tick);
  tempos.sort((one, other) => one[0] - other[0]);
  signs.sort((one, other) => one[0] - other[0]);
  return { messages, tempos, signs, endTick };
}

function readTrack(view, at, end, { messages, tempos, signs }) {
  let tick = 0, status = 0;
  const number = () => {
    let value = 0, byte;
    do {
      byte = view.getUint8(at++);
      value = value * 128 + (byte & 0x7f);
    } while (byte & 0x80);
    return value;
  };
  try {
    while (at < end) {
      tick += number();
      if (view.getUint8(at) >= 0x80) status = view.getUint8(at++);
      if (status >= 0xf0) {
        const meta = status === 0xff ? view.getUint8(at++) : null, size = number();
        if (meta === END_OF_TRACK) break;
        if (meta === TEMPO && size === 3) tempos.push([tick, view.getUint32(at - 1) & 0xffffff]);
        if ([TEMPO, TIME_SIGNATURE, KEY_SIGNATURE].includes(meta) && size < 8) {
          signs.push([tick, [0xff, meta, size, ...Array.from({ length: size }, (_, index) => view.getUint8(at + index))]]);
        }
        at += size;
      } else if (status >= 0x80) {
        const kind = status & 0xf0, first = view.getUint8(at++);
        const second = kind === 0xc0 || kind === 0xd0 ? 0 : view.getUint8(at++);
        messages.push({ tick, kind, channel: status & 0x0f, first, second });
      } else at++; // data of no message
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a file that is cut off is read as far as it goes
  }
  return tick;
}

function pedalsOf(messages) {
  return messages
    .filter(({ kind, first }) => kind === 0xb0 && first === SUSTAIN)
    .map(({ tick, second, channel }) => [tick, second, channel]);
}

// Strikes, releases and ends of all notes by key (128 times the channel, plus the pitch).
function strikesByKey(messages) {
  const keys = new Map(), programs = new Array(16).fill(0), ends = [];
  messages.forEach(({ tick, kind, channel, first, second }, order) => {
    if (kind === 0xc0) programs[channel] = first;
    if (kind === 0xb0 && (first === ALL_SOUND_OFF || first === ALL_NOTES_OFF)) ends.push({ tick, order, channel, isOn: null });
    if (kind > 0x90) return;
    const key = channel * 128 + first;
    if (!keys.has(key)) keys.set(key, []);
    keys.get(key).push({ tick, order, isOn: kind === 0x90 && second > 0, velocity: second, program: programs[channel] });
  });
  for (const [key, own] of keys) {
    own.push(...ends.filter(({ channel }) => channel === key >> 7));
    own.sort((one, other) => one.order - other.order);
  }
  return keys;
}

// Notes of one key: strikes are paired first in, first out; where one is never released, each of those that sounded with it
// ends with the next strike or release.
function paired(events, endTick) {
  const notes = [];
  let together = [], sounding = 0;
  const add = ({ tick, velocity, program }, offset) => notes.push({ onset: tick, offset, velocity, program });
  const endAll = (at) => {
    together.forEach((event, index) => {
      if (!event.isOn) return;
      const next = together.slice(index + 1).find((other) => !other.isOn || other.tick !== event.tick);
      add(event, next ? next.tick : at);
    });
    [together, sounding] = [[], 0];
  };
  for (const event of events) {
    if (event.isOn === null) endAll(event.tick);
    else if (event.isOn || sounding) {
      together.push(event);
      sounding += event.isOn ? 1 : -1;
      if (sounding) continue;
      const offs = together.filter((each) => !each.isOn);
      together.filter((each) => each.isOn).forEach((each, index) => add(each, offs[index].tick));
      together = [];
    }
  }
  endAll(Math.max(endTick, events.at(-1)?.tick ?? 0));
  return notes;
}

// When notes have died away: with the pedal of their channel, or when their key is struck again.
function sustain(notes, pedals, lastTick) {
  const byKey = new Map();
  for (const note of notes) byKey.set(note.key, [...(byKey.get(note.key) ?? []), note]);
  const spans = new Map();
  for (const [tick, value, channel] of pedals) {
    const own = spans.get(channel) ?? spans.set(channel, []).get(channel);
    const isDown = own.length > 0 && own.at(-1)[1] === null;
    if (value >= PEDAL_DOWN && !isDown) own.push([tick, null]);
    else if (value < PEDAL_DOWN && isDown) own.at(-1)[1] = tick;
  }
  for (const [key, own] of byKey) {
    for (const note of own) {
      const span = (spans.get(key >> 7) ?? []).findLast(([down]) => down <= note.offset);
      const next = Math.min(...own.filter((other) => other.onset > note.onset).map((other) => other.onset));
      note.end = Math.max(Math.min(span ? span[1] ?? lastTick : -1, next), note.offset);
    }
  }
}

// Seconds of ticks, and ticks of seconds.
function clockOf(division, tempos) {
  let quarter = division;
  if (division >= 0x8000) {
    const [frames, tempo] = FRAMES.get(256 - (division >> 8)) ?? [];
    if (!frames) throw new Error("this file counts time in an unknown way");
    [quarter, tempos] = [frames * (division & 0xff), [[0, tempo]]]; // frames of a film: no tempo has a say in them
  }
  const starts = [];
  let second = 0;
  tempos.forEach(([tick, tempo], index) => {
    starts.push([tick, tempo, second]);
    if (index + 1 < tempos.length) second += (tempos[index + 1][0] - tick) * ((tempo * 1e-6) / quarter);
  });
  return {
    seconds: (tick) => {
      const [from, tempo, begin] = starts.findLast(([start]) => start <= tick);
      return ((tick - from) * tempo * 1e-6) / quarter + begin;
    },
    tickOf: (sec) => {
      const [from, tempo, begin] = starts.findLast(([, , start]) => start <= sec);
      return from + ((sec - begin) * quarter) / (tempo * 1e-6);
    },
  };
}

// A file with a track and a channel for each voice. `notes`: {voice, onset, offset, pitch, velocity};
// `pedals`: [second, value] of voice 0; `timing`: of the piece that they change.
export function writeMidi(notes, pedals, names, { division, signs, tickOf } = IN_MILLISECONDS) {
  const nearest = (second) => Math.round(tickOf(second));
  const tracks = names.map((name, voice) => {
    const events = [[0, -1, [0xff, 0x03, name.length, ...[...name].map((each) => each.charCodeAt(0))]]];
    for (const note of notes.filter((each) => each.voice === voice)) {
      const onset = nearest(note.onset), offset = Math.max(nearest(note.offset), onset + 1);
      events.push([onset, 2, [0x90 | voice, note.pitch, note.velocity]], [offset, 0, [0x80 | voice, note.pitch, 0]]);
    }
    if (voice === 0) events.push(...pedals.map(([second, value]) => [nearest(second), 1, [0xb0, SUSTAIN, value]]));
    events.sort((one, other) => one[0] - other[0] || one[1] - other[1]); // a key comes up before it goes down again
    return trackChunk(events);
  });
  const header = chunk("MThd", [0, 1, 0, tracks.length + 1, division >> 8, division & 0xff]);
  return Uint8Array.from([header, trackChunk(signs.map(([tick, bytes]) => [tick, 0, bytes])), ...tracks].flat());
}

function trackChunk(events) {
  const content = [];
  let last = 0;
  for (const [tick, , bytes] of events) {
    content.push(...variable(tick - last), ...bytes);
    last = tick;
  }
  return chunk("MTrk", [...content, 0, 0xff, END_OF_TRACK, 0]);
}

function variable(value) {
  const bytes = [value & 0x7f];
  while ((value >>= 7)) bytes.unshift(0x80 | (value & 0x7f));
  return bytes;
}

function chunk(name, content) {
  const size = content.length, big = [size >>> 24, (size >>> 16) & 0xff, (size >>> 8) & 0xff, size & 0xff];
  return [...[...name].map((each) => each.charCodeAt(0)), ...big, ...content];
}
