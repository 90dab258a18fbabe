// The schedule as users see it: properties of plan.segments() over random ragged batches, for every strategy.
import fc from 'fast-check';
import type { PlanOptions, Segment, Strategy } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from './helpers/library';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const TILE = device.plan({ numQueryHeads: 1, numKvHeads: 1, headDim: 64, contextLengths: [1] }).tileTokens;
const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];

/** Ragged on purpose: empty contexts, single tokens, lengths at the edges of tiles, and a few long ones. */
const length = fc.oneof(
  fc.constantFrom(0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE),
  fc.nat({ max: 20 * TILE }),
  fc.nat({ max: 800 * TILE }),
);
const lengths = fc.oneof(
  fc.array(length, { minLength: 1, maxLength: 12 }),
  fc.array(fc.nat({ max: 3 * TILE }), { minLength: 200, maxLength: 400 }),
);
const workers = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(64, 108, 132, 5000, 1 << 20));
const batches = fc.record({ contextLengths: lengths, numKvHeads: fc.integer({ min: 1, max: 9 }), workers });
type Batch = { contextLengths: number[]; numKvHeads: number; workers: number };

const tilesOf = (context: number): number => Math.ceil(context / TILE);
const totalTiles = ({ contextLengths, numKvHeads }: Batch): number =>
  numKvHeads * contextLengths.reduce((sum, context) => sum + tilesOf(context), 0);

function plan(batch: Batch, strategy: Strategy, more: Partial<PlanOptions> = {}) {
  return device.plan({ ...batch, numQueryHeads: batch.numKvHeads, headDim: 64, strategy, ...more });
}

function group<T>(items: readonly T[], key: (item: T) => string | number): T[][] {
  const groups = new Map<string | number, T[]>();
  for (const item of items) {
    const members = groups.get(key(item));
    if (members === undefined) groups.set(key(item), [item]);
    else members.push(item);
  }
  return [...groups.values()];
}

/** `expect` is too slow for millions of comparisons. */
function same<T>(found: T, expected: T): void {
  if (!Object.is(found, expected)) throw new Error(`Expected ${String(expected)}, got ${String(found)}`);
}

const sharesOf = (segments: readonly Segment[]): number[] =>
  group(segments, ({ worker }) => worker).map((own) =>
    own.reduce((sum, segment) => sum + segment.tileEnd - segment.tileBegin, 0),
  );

describe.each(STRATEGIES)('%s', (strategy) => {
  const check = (property: (batch: Batch, segments: Segment[]) => void): void => {
    fc.assert(
      fc.property(batches, (batch) => property(batch, plan(batch, strategy).segments())),
      { seed: 7, numRuns: 60 },
    );
  };

  test('covers every tile and every token exactly once', () => {
    check((batch, segments) => {
      let outputs = 0;
      for (const own of group(segments, ({ sequence, kvHead }) => `${sequence} ${kvHead}`)) {
        const context = batch.contextLengths[own[0].sequence];
        let tile = 0;
        let token = 0;
        for (const segment of own.sort((a, b) => a.tileBegin - b.tileBegin)) {
          same(segment.tileBegin, tile);
          same(segment.tokenBegin, token);
          same(segment.tileEnd > segment.tileBegin, true);
          tile = segment.tileEnd;
          token = segment.tokenEnd;
        }
        same(tile, tilesOf(context));
        same(token, context);
        ++outputs;
      }
      same(outputs, batch.numKvHeads * batch.contextLengths.filter((context) => context > 0).length);
    });
  });

  test('numbers the contributors to an output tile without a gap, in context order', () => {
    check((_, segments) => {
      for (const own of group(segments, ({ sequence, kvHead }) => `${sequence} ${kvHead}`)) {
        own.sort((a, b) => a.tileBegin - b.tileBegin);
        for (const [index, segment] of own.entries()) {
          same(segment.worker, own[0].worker + index);
          same(segment.contributors, own.length);
          same(segment.partial, own.length > 1);
        }
      }
    });
  });

  test('gives a worker two partials at most, and one run of tiles', () => {
    check((_, segments) => {
      for (const own of group(segments, ({ worker }) => worker)) {
        same(own.filter(({ partial }) => partial).length <= 2, true);
        for (const [index, segment] of own.slice(1).entries()) {
          // A later segment begins its output tile, and the one before it ended its own.
          same(segment.tileBegin, 0);
          same(own[index].sequence <= segment.sequence, true);
        }
      }
    });
  });

  test('lets each processor work without pause, and says the makespan', () => {
    fc.assert(
      fc.property(batches, (batch) => {
        const made = plan(batch, strategy);
        let makespan = 0;
        for (const own of group(made.segments(), ({ processor }) => processor)) {
          let time = 0;
          for (const segment of own.sort((a, b) => a.start - b.start)) {
            same(segment.start, time);
            time += segment.tileEnd - segment.tileBegin;
          }
          makespan = Math.max(makespan, time);
          same(own[0].processor < batch.workers, true);
        }
        same(made.makespan, makespan);
        same(made.numTiles, totalTiles(batch));
        same(made.idealMakespan, Math.ceil(totalTiles(batch) / batch.workers));
        same(made.makespanOverIdeal, makespan === 0 ? 1 : makespan / made.idealMakespan);
        same(made.makespanOverIdeal >= 1, true);
      }),
      { seed: 8, numRuns: 60 },
    );
  });
});

describe('lean', () => {
  test('cuts shares under 40 tiles within one tile of each other', () => {
    let seen = 0;
    fc.assert(
      fc.property(batches, (batch) => {
        const tiles = totalTiles(batch);
        if (tiles / batch.workers >= 40) return;
        const shares = sharesOf(plan(batch, 'lean').segments());
        expect(shares.length).toBe(Math.min(tiles, batch.workers)); // nobody else idles
        const least = shares.reduce((a, b) => Math.min(a, b), tiles);
        if (tiles > 0)
          same(
            shares.every((share) => share - least <= 1),
            true,
          );
        ++seen;
      }),
      { seed: 9, numRuns: 500 },
    );
    expect(seen).toBeGreaterThan(50);
  });

  test('stays within 5 % of the ideal, and one tile', () => {
    fc.assert(
      fc.property(batches, (batch) => {
        const made = plan(batch, 'lean');
        expect(made.makespan).toBeLessThanOrEqual(1.05 * made.idealMakespan + 1);
      }),
      { seed: 10, numRuns: 500 },
    );
  });

  test('moves a cut to an edge near it: fewer partials', () => {
    // Four workers, 100 tiles each. The edge at 98 is within a 40th of a share of the cut at 100, that at 197 is not.
    const made = plan({ contextLengths: [98 * TILE, 99 * TILE, 203 * TILE], numKvHeads: 1, workers: 4 }, 'lean');
    expect(
      made.segments().map(({ worker, sequence, tileBegin, tileEnd }) => [worker, sequence, tileBegin, tileEnd]),
    ).toEqual([
      [0, 0, 0, 98],
      [1, 1, 0, 99],
      [1, 2, 0, 3],
      [2, 2, 3, 103],
      [3, 2, 103, 203],
    ]);
  });

  test('the picture that the algorithm is explained with', () => {
    // 9 tiles for 3 workers: 3 each, wherever the cuts fall.
    const made = plan({ contextLengths: [4 * TILE, 0, 5 * TILE], numKvHeads: 1, workers: 3 }, 'lean');
    expect(
      made.segments().map(({ worker, sequence, tileBegin, tileEnd }) => [worker, sequence, tileBegin, tileEnd]),
    ).toEqual([
      [0, 0, 0, 3],
      [1, 0, 3, 4],
      [1, 2, 0, 2],
      [2, 2, 2, 5],
    ]);
    expect(made.makespanOverIdeal).toBe(1);
    expect(String(made)).toBe(
      `lean: 9 tiles of ${TILE} tokens for 3 workers, makespan 3 (ideal 3, x1.00); ${made.launch}`,
    );
    expect(made.launch).toMatch(/^\w+ tile code on \d+ threads, \d+ rows share a read of K and V$/);
  });
});

describe('fixed-split', () => {
  test('cuts every output tile in as many parts, equal within one tile', () => {
    fc.assert(
      fc.property(batches, fc.integer({ min: 1, max: 40 }), (batch, splits) => {
        const made = plan(batch, 'fixed-split', { splits });
        same(made.splits, splits);
        for (const own of group(made.segments(), ({ sequence, kvHead }) => `${sequence} ${kvHead}`)) {
          same(own.length, Math.min(splits, tilesOf(batch.contextLengths[own[0].sequence])));
          const shares = own.map(({ tileBegin, tileEnd }) => tileEnd - tileBegin);
          same(Math.max(...shares) - Math.min(...shares) <= 1, true);
        }
      }),
      { seed: 11, numRuns: 60 },
    );
  });

  /** FlashAttention-2's rule, in exact fractions. */
  function splitRule(outputs: number, longest: number, processors: number): number {
    if (outputs * 5 >= processors * 4) return 1;
    const counts = Array.from({ length: Math.min(128, processors, longest) }, (_, index) => index + 1).filter(
      (splits) => splits === 1 || Math.ceil(longest / splits) !== Math.ceil(longest / (splits - 1)),
    );
    const efficiency = (splits: number): [bigint, bigint] => {
      const work = BigInt(outputs * splits);
      const waves = BigInt(Math.ceil((outputs * splits) / processors));
      return [work, waves * BigInt(processors)];
    };
    const atLeast = (a: [bigint, bigint], b: [bigint, bigint], percent: bigint): boolean =>
      a[0] * b[1] * 100n >= b[0] * a[1] * percent;
    const best = counts.map(efficiency).reduce((a, b) => (atLeast(a, b, 100n) ? a : b));
    return counts.find((splits) => atLeast(efficiency(splits), best, 85n)) ?? 1;
  }

  test("chooses the splits by FlashAttention-2's rule", () => {
    fc.assert(
      fc.property(batches, (batch) => {
        const longest = tilesOf(Math.max(...batch.contextLengths));
        const outputs = batch.contextLengths.length * batch.numKvHeads;
        const expected = longest === 0 ? 1 : splitRule(outputs, longest, batch.workers);
        expect(plan(batch, 'fixed-split').splits).toBe(expected);
      }),
      { seed: 12, numRuns: 500 },
    );
  });

  test.each([
    // outputs, tiles of the longest context, processors, splits
    [8, 64, 132, 16], // 97 % of four waves' worth; 14 splits give 85 %, in pieces no shorter than those of 13
    [106, 1000, 132, 1], // 80 % of the processors have an output tile of their own
    [105, 1000, 132, 5],
    [1, 1, 132, 1], // nothing to split
    [1, 1000, 1, 1],
    [1, 4096, 1 << 20, 111], // at most 128, and 111 of them reach 85 % of that
  ])('%i output tiles of %i tiles on %i processors: %i splits', (outputs, tiles, processors, splits) => {
    const batch = { contextLengths: new Array<number>(outputs).fill(tiles * TILE), numKvHeads: 1, workers: processors };
    expect(splitRule(outputs, tiles, processors)).toBe(splits);
    expect(plan(batch, 'fixed-split').splits).toBe(splits);
  });
});

describe('flash-attention-2', () => {
  test('gives each output tile to one worker', () => {
    fc.assert(
      fc.property(batches, (batch) => {
        for (const segment of plan(batch, 'flash-attention-2').segments()) {
          same(segment.worker, segment.sequence * batch.numKvHeads + segment.kvHead);
          same(segment.partial, false);
        }
      }),
      { seed: 13, numRuns: 60 },
    );
  });
});

test('a batch of empty contexts has no segments', () => {
  for (const strategy of STRATEGIES) {
    const made = plan({ contextLengths: [0, 0, 0], numKvHeads: 4, workers: 3 }, strategy);
    expect(made.segments()).toEqual([]);
    expect(made.numTiles).toBe(0);
    expect(made.makespanOverIdeal).toBe(1);
    expect(made.workspaceBytes).toBe(0);
  }
});

test('many sequences', () => {
  const contextLengths = Array.from({ length: 100_000 }, (_, index) => (index * 7919) % 5000);
  const made = plan({ contextLengths, numKvHeads: 2, workers: 132 }, 'lean');
  expect(made.numTiles).toBe(totalTiles({ contextLengths, numKvHeads: 2, workers: 132 }));
  expect(made.makespan).toBeLessThanOrEqual(1.05 * made.idealMakespan + 1);
});

test('splits beyond the tiles of the longest context cost nothing', () => {
  const shape = { numQueryHeads: 32, numKvHeads: 8, headDim: 128, contextLengths: [3 * TILE, 0, TILE] };
  const most = device.plan({ ...shape, strategy: 'fixed-split', splits: 1 << 20 });
  const enough = device.plan({ ...shape, strategy: 'fixed-split', splits: 3 });
  expect(most.segments()).toEqual(enough.segments());
  expect(most.workspaceBytes).toBe(enough.workspaceBytes);
});

test('workspace depends on workers and shape, not on the context', () => {
  const bytes = (context: number): number =>
    device.plan({ numQueryHeads: 32, numKvHeads: 8, headDim: 128, contextLengths: [context], workers: 16 })
      .workspaceBytes;
  expect(bytes(1 << 20)).toBeLessThanOrEqual(2 * 16 * 4 * (128 + 2) * 4 + 16 * 8);
  expect(bytes(1 << 30)).toBe(bytes(1 << 20));
  expect(bytes(1 << 20)).toBeGreaterThan(0);
});
