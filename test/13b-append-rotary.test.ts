// Writing rows: conversion between all types, and rotary embedding against float64 formulas.
import type { DType, RotaryOptions, RotaryScaling, Step, Tensor } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { expectClose, expectSameBits } from './helpers/compare';
import { rotaryFrequencies, rotated, rowsOf } from './helpers/kv-cache';
import { convert, openDevice, referenceDecode, tensor } from './helpers/library';
import { emptyData, fromBits, store, toDoubles } from './helpers/numbers';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const DTYPES: readonly DType[] = ['f32', 'f16', 'bf16'];
const pairs = DTYPES.flatMap((from) => DTYPES.map((to) => [from, to] as const));
const range = (begin: number, end: number): number[] => Array.from({ length: end - begin }, (_, i) => begin + i);
const cacheOf = (dtype: DType, tokens: number, numKvHeads: number, headDim: number) =>
  device.createKvCache({ layers: 1, numKvHeads, headDim, dtype, pageTokens: 4, tokens });

describe('conversion', () => {
  // A sequence of one token: its output is V itself, exactly, and its log-sum-exp is q . K.
  test.each(pairs)('%s to %s: every value as convert() rounds it', (from, to) => {
    const DIM = 64;
    const values = Array.from({ length: 64 * DIM }, (_, i) => {
      const bits = (i * 16) & 0xffff;
      const value =
        from === 'f32' ? (i % 7 === 0 ? Infinity : 1.7 ** ((i % 200) - 100) * (i % 2 ? 1 : -1)) : fromBits(bits, from);
      return Number.isNaN(value) ? 1 : value;
    });
    const data = emptyData(values.length, from);
    for (const [i, value] of values.entries()) store(data, i, value, from);
    const v = tensor(data, [64, 1, DIM], { dtype: from });
    const k = rowsOf(range(0, 64), 1, DIM, from);
    const cache = cacheOf(to, 64 * 4, 1, DIM);
    const step = cache.append(range(0, 64).map(() => cache.createSequence()));
    step.write({ layer: 0, k, v });
    const q = rowsOf(range(0, 64), 1, DIM, 'f32', 3);
    const found = device.decodeSync({ q, cache, layer: 0, sequences: step });
    const stored = (t: Tensor) => convert(t, to);
    const asCache = (t: Tensor) => tensor(t.data, [64, 1, 1, DIM], { dtype: t.dtype });
    const expected = device.decodeSync({ q, k: asCache(stored(k)), v: asCache(stored(v)) });
    expect(found).toEqual(expected);
    expect(toDoubles(found.out.data, 'f32')).toEqual(toDoubles(stored(v).data, to).map((value) => value + 0));
  });
});

/** Rows written and rotated at positions from `start` on, and their queries, rotated into a tensor of their own. */
function rotate(rows: number, start: number, rotary: RotaryOptions, headDim: number, qType: DType = 'f32') {
  const cache = cacheOf('f32', start + rows, 1, headDim);
  const sequence = cache.createSequence();
  if (start > 0) cache.append([sequence], [start]);
  const step = cache.append([sequence], [rows]);
  const k = rowsOf(range(0, rows), 1, headDim, 'f32');
  const q = rowsOf(range(0, rows), 2, headDim, qType, 5);
  const qOut = tensor(emptyData(q.data.length, qType), q.shape, { dtype: qType });
  step.write({ layer: 0, k, v: k, q, qOut, rotary });
  return { cache, sequence, step, k, q, qOut };
}

/** Every row rotated by its position, in float64. */
function rotatedRows(t: Tensor, positions: Int32Array, rotary: RotaryOptions): Float64Array {
  const [rows, heads, headDim] = t.shape;
  const values = toDoubles(t.data, t.dtype);
  for (let row = 0; row < rows; ++row) {
    for (let begin = row * heads * headDim; begin < (row + 1) * heads * headDim; begin += headDim) {
      values.set(rotated(values.slice(begin, begin + headDim), positions[row], rotary), begin);
    }
  }
  return values;
}

/** Every element within a unit of float32 or so, and half a unit of its own type. */
function expectRotated(found: Tensor, before: Tensor, step: Step, rotary: RotaryOptions): void {
  const { dtype } = found;
  const expected = rotatedRows(before, step.positions, rotary);
  const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  for (const [i, value] of toDoubles(found.data, dtype).entries()) {
    const unit = { f32: 2 ** -23, f16: 2 ** -11, bf16: 2 ** -8 }[dtype];
    const difference = Math.abs(value - expected[i]);
    if (!(difference <= 4e-7 * largest + unit * Math.abs(expected[i]))) {
      expect.fail(`[${i}]: expected ${expected[i]}, got ${value}`);
    }
  }
}

const scalings: [string, RotaryScaling | undefined][] = [
  ['none', undefined],
  ['linear', { type: 'linear', factor: 4 }],
  ['ntk', { type: 'ntk', factor: 8 }],
  ['yarn', { type: 'yarn', factor: 16, originalContext: 4096 }],
  ['yarn of its own betas', { type: 'yarn', factor: 4, originalContext: 32_768, betaFast: 64, betaSlow: 2 }],
  ['yarn of its own amplitude', { type: 'yarn', factor: 40, originalContext: 4096, attentionFactor: 1.5 }],
  ['yarn that shrinks', { type: 'yarn', factor: 0.5, originalContext: 100 }],
  ['llama3', { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 }],
  [
    'llama3 of a short context',
    { type: 'llama3', factor: 32, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 64 },
  ],
];
const PAIRINGS = ['half-split', 'interleaved'] as const;
const rotations = PAIRINGS.flatMap((pairing) => scalings.map(([name, scaling]) => [pairing, name, scaling] as const));

describe('rotary embedding', () => {
  test.each(rotations)('%s, scaling %s: q and K, whole heads and parts', (pairing, _, scaling) => {
    for (const [headDim, dims, base] of [
      [64, 64, 10_000],
      [128, 96, 500_000],
      [40, 4, 10_000],
      [24, 24, 1_000_000],
    ] as const) {
      const rotary: RotaryOptions = { pairing, dims, base, ...(scaling === undefined ? {} : { scaling }) };
      const { cache, sequence, step, k, q, qOut } = rotate(60, 0, rotary, headDim);
      expectRotated(qOut, q, step, rotary);
      // K by what attention makes of it; V is as it was.
      const stored = Float32Array.from(rotatedRows(k, step.positions, rotary));
      const asCache = (data: Float32Array) => tensor(data, [1, 60, 1, headDim]);
      const one = rowsOf([1], 2, headDim, 'f32', 8);
      const found = device.decodeSync({ q: one, cache, layer: 0, sequences: [sequence] });
      expectClose(
        found,
        referenceDecode({ q: one, k: asCache(stored), v: asCache(k.data as Float32Array) }),
        `${headDim}/${dims}`,
      );
    }
  });

  test('defaults: half-split, base 10000, all dimensions', () => {
    const { qOut } = rotate(20, 3, {}, 32);
    const spelt = rotate(20, 3, { pairing: 'half-split', base: 10_000, dims: 32 }, 32);
    expect(qOut).toEqual(spelt.qOut);
  });

  test.each(DTYPES)('of %s queries: into another tensor, in place, and through strides, the same bits', (qType) => {
    const rotary: RotaryOptions = { pairing: 'interleaved' };
    const { cache, step, k, q, qOut } = rotate(40, 100, rotary, 32, qType);
    expectRotated(qOut, q, step, rotary);
    const again = rotate(40, 100, rotary, 32, qType);
    again.step.write({ layer: 0, k, v: k, q: again.q, rotary });
    expect(again.q).toEqual(qOut);
    const named = rowsOf(range(0, 40), 2, 32, qType, 5);
    step.write({ layer: 0, k, v: k, q: named, qOut: named, rotary });
    expect(named).toEqual(qOut);
    // Queries that lie between K and V, as a fused projection leaves them.
    const fused = tensor(emptyData(40 * 200, qType), [40, 2, 32], { dtype: qType, strides: [200, 50, 1] });
    for (let row = 0; row < 80; ++row) {
      fused.data.set(q.data.subarray(row * 32, row * 32 + 32), Math.floor(row / 2) * 200 + (row % 2) * 50);
    }
    const target = tensor(emptyData(q.data.length, qType), q.shape, { dtype: qType });
    step.write({ layer: 0, k, v: k, q: fused, qOut: target, rotary });
    expect(target).toEqual(qOut);
    step.write({ layer: 0, k, v: k, q: fused, rotary });
    for (let row = 0; row < 80; ++row) {
      const begin = Math.floor(row / 2) * 200 + (row % 2) * 50;
      expect(fused.data.subarray(begin, begin + 32)).toEqual(qOut.data.subarray(row * 32, row * 32 + 32));
      expect(fused.data.subarray(begin + 32, begin + 50).every((value) => value === 0)).toBe(true);
    }
    cache.verify();
  });

  test('leaves the dimensions behind the rotary ones as they are, to the bit', () => {
    for (const qType of DTYPES) {
      const { q, qOut } = rotate(10, 50, { dims: 6 }, 16, qType);
      for (let head = 0; head < 20; ++head) {
        const rest = (t: Tensor) => t.data.subarray(head * 16 + 6, head * 16 + 16);
        expect(rest(qOut)).toEqual(rest(q));
      }
    }
  });

  test('is exact at positions of millions', () => {
    const rotary: RotaryOptions = { base: 10_000 };
    const { q, qOut, step } = rotate(8, 3_000_001, rotary, 8);
    expect(step.positions[7]).toBe(3_000_008);
    expectRotated(qOut, q, step, rotary);
  });

  test('does not depend on what else is in the batch', () => {
    const rotary: RotaryOptions = { scaling: { type: 'yarn', factor: 4, originalContext: 128 } };
    const cache = cacheOf('f16', 20_000, 4, 64);
    const lists = [range(0, 700), range(900, 901), range(40, 300)];
    const [together, apart] = [0, 1].map(() => lists.map(() => cache.createSequence()));
    const rows = (tokens: number[]) => ({
      k: rowsOf(tokens, 4, 64, 'f32'),
      v: rowsOf(tokens, 4, 64, 'f32', 1),
      q: rowsOf(tokens, 8, 64, 'f32', 2),
    });
    const all = rows(lists.flat());
    cache.append(together, [700, 1, 260]).write({ layer: 0, ...all, rotary });
    const parts = lists.map((list, i) => {
      const part = rows(list);
      for (const [begin, end] of [[0, 1] as const, [1, list.length] as const]) {
        if (begin === end) continue;
        const cut = (t: Tensor) =>
          tensor(t.data.subarray(begin * t.strides[0], end * t.strides[0]), [end - begin, t.shape[1], 64]);
        const step = cache.append([apart[i]], [end - begin]);
        step.write({ layer: 0, k: cut(part.k), v: cut(part.v), q: cut(part.q), rotary });
      }
      return part.q.data;
    });
    expect(Float32Array.from(parts.flatMap((data) => [...data]))).toEqual(all.q.data);
    const q = rowsOf([1, 2, 3], 8, 64, 'f32', 3);
    expectSameBits(
      device.decodeSync({ q, cache, layer: 0, sequences: together }),
      device.decodeSync({ q, cache, layer: 0, sequences: apart }),
    );
  });
});

describe('the formulas themselves', () => {
  const both = (scaling: RotaryScaling) => {
    const scaled = rotaryFrequencies({ scaling }, 128);
    return { ...scaled, plain: rotaryFrequencies({}, 128).frequencies };
  };

  test('known values: Llama 3.1 and YaRN keep fast pairs and stretch slow ones by the whole factor', () => {
    const llama = both({ type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 });
    const yarn = both({ type: 'yarn', factor: 16, originalContext: 4096 });
    for (const { frequencies, plain, factor } of [
      { ...llama, factor: 8 },
      { ...yarn, factor: 16 },
    ]) {
      expect(frequencies[0]).toBeCloseTo(1, 12);
      expect(frequencies[63] / plain[63]).toBeCloseTo(1 / factor, 12);
      for (let i = 1; i < 64; ++i) expect(frequencies[i]).toBeLessThan(frequencies[i - 1]);
    }
    expect(yarn.amplitude).toBeCloseTo(1.2772588722239782, 12);
    expect(both({ type: 'ntk', factor: 8 }).frequencies[63] * 8).toBeCloseTo(10_000 ** (-126 / 128), 12);
  });
});
