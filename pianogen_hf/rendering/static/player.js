// Plays a piece that is known as a whole: roll, sound, a place to begin from, and a stretch that can be chosen.

import { Roll } from "./roll.js";

const AHEAD_SEC = 0.25, HIDDEN_AHEAD_SEC = 2.5; // browsers let timers of a page in the background run once a second
const isDark = matchMedia("(prefers-color-scheme: dark)");

export class Player {
  // `canvas`: of the roll; `piano`: what sounds; `onTime`: called with the second whenever the picture is drawn;
  // `isWhole`: whether the roll shows all of the piece, or some seconds that move with what is heard.
  constructor(canvas, piano, onTime = () => {}, isWhole = false) {
    this.roll = new Roll(canvas, 14);
    this.isWhole = isWhole;
    this.drawn = ""; // what the picture shows
    this.piano = piano;
    this.onTime = onTime;
    this.notes = [];
    this.position = 0;
    this.isPlaying = false;
    this.#listen(canvas);
    const step = () => {
      this.#step();
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
    setInterval(() => this.#schedule(), 80); // also where the page is in the background, where nothing is drawn
    document.addEventListener("visibilitychange", () => this.#schedule());
  }

  // `notes`: rows [onset, duration (both in ms), pitch, velocity, voice].
  load(notes) {
    this.pause();
    this.roll.notes.clear();
    this.roll.selection = null;
    this.notes = notes
      .map(([onset, duration, pitch, velocity, voice = 0]) =>
        ({ voice, onset: onset / 1000, offset: (onset + duration) / 1000, pitch, velocity }))
      .sort((one, other) => one.onset - other.onset);
    this.notes.forEach((note, index) => this.roll.add(index, note));
    this.seconds = this.notes.reduce((most, note) => Math.max(most, note.offset), 0);
    this.position = 0;
    this.drawn = "";
    if (this.isWhole) this.#fit();
  }

  // Let the roll show all notes, and hardly more.
  #fit() {
    const pitches = this.notes.length ? this.notes.map((note) => note.pitch) : [60];
    const low = Math.min(...pitches) - 2, high = Math.max(...pitches) + 2, missing = Math.max(24 - (high - low), 0);
    [this.roll.low, this.roll.high] = [low - Math.floor(missing / 2), high + Math.ceil(missing / 2)];
    this.roll.secondsPerScreen = Math.max(this.seconds, 0.01);
  }

  play() {
    this.piano.resume();
    if (this.position >= this.seconds) this.position = 0;
    this.startedAt = this.piano.now + 0.05 - this.position;
    this.next = this.notes.findIndex((note) => note.onset >= this.position - 0.001);
    if (this.next < 0) this.next = this.notes.length;
    this.isPlaying = true;
    this.#schedule();
  }

  pause() {
    if (this.isPlaying) this.piano.silence();
    this.isPlaying = false;
  }

  seek(second) {
    const wasPlaying = this.isPlaying;
    this.pause();
    this.position = Math.min(Math.max(second, 0), this.seconds);
    if (wasPlaying) this.play();
  }

  #schedule() {
    if (!this.isPlaying) return;
    const until = this.piano.now - this.startedAt + (document.hidden ? HIDDEN_AHEAD_SEC : AHEAD_SEC);
    while (this.next < this.notes.length && this.notes[this.next].onset < until) {
      const note = this.notes[this.next++];
      const voice = this.piano.play(note.pitch, note.velocity, this.startedAt + note.onset);
      this.piano.stop(voice, this.startedAt + note.offset);
    }
  }

  #step() {
    if (this.isPlaying) {
      this.position = Math.max(this.piano.now - this.startedAt, 0);
      if (this.position >= this.seconds) {
        this.isPlaying = false;
        this.position = this.seconds;
      }
    }
    const { clientWidth, clientHeight } = this.roll.canvas;
    const shown = [this.position, this.isPlaying, this.seconds, this.roll.selection, clientWidth, clientHeight, isDark.matches].join();
    if (!clientWidth || shown === this.drawn) return;
    this.drawn = shown;
    this.roll.draw(this.position, this.isWhole ? this.position / this.roll.secondsPerScreen : 0.3);
    this.onTime(this.position, this.isPlaying);
  }

  // A click goes there; a drag chooses a stretch.
  #listen(canvas) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      from = { x: event.clientX, second: this.roll.secondAt(event.clientX), begin: this.roll.begin };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from === null || Math.abs(event.clientX - from.x) < 5) return;
      const ends = [from.second, this.roll.secondAt(event.clientX)].sort((one, other) => one - other);
      this.roll.selection = ends.map((second) => Math.min(Math.max(second, 0), this.seconds));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from !== null && Math.abs(event.clientX - from.x) < 5) {
        this.roll.selection = null;
        this.seek(from.second);
      }
      from = null;
    });
  }
}
