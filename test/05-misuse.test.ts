// Misuse in full: for each wrong argument of each public function, the exact class and message, thrown by synchronous
// calls and rejected by asynchronous ones, with nothing written.
import type { DecodeOptions, PlanOptions } from 'lean-attention';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { convert, Device, installation, LeanAttentionError, mergeStates, openDevice, tensor } from './helpers/library';
import { detached, type ErrorClass, expectError, f16, f32, type Mistake, strided, thrownBy } from './helpers/mistakes';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

// ---- decode ---------------------------------------------------------------------------------------------------------

const SENTINEL = 12345;
const out = f32([2, 4, 8]);
const lse = f32([2, 4]);
/** Right in every respect: 2 sequences, 4 query heads, 2 KV heads, head dim 8, 3 slots. */
const right = { q: f32([2, 4, 8]), k: f32([2, 3, 2, 8]), v: f32([2, 3, 2, 8]), out, lse };
const paged = { ...right, contextLengths: [5, 3], pageTable: [[0, 1], [1]] };
const wrong = (change: object): DecodeOptions => ({ ...right, ...change }) as DecodeOptions;
const wrongPages = (change: object): DecodeOptions => ({ ...paged, ...change }) as DecodeOptions;

const sharedMemory = new Float32Array(1000);

const decodeMistakes: Mistake<DecodeOptions>[] = [
  ['no options', undefined as never, TypeError, 'Expected `options` to be an object, got undefined'],
  ['null options', null as never, TypeError, 'Expected `options` to be an object, got null'],
  ['options of another kind', 7 as never, TypeError, 'Expected `options` to be an object, got 7'],
  ['no q', wrong({ q: undefined }), TypeError, 'Expected `q` to be a tensor (see tensor()), got undefined'],
  ['an array as q', wrong({ q: [1] }), TypeError, 'Expected `q` to be a tensor (see tensor()), got an array'],
  [
    'a typed array as k',
    wrong({ k: new Float32Array(8) }),
    TypeError,
    'Expected `k` to be a tensor (see tensor()), got a Float32Array',
  ],
  ['null as v', wrong({ v: null }), TypeError, 'Expected `v` to be a tensor (see tensor()), got null'],
  [
    'q without heads',
    wrong({ q: f32([2, 32]) }),
    RangeError,
    'Expected `q` shape to be [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim], got [2, 32]',
  ],
  [
    'q of five axes',
    wrong({ q: f32([2, 1, 1, 4, 8]) }),
    RangeError,
    'Expected `q` shape to be [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim], got [2, 1, 1, 4, 8]',
  ],
  ['no sequence', wrong({ q: f32([0, 4, 8]) }), RangeError, 'Expected `q` shape[0], batch, to be at least 1, got 0'],
  [
    'no query',
    wrong({ q: f32([2, 0, 4, 8]) }),
    RangeError,
    'Expected `q` shape[1], queryLen, to be from 1 to 16, got 0',
  ],
  [
    '17 queries',
    wrong({ q: f32([2, 17, 4, 8]) }),
    RangeError,
    'Expected `q` shape[1], queryLen, to be from 1 to 16, got 17',
  ],
  [
    'head dim 4',
    wrong({ q: f32([2, 4, 4]) }),
    RangeError,
    'Expected `q` shape[2], headDim, to be from 8 to 512, got 4',
  ],
  [
    'head dim 520',
    wrong({ q: f32([2, 4, 520]) }),
    RangeError,
    'Expected `q` shape[2], headDim, to be from 8 to 512, got 520',
  ],
  [
    'head dim 12',
    wrong({ q: f32([2, 1, 4, 12]) }),
    RangeError,
    'Expected `q` shape[3], headDim, to be a multiple of 8, got 12',
  ],
  [
    'no query head',
    wrong({ q: f32([2, 0, 8]) }),
    RangeError,
    'Expected `q` shape[1], numQueryHeads, to be a multiple of numKvHeads 2, got 0',
  ],
  [
    '5 query heads for 2',
    wrong({ q: f32([2, 5, 8]) }),
    RangeError,
    'Expected `q` shape[1], numQueryHeads, to be a multiple of numKvHeads 2, got 5',
  ],
  [
    'k without heads',
    wrong({ k: f32([2, 3, 8]) }),
    RangeError,
    'Expected `k` shape to be [batch, tokens, numKvHeads, headDim], got [2, 3, 8]',
  ],
  [
    'k without heads, HND',
    wrong({ k: f32([2, 3, 8]), layout: 'HND' }),
    RangeError,
    'Expected `k` shape to be [batch, numKvHeads, tokens, headDim], got [2, 3, 8]',
  ],
  [
    'k without heads, paged',
    wrongPages({ k: f32([2, 3, 8]) }),
    RangeError,
    'Expected `k` shape to be [numPages, tokens, numKvHeads, headDim], got [2, 3, 8]',
  ],
  [
    'k of another head dim',
    wrong({ k: f32([2, 3, 2, 96]) }),
    RangeError,
    'Expected `k` shape[3] to equal headDim 8, got 96',
  ],
  [
    'no KV head',
    wrong({ k: f32([2, 3, 0, 8]), v: f32([2, 3, 0, 8]) }),
    RangeError,
    'Expected `k` shape[2], numKvHeads, to be at least 1, got 0',
  ],
  [
    'no KV head, HND',
    wrong({ k: f32([2, 0, 3, 8]), v: f32([2, 0, 3, 8]), layout: 'HND' }),
    RangeError,
    'Expected `k` shape[1], numKvHeads, to be at least 1, got 0',
  ],
  [
    'no slot',
    wrong({ k: f32([2, 0, 2, 8]), v: f32([2, 0, 2, 8]) }),
    RangeError,
    'Expected `k` shape[1], tokens, to be at least 1, got 0',
  ],
  [
    'k of another batch',
    wrong({ k: f32([3, 3, 2, 8]), v: f32([3, 3, 2, 8]) }),
    RangeError,
    'Expected `k` shape[0] to equal batch 2, got 3; pass `pageTable` for a paged cache',
  ],
  [
    'v of another shape',
    wrong({ v: f32([2, 4, 2, 8]) }),
    RangeError,
    'Expected `v` shape to equal that of `k` [2, 3, 2, 8], got [2, 4, 2, 8]',
  ],
  [
    'v of another type',
    wrong({ v: f16([2, 3, 2, 8]) }),
    TypeError,
    "Expected `v` dtype to equal that of `k` 'f32', got 'f16'",
  ],
  [
    'q with its head dim spread',
    wrong({ q: strided([2, 4, 8], [64, 16, 2], 200) }),
    RangeError,
    'Expected `q` strides[2], headDim, to be 1, got 2',
  ],
  [
    'k with its head dim spread',
    wrong({ k: strided([2, 3, 2, 8], [100, 32, 16, 2], 400) }),
    RangeError,
    'Expected `k` strides[3], headDim, to be 1, got 2',
  ],
  [
    'v with its head dim spread',
    wrong({ v: strided([2, 3, 2, 8], [100, 32, 16, 0], 400) }),
    RangeError,
    'Expected `v` strides[3], headDim, to be 1, got 0',
  ],
  ['another layout', wrong({ layout: 'DHN' }), RangeError, "Expected `layout` to be one of 'NHD', 'HND', got 'DHN'"],
  ['a number as layout', wrong({ layout: 3 }), TypeError, "Expected `layout` to be one of 'NHD', 'HND', got 3"],
  [
    'a number as contextLengths',
    wrong({ contextLengths: 3 }),
    TypeError,
    'Expected `contextLengths` to be an array, got 3',
  ],
  [
    'holes as contextLengths',
    wrong({ contextLengths: new Array(2) }),
    TypeError,
    'Expected `contextLengths[0]` to be a number, got undefined',
  ],
  [
    'floats as contextLengths',
    wrong({ contextLengths: new Float64Array(2) }),
    TypeError,
    'Expected `contextLengths` to be an array, got a Float64Array',
  ],
  [
    'one context length too few',
    wrong({ contextLengths: [3] }),
    RangeError,
    'Expected `contextLengths` to hold 2 lengths, one a sequence, got 1',
  ],
  [
    'one context length too many',
    wrong({ contextLengths: Int32Array.of(1, 2, 3) }),
    RangeError,
    'Expected `contextLengths` to hold 2 lengths, one a sequence, got 3',
  ],
  [
    'a negative context length',
    wrong({ contextLengths: [3, -1] }),
    RangeError,
    'Expected `contextLengths[1]` to be an integer from 0 to 2147483647, got -1',
  ],
  [
    'half a context length',
    wrong({ contextLengths: [1.5, 1] }),
    RangeError,
    'Expected `contextLengths[0]` to be an integer from 0 to 2147483647, got 1.5',
  ],
  [
    'a context length in words',
    wrong({ contextLengths: [1, '2'] }),
    TypeError,
    "Expected `contextLengths[1]` to be a number, got '2'",
  ],
  [
    'a context beyond the capacity',
    wrong({ contextLengths: [3, 4] }),
    RangeError,
    'Expected `contextLengths`[1] from 0 to the capacity 3, got 4',
  ],
  [
    'a negative context in an Int32Array',
    wrong({ contextLengths: Int32Array.of(-1, 2) }),
    RangeError,
    'Expected `contextLengths`[0] from 0 to the capacity 3, got -1',
  ],
  [
    'the least Int32 as a context',
    wrong({ contextLengths: Int32Array.of(-(2 ** 31), 2 ** 31 - 1) }),
    RangeError,
    'Expected `contextLengths`[0] from 0 to the capacity 3, got -2147483648',
  ],
  [
    'a number as pageTable',
    wrongPages({ pageTable: 1 }),
    TypeError,
    'Expected `pageTable` to be an Int32Array or an array of arrays, got 1',
  ],
  [
    'unsigned pages',
    wrongPages({ pageTable: new Uint32Array(4) }),
    TypeError,
    'Expected `pageTable` to be an Int32Array or an array of arrays, got a Uint32Array',
  ],
  [
    'a page list too few',
    wrongPages({ pageTable: [[0, 1]] }),
    RangeError,
    'Expected `pageTable` to hold 2 lists, one a sequence, got 1',
  ],
  [
    'a page table not of whole rows',
    wrongPages({ pageTable: new Int32Array(3) }),
    RangeError,
    'Expected `pageTable` to hold a multiple of batch 2 entries, got 3',
  ],
  [
    'numbers as page lists',
    wrongPages({ pageTable: [0, 1] }),
    TypeError,
    'Expected `pageTable[0]` to be an array, got 0',
  ],
  [
    'half a page',
    wrongPages({ pageTable: [[0.5, 1], [1]] }),
    RangeError,
    'Expected `pageTable[0][0]` to be an integer from -2147483648 to 2147483647, got 0.5',
  ],
  [
    'a page that is not there',
    wrongPages({ pageTable: [[0, 2], [1]] }),
    RangeError,
    'Expected `pageTable`[0][1] from 0 to 1, got 2',
  ],
  [
    'a page before the first',
    wrongPages({ pageTable: [[0, 1], [-1]] }),
    RangeError,
    'Expected `pageTable`[1][0] from 0 to 1, got -1',
  ],
  [
    'the largest page there could be',
    wrongPages({ pageTable: Int32Array.of(0, 2 ** 31 - 1, 1, 0) }),
    RangeError,
    'Expected `pageTable`[0][1] from 0 to 1, got 2147483647',
  ],
  [
    'a context past its pages',
    wrongPages({ contextLengths: [7, 3] }),
    RangeError,
    'Expected `contextLengths`[0] from 0 to the capacity 6, got 7',
  ],
  [
    'a context past its own, shorter list',
    wrongPages({ contextLengths: [5, 4] }),
    RangeError,
    'Expected `pageTable`[1][1] from 0 to 1, got -1',
  ],
  [
    'no pages',
    wrongPages({ pageTable: [[], []] }),
    RangeError,
    'Expected `contextLengths`[0] from 0 to the capacity 0, got 5',
  ],
  ['a scale in words', wrong({ scale: '1' }), TypeError, "Expected `scale` to be a number, got '1'"],
  ['NaN as scale', wrong({ scale: Number.NaN }), RangeError, 'Expected `scale` to be finite in float32, got NaN'],
  [
    'an infinite scale',
    wrong({ scale: Infinity }),
    RangeError,
    'Expected `scale` to be finite in float32, got Infinity',
  ],
  [
    'a scale that float32 does not hold',
    wrong({ scale: 1e39 }),
    RangeError,
    'Expected `scale` to be finite in float32, got 1e+39',
  ],
  [
    'another strategy',
    wrong({ strategy: 'fast' }),
    RangeError,
    "Expected `strategy` to be one of 'lean', 'fixed-split', 'flash-attention-2', got 'fast'",
  ],
  [
    'an object as strategy',
    wrong({ strategy: {} }),
    TypeError,
    "Expected `strategy` to be one of 'lean', 'fixed-split', 'flash-attention-2', got a Object",
  ],
  ['no workers', wrong({ workers: 0 }), RangeError, 'Expected `workers` to be an integer from 1 to 1048576, got 0'],
  [
    'too many workers',
    wrong({ workers: 2 ** 20 + 1 }),
    RangeError,
    'Expected `workers` to be an integer from 1 to 1048576, got 1048577',
  ],
  [
    'half a worker',
    wrong({ workers: 1.5 }),
    RangeError,
    'Expected `workers` to be an integer from 1 to 1048576, got 1.5',
  ],
  [
    'NaN workers',
    wrong({ workers: Number.NaN }),
    RangeError,
    'Expected `workers` to be an integer from 1 to 1048576, got NaN',
  ],
  ['workers in words', wrong({ workers: 'all' }), TypeError, "Expected `workers` to be a number, got 'all'"],
  [
    'no splits',
    wrong({ strategy: 'fixed-split', splits: 0 }),
    RangeError,
    'Expected `splits` to be an integer from 1 to 1048576, got 0',
  ],
  [
    'splits of big numbers',
    wrong({ strategy: 'fixed-split', splits: 2n }),
    TypeError,
    'Expected `splits` to be a number, got 2n',
  ],
  ['a launch that is no object', wrong({ launch: 2 }), TypeError, 'Expected `launch` to be an object, got 2'],
  [
    'an unknown copy path',
    wrong({ launch: { copies: 'fast' } }),
    RangeError,
    "Expected `launch.copies` to be one of 'auto', 'async', 'bulk', got 'fast'",
  ],
  [
    'no CTAs',
    wrong({ launch: { ctasPerSm: 0 } }),
    RangeError,
    'Expected `launch.ctasPerSm` to be an integer from 1 to 32, got 0',
  ],
  [
    'no stages',
    wrong({ launch: { stages: 0 } }),
    RangeError,
    'Expected `launch.stages` to be an integer from 1 to 6, got 0',
  ],
  [
    'too many warps',
    wrong({ launch: { warps: 9 } }),
    RangeError,
    'Expected `launch.warps` to be an integer from 1 to 8, got 9',
  ],
  [
    'half a token',
    wrong({ launch: { tileTokens: 16.5 } }),
    RangeError,
    'Expected `launch.tileTokens` to be an integer from 1 to 128, got 16.5',
  ],
  [
    'a number of stages that is none',
    wrong({ launch: { stages: '3' } }),
    TypeError,
    "Expected `launch.stages` to be a number, got '3'",
  ],
  [
    'a launch for the CPU',
    wrong({ launch: { ctasPerSm: 1 } }),
    RangeError,
    'Expected `launch` only for a CUDA device, got it for the CPU',
  ],
  [
    'splits for lean',
    wrong({ splits: 2 }),
    RangeError,
    "Expected `splits` only with the strategy 'fixed-split', got it with 'lean'",
  ],
  [
    'splits for flash-attention-2',
    wrong({ splits: 2, strategy: 'flash-attention-2' }),
    RangeError,
    "Expected `splits` only with the strategy 'fixed-split', got it with 'flash-attention-2'",
  ],
  ['out of another type', wrong({ out: f16([2, 4, 8]) }), TypeError, "Expected `out` dtype to be 'f32', got 'f16'"],
  [
    'out of another shape',
    wrong({ out: f32([2, 8, 4]) }),
    RangeError,
    'Expected `out` shape to be [2, 4, 8], got [2, 8, 4]',
  ],
  [
    'out of three axes for q of four',
    wrong({ q: f32([2, 1, 4, 8]) }),
    RangeError,
    'Expected `out` shape to be [2, 1, 4, 8], got [2, 4, 8]',
  ],
  [
    'out with gaps',
    wrong({ out: strided([2, 4, 8], [64, 16, 1], 200) }),
    RangeError,
    'Expected `out` to be contiguous, got strides [64, 16, 1]',
  ],
  [
    'out that is no tensor',
    wrong({ out: new Float32Array(64) }),
    TypeError,
    'Expected `out` to be a tensor (see tensor()), got a Float32Array',
  ],
  ['lse of another type', wrong({ lse: f16([2, 4]) }), TypeError, "Expected `lse` dtype to be 'f32', got 'f16'"],
  ['lse of another shape', wrong({ lse: f32([8]) }), RangeError, 'Expected `lse` shape to be [2, 4], got [8]'],
  [
    'lse with gaps',
    wrong({ lse: strided([2, 4], [8, 2], 20) }),
    RangeError,
    'Expected `lse` to be contiguous, got strides [8, 2]',
  ],
  [
    'out over q',
    wrong({ out: right.q }),
    RangeError,
    'Expected `out` to have memory of its own, got memory that `q` uses too',
  ],
  [
    'out over the end of v',
    wrong({ v: tensor(sharedMemory.subarray(0, 96), [2, 3, 2, 8]), out: tensor(sharedMemory.subarray(95), [2, 4, 8]) }),
    RangeError,
    'Expected `out` to have memory of its own, got memory that `v` uses too',
  ],
  [
    'lse over k',
    wrong({ k: tensor(sharedMemory.subarray(100), [2, 3, 2, 8]), lse: tensor(sharedMemory.subarray(98), [2, 4]) }),
    RangeError,
    'Expected `lse` to have memory of its own, got memory that `k` uses too',
  ],
  [
    'lse over out',
    wrong({ out: tensor(sharedMemory, [2, 4, 8]), lse: tensor(sharedMemory.subarray(63), [2, 4]) }),
    RangeError,
    'Expected `out` to have memory of its own, got memory that `lse` uses too',
  ],
  [
    'q detached',
    wrong({ q: detached([2, 4, 8]) }),
    TypeError,
    'Expected `q` to hold 64 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
  ],
  [
    'v detached',
    wrong({ v: detached([2, 3, 2, 8]) }),
    TypeError,
    'Expected `v` to hold 96 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
  ],
  [
    'out detached',
    wrong({ out: detached([2, 4, 8]) }),
    TypeError,
    'Expected `out` to hold 64 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
  ],
];

beforeEach(() => {
  out.data.fill(SENTINEL);
  lse.data.fill(SENTINEL);
});

function expectNothingWritten(): void {
  expect(new Set(out.data)).toEqual(new Set([SENTINEL]));
  expect(new Set(lse.data)).toEqual(new Set([SENTINEL]));
}

describe('decode', () => {
  test('takes what the mistakes below start from', async () => {
    device.decodeSync(right);
    device.decodeSync(paged);
    await device.decode(right);
    expect(out.data).not.toContain(SENTINEL);
  });

  test('ends its list of mistakes with as many names as mistakes', () => {
    expect(new Set(decodeMistakes.map(([name]) => name)).size).toBe(decodeMistakes.length);
  });

  test.each(decodeMistakes)('%s', async (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => device.decodeSync(options)),
      errorClass,
      message,
    );
    // The asynchronous call rejects; it must not throw.
    let promise: Promise<unknown> | undefined;
    expect(() => {
      promise = device.decode(options);
    }).not.toThrow();
    expectError(
      await promise?.then(
        () => undefined,
        (error: unknown) => error,
      ),
      errorClass,
      message,
    );
    expectNothingWritten();
  });

  test('a resizable buffer is refused by asynchronous calls alone, which could see it shrink', async () => {
    const Resizable = ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => ArrayBuffer;
    const q = tensor(new Float32Array(new Resizable(256, { maxByteLength: 512 })), [2, 4, 8]);
    expectError(
      await device.decode({ ...right, q }).then(
        () => undefined,
        (error: unknown) => error,
      ),
      TypeError,
      'Expected `q` of an asynchronous call to lie in a buffer of fixed length, got a resizable ArrayBuffer',
    );
    expectNothingWritten();
    device.decodeSync({ ...right, q });
    (q.data.buffer as ArrayBuffer & { resize(length: number): void }).resize(100);
    expectError(
      thrownBy(() => device.decodeSync({ ...right, q })),
      TypeError,
      'Expected `q` to hold 64 elements, got 25: its ArrayBuffer was detached or shrunk after tensor() was called',
    );
  });

  test('hand-made tensors cannot reach past their data', () => {
    const forged = (change: object) => ({ ...right.k, ...change });
    for (const strides of [
      [1e15, 16, 8, 1],
      [2 ** 53, 16, 8, 1],
      [-48, 16, 8, 1],
      [48, 16, 8.5, 1],
      [Number.NaN, 16, 8, 1],
    ]) {
      const k = forged({ strides });
      const error = thrownBy(() => device.decodeSync({ ...right, k }));
      expect([TypeError, RangeError]).toContain((error as Error).constructor);
      expectNothingWritten();
    }
    for (const dtype of ['f64', undefined, 'f16']) {
      const k = forged({ dtype });
      const error = thrownBy(() => device.decodeSync({ ...right, k, v: { ...right.v, dtype: dtype as 'f16' } }));
      expect([TypeError, RangeError]).toContain((error as Error).constructor);
      expectNothingWritten();
    }
  });
});

// ---- plan -----------------------------------------------------------------------------------------------------------

const rightPlan: PlanOptions = { numQueryHeads: 4, numKvHeads: 2, headDim: 8, contextLengths: [3, 3], kvType: 'f32' };
const wrongPlan = (change: object): PlanOptions => ({ ...rightPlan, ...change }) as PlanOptions;

describe('device.plan', () => {
  test.each<Mistake<PlanOptions>>([
    ['no options', undefined as never, TypeError, 'Expected `options` to be an object, got undefined'],
    [
      'no KV heads',
      wrongPlan({ numKvHeads: 0 }),
      RangeError,
      'Expected `numKvHeads` to be an integer from 1 to 2147483647, got 0',
    ],
    ['KV heads in words', wrongPlan({ numKvHeads: '2' }), TypeError, "Expected `numKvHeads` to be a number, got '2'"],
    [
      'query heads left out',
      wrongPlan({ numQueryHeads: undefined }),
      TypeError,
      'Expected `numQueryHeads` to be a number, got undefined',
    ],
    [
      '5 query heads for 2',
      wrongPlan({ numQueryHeads: 5 }),
      RangeError,
      'Expected `numQueryHeads` to be a multiple of numKvHeads 2, got 5',
    ],
    ['head dim 4', wrongPlan({ headDim: 4 }), RangeError, 'Expected `headDim` to be an integer from 8 to 512, got 4'],
    ['head dim 12', wrongPlan({ headDim: 12 }), RangeError, 'Expected `headDim` to be a multiple of 8, got 12'],
    [
      '17 queries',
      wrongPlan({ queryLen: 17 }),
      RangeError,
      'Expected `queryLen` to be an integer from 1 to 16, got 17',
    ],
    [
      'more rows than are counted',
      wrongPlan({ numQueryHeads: 2 ** 31 - 2, numKvHeads: 1, queryLen: 16 }),
      RangeError,
      'Expected `numQueryHeads / numKvHeads x queryLen` to be an integer from 1 to 2147483647, got 34359738336',
    ],
    [
      'another type',
      wrongPlan({ kvType: 'int8' }),
      RangeError,
      "Expected `kvType` to be one of 'f32', 'f16', 'bf16', got 'int8'",
    ],
    [
      'another strategy',
      wrongPlan({ strategy: 'best' }),
      RangeError,
      "Expected `strategy` to be one of 'lean', 'fixed-split', 'flash-attention-2', got 'best'",
    ],
    [
      'splits for lean',
      wrongPlan({ splits: 4 }),
      RangeError,
      "Expected `splits` only with the strategy 'fixed-split', got it with 'lean'",
    ],
    [
      'no workers',
      wrongPlan({ workers: 0 }),
      RangeError,
      'Expected `workers` to be an integer from 1 to 1048576, got 0',
    ],
    [
      'no lengths',
      wrongPlan({ contextLengths: undefined }),
      TypeError,
      'Expected `contextLengths` to be an array, got undefined',
    ],
    [
      'a negative length',
      wrongPlan({ contextLengths: [1, -3] }),
      RangeError,
      'Expected `contextLengths[1]` to be an integer from 0 to 2147483647, got -3',
    ],
    [
      'a negative length in an Int32Array',
      wrongPlan({ contextLengths: Int32Array.of(-3) }),
      RangeError,
      'Expected `contextLengths`[0] to be 0 or more, got -3',
    ],
  ])('%s', (_, options, errorClass, message) => {
    expectError(
      thrownBy(() => device.plan(options)),
      errorClass,
      message,
    );
  });

  test('more tiles than fit', () => {
    const lengths = new Array<number>(256).fill(2 ** 31 - 1);
    const options = wrongPlan({ numKvHeads: 2 ** 31 - 1, numQueryHeads: 2 ** 31 - 1, contextLengths: lengths });
    const error = thrownBy(() => device.plan(options)) as Error;
    expect(error.constructor).toBe(RangeError);
    expect(error.message).toMatch(/^Expected tiles x workers to fit 64 bits, got \d+ tiles or more and 2 workers$/);
  });

  test('update with wrong lengths leaves the plan as it was', () => {
    const plan = device.plan(rightPlan);
    expectError(
      thrownBy(() => plan.update([1, -1])),
      RangeError,
      'Expected `contextLengths[1]` to be an integer from 0 to 2147483647, got -1',
    );
    expectError(
      thrownBy(() => plan.update(Int32Array.of(-1))),
      RangeError,
      'Expected `contextLengths`[0] to be 0 or more, got -1',
    );
    expect(plan.contextLengths).toEqual(Int32Array.of(3, 3));
    plan.decodeSync(right);
  });

  test('tensors of another shape than the plan was made for', async () => {
    const cases: [PlanOptions, DecodeOptions, ErrorClass, string][] = [
      [
        wrongPlan({ contextLengths: [3] }),
        right,
        RangeError,
        'Expected `contextLengths` to hold 1 lengths, one a sequence, got 2',
      ],
      [wrongPlan({ numKvHeads: 4 }), right, RangeError, 'Expected tensors of the shape that the plan was made for'],
      [
        wrongPlan({ contextLengths: [3, 9] }),
        right,
        RangeError,
        'Expected `contextLengths`[1] from 0 to the capacity 3, got 9',
      ],
    ];
    for (const [options, tensors, errorClass, message] of cases.slice(1)) {
      const plan = device.plan(options);
      expectError(
        thrownBy(() => plan.decodeSync(tensors)),
        errorClass,
        message,
      );
      expectError(
        await plan.decode(tensors).then(
          () => undefined,
          (error: unknown) => error,
        ),
        errorClass,
        message,
      );
      expectNothingWritten();
    }
    expectError(
      thrownBy(() => device.plan(wrongPlan({ contextLengths: [3] })).decodeSync(right)),
      RangeError,
      'Expected `contextLengths` to hold 2 lengths, one a sequence, got 1',
    );
  });

  test('lengths or a schedule unlike the plan; what is the same may be given', () => {
    const lean = device.plan({ ...rightPlan, workers: 3 });
    const split = device.plan({ ...rightPlan, strategy: 'fixed-split', splits: 2 });
    const given = (options: object): DecodeOptions => ({ ...right, ...options });
    lean.decodeSync(given({ contextLengths: [3, 3], strategy: 'lean', workers: 3 }));
    split.decodeSync(given({ contextLengths: Int32Array.of(3, 3), strategy: 'fixed-split' }));
    for (const contextLengths of [[3, 2], [3]]) {
      expectError(
        thrownBy(() => lean.decodeSync(given({ contextLengths }))),
        RangeError,
        "Expected `contextLengths` to be the plan's where given, got others: see plan.update()",
      );
    }
    for (const other of [{ strategy: 'flash-attention-2' }, { workers: 2 }, { launch: { warps: 2 } }]) {
      expectError(
        thrownBy(() => lean.decodeSync(given(other))),
        RangeError,
        "Expected `strategy`, `workers`, `splits` and `launch` to be the plan's where given, got others: make another plan",
      );
    }
    expectError(
      thrownBy(() => split.decodeSync(given({ splits: 3 }))),
      RangeError,
      "Expected `strategy`, `workers`, `splits` and `launch` to be the plan's where given, got others: make another plan",
    );
  });

  test('splits whose number times the output tiles is beyond 64 bits', () => {
    const contextLengths = new Int32Array(2 ** 20);
    contextLengths[0] = 2 ** 26;
    const many = { numQueryHeads: 2 ** 24, numKvHeads: 2 ** 24, headDim: 8, contextLengths };
    expectError(
      thrownBy(() => device.plan({ ...many, strategy: 'fixed-split', splits: 2 ** 20 })),
      RangeError,
      'Expected sequences x KV heads x splits to make at most 16777216 workers, got 17592186044416 x 1048576',
    );
    expectError(
      thrownBy(() => device.plan({ ...many, strategy: 'flash-attention-2' })),
      RangeError,
      'Expected sequences x KV heads x splits to make at most 16777216 workers, got 17592186044416 x 1',
    );
  });

  test('no tensors at all', async () => {
    const plan = device.plan(rightPlan);
    const message = 'Expected `q` to be a tensor (see tensor()), got undefined';
    expectError(
      thrownBy(() => plan.decodeSync(undefined as never)),
      TypeError,
      message,
    );
    expectError(
      await plan.decode(undefined as never).then(
        () => undefined,
        (error: unknown) => error,
      ),
      TypeError,
      message,
    );
  });
});

// ---- openDevice, timeRead, tensor, convert, mergeStates -------------------------------------------------------------

describe('openDevice', () => {
  const named = (got: string): string => `Expected a device 'auto', 'cpu', 'cuda' or 'cuda:N', got ${got}`;
  test.each<[string, unknown[], ErrorClass, string]>([
    ['an unknown name', ['gpu'], RangeError, named("'gpu'")],
    ['a name with space', [' cpu'], RangeError, named("' cpu'")],
    ['a negative index', ['cuda:-1'], RangeError, named("'cuda:-1'")],
    ['an index of nothing', ['cuda:'], RangeError, named("'cuda:'")],
    ['an index too large', ['cuda:99999'], RangeError, named("'cuda:99999'")],
    ['a number', [0], TypeError, named('0')],
    ['null', [null], TypeError, named('null')],
    ['null options', ['cpu', null], TypeError, 'Expected `options` to be an object, got null'],
    ['a number for options', ['cpu', 4], TypeError, 'Expected `options` to be an object, got 4'],
    ['no threads', ['cpu', { threads: 0 }], RangeError, 'Expected `threads` to be an integer from 1 to 1024, got 0'],
    [
      'too many threads',
      ['cpu', { threads: 1025 }],
      RangeError,
      'Expected `threads` to be an integer from 1 to 1024, got 1025',
    ],
    ['threads in words', ['cpu', { threads: 'all' }], TypeError, "Expected `threads` to be a number, got 'all'"],
    [
      'an unknown instruction set',
      ['cpu', { instructionSet: 'mmx' }],
      RangeError,
      "Expected `instructionSet` to be one of 'avx512', 'avx2', 'portable', got 'mmx'",
    ],
    [
      'a number as instruction set',
      ['cpu', { instructionSet: 2 }],
      TypeError,
      "Expected `instructionSet` to be one of 'avx512', 'avx2', 'portable', got 2",
    ],
  ])('%s', (_, args, errorClass, message) => {
    expectError(
      thrownBy(() => (openDevice as (...args: unknown[]) => unknown)(...args)),
      errorClass,
      message,
    );
  });

  test.runIf(!installation().cuda.available)('a CUDA device that is not there', () => {
    for (const spec of ['cuda', 'cuda:3'] as const) {
      const error = thrownBy(() => openDevice(spec)) as InstanceType<typeof LeanAttentionError>;
      expect(error).toBeInstanceOf(LeanAttentionError);
      expect(error.code).toBe('CUDA_UNAVAILABLE');
      expect(error.message).toBe(`No CUDA device: ${installation().cuda.reason}`);
    }
  });

  test('says what it took and why', () => {
    using auto = openDevice();
    if (installation().cuda.available) {
      expect(auto.type).toBe('cuda');
    } else {
      expect(auto.description).toMatch(/^cpu \(\d+ threads?, \w+\), taken because no CUDA device can be used: /);
    }
    using cpu = openDevice('cpu', { threads: 1, instructionSet: 'portable' });
    expect(cpu.description).toBe('cpu (1 thread, portable)');
  });

  test('is the only way to a device', () => {
    expect(thrownBy(() => new (Device as unknown as new () => unknown)())).toBeInstanceOf(TypeError);
  });
});

describe('device.timeRead', () => {
  test.each<[string, unknown, string]>([
    ['nothing', undefined, 'Expected `buffers` to be an array, got undefined'],
    ['a typed array', new Float32Array(8), 'Expected `buffers` to be an array, got a Float32Array'],
    ['an array of numbers', [1], 'Expected `buffers[0]` to be a typed array or a DataView, got 1'],
    [
      'an ArrayBuffer',
      [new Uint8Array(1), new ArrayBuffer(8)],
      'Expected `buffers[1]` to be a typed array or a DataView, got a ArrayBuffer',
    ],
  ])('%s', (_, buffers, message) => {
    expectError(
      thrownBy(() => device.timeRead(buffers as never)),
      TypeError,
      message,
    );
  });
});

describe('tensor', () => {
  const data = new Float32Array(24);
  test.each<[string, unknown[], ErrorClass, string]>([
    ['no data', [undefined, [1]], TypeError, 'Expected `data` to be a Float32Array or a Uint16Array, got undefined'],
    ['an array', [[1, 2], [2]], TypeError, 'Expected `data` to be a Float32Array or a Uint16Array, got an array'],
    [
      'doubles',
      [new Float64Array(4), [4]],
      TypeError,
      'Expected `data` to be a Float32Array or a Uint16Array, got a Float64Array',
    ],
    [
      'signed shorts',
      [new Int16Array(4), [4]],
      TypeError,
      'Expected `data` to be a Float32Array or a Uint16Array, got a Int16Array',
    ],
    [
      'a Buffer',
      [Buffer.alloc(8), [4]],
      TypeError,
      'Expected `data` to be a Float32Array or a Uint16Array, got a Uint8Array',
    ],
    [
      'bit patterns of no type',
      [new Uint16Array(4), [4]],
      TypeError,
      "Expected `dtype` 'f16' or 'bf16' for a Uint16Array, which holds bit patterns of either, got undefined",
    ],
    [
      'an unknown type',
      [data, [24], { dtype: 'f64' }],
      TypeError,
      "Expected `dtype` to be 'f32', 'f16' or 'bf16', got 'f64'",
    ],
    [
      'f16 over floats',
      [data, [24], { dtype: 'f16' }],
      TypeError,
      "Expected `data` to be a Uint16Array for dtype 'f16', got a Float32Array",
    ],
    [
      'f32 over bit patterns',
      [new Uint16Array(4), [4], { dtype: 'f32' }],
      TypeError,
      "Expected `data` to be a Float32Array for dtype 'f32', got a Uint16Array",
    ],
    ['no shape', [data], TypeError, 'Expected `shape` to be an array, got undefined'],
    ['a number as shape', [data, 24], TypeError, 'Expected `shape` to be an array, got 24'],
    ['a negative length', [data, [2, -3]], RangeError, 'Expected `shape[1]` to be an integer of at least 0, got -3'],
    ['half a length', [data, [2.5]], RangeError, 'Expected `shape[0]` to be an integer of at least 0, got 2.5'],
    ['a length in words', [data, ['2']], TypeError, "Expected `shape[0]` to be a number, got '2'"],
    ['a shape too large', [data, [5, 5]], RangeError, 'Expected `data` to hold 25 elements for shape [5, 5], got 24'],
    [
      'a shape far too large',
      [data, [2 ** 40, 2 ** 40]],
      RangeError,
      `Expected \`data\` to hold ${2 ** 80} elements for shape [${2 ** 40}, ${2 ** 40}], got 24`,
    ],
    [
      'strides of another count',
      [data, [2, 3], { strides: [3] }],
      RangeError,
      'Expected `strides` to have an entry for each of the 2 axes, got 1',
    ],
    [
      'a negative stride',
      [data, [2, 3], { strides: [3, -1] }],
      RangeError,
      'Expected `strides[1]` to be an integer of at least 0, got -1',
    ],
    [
      'strides too large',
      [data, [2, 3], { strides: [22, 1] }],
      RangeError,
      'Expected `data` to hold 25 elements for shape [2, 3], got 24',
    ],
    ['null options', [data, [24], null], TypeError, 'Expected `options` to be an object, got null'],
  ])('%s', (_, args, errorClass, message) => {
    expectError(
      thrownBy(() => (tensor as (...args: unknown[]) => unknown)(...args)),
      errorClass,
      message,
    );
  });

  test('takes empty shapes, views and broadcast strides', () => {
    expect(tensor(new Float32Array(0), [0, 5]).strides).toEqual([5, 1]);
    expect(tensor(data.subarray(20), [4]).data.length).toBe(4);
    expect(tensor(data, [1000, 8], { strides: [0, 1] }).shape).toEqual([1000, 8]);
  });

  test('gives a tensor that cannot be changed by changing the lists it was made from', () => {
    const shape = [2, 3];
    const t = tensor(data, shape);
    shape[0] = 1000;
    expect(t.shape).toEqual([2, 3]);
    expect(() => (t.shape as number[]).push(1)).toThrow(TypeError);
    expect(() => (t.strides as number[]).push(1)).toThrow(TypeError);
  });
});

describe('convert', () => {
  test('what memory cannot hold', () => {
    const endless = tensor(new Float32Array(1), [2 ** 20, 2 ** 20], { strides: [0, 0] });
    expect(thrownBy(() => convert(endless, 'f16'))).toEqual(
      new LeanAttentionError('OUT_OF_MEMORY', "Not enough memory for a tensor of 1099511627776 elements of 'f16'"),
    );
  });

  test.each<[string, unknown[], ErrorClass, string]>([
    ['nothing', [undefined, 'f16'], TypeError, 'Expected `source` to be a tensor (see tensor()), got undefined'],
    [
      'a typed array',
      [new Float32Array(8), 'f16'],
      TypeError,
      'Expected `source` to be a tensor (see tensor()), got a Float32Array',
    ],
    ['no type', [f32([8])], TypeError, "Expected `dtype` to be 'f32', 'f16' or 'bf16', got undefined"],
    ['an unknown type', [f32([8]), 'f8'], TypeError, "Expected `dtype` to be 'f32', 'f16' or 'bf16', got 'f8'"],
    [
      'a detached tensor',
      [detached([8]), 'f16'],
      TypeError,
      'Expected `source` to hold 8 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
    ],
  ])('%s', (_, args, errorClass, message) => {
    expectError(
      thrownBy(() => (convert as (...args: unknown[]) => unknown)(...args)),
      errorClass,
      message,
    );
  });
});

describe('mergeStates', () => {
  const state = { out: f32([2, 4, 8]), lse: f32([2, 4]) };
  test.each<[string, unknown, ErrorClass, string]>([
    ['nothing', undefined, TypeError, 'Expected `states` to be an array, got undefined'],
    ['one result, not in a list', state, TypeError, 'Expected `states` to be an array, got a Object'],
    ['no state', [], RangeError, 'Expected `states` to hold at least one result, got none'],
    ['null among them', [state, null], TypeError, 'Expected `states[1]` to be an object, got null'],
    [
      'no out',
      [{ lse: state.lse }],
      TypeError,
      'Expected `states[0].out` to be a tensor (see tensor()), got undefined',
    ],
    [
      'no lse',
      [{ out: state.out }],
      TypeError,
      'Expected `states[0].lse` to be a tensor (see tensor()), got undefined',
    ],
    [
      'another shape',
      [state, { ...state, out: f32([2, 8, 4]) }],
      RangeError,
      'Expected `states[1].out` shape to be [2, 4, 8], got [2, 8, 4]',
    ],
    [
      'another type',
      [state, { ...state, out: f16([2, 4, 8]) }],
      TypeError,
      "Expected `states[1].out` dtype to be 'f32', got 'f16'",
    ],
    [
      'lse of another shape',
      [{ ...state, lse: f32([8]) }],
      RangeError,
      'Expected `states[0].lse` shape to be [2, 4], got [8]',
    ],
    [
      'lse of another type',
      [{ ...state, lse: f16([2, 4]) }],
      TypeError,
      "Expected `states[0].lse` dtype to be 'f32', got 'f16'",
    ],
    [
      'a detached state',
      [state, { ...state, lse: detached([2, 4]) }],
      TypeError,
      'Expected `states[1].lse` to hold 8 elements, got 0: its ArrayBuffer was detached or shrunk after tensor() was called',
    ],
    [
      'heads of no dimensions',
      [{ out: f32([2, 0]), lse: f32([2]) }],
      RangeError,
      'Expected `states[0].out` shape to be [..., headDim], got [2, 0]',
    ],
    [
      'a number without axes',
      [{ out: f32([]), lse: f32([]) }],
      RangeError,
      'Expected `states[0].out` shape to be [..., headDim], got []',
    ],
  ])('%s', (_, states, errorClass, message) => {
    expectError(
      thrownBy(() => mergeStates(states as never)),
      errorClass,
      message,
    );
  });
});

describe('a device that has been disposed', () => {
  test('refuses everything with DEVICE_DISPOSED', async () => {
    const gone = openDevice('cpu', { threads: 1 });
    const plan = gone.plan(rightPlan);
    gone.dispose();
    gone.dispose();
    expect(gone.disposed).toBe(true);
    const bodies: (() => unknown)[] = [
      () => gone.decodeSync(right),
      () => gone.plan(rightPlan),
      () => gone.memory(),
      () => gone.timeRead([]),
      () => plan.decodeSync(right),
      () => plan.update([1, 1]),
      () => plan.workspaceBytes,
    ];
    const errors: unknown[] = bodies.map(thrownBy);
    for (const run of [gone.decode(right), plan.decode(right)]) {
      errors.push(
        await run.then(
          () => undefined,
          (error: unknown) => error,
        ),
      );
    }
    for (const error of errors) {
      expect(error).toBeInstanceOf(LeanAttentionError);
      expect((error as InstanceType<typeof LeanAttentionError>).code).toBe('DEVICE_DISPOSED');
      expect((error as InstanceType<typeof LeanAttentionError>).message).toBe(
        'The device cpu has been disposed; open another with openDevice()',
      );
    }
    expectNothingWritten();
    expect(plan.segments().length).toBeGreaterThan(0); // what is known already stays readable
  });
});
