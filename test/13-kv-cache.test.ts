// The KV cache: sequences grow, fork, shrink and go, and decode over their pages is decode over the tensors they stand for.
import type { DType, KvCache, Sequence, Tensor } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { expectClose, expectSameBits, sameBits } from './helpers/compare';
import { asTensor, rowsOf } from './helpers/kv-cache';
import { LeanAttentionError, openDevice, referenceDecode, tensor } from './helpers/library';
import { poisoned } from './helpers/poison';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const [HEADS, GROUP, DIM, PAGE] = [2, 3, 16, 8];
const DTYPES: readonly DType[] = ['f32', 'f16', 'bf16'];

const smallCache = (tokens = 1024, dtype: DType = 'f32', layers = 1): KvCache =>
  device.createKvCache({ layers, numKvHeads: HEADS, headDim: DIM, dtype, pageTokens: PAGE, tokens });

const queries = (rows: number, dtype: DType = 'f32', salt = 9): Tensor =>
  rowsOf(
    Array.from({ length: rows }, (_, row) => row),
    HEADS * GROUP,
    DIM,
    dtype,
    salt,
  );

/** Appends tokens to sequences and writes their rows in every layer; layer l's are salted with 2l and 2l + 1. */
function grow(cache: KvCache, sequences: readonly Sequence[], tokens: readonly (readonly number[])[]) {
  const step = cache.append(
    sequences,
    tokens.map((list) => list.length),
  );
  for (let layer = 0; layer < cache.layers; ++layer) {
    const rows = (salt: number): Tensor => rowsOf(tokens.flat(), HEADS, DIM, cache.dtype, 2 * layer + salt);
    step.write({ layer, k: rows(0), v: rows(1) });
  }
  return step;
}

/** Tensors of what sequences should hold. */
const tensorsOf = (cache: KvCache, tokens: readonly (readonly number[])[], layer = 0) => ({
  k: asTensor(tokens, HEADS, DIM, cache.dtype, 2 * layer),
  v: asTensor(tokens, HEADS, DIM, cache.dtype, 2 * layer + 1),
  contextLengths: tokens.map((list) => list.length),
});

function expectHolds(cache: KvCache, sequences: readonly Sequence[], tokens: readonly (readonly number[])[]): void {
  cache.verify();
  const q = queries(sequences.length);
  for (let layer = 0; layer < cache.layers; ++layer) {
    const found = device.decodeSync({ q, cache, layer, sequences });
    expectSameBits(found, device.decodeSync({ q, ...tensorsOf(cache, tokens, layer) }), `layer ${layer}`);
  }
}

const range = (begin: number, end: number): number[] => Array.from({ length: end - begin }, (_, i) => begin + i);

describe('a cache', () => {
  test('says what it is', () => {
    const cache = smallCache(100, 'f16', 3);
    const { layers, numKvHeads, headDim, dtype, pageTokens, numPages, bytes, disposed } = cache;
    expect({ layers, numKvHeads, headDim, dtype, pageTokens, numPages, bytes, disposed }).toEqual({
      layers: 3,
      numKvHeads: HEADS,
      headDim: DIM,
      dtype: 'f16',
      pageTokens: PAGE,
      numPages: 13,
      bytes: 13 * PAGE * HEADS * DIM * 2 * 2 * 3,
      disposed: false,
    });
    expect(cache.device).toBe(device);
    expect(cache.stats()).toEqual({
      numPages: 13,
      freePages: 13,
      usedPages: 0,
      sharedPages: 0,
      sequences: 0,
      tokens: 0,
      bytes: 0,
    });
  });

  test('is of f16 and pages of 64 tokens unless told otherwise; bytes count all layers, and round down', () => {
    const page = 64 * 2 * 64 * 2 * 2 * 5;
    const shape = { layers: 5, numKvHeads: 2, headDim: 64 };
    const sized = (bytes: number) => device.createKvCache({ ...shape, bytes });
    expect(sized(page)).toMatchObject({ dtype: 'f16', pageTokens: 64, numPages: 1, bytes: page });
    expect(sized(10 * page - 1)).toMatchObject({ numPages: 9, bytes: 9 * page });
    expect(device.createKvCache({ ...shape, tokens: 65 })).toMatchObject({ numPages: 2, bytes: 2 * page });
  });

  test('counts what it holds', () => {
    const cache = smallCache(10 * PAGE);
    const [a, b] = [cache.createSequence(), cache.createSequence()];
    const step = cache.append([a, b], [PAGE + 1, 3]);
    expect(step.rows).toBe(PAGE + 4);
    expect(step.sequences).toEqual([a, b]);
    expect(step.counts).toEqual([PAGE + 1, 3]);
    expect(step.positions).toEqual(Int32Array.from([...range(0, PAGE + 1), 0, 1, 2]));
    expect(cache.append([b]).positions).toEqual(Int32Array.of(3));
    const child = a.fork();
    expect([a.length, b.length, child.length]).toEqual([PAGE + 1, 4, PAGE + 1]);
    const pageBytes = cache.bytes / cache.numPages;
    const stats = { numPages: 10, freePages: 7, usedPages: 3, sharedPages: 2, sequences: 3, tokens: 2 * PAGE + 6 };
    expect(cache.stats()).toEqual({ ...stats, bytes: 3 * pageBytes });
    child.truncate(PAGE);
    expect(cache.stats()).toMatchObject({ freePages: 7, sharedPages: 1 });
    a.free();
    a.free();
    expect([a.freed, a.length]).toEqual([true, 0]);
    expect(cache.stats()).toMatchObject({ freePages: 8, sharedPages: 0, sequences: 2, tokens: PAGE + 4 });
    {
      using scoped = child.fork();
      expect(scoped.freed).toBe(false);
      expect(cache.stats().sharedPages).toBe(1);
    }
    expect(cache.stats()).toMatchObject({ sharedPages: 0, sequences: 2 });
    cache.verify();
  });
});

describe('decode over a cache', () => {
  const tokens = [range(0, 21), range(100, 101), [], range(200, 200 + 5 * PAGE)];

  test.each(DTYPES)('has the bits of decode over the tensors it stands for: %s', (dtype) => {
    const cache = smallCache(1024, dtype, 2);
    const sequences = tokens.map(() => cache.createSequence());
    const filled = [0, 1, 3];
    grow(
      cache,
      filled.map((i) => sequences[i]),
      filled.map((i) => tokens[i]),
    );
    for (const qType of DTYPES) {
      const q = queries(4, qType);
      for (const schedule of [
        {},
        { workers: 5 },
        { strategy: 'fixed-split', splits: 2 },
        { strategy: 'flash-attention-2' },
      ] as const) {
        for (const layer of [0, 1]) {
          const common = { q, scale: 0.3, ...schedule };
          const found = device.decodeSync({ ...common, cache, layer, sequences });
          const tensors = tensorsOf(cache, tokens, layer);
          expectSameBits(found, device.decodeSync({ ...common, ...tensors }));
          expectClose(found, referenceDecode({ ...common, ...tensors }));
        }
      }
    }
  });

  test('of several queries a sequence, asynchronous, into tensors of the caller', async () => {
    const cache = smallCache();
    const lists = [range(0, 30), range(50, 53)];
    const sequences = lists.map(() => cache.createSequence());
    grow(cache, sequences, lists);
    const rows = queries(2 * 4);
    const q = tensor(rows.data, [2, 4, HEADS * GROUP, DIM]);
    const [out, lse] = [tensor(new Float32Array(rows.data.length), q.shape), tensor(new Float32Array(48), [2, 4, 6])];
    const result = await device.decode({ q, cache, layer: 0, sequences, out, lse });
    expect(result).toEqual({ out, lse });
    expectSameBits(result, device.decodeSync({ q, ...tensorsOf(cache, lists) }));
    // The same sequence twice: decode only reads.
    const twice = device.decodeSync({ q, cache, layer: 0, sequences: [sequences[1], sequences[1]] });
    expectSameBits(twice, device.decodeSync({ q, ...tensorsOf(cache, [lists[1], lists[1]]) }));
  });

  test('of a step: each row is a query at its own position, within a chunk too', async () => {
    const cache = smallCache(1024, 'f16');
    const [a, b] = [cache.createSequence(), cache.createSequence()];
    grow(cache, [a], [range(0, 11)]);
    const step = grow(cache, [b, a], [range(100, 109), range(11, 13)]);
    const seen = [...range(1, 10).map((n) => range(100, 100 + n)), range(0, 12), range(0, 13)];
    const q = queries(step.rows);
    const expected = device.decodeSync({ q, ...tensorsOf(cache, seen) });
    expectSameBits(device.decodeSync({ q, cache, layer: 0, sequences: step }), expected);
    expectSameBits(await device.decode({ q, cache, layer: 0, sequences: step }), expected);
    b.fork().free(); // a fork changes nothing that a step reads
    expectSameBits(device.decodeSync({ q, cache, layer: 0, sequences: step }), expected);
  });

  test('of rows given with strides, and of several types at once', () => {
    const cache = smallCache(64, 'bf16');
    const sequence = cache.createSequence();
    const step = cache.append([sequence], [5]);
    const [k, v] = [rowsOf(range(0, 5), HEADS, DIM, 'f32'), rowsOf(range(0, 5), HEADS, DIM, 'f16', 1)];
    // k heads before rows, with a gap; v as part of a wider row.
    const [headStride, rowStride] = [5 * (DIM + 3), DIM + 3];
    const spread = tensor(poisoned(HEADS * headStride, 'f32'), k.shape, { strides: [rowStride, headStride, 1] });
    const wide = tensor(poisoned(5 * 100, 'f16'), v.shape, { dtype: 'f16', strides: [100, DIM, 1] });
    for (let row = 0; row < 5; ++row) {
      for (let head = 0; head < HEADS; ++head) {
        const at = (row * HEADS + head) * DIM;
        spread.data.set(k.data.subarray(at, at + DIM), row * rowStride + head * headStride);
        wide.data.set(v.data.subarray(at, at + DIM), row * 100 + head * DIM);
      }
    }
    step.write({ layer: 0, k: spread, v: wide });
    const q = queries(1);
    const found = device.decodeSync({ q, cache, layer: 0, sequences: [sequence] });
    step.write({ layer: 0, k, v });
    expectSameBits(found, device.decodeSync({ q, cache, layer: 0, sequences: [sequence] }));
    const reference = {
      k: asTensor([range(0, 5)], HEADS, DIM, 'bf16'),
      v: asTensor([range(0, 5)], HEADS, DIM, 'f16', 1),
    };
    expect(found.lse).toEqual(device.decodeSync({ q, ...reference, v: reference.k }).lse);
  });
});

describe('copy on write', () => {
  test('happens when a shared page is about to be written, and leaves the sibling as it was', () => {
    const cache = smallCache(1024, 'f16', 2);
    const parent = cache.createSequence();
    const prefix = range(0, 2 * PAGE + 3);
    grow(cache, [parent], [prefix]);
    const [left, right] = [parent.fork(), parent.fork()];
    expect(cache.stats()).toMatchObject({ usedPages: 3, sharedPages: 3 });
    grow(cache, [left], [range(500, 502)]);
    expect(cache.stats()).toMatchObject({ usedPages: 4, sharedPages: 3 });
    const all = [parent, left, right];
    expectHolds(cache, all, [prefix, [...prefix, 500, 501], prefix]);
    // Both that still share it, in one batch: one copy.
    grow(cache, [right, parent], [[600], [700]]);
    expect(cache.stats()).toMatchObject({ usedPages: 5, sharedPages: 2 });
    const then = [
      [...prefix, 700],
      [...prefix, 500, 501],
      [...prefix, 600],
    ];
    expectHolds(cache, all, then);
    parent.free();
    left.free();
    expectHolds(cache, [right], [then[2]]);
    expect(cache.stats()).toMatchObject({ usedPages: 3, sharedPages: 0 });
  });

  test('of a page that another sequence holds whole', () => {
    const cache = smallCache();
    const parent = cache.createSequence();
    const tokens = range(0, 3 * PAGE);
    grow(cache, [parent], [tokens]);
    const child = parent.fork();
    child.truncate(PAGE + 2);
    grow(cache, [child], [range(40, 50)]);
    grow(cache, [parent], [[99]]);
    expectHolds(
      cache,
      [parent, child],
      [
        [...tokens, 99],
        [...range(0, PAGE + 2), ...range(40, 50)],
      ],
    );
  });
});

describe('out of pages', () => {
  test('says how many are needed, and nothing has changed', () => {
    const cache = smallCache(6 * PAGE, 'f16');
    const [a, b] = [cache.createSequence(), cache.createSequence()];
    const lists = [range(0, 2 * PAGE + 1), range(50, 53)];
    const step = grow(cache, [a, b], lists);
    const c = a.fork();
    const stats = cache.stats();
    let error: unknown;
    try {
      cache.append([a, b, c], [1, 2 * PAGE, PAGE]);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(LeanAttentionError);
    expect(error).toMatchObject({
      code: 'OUT_OF_PAGES',
      message:
        `Appending ${3 * PAGE + 1} tokens to 3 sequences needs 4 pages (1 to copy shared ones), and 2 of 6 are free; ` +
        'free or truncate sequences, or make the cache larger',
    });
    expect(cache.stats()).toEqual(stats);
    expectHolds(cache, [a, b, c], [...lists, lists[0]]);
    const q = queries(step.rows);
    device.decodeSync({ q, cache, layer: 0, sequences: step }); // not even stale
    c.free();
    grow(cache, [a, b], [range(17, 24), range(53, 60)]); // there is room for some
    expectHolds(cache, [a, b], [range(0, 24), range(50, 60)]);
  });

  test('counts far beyond any cache are refused at once', () => {
    const cache = smallCache(PAGE);
    const sequence = cache.createSequence();
    expect(() => cache.append([sequence], [2 ** 31 - 1])).toThrow('needs 268435456 pages, and 1 of 1 are free');
    expect(sequence.length).toBe(0);
  });
});

describe('poison', () => {
  test('in pages used before does not leak', () => {
    const cache = smallCache(4 * PAGE, 'f16');
    const poison = cache.createSequence();
    const nan = tensor(poisoned(4 * PAGE * HEADS * DIM, 'f16'), [4 * PAGE, HEADS, DIM], { dtype: 'f16' });
    cache.append([poison], [4 * PAGE]).write({ layer: 0, k: nan, v: nan });
    const q = queries(1);
    expect(device.decodeSync({ q, cache, layer: 0, sequences: [poison] }).out.data[0]).toBeNaN();
    // Cut within a page: what lies behind stays NaN until it is written, and is not read.
    poison.truncate(0);
    grow(cache, [poison], [range(0, 3)]);
    expectHolds(cache, [poison], [range(0, 3)]);
    grow(cache, [poison], [range(3, PAGE + 1)]);
    const child = poison.fork();
    grow(cache, [child], [[77]]);
    expectHolds(cache, [poison, child], [range(0, PAGE + 1), [...range(0, PAGE + 1), 77]]);
    const step = grow(cache, [poison], [range(PAGE + 1, PAGE + 4)]);
    const rows = device.decodeSync({ q: queries(3), cache, layer: 0, sequences: step });
    const seen = [2, 3, 4].map((n) => range(0, PAGE + n));
    expectSameBits(rows, device.decodeSync({ q: queries(3), ...tensorsOf(cache, seen) }));
  });
});

describe('life and death', () => {
  const collectGarbage = globalThis.gc as () => void;

  test('a cache disposed under decodes in flight: they end as if nothing had happened', async () => {
    for (let round = 0; round < 20; ++round) {
      const cache = smallCache();
      const sequences = range(0, 6).map(() => cache.createSequence());
      const lists = range(0, 6).map((i) => range(100 * i, 100 * i + 20 * i + 1));
      grow(cache, sequences, lists);
      const q = queries(6);
      const calls = range(0, 8).map((workers) =>
        device.decode({ q, cache, layer: 0, sequences, workers: 1 + workers }),
      );
      cache.dispose();
      cache.dispose();
      expect(cache.disposed).toBe(true);
      expect(sequences.every((sequence) => sequence.freed && sequence.length === 0)).toBe(true);
      for (const sequence of sequences) sequence.free();
      if (round % 4 === 0) collectGarbage();
      for (const [index, result] of (await Promise.all(calls)).entries()) {
        const expected = device.decodeSync({ q, ...tensorsOf(cache, lists), workers: 1 + index });
        expect(sameBits(result, expected)).toBe(true);
      }
    }
  });

  test('a device disposed under decodes over its cache', async () => {
    const own = openDevice('cpu', { threads: 2 });
    const cache = own.createKvCache({ layers: 1, numKvHeads: HEADS, headDim: DIM, tokens: 100, dtype: 'f32' });
    const sequence = cache.createSequence();
    grow(cache, [sequence], [range(0, 50)]);
    const q = queries(1);
    const calls = range(0, 8).map(() => own.decode({ q, cache, layer: 0, sequences: [sequence] }));
    own.dispose();
    const expected = device.decodeSync({ q, ...tensorsOf(cache, [range(0, 50)]), workers: 2 });
    for (const result of await Promise.all(calls)) expectSameBits(result, expected);
    expect(sequence.length).toBe(50); // what is known stays readable
    expect(cache.stats().tokens).toBe(50);
    sequence.free();
    cache.verify();
    cache.dispose();
  });

  test('tokens appended while a decode is in flight leave it alone', async () => {
    const cache = smallCache(64 * PAGE);
    const sequence = cache.createSequence();
    const list = range(0, 30 * PAGE + 5);
    grow(cache, [sequence], [list]);
    const q = queries(1);
    const expected = device.decodeSync({ q, ...tensorsOf(cache, [list]), workers: 7 });
    for (let i = 0; i < 50; ++i) {
      const call = device.decode({ q, cache, layer: 0, sequences: [sequence], workers: 7 });
      const next = sequence.fork();
      grow(cache, [next, sequence], [[5], [6]]);
      expectSameBits(await call, expected);
      next.free();
      sequence.truncate(list.length);
    }
  });

  test('sequences that are dropped without free() give their pages back', async () => {
    const cache = smallCache(64 * PAGE);
    const kept = cache.createSequence();
    grow(cache, [kept], [range(0, 10)]);
    (() => {
      for (let i = 0; i < 20; ++i) grow(cache, [cache.createSequence()], [range(0, PAGE)]);
      kept.fork();
    })();
    for (let i = 0; i < 50 && cache.stats().sequences > 1; ++i) {
      collectGarbage();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(cache.stats()).toMatchObject({ sequences: 1, usedPages: 2, sharedPages: 0 });
    cache.verify();
    expectHolds(cache, [kept], [range(0, 10)]);
  });

  test('sequences dropped while a decode reads them keep their pages until it has settled', async () => {
    const cache = device.createKvCache({ layers: 1, numKvHeads: 1, headDim: 64, tokens: 20_000, dtype: 'f32' });
    const ones = (shape: number[]) => tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(1), shape);
    // In a function of its own: nothing here but the calls themselves holds the sequence.
    const start = () => {
      const sequence = cache.createSequence();
      const rows = ones([20_000, 1, 64]);
      cache.append([sequence], [20_000]).write({ layer: 0, k: rows, v: rows });
      const q = ones([1, 64, 64]);
      return range(0, 20).map(() => device.decode({ q, cache, layer: 0, sequences: [sequence] }));
    };
    let settled = 0;
    const calls = start().map(async (call) => {
      const { out } = await call;
      ++settled;
      expect(out.data.every((value) => Math.abs(value - 1) < 1e-4)).toBe(true);
    });
    for (let i = 0; settled < 19; ++i) {
      if (i % 4 === 0) collectGarbage();
      await new Promise(setImmediate);
      if (settled < 19) expect(cache.stats().sequences).toBe(1);
    }
    await Promise.all(calls);
    for (let i = 0; i < 50 && cache.stats().sequences > 0; ++i) {
      collectGarbage();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(cache.stats().sequences).toBe(0);
  });

  test('caches come and go without a trace', async () => {
    const many = async (count: number): Promise<number> => {
      for (let i = 0; i < count; ++i) {
        const cache = device.createKvCache({ layers: 1, numKvHeads: 2, headDim: 16, tokens: 4096 }); // 512 KiB
        const sequence = cache.createSequence();
        cache.append([sequence], [4000]).write({ layer: 0, k: rows, v: rows });
        if (i % 2 === 0) cache.dispose();
        if (i % 32 === 0) await new Promise(setImmediate);
      }
      collectGarbage();
      await new Promise(setImmediate);
      collectGarbage();
      return process.memoryUsage().rss;
    };
    const rows = tensor(new Float32Array(4000 * HEADS * DIM), [4000, HEADS, DIM]);
    // What waits for the collector rises and falls; what is lost would rise by 100 MiB (a cache in two) in every round.
    const sizes: number[] = [];
    for (let round = 0; round < 4; ++round) sizes.push(await many(400));
    const rises = sizes.slice(1).map((size, i) => (size - sizes[i]) / 2 ** 20);
    expect(Math.min(...rises)).toBeLessThan(48);
  });
});
