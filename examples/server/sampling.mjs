// @ts-check
// From logits to a token. Each request draws from random numbers of its own, so that its text depends on its seed and
// not on who else was in the batch.

/**
 * Mulberry32: small, seeded, and good enough to sample with.
 *
 * @param {number} seed
 * @returns {() => number} From 0 to 1, 1 excluded.
 */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * The likeliest token; of equals the first.
 *
 * @param {Float32Array} logits
 */
export function greedy(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; ++token) if (logits[token] > logits[best]) best = token;
  return best;
}

/**
 * A sampler for one request. Temperature 0 is greedy; else softmax(logits / temperature) is drawn from.
 *
 * @param {number} temperature
 * @param {number} seed
 * @returns {(logits: Float32Array) => number}
 */
export function sampler(temperature, seed) {
  if (temperature === 0) return greedy;
  const uniform = random(seed);
  return (logits) => {
    const largest = logits[greedy(logits)]; // exp() of what is left over never overflows
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
    let rest = uniform() * weights.reduce((sum, weight) => sum + weight, 0);
    for (let token = 0; token < weights.length; ++token) {
      rest -= weights[token];
      if (rest < 0) return token;
    }
    return greedy(logits); // rounding left a crumb
  };
}
