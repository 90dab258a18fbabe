// Decodes with inputs from a formula, and what float64 arithmetic gives for them, written down: a mistake that cases, reference
// and device shared would show here.
import type { DecodeOptions, DType, Tensor } from 'lean-attention';
import { library } from './library';
import { emptyData, store } from './numbers';

export interface GoldenCase {
  name: string;
  options: () => DecodeOptions;
  /** [index, value] of the log-sum-exp and of the output, each flat. */
  lse: readonly (readonly [number, number])[];
  out: readonly (readonly [number, number])[];
}

/** Multiples of 1/32 from -2 to 2: every type holds them exactly. */
function numbers(shape: readonly number[], dtype: DType, step: number): Tensor {
  const data = emptyData(
    shape.reduce((a, b) => a * b),
    dtype,
  );
  for (let i = 0; i < data.length; ++i) store(data, i, (((i * step + (i >> 5) * 7) % 129) - 64) / 32, dtype);
  return library.tensor(data, shape, { dtype });
}

const paged = (dtype: DType, headDim: number) => (): DecodeOptions => ({
  q: numbers([2, 4, headDim], dtype, 37),
  k: numbers([5, 64, 2, headDim], dtype, 53),
  v: numbers([5, 64, 2, headDim], dtype, 71),
  contextLengths: [150, 64],
  pageTable: Int32Array.of(3, 0, 4, 2, -1, 1_000_003),
});

export const golden: readonly GoldenCase[] = [
  {
    name: 'f16, head dim 64, pages of 64',
    options: paged('f16', 64),
    lse: [
      [0, 5.152295728],
      [1, 5.803808284],
      [2, 5.688480195],
      [3, 5.876500177],
      [4, 4.336956087],
      [5, 4.922077013],
      [6, 4.869737591],
      [7, 4.888071835],
    ],
    out: [
      [0, -0.673737059],
      [1, 0.194944302],
      [77, -0.055525721],
      [197, -0.338549676],
      [256, -0.609899111],
      [511, -0.533641304],
    ],
  },
  {
    name: 'bf16, head dim 128, pages of 64',
    options: paged('bf16', 128),
    lse: [
      [0, 5.528547143],
      [1, 5.657163536],
      [2, 5.576396813],
      [3, 5.617387942],
      [4, 4.613613724],
      [5, 4.641506386],
      [6, 4.589593367],
      [7, 4.51689584],
    ],
    out: [
      [0, -0.654070606],
      [1, 0.229313307],
      [77, -0.020686693],
      [389, -0.269037646],
      [512, -0.546473433],
      [1023, -0.26674992],
    ],
  },
];
