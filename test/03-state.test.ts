// The softmax state as users see it: results over parts of a context merge into the result over all of it. The state
// itself is tested in native/softmax_state_test.cpp.
import type { DecodeOptions, DecodeResult, DType } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { build, type Case } from './helpers/cases';
import { expectClose, expectSameBits, measure, RELATIVE_ERROR } from './helpers/compare';
import { convert, mergeStates, openDevice, referenceDecode, tensor } from './helpers/library';
import { random } from './helpers/random';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const CONTEXT = 400;
const CASE: Case = {
  contexts: [CONTEXT, CONTEXT],
  queryLen: 1,
  numKvHeads: 2,
  groupSize: 4,
  headDim: 64,
  pageTokens: 0,
  layout: 'NHD',
  placement: 'plain',
  qType: 'f32',
  kvType: 'f32',
  seed: 1,
};

/** The call over the tokens [begin, end) alone. */
function part(options: DecodeOptions, begin: number, end: number): DecodeResult {
  const slice = (t: DecodeOptions['k']): DecodeOptions['k'] =>
    tensor(t.data.subarray(begin * t.strides[1]), [t.shape[0], CONTEXT - begin, t.shape[2], t.shape[3]], {
      dtype: t.dtype,
      strides: t.strides,
    });
  const lengths = new Array<number>(CASE.contexts.length).fill(end - begin);
  if (begin === CONTEXT) return device.decodeSync({ ...options, contextLengths: lengths });
  return device.decodeSync({ ...options, k: slice(options.k), v: slice(options.v), contextLengths: lengths });
}

const parts = (options: DecodeOptions, cuts: readonly number[]): DecodeResult[] =>
  [...cuts, CONTEXT].map((end, index) => part(options, index === 0 ? 0 : cuts[index - 1], end));

describe('mergeStates', () => {
  test.each([1, 20])('of any cuts of a context equals the whole, keys of size %d', (keyScale) => {
    const options = build({ ...CASE, keyScale });
    const reference = referenceDecode(options);
    const rng = random(3);
    for (let round = 0; round < 20; ++round) {
      const cuts = Array.from({ length: rng.integer(0, 6) }, () => rng.integer(0, CONTEXT)).sort((a, b) => a - b);
      expectClose(mergeStates(parts(options, cuts)), reference, `cuts at ${cuts}`, keyScale === 1);
    }
  });

  test('is associative and commutative up to rounding', () => {
    const options = build(CASE);
    const reference = referenceDecode(options);
    const [a, b, c, d] = parts(options, [1, 65, 300]);
    expectClose(mergeStates([mergeStates([a, b]), mergeStates([c, d])]), reference, '(ab)(cd)');
    expectClose(mergeStates([a, mergeStates([b, mergeStates([c, d])])]), reference, 'a(b(cd))');
    expectClose(mergeStates([mergeStates([mergeStates([a, b]), c]), d]), reference, '((ab)c)d');
    expectClose(mergeStates([d, c, b, a]), reference, 'dcba');
  });

  test('gives the same bits for the same parts', () => {
    const three = parts(build(CASE), [17, 130]);
    expectSameBits(mergeStates(three), mergeStates(three));
  });

  test('of one state is that state', () => {
    const [whole] = parts(build(CASE), []);
    const merged = mergeStates([whole]);
    expect(merged.out.data).toEqual(whole.out.data);
    for (const [i, lse] of merged.lse.data.entries()) expect(lse).toBeCloseTo(whole.lse.data[i], 5);
    expect(merged.out.data.buffer).not.toBe(whole.out.data.buffer); // a new tensor
  });

  test('ignores empty states whatever their output holds', () => {
    const options = build(CASE);
    const [a, b] = parts(options, [100]);
    const empty = part(options, CONTEXT, CONTEXT);
    expect(new Set(empty.lse.data)).toEqual(new Set([-Infinity]));
    expectSameBits(mergeStates([empty, a, empty, b, empty]), mergeStates([a, b]));
    const poisoned = {
      lse: empty.lse,
      out: tensor(new Float32Array(empty.out.data.length).fill(Number.NaN), empty.out.shape),
    };
    expectSameBits(mergeStates([poisoned, a, b]), mergeStates([a, b]));
    const nothing = mergeStates([poisoned, empty]);
    expect(new Set(nothing.out.data)).toEqual(new Set([0]));
    expect(new Set(nothing.lse.data)).toEqual(new Set([-Infinity]));
  });

  test('survives extreme log-sum-exps', () => {
    const state = (lse: number, value: number): DecodeResult => ({
      out: tensor(new Float32Array(8).fill(value), [1, 8]),
      lse: tensor(Float32Array.of(lse), [1]),
    });
    expect(mergeStates([state(5e5, 1), state(5e5, 3)]).out.data[0]).toBeCloseTo(2, 6);
    expect(mergeStates([state(-5e5, 1), state(-5e5, 3)]).out.data[0]).toBeCloseTo(2, 6);
    const outlier = mergeStates([state(-5e5, 1), state(5e5, 3), state(0, 7)]);
    expect(outlier.out.data[0]).toBe(3);
    expect(outlier.lse.data[0]).toBeCloseTo(5e5, 0);
  });

  test.each(['f16', 'bf16'] as const)('of %s outputs stays within the bounds', (dtype: DType) => {
    const options = build({ ...CASE, qType: dtype });
    const merged = mergeStates(parts(options, [33, 200]));
    expect(merged.out.dtype).toBe(dtype);
    // Each part's output was rounded before it was merged: up to twice the rounding of one.
    const errors = measure(merged, referenceDecode(options));
    expect(errors.relative).toBeLessThanOrEqual(2 * RELATIVE_ERROR[dtype]);
    expect(errors.lse).toBeLessThanOrEqual(1e-5);
  });

  test('reads strided states', () => {
    const [a, b] = parts(build(CASE), [250]);
    const spread = (result: DecodeResult): DecodeResult => {
      const { shape, data } = result.out;
      const wide = new Float32Array(data.length * 2).fill(Number.NaN);
      for (const [i, value] of data.entries()) wide[Math.floor(i / 64) * 128 + (i % 64)] = value;
      return { out: tensor(wide, shape, { strides: [8 * 128, 128, 1] }), lse: result.lse };
    };
    expect(convert(spread(a).out, 'f32').data).toEqual(a.out.data);
    expectSameBits(mergeStates([spread(a), spread(b)]), mergeStates([a, b]));
  });
});
