// The KV cache on the CUDA device: the same calls as on the CPU device of the same addon leave the same rows in the pages
// and give the same attention.
import type { Device, KvCache, RotaryOptions, Sequence, Tensor } from 'lean-attention';
import { describe, expect, test } from 'vitest';
import { toDoubles } from './helpers/numbers';
import { random } from './helpers/random';
import { failure, useRehearsedCuda } from './helpers/rehearsed-cuda';

const cuda = useRehearsedCuda();
const SHAPE = { layers: 2, numKvHeads: 2, headDim: 64, pageTokens: 16, tokens: 400 } as const;
const QUERY_HEADS = 6;

type Numbers = (shape: readonly number[], dtype?: Tensor['dtype']) => Tensor;

function numbers(seed: number): Numbers {
  const rng = random(seed);
  return (shape, dtype = 'f32') => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => rng.normal());
    return cuda.library.convert(cuda.library.tensor(values, shape), dtype);
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
function relative(a: Tensor, b: Tensor): number {
  const [x, y] = [toDoubles(a.data, a.dtype), toDoubles(b.data, b.dtype)];
  let [difference, norm] = [0, 0];
  for (const [i, value] of y.entries()) {
    difference += (x[i] - value) ** 2;
    norm += value ** 2;
  }
  return Math.sqrt(difference / norm);
}

describe('the CUDA device agrees with the CPU', () => {
  test.each<['f16' | 'bf16', RotaryOptions | undefined]>([
    ['f16', undefined],
    ['bf16', {}],
    ['f16', { pairing: 'interleaved', dims: 32, scaling: { type: 'yarn', factor: 4, originalContext: 64 } }],
  ])('%s, rotary %o', async (dtype, rotary) => {
    using cpu = cuda.library.openDevice('cpu');
    const expected = await live(cpu, dtype, rotary);
    const found = await live(cuda.device, dtype, rotary);
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
      const q = cuda.library.tensor(wide.data.subarray(64), [5, 3, 64], { strides: [9 * 64, 128, 1] });
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
    using cpu = cuda.library.openDevice('cpu');
    const expected = rotate(cpu);
    for (const [i, t] of rotate(cuda.device).entries()) expect(relative(t, expected[i])).toBeLessThan(1e-6);
  });
});

test('a cache that the kernels could not read is refused at once', async () => {
  expect(await failure(() => cuda.device.createKvCache({ ...SHAPE, dtype: 'f32' }))).toEqual({
    name: 'RangeError',
    message: 'The CUDA kernels read K and V in f16 or bf16',
  });
  expect((await failure(() => cuda.device.createKvCache({ ...SHAPE, headDim: 512 }))).name).toBe('RangeError');
  expect(await failure(() => cuda.device.createKvCache({ ...SHAPE, tokens: 1e9 }))).toMatchObject({
    code: 'OUT_OF_MEMORY',
  });
});

test('a cache of another device is refused', async () => {
  using cpu = cuda.library.openDevice('cpu', { threads: 1 });
  using cache = cpu.createKvCache({ ...SHAPE, dtype: 'f16' });
  const q = numbers(1)([1, 6, 64], 'f16');
  expect(
    await failure(() => cuda.device.decode({ q, cache, layer: 0, sequences: [cache.createSequence()] })),
  ).toMatchObject({ name: 'RangeError', message: expect.stringContaining('of the device that decodes') });
});

test('for want of memory, at every allocation of a step: nothing is lost', async () => {
  using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
  const make = numbers(1);
  const sequence = cache.createSequence();
  const [k, v] = [make([20, 2, 64], 'f16'), make([20, 2, 64], 'f16')];
  const write = (): void => cache.append([sequence], [20]).write({ layer: 0, k, v, rotary: {} });
  let failures = 0;
  for (let n = 1; n < 12; ++n) {
    using device = cuda.library.openDevice('cuda');
    using fresh = device.createKvCache({ ...SHAPE, dtype: 'f16' });
    const step = fresh.append([fresh.createSequence()], [20]);
    cuda.addon.steerCuda({ failAllocation: n });
    const failed = await failure(() => {
      step.write({ layer: 0, k, v, rotary: {} });
      throw new Error('none');
    });
    cuda.addon.steerCuda({});
    if (failed.message === 'none') break;
    ++failures;
    expect(failed.code).toBe('OUT_OF_MEMORY');
    step.write({ layer: 0, k, v, rotary: {} }); // the step can be written still
    fresh.verify();
  }
  expect(failures).toBeGreaterThan(3);
  write();
  expect(sequence.length).toBe(20);
});
