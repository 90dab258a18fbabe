// The float64 reference: decode attention written for reading, not for speed. It shares nothing with the library but the
// Tensor interface (its own number decoding, its own indexing), so that agreement between the two means something.
// The tests and the benchmark's check compare against it.

import type { DecodeOptions, DType, Tensor } from './index';

export interface ReferenceResult {
  /** q's shape, contiguous. */
  readonly out: Float64Array;
  /** q's shape without headDim, contiguous; natural logarithm. */
  readonly lse: Float64Array;
}

/** Attention of each query over its context. Shapes and lengths are taken as valid: the library is what checks them. */
export function referenceDecode(options: DecodeOptions): ReferenceResult {
  const { q, k, v, pageTable } = options;
  const [batch, queryLen, numQueryHeads, headDim] = q.shape.length === 3 ? insert(q.shape, 1, 1) : q.shape;
  const queryStrides = q.shape.length === 3 ? insert(q.strides, 1, 0) : q.strides;
  const [tokenAxis, headAxis] = options.layout === 'HND' ? [2, 1] : [1, 2];
  const numKvHeads = k.shape[headAxis];
  const groupSize = numQueryHeads / numKvHeads;
  const scale = options.scale ?? 1 / Math.sqrt(headDim);

  // Where token t of a sequence lies: [block, slot] with block the sequence itself, or the page that holds the token.
  const blockTokens = k.shape[tokenAxis];
  const pages = pageTable === undefined ? undefined : flatten(pageTable);
  const maxPages = pages === undefined ? 1 : batch === 0 ? 0 : pages.length / batch;
  const blockOf = (sequence: number, token: number): number =>
    pages === undefined ? sequence : pages[sequence * maxPages + Math.floor(token / blockTokens)];

  const readQuery = rowReader(q);
  const readKey = rowReader(k);
  const readValue = rowReader(v);
  const out = new Float64Array(batch * queryLen * numQueryHeads * headDim);
  const lse = new Float64Array(batch * queryLen * numQueryHeads).fill(-Infinity);
  const row = new Float64Array(headDim);

  for (let sequence = 0; sequence < batch; ++sequence) {
    const context = options.contextLengths?.[sequence] ?? maxPages * blockTokens;
    for (let kvHead = 0; kvHead < numKvHeads; ++kvHead) {
      // The query rows that share this K/V head, each with the number of tokens that it sees (causal).
      const queries = [];
      for (let query = 0; query < queryLen; ++query) {
        for (let head = kvHead * groupSize; head < (kvHead + 1) * groupSize; ++head) {
          const values = new Float64Array(headDim);
          readQuery(
            values,
            sequence * queryStrides[0] + query * queryStrides[1] + head * queryStrides[2],
            queryStrides[3],
          );
          const visible = Math.max(0, context - queryLen + query + 1);
          const index = (sequence * queryLen + query) * numQueryHeads + head;
          queries.push({ values, visible, index, scores: new Float64Array(visible) });
        }
      }
      const offsetOf = ({ strides }: Tensor, token: number): number =>
        blockOf(sequence, token) * strides[0] + (token % blockTokens) * strides[tokenAxis] + kvHead * strides[headAxis];

      for (let token = 0; token < context; ++token) {
        readKey(row, offsetOf(k, token), k.strides[3]);
        for (const { values, visible, scores } of queries) {
          if (token < visible) scores[token] = scale * dot(values, row);
        }
      }
      for (const query of queries) lse[query.index] = softmaxInPlace(query.scores);
      for (let token = 0; token < context; ++token) {
        readValue(row, offsetOf(v, token), v.strides[3]);
        for (const { visible, scores, index } of queries) {
          if (token < visible) addScaled(out, index * headDim, scores[token], row);
        }
      }
    }
  }
  return { out, lse };
}

/** Turns scores into weights that sum to 1 and returns ln(sum(exp(score))); -infinity where there is no score. */
function softmaxInPlace(scores: Float64Array): number {
  let largest = -Infinity;
  for (const score of scores) largest = Math.max(largest, score);
  if (largest === -Infinity) {
    scores.fill(0);
    return -Infinity;
  }
  let sum = 0;
  for (let i = 0; i < scores.length; ++i) {
    scores[i] = Math.exp(scores[i] - largest);
    sum += scores[i];
  }
  for (let i = 0; i < scores.length; ++i) scores[i] /= sum;
  return largest + Math.log(sum);
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i] * b[i];
  return sum;
}

function addScaled(target: Float64Array, offset: number, weight: number, row: Float64Array): void {
  for (let i = 0; i < row.length; ++i) target[offset + i] += weight * row[i];
}

/** Reads a row of a tensor into doubles: 16-bit types through a table of all 65,536 values, which is fast and exact. */
function rowReader({ data, dtype }: Tensor): (row: Float64Array, offset: number, stride: number) => void {
  if (dtype === 'f32') {
    return (row, offset, stride) => {
      for (let i = 0; i < row.length; ++i) row[i] = data[offset + i * stride];
    };
  }
  const values = valueTable(dtype);
  return (row, offset, stride) => {
    for (let i = 0; i < row.length; ++i) row[i] = values[data[offset + i * stride]];
  };
}

const tables = new Map<DType, Float64Array>();

function valueTable(dtype: 'f16' | 'bf16'): Float64Array {
  let table = tables.get(dtype);
  if (table === undefined) {
    const [exponentBits, fractionBits] = dtype === 'f16' ? [5, 10] : [8, 7];
    table = Float64Array.from({ length: 1 << 16 }, (_, bits) => floatFromBits(bits, exponentBits, fractionBits));
    tables.set(dtype, table);
  }
  return table;
}

/** IEEE 754's rule for any binary format of 16 bits: sign, exponent, fraction. */
function floatFromBits(bits: number, exponentBits: number, fractionBits: number): number {
  const largestExponent = (1 << exponentBits) - 1;
  const bias = largestExponent >> 1;
  const exponent = (bits >> fractionBits) & largestExponent;
  const fraction = (bits & ((1 << fractionBits) - 1)) / (1 << fractionBits);
  const sign = bits >> 15 === 1 ? -1 : 1;
  if (exponent === largestExponent) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** (1 - bias);
  return sign * (1 + fraction) * 2 ** (exponent - bias);
}

/** [batch, maxPages]; lists may be of unequal length. */
function flatten(table: Int32Array | readonly (readonly number[])[]): ArrayLike<number> {
  if (table instanceof Int32Array) return table;
  const maxPages = Math.max(0, ...table.map((pages) => pages.length));
  return table.flatMap((pages) => [...pages, ...new Array<number>(maxPages - pages.length).fill(-1)]);
}

function insert(list: readonly number[], index: number, value: number): number[] {
  return [...list.slice(0, index), value, ...list.slice(index)];
}
