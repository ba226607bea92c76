// The page on which a person plays with the model: what is played goes to a session (`ServerSession`, `BrowserSession`),
// and what the model plays comes from it a little ahead.

import { Keyboard, takesKeys } from "./keyboard.js";
import { Player } from "./player.js";
import { Roll, pitchName } from "./roll.js";
import { Piano } from "./sound.js";

const KEPT_ROWS = 60, KEPT_SEC = 40;
const element = (id) => document.getElementById(id);

const piano = new Piano();
const roll = new Roll(element("roll"));
const tones = new Map(); // of the player, by pitch
const planned = new Map(); // of the model, by id of the note
let sustained = false;
const ringing = []; // tones that the pedal holds
let offset = Infinity; // of this page's clock from the session's
let session = null;
let lastOnset = 0; // of the latest row

const pageNow = () => performance.now() / 1000;
const sessionNow = () => (Number.isFinite(offset) ? pageNow() - offset : 0);
const say = (text) => { element("message").textContent = text; };

const send = (message) => session.send(message);

// What the player plays ------------------------------------------------------------------------------------------

function soundOwn([status, number, value]) {
  piano.resume();
  const kind = status & 0xf0;
  const end = (pitch) => {
    const tone = tones.get(pitch);
    if (!tone) return;
    tones.delete(pitch);
    if (sustained) ringing.push(tone);
    else piano.stop(tone);
  };
  if (kind === 0x90 && value > 0) {
    end(number);
    tones.set(number, piano.play(number, value));
  } else if (kind === 0x80 || kind === 0x90) {
    end(number);
  } else if (kind === 0xb0 && number === 64) {
    sustained = value >= 64;
    if (!sustained) ringing.splice(0).forEach((tone) => piano.stop(tone));
  }
}

const keyboard = new Keyboard(element("keyboard"), (bytes) => {
  soundOwn(bytes);
  send({ type: "midi", bytes });
});

// What the session tells -----------------------------------------------------------------------------------------

function onNote(event) {
  const { id, voice, onset, pitch, velocity } = event;
  roll.add(id, { voice, onset, pitch, velocity, offset: event.offset ?? null });
  if (voice === 0) return;
  const when = piano.now + (onset - sessionNow());
  const tone = piano.play(pitch, velocity, when);
  piano.stop(tone, piano.now + (event.offset - sessionNow()));
  planned.set(id, tone);
  if (event.row) showRow(event.row, voice);
  lastOnset = onset;
}

// A note of the player's is a row, too, once it has ended.
function onOff({ id, offset: second }) {
  const note = roll.notes.get(id);
  if (!note) return;
  note.offset = second;
  showRow([Math.max(note.onset - lastOnset, 0), note.pitch, note.velocity, second - note.onset], 0);
  lastOnset = Math.max(note.onset, lastOnset);
}

function showRow([shift, pitch, velocity, duration], voice) {
  const row = document.createElement("span");
  row.className = `row voice-${voice}`;
  row.textContent = `+${shift.toFixed(2)} ${pitchName(pitch)}\nv${velocity} ${duration.toFixed(2)}s`;
  row.title = "seconds since the note before, pitch, velocity, duration";
  element("rows").append(row);
  while (element("rows").children.length > KEPT_ROWS) element("rows").firstChild.remove();
  element("rows").scrollLeft = element("rows").scrollWidth;
}

function end(id, second) {
  const tone = planned.get(id);
  if (tone) piano.stop(tone, piano.now + Math.max(second - sessionNow(), 0));
  planned.delete(id);
}

function onCancel(ids) {
  for (const id of ids) {
    end(id, 0);
    roll.notes.delete(id);
  }
}

function onSilence({ ids, sec }) {
  onCancel(ids);
  for (const [id, note] of roll.notes) {
    if (note.voice > 0 && note.offset > sec) {
      note.offset = sec;
      end(id, sec);
    }
  }
}

function onHello({ state, knobs, notes }) {
  roll.notes.clear();
  notes.forEach((note) => roll.add(note.id, note));
  showState(state);
  showKnobs(knobs);
}

function showState(state) {
  element("state").textContent = state;
  element("state").dataset.state = state;
}

const handlers = {
  hello: onHello,
  note: onNote,
  off: onOff,
  cancel: ({ ids }) => onCancel(ids),
  silence: onSilence,
  state: ({ state }) => { showState(state); say(""); },
  knobs: ({ knobs }) => showKnobs(knobs),
  progress: ({ share }) => { element("piece-time").textContent = `writing: ${Math.floor(100 * share)} %`; },
  error: ({ message }) => say(message),
  lost: ({ message }) => {
    showState("disconnected");
    piano.silence();
    say(message);
  },
};

function onEvent(event) {
  if (event.type === "hello") {
    offset = Infinity;
    say("");
  }
  // The quickest message tells most about how the clocks differ.
  if (event.now !== undefined) offset = Math.min(offset, pageNow() - event.now);
  handlers[event.type]?.(event);
}

// Knobs and buttons ----------------------------------------------------------------------------------------------

const RANGES = {
  pause_sec: { text: (value) => `${value} s`, none: null },
  answer_sec: { text: (value) => `${value} s`, none: 0, word: "as mine" },
  temperature: { text: String, none: null },
  density: { text: (value) => `${value}/s`, none: 0, word: "free" },
  loudness: { text: String, none: 0, word: "free" },
  register: { text: (value) => pitchName(Number(value)), none: 30, word: "free" },
  guidance_scale: { text: String, none: null },
};

function showRange(name) {
  const { text, none, word } = RANGES[name], input = element(name);
  input.nextElementSibling.textContent = Number(input.value) === none ? word : text(input.value);
}

function showKnobs(knobs) {
  for (const [name, { none }] of Object.entries(RANGES)) {
    element(name).value = knobs[name] ?? none;
    showRange(name);
  }
  for (const name of ["hand_over", "side", "key_name", "kind"]) element(name).value = knobs[name] ?? "";
  for (const button of element("modes").children) button.ariaPressed = button.dataset.mode === knobs.mode;
  element("hand-over").disabled = knobs.mode === "accompany"; // it plays whenever you do
  element("hand-over").textContent = knobs.mode === "loop" ? "Begin or end the loop" : "Your turn, model";
}

const turn = (values) => send({ type: "knobs", values });

for (const [name, { none }] of Object.entries(RANGES)) {
  element(name).addEventListener("input", () => {
    showRange(name);
    const value = Number(element(name).value);
    turn({ [name]: value === none ? null : value });
  });
}
for (const name of ["C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"]) {
  for (const mode of ["major", "minor"]) element("key_name").append(new Option(`${name} ${mode}`, `${name} ${mode}`));
}
for (const name of ["hand_over", "side", "key_name", "kind"]) {
  element(name).addEventListener("change", () => {
    turn({ [name]: element(name).value || null });
    element(name).blur(); // keys are to play again
  });
}
for (const button of element("modes").children) button.onclick = () => turn({ mode: button.dataset.mode });
const handOver = () => { piano.resume(); send({ type: "hand_over" }); };
const stop = () => { keyboard.releaseAll(); piano.silence(); planned.clear(); send({ type: "stop" }); };
element("hand-over").onclick = handOver;
element("stop").onclick = stop;
element("undo").onclick = () => send({ type: "undo" });
element("record").onclick = () => { send({ type: "record" }); say("Recording from here."); };
element("save").onclick = () => { element("save").href = session.fileAddress("session.mid"); };
element("midi").onclick = () => keyboard
  .connectMidi((names) => say(names.length ? `MIDI: ${names.join(", ")}` : "No MIDI piano is connected."))
  .catch((error) => say(error.message));
window.addEventListener("keydown", (event) => {
  if (takesKeys(event.target) || event.repeat) return;
  if (event.code === "Space") { event.preventDefault(); handOver(); }
  if (event.code === "Escape") stop();
});

// A piece --------------------------------------------------------------------------------------------------------

const piece = element("piece");
const player = new Player(piece.querySelector("canvas"), piano, (second, isPlaying) => {
  element("piece-play").textContent = isPlaying ? "Pause" : "Play";
  element("piece-time").textContent = `${second.toFixed(1)} of ${(player.seconds ?? 0).toFixed(1)} s`;
  element("piece-fill").disabled = !player.roll.selection;
});

async function patiently(promise) {
  say("");
  piece.inert = true;
  document.body.style.cursor = "progress";
  try {
    return await promise;
  } catch (error) {
    say(error.message);
    if (!piece.hidden) element("piece-time").textContent = error.message;
    return null;
  } finally {
    piece.inert = false;
    document.body.style.cursor = "";
  }
}

async function open(file) {
  if (!file) return;
  const found = await patiently(session.openPiece(await file.arrayBuffer()));
  if (!found) return;
  stop();
  element("piece-name").textContent = file.name;
  piece.hidden = false;
  player.load(found.notes);
}

async function change(verb, values = {}) {
  const from = verb === "end" ? player.seconds : player.roll.selection?.[0] ?? 0;
  const seed = element("piece-seed").value === "" ? null : Number(element("piece-seed").value);
  const found = await patiently(session.changePiece({ verb, seed, ...values }));
  if (!found) return;
  player.load(found.notes);
  player.seek(Math.max(from - 1, 0));
}

function close() {
  player.pause();
  piece.hidden = true;
}

element("open").onclick = () => element("file").click();
element("file").onchange = (event) => { open(event.target.files[0]); event.target.value = ""; };
element("piece-play").onclick = () => (player.isPlaying ? player.pause() : player.play());
element("piece-close").onclick = close;
element("piece-fill").onclick = () => change("fill", { start: player.roll.selection[0], end: player.roll.selection[1] });
element("piece-below").onclick = () => change("accompany", { side: "below" });
element("piece-above").onclick = () => change("accompany", { side: "above" });
element("piece-end").onclick = () => change("end");
element("piece-undo").onclick = () => change("undo");
element("piece-save").onclick = () => { element("piece-save").href = session.fileAddress("piece.mid"); };
element("piece-continue").onclick = async () => {
  piano.resume();
  if (await patiently(session.changePiece({ verb: "continue" }))) close();
};
window.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
window.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
window.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  open(event.dataTransfer.files[0]);
});

// Pictures -------------------------------------------------------------------------------------------------------

function draw() {
  const now = sessionNow();
  roll.forgetBefore(now - KEPT_SEC);
  roll.draw(now);
  const sounding = new Map();
  for (const [id, note] of roll.notes) {
    if (note.onset <= now && (note.offset === null || note.offset > now)) sounding.set(note.pitch, note.voice);
    else if (note.offset !== null && note.offset < now - 1) planned.delete(id);
  }
  keyboard.show(sounding);
  requestAnimationFrame(draw);
}

async function loadTones() {
  const about = await (await fetch(session.address("sounds.json"))).json();
  if (about.pitches && (await piano.load(session.address("sounds.wav"), about))) return;
  say('Sound of a simple synthesizer: pip install "pianogen_hf[audio]" for a piano.');
}

// Begin, with a session that stands for the model.
export function openPage(itsSession) {
  session = itsSession;
  loadTones();
  session.begin(onEvent);
  draw();
}

window.pianogen = { piano, roll, player, keyboard, sessionNow, get session() { return session; } }; // for whoever looks at the page from outside
