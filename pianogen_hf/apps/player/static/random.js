// Random numbers that torch draws, too: with a seed the page writes the notes that Python writes; see `choose` in
// generation/drawing.py. The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998).

const SIZE = 624, SHIFT = 397;

// Gives numbers in [0, 1), as torch.rand(dtype=torch.float64) of a generator with this seed, of which 32 bits count.
export function seeded(seed) {
  const state = new Uint32Array(SIZE);
  state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
  for (let at = 1; at < SIZE; at++) state[at] = Math.imul(1812433253, state[at - 1] ^ (state[at - 1] >>> 30)) + at;
  let next = SIZE;

  function twist() {
    for (let at = 0; at < SIZE; at++) {
      const both = (state[at] & 0x80000000) | (state[(at + 1) % SIZE] & 0x7fffffff);
      state[at] = state[(at + SHIFT) % SIZE] ^ (both >>> 1) ^ (both & 1 ? 0x9908b0df : 0);
    }
    next = 0;
  }

  function word() {
    if (next === SIZE) twist();
    let value = state[next++];
    value ^= value >>> 11;
    value ^= (value << 7) & 0x9d2c5680;
    value ^= (value << 15) & 0xefc60000;
    return (value ^ (value >>> 18)) >>> 0;
  }

  return () => {
    const high = word() & 0x1fffff, low = word(); // 53 bits
    return (high * 2 ** 32 + low) * 2 ** -53;
  };
}
