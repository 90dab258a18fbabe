// The KV cache on a CUDA device, as gpu-suite.ts has the decode: the same calls as on the CPU device leave the same rows in the
// pages and give the same attention.
import type { Device, KvCache, RotaryOptions, Sequence, Tensor } from 'lean-attention';
import { describe, expect, test } from 'vitest';
import type { Rig } from './gpu-suite';
import { convert, openDevice, tensor } from './library';
import { toDoubles } from './numbers';
import { random } from './random';

export const SHAPE = { layers: 2, numKvHeads: 2, headDim: 64, pageTokens: 16, tokens: 400 } as const;
export const QUERY_HEADS = 6;

type Numbers = (shape: readonly number[], dtype?: Tensor['dtype']) => Tensor;

export function numbers(seed: number): Numbers {
  const rng = random(seed);
  return (shape, dtype = 'f32') => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => rng.normal());
    return convert(tensor(values, shape), dtype);
  };
}

/** A server's life in small, in the same order on every device; what decode gave, in the end of each step. */
async function live(device: Device, dtype: 'f16' | 'bf16', rotary: RotaryOptions | undefined): Promise<Tensor[]> {
  using cache: KvCache = device.createKvCache({ ...SHAPE, dtype });
  const make = numbers(7);
  const results: Tensor[] = [];
  const step = async (sequences: Sequence[], counts?: number[]): Promise<void> => {
    const rows = cache.append(sequences, counts);
    for (let layer = 0; layer < SHAPE.layers; ++layer) {
      const k = make([rows.rows, 2, 64], layer === 0 ? 'f32' : dtype);
      const v = make([rows.rows, 2, 64], 'f32');
      const q = make([rows.rows, QUERY_HEADS, 64], dtype);
      rows.write({ layer, k, v, ...(rotary && { q, rotary }) });
      results.push((await device.decode({ q, cache, layer, sequences: rows })).out);
    }
    const q = make([sequences.length, QUERY_HEADS, 64], dtype);
    results.push(device.decodeSync({ q, cache, layer: 0, sequences }).out);
  };
  const [a, b] = [cache.createSequence(), cache.createSequence()];
  await step([a, b], [37, 3]);
  await step([a, b]);
  const c = a.fork();
  await step([a, c, b], [1, 20, 30]); // the page that a and c share is copied, in every layer
  a.truncate(17);
  b.free();
  const d = cache.createSequence(); // takes pages that held others' rows
  await step([d, a, c], [50, 5, 1]);
  cache.verify();
  return results;
}

/** ||a - b|| / ||b|| */
export function relative(a: Tensor, b: Tensor): number {
  const [x, y] = [toDoubles(a.data, a.dtype), toDoubles(b.data, b.dtype)];
  let [difference, norm] = [0, 0];
  for (const [i, value] of y.entries()) {
    difference += (x[i] - value) ** 2;
    norm += value ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** The tests, over the device that `rig` has when each of them runs. */
export function kvCacheSuite(rig: Rig): void {
  describe('a KV cache agrees with the CPU', () => {
    test.each<['f16' | 'bf16', RotaryOptions | undefined]>([
      ['f16', undefined],
      ['bf16', {}],
      ['f16', { pairing: 'interleaved', dims: 32, scaling: { type: 'yarn', factor: 4, originalContext: 64 } }],
    ])('%s, rotary %o', async (dtype, rotary) => {
      using cpu = openDevice('cpu');
      const expected = await live(cpu, dtype, rotary);
      const found = await live(rig.device, dtype, rotary);
      expect(found.length).toBe(expected.length);
      const bound = dtype === 'f16' ? 1e-3 : 7e-3; // each of the two is within its bound of the exact result
      for (const [i, out] of found.entries()) expect(relative(out, expected[i]), `result ${i}`).toBeLessThan(bound);
    });

    test('queries between gaps, into a target', () => {
      const rotate = (device: Device): Tensor[] => {
        using cache = device.createKvCache({ ...SHAPE, dtype: 'f16' });
        const make = numbers(3);
        const rows = cache.append([cache.createSequence()], [5]);
        const [k, v] = [make([5, 2, 64]), make([5, 2, 64])];
        const wide = make([5, 9, 64]);
        const q = tensor(wide.data.subarray(64), [5, 3, 64], { strides: [9 * 64, 128, 1] });
        const qOut = make([5, 3, 64]);
        rows.write({ layer: 0, k, v, q, qOut, rotary: {} });
        const before = wide.data.slice();
        rows.write({ layer: 1, k, v, q, rotary: {} });
        // Between the heads nothing has changed.
        for (const [i, value] of before.entries()) {
          const head = Math.floor(i / 64) % 9;
          if (head % 2 === 0 || head > 5) expect(wide.data[i]).toBe(value);
        }
        return [qOut, wide];
      };
      using cpu = openDevice('cpu');
      const expected = rotate(cpu);
      for (const [i, t] of rotate(rig.device).entries()) expect(relative(t, expected[i])).toBeLessThan(1e-6);
    });
  });

  describe('steps of a KV cache in a stream', () => {
    const ROWS = 4;
    const SHAPES = { k: [ROWS, 2, 64], v: [ROWS, 2, 64], q: [ROWS, QUERY_HEADS, 64] } as const;

    /** Which sequences take part in each step; a script that both devices follow. */
    function script(cache: KvCache): (() => Sequence[])[] {
      const all: Sequence[] = [];
      const grow =
        (...who: number[]) =>
        () =>
          who.map((index) => all[index]);
      const create = (): Sequence[] => {
        all.push(cache.createSequence());
        return [];
      };
      const fork = (index: number) => () => {
        all.push(all[index].fork());
        return [];
      };
      const free = (index: number) => () => {
        all[index].free();
        return [];
      };
      const long = Array.from({ length: 18 }, () => grow(0, 1)); // over the edge of a page
      return [
        create,
        grow(0),
        create,
        ...long,
        fork(0),
        grow(2, 0, 1),
        create,
        grow(0, 1, 2, 3),
        free(1),
        grow(3, 0),
        grow(2),
      ];
    }

    test('one captured graph serves all of them, as sequences come, grow, fork and go', async () => {
      const rotary = { base: 500 };
      using cpu = openDevice('cpu');
      using expectedCache = cpu.createKvCache({ ...SHAPE, dtype: 'f16' });
      using cache = rig.device.createKvCache({ ...SHAPE, dtype: 'f16' });
      using stream = rig.device.createStream();
      using table = cache.createTable({ rows: ROWS, maxContext: 64 });
      const alloc = (shape: readonly number[], dtype: 'f16' | 'f32' = 'f16') => rig.device.alloc(shape, { dtype });
      const layers = Array.from({ length: SHAPE.layers }, () => ({
        k: alloc(SHAPES.k),
        v: alloc(SHAPES.v),
        q: alloc(SHAPES.q),
        out: alloc(SHAPES.q),
        lse: alloc([ROWS, QUERY_HEADS], 'f32'),
      }));
      const { contextLengths, pageTable } = table;
      const graph = stream.capture(() => {
        for (const [layer, { k, v, q, out, lse }] of layers.entries()) {
          stream.write({ table, layer, k, v, q, rotary });
          stream.decode({ q, ...cache.layer(layer), contextLengths, pageTable, out, lse });
        }
      });
      const make = numbers(5);
      const expectedSteps = script(expectedCache);
      for (const [index, turn] of script(cache).entries()) {
        const sequences = turn();
        const expectedSequences = expectedSteps[index]();
        if (sequences.length === 0) continue;
        cache.append(sequences);
        table.update(stream, sequences);
        const given = layers.map(() => ({
          k: make(SHAPES.k, 'f16'),
          v: make(SHAPES.v, 'f16'),
          q: make(SHAPES.q, 'f16'),
        }));
        for (const [layer, { k, v, q }] of given.entries()) {
          stream.upload(k, layers[layer].k);
          stream.upload(v, layers[layer].v);
          stream.upload(q, layers[layer].q);
        }
        stream.launch(graph);
        const outs = await Promise.all(layers.map(({ out }) => stream.download(out)));

        const step = expectedCache.append(expectedSequences);
        const rows = (t: Tensor): Tensor => {
          const size = (t.shape[1] as number) * 64;
          return tensor(t.data.slice(0, step.rows * size), [step.rows, t.shape[1], 64], { dtype: 'f16' });
        };
        for (const [layer, { k, v, q }] of given.entries()) {
          const turned = rows(q);
          step.write({ layer, k: rows(k), v: rows(v), q: turned, rotary });
          const { out } = cpu.decodeSync({ q: turned, cache: expectedCache, layer, sequences: step });
          expect(relative(rows(outs[layer]), out), `step ${index}, layer ${layer}`).toBeLessThan(1.5e-3);
          expect(
            outs[layer].data.subarray(step.rows * QUERY_HEADS * 64).every((value) => value === 0),
            'idle',
          ).toBe(true);
        }
        cache.verify();
      }
      for (const tensors of layers) for (const t of Object.values(tensors)) t.dispose();
    });

    test('copy on write sees what was enqueued before it', async () => {
      const content = async (device: Device): Promise<Tensor> => {
        using cache = device.createKvCache({ ...SHAPE, dtype: 'f16' });
        const make = numbers(2);
        const sequence = cache.createSequence();
        const [k, v, q] = [make([1, 2, 64], 'f16'), make([1, 2, 64], 'f16'), make([1, QUERY_HEADS, 64], 'f16')];
        const step = cache.append([sequence]);
        using table = cache.createTable({ rows: 1 });
        if (device.type === 'cuda') {
          using stream = device.createStream();
          using up = device.upload(k);
          using values = device.upload(v);
          table.update(stream, [sequence]);
          stream.write({ table, layer: 0, k: up, v: values }); // and nobody waits
          const fork = sequence.fork();
          cache.append([sequence, fork]);
          return device.decodeSync({ q, cache, layer: 0, sequences: [fork] }).out;
        }
        step.write({ layer: 0, k, v });
        const fork = sequence.fork();
        cache.append([sequence, fork]);
        return device.decodeSync({ q, cache, layer: 0, sequences: [fork] }).out;
      };
      using cpu = openDevice('cpu');
      expect(relative(await content(rig.device), await content(cpu))).toBeLessThan(1e-3);
    });

    test('pages that change hands are written in the order of the calls', async () => {
      using cache = rig.device.createKvCache({ ...SHAPE, tokens: 16, dtype: 'f16' });
      using stream = rig.device.createStream();
      using table = cache.createTable({ rows: 1 });
      const row = (value: number): Tensor => convert(tensor(new Float32Array(128).fill(value), [1, 2, 64]), 'f16');
      using late = rig.device.upload(row(3));
      const first = cache.createSequence();
      cache.append([first]);
      table.update(stream, [first]);
      stream.write({ table, layer: 0, k: late, v: late }); // and nobody waits
      first.free();
      const second = cache.createSequence(); // takes the only page
      cache.append([second]).write({ layer: 0, k: row(1), v: row(1) });
      const q = numbers(1)([1, QUERY_HEADS, 64], 'f16');
      const { out } = rig.device.decodeSync({ q, cache, layer: 0, sequences: [second] });
      expect(toDoubles(out.data, 'f16').every((value) => value === 1)).toBe(true);
    });
  });
}
