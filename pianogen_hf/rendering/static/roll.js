// A piano roll on a canvas: time to the right, pitch upwards, a colour for each voice.

const BLACK = new Set([1, 3, 6, 8, 10]);
const NAMES = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];

export const pitchName = (pitch) => NAMES[pitch % 12] + (Math.floor(pitch / 12) - 1);

export class Roll {
  // `canvas`: where to draw; `secondsPerScreen`: how much time it shows.
  constructor(canvas, secondsPerScreen = 12) {
    this.canvas = canvas;
    this.secondsPerScreen = secondsPerScreen;
    this.notes = new Map(); // by id: {voice, onset, offset (null while held), pitch, velocity}
    this.selection = null; // [start, end] in seconds
    this.low = 36;
    this.high = 96;
  }

  add(id, note) {
    this.notes.set(id, note);
    this.low = Math.min(this.low, note.pitch - 1);
    this.high = Math.max(this.high, note.pitch + 1);
  }

  // Notes that ended long ago are forgotten, so that drawing costs the same after an hour.
  forgetBefore(seconds) {
    for (const [id, note] of this.notes) {
      if (note.offset !== null && note.offset < seconds) this.notes.delete(id);
    }
  }

  // Draw the roll so that `now` stands at `share` of the width.
  draw(now, share = 0.72) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const rowHeight = height / (this.high - this.low + 1);
    const perSecond = width / this.secondsPerScreen;
    this.begin = now - share * this.secondsPerScreen;
    const x = (seconds) => (seconds - this.begin) * perSecond;
    const y = (pitch) => (this.high - pitch) * rowHeight;
    context.fillStyle = colour("--roll");
    context.fillRect(0, 0, width, height);
    for (let pitch = this.low; pitch <= this.high; pitch++) {
      if (BLACK.has(pitch % 12)) {
        context.fillStyle = colour("--black-row");
        context.fillRect(0, y(pitch), width, rowHeight);
      }
      if (pitch % 12 === 0) {
        context.fillStyle = colour("--faint");
        context.font = "10px system-ui";
        context.fillText(pitchName(pitch), 3, y(pitch) + rowHeight);
      }
    }
    context.strokeStyle = colour("--line");
    context.lineWidth = 1;
    for (let second = Math.max(Math.ceil(this.begin), 0); second < this.begin + this.secondsPerScreen; second++) {
      context.globalAlpha = second % 5 ? 0.4 : 1;
      context.beginPath();
      context.moveTo(x(second), 0);
      context.lineTo(x(second), height);
      context.stroke();
    }
    context.globalAlpha = 1;
    if (this.selection) {
      context.fillStyle = colour("--accent");
      context.globalAlpha = 0.18;
      context.fillRect(x(this.selection[0]), 0, (this.selection[1] - this.selection[0]) * perSecond, height);
      context.globalAlpha = 1;
    }
    const voices = [0, 1, 2].map((voice) => colour(`--voice-${voice}`));
    for (const note of this.notes.values()) {
      const left = x(note.onset), right = x(note.offset ?? Math.max(now, note.onset));
      if (right < 0 || left > width) continue;
      context.fillStyle = voices[note.voice] ?? voices[0];
      context.globalAlpha = (note.onset > now ? 0.3 : 0.45) + 0.5 * Math.min(note.velocity / 110, 1) * (note.onset > now ? 0.5 : 1);
      context.fillRect(left, y(note.pitch) + 0.5, Math.max(right - left - 1, 2), Math.max(rowHeight - 1, 1.5));
    }
    context.globalAlpha = 1;
    context.fillStyle = colour("--now");
    context.fillRect(x(now) - 1, 0, 2, height);
  }

  // The second at a place of the canvas.
  secondAt(clientX) {
    const box = this.canvas.getBoundingClientRect();
    return this.begin + ((clientX - box.left) / box.width) * this.secondsPerScreen;
  }
}
