// A keyboard to play on: mouse or finger, computer keys, and a MIDI piano through the browser (Web MIDI).

import { pitchName } from "./roll.js";

const BLACK = new Set([1, 3, 6, 8, 10]);
// Two octaves on the computer's keyboard, by the place of the key whatever is printed on it.
const PLACES = ["KeyA", "KeyW", "KeyS", "KeyE", "KeyD", "KeyF", "KeyT", "KeyG", "KeyY", "KeyH", "KeyU", "KeyJ", "KeyK",
  "KeyO", "KeyL", "KeyP", "Semicolon"];

// Whether an element wants the computer's keys for itself; a slider that was moved does not.
export const takesKeys = (target) => target.matches('select, input:not([type="range"])');

export class Keyboard {
  // `element`: where the keys go; `onMessage`: called with the bytes of MIDI messages.
  constructor(element, onMessage, low = 36, high = 96) {
    this.element = element;
    this.onMessage = onMessage;
    this.low = low;
    this.high = high;
    this.first = 60; // pitch of the computer's key A
    this.keys = new Map();
    this.down = new Map(); // pitch by what holds it: a pointer, a computer key
    this.#build();
    this.#listen();
  }

  #build() {
    const white = [];
    for (let pitch = this.low; pitch <= this.high; pitch++) if (!BLACK.has(pitch % 12)) white.push(pitch);
    const width = 100 / white.length;
    for (let pitch = this.low; pitch <= this.high; pitch++) {
      const key = document.createElement("div");
      const isBlack = BLACK.has(pitch % 12);
      const before = white.filter((each) => each < pitch).length;
      key.className = isBlack ? "key black" : "key";
      key.dataset.pitch = pitch;
      key.style.left = `${isBlack ? (before - 0.32) * width : before * width}%`;
      key.style.width = `${isBlack ? 0.64 * width : width}%`;
      key.style.height = isBlack ? "62%" : "100%";
      if (pitch % 12 === 0) key.textContent = pitchName(pitch);
      this.element.append(key);
      this.keys.set(pitch, key);
    }
  }

  #listen() {
    const pitchAt = (event) => {
      const key = document.elementFromPoint(event.clientX, event.clientY)?.closest(".key");
      return key && this.element.contains(key) ? Number(key.dataset.pitch) : null;
    };
    const velocityAt = (event) => {
      const box = this.element.getBoundingClientRect();
      return Math.round(40 + 75 * Math.min(Math.max((event.clientY - box.top) / box.height, 0), 1));
    };
    this.element.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const pitch = pitchAt(event);
      if (pitch !== null) this.press(`pointer ${event.pointerId}`, pitch, velocityAt(event));
    });
    window.addEventListener("pointermove", (event) => {
      const holder = `pointer ${event.pointerId}`;
      if (!this.down.has(holder)) return;
      const pitch = pitchAt(event);
      if (pitch !== null && pitch !== this.down.get(holder)) {
        this.release(holder);
        this.press(holder, pitch, velocityAt(event));
      }
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      window.addEventListener(kind, (event) => this.release(`pointer ${event.pointerId}`));
    }
    window.addEventListener("keydown", (event) => {
      if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || takesKeys(event.target)) return;
      const place = PLACES.indexOf(event.code);
      if (place >= 0) this.press(event.code, this.first + place, 80);
      if (event.code === "KeyZ") this.first = Math.max(this.first - 12, 24);
      if (event.code === "KeyX") this.first = Math.min(this.first + 12, 96);
      if (event.code === "ShiftLeft") this.onMessage([0xb0, 64, 127]);
    });
    window.addEventListener("keyup", (event) => {
      this.release(event.code);
      if (event.code === "ShiftLeft") this.onMessage([0xb0, 64, 0]);
    });
    // A key that is down when the window loses the focus would never come up.
    window.addEventListener("blur", () => this.releaseAll());
  }

  press(holder, pitch, velocity) {
    this.release(holder);
    if ([...this.down.values()].includes(pitch)) return;
    this.down.set(holder, pitch);
    this.onMessage([0x90, pitch, velocity]);
  }

  release(holder) {
    if (!this.down.has(holder)) return;
    const pitch = this.down.get(holder);
    this.down.delete(holder);
    this.onMessage([0x80, pitch, 0]);
  }

  releaseAll() {
    for (const holder of [...this.down.keys()]) this.release(holder);
  }

  // Colour the keys that sound: a voice by pitch.
  show(sounding) {
    for (const [pitch, key] of this.keys) {
      key.classList.toggle("voice-0", sounding.get(pitch) === 0);
      key.classList.toggle("voice-1", sounding.get(pitch) > 0);
    }
  }

  // Take the messages of every MIDI input there is; gives their names.
  async connectMidi(onChange) {
    if (!navigator.requestMIDIAccess) throw new Error("this browser has no Web MIDI: take Chromium or Firefox");
    const access = await navigator.requestMIDIAccess();
    const attach = () => {
      for (const input of access.inputs.values()) {
        input.onmidimessage = (event) => {
          if (event.data.length >= 2 && event.data[0] < 0xf0) this.onMessage([...event.data]);
        };
      }
      onChange([...access.inputs.values()].filter((each) => each.state === "connected").map((each) => each.name));
    };
    access.onstatechange = attach;
    attach();
  }
}
