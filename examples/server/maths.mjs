// @ts-check
// What a transformer computes around its attention, row by row over plain Float32Arrays: every row's result is the same
// whatever other rows there are. Sums are doubles, as JavaScript's numbers are.

/**
 * y[row] = x[row] Wᵀ for each row.
 *
 * @param {Float32Array} x [rows, width]
 * @param {Float32Array} weight [outputs, width]
 * @param {Float32Array} y [rows, outputs]
 * @param {number} width
 */
export function multiply(x, weight, y, width) {
  const outputs = weight.length / width;
  for (let at = 0, to = 0; at < x.length; at += width) {
    let from = 0;
    for (let left = outputs; left >= 4; left -= 4) {
      // Four sums at once: an addition waits for the one before it, but not for those beside it.
      let [a, b, c, d] = [0, 0, 0, 0];
      for (let i = 0; i < width; ++i, ++from) {
        const value = x[at + i];
        a += value * weight[from];
        b += value * weight[from + width];
        c += value * weight[from + 2 * width];
        d += value * weight[from + 3 * width];
      }
      from += 3 * width;
      y[to++] = a;
      y[to++] = b;
      y[to++] = c;
      y[to++] = d;
    }
    for (let left = outputs % 4; left > 0; --left) {
      let sum = 0;
      for (let i = 0; i < width; ++i) sum += x[at + i] * weight[from++];
      y[to++] = sum;
    }
  }
}

/**
 * RMSNorm: y[row] = weight x[row] / sqrt(mean(x[row]²) + ε).
 *
 * @param {Float32Array} x [rows, width]
 * @param {Float32Array} weight [width]
 * @param {Float32Array} y [rows, width]
 */
export function normalise(x, weight, y) {
  const width = weight.length;
  for (let at = 0; at < x.length; at += width) {
    let squares = 0;
    for (let i = 0; i < width; ++i) squares += x[at + i] * x[at + i];
    const scale = 1 / Math.sqrt(squares / width + 1e-5);
    for (let i = 0; i < width; ++i) y[at + i] = x[at + i] * scale * weight[i];
  }
}

/**
 * SwiGLU's gate: gate = silu(gate) up.
 *
 * @param {Float32Array} gate
 * @param {Float32Array} up
 */
export function swiglu(gate, up) {
  for (let i = 0; i < gate.length; ++i) gate[i] = (gate[i] / (1 + Math.exp(-gate[i]))) * up[i];
}

/** @param {Float32Array} sum @param {Float32Array} x */
export function addTo(sum, x) {
  for (let i = 0; i < sum.length; ++i) sum[i] += x[i];
}
