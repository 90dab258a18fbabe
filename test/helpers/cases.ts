// Decode calls of every kind, described by plain values. What a case must not read is poisoned: slots past a context,
// pages that no context reaches, the padding of page tables, gaps between strides and memory around views.
import type { DecodeOptions, DType, Layout, Tensor, TensorData } from 'lean-attention';
import { library } from './library';
import { emptyData, store } from './numbers';
import { ABSURD_PAGES, poisoned } from './poison';
import { type Random, random } from './random';

/** How K, V and q lie in memory. */
export type Placement =
  | 'plain' // each tensor contiguous, in an array of its own
  | 'offset' // each a subarray that begins at an odd element
  | 'gaps' // rows, heads and sequences further apart than they need
  | 'fused KV' // K and V of a token next to each other
  | 'fused QKV' // what one projection of a whole sequence gives: q is its last tokens
  | 'shared'; // in SharedArrayBuffers

export interface Case {
  contexts: readonly number[];
  queryLen: number;
  numKvHeads: number;
  groupSize: number;
  headDim: number;
  /** Tokens of a page; 0: contiguous. */
  pageTokens: number;
  layout: Layout;
  placement: Placement;
  qType: DType;
  kvType: DType;
  /** What k is multiplied by: 1 gives scores of about 1. */
  keyScale?: number;
  seed: number;
}

export function nameOf(c: Case): string {
  const cache = c.pageTokens === 0 ? 'contiguous' : `pages of ${c.pageTokens}`;
  const contexts = c.contexts.length > 4 ? `${c.contexts.slice(0, 4)},… (${c.contexts.length})` : `${c.contexts}`;
  const heads = `${c.groupSize * c.numKvHeads}/${c.numKvHeads} x ${c.headDim}`;
  const queries = c.queryLen > 1 ? `, ${c.queryLen} queries` : '';
  return `${heads}, ${c.qType} over ${c.kvType}, ${cache} ${c.layout} ${c.placement}${queries}, contexts ${contexts}`;
}

/** Sizes and strides of a cache, named by axis: block is a sequence of a contiguous cache, else a page. */
interface Axes {
  block: number;
  token: number;
  head: number;
}

export function build(c: Case): DecodeOptions {
  const rng = random(c.seed);
  const batch = c.contexts.length;
  const longest = Math.max(1, ...c.contexts);
  // A few slots past the longest context, so that every sequence has slots that must not be read.
  const blockTokens = c.pageTokens || longest + 3;
  const pages = c.pageTokens === 0 ? null : makePages(rng, c.contexts, c.pageTokens);
  const lengths: Axes = { block: pages?.numPages ?? batch, token: blockTokens, head: c.numKvHeads };
  const placed = c.placement === 'fused QKV' && pages === null ? placeFusedQkv(c, lengths) : place(c, lengths);

  const fillRow = ({ data, dtype }: Tensor, row: number, scale: number): void => {
    const values = normals(dtype, scale);
    const begin = rng.integer(0, values.length - c.headDim);
    data.set(values.subarray(begin, begin + c.headDim), row);
  };
  const fillKv = (t: Tensor, scale: number): void => {
    const strides = axesOf(c.layout, t.strides);
    for (const [sequence, context] of c.contexts.entries()) {
      for (let token = 0; token < context; ++token) {
        const block = pages?.table[sequence * pages.maxPages + Math.floor(token / blockTokens)] ?? sequence;
        for (let head = 0; head < c.numKvHeads; ++head) {
          const row = block * strides.block + (token % blockTokens) * strides.token + head * strides.head;
          fillRow(t, row, scale);
        }
      }
    }
  };
  fillKv(placed.k, c.keyScale ?? 1);
  fillKv(placed.v, 1);
  const { q } = placed;
  for (let sequence = 0; sequence < batch; ++sequence) {
    for (let query = 0; query < c.queryLen; ++query) {
      for (let head = 0; head < c.numKvHeads * c.groupSize; ++head) {
        const row = sequence * q.strides[0] + query * q.strides[1] + head * q.strides[2];
        fillRow(q, row, 1);
      }
    }
  }
  return {
    ...placed,
    q: c.queryLen === 1 ? withoutQueryAxis(q) : q,
    layout: c.layout,
    contextLengths: Int32Array.from(c.contexts),
    ...(pages === null ? {} : { pageTable: pages.table }),
  };
}

const pools = new Map<string, TensorData>();

/** Normally distributed numbers of a type; rows are cut from them, which is much faster than to draw each. */
function normals(dtype: DType, scale: number): TensorData {
  const name = `${dtype} ${scale}`;
  let values = pools.get(name);
  if (values === undefined) {
    const rng = random(1);
    values = emptyData(1 << 15, dtype);
    for (let i = 0; i < values.length; ++i) store(values, i, scale * rng.normal(), dtype);
    pools.set(name, values);
  }
  return values;
}

const axesOf = (layout: Layout, [block, second, third]: readonly number[]): Axes =>
  layout === 'NHD' ? { block, token: second, head: third } : { block, token: third, head: second };

const inLayout = (layout: Layout, { block, token, head }: Axes, last: number): number[] =>
  layout === 'NHD' ? [block, token, head, last] : [block, head, token, last];

const withoutQueryAxis = (q: Tensor): Tensor =>
  library.tensor(q.data, q.shape.toSpliced(1, 1), { dtype: q.dtype, strides: q.strides.toSpliced(1, 1) });

/** Random pages, a few of them unused, and a table wider than any context needs whose padding is absurd. */
function makePages(rng: Random, contexts: readonly number[], pageTokens: number) {
  const needed = contexts.map((context) => Math.ceil(context / pageTokens));
  const maxPages = Math.max(...needed) + 2;
  const numPages = needed.reduce((sum, count) => sum + count, 0) + 3;
  const order = rng.shuffle(Array.from({ length: numPages }, (_, page) => page));
  const table = new Int32Array(contexts.length * maxPages);
  for (const [sequence, count] of needed.entries()) {
    for (let i = 0; i < maxPages; ++i) {
      table[sequence * maxPages + i] = i < count ? (order.pop() as number) : rng.pick(ABSURD_PAGES);
    }
  }
  return { table, maxPages, numPages };
}

function place(c: Case, lengths: Axes): { q: Tensor; k: Tensor; v: Tensor } {
  const { headDim, layout, placement, qType, kvType } = c;
  const gap = placement === 'gaps' ? 8 : 0;
  const shared = placement === 'shared';
  const offset = placement === 'offset' ? 3 : placement === 'gaps' ? 8 : 0;
  const view = (length: number, dtype: DType, shape: number[], strides: number[]): Tensor =>
    library.tensor(poisoned(length + offset + 5, dtype, shared).subarray(offset), shape, { dtype, strides });

  const row = headDim + gap;
  const strides: Axes =
    layout === 'NHD'
      ? { head: row, token: lengths.head * row + gap, block: lengths.token * (lengths.head * row + gap) + gap }
      : { token: row, head: lengths.token * row + gap, block: lengths.head * (lengths.token * row + gap) + gap };
  const shape = inLayout(layout, lengths, headDim);
  const size = lengths.block * strides.block;
  let k: Tensor;
  let v: Tensor;
  if (placement === 'fused KV') {
    const fused: Axes =
      layout === 'NHD'
        ? { head: row, token: 2 * strides.token, block: 2 * strides.block }
        : { token: 2 * row, head: 2 * strides.head, block: 2 * strides.block };
    const data = poisoned(2 * size, kvType);
    k = library.tensor(data, shape, { dtype: kvType, strides: inLayout(layout, fused, 1) });
    const begin = layout === 'NHD' ? strides.token : row;
    v = library.tensor(data.subarray(begin), shape, { dtype: kvType, strides: inLayout(layout, fused, 1) });
  } else {
    k = view(size, kvType, shape, inLayout(layout, strides, 1));
    v = view(size, kvType, shape, inLayout(layout, strides, 1));
  }
  const heads = c.numKvHeads * c.groupSize;
  const query = heads * row + gap;
  const sequence = c.queryLen * query + gap;
  const batch = c.contexts.length;
  const qShape = [batch, c.queryLen, heads, headDim];
  return { q: view(batch * sequence, qType, qShape, [sequence, query, row, 1]), k, v };
}

/** [batch, tokens, numQueryHeads + 2 numKvHeads, headDim]: one type for all three. */
function placeFusedQkv(c: Case, lengths: Axes): { q: Tensor; k: Tensor; v: Tensor } {
  const { headDim, kvType } = c;
  const heads = c.numKvHeads * c.groupSize;
  const token = (heads + 2 * c.numKvHeads) * headDim;
  const tokens = Math.max(lengths.token, c.queryLen);
  const data: TensorData = poisoned(lengths.block * tokens * token, kvType);
  const cache = (begin: number): Tensor =>
    library.tensor(data.subarray(begin), inLayout(c.layout, lengths, headDim), {
      dtype: kvType,
      strides: inLayout(c.layout, { block: tokens * token, token, head: headDim }, 1),
    });
  const q = library.tensor(data.subarray((tokens - c.queryLen) * token), [lengths.block, c.queryLen, heads, headDim], {
    dtype: kvType,
    strides: [tokens * token, token, headDim, 1],
  });
  return { q, k: cache(heads * headDim), v: cache((heads + c.numKvHeads) * headDim) };
}

/** Multiply-adds of a case: what the reference and the portable tile code pay for. */
export const costOf = (c: Case): number =>
  c.contexts.reduce((sum, context) => sum + context, 0) * c.numKvHeads * c.groupSize * c.queryLen * c.headDim * 2;
