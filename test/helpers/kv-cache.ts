// What tests of the KV cache share: rows of tokens that anyone can make anew, the tensors that a cache stands for, and
// rotary embedding as its papers write it, in float64.
import type { DType, RotaryOptions, Tensor } from 'lean-attention';
import { library } from './library';
import { emptyData, store } from './numbers';
import { random } from './random';

const pool = Float64Array.from(
  { length: 1 << 14 },
  (
    (rng) => () =>
      rng.normal()
  )(random(17)),
);

/** Rows of heads x headDim normal numbers, one for each token: the same token always has the same row. */
export function rowsOf(tokens: readonly number[], heads: number, headDim: number, dtype: DType, salt = 0): Tensor {
  const width = heads * headDim;
  const data = emptyData(tokens.length * width, dtype);
  for (const [row, token] of tokens.entries()) {
    const begin = ((token * 7919 + salt * 104_729) >>> 0) % (pool.length - width);
    for (let i = 0; i < width; ++i) store(data, row * width + i, pool[begin + i], dtype);
  }
  return library.tensor(data, [tokens.length, heads, headDim], { dtype });
}

/** Sequences of tokens as one contiguous tensor, [batch, longest, heads, headDim]; what lies past a sequence is NaN. */
export function asTensor(
  sequences: readonly (readonly number[])[],
  heads: number,
  headDim: number,
  dtype: DType,
  salt = 0,
): Tensor {
  const longest = Math.max(1, ...sequences.map((tokens) => tokens.length));
  const width = heads * headDim;
  const data = emptyData(sequences.length * longest * width, dtype);
  store(data, 0, Number.NaN, dtype);
  data.fill(data[0]);
  for (const [sequence, tokens] of sequences.entries()) {
    data.set(rowsOf(tokens, heads, headDim, dtype, salt).data, sequence * longest * width);
  }
  return library.tensor(data, [sequences.length, longest, heads, headDim], { dtype });
}

/** Radians a token of each pair, and what rotated dimensions are multiplied by. */
export function rotaryFrequencies(
  options: RotaryOptions,
  headDim: number,
): { frequencies: number[]; amplitude: number } {
  const { base = 10_000, dims = headDim, scaling } = options;
  const plain = Array.from({ length: dims / 2 }, (_, i) => 1 / base ** ((2 * i) / dims));
  switch (scaling?.type) {
    case undefined:
      return { frequencies: plain, amplitude: 1 };
    case 'linear': // positions are divided by the factor
      return { frequencies: plain.map((frequency) => frequency / scaling.factor), amplitude: 1 };
    case 'ntk': {
      const stretched = base * scaling.factor ** (dims / (dims - 2));
      return { frequencies: plain.map((_, i) => stretched ** (-(2 * i) / dims)), amplitude: 1 };
    }
    case 'yarn': {
      const { factor, originalContext, betaFast = 32, betaSlow = 1 } = scaling;
      // Section 3.2 of the paper in terms of rotations r, and the bounds that its code rounds to whole dimensions.
      const dimension = (rotations: number): number =>
        (dims * Math.log(originalContext / (rotations * 2 * Math.PI))) / (2 * Math.log(base));
      const low = Math.max(0, Math.floor(dimension(betaFast)));
      let high = Math.min(dims - 1, Math.ceil(dimension(betaSlow)));
      if (low === high) high += 0.001;
      const frequencies = plain.map((frequency, i) => {
        const ramp = Math.max(0, Math.min(1, (i - low) / (high - low)));
        return (ramp * frequency) / factor + (1 - ramp) * frequency;
      });
      const mscale = factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1;
      return { frequencies, amplitude: scaling.attentionFactor ?? mscale };
    }
    case 'llama3': {
      const { factor, lowFreqFactor, highFreqFactor, originalContext } = scaling;
      const frequencies = plain.map((frequency) => {
        const wavelength = (2 * Math.PI) / frequency;
        if (wavelength < originalContext / highFreqFactor) return frequency;
        if (wavelength > originalContext / lowFreqFactor) return frequency / factor;
        const smooth = (originalContext / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
        return ((1 - smooth) * frequency) / factor + smooth * frequency;
      });
      return { frequencies, amplitude: 1 };
    }
  }
}

/** A row of one head, rotated by its position. */
export function rotated(row: Float64Array, position: number, options: RotaryOptions): Float64Array {
  const { frequencies, amplitude } = rotaryFrequencies(options, row.length);
  const result = row.slice();
  for (const [i, frequency] of frequencies.entries()) {
    const [a, b] = options.pairing === 'interleaved' ? [2 * i, 2 * i + 1] : [i, i + frequencies.length];
    const cos = Math.cos(position * frequency) * amplitude;
    const sin = Math.sin(position * frequency) * amplitude;
    result[a] = row[a] * cos - row[b] * sin;
    result[b] = row[b] * cos + row[a] * sin;
  }
  return result;
}
