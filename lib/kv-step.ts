// A step: the tokens that an append made room for, and how their K and V get there.
import { prepareTarget } from './decode';
import { DTYPE_CODES } from './dtype';
import type { KvCache, Sequence } from './kv-cache';
import type { NativeBatch, NativeKvCache } from './native';
import type { WriteOptions } from './options';
import { prepareRotary, type Rotary } from './rotary';
import { expectTensor, type Tensor } from './tensor';
import { expectInteger, expectObject } from './validate';

/** A step as native code takes it: the class lends it to its neighbours, and to nobody else. */
export let batchOf: (step: Step) => NativeBatch;

/**
 * Made by `cache.append`. It is stale, and refused, once one of its sequences has been appended to, truncated or freed.
 * One whose sequences were forked since can be decoded, not written.
 */
export class Step {
  readonly cache: KvCache;
  readonly sequences: readonly Sequence[];
  /** Tokens of each sequence. */
  readonly counts: readonly number[];
  /** Tokens in all: rows of K, V and q, sequence by sequence. */
  readonly rows: number;
  /** [rows] each row's place in its sequence. */
  readonly positions: Int32Array;
  readonly #batch: NativeBatch;
  readonly #open: () => NativeKvCache;

  /** @internal */
  constructor(
    cache: KvCache,
    sequences: readonly Sequence[],
    starts: Int32Array,
    batch: NativeBatch & { counts: Int32Array },
    open: () => NativeKvCache,
  ) {
    this.cache = cache;
    this.sequences = Object.freeze([...sequences]);
    this.counts = Object.freeze([...batch.counts]);
    this.rows = this.counts.reduce((sum, count) => sum + count, 0);
    this.positions = new Int32Array(this.rows);
    let row = 0;
    for (const [sequence, count] of this.counts.entries()) {
      for (let i = 0; i < count; ++i) this.positions[row++] = starts[sequence] + i;
    }
    this.#batch = batch;
    this.#open = open;
  }

  /**
   * Writes K and V of a layer's rows into their pages, converted to the cache's type. With `rotary`, K is rotated by its
   * position before it is stored, and so is q, in place or into `qOut`. Blocks: work of microseconds for a decode step, after a
   * decode of the same device that is in flight on CUDA.
   *
   * @throws TypeError or RangeError for the caller's mistakes, before anything is written.
   */
  write(options: WriteOptions): void {
    const native = this.#open();
    expectObject('options', options);
    const { cache, rows } = this;
    const { numKvHeads, headDim } = cache;
    const layer = expectInteger('layer', options.layer, 0, cache.layers - 1);
    const k = expectRows('k', expectTensor('k', options.k), rows, numKvHeads, headDim);
    const v = expectRows('v', expectTensor('v', options.v), rows, numKvHeads, headDim);
    const q = options.q === undefined ? null : expectRows('q', expectTensor('q', options.q), rows, null, headDim);
    expectTogether(options);
    const rotary = options.rotary === undefined ? null : prepareRotary(options.rotary, headDim);
    const qOut = q === null || options.qOut === undefined ? q : prepareTarget('qOut', options.qOut, q.shape, q.dtype);
    if (q !== null && qOut === q) expectRowsApart(q);
    native.write({
      sequences: this.#batch.sequences,
      counts: this.#batch.counts,
      stamp: this.#batch.stamp,
      layer,
      k: k.data,
      v: v.data,
      q: q?.data ?? null,
      qOut: qOut?.data ?? null,
      inverseFrequencies: rotary?.inverseFrequencies ?? null,
      numbers: rowNumbers({ k, v, q, qOut }, rotary),
    });
  }

  static {
    batchOf = (step) => step.#batch;
  }
}

/** Queries are there to be rotated, and their target with them. */
export function expectTogether({ q, qOut, rotary }: { q?: unknown; qOut?: unknown; rotary?: unknown }): void {
  if (q !== undefined && rotary === undefined) throw new RangeError('Expected `q` only with `rotary`, got it alone');
  if (q === undefined && qOut !== undefined) throw new RangeError('Expected `qOut` only with `q`, got it alone');
}

type RowTensor = Pick<Tensor, 'dtype' | 'shape' | 'strides'>;

// One array for every call: native code reads it before it returns.
const numbers = new Float64Array(14);

/**
 * Types, strides and rotation of rows, in the order of kRowNumbers in csrc/binding/kv_cache.cpp. The last thing before a
 * call, and all is read before it is written: tensors may be the caller's code, and make a call of its own.
 */
export function rowNumbers(
  { k, v, q, qOut }: { k: RowTensor; v: RowTensor; q: RowTensor | null; qOut: RowTensor | null },
  rotary: Rotary | null,
): Float64Array {
  numbers.set([
    DTYPE_CODES[k.dtype],
    DTYPE_CODES[v.dtype],
    q === null ? 0 : DTYPE_CODES[q.dtype],
    k.strides[0],
    k.strides[1],
    v.strides[0],
    v.strides[1],
    q?.strides[0] ?? 0,
    q?.strides[1] ?? 0,
    qOut?.strides[0] ?? 0,
    qOut?.strides[1] ?? 0,
    q?.shape[1] ?? 0,
    rotary?.amplitude ?? 1,
    rotary?.pairing ?? 0,
  ]);
  return numbers;
}

/** [rows, heads, headDim] with a contiguous last axis; `heads` null: any number of them. */
export function expectRows<T extends RowTensor>(
  name: string,
  t: T,
  rows: number,
  heads: number | null,
  headDim: number,
): T {
  const { shape } = t;
  if (
    shape.length !== 3 ||
    shape[0] !== rows ||
    (heads === null ? shape[1] < 1 : shape[1] !== heads) ||
    shape[2] !== headDim
  ) {
    throw new RangeError(
      `Expected \`${name}\` shape to be [${rows}, ${heads ?? 'numQueryHeads'}, ${headDim}], got [${shape.join(', ')}]`,
    );
  }
  if (t.strides[2] !== 1)
    throw new RangeError(`Expected \`${name}\` strides[2], headDim, to be 1, got ${t.strides[2]}`);
  return t;
}

/** That no two rows of what is rotated in place share memory. */
export function expectRowsApart({ shape, strides }: RowTensor): void {
  const axes = [0, 1].filter((axis) => shape[axis] > 1).sort((a, b) => strides[a] - strides[b]);
  let extent = shape[2];
  for (const axis of axes) {
    if (strides[axis] < extent) {
      throw new RangeError(`Expected rows of \`q\` that do not overlap, got strides [${strides.join(', ')}]`);
    }
    extent += (shape[axis] - 1) * strides[axis];
  }
}
