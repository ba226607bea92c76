// A piano of recorded tones: one file holds a tone every few semitones; those between are played a little faster.

const RELEASE_SEC = 0.14;

export class Piano {
  constructor() {
    this.context = new AudioContext();
    this.master = new GainNode(this.context, { gain: 0.8 });
    this.analyser = new AnalyserNode(this.context, { fftSize: 2048 });
    this.master.connect(new DynamicsCompressorNode(this.context)).connect(this.analyser).connect(this.context.destination);
    // Without samples: a struck string, roughly, as the sum of its first partials.
    this.partials = this.context.createPeriodicWave(new Float32Array(5), Float32Array.of(0, 1, 0.38, 0.16, 0.07));
    this.samples = null;
    this.sounding = new Set();
  }

  // Fetch the tones; without them a simple synthesizer plays. `about`: {pitches, seconds} of the file.
  async load(url, about) {
    const answer = await fetch(url);
    if (!answer.ok) return false;
    const buffer = await this.context.decodeAudioData(await answer.arrayBuffer());
    this.samples = { buffer, ...about };
    return true;
  }

  resume() {
    if (this.context.state !== "running") this.context.resume();
  }

  get now() {
    return this.context.currentTime;
  }

  // Begin a tone at `when` (of this clock); gives what `stop` wants.
  play(pitch, velocity, when = this.now) {
    const at = Math.max(when, this.now);
    const gain = new GainNode(this.context, { gain: (velocity / 127) ** 1.6 });
    const filter = new BiquadFilterNode(this.context, { type: "lowpass", frequency: 1200 + 90 * velocity });
    const source = this.samples ? this.#tone(pitch, at, filter) : this.#string(pitch, at, filter);
    filter.connect(gain).connect(this.master);
    const voice = { source, gain, at, pitch };
    this.sounding.add(voice);
    source.onended = () => this.sounding.delete(voice);
    return voice;
  }

  #tone(pitch, at, target) {
    const { buffer, pitches, seconds } = this.samples;
    let nearest = 0;
    pitches.forEach((each, index) => {
      if (Math.abs(each - pitch) < Math.abs(pitches[nearest] - pitch)) nearest = index;
    });
    const rate = 2 ** ((pitch - pitches[nearest]) / 12);
    const source = new AudioBufferSourceNode(this.context, { buffer, playbackRate: rate });
    source.connect(target);
    source.start(at, nearest * seconds, seconds - 0.02);
    return source;
  }

  // It dies away, a high one sooner.
  #string(pitch, at, target) {
    const frequency = 440 * 2 ** ((pitch - 69) / 12), decay = new GainNode(this.context, { gain: 0.8 });
    const source = new OscillatorNode(this.context, { frequency, periodicWave: this.partials });
    decay.gain.setTargetAtTime(0, at, Math.min(0.35 + 520 / frequency, 4));
    source.connect(decay).connect(target);
    source.start(at);
    source.stop(at + 6);
    return source;
  }

  stop(voice, when = this.now) {
    const at = Math.max(when, this.now, voice.at + 0.02);
    const level = voice.gain.gain.value;
    voice.gain.gain.cancelScheduledValues(at);
    voice.gain.gain.setValueAtTime(level, at);
    voice.gain.gain.setTargetAtTime(0, at, RELEASE_SEC / 3);
    voice.source.stop(at + 3 * RELEASE_SEC);
  }

  // End everything that sounds or is about to.
  silence() {
    for (const voice of this.sounding) {
      voice.gain.gain.cancelScheduledValues(0);
      voice.gain.gain.setTargetAtTime(0, this.now, 0.02);
      voice.source.stop(this.now + 0.1);
    }
  }

  // Largest deviation of the last moment's output from silence, 0..1.
  peak() {
    const values = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(values);
    return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  }
}
