// Decode against the float64 reference over a grid of shapes, layouts and types, under every strategy, worker count and
// instruction set. Whatever must not be read is NaN or absurd (helpers/cases.ts).
import type { DecodeOptions, Device, DType, InstructionSet, Strategy, Tensor } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { build, type Case, costOf, nameOf, type Placement } from './helpers/cases';
import { expectClose, expectSameBits } from './helpers/compare';
import { installation, openDevice, referenceDecode, tensor } from './helpers/library';
import { allPairs } from './helpers/pairs';
import { poisoned } from './helpers/poison';
import { random } from './helpers/random';

const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];
const WORKERS = [1, 2, 3, 7, 64, 132, 5000] as const; // the last one more than there are tiles
const instructionSets = installation().cpu.instructionSets as InstructionSet[];
const devices = instructionSets.map((instructionSet) => openDevice('cpu', { instructionSet, threads: 3 }));
const single = openDevice('cpu', { threads: 1 });
afterAll(() => {
  for (const device of [...devices, single]) device.dispose();
});

const zerosLike = ({ data, shape, dtype }: Tensor): Tensor => tensor(data.slice().fill(0), shape, { dtype });

const CONTEXTS = [0, 1, 15, 16, 17, 54, 97, 512, 2047, 2048, 2049] as const;
const BUDGET = 12e6; // multiply-adds of a case, so that the file stays under a minute

/** As many contexts as the batch holds, the first one given, the rest drawn; long ones give way to short ones. */
function contextsFor(first: number, batch: number, seed: number, cost: (contexts: number[]) => number): number[] {
  const rng = random(seed);
  const contexts = [first, ...Array.from({ length: batch - 1 }, () => rng.pick(CONTEXTS))];
  while (cost(contexts) > BUDGET && Math.max(...contexts.slice(1), 0) > 17) {
    contexts[contexts.indexOf(Math.max(...contexts.slice(1)), 1)] = rng.pick([0, 1, 15, 16, 17]);
  }
  return rng.shuffle(contexts);
}

const rows = allPairs(
  {
    headDim: [8, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512],
    groupSize: [1, 2, 3, 4, 5, 6, 7, 8, 12, 16],
    pageTokens: [0, 0, 1, 3, 8, 16, 256],
    layout: ['NHD', 'HND'],
    placement: ['plain', 'offset', 'gaps', 'fused KV', 'fused QKV', 'shared'] satisfies Placement[],
    types: ['f32 f32', 'f16 f16', 'bf16 bf16', 'f32 f16', 'f32 bf16', 'f16 f32', 'bf16 f32', 'f16 bf16', 'bf16 f16'],
    context: CONTEXTS,
    batch: [1, 2, 3, 5, 17],
    queryLen: [1, 1, 2, 5, 16],
    numKvHeads: [1, 2, 3, 8],
    workers: WORKERS,
  } as const,
  20251121,
);

const grid: { workers: number; case: Case }[] = rows.map((row, index) => {
  const { context, batch, types, workers, ...rest } = row;
  const [qType, kvType] = types.split(' ') as [DType, DType];
  const shape: Omit<Case, 'contexts'> = { ...rest, qType, kvType, seed: index };
  // Wide shapes are costly: fewer KV heads for them.
  const cost = (contexts: number[]): number => costOf({ ...shape, contexts });
  if (cost([context]) > BUDGET) shape.numKvHeads = 1;
  if (cost([context]) > 2 * BUDGET) shape.queryLen = Math.min(shape.queryLen, 2);
  return { workers, case: { ...shape, contexts: contextsFor(context, batch, index, cost) } };
});

describe('the grid', () => {
  test.each(grid.map((entry) => [nameOf(entry.case), entry] as const))('%s', async (_, { workers, case: c }) => {
    const options = build(c);
    const reference = referenceDecode(options);
    for (const [index, device] of devices.entries()) {
      const strategy = STRATEGIES[(index + c.seed) % STRATEGIES.length];
      const splits = strategy === 'fixed-split' && c.seed % 2 === 0 ? { splits: 1 + (c.seed % 9) } : {};
      const run: DecodeOptions = { ...options, strategy, workers, ...splits };
      const what = `${device.instructionSet}, ${strategy}, ${workers} workers`;
      const result = device.decodeSync(run);
      expectClose(result, reference, what);
      expectSameBits(device.decodeSync(run), result, `${what}, again`);
      expectSameBits(await device.decode(run), result, `${what}, asynchronously`);
      if (device.instructionSet === single.instructionSet) {
        expectSameBits(single.decodeSync(run), result, `${what}, on one thread`);
      }
    }
  });
});

describe('every strategy with every number of workers', () => {
  const c: Case = {
    contexts: [2049, 0, 17, 512, 1, 97],
    queryLen: 1,
    numKvHeads: 3,
    groupSize: 5,
    headDim: 40,
    pageTokens: 3,
    layout: 'NHD',
    placement: 'offset',
    qType: 'f32',
    kvType: 'f32',
    seed: 7,
  };
  const options = build(c);
  const reference = referenceDecode(options);
  const runs = STRATEGIES.flatMap((strategy) => WORKERS.map((workers) => ({ strategy, workers })));
  test.each(runs)('$strategy, $workers workers', ({ strategy, workers }) => {
    for (const device of devices) {
      expectClose(device.decodeSync({ ...options, strategy, workers }), reference, device.instructionSet);
    }
  });
  test.each([1, 2, 3, 5, 33, 128, 1000])('fixed-split, %i splits', (splits) => {
    for (const device of devices) {
      expectClose(device.decodeSync({ ...options, strategy: 'fixed-split', splits }), reference, device.instructionSet);
    }
  });
});

describe('long contexts', () => {
  const long = { queryLen: 1, numKvHeads: 2, groupSize: 4, headDim: 128, layout: 'NHD', placement: 'plain' } as const;
  const cases: Case[] = [
    { ...long, contexts: [16384], pageTokens: 0, qType: 'f32', kvType: 'f32', seed: 1 },
    { ...long, contexts: [16384], pageTokens: 16, qType: 'f16', kvType: 'f16', seed: 2 },
    { ...long, contexts: [16384, 97, 0, 2048], pageTokens: 256, qType: 'bf16', kvType: 'bf16', seed: 3 },
  ];
  test.each(cases.map((c) => [nameOf(c), c] as const))('%s', (_, c) => {
    const options = build(c);
    const reference = referenceDecode(options);
    for (const device of devices) {
      for (const workers of [1, 3, 132]) {
        expectClose(
          device.decodeSync({ ...options, workers }),
          reference,
          `${device.instructionSet}, ${workers} workers`,
        );
      }
    }
  });

  // Plain: one tile's sum after the other, every step rounded. A sum that takes tokens one by one is several times as far off.
  test('131,072 tokens are summed as exactly as plain float32 arithmetic sums them in tiles', () => {
    const [context, headDim, tileTokens] = [131072, 64, 64];
    const rng = random(7);
    const normal = (count: number) => Float32Array.from({ length: count }, () => rng.normal());
    const [q, k, v] = [normal(headDim), normal(context * headDim), normal(context * headDim)];
    const cache = (data: Float32Array) => tensor(data, [1, context, 1, headDim]);
    const options = { q: tensor(q, [1, 1, headDim]), k: cache(k), v: cache(v) };
    const { out: expected } = referenceDecode({ ...options, contextLengths: [context] });

    const { fround } = Math;
    const acc = new Float32Array(headDim);
    let [m, l] = [-Infinity, 0];
    for (let first = 0; first < context; first += tileTokens) {
      const scores = new Float32Array(tileTokens);
      for (let t = 0; t < tileTokens; ++t) {
        for (let d = 0; d < headDim; ++d) scores[t] += fround(q[d] * k[(first + t) * headDim + d]);
        scores[t] *= 1 / Math.sqrt(headDim);
      }
      const [before, sum] = [m, new Float32Array(headDim)];
      m = Math.max(m, ...scores);
      const factor = fround(Math.exp(before - m));
      l = fround(l * factor);
      for (let d = 0; d < headDim; ++d) acc[d] *= factor;
      for (let t = 0; t < tileTokens; ++t) {
        const weight = fround(Math.exp(scores[t] - m));
        l = fround(l + weight);
        for (let d = 0; d < headDim; ++d) sum[d] += fround(weight * v[(first + t) * headDim + d]);
      }
      for (let d = 0; d < headDim; ++d) acc[d] += sum[d];
    }
    const distance = (values: Float32Array) => Math.hypot(...values.map((value, d) => value - expected[d]));
    const plain = distance(acc.map((value) => value / l));
    for (const device of devices) {
      const { out } = device.decodeSync({ ...options, workers: 1 });
      expect(distance(out.data as Float32Array), device.instructionSet).toBeLessThan(2 * plain);
    }
  });
});

describe('scores far from ordinary', () => {
  const shape = { queryLen: 1, numKvHeads: 2, groupSize: 3, headDim: 64, layout: 'NHD', placement: 'plain' } as const;
  test.each([30, 1e3, 1e6, 1e-30])('keys of size %d', (keyScale) => {
    const c: Case = { ...shape, contexts: [300, 65], pageTokens: 8, qType: 'f32', kvType: 'f32', keyScale, seed: 5 };
    const options = build(c);
    const reference = referenceDecode(options);
    for (const device of devices) {
      for (const workers of [1, 4, 64]) {
        // Scores of float32 are off by some of their own units in the last place, and so are the weights.
        const largestScore = 5 * Math.sqrt(shape.headDim) * keyScale;
        const what = `${device.instructionSet}, ${workers} workers`;
        expectClose(device.decodeSync({ ...options, workers }), reference, what, keyScale < 1, largestScore * 2 ** -24);
      }
    }
  });

  /** One query, keys given by their score, V counting the tokens. */
  function scored(scores: readonly number[]): DecodeOptions {
    const k = new Float32Array(scores.length * 8);
    const v = new Float32Array(scores.length * 8);
    for (const [token, score] of scores.entries()) {
      k[token * 8] = score;
      v.fill(token + 1, token * 8, token * 8 + 8);
    }
    const shape = [1, scores.length, 1, 8];
    const q = tensor(Float32Array.of(1, 0, 0, 0, 0, 0, 0, 0), [1, 1, 8]);
    return { q, k: tensor(k, shape), v: tensor(v, shape), scale: 1 };
  }
  const two = (at: number, score: number, others: number): number[] => {
    const scores = new Array<number>(200).fill(others);
    scores[at] = score;
    return scores;
  };
  test.each([
    ['all +5e5', new Array<number>(200).fill(5e5)],
    ['all -5e5', new Array<number>(200).fill(-5e5)],
    ['one huge outlier at the start', two(0, 5e5, -5e5)],
    ['one huge outlier at the end', two(199, 5e5, -5e5)],
    ['one huge outlier in the middle', two(100, 1e30, 0)],
    ['one that sees nothing of the others', two(70, 0, -5e5)],
  ])('%s', (_, scores) => {
    const options = scored(scores);
    const reference = referenceDecode(options);
    for (const device of devices) {
      for (const workers of [1, 2, 4]) {
        expectClose(device.decodeSync({ ...options, workers }), reference, device.instructionSet, false);
      }
    }
  });

  test('a negative scale and a scale of 0', () => {
    const c: Case = { ...shape, contexts: [130], pageTokens: 0, qType: 'f32', kvType: 'f32', seed: 6 };
    for (const scale of [0, -0.3]) {
      const options = { ...build(c), scale };
      const reference = referenceDecode(options);
      for (const device of devices) expectClose(device.decodeSync(options), reference, `scale ${scale}`);
    }
  });

  test('NaN within a context shows where it belongs and nowhere else', () => {
    const c: Case = { ...shape, contexts: [200, 200], pageTokens: 0, qType: 'f32', kvType: 'f32', seed: 8 };
    const options = build(c);
    options.v.data[150 * options.v.strides[1] + 3] = Number.NaN; // sequence 0, KV head 0, dimension 3
    options.k.data[options.k.strides[0] + 10 * options.k.strides[1] + options.k.strides[2]] = Number.NaN; // sequence 1, head 1
    const reference = referenceDecode(options);
    for (const device of devices) {
      for (const workers of [1, 2, 5, 16]) {
        const { out, lse } = device.decodeSync({ ...options, workers });
        const what = `${device.instructionSet}, ${workers} workers`;
        expect(Array.from(out.data, Number.isNaN), `${what}: out`).toEqual(Array.from(reference.out, Number.isNaN));
        expect(Array.from(lse.data.subarray(0, 9), Number.isNaN), `${what}: lse`).not.toContain(true);
        expect(Array.from(lse.data.subarray(9), Number.isNaN), `${what}: lse`).toEqual([true, true, true]);
      }
    }
  });

  test('NaN in the K and V of a later query does not reach an earlier one', () => {
    const c: Case = { ...shape, contexts: [67, 3], queryLen: 3, pageTokens: 0, qType: 'f32', kvType: 'f32', seed: 9 };
    const options = build(c);
    for (const { data, strides } of [options.k, options.v]) {
      data.fill(Number.NaN, 66 * strides[1], 67 * strides[1]);
      data.fill(Number.NaN, strides[0] + strides[1], strides[0] + 3 * strides[1]);
    }
    const reference = referenceDecode(options);
    for (const device of devices) expectClose(device.decodeSync(options), reference, device.instructionSet);
  });
});

describe('results', () => {
  const c: Case = {
    contexts: [70, 0, 129],
    queryLen: 2,
    numKvHeads: 2,
    groupSize: 2,
    headDim: 24,
    pageTokens: 16,
    layout: 'HND',
    placement: 'plain',
    qType: 'f16',
    kvType: 'f16',
    seed: 11,
  };
  const options = build(c);
  const plain = (device: Device) => device.decodeSync(options);

  test('empty contexts give 0 and -infinity', () => {
    for (const device of devices) {
      const { out, lse } = plain(device);
      const rows = 2 * 4;
      expect(Array.from(out.data.subarray(rows * 24, 2 * rows * 24))).toEqual(new Array(rows * 24).fill(0));
      expect(Array.from(lse.data.subarray(rows, 2 * rows))).toEqual(new Array(rows).fill(-Infinity));
    }
  });

  test('a batch of empty contexts alone, for every strategy', () => {
    const empty = build({ ...c, contexts: [0, 0] });
    for (const strategy of STRATEGIES) {
      for (const workers of [1, 3, 132]) {
        const { out, lse } = devices[0].decodeSync({ ...empty, strategy, workers });
        expect(new Set(out.data)).toEqual(new Set([0]));
        expect(new Set(lse.data)).toEqual(new Set([-Infinity]));
      }
    }
  });

  test('a query before the start of its context sees nothing', () => {
    const short = build({ ...c, contexts: [3], queryLen: 5, qType: 'f32', kvType: 'f32' });
    const { out, lse } = devices[0].decodeSync(short);
    expect(Array.from(out.data.subarray(0, 2 * 4 * 24))).toEqual(new Array(2 * 4 * 24).fill(0));
    expect(Array.from(lse.data, (value) => value === -Infinity)).toEqual(
      Array.from({ length: 20 }, (_, row) => row < 8),
    );
  });

  test('go to `out` and `lse` where they are given, views included, and nowhere else', async () => {
    const expected = plain(devices[0]);
    const elements = expected.out.data.length;
    const rows = expected.lse.data.length;
    for (const run of ['decode', 'decodeSync'] as const) {
      const outData = poisoned(elements + 10, 'f16');
      const lseData = poisoned(rows + 10, 'f32') as Float32Array;
      const out = tensor(outData.subarray(5), options.q.shape, { dtype: 'f16' });
      const lse = tensor(lseData.subarray(3), options.q.shape.slice(0, -1));
      const result = await devices[0][run]({ ...options, out, lse });
      expect(result.out).toBe(out);
      expect(result.lse).toBe(lse);
      expect(outData.slice(5, 5 + elements)).toEqual(expected.out.data);
      expect(lseData.slice(3, 3 + rows)).toEqual(expected.lse.data);
      expect(new Set([...outData.subarray(0, 5), ...outData.subarray(5 + elements)])).toEqual(new Set([0x7e00]));
      expect([...lseData.subarray(0, 3), ...lseData.subarray(3 + rows)].every(Number.isNaN)).toBe(true);
    }
  });

  test('of a call whose target is read through code that decodes too', () => {
    const other = build({ ...c, contexts: [5, 9], groupSize: 2 });
    const expected = plain(devices[0]);
    const target = (t: Tensor): Tensor => ({
      ...t,
      get data() {
        devices[0].decodeSync(other);
        return t.data;
      },
    });
    const [out, lse] = [zerosLike(expected.out), zerosLike(expected.lse)];
    devices[0].decodeSync({ ...options, out: target(out), lse: target(lse) });
    expectSameBits({ out, lse }, expected, '');
  });

  test('have the shape and the type of q', () => {
    const { out, lse } = plain(devices[0]);
    expect(out.shape).toEqual([3, 2, 4, 24]);
    expect(out.dtype).toBe('f16');
    expect(lse.shape).toEqual([3, 2, 4]);
    expect(lse.dtype).toBe('f32');
    const three = build({ ...c, queryLen: 1 });
    const result = devices[0].decodeSync(three);
    expect(result.out.shape).toEqual([3, 4, 24]);
    expect(result.lse.shape).toEqual([3, 4]);
  });

  test('are those of a plan, with the same bits', async () => {
    const { contextLengths, ...tensors } = options;
    for (const strategy of STRATEGIES) {
      for (const workers of [1, 2, 7]) {
        const plan = devices[0].plan({
          numQueryHeads: 4,
          numKvHeads: 2,
          headDim: 24,
          queryLen: 2,
          contextLengths: contextLengths as Int32Array,
          strategy,
          workers,
        });
        const expected = devices[0].decodeSync({ ...options, strategy, workers });
        expectSameBits(plan.decodeSync(tensors), expected, `${strategy}, ${workers} workers`);
        expectSameBits(await plan.decode(tensors), expected, `${strategy}, ${workers} workers, asynchronously`);
      }
    }
  });

  test('of a plan follow its update to other contexts', () => {
    const { contextLengths: _, ...tensors } = options;
    const shape = { numQueryHeads: 4, numKvHeads: 2, headDim: 24, queryLen: 2, workers: 3 };
    const plan = devices[0].plan({ ...shape, contextLengths: [1, 2, 3] });
    plan.update([64, 0, 65]);
    const expected = devices[0].decodeSync({ ...options, contextLengths: [64, 0, 65], workers: 3 });
    expectSameBits(plan.decodeSync(tensors), expected);
  });

  test('take the whole capacity where no context lengths are given', () => {
    const full: Case = { ...c, contexts: [16], pageTokens: 0, queryLen: 1 };
    const { contextLengths: _, ...whole } = build(full);
    const slots = { ...whole, k: tensor(whole.k.data, [1, 2, 16, 24], { dtype: 'f16', strides: whole.k.strides }) };
    const options = { ...slots, v: tensor(whole.v.data, [1, 2, 16, 24], { dtype: 'f16', strides: whole.v.strides }) };
    expectSameBits(devices[0].decodeSync(options), devices[0].decodeSync({ ...options, contextLengths: [16] }));
  });

  test('of lists and typed arrays for lengths and pages are the same', () => {
    const table = options.pageTable as Int32Array;
    const lists = [0, 1, 2].map((sequence) =>
      Array.from(table.subarray((sequence * table.length) / 3, ((sequence + 1) * table.length) / 3)).slice(
        0,
        sequence * 4 + 5,
      ),
    );
    const lengths = Array.from(options.contextLengths as Int32Array);
    expectSameBits(devices[0].decodeSync({ ...options, pageTable: lists, contextLengths: lengths }), plain(devices[0]));
    expect(referenceDecode({ ...options, pageTable: lists })).toEqual(referenceDecode(options));
  });
});
