// What must hold on a CUDA device, whichever it is: the same tests run on a GPU in full (test/20) and, shortened, over the
// rehearsed CUDA runtime in every run of the tests (test/12e), so that they are known to work before there is a GPU.
import type {
  DecodeOptions,
  DecodeResult,
  Device,
  DeviceTensor,
  Stream,
  StreamDecodeOptions,
  Tensor,
} from 'lean-attention';
import { describe, expect, type TestContext, test } from 'vitest';
import { build, type Case, nameOf } from './cases';
import { expectClose, expectSameBits, measure, RELATIVE_ERROR } from './compare';
import { type GoldenCase, golden } from './golden';
import { library, referenceDecode } from './library';
import { toDoubles } from './numbers';
import { poisoned } from './poison';
import { random } from './random';
import { readSharedCase, sharedCases } from './shared-cases';

export interface Effort {
  headDims: readonly number[];
  /** Random cases of the grid, against float64. */
  cases: number;
  /** The longest context of those. */
  longest: number;
  /** Contexts of the cases that only the CPU device is asked about. */
  long: readonly (readonly number[])[];
  replays: number;
  stepsOfTwoStreams: number;
  decodes: number;
  /** What the device's memory may have grown by after them: a driver counts in large units. */
  slackBytes: number;
}

export interface Rig {
  device: Device;
  /** Bytes of the device's memory in use. */
  bytesInUse(): number;
}

/** Where every skip must be a failure, it is one. */
export function skipOrFail({ skip }: TestContext, reason: string): void {
  if (process.env.LEAN_ATTENTION_REQUIRE_CUDA === '1') throw new Error(`Expected nothing to be skipped: ${reason}`);
  skip(reason);
}

const STRATEGIES = ['lean', 'fixed-split', 'flash-attention-2'] as const;

function randomCase(index: number, { headDims, longest }: Effort): Case {
  const rng = random(1000 + index);
  const type = rng.pick(['f16', 'bf16'] as const);
  const contexts = Array.from({ length: rng.integer(1, 4) }, () => rng.integer(0, longest));
  return {
    contexts,
    queryLen: rng.pick([1, 1, 1, 3]),
    numKvHeads: rng.pick([1, 2]),
    groupSize: rng.pick([1, 4, 5, 7, 8]),
    headDim: headDims[index % headDims.length],
    pageTokens: rng.pick([0, 7, 16, 64]),
    layout: rng.pick(['NHD', 'HND'] as const),
    placement: 'plain',
    qType: type,
    kvType: type,
    seed: index,
  };
}

const paged = (contexts: readonly number[], change: Partial<Case> = {}): Case => ({
  ...{
    contexts,
    queryLen: 1,
    numKvHeads: 2,
    groupSize: 4,
    headDim: 64,
    pageTokens: 16,
    layout: 'NHD',
    placement: 'plain',
  },
  ...{ qType: 'f16', kvType: 'f16', seed: 5 },
  ...change,
});

/** Everything of a decode in the device's memory, with outputs that hold NaN; disposed of together. */
class Placed {
  readonly options: StreamDecodeOptions;
  readonly #tensors: DeviceTensor[] = [];
  readonly #poison: DecodeResult;

  constructor(device: Device, { q, k, v, contextLengths, pageTable, layout }: DecodeOptions) {
    const up = (source: Tensor | Int32Array): DeviceTensor => {
      const placed = device.upload(source);
      this.#tensors.push(placed);
      return placed;
    };
    const rows = q.shape.slice(0, -1);
    const [count, headDim] = [rows.reduce((a, b) => a * b), q.shape[rows.length]];
    this.#poison = {
      out: library.tensor(poisoned(count * headDim, q.dtype), q.shape, { dtype: q.dtype }),
      lse: library.tensor(poisoned(count, 'f32'), rows),
    };
    const pages = pageTable as Int32Array;
    const table = device.alloc([q.shape[0], pages.length / q.shape[0]], { dtype: 'i32' });
    this.#tensors.push(table);
    this.options = {
      ...{ q: up(q), k: up(k), v: up(v), contextLengths: up(Int32Array.from(contextLengths as Int32Array)) },
      ...{ pageTable: device.upload(pages, table), out: up(this.#poison.out), lse: up(this.#poison.lse) },
      ...(layout && { layout }),
    };
  }

  poison(stream: Stream): void {
    stream.upload(this.#poison.out, this.options.out);
    stream.upload(this.#poison.lse, this.options.lse);
  }

  async result(stream: Stream): Promise<DecodeResult> {
    const [out, lse] = await Promise.all([stream.download(this.options.out), stream.download(this.options.lse)]);
    return { out, lse };
  }

  dispose(): void {
    for (const one of this.#tensors) one.dispose();
  }
}

/** The tests, over the device that `rig` has when each of them runs. */
export function gpuSuite(rig: Rig, effort: Effort, timeout: number): void {
  describe('decode', () => {
    test.each(
      Array.from({ length: effort.cases }, (_, i) => randomCase(i, effort)).map((c) => [nameOf(c), c] as const),
    )(
      '%s',
      async (_, c) => {
        const options = build(c);
        const reference = referenceDecode(options);
        for (const strategy of STRATEGIES) {
          const result = rig.device.decodeSync({ ...options, strategy });
          expectClose(result, reference, strategy);
          expectSameBits(await rig.device.decode({ ...options, strategy }), result, `${strategy}, again`);
        }
      },
      timeout,
    );

    test.each(effort.long)(
      'the CPU device agrees on long contexts: %j',
      (...contexts) => {
        using cpu = library.openDevice('cpu');
        for (const kvType of ['f16', 'bf16'] as const) {
          const options = build(paged(contexts, { kvType, qType: kvType, pageTokens: 256, headDim: 128 }));
          const expected = cpu.decodeSync(options);
          const reference = { out: toDoubles(expected.out.data, kvType), lse: toDoubles(expected.lse.data, 'f32') };
          for (const strategy of STRATEGIES) {
            const errors = measure(rig.device.decodeSync({ ...options, strategy }), reference);
            // Both are off, each by what the library promises at most.
            expect(errors.relative, strategy).toBeLessThanOrEqual(2 * RELATIVE_ERROR[kvType]);
            expect(errors.lse, strategy).toBeLessThanOrEqual(1e-4);
          }
        }
      },
      timeout,
    );

    test.each(golden)('known results: $name', ({ options, lse, out }: GoldenCase) => {
      for (const strategy of STRATEGIES) {
        const result = rig.device.decodeSync({ ...options(), strategy });
        const values = toDoubles(result.out.data, result.out.dtype);
        const largest = Math.max(...out.map(([, value]) => Math.abs(value)));
        const bound = RELATIVE_ERROR[result.out.dtype] * largest * 4;
        for (const [index, value] of lse) expect(Math.abs(result.lse.data[index] - value)).toBeLessThanOrEqual(1e-4);
        for (const [index, value] of out) expect(Math.abs(values[index] - value)).toBeLessThanOrEqual(bound);
      }
    });

    // Where they are at hand: a clone does not hold them, and a GPU's run is whole without.
    test.each(sharedCases)(
      "another framework's cache: %s",
      (name) => {
        const options = readSharedCase(name);
        if (options.k.dtype === 'f32' || !effort.headDims.includes(options.k.shape[3])) return;
        const reference = referenceDecode(options);
        for (const strategy of STRATEGIES)
          expectClose(rig.device.decodeSync({ ...options, strategy }), reference, name);
      },
      timeout,
    );
  });

  describe('streams', () => {
    test(
      `${effort.replays} replays of a graph, over changing lengths, dirty scratch memory and poisoned outputs`,
      async () => {
        const longest = build(paged([130, 40, 77], { seed: 3 }));
        const capacity = (longest.pageTable as Int32Array).length / 3;
        using stream = rig.device.createStream();
        const there = new Placed(rig.device, longest);
        // A decode of NaN whose partials lie where the graph's will: scratch memory may hold anything.
        const nan = build(paged([130, 130, 130, 130], { seed: 4 }));
        nan.q.data.fill(nan.q.dtype === 'f16' ? 0x7e00 : 0x7fc0);
        const dirt = new Placed(rig.device, nan);
        stream.decode(dirt.options);
        const graph = stream.capture(() => stream.decode(there.options));
        const turned = (turn: number) => [0, 1, 2].map((i) => (i + turn) % 3);
        const known = new Map<string, DecodeResult>();
        for (let replay = 0; replay < effort.replays; ++replay) {
          const own = [(replay * 37) % 131, (replay * 11) % 41, (replay * 53) % 78];
          const order = turned(replay % 3);
          const contextLengths = Int32Array.from(order, (i) => own[i]);
          const pageTable = Int32Array.from(
            order.flatMap((i) => [...(longest.pageTable as Int32Array).subarray(i * capacity, (i + 1) * capacity)]),
          );
          stream.upload(contextLengths, there.options.contextLengths);
          stream.upload(pageTable, there.options.pageTable as DeviceTensor);
          there.poison(stream);
          if (replay % 7 === 0) stream.decode(dirt.options);
          stream.launch(graph);
          const result = await there.result(stream);
          const options = { ...longest, contextLengths, pageTable };
          // The reference for some, the bits of a call of its own for all.
          if (replay < 20) expectClose(result, referenceDecode(options), `replay ${replay}`);
          const key = `${contextLengths}; ${order}`;
          const before = known.get(key) ?? rig.device.decodeSync(options);
          known.set(key, before);
          expectSameBits(result, before, `replay ${replay}`);
        }
        for (const placed of [there, dirt]) placed.dispose();
      },
      timeout,
    );

    test(
      `two streams at once, ${effort.stepsOfTwoStreams} steps`,
      async () => {
        const cases = [build(paged([300, 20])), build(paged([9, 160, 80], { numKvHeads: 1, groupSize: 8, seed: 6 }))];
        const expected = cases.map((options) => rig.device.decodeSync(options));
        const streams = cases.map(() => rig.device.createStream());
        const placed = cases.map((options) => new Placed(rig.device, options));
        for (let step = 0; step < effort.stepsOfTwoStreams; ++step) {
          for (const [i, stream] of streams.entries()) {
            placed[i].poison(stream);
            for (let layer = 0; layer < 3; ++layer) stream.decode(placed[i].options);
          }
          const results = await Promise.all(placed.map((one, i) => one.result(streams[i])));
          for (const [i, result] of results.entries()) expectSameBits(result, expected[i], `step ${step}, stream ${i}`);
        }
        for (const one of [...streams, ...placed]) one.dispose();
      },
      timeout,
    );

    test(
      `${effort.decodes} decodes: memory stays flat`,
      async () => {
        const cases = [
          build(paged([64, 3])),
          build(paged([5], { numKvHeads: 1 })),
          build(paged([90], { headDim: 128 })),
        ];
        using stream = rig.device.createStream();
        const placed = cases.map((options) => new Placed(rig.device, options));
        const run = async (decodes: number): Promise<void> => {
          for (let i = 0; i < decodes; ++i) {
            stream.decode(placed[i % 3].options);
            if (i % 50 === 49) await stream.finish();
          }
          await stream.finish();
          globalThis.gc?.();
        };
        await run(Math.ceil(effort.decodes / 10));
        const [bytes, host] = [rig.bytesInUse(), process.memoryUsage().rss];
        await run(effort.decodes);
        expect(rig.bytesInUse() - bytes).toBeLessThanOrEqual(effort.slackBytes);
        expect(process.memoryUsage().rss - host).toBeLessThan(64 * 2 ** 20);
        for (const [i, one] of placed.entries()) {
          expectSameBits(await one.result(stream), rig.device.decodeSync(cases[i]), `case ${i}`);
          one.dispose();
        }
      },
      timeout,
    );
  });
}
