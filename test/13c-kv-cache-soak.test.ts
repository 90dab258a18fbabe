// The KV cache under long random use, beside a model that keeps each sequence's tokens: what a sequence holds always
// decodes to what the float64 reference says of its tokens, and the bookkeeping balances.
import fc from 'fast-check';
import type { DType, KvCache, Sequence } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { expectClose } from './helpers/compare';
import { asTensor, rowsOf } from './helpers/kv-cache';
import { LeanAttentionError, openDevice, referenceDecode } from './helpers/library';
import { random } from './helpers/random';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const [HEADS, DIM] = [1, 8];

/** A cache and what it should hold. Every token written is a new one, so that no two pages look alike. */
class Pair {
  readonly cache: KvCache;
  readonly live: { sequence: Sequence; tokens: number[] }[] = [];
  #nextToken = 0;

  constructor(pages: number, pageTokens: number, dtype: DType) {
    const shape = { layers: 1, numKvHeads: HEADS, headDim: DIM, dtype, pageTokens };
    this.cache = device.createKvCache({ ...shape, tokens: pages * pageTokens });
  }

  create(): void {
    this.live.push({ sequence: this.cache.createSequence(), tokens: [] });
  }

  fork(index: number): void {
    const { sequence, tokens } = this.live[index];
    this.live.push({ sequence: sequence.fork(), tokens: [...tokens] });
  }

  truncate(index: number, length: number): void {
    const { sequence, tokens } = this.live[index];
    sequence.truncate(length);
    tokens.length = length;
  }

  free(index: number): void {
    const [{ sequence }] = this.live.splice(index, 1);
    sequence.free();
  }

  /** Appends to all of them or, where the cache is full, to none. */
  append(indices: readonly number[], counts: readonly number[]): boolean {
    const chosen = indices.map((index) => this.live[index]);
    const before = this.cache.stats();
    let step: ReturnType<KvCache['append']>;
    try {
      step = this.cache.append(
        chosen.map(({ sequence }) => sequence),
        counts,
      );
    } catch (error) {
      if (!(error instanceof LeanAttentionError && error.code === 'OUT_OF_PAGES')) throw error;
      expect(this.cache.stats()).toEqual(before);
      return false;
    }
    const fresh = counts.map((count) => Array.from({ length: count }, () => this.#nextToken++));
    const rows = (salt: number) => rowsOf(fresh.flat(), HEADS, DIM, this.cache.dtype, salt);
    step.write({ layer: 0, k: rows(0), v: rows(1) });
    for (const [i, { tokens }] of chosen.entries()) tokens.push(...fresh[i]);
    return true;
  }

  check(): void {
    this.cache.verify();
    const { sequences, tokens } = this.cache.stats();
    expect(sequences).toBe(this.live.length);
    expect(tokens).toBe(this.live.reduce((sum, one) => sum + one.tokens.length, 0));
    for (const one of this.live) if (one.sequence.length !== one.tokens.length) expect.fail('a length is off');
  }

  /** Decodes every sequence and holds it against the reference over its tokens. */
  checkContents(): void {
    this.check();
    if (this.live.length === 0) return;
    const lists = this.live.map(({ tokens }) => tokens);
    const q = rowsOf(
      lists.map((_, i) => i),
      HEADS,
      DIM,
      'f32',
      2,
    );
    const sequences = this.live.map(({ sequence }) => sequence);
    const { dtype } = this.cache;
    expectClose(
      device.decodeSync({ q, cache: this.cache, layer: 0, sequences }),
      referenceDecode({
        q,
        k: asTensor(lists, HEADS, DIM, dtype),
        v: asTensor(lists, HEADS, DIM, dtype, 1),
        contextLengths: lists.map((list) => list.length),
      }),
    );
  }
}

// ---- Commands that fast-check combines and, on failure, shrinks --------------------------------------------------------

/** The model of fast-check: how many sequences there are and their lengths, which decide what can be done. */
interface Model {
  lengths: number[];
}
type Command = fc.Command<Model, Pair>;

const command = (name: string, check: (model: Model) => boolean, run: (model: Model, pair: Pair) => void): Command => ({
  check,
  run: (model, pair) => {
    run(model, pair);
    pair.check();
  },
  toString: () => name,
});

/** `at` is a fraction, so that it names one of however many there are. */
const pick = (at: number, count: number): number => Math.min(Math.floor(at * count), count - 1);
const fraction = fc.double({ min: 0, max: 1, noNaN: true });
const any = ({ lengths }: Model): boolean => lengths.length > 0;

const commands: fc.Arbitrary<Command>[] = [
  fc.constant(
    command(
      'create',
      ({ lengths }) => lengths.length < 8,
      (model, pair) => {
        pair.create();
        model.lengths.push(0);
      },
    ),
  ),
  fraction.map((at) =>
    command(`fork(${at})`, any, (model, pair) => {
      const index = pick(at, model.lengths.length);
      pair.fork(index);
      model.lengths.push(model.lengths[index]);
    }),
  ),
  fc.tuple(fraction, fraction).map(([at, kept]) =>
    command(`truncate(${at}, ${kept})`, any, (model, pair) => {
      const index = pick(at, model.lengths.length);
      model.lengths[index] = Math.floor(kept * model.lengths[index]);
      pair.truncate(index, model.lengths[index]);
    }),
  ),
  fraction.map((at) =>
    command(`free(${at})`, any, (model, pair) => {
      const index = pick(at, model.lengths.length);
      pair.free(index);
      model.lengths.splice(index, 1);
    }),
  ),
  fc.array(fc.nat({ max: 9 }), { minLength: 1, maxLength: 8 }).map((room) =>
    command(`append(${room})`, any, (model, pair) => {
      const indices = model.lengths.flatMap((_, i) => (room[i % room.length] > 0 ? [i] : []));
      const counts = indices.map((i) => room[i % room.length]);
      if (indices.length === 0 || !pair.append(indices, counts)) return;
      for (const [i, index] of indices.entries()) model.lengths[index] += counts[i];
    }),
  ),
  fc.constant(
    command(
      'decode',
      () => true,
      (_, pair) => pair.checkContents(),
    ),
  ),
];

describe('random operations', () => {
  test('of every kind, in any order, keep contents and invariants', () => {
    fc.assert(
      fc.property(
        fc.commands(commands, { maxCommands: 60, size: 'max' }),
        fc.integer({ min: 1, max: 24 }),
        fc.constantFrom(1, 3, 4, 16),
        fc.constantFrom<DType>('f32', 'f16', 'bf16'),
        (list, pages, pageTokens, dtype) => {
          const real = new Pair(pages, pageTokens, dtype);
          fc.modelRun(() => ({ model: { lengths: [] }, real }), list);
          real.checkContents();
          real.cache.dispose();
        },
      ),
      { seed: 20_26, numRuns: 150 },
    );
  });

  test('100,000 of them', () => {
    const rng = random(4);
    const pair = new Pair(64, 4, 'f16');
    for (let i = 0; i < 100_000; ++i) {
      const { live } = pair;
      const choice = live.length === 0 ? 0 : rng.integer(0, 99);
      const index = rng.integer(0, Math.max(0, live.length - 1));
      if (choice < 8 && live.length < 16) pair.create();
      else if (choice < 18 && live.length < 16) pair.fork(index);
      else if (choice < 28) pair.free(index);
      else if (choice < 40) pair.truncate(index, rng.integer(0, live[index].tokens.length));
      else {
        const indices = live.flatMap((_, at) => (rng.integer(0, 2) === 0 ? [at] : []));
        if (indices.length === 0) continue;
        pair.append(
          indices,
          indices.map(() => rng.integer(1, choice < 50 ? 9 : 2)),
        );
      }
      if (i % 100 === 0) pair.check();
      if (i % 500 === 0) pair.checkContents();
    }
    pair.checkContents();
    while (pair.live.length > 0) pair.free(0);
    pair.check();
    expect(pair.cache.stats()).toMatchObject({ freePages: 64, sharedPages: 0, tokens: 0, bytes: 0 });
  });

  test('10,000 steps of a batch leave memory flat', () => {
    const collectGarbage = globalThis.gc as () => void;
    const cache = device.createKvCache({ layers: 2, numKvHeads: 2, headDim: 16, tokens: 64 * 64, pageTokens: 16 });
    const sequences = Array.from({ length: 32 }, () => cache.createSequence());
    const rows = rowsOf(
      sequences.map((_, i) => i),
      2,
      16,
      'f32',
    );
    const q = rowsOf(
      sequences.map((_, i) => i),
      4,
      16,
      'f32',
    );
    // Results in the same place every time, so that no garbage of theirs hides what is lost.
    const { out, lse } = device.decodeSync({ q, cache, layer: 0, sequences });
    const steps = (count: number): number => {
      for (let i = 0; i < count; ++i) {
        for (const [at, sequence] of sequences.entries()) {
          if ((i + at) % 96 === 0) {
            sequence.free();
            sequences[at] = at % 2 === 0 ? cache.createSequence() : sequences[(at + 1) % 32].fork();
          }
        }
        const step = cache.append(sequences);
        for (const layer of [0, 1]) {
          step.write({ layer, k: rows, v: rows, q, rotary: {} });
          device.decodeSync({ q, cache, layer, sequences: step, out, lse });
        }
        for (const sequence of sequences) if (sequence.length > 100) sequence.truncate(40);
      }
      cache.verify();
      collectGarbage();
      const { rss, heapTotal } = process.memoryUsage(); // V8's own heap grows until it suits the garbage
      return rss - heapTotal;
    };
    steps(1000);
    const before = steps(1000);
    const after = steps(10_000);
    expect((after - before) / 2 ** 20).toBeLessThan(16);
  });
});
