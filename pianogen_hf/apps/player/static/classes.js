// Classes of times and of what can be asked, as in models/time_classes.py and models/note_controls.py.

const EXACT = 64, PER_OCTAVE = 32, OCTAVES = 6;
export const NUM_TIME_CLASSES = EXACT + PER_OCTAVE * OCTAVES + 1;
export const END_CLASS = NUM_TIME_CLASSES; // of a time shift
const OPEN = NUM_TIME_CLASSES - 1, FIRST_OPEN = EXACT << OCTAVES;

// The nearest whole number, of two equally near ones the even one, as numpy and torch round.
export function rint(value) {
  const rounded = Math.round(value);
  return Math.abs(value % 1) === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// Class of a whole number of steps of at least 0.
export function timeClass(steps) {
  if (steps < EXACT) return steps;
  if (steps >= FIRST_OPEN) return OPEN;
  const octave = 31 - Math.clz32(steps) - 6;
  return EXACT + PER_OCTAVE * octave + Math.floor((steps - (EXACT << octave)) / (2 << octave));
}

function firstStep(index) {
  if (index < EXACT) return index;
  const bucket = index - EXACT, octave = Math.floor(bucket / PER_OCTAVE);
  return (EXACT << octave) + (bucket % PER_OCTAVE) * (2 << octave);
}

const numSteps = (index) => (index < EXACT || index === OPEN ? 1 : 2 << Math.floor((index - EXACT) / PER_OCTAVE));
const CLASSES = Array.from({ length: NUM_TIME_CLASSES }, (_, index) => index);
export const FIRST_STEPS = CLASSES.map(firstStep);
export const LAST_STEPS = CLASSES.map((index) => (index === OPEN ? 2 ** 40 : firstStep(index + 1) - 1)); // OPEN has none
export const MIDDLE_STEPS = CLASSES.map((index) => firstStep(index) + (numSteps(index) >> 1));

// What can be asked ----------------------------------------------------------------------------------------------

const DENSITY = 0, REGISTER = 1, LOUDNESS = 2, KIND = 4, SECONDS_LEFT = 5;
export const KEY = 3, GAP_LEFT = 6;
const SLOWEST = 0.5, LOWEST = 36, SHORTEST = 0.125; // notes per second, pitch, seconds
const KINDS = ["classical", "jazz", "score"];
const FEWEST_NOTES = 8; // that say something of density, register or loudness; a key takes twice as many
const TONICS = { C: 0, D: 2, E: 4, F: 5, G: 7, A: 9, B: 11 };

// Class of a key such as "C minor", "Bb major" or "F# minor".
export function keyClass(name) {
  const [, letter, accidental, mode] = name.match(/^([A-G])([#b]?) (major|minor)$/);
  const tonic = TONICS[letter] + { "": 0, "#": 1, b: -1 }[accidental];
  return 1 + ((tonic + 12) % 12) + (mode === "minor" ? 12 : 0);
}

// Class of a time that is left.
export function secondsLeftClass(seconds, size) {
  const octaves = Math.log2(Math.max(seconds, SHORTEST) / SHORTEST);
  return 1 + Math.min(rint(4 * octaves), size - 2);
}

const bounded = (place, size) => 1 + Math.min(Math.max(rint(place), 0), size - 2);
const densityClass = (perSecond, sizes) => bounded(3 * Math.log2(Math.max(perSecond, 1e-3) / SLOWEST), sizes[DENSITY]);
const registerClass = (meanPitch, sizes) => bounded((meanPitch - LOWEST) / 3, sizes[REGISTER]);
const loudnessClass = (meanVelocity, sizes) => bounded(meanVelocity / 5, sizes[LOUDNESS]);

// What notes [onset, pitch, velocity, duration] are like, as classes; 0 where they are too few to say.
export function classesOf(notes, { control_sizes: sizes, key_profiles: profiles }) {
  const classes = new Array(sizes.length).fill(0), number = notes.length;
  if (number < FEWEST_NOTES) return classes;
  const seconds = notes.at(-1)[0] - notes[0][0];
  const mean = (column) => notes.reduce((sum, note) => sum + note[column], 0) / number;
  if (seconds > 1) classes[DENSITY] = densityClass((number - 1) / seconds, sizes);
  classes[REGISTER] = registerClass(mean(1), sizes);
  classes[LOUDNESS] = loudnessClass(mean(2), sizes);
  if (number >= 2 * FEWEST_NOTES) classes[KEY] = 1 + nearestKey(notes, profiles);
  return classes;
}

// The key whose profile goes best with how long each pitch class sounds; see models/key_finding.py.
function nearestKey(notes, logProfiles) {
  const sounding = new Array(12).fill(0);
  for (const [, pitch, , duration] of notes) sounding[pitch % 12] += duration;
  const fits = logProfiles.map((logs) => {
    const profile = logs.map(Math.exp), mean = profile.reduce((sum, each) => sum + each, 0) / 12;
    const norm = Math.hypot(...profile.map((each) => each - mean));
    return profile.reduce((sum, each, pitchClass) => sum + ((each - mean) / norm) * sounding[pitchClass], 0);
  });
  return fits.indexOf(Math.max(...fits));
}

// Classes of a wish: {density, register, loudness, keyName, kind, endSec, gapEndSec, guidanceScale}, null where nothing is asked;
// `key` is the class of a key where no name is given.
export class Controls {
  constructor(wish, sizes) {
    this.sizes = sizes;
    this.endSec = wish.endSec ?? null; // when the piece is to have died away
    this.gapEndSec = wish.gapEndSec ?? null;
    this.guidanceScale = wish.guidanceScale ?? 1;
    this.classes = new Array(sizes.length).fill(0);
    const has = (name) => wish[name] !== undefined && wish[name] !== null;
    if (has("density")) this.classes[DENSITY] = densityClass(wish.density, sizes);
    if (has("register")) this.classes[REGISTER] = registerClass(wish.register, sizes);
    if (has("loudness")) this.classes[LOUDNESS] = loudnessClass(wish.loudness, sizes);
    this.classes[KEY] = has("keyName") ? keyClass(wish.keyName) : wish.key ?? 0;
    if (has("kind")) this.classes[KIND] = 1 + KINDS.indexOf(wish.kind);
  }

  // Class of a key, 0 for none.
  get key() {
    return this.classes[KEY];
  }

  // Whether what is asked is to be held against a model of which nothing is asked (classifier-free guidance).
  get isGuided() {
    return this.guidanceScale !== 1 && this.classes.some((each) => each > 0);
  }

  withoutGuided() {
    return new Controls({ endSec: this.endSec, gapEndSec: this.gapEndSec }, this.sizes);
  }

  // Classes at a written onset.
  at(clock) {
    const ids = [...this.classes];
    if (this.endSec !== null) ids[SECONDS_LEFT] = secondsLeftClass(this.endSec - clock, this.sizes[SECONDS_LEFT]);
    if (this.gapEndSec !== null) ids[GAP_LEFT] = secondsLeftClass(this.gapEndSec - clock, this.sizes[GAP_LEFT]);
    return ids;
  }
}
