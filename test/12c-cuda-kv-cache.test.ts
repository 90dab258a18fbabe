// The KV cache on the CUDA device: faults and misuse. That it agrees with the CPU device is shown where the GPU's tests are
// rehearsed (12e).
import type { Stream } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { numbers, QUERY_HEADS, SHAPE } from './helpers/gpu-suite-kv';
import { addonPath, failure, useRehearsedCuda } from './helpers/rehearsed-cuda';
import { killServers, startServer } from './helpers/server';

const cuda = useRehearsedCuda();
afterAll(killServers);

describe('steps in a stream', () => {
  test('a copy on write that fails changes nothing, and is made up for', async () => {
    using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    const make = numbers(4);
    const sequence = cache.createSequence();
    const [k, v, q] = [make([3, 2, 64], 'f16'), make([3, 2, 64], 'f16'), make([1, QUERY_HEADS, 64], 'f16')];
    cache.append([sequence], [3]).write({ layer: 0, k, v });
    const expected = cuda.device.decodeSync({ q, cache, layer: 0, sequences: [sequence] });
    const fork = sequence.fork();
    cuda.addon.steerCuda({ failLaunch: 1 });
    expect(await failure(() => cache.append([fork]))).toMatchObject({ code: 'LAUNCH_FAILED' });
    expect([fork.length, sequence.length]).toEqual([3, 3]);
    expect(await failure(() => cuda.device.decodeSync({ q, cache, layer: 0, sequences: [fork] }))).toMatchObject({
      code: 'LAUNCH_FAILED',
      message: 'A page of the KV cache could not be copied before: append again',
    });
    cache.append([sequence]);
    cache.verify();
    fork.truncate(3);
    expect(cuda.device.decodeSync({ q, cache, layer: 0, sequences: [fork] }).out).toEqual(expected.out);
  });

  test('lengths and pages that cannot be are reported by writes too; idle rows are none', async () => {
    using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    using table = cache.createTable({ rows: 2, maxContext: 32 });
    using rows = cuda.device.alloc([2, 2, 64], { dtype: 'f16' });
    using stream = cuda.device.createStream();
    const sequence = cache.createSequence();
    cache.append([sequence], [20]);
    const write = () => stream.write({ table, layer: 0, k: rows, v: rows });
    table.update(stream, [sequence]);
    write();
    await stream.finish();
    const bad = [
      [table.contextLengths, [20, -5], 'A context length is negative or longer than the cache.'],
      [table.contextLengths, [1000, 0], 'A context length is negative or longer than the cache.'],
      [table.pageTable, [0, 99_999, 0, 0], 'The page table holds a page index outside the cache.'],
    ] as const;
    for (const [target, values, message] of bad) {
      stream.upload(Int32Array.from(values), target);
      write();
      expect(await failure(() => stream.finish())).toMatchObject({ code: 'BAD_DEVICE_DATA', message });
      stream.upload(Int32Array.of(20, 0), table.contextLengths);
    }
  });

  test('a table that could not be brought up to date goes up whole the next time', async () => {
    using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    using table = cache.createTable({ rows: 2, maxContext: 32 });
    const pagesOf = async (stream: Stream): Promise<number[]> => {
      using copy = cuda.device.alloc([2, 2]);
      stream.copy(table.pageTable, copy); // i32 as f32: the same bytes
      return [...new Int32Array((await stream.download(copy)).data.buffer)];
    };
    const [a, b] = [cache.createSequence(), cache.createSequence()];
    cache.append([a, b], [20, 20]);
    using stream = cuda.device.createStream();
    using other = cuda.device.createStream();
    expect(() => stream.capture(() => table.update(stream, [b, a]))).toThrow('got upload()');
    table.update(stream, [b, a]);
    const pages = await pagesOf(stream);
    expect(new Set(pages).size).toBe(4);
    cuda.device.upload(new Int32Array(4), table.pageTable);
    table.update(other, [b, a]);
    expect(await pagesOf(other)).toEqual(pages);
  });

  test('a table is brought up to date without a wait for the steps before it', async () => {
    using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    using stream = cuda.device.createStream();
    using table = cache.createTable({ rows: 1, maxContext: 64 });
    using rows = cuda.device.alloc([1, 2, 64], { dtype: 'f16' });
    const sequence = cache.createSequence();
    const { waits } = cuda.addon.cudaAlive();
    for (let step = 0; step < 20; ++step) {
      cache.append([sequence]);
      table.update(stream, [sequence]);
      stream.write({ table, layer: 0, k: rows, v: rows });
    }
    expect(cuda.addon.cudaAlive().waits).toBe(waits);
    await stream.finish();
  });

  test('layers are the same tensors until the cache is disposed', () => {
    const cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    const { k } = cache.layer(1);
    expect(cache.layer(1).k).toBe(k);
    const { bytes } = cuda.addon.cudaAlive();
    cache.dispose();
    expect(k.pointer).toBe(0n);
    expect(bytes - cuda.addon.cudaAlive().bytes).toBeGreaterThanOrEqual(cache.bytes);
  });

  test('misuse is named before anything is enqueued', async () => {
    using cache = cuda.device.createKvCache({ ...SHAPE, dtype: 'f16' });
    using stream = cuda.device.createStream();
    using table = cache.createTable({ rows: 2, maxContext: 32 });
    using k = cuda.device.alloc([2, 2, 64], { dtype: 'f16' });
    using v = cuda.device.alloc([2, 2, 64], { dtype: 'f16' });
    using wide = cuda.device.alloc([2, 4, 64], { dtype: 'f16' });
    const packed = cuda.device.wrap(wide.pointer, [2, 2, 64], { dtype: 'f16' });
    const spread = cuda.device.wrap(wide.pointer, [2, 2, 64], { dtype: 'f16', strides: [256, 64, 1] });
    const { launches } = cuda.addon.cudaAlive();
    const sequences = [0, 1, 2].map(() => cache.createSequence());
    cache.append(sequences, [33, 1, 1]);
    const messages: [() => unknown, string][] = [
      [() => table.update(undefined as never, []), 'Expected `stream` to be a Stream, got undefined'],
      [() => table.update(stream, undefined as never), 'Expected `sequences` to be an array, got undefined'],
      [() => table.update(stream, sequences), "Expected at most 2 sequences, the table's rows, got 3"],
      [
        () => table.update(stream, [sequences[0]]),
        "Expected `sequences[0]` to take at most 2 pages, the table's columns, got 3",
      ],
      [() => stream.write({ table, layer: 2, k, v }), 'Expected `layer` to be an integer from 0 to 1, got 2'],
      [
        () => stream.write({ table, layer: 0, k: k.slice(0, 1), v }),
        'Expected `k` shape to be [2, 2, 64], got [1, 2, 64]',
      ],
      [() => stream.write({ table, layer: 0, k, v, q: k }), 'Expected `q` only with `rotary`, got it alone'],
      [
        () => table.update(stream, [sequences[1], sequences[1]]),
        'Expected `sequences[1]` once in a batch, got it twice',
      ],
      [
        () => stream.write({ table, layer: 0, k, v, q: k, qOut: v, rotary: {} }),
        'Expected `qOut` to have memory of its own, got memory that `v` uses too',
      ],
      [
        () => stream.write({ table, layer: 0, k, v, q: spread, qOut: packed, rotary: {} }),
        'Expected `qOut` to have memory of its own, got memory that `q` uses too',
      ],
      [
        () => stream.write({ table, layer: 0, k, v, q: k, rotary: {} }),
        'Expected `q` to have memory of its own, got memory that `k` uses too',
      ],
      [() => stream.write({ table: {} as never, layer: 0, k, v }), 'Expected `table` to be a KvTable, got a Object'],
      [() => cache.createTable({ rows: 0 }), 'Expected `rows` to be an integer from 1 to 2147483647, got 0'],
      [() => cache.layer(-1), 'Expected `layer` to be an integer from 0 to 1, got -1'],
    ];
    for (const [call, message] of messages) expect((await failure(call)).message).toBe(message);
    expect(cuda.addon.cudaAlive().launches).toBe(launches);
    cache.dispose();
    expect(await failure(() => stream.write({ table, layer: 0, k, v }))).toMatchObject({ code: 'CACHE_DISPOSED' });
  });
});

test("the example's server over it writes the CPU's text", async () => {
  const flags = ['--dtype', 'f16', '--cache-tokens', '256'];
  const servers = await Promise.all([
    startServer(['--device', 'cuda', ...flags], { LEAN_ATTENTION_ADDON: addonPath }),
    startServer(['--device', 'cpu', ...flags]),
  ]);
  const completion = { prompt: 'A server on a GPU', max_tokens: 6, temperature: 0 };
  const texts = await Promise.all(
    servers.map(async (server) => (await server.complete(completion)).body.choices[0].text),
  );
  expect(texts[0].length).toBeGreaterThan(0);
  expect(texts[0]).toBe(texts[1]);
  for (const server of servers) expect(await server.stop()).toBe(0);
});

test('a cache that the kernels could not read is refused at once', async () => {
  expect(await failure(() => cuda.device.createKvCache({ ...SHAPE, dtype: 'f32' }))).toEqual({
    name: 'RangeError',
    message: "Expected the dtype of K and V to be 'f16' or 'bf16' on a CUDA device, got 'f32'",
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
