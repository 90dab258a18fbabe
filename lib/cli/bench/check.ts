// Is a result right? Compared with the float64 reference on the same rounded inputs, one output tile at a time; when all
// of them would take too long, on an even choice of them, and the report says how many.

import { convert, type DecodeOptions, type DType, type Tensor, tensor } from '../../index';
import { referenceDecode } from '../../reference';

/** ||out - ref|| / ||ref|| */
export const ERROR_BOUNDS: Readonly<Record<DType, number>> = { f32: 1e-5, f16: 5e-4, bf16: 3.5e-3 };

/** Multiply-adds that the reference may spend on a trial: a second or two. */
const BUDGET = 1.5e9;

interface CheckedTile {
  /** Where the rows of this output tile begin in `out`, and their reference values. */
  readonly begin: number;
  readonly expected: Float64Array;
}

export interface Check {
  readonly numTiles: number;
  readonly numChecked: number;
  relativeError(out: Tensor): number;
}

/** A decode as a set of output tiles, each a problem of its own with one sequence and one KV head. */
export interface CheckedProblem {
  readonly contextLengths: readonly number[];
  readonly numQueryHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  tile(sequence: number, kvHead: number): DecodeOptions;
}

/** Prepares the check of a [batch, heads, dim] query over an NHD cache in host memory. */
export function prepareCheck(options: DecodeOptions): Check {
  const { q, k, contextLengths = [] } = options;
  const [, numQueryHeads, headDim] = q.shape;
  const numKvHeads = k.shape[2];
  return prepareTileCheck({
    contextLengths: [...contextLengths],
    numQueryHeads,
    numKvHeads,
    headDim,
    tile: (sequence, kvHead) => tileOf(options, sequence, kvHead, numQueryHeads / numKvHeads),
  });
}

/** Prepares a check; the reference is computed once, here. */
export function prepareTileCheck(problem: CheckedProblem): Check {
  const { contextLengths, numQueryHeads, numKvHeads, headDim } = problem;
  const groupSize = numQueryHeads / numKvHeads;
  const tiles: CheckedTile[] = chooseTiles(contextLengths, numKvHeads, 2 * groupSize * headDim).map(
    ({ sequence, kvHead }) => ({
      begin: (sequence * numQueryHeads + kvHead * groupSize) * headDim,
      expected: referenceDecode(problem.tile(sequence, kvHead)).out,
    }),
  );
  return {
    numTiles: contextLengths.length * numKvHeads,
    numChecked: tiles.length,
    relativeError(out) {
      const actual = convert(out, 'f32');
      let difference = 0;
      let norm = 0;
      for (const { begin, expected } of tiles) {
        expected.forEach((value, i) => {
          difference += (actual.data[begin + i] - value) ** 2;
          norm += value ** 2;
        });
      }
      return norm === 0 ? Math.sqrt(difference) : Math.sqrt(difference / norm);
    },
  };
}

/**
 * All output tiles, or as many as the budget allows: the longest context's first, then evenly through the batch. Each
 * sequence's heads are told from another one on, so that no head is passed over in all of them.
 */
export function chooseTiles(
  contextLengths: readonly number[],
  numKvHeads: number,
  costPerToken: number,
): { sequence: number; kvHead: number }[] {
  const all = contextLengths.flatMap((context, sequence) =>
    Array.from({ length: numKvHeads }, (_, i) => ({
      sequence,
      kvHead: (sequence + i) % numKvHeads,
      cost: context * costPerToken,
    })),
  );
  const total = all.reduce((sum, { cost }) => sum + cost, 0);
  if (total <= BUDGET) return all;
  const longest = all.reduce((best, tile) => (tile.cost > best.cost ? tile : best));
  const step = Math.ceil(total / BUDGET);
  return [longest, ...all.filter((tile, i) => i % step === step - 1 && tile !== longest)];
}

/** One output tile as a problem of its own: views into the same data. */
function tileOf(options: DecodeOptions, sequence: number, kvHead: number, groupSize: number): DecodeOptions {
  const { q, k, v, contextLengths = [], pageTable } = options;
  const headDim = q.shape[2];
  const firstBlock = pageTable === undefined ? sequence : 0;
  const cache = (source: Tensor): Tensor => {
    const { strides, shape, dtype } = source;
    const blocks = pageTable === undefined ? 1 : shape[0];
    return tensor(source.data.subarray(firstBlock * strides[0] + kvHead * strides[2]), [blocks, shape[1], 1, headDim], {
      dtype,
      strides,
    });
  };
  const table = pageTable instanceof Int32Array ? pageTable : undefined;
  const maxPages = table === undefined ? 0 : table.length / q.shape[0];
  return {
    q: tensor(q.data.subarray(sequence * q.strides[0] + kvHead * groupSize * q.strides[1]), [1, groupSize, headDim], {
      dtype: q.dtype,
      strides: q.strides,
    }),
    k: cache(k),
    v: cache(v),
    contextLengths: [contextLengths[sequence]],
    ...(table && { pageTable: table.slice(sequence * maxPages, (sequence + 1) * maxPages) }),
  };
}
