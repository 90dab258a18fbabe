// What is measured: data. A preset is a few families (heads, head dim, contexts); options replace parts of each family.

import type { DType } from '../../index';
import type { Heads } from '../arguments';
import { InputError, quote } from '../errors';
import { formatBatch, formatTokens, runsOf } from '../units';

/** One shape to measure. Batches of unequal contexts lie in a paged cache, as they do in servers; others lie in one piece. */
export interface Trial extends Heads {
  readonly dtype: DType;
  readonly headDim: number;
  readonly contextLengths: readonly number[];
  readonly paged: boolean;
}

interface Family extends Heads {
  readonly headDim: number;
  readonly batches: readonly number[];
  readonly contexts: readonly number[];
  readonly ragged: readonly (readonly number[])[];
}

/** What the options replace; absent means as the preset has it. */
export interface Overrides {
  readonly heads?: Heads;
  readonly headDim?: number;
  readonly batch?: number;
  readonly contexts?: readonly number[];
  readonly ragged?: readonly number[];
}

const K = 1024;

/** Unequal as in serving: one long document, a few conversations, several short prompts. 23k tokens in all. */
const RAGGED = [16 * K, 4 * K, 1.5 * K, K / 2, K / 2, K / 4, 100, 17];

/** A batch whose contexts are `ratio` of the longest on average, the paper's measure of raggedness: one long, the rest equal. */
function raggedTo(ratio: number, batch = 8, longest = 64 * K): number[] {
  const rest = Math.round((longest * (ratio * batch - 1)) / (batch - 1));
  return [longest, ...new Array<number>(batch - 1).fill(rest)];
}

const runs = (...parts: readonly [count: number, tokens: number][]): number[] =>
  parts.flatMap(([count, tokens]) => new Array<number>(count).fill(tokens));

/** Batches of a server, from the one where every schedule is as good to one long document among short requests. */
const SERVED: readonly (readonly number[])[] = [
  runs([64, K / 2]),
  runs([64, 4 * K]),
  runs([32, K / 8], [32, 4 * K]),
  runs([1, 16 * K], [15, 64]),
  ...[7, 15, 31].map((others) => runs([1, 64 * K], [others, 4 * K])),
  runs([1, 128 * K], [31, 4 * K]),
  runs([2, 32 * K], [30, 4 * K]),
];

/** The paper's: contexts of 1k to 512k, batches of 1 to 16, and unequal ones. */
const PAPER: Partial<Family> = {
  batches: [1, 4, 16],
  contexts: [K, 4 * K, 16 * K, 64 * K, 256 * K, 512 * K],
  ragged: [raggedTo(0.25), raggedTo(0.5), raggedTo(0.75)],
};

function family(numQueryHeads: number, numKvHeads: number, headDim: number, parts: Partial<Family>): Family {
  return { numQueryHeads, numKvHeads, headDim, batches: [1], contexts: [], ragged: [], ...parts };
}

function model(numQueryHeads: number, numKvHeads: number, headDim: number): Family[] {
  return [
    family(numQueryHeads, numKvHeads, headDim, { contexts: [K, 4 * K, 16 * K, 64 * K], ragged: [RAGGED] }),
    family(numQueryHeads, numKvHeads, headDim, { batches: [8], contexts: [4 * K] }),
  ];
}

export const PRESETS: Readonly<Record<string, readonly Family[]>> = {
  quick: [
    family(32, 8, 128, { contexts: [4 * K, 16 * K], ragged: [RAGGED] }),
    family(32, 32, 128, { contexts: [4 * K] }),
  ],
  paper: [family(32, 32, 64, PAPER), family(32, 8, 128, PAPER)],
  ragged: [family(8, 1, 128, { ragged: SERVED }), family(32, 8, 128, { ragged: SERVED })],
  'llama3-8b': model(32, 8, 128),
  'llama3-70b': model(64, 8, 128),
  'mistral-7b': model(32, 8, 128),
  'qwen2-7b': model(28, 4, 128),
  'phi3-mini': model(32, 32, 96),
};

/** Not of shapes: what calls cost (overhead.ts). */
export const OVERHEAD = 'overhead';
export const PRESET_NAMES: readonly string[] = [...Object.keys(PRESETS), OVERHEAD];

export function listTrials(preset: string, dtypes: readonly DType[], overrides: Overrides): Trial[] {
  const families = Object.hasOwn(PRESETS, preset) ? PRESETS[preset] : undefined;
  if (families === undefined) {
    throw new InputError(`Expected --preset to be one of ${PRESET_NAMES.join(', ')}, got ${quote(preset)}.`);
  }
  const trials = new Map<string, Trial>();
  for (const dtype of dtypes) {
    for (const original of families) {
      const { numQueryHeads, numKvHeads, headDim, ...contexts } = replaced(original, overrides);
      const batches = [
        ...contexts.batches.flatMap((batch) =>
          contexts.contexts.map((tokens) => new Array<number>(batch).fill(tokens)),
        ),
        ...contexts.ragged,
      ];
      for (const contextLengths of batches) {
        const paged = contextLengths.some((tokens) => tokens !== contextLengths[0]);
        const trial = { dtype, numQueryHeads, numKvHeads, headDim, contextLengths, paged };
        trials.set(JSON.stringify(trial), trial);
      }
    }
  }
  return [...trials.values()];
}

function replaced(original: Family, { heads, headDim, batch, contexts, ragged }: Overrides): Family {
  const shaped = { ...original, ...heads, headDim: headDim ?? original.headDim };
  if (ragged !== undefined) return { ...shaped, batches: [], contexts: [], ragged: [ragged] };
  if (batch === undefined && contexts === undefined) return shaped;
  return {
    ...shaped,
    batches: batch === undefined ? shaped.batches : [batch],
    contexts: contexts ?? (shaped.contexts.length > 0 ? shaped.contexts : [4 * K]),
    ragged: [],
  };
}

export function elementBytes(dtype: DType): number {
  return dtype === 'f32' ? 4 : 2;
}

/** Bytes of K and V that a decode step has to read. */
export function kvBytes({ contextLengths, numKvHeads, headDim, dtype }: Trial): number {
  const tokens = contextLengths.reduce((sum, length) => sum + length, 0);
  return 2 * tokens * numKvHeads * headDim * elementBytes(dtype);
}

/** '4k', '8 x 4k', '64k, 7 x 4k', or '8 ragged, up to 16k'. */
export function describeContexts(contextLengths: readonly number[]): string {
  if (runsOf(contextLengths).length <= 3) return formatBatch(contextLengths);
  return `${contextLengths.length} ragged, up to ${formatTokens(Math.max(...contextLengths))}`;
}

/** What names a shape: of a trial, and of a row that was measured. */
export type Shape = Pick<Trial, 'numQueryHeads' | 'numKvHeads' | 'headDim' | 'contextLengths'> & {
  readonly dtype: string;
};

export function describeShape({ dtype, numQueryHeads, numKvHeads, headDim }: Shape): string {
  const kind = numQueryHeads === numKvHeads ? 'MHA' : numKvHeads === 1 ? 'MQA' : 'GQA';
  return `${kind} ${numQueryHeads}/${numKvHeads} d${headDim} ${dtype}`;
}

export function describeTrial(shape: Shape): string {
  return `${describeShape(shape)} ${describeContexts(shape.contextLengths)}`;
}
