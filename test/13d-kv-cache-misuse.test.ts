// Misuse of the KV cache in full: the exact class and sentence of each mistake, before anything has happened.
import type { CacheDecodeOptions, KvCache, KvCacheOptions, Sequence, Step, WriteOptions } from 'lean-attention';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { LeanAttentionError, library, openDevice, tensor } from './helpers/library';
import { detached, expectError, f16, f32, type Mistake, strided, thrownBy } from './helpers/mistakes';

const device = openDevice('cpu', { threads: 1 });
const other = openDevice('cpu', { threads: 1 });
afterAll(() => {
  device.dispose();
  other.dispose();
});

// ---- createKvCache ----------------------------------------------------------------------------------------------------

const shape: KvCacheOptions = { layers: 2, numKvHeads: 2, headDim: 8, tokens: 64, pageTokens: 4, dtype: 'f32' };
const wrongShape = (change: object): KvCacheOptions => ({ ...shape, ...change });

const createMistakes: Mistake<KvCacheOptions>[] = [
  ['no options', undefined as never, TypeError, 'Expected `options` to be an object, got undefined'],
  ['no layers', wrongShape({ layers: undefined }), TypeError, 'Expected `layers` to be a number, got undefined'],
  ['0 layers', wrongShape({ layers: 0 }), RangeError, 'Expected `layers` to be an integer from 1 to 32767, got 0'],
  [
    'half a head',
    wrongShape({ numKvHeads: 0.5 }),
    RangeError,
    'Expected `numKvHeads` to be an integer from 1 to 2147483647, got 0.5',
  ],
  ['head dim 4', wrongShape({ headDim: 4 }), RangeError, 'Expected `headDim` to be an integer from 8 to 512, got 4'],
  ['head dim 12', wrongShape({ headDim: 12 }), RangeError, 'Expected `headDim` to be a multiple of 8, got 12'],
  [
    'another dtype',
    wrongShape({ dtype: 'fp8' }),
    RangeError,
    "Expected `dtype` to be one of 'f32', 'f16', 'bf16', got 'fp8'",
  ],
  [
    'pages of no token',
    wrongShape({ pageTokens: 0 }),
    RangeError,
    'Expected `pageTokens` to be an integer from 1 to 2147483647, got 0',
  ],
  [
    'no size',
    wrongShape({ tokens: undefined }),
    TypeError,
    'Expected exactly one of `tokens` and `bytes`, got neither',
  ],
  ['two sizes', wrongShape({ bytes: 1e6 }), TypeError, 'Expected exactly one of `tokens` and `bytes`, got both'],
  ['no token', wrongShape({ tokens: 0 }), RangeError, 'Expected `tokens` to be an integer of at least 1, got 0'],
  [
    'bytes in words',
    wrongShape({ tokens: undefined, bytes: '1 GiB' }),
    TypeError,
    "Expected `bytes` to be a number, got '1 GiB'",
  ],
  [
    'less than a page',
    wrongShape({ tokens: undefined, bytes: 1023 }),
    RangeError,
    'Expected `bytes` to hold a page of 1024 bytes, got 1023',
  ],
  [
    'more pages than can be numbered',
    wrongShape({ tokens: 2 ** 40 }),
    RangeError,
    'Expected a cache of at most 2147483647 pages, got 274877906944',
  ],
];

describe('device.createKvCache', () => {
  test.each(createMistakes)('%s', (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => device.createKvCache(options)),
      errorClass,
      message,
    );
  });

  test('more than there is memory', () => {
    const error = thrownBy(() => device.createKvCache({ ...shape, layers: 32_767, numKvHeads: 2 ** 25 }));
    expect(error).toBeInstanceOf(LeanAttentionError);
    expect(error).toMatchObject({ code: 'OUT_OF_MEMORY' });
    expect(error.message).toMatch(/^Not enough memory: asked for \d+ bytes$/);
  });

  test('classes that only a device makes', () => {
    expect(() => new (library.KvCache as unknown as new () => unknown)()).toThrow(TypeError);
  });
});

// ---- One cache, used wrongly ------------------------------------------------------------------------------------------

const cache = device.createKvCache(shape);
const foreign = device.createKvCache(shape);
const elsewhere = other.createKvCache(shape);
const [a, b] = [cache.createSequence(), cache.createSequence()];
const gone = cache.createSequence();
gone.free();
const stranger = foreign.createSequence();
const step = cache.append([a, b], [2, 1]);
const rows = { layer: 0, k: f32([3, 2, 8]), v: f32([3, 2, 8]) };
step.write(rows);
const [q, qOut] = [f32([3, 4, 8]), f32([3, 4, 8])];
const rotary = {};
const stats = cache.stats();
const memory = new Float32Array(400);

afterEach(() => {
  cache.verify();
  expect(cache.stats()).toEqual(stats);
  expect([a.length, b.length]).toEqual([2, 1]);
  const { out } = device.decodeSync({ q: f32([2, 4, 8]), cache, layer: 0, sequences: [a, b] });
  expect(out.data.every((value) => value === 1)).toBe(true); // nothing was written
  expect(qOut.data.every((value) => value === 1)).toBe(true);
});

type Append = Parameters<KvCache['append']>;
const appendMistakes: Mistake<Append>[] = [
  ['no sequences', [undefined as never], TypeError, 'Expected `sequences` to be an array, got undefined'],
  ['a sequence alone', [a as never], TypeError, 'Expected `sequences` to be an array, got a Object'],
  ['an empty batch', [[]], RangeError, 'Expected `sequences` to hold at least one sequence, got none'],
  ['an id', [[a, 7 as never]], TypeError, 'Expected `sequences[1]` to be a Sequence, got 7'],
  ['a freed one', [[a, gone]], RangeError, 'Expected `sequences[1]` to be live, got one that has been freed'],
  [
    "another cache's",
    [[stranger]],
    RangeError,
    'Expected `sequences[0]` to be of the cache that is used, got one of another cache',
  ],
  ['the same twice', [[a, b, a]], RangeError, 'Expected `sequences[2]` once in a batch, got it twice'],
  ['counts as a number', [[a], 3 as never], TypeError, 'Expected `counts` to be an array, got 3'],
  ['a count too few', [[a, b], [1]], RangeError, 'Expected `counts` to hold 2 counts, one a sequence, got 1'],
  [
    'a count of 0',
    [
      [a, b],
      [1, 0],
    ],
    RangeError,
    'Expected `counts[1]` to be an integer from 1 to 2147483647, got 0',
  ],
  [
    'a negative count',
    [
      [a, b],
      [-1, 1],
    ],
    RangeError,
    'Expected `counts[0]` to be an integer from 1 to 2147483647, got -1',
  ],
  ['half a token', [[a], [0.5]], RangeError, 'Expected `counts[0]` to be an integer from 1 to 2147483647, got 0.5'],
  [
    'more tokens than a sequence can have',
    [[a], [2 ** 31 - 1]],
    RangeError,
    'Expected `sequences[0]` to stay below 2147483648 tokens, got 2 and 2147483647 more',
  ],
];

describe('cache.append', () => {
  test.each(appendMistakes)('%s', (_, args, errorClass, message) => {
    expectError(
      thrownBy(() => cache.append(...args)),
      errorClass,
      message,
    );
  });
});

const writeMistakes: Mistake<WriteOptions>[] = [
  ['no options', undefined as never, TypeError, 'Expected `options` to be an object, got undefined'],
  ['no layer', { ...rows, layer: undefined as never }, TypeError, 'Expected `layer` to be a number, got undefined'],
  [
    'a layer before the first',
    { ...rows, layer: -1 },
    RangeError,
    'Expected `layer` to be an integer from 0 to 1, got -1',
  ],
  ['a layer past the last', { ...rows, layer: 2 }, RangeError, 'Expected `layer` to be an integer from 0 to 1, got 2'],
  [
    'a typed array as k',
    { ...rows, k: new Float32Array(48) as never },
    TypeError,
    'Expected `k` to be a tensor (see tensor()), got a Float32Array',
  ],
  ['no v', { ...rows, v: undefined as never }, TypeError, 'Expected `v` to be a tensor (see tensor()), got undefined'],
  ['k of two axes', { ...rows, k: f32([3, 16]) }, RangeError, 'Expected `k` shape to be [3, 2, 8], got [3, 16]'],
  ['too few rows', { ...rows, k: f32([2, 2, 8]) }, RangeError, 'Expected `k` shape to be [3, 2, 8], got [2, 2, 8]'],
  ['too many rows', { ...rows, v: f32([4, 2, 8]) }, RangeError, 'Expected `v` shape to be [3, 2, 8], got [4, 2, 8]'],
  ['too many heads', { ...rows, v: f32([3, 4, 8]) }, RangeError, 'Expected `v` shape to be [3, 2, 8], got [3, 4, 8]'],
  [
    'another head dim',
    { ...rows, k: f32([3, 2, 16]) },
    RangeError,
    'Expected `k` shape to be [3, 2, 8], got [3, 2, 16]',
  ],
  [
    'k with its head dim spread',
    { ...rows, k: strided([3, 2, 8], [32, 16, 2], 100) },
    RangeError,
    'Expected `k` strides[2], headDim, to be 1, got 2',
  ],
  [
    'a k that was transferred away',
    { ...rows, k: detached([3, 2, 8]) },
    TypeError,
    'Expected `k` to hold 48 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
  ],
  ['q without rotary', { ...rows, q }, RangeError, 'Expected `q` only with `rotary`, got it alone'],
  ['qOut without q', { ...rows, qOut, rotary }, RangeError, 'Expected `qOut` only with `q`, got it alone'],
  [
    'q of other rows',
    { ...rows, q: f32([2, 4, 8]), rotary },
    RangeError,
    'Expected `q` shape to be [3, numQueryHeads, 8], got [2, 4, 8]',
  ],
  [
    'q without heads',
    { ...rows, q: f32([3, 0, 8]), rotary },
    RangeError,
    'Expected `q` shape to be [3, numQueryHeads, 8], got [3, 0, 8]',
  ],
  [
    'q in place whose rows overlap',
    { ...rows, q: strided([3, 4, 8], [8, 8, 1], 120), rotary },
    RangeError,
    'Expected rows of `q` that do not overlap, got strides [8, 8, 1]',
  ],
  [
    'q in place, of one row again and again',
    { ...rows, q: strided([3, 4, 8], [0, 8, 1], 120), rotary },
    RangeError,
    'Expected rows of `q` that do not overlap, got strides [0, 8, 1]',
  ],
  [
    'qOut of another shape',
    { ...rows, q, qOut: f32([3, 2, 8]), rotary },
    RangeError,
    'Expected `qOut` shape to be [3, 4, 8], got [3, 2, 8]',
  ],
  [
    'qOut of another type',
    { ...rows, q, qOut: f16([3, 4, 8]), rotary },
    TypeError,
    "Expected `qOut` dtype to be 'f32', got 'f16'",
  ],
  [
    'qOut with gaps',
    { ...rows, q, qOut: strided([3, 4, 8], [40, 8, 1], 120), rotary },
    RangeError,
    'Expected `qOut` to be contiguous, got strides [40, 8, 1]',
  ],
  [
    'qOut over a part of q',
    { ...rows, q: tensor(memory, [3, 4, 8]), qOut: tensor(memory.subarray(8), [3, 4, 8]), rotary },
    RangeError,
    'Expected `qOut` to have memory of its own, got memory that `q` uses too',
  ],
  [
    'qOut over k',
    { ...rows, k: tensor(memory, [3, 2, 8]), q, qOut: tensor(memory.subarray(47), [3, 4, 8]), rotary },
    RangeError,
    'Expected `qOut` to have memory of its own, got memory that `k` uses too',
  ],
];

const filled = Float32Array.from({ length: 400 }, (_, i) => Math.sin(i));
const rowsWithin = (offset: number, heads: number) =>
  tensor(filled.subarray(offset), [3, heads, 8], { strides: [64, 8, 1] });
test('rows of a fused projection may be rotated in place, and no others that k or v share', () => {
  const sequence = cache.createSequence();
  const step = cache.append([sequence], [3]);
  const fused = (offsetOfQ: number, offsetOfK: number) => ({
    layer: 0,
    q: rowsWithin(offsetOfQ, 4),
    k: rowsWithin(offsetOfK, 2),
    v: rowsWithin(48, 2),
    rotary: {},
  });
  step.write(fused(0, 32));
  expect(() => step.write(fused(8, 32))).toThrow(
    new RangeError('Expected `q` to have memory of its own, got memory that `k` uses too'),
  );
  sequence.free();
});

test('rows whose memory is named by code that writes too are stored as they are', () => {
  const [one, two, three] = [1, 2, 3].map(() => cache.createSequence());
  const plain = { layer: 0, k: rowsWithin(0, 2), v: rowsWithin(16, 2) };
  cache.append([one], [3]).write(plain);
  const [written, aside] = [cache.append([two], [3]), cache.append([three], [3])];
  const packed = tensor(new Float32Array(48), [3, 2, 8]);
  const named = {
    ...plain.k,
    get data() {
      aside.write({ layer: 0, k: packed, v: packed });
      return plain.k.data;
    },
  };
  written.write({ ...plain, k: named });
  const q = tensor(new Float32Array(32).fill(1), [1, 4, 8]);
  const decode = (sequence: Sequence) => device.decodeSync({ cache, layer: 0, sequences: [sequence], q });
  expect(decode(two)).toEqual(decode(one));
  for (const sequence of [one, two, three]) sequence.free();
});

const rotaryMistakes: Mistake<unknown>[] = [
  ['a number', 10_000, TypeError, 'Expected `rotary` to be an object, got 10000'],
  [
    'another pairing',
    { pairing: 'neox' },
    RangeError,
    "Expected `rotary.pairing` to be one of 'half-split', 'interleaved', got 'neox'",
  ],
  ['base 1', { base: 1 }, RangeError, 'Expected `rotary.base` to be a finite number above 1, got 1'],
  ['base NaN', { base: Number.NaN }, RangeError, 'Expected `rotary.base` to be a finite number above 1, got NaN'],
  ['a base in words', { base: '1e4' }, TypeError, "Expected `rotary.base` to be a number, got '1e4'"],
  ['odd dims', { dims: 5 }, RangeError, 'Expected `rotary.dims` to be even, got 5'],
  ['dims past the head', { dims: 10 }, RangeError, 'Expected `rotary.dims` to be an integer from 2 to 8, got 10'],
  ['scaling as a number', { scaling: 4 }, TypeError, 'Expected `rotary.scaling` to be an object, got 4'],
  [
    'another scaling',
    { scaling: { type: 'dynamic', factor: 2 } },
    RangeError,
    "Expected `rotary.scaling.type` to be one of 'linear', 'ntk', 'yarn', 'llama3', got 'dynamic'",
  ],
  [
    'no factor',
    { scaling: { type: 'linear' } },
    TypeError,
    'Expected `rotary.scaling.factor` to be a number, got undefined',
  ],
  [
    'factor 0',
    { scaling: { type: 'ntk', factor: 0 } },
    RangeError,
    'Expected `rotary.scaling.factor` to be a finite number above 0, got 0',
  ],
  [
    'yarn without its context',
    { scaling: { type: 'yarn', factor: 2 } },
    TypeError,
    'Expected `rotary.scaling.originalContext` to be a number, got undefined',
  ],
  [
    'a beta that cannot be',
    { scaling: { type: 'yarn', factor: 2, originalContext: 64, betaFast: -1 } },
    RangeError,
    'Expected `rotary.scaling.betaFast` to be a finite number above 0, got -1',
  ],
  [
    'an amplitude of 0',
    { scaling: { type: 'yarn', factor: 2, originalContext: 64, attentionFactor: 0 } },
    RangeError,
    'Expected `rotary.scaling.attentionFactor` to be a finite number above 0, got 0',
  ],
  [
    'llama3 without its low factor',
    { scaling: { type: 'llama3', factor: 2, originalContext: 64, highFreqFactor: 4 } },
    TypeError,
    'Expected `rotary.scaling.lowFreqFactor` to be a number, got undefined',
  ],
  [
    'llama3 factors the wrong way round',
    { scaling: { type: 'llama3', factor: 2, originalContext: 64, lowFreqFactor: 4, highFreqFactor: 1 } },
    RangeError,
    'Expected `rotary.scaling.highFreqFactor` to be a finite number above 4, got 1',
  ],
];

describe('step.write', () => {
  test.each(writeMistakes)('%s', (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => step.write(options)),
      errorClass,
      message,
    );
  });

  test.each(rotaryMistakes)('rotary: %s', (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => step.write({ ...rows, q, qOut, rotary: options as never })),
      errorClass,
      message,
    );
  });
});

const over: CacheDecodeOptions = { q: f32([2, 4, 8]), cache, layer: 0, sequences: [a, b] };
const wrong = (change: object): CacheDecodeOptions => ({ ...over, ...change }) as CacheDecodeOptions;

const decodeMistakes: Mistake<CacheDecodeOptions>[] = [
  ['no cache', wrong({ cache: undefined }), TypeError, 'Expected `cache` to be a KvCache, got undefined'],
  ['another object as the cache', wrong({ cache: {} }), TypeError, 'Expected `cache` to be a KvCache, got a Object'],
  [
    "another device's cache",
    wrong({ cache: elsewhere, sequences: [elsewhere.createSequence()] }),
    RangeError,
    'Expected `cache` to be of the device that decodes, got one of another device',
  ],
  ['k too', wrong({ k: f32([1]) }), TypeError, 'Expected no `k` with `cache`, got a Object'],
  ['a page table too', wrong({ pageTable: [[0]] }), TypeError, 'Expected no `pageTable` with `cache`, got an array'],
  [
    'lengths too',
    wrong({ contextLengths: [1, 1] }),
    TypeError,
    'Expected no `contextLengths` with `cache`, got an array',
  ],
  ['a layout too', wrong({ layout: 'NHD' }), TypeError, "Expected no `layout` with `cache`, got 'NHD'"],
  ['no layer', wrong({ layer: undefined }), TypeError, 'Expected `layer` to be a number, got undefined'],
  ['a layer past the last', wrong({ layer: 2 }), RangeError, 'Expected `layer` to be an integer from 0 to 1, got 2'],
  ['no sequences', wrong({ sequences: undefined }), TypeError, 'Expected `sequences` to be an array, got undefined'],
  [
    'an empty batch',
    wrong({ sequences: [] }),
    RangeError,
    'Expected `sequences` to hold at least one sequence, got none',
  ],
  [
    'a freed sequence',
    wrong({ sequences: [a, gone] }),
    RangeError,
    'Expected `sequences[1]` to be live, got one that has been freed',
  ],
  [
    "another cache's sequence",
    wrong({ sequences: [a, stranger] }),
    RangeError,
    'Expected `sequences[1]` to be of the cache that is used, got one of another cache',
  ],
  ['no q', wrong({ q: undefined }), TypeError, 'Expected `q` to be a tensor (see tensor()), got undefined'],
  [
    'q of another batch',
    wrong({ q: f32([3, 4, 8]) }),
    RangeError,
    'Expected `q` shape[0] to equal the number of sequences 2, got 3',
  ],
  [
    'q of other rows than the step',
    wrong({ sequences: step }),
    RangeError,
    "Expected `q` shape[0] to equal the step's rows 3, got 2",
  ],
  [
    'several queries a row of a step',
    wrong({ sequences: step, q: f32([3, 1, 4, 8]) }),
    RangeError,
    'Expected `q` shape to be [rows, numQueryHeads, headDim] of a step, got [3, 1, 4, 8]',
  ],
  [
    'q of another head dim',
    wrong({ q: f32([2, 4, 16]) }),
    RangeError,
    "Expected `q` shape[2] to equal the cache's headDim 8, got 16",
  ],
  [
    '5 query heads for 2',
    wrong({ q: f32([2, 5, 8]) }),
    RangeError,
    'Expected `q` shape[1], numQueryHeads, to be a multiple of numKvHeads 2, got 5',
  ],
  [
    'an infinite scale',
    wrong({ scale: Infinity }),
    RangeError,
    'Expected `scale` to be finite in float32, got Infinity',
  ],
  ['out of another shape', wrong({ out: f32([2, 8]) }), RangeError, 'Expected `out` shape to be [2, 4, 8], got [2, 8]'],
  [
    'out over q',
    wrong({ out: over.q }),
    RangeError,
    'Expected `out` to have memory of its own, got memory that `q` uses too',
  ],
  [
    'splits with lean',
    wrong({ splits: 2 }),
    RangeError,
    "Expected `splits` only with the strategy 'fixed-split', got it with 'lean'",
  ],
];

describe('decode over a cache', () => {
  test.each(decodeMistakes)('%s', async (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => device.decodeSync(options)),
      errorClass,
      message,
    );
    await expect(device.decode(options)).rejects.toMatchObject({ constructor: errorClass, message });
  });

  test("another cache's step", () => {
    const strange = foreign.append([stranger]);
    expectError(
      thrownBy(() => device.decodeSync(wrong({ q: f32([1, 4, 8]), sequences: strange }))),
      RangeError,
      'Expected `sequences` to be a step of `cache`, got one of another cache',
    );
  });

  test('a plan has no cache', () => {
    const plan = device.plan({ numQueryHeads: 4, numKvHeads: 2, headDim: 8, contextLengths: [2, 1], kvType: 'f32' });
    expectError(
      thrownBy(() => plan.decodeSync(over as never)),
      TypeError,
      'Expected `k` to be a tensor (see tensor()), got undefined',
    );
  });
});

describe('a sequence', () => {
  test.each([
    ['in words', '1', TypeError, "Expected `length` to be a number, got '1'"],
    ['below 0', -1, RangeError, 'Expected `length` to be an integer from 0 to 2, got -1'],
    ['beyond its tokens', 3, RangeError, 'Expected `length` to be an integer from 0 to 2, got 3'],
  ] as const)('truncated to a length %s', (_, length, errorClass, message) => {
    expectError(
      thrownBy(() => a.truncate(length as number)),
      errorClass,
      message,
    );
  });

  test('that has been freed', () => {
    const message = 'Expected a sequence that is live, got one that has been freed';
    for (const body of [() => gone.fork(), () => gone.truncate(0)]) expectError(thrownBy(body), RangeError, message);
    expect([gone.length, gone.freed]).toEqual([0, true]);
    gone.free();
  });

  test('is made by a cache alone, as a step is', () => {
    expect(() => cache.append([Object.create(library.Sequence.prototype) as Sequence])).toThrow(
      'Expected `sequences[0]` to be of the cache that is used',
    );
    expect(() => Object.create(library.Step.prototype).write(rows)).toThrow(TypeError);
  });
});

describe('a step that is stale', () => {
  const message = (index: number) =>
    `Expected a step whose sequences are as its append left them, got one whose \`sequences[${index}]\` was appended to, truncated or freed since`;
  const expectStale = (stale: Step, index: number): void => {
    const k = f32([stale.rows, 2, 8]);
    expectError(
      thrownBy(() => stale.write({ layer: 0, k, v: k })),
      RangeError,
      message(index),
    );
    const options = { q: f32([stale.rows, 4, 8]), cache, layer: 0, sequences: stale };
    expectError(
      thrownBy(() => device.decodeSync(options)),
      RangeError,
      message(index),
    );
  };
  const withTwo = (body: (first: Sequence, second: Sequence) => void): void => {
    using first = cache.createSequence();
    using second = cache.createSequence();
    body(first, second);
  };

  test('by another append', () => {
    withTwo((first, second) => {
      const stale = cache.append([first, second], [2, 3]);
      cache.append([second]);
      expectStale(stale, 1);
    });
  });

  test('by truncate, to any length', () => {
    withTwo((first, second) => {
      const stale = cache.append([second, first], [2, 3]);
      first.truncate(3);
      expectStale(stale, 1);
      second.truncate(0);
      expectStale(stale, 0);
    });
  });

  test('by free, though another sequence has its pages and its place now', () => {
    withTwo((first, second) => {
      const stale = cache.append([first, second]);
      first.free();
      expectStale(stale, 0);
      using next = cache.createSequence();
      cache.append([next]);
      expectStale(stale, 0);
    });
  });

  test('for writing alone, by fork', () => {
    withTwo((first, second) => {
      const forked = cache.append([first, second], [2, 1]);
      forked.write(rows);
      using child = second.fork();
      expectError(
        thrownBy(() => forked.write(rows)),
        RangeError,
        'Expected a step to be written before its sequences are forked, got one whose `sequences[1]` was forked since',
      );
      const { out } = device.decodeSync({ q: f32([3, 4, 8]), cache, layer: 0, sequences: forked });
      expect(out.data.every((value) => value === 1)).toBe(true);
      expect(child.length).toBe(1);
      cache.append([child]).write({ layer: 0, k: f32([1, 2, 8]), v: f32([1, 2, 8]) });
    });
  });
});

describe('what has been disposed', () => {
  test('a cache refuses everything with CACHE_DISPOSED', async () => {
    const own = device.createKvCache(shape);
    const sequence = own.createSequence();
    const last = own.append([sequence], [3]);
    own.dispose();
    own.dispose();
    const decode = { q: f32([1, 4, 8]), cache: own, layer: 0, sequences: [sequence] };
    const errors = [
      () => own.createSequence(),
      () => own.append([sequence]),
      () => own.stats(),
      () => own.verify(),
      () => last.write(rows),
      () => sequence.fork(),
      () => sequence.truncate(0),
      () => device.decodeSync(decode),
    ].map(thrownBy);
    errors.push(
      await device.decode(decode).then(
        () => expect.fail('Expected an error'),
        (error) => error,
      ),
    );
    for (const error of errors) {
      expect(error).toBeInstanceOf(LeanAttentionError);
      expect(error).toMatchObject({
        code: 'CACHE_DISPOSED',
        message: 'The KV cache has been disposed; create another with device.createKvCache()',
      });
    }
    sequence.free();
    expect([sequence.freed, sequence.length, own.disposed]).toEqual([true, 0, true]);
  });

  test('a device refuses everything with DEVICE_DISPOSED; what is known stays readable', () => {
    const own = openDevice('cpu', { threads: 1 });
    const held = own.createKvCache(shape);
    const sequence = held.createSequence();
    const last = held.append([sequence], [3]);
    own.dispose();
    for (const body of [
      () => own.createKvCache(shape),
      () => held.createSequence(),
      () => held.append([sequence]),
      () => last.write(rows),
      () => sequence.fork(),
      () => sequence.truncate(0),
      () => own.decodeSync({ q: f32([1, 4, 8]), cache: held, layer: 0, sequences: [sequence] }),
    ]) {
      expect(thrownBy(body)).toMatchObject({ code: 'DEVICE_DISPOSED' });
    }
    held.verify();
    expect([sequence.length, held.stats().tokens]).toEqual([3, 3]);
    sequence.free();
    expect(held.stats().tokens).toBe(0);
    held.dispose();
  });
});
