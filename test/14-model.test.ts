// A small transformer over KvCache, the one of examples/server, against the same in float64 and without a cache: whatever
// way the tokens went in (one by one, in chunks, forked, rolled back, in ragged batches), every row's logits are those of
// its text computed from scratch.
import type { DType, KvCache, ScheduleOptions, Sequence } from 'lean-attention';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { createToyModel, END, SHAPE, type Shape, VOCABULARY } from '../examples/server/model.mjs';
import { openDevice } from './helpers/library';
import { referenceLogits } from './helpers/model-reference';
import { type Random, random } from './helpers/random';

const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

/** Relative error of a row's logits against a reference that rounds keys and values to the cache's type as it does. */
const ERROR: Readonly<Record<DType, number>> = { f32: 1e-6, f16: 2e-4, bf16: 5e-4 };
/** And against one that rounds nothing: what a type costs. */
const ERROR_OF_TYPE: Readonly<Record<DType, number>> = { f32: 1e-6, f16: 3e-3, bf16: 1.2e-2 };

interface Text {
  sequence: Sequence;
  /** What the sequence holds. */
  tokens: number[];
}

interface Settings {
  shape?: Shape;
  dtype?: DType;
  pageTokens?: number;
  schedule?: ScheduleOptions;
}

/** A model with a cache, and texts in it. Every row that goes through is compared. */
class Bench {
  readonly cache: KvCache;
  readonly #model;
  readonly #dtype: DType;
  readonly #rows: { tokens: number[]; logits: Float32Array }[] = [];

  constructor({ shape = SHAPE, dtype = 'f32', pageTokens = 8, schedule = {} }: Settings = {}) {
    this.#model = createToyModel(device, { seed: 7, shape, schedule });
    this.#dtype = dtype;
    this.cache = device.createKvCache({ ...this.#model.cacheShape, dtype, pageTokens, tokens: 8192 });
    benches.push(this);
  }

  get weights() {
    return this.#model.weights;
  }

  start(): Text {
    return { sequence: this.cache.createSequence(), tokens: [] };
  }

  fork(text: Text): Text {
    return { sequence: text.sequence.fork(), tokens: [...text.tokens] };
  }

  truncate(text: Text, length: number): void {
    text.sequence.truncate(length);
    text.tokens.length = length;
  }

  /** Puts tokens at the end of texts, in one step. Returns the logits of each text's new rows. */
  async push(texts: readonly Text[], added: readonly (readonly number[])[]): Promise<Float32Array[][]> {
    const step = this.cache.append(
      texts.map(({ sequence }) => sequence),
      added.map((tokens) => tokens.length),
    );
    const tokens = Int32Array.from(added.flat());
    const logits = await this.#model.forward(tokens, step, this.cache, [...tokens.keys()]);
    let row = 0;
    for (const [index, text] of texts.entries()) {
      for (const token of added[index]) {
        text.tokens.push(token);
        this.#rows.push({ tokens: [...text.tokens], logits: logits[row++] });
      }
      expect(text.sequence.length).toBe(text.tokens.length);
    }
    return added.map((of) => logits.splice(0, of.length));
  }

  /** Compares all rows with the references. The longest texts come first: their references serve their beginnings too. */
  check(): void {
    this.cache.verify();
    const { weights, shape } = this.#model;
    const byLength = this.#rows.sort((a, b) => b.tokens.length - a.tokens.length);
    const checks: [DType | undefined, number][] = [[undefined, ERROR_OF_TYPE[this.#dtype]]];
    if (this.#dtype !== 'f32') checks.push([this.#dtype, ERROR[this.#dtype]]);
    for (const [stored, bound] of checks) {
      const references: { text: string; rows: number[][] }[] = [];
      for (const { tokens, logits } of byLength) {
        const text = `${tokens.join(' ')} `;
        let known = references.find((reference) => reference.text.startsWith(text));
        if (known === undefined) {
          known = { text, rows: referenceLogits(tokens, weights, shape, stored) };
          references.push(known);
        }
        const error = relativeError(logits, known.rows[tokens.length - 1], weights.bias);
        expect(error, `after ${text}, keys in ${stored ?? 'float64'}`).toBeLessThan(bound);
      }
    }
    this.cache.dispose();
  }
}

/** Those of the running test. */
const benches: Bench[] = [];
afterEach(() => {
  for (const bench of benches.splice(0)) bench.check();
});

/** ||row - reference|| over what was computed of the reference: the bias is large, and would hide it. */
function relativeError(row: Float32Array, reference: ArrayLike<number>, bias: Float32Array): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < row.length; ++i) {
    difference += (row[i] - reference[i]) ** 2;
    norm += (reference[i] - bias[i]) ** 2;
  }
  return Math.sqrt(difference / norm);
}

const someTokens = (rng: Random, count: number): number[] =>
  Array.from({ length: count }, () => rng.integer(0, VOCABULARY - 1));

const TYPES: readonly DType[] = ['f32', 'f16', 'bf16'];

describe.each(TYPES)('cache in %s', (dtype) => {
  test('token by token, three texts of their own lengths', async () => {
    const rng = random(1);
    const bench = new Bench({ dtype });
    const texts = [bench.start(), bench.start(), bench.start()];
    await bench.push(texts, [someTokens(rng, 1), someTokens(rng, 19), someTokens(rng, 8)]);
    for (let round = 0; round < 24; ++round) {
      await bench.push(
        texts,
        texts.map(() => someTokens(rng, 1)),
      );
    }
  });

  test('a walk of all that can happen to a text', async () => {
    const rng = random(2);
    const bench = new Bench({ dtype, pageTokens: 4 });
    let texts = [bench.start()];
    for (let round = 0; round < 60; ++round) {
      const text = rng.pick(texts);
      const what = rng.integer(0, 9);
      if (what === 0 && texts.length < 8) texts.push(bench.start());
      else if (what <= 2 && texts.length < 8) texts.push(bench.fork(text));
      else if (what <= 4) bench.truncate(text, rng.integer(0, text.tokens.length));
      else if (what === 5 && texts.length > 1) {
        text.sequence.free();
        texts = texts.filter((other) => other !== text);
      } else {
        const some = texts.filter((one) => one.tokens.length < 40 && rng.uniform() < 0.6);
        if (some.length === 0) continue;
        await bench.push(
          some,
          some.map(() => someTokens(rng, rng.integer(1, 9))),
        );
      }
      bench.cache.verify();
    }
    for (const { sequence } of texts) sequence.free();
    expect(bench.cache.stats().usedPages).toBe(0);
  });
});

describe('prompts', () => {
  test.each([1, 2, 5, 8, 16, 17, 70])('in chunks of %i', async (size) => {
    const rng = random(3);
    const bench = new Bench();
    const text = bench.start();
    const prompt = someTokens(rng, 70);
    for (let at = 0; at < prompt.length; at += size) await bench.push([text], [prompt.slice(at, at + size)]);
    await bench.push([text], [someTokens(rng, 1)]);
  });

  test('chunks beside single tokens, of more than one length a step', async () => {
    const rng = random(4);
    const bench = new Bench({ pageTokens: 16 });
    const texts = Array.from({ length: 6 }, () => bench.start());
    for (let round = 0; round < 8; ++round) {
      const chosen = rng.shuffle(texts).slice(0, rng.integer(1, 6));
      await bench.push(
        chosen,
        chosen.map((_, index) => someTokens(rng, index % 2 === 0 ? 1 : rng.integer(2, 20))),
      );
    }
  });
});

describe('forks', () => {
  test.each([8, 11, 16])('after %i tokens: each goes its own way, and none sees another', async (length) => {
    const rng = random(5);
    const bench = new Bench();
    const parent = bench.start();
    await bench.push([parent], [someTokens(rng, length)]);
    const texts = [parent, bench.fork(parent), bench.fork(parent)];
    texts.push(bench.fork(texts[1]));
    for (let round = 0; round < 12; ++round) {
      await bench.push(
        texts,
        texts.map(() => someTokens(rng, 1)),
      );
    }
    parent.sequence.free();
    await bench.push(
      texts.slice(1),
      texts.slice(1).map(() => someTokens(rng, 5)),
    );
  });
});

describe('truncation', () => {
  test('drafts that were guessed wrong leave no trace', async () => {
    const rng = random(6);
    const bench = new Bench({ pageTokens: 4 });
    const texts = [bench.start(), bench.start()];
    await bench.push(texts, [someTokens(rng, 13), someTokens(rng, 4)]);
    for (let round = 0; round < 10; ++round) {
      // Four guesses at once; some are right and stay.
      await bench.push(
        texts,
        texts.map(() => someTokens(rng, 4)),
      );
      for (const text of texts) bench.truncate(text, text.tokens.length - rng.integer(0, 4));
      await bench.push(
        texts,
        texts.map(() => someTokens(rng, 1)),
      );
    }
  });

  test('of a fork leaves the text that it came from as it was', async () => {
    const rng = random(7);
    const bench = new Bench();
    const parent = bench.start();
    await bench.push([parent], [someTokens(rng, 21)]);
    const fork = bench.fork(parent);
    bench.truncate(fork, 10);
    await bench.push([fork, parent], [someTokens(rng, 14), someTokens(rng, 1)]);
    bench.truncate(parent, 0);
    await bench.push([parent, fork], [[END], someTokens(rng, 3)]);
  });
});

describe('batches', () => {
  test.each(['lean', 'flash-attention-2'] as const)(
    'each of 64 texts has the logits that it has alone: %s',
    async (strategy) => {
      const rng = random(8);
      const together = new Bench({ schedule: { strategy } });
      const alone = new Bench({ schedule: { strategy } });
      const prompts = Array.from({ length: 64 }, (_, index) => someTokens(rng, 1 + 2 * index));
      const last = prompts.map(() => someTokens(rng, 1));
      const texts = prompts.map(() => together.start());
      await together.push(texts, prompts);
      const batch = await together.push(texts, last);
      for (const [index, prompt] of prompts.entries()) {
        const text = alone.start();
        await alone.push([text], [prompt]);
        const [[row]] = await alone.push([text], [last[index]]);
        // Lean cuts contexts where the batch's equal shares end; this one never cuts, so that not a bit depends on the batch.
        if (strategy === 'flash-attention-2') expect(row).toEqual(batch[index][0]);
        expect(relativeError(batch[index][0], row, alone.weights.bias)).toBeLessThan(ERROR.f32);
      }
      benches.splice(benches.indexOf(alone), 1);
    },
  );

  test.each([
    { workers: 1 },
    { workers: 13 },
    { strategy: 'fixed-split', splits: 5 },
    { strategy: 'flash-attention-2' },
  ] as const)('cut as %o says', async (schedule) => {
    const rng = random(9);
    const bench = new Bench({ schedule });
    const texts = [bench.start(), bench.start()];
    await bench.push(texts, [someTokens(rng, 150), someTokens(rng, 3)]);
    await bench.push(texts, [someTokens(rng, 1), someTokens(rng, 20)]);
  });
});

describe('shapes', () => {
  test.each<Partial<Shape>>([
    { layers: 1 },
    { layers: 5 },
    { numQueryHeads: 4, numKvHeads: 4 },
    { numQueryHeads: 8, numKvHeads: 1 },
    { headDim: 8 },
    { headDim: 64 },
    { rotaryBase: 500_000 },
  ])('%o', async (change) => {
    const rng = random(10);
    for (const dtype of TYPES) {
      const bench = new Bench({ dtype, shape: { ...SHAPE, width: 32, hidden: 48, ...change } });
      const texts = [bench.start(), bench.start()];
      await bench.push(texts, [someTokens(rng, 30), someTokens(rng, 9)]);
      await bench.push(texts, [someTokens(rng, 1), someTokens(rng, 2)]);
    }
  });
});
