// Device memory, streams, events and graphs, over the rehearsed CUDA runtime. Its streams do their work as late as they
// may and its freed memory is poisoned, so whatever lets go of memory too early gives a wrong result here.
import type { DecodeOptions, DecodeResult, DeviceTensor, Stream, StreamDecodeOptions, Tensor } from 'lean-attention';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { build, type Case } from './helpers/cases';
import { expectClose, expectSameBits } from './helpers/compare';
import { referenceDecode } from './helpers/library';
import { collectGarbage, failure, poisonedOutputs, SMALL, useRehearsedCuda } from './helpers/rehearsed-cuda';

const cuda = useRehearsedCuda();

// What a test puts on the device goes with it, so that the leak check at the end means something.
let placed: { dispose(): void }[] = [];
let stream: Stream;
beforeEach(() => {
  stream = cuda.device.createStream();
});
afterEach(() => {
  for (const thing of placed.reverse()) thing.dispose();
  placed = [];
  stream.dispose();
});

function keep<T extends { dispose(): void }>(thing: T): T {
  placed.push(thing);
  return thing;
}

/** A case whose tensors, lengths and pages lie on the device; outputs hold NaN. */
function place(options: DecodeOptions, device = cuda.device): StreamDecodeOptions {
  const { q, k, v, contextLengths, pageTable, layout } = options;
  const { out, lse } = poisonedOutputs(cuda.library, options);
  const up = (source: Tensor | Int32Array): DeviceTensor => keep(device.upload(source));
  const table = keep(device.alloc([q.shape[0], (pageTable as Int32Array).length / q.shape[0]], { dtype: 'i32' }));
  return {
    q: up(q),
    k: up(k),
    v: up(v),
    contextLengths: up(Int32Array.from(contextLengths as Int32Array)),
    pageTable: device.upload(pageTable as Int32Array, table),
    out: up(out),
    lse: up(lse),
    ...(layout && { layout }),
  };
}

async function result({ out, lse }: StreamDecodeOptions): Promise<DecodeResult> {
  return { out: await stream.download(out), lse: await stream.download(lse) };
}

const paged = (change: Partial<Case> = {}): DecodeOptions => build({ ...SMALL, pageTokens: 16, ...change });

describe.each(['cuda', 'cpu'] as const)('memory of the device %s', (spec) => {
  const opened = () => keep(cuda.library.openDevice(spec));
  const half = (values: number[], shape: number[], strides?: number[]): Tensor =>
    cuda.library.tensor(Uint16Array.from(values), shape, { dtype: 'f16', ...(strides && { strides }) });

  test('what goes up comes down, strided sources in order, into a target too', () => {
    const device = opened();
    const up = keep(device.upload(half([1, 9, 2, 9, 3, 9], [3], [2])));
    expect([up.dtype, up.shape, up.strides, up.bytes]).toEqual(['f16', [3], [1], 6]);
    expect([...device.download(up).data]).toEqual([1, 2, 3]);
    device.upload(half([4, 5, 6], [3]), up);
    const target = half([0, 0, 0], [3]);
    expect(device.download(up, target)).toBe(target);
    expect([...target.data]).toEqual([4, 5, 6]);
    const floats = keep(device.upload(cuda.library.tensor(Float32Array.of(1.5, -2), [1, 2])));
    expect([...device.download(floats).data]).toEqual([1.5, -2]);
    expect(keep(device.upload(Int32Array.of(1, 2))).dtype).toBe('i32');
    expect(keep(device.alloc([0, 4])).bytes).toBe(0);
  });

  test('how much there is', () => {
    const device = opened();
    const { freeBytes, totalBytes } = device.memory();
    expect(freeBytes).toBeGreaterThan(0);
    expect(totalBytes).toBeGreaterThanOrEqual(freeBytes);
    if (spec === 'cpu') return;
    expect(totalBytes).toBe(2 ** 30);
    keep(device.alloc([1 << 20]));
    expect(device.memory()).toEqual({ freeBytes: freeBytes - (4 << 20), totalBytes });
  });

  test('a part of the first axis, in the same memory', async () => {
    const device = opened();
    const whole = keep(device.upload(half([1, 2, 3, 4, 5, 6], [3, 2])));
    const part = whole.slice(1, 3);
    expect([part.shape, part.bytes, part.pointer - whole.pointer]).toEqual([[2, 2], 8, 4n]);
    device.upload(half([7, 8, 9, 10], [2, 2]), part);
    expect([...device.download(whole).data]).toEqual([1, 2, 7, 8, 9, 10]);
    expect([...device.download(part.slice(1, 2)).data]).toEqual([9, 10]);
    expect(whole.slice(3, 3).bytes).toBe(0);
    expect(() => whole.slice(0, 4)).toThrow('Expected `end` to be an integer from 0 to 3, got 4');
    part.dispose();
    expect(whole.pointer).toBe(0n);
  });

  test('memory by its address', async () => {
    const device = opened();
    const owner = keep(device.upload(half([1, 2, 3, 4], [4])));
    expect(typeof owner.pointer).toBe('bigint');
    const second = device.wrap(owner.pointer + 4n, [2], { dtype: 'f16' });
    expect([...device.download(second).data]).toEqual([3, 4]);
    second.dispose(); // the owner's memory stays
    expect([...device.download(owner).data]).toEqual([1, 2, 3, 4]);
    expect(await failure(() => device.wrap(0n, [2]))).toEqual({
      name: 'RangeError',
      message: 'Expected `pointer` to be an address of 64 bits that is not 0',
    });
    expect((await failure(() => device.wrap(7 as unknown as bigint, [2]))).message).toBe(
      'Expected `pointer` to be a BigInt, got 7',
    );
  });

  test.each(['q', 'k', 'v'] as const)('decode with %s there gives the same bits', async (name) => {
    const device = opened();
    const options = paged();
    const there = { ...options, [name]: keep(device.upload(options[name])) };
    const expected = device.decodeSync(options);
    expectClose(expected, referenceDecode(options));
    expectSameBits(device.decodeSync(there), expected, 'synchronous');
    expectSameBits(await device.decode(there), expected, 'asynchronous');
  });

  test('disposed tensors, and tensors of another device, are named', async () => {
    const device = opened();
    const options = paged();
    const k = device.upload(options.k);
    const call = device.decode({ ...options, k });
    k.dispose();
    k.dispose();
    expect(k.pointer).toBe(0n);
    expectClose(await call, referenceDecode(options)); // the call had begun
    expect(await failure(() => device.decodeSync({ ...options, k }))).toEqual({
      name: 'RangeError',
      message: 'Expected `k` to hold memory, got a tensor that was disposed',
    });
    const other = keep(cuda.library.openDevice(spec === 'cuda' ? 'cuda:1' : 'cpu'));
    const foreign = keep(other.upload(options.k));
    expect((await failure(() => device.decodeSync({ ...options, k: foreign }))).message).toMatch(
      /^Expected `k` to be memory of the device .* as it was opened for this call, got memory of /,
    );
  });

  test('misuse', async () => {
    const device = opened();
    const up = keep(device.upload(half([1, 2, 3], [3])));
    const messages: [() => unknown, string][] = [
      [() => device.alloc([-1]), 'Expected `shape[0]` to be an integer of at least 0, got -1'],
      [
        () => device.alloc([2 ** 40, 2 ** 40]),
        'Expected `shape` to be one that memory can hold, got [1099511627776, 1099511627776]',
      ],
      [
        () => device.alloc([2], { dtype: 'f64' as 'f32' }),
        "Expected `dtype` to be one of 'f32', 'f16', 'bf16', 'i32', got 'f64'",
      ],
      [
        () => device.alloc([2], { strides: [1, 1] }),
        'Expected `strides` to have an entry for each of the 1 axes, got 2',
      ],
      [() => device.upload([1] as never), 'Expected `source` to be a tensor (see tensor()), got an array'],
      [() => device.upload(half([1, 2], [2]), up), 'Expected `target` to be contiguous, of shape [2], got [3]'],
      [() => device.upload(Int32Array.of(1, 2, 3), up), "Expected `target` dtype to be 'i32', got 'f16'"],
      [
        () => device.download(half([1], [1]) as never),
        "Expected `source` to be a tensor in the device's memory (see device.upload()), got a Object",
      ],
      [() => device.download(up, half([1], [1])), 'Expected `target` to be contiguous, of shape [3], got [1]'],
      [
        () => device.download(keep(device.upload(Int32Array.of(1)))),
        "Expected `source` dtype to be 'f32', 'f16' or 'bf16', got 'i32'",
      ],
      [
        () => device.decodeSync({ q: up, k: up, v: up }),
        'Expected `q` shape to be [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim], got [3]',
      ],
    ];
    for (const [call, message] of messages) expect((await failure(call)).message).toBe(message);
  });
});

describe('streams', () => {
  test.each<[string, Partial<Case>]>([
    ['pages of 16', {}],
    ['bf16, head-major', { qType: 'bf16', kvType: 'bf16', layout: 'HND' }],
    ['several queries', { queryLen: 3, contexts: [70, 2] }],
    ['head dim 128, pages of 7', { headDim: 128, pageTokens: 7, contexts: [65, 90] }],
    ['all contexts empty', { contexts: [0, 0] }],
  ])('decode gives the bits of device.decode: %s', async (_, change) => {
    const options = paged(change);
    for (const strategy of ['lean', 'flash-attention-2'] as const) {
      const there = place(options);
      stream.decode({ ...there, strategy });
      expectSameBits(await result(there), cuda.device.decodeSync({ ...options, strategy }), strategy);
    }
    const there = place(options);
    stream.decode({ ...there, strategy: 'fixed-split', splits: 2 });
    expectClose(await result(there), referenceDecode(options));
  });

  test('a contiguous cache, launched otherwise', async () => {
    const options = build(SMALL);
    const lengths = keep(cuda.device.upload(Int32Array.from(options.contextLengths as Int32Array)));
    const { pageTable: _, ...there } = place(paged());
    const [q, k, v] = [options.q, options.k, options.v].map((t) => keep(cuda.device.upload(t)));
    const call = { ...there, q, k, v, contextLengths: lengths, workers: 5, launch: { copies: 'bulk' } } as const;
    stream.decode(call);
    expectSameBits(await result(there as StreamDecodeOptions), cuda.device.decodeSync({ ...options, workers: 5 }), '');
  });

  test('its workspace takes what the plan says, and no more for a smaller call', () => {
    using fresh = cuda.device.createStream();
    const used = () => cuda.addon.cudaAlive().bytes;
    const options = paged({ contexts: [130, 40, 77] });
    const there = place(options);
    const plan = cuda.device.plan({
      ...{ numQueryHeads: 8, numKvHeads: 2, headDim: 64 },
      contextLengths: options.contextLengths as Int32Array,
    });
    const before = used();
    fresh.decode(there);
    expect(used() - before).toBe(plan.workspaceBytes);
    fresh.decode({ ...there, workers: 2 });
    expect(used() - before).toBe(plan.workspaceBytes);
  });

  test('memory that is let go after the call is kept until the work is over', async () => {
    const options = paged();
    const there = place(options);
    const [out, lse] = [
      keep(cuda.device.alloc(there.out.shape, { dtype: 'f16' })),
      keep(cuda.device.alloc(there.lse.shape)),
    ];
    stream.decode({ ...there, out, lse });
    for (const thing of placed.filter((thing) => thing !== out && thing !== lse)) thing.dispose();
    const promise = stream.download(out);
    stream.dispose();
    await collectGarbage();
    expectSameBits(
      { out: await promise, lse: cuda.device.download(lse) },
      cuda.device.decodeSync(options),
      'after everything was dropped',
    );
  });

  test('sources of uploads may change at once; copies on the device', async () => {
    const source = cuda.library.tensor(Float32Array.of(1, 2, 3), [3]);
    const [a, b] = [keep(cuda.device.alloc([3])), keep(cuda.device.alloc([3]))];
    stream.upload(source, a);
    source.data.fill(9);
    stream.copy(a, b);
    stream.upload(source, a);
    expect([...(await stream.download(b)).data]).toEqual([1, 2, 3]);
    expect([...(await stream.download(a)).data]).toEqual([9, 9, 9]);
  });

  describe('uploads go through pinned memory', () => {
    const MIB = 2 ** 20;
    const count = () => cuda.addon.cudaAlive();

    /** Distinct numbers in this many bytes, where they are to go, and what is to be found there. */
    function numbered(bytes: number, first = 0): { source: Tensor; target: DeviceTensor; expected: Float32Array } {
      const source = cuda.library.tensor(new Float32Array(bytes / 4), [bytes / 4]);
      for (let i = 0; i < bytes / 4; ++i) source.data[i] = first + i;
      return {
        source,
        target: keep(cuda.device.alloc(source.shape)),
        expected: Float32Array.from(source.data as Float32Array),
      };
    }
    async function expectThere({ target, expected }: ReturnType<typeof numbered>): Promise<void> {
      const { data } = await stream.download(target);
      expect(Buffer.compare(Buffer.from(data.buffer), Buffer.from(expected.buffer))).toBe(0);
    }

    test('large ones in parts, and their sources may change at once', async () => {
      const uploads = [numbered(4), numbered(2.5 * MIB, 7), numbered(20), numbered(MIB, 1)];
      for (const { source, target } of uploads) {
        stream.upload(source, target);
        source.data.fill(Number.NaN);
      }
      for (const upload of uploads) await expectThere(upload);
    });

    test('and wait for the oldest of it, once 8 MiB are in use', async () => {
      const [first, second, third] = [0, 1, 2].map((i) => numbered(4 * MIB, i));
      const before = count();
      stream.upload(first.source, first.target);
      stream.upload(second.source, second.target);
      expect(count()).toMatchObject({ waits: before.waits, pinned: before.pinned + 8 });
      stream.upload(third.source, third.target);
      expect(count()).toMatchObject({ waits: before.waits + 4, pinned: before.pinned + 8 });
      for (const upload of [first, second, third]) await expectThere(upload);
    });

    test('of a fixed size, without a wait, while the device keeps up', async () => {
      const one = numbered(200_000);
      const up = (): void => {
        stream.copy(one.target, one.target); // what a wait would be for
        const { waits } = count();
        stream.upload(one.source, one.target);
        expect(count().waits).toBe(waits);
      };
      for (let step = 0; step < 8; ++step) {
        up();
        await stream.finish();
      }
      const before = count();
      for (let step = 0; step < 40; ++step) {
        up();
        await stream.finish();
      }
      expect(count()).toMatchObject({ pinned: before.pinned, events: before.events });
      await expectThere(one);
    });

    test('of which there may be too little: the first cannot go up, later ones wait', async () => {
      const [first, second] = [numbered(MIB), numbered(5 * MIB, 9)];
      cuda.addon.steerCuda({ failPinned: 1 });
      expect(await failure(() => stream.upload(first.source, first.target))).toEqual({
        name: 'LeanAttentionError',
        code: 'OUT_OF_MEMORY',
        message:
          'Not enough host memory can be pinned for copies: asked for 1 MiB; free some, or raise the limit of this process or container',
      });
      stream.upload(first.source, first.target);
      const before = count();
      for (let n = 1; n < 6; ++n) {
        cuda.addon.steerCuda({ failPinned: n });
        stream.upload(second.source, second.target);
        second.source.data.fill(n);
        await expectThere(second);
        second.expected.fill(n);
      }
      expect(count().waits).toBeGreaterThan(before.waits);
      await expectThere(first);
    });

    test('which a stream that is let go keeps until they are over', async () => {
      const one = numbered(3 * MIB);
      using other = cuda.device.createStream();
      other.upload(one.source, one.target);
      const event = other.record();
      stream.wait(event);
      other.dispose();
      await collectGarbage();
      await expectThere(one);
    });

    test('and say that the device is lost', async () => {
      const [one, call] = [numbered(9 * MIB), place(paged())];
      cuda.addon.steerCuda({ loseDevice: 1 });
      stream.decode(call);
      expect(await failure(() => stream.upload(one.source, one.target))).toMatchObject({ code: 'DEVICE_LOST' });
    });
  });

  test("the device's own calls come after what was enqueued before them", async () => {
    const [a, b] = [1, 2].map((value) => keep(cuda.device.upload(cuda.library.tensor(Float32Array.of(value), [1]))));
    stream.copy(a, b);
    expect([...cuda.device.download(b).data]).toEqual([1]);
    stream.copy(b, a);
    cuda.device.upload(cuda.library.tensor(Float32Array.of(5), [1]), b); // what was enqueued has read it
    expect([...(await stream.download(a)).data]).toEqual([1]);
    const options = paged();
    const there = place(options);
    stream.upload(options.k, there.k);
    const source = keep(cuda.device.alloc(there.k.shape, { dtype: 'f16' }));
    const three = keep(cuda.device.alloc([3]));
    expect(() => stream.copy(three.slice(0, 2), three.slice(1, 3))).toThrow(
      new RangeError('Expected `target` to have memory of its own, got memory that `source` uses too'),
    );
    stream.copy(source, there.k); // zeros
    const zeroed = {
      ...options,
      k: cuda.library.tensor(new Uint16Array(options.k.data.length), options.k.shape, { dtype: 'f16' }),
    };
    expectSameBits(
      await cuda.device.decode({ ...options, k: there.k }),
      cuda.device.decodeSync(zeroed),
      'asynchronous',
    );
  });

  test('a target that is resized or transferred while it is written to', async () => {
    const up = keep(cuda.device.upload(cuda.library.tensor(new Float32Array(4), [4])));
    const resizable = Reflect.construct(ArrayBuffer, [16, { maxByteLength: 32 }]) as ArrayBuffer;
    expect(await failure(() => stream.download(up, cuda.library.tensor(new Float32Array(resizable), [4])))).toEqual({
      name: 'TypeError',
      message:
        'Expected `target` of an asynchronous call to lie in a buffer of fixed length, got a resizable ArrayBuffer',
    });
    const data = new Float32Array(4);
    const promise = stream.download(up, cuda.library.tensor(data, [4]));
    structuredClone(data.buffer, { transfer: [data.buffer] });
    expect(await failure(() => promise)).toMatchObject({ code: 'BUFFER_DETACHED' });
  });

  test('of two devices at once', async () => {
    const devices = ['cuda:1', 'cuda:0'].map((name) => keep(cuda.library.openDevice(name as 'cuda:1')));
    const streams = devices.map((device) => keep(device.createStream()));
    const options = paged();
    const expected = cuda.device.decodeSync(options);
    const calls = devices.map((device) => place(options, device));
    const graphs = streams.map((one, i) => one.capture(() => one.decode(calls[i])));
    for (let round = 0; round < 3; ++round) {
      for (const [i, one] of streams.entries()) {
        one.upload(poisonedOutputs(cuda.library, options).out, calls[i].out);
        if (round % 2 === 0) one.decode(calls[i]);
        else one.launch(graphs[i]);
        streams[1 - i].wait(one.record());
      }
      const outs = await Promise.all(streams.map((one, i) => one.download(calls[i].out)));
      for (const out of outs) expectSameBits({ out, lse: expected.lse }, expected, `round ${round}`);
    }
    for (const [i, device] of devices.entries()) {
      expectSameBits(await device.decode({ ...options, k: calls[i].k }), expected, device.name);
    }
  });

  test('a plain read leaves everything as it is, in a graph too', async () => {
    const source = cuda.library.tensor(Float32Array.of(1, 2, 3, 4, 5), [5]);
    const up = keep(cuda.device.upload(source));
    const { launches } = cuda.addon.cudaAlive();
    stream.read(up);
    const graph = stream.capture(() => stream.read(up));
    stream.launch(graph);
    expect([...(await stream.download(up)).data]).toEqual([1, 2, 3, 4, 5]);
    expect(cuda.addon.cudaAlive().launches).toBe(launches + 2);
    const odd = cuda.device.wrap(up.pointer + 4n, [4]);
    expect(() => stream.read(odd)).toThrow('Expected `source` to begin at a multiple of 16 bytes');
    expect(() => stream.read(source as never)).toThrow("Expected `source` to be a tensor in the device's memory");
  });

  test('downloads in flight at once keep apart', async () => {
    const tensors = Array.from({ length: 9 }, (_, i) =>
      keep(cuda.device.upload(cuda.library.tensor(new Float32Array(i + 1).fill(i), [i + 1]))),
    );
    const back = await Promise.all(tensors.map((t) => stream.download(t)));
    expect(back.map(({ data }) => [...data])).toEqual(tensors.map((_, i) => new Array(i + 1).fill(i)));
  });

  test('two streams: one waits for an event of the other', async () => {
    using other = cuda.device.createStream();
    const options = paged();
    const there = place(options);
    const copy = keep(cuda.device.alloc(there.out.shape, { dtype: 'f16' }));
    stream.decode(there);
    const event = stream.record();
    other.wait(event);
    other.copy(there.out, copy);
    const out = await other.download(copy);
    expectSameBits({ out, lse: await stream.download(there.lse) }, cuda.device.decodeSync(options), '');
    const later = stream.record();
    expect(() => later.millisecondsSince(event)).toThrow('Expected both events to have happened; await finish() first');
    await stream.finish();
    expect(later.millisecondsSince(event)).toBe(1);
  });

  test('memory stays flat over many steps, whatever their shapes', async () => {
    const cases = [paged(), paged({ contexts: [5], numKvHeads: 1 }), paged({ contexts: [200, 3], headDim: 128 })];
    const calls = cases.map((options) => place(options));
    const step = async (): Promise<void> => {
      for (const call of calls) stream.decode(call);
      await stream.finish();
    };
    for (let i = 0; i < 3; ++i) await step();
    const before = cuda.addon.cudaAlive();
    for (let i = 0; i < 50; ++i) await step();
    await collectGarbage();
    expect({ ...cuda.addon.cudaAlive(), launches: 0, waits: 0 }).toEqual({ ...before, launches: 0, waits: 0 });
  });

  test('the CPU has none', async () => {
    using cpu = cuda.library.openDevice('cpu');
    expect(await failure(() => cpu.createStream())).toEqual({
      name: 'LeanAttentionError',
      code: 'UNSUPPORTED',
      message: 'Streams need a CUDA device; on the CPU, await device.decode()',
    });
  });
});

describe('graphs', () => {
  test('stay right when lengths and page tables change between replays', async () => {
    const longest = paged({ contexts: [130, 40, 77], seed: 3 });
    const there = place(longest);
    const graph = stream.capture(() => {
      stream.decode(there);
      stream.decode({ ...there, strategy: 'flash-attention-2' });
      stream.decode(there);
    });
    const poison = poisonedOutputs(cuda.library, longest);
    const capacity = (longest.pageTable as Int32Array).length / 3;
    for (let replay = 0; replay < 60; ++replay) {
      const contextLengths = Int32Array.of((replay * 37) % 131, (replay * 11) % 41, (replay * 53) % 78);
      // The sequences change places every other time.
      const turn = replay % 3;
      const order = [0, 1, 2].map((i) => (i + turn) % 3);
      const lengths = Int32Array.from(order, (i) => contextLengths[i]);
      const pageTable = Int32Array.from(
        order.flatMap((i) => [...(longest.pageTable as Int32Array).subarray(i * capacity, (i + 1) * capacity)]),
      );
      stream.upload(poison.out, there.out);
      stream.upload(poison.lse, there.lse);
      stream.upload(lengths, there.contextLengths);
      stream.upload(pageTable, there.pageTable as DeviceTensor);
      stream.launch(graph);
      const expected = cuda.device.decodeSync({ ...longest, contextLengths: lengths, pageTable });
      expectSameBits(await result(there), expected, `replay ${replay}`);
    }
  });

  test('a graph keeps its workspace and tensors when the stream outgrows them', async () => {
    const small = paged({ contexts: [20] });
    const there = place(small);
    const graph = stream.capture(() => stream.decode(there));
    const expected = cuda.device.decodeSync(small);
    for (const name of ['q', 'k', 'v', 'contextLengths'] as const) there[name].dispose();
    const large = paged({ contexts: [300, 200, 100], headDim: 128 });
    const more = place(large);
    stream.decode(more);
    stream.launch(graph);
    stream.decode(more);
    stream.launch(graph);
    expectSameBits(await result(there), expected, 'graph');
    expectSameBits(await result(more), cuda.device.decodeSync(large), 'stream');
  });

  test('a graph that is dropped once it was launched does its work', async () => {
    const options = paged();
    const there = place(options);
    (() => stream.launch(stream.capture(() => stream.decode(there))))();
    for (const name of ['q', 'k', 'v', 'contextLengths'] as const) there[name].dispose();
    await collectGarbage();
    expectSameBits(await result(there), cuda.device.decodeSync(options), '');
  });

  test('keeps memory that another tensor names by its address', async () => {
    const options = paged();
    const there = place(options);
    const alias = cuda.device.wrap(there.k.pointer, there.k.shape, { dtype: 'f16' }); // owns nothing
    const graph = stream.capture(() => {
      stream.decode({ ...there, k: alias });
      stream.decode(there);
    });
    there.k.dispose();
    await collectGarbage();
    stream.launch(graph);
    expectSameBits(await result(there), cuda.device.decodeSync(options), '');
  });

  test('a graph of a stream that is gone is refused by every other', async () => {
    const there = place(paged());
    for (let round = 0; round < 5; ++round) {
      const first = cuda.device.createStream();
      const graph = first.capture(() => stream && first.decode(there));
      first.dispose();
      await collectGarbage();
      using second = cuda.device.createStream();
      expect(() => second.launch(graph)).toThrow('Expected a graph that was captured from this stream');
    }
  });

  test('a body that fails leaves the stream as it was', async () => {
    const options = paged();
    const there = place(options);
    const oops = new Error('oops');
    expect(() =>
      stream.capture(() => {
        stream.decode(there);
        throw oops;
      }),
    ).toThrow(oops);
    const passing = cuda.device.createStream();
    const failing = () =>
      passing.capture(() => {
        passing.decode(there);
        passing.dispose();
        throw new Error('of the body');
      });
    expect(failing).toThrow(new Error('of the body'));
    expect(() => stream.capture((async () => {}) as () => void)).toThrow(
      'Expected `body` to return nothing (it must not be async), got a Promise',
    );
    expect(() => stream.capture(() => stream.capture(() => {}))).toThrow(
      'Expected one capture at a time, got a capture inside a capture',
    );
    expect(() => stream.capture(() => stream.upload(Int32Array.of(1, 2, 3), there.contextLengths))).toThrow(
      'Expected decodes, writes and copies on the device inside capture(), got upload()',
    );
    expect((await failure(() => stream.capture(() => void stream.record()))).message).toContain('got record()');
    stream.decode(there);
    expectSameBits(await result(there), cuda.device.decodeSync(options), '');
  });

  test('a capture may be the first to use a kernel', async () => {
    using cache = keep(cuda.device.createKvCache({ layers: 1, numKvHeads: 1, headDim: 64, tokens: 64 }));
    const table = keep(cache.createTable({ rows: 1 }));
    const rows = keep(cuda.device.alloc([1, 1, 64], { dtype: 'f16' }));
    const options = paged();
    const there = place(options);
    cuda.addon.steerCuda({ unloadKernels: 1 });
    using fresh = cuda.device.createStream();
    const graph = fresh.capture(() => {
      fresh.read(rows);
      fresh.write({ table, layer: 0, k: rows, v: rows });
      fresh.decode(there);
    });
    fresh.launch(graph);
    const out = await fresh.download(there.out);
    expectSameBits({ out, lse: await fresh.download(there.lse) }, cuda.device.decodeSync(options), '');
  });

  test('belongs to its stream', () => {
    using other = cuda.device.createStream();
    const graph = other.capture(() => {});
    expect(() => stream.launch(graph)).toThrow('Expected a graph that was captured from this stream');
    expect(() => stream.launch({} as never)).toThrow('Expected `graph` to be a graph, got a Object');
  });
});

describe('when it fails', () => {
  test('lengths and page indices that cannot be are reported once, and the stream goes on', async () => {
    const options = paged();
    const there = place(options);
    stream.upload(Int32Array.of(130, -1, 77), there.contextLengths);
    stream.decode(there);
    expect(await failure(() => stream.finish())).toEqual({
      name: 'LeanAttentionError',
      code: 'BAD_DEVICE_DATA',
      message: 'A context length is negative or longer than the cache.',
    });
    await stream.finish();
    stream.upload(Int32Array.from(options.contextLengths as Int32Array), there.contextLengths);
    const table = Int32Array.from(options.pageTable as Int32Array);
    table[0] = 1_000_000;
    stream.upload(table, there.pageTable as DeviceTensor);
    stream.decode(there);
    expect(await failure(() => stream.download(there.out))).toEqual({
      name: 'LeanAttentionError',
      code: 'BAD_DEVICE_DATA',
      message: 'The page table holds a page index outside the cache.',
    });
    stream.upload(options.pageTable as Int32Array, there.pageTable as DeviceTensor);
    stream.decode(there);
    expectSameBits(await result(there), cuda.device.decodeSync(options), '');
  });

  test('for want of memory, at every allocation: the next call works', async () => {
    const options = paged();
    const there = place(options);
    const expected = cuda.device.decodeSync(options);
    let failures = 0;
    for (let n = 1; n < 20; ++n) {
      cuda.addon.steerCuda({ failAllocation: n });
      let error: { code?: string } | undefined;
      try {
        using fresh = cuda.device.createStream();
        fresh.decode(there);
        await fresh.download(there.out);
      } catch (thrown) {
        error = thrown as { code?: string };
        ++failures;
        expect(error.code).toBe('OUT_OF_MEMORY');
      }
      cuda.addon.steerCuda({});
      stream.decode(there);
      expectSameBits(await result(there), expected, `allocation ${n}`);
      if (error === undefined) break;
    }
    expect(failures).toBeGreaterThan(2);
  });

  test('a refused launch throws at once; the stream goes on', async () => {
    const options = paged();
    const there = place(options);
    cuda.addon.steerCuda({ failLaunch: 1 });
    expect(await failure(() => stream.decode(there))).toMatchObject({ code: 'LAUNCH_FAILED' });
    stream.decode(there);
    expectSameBits(await result(there), cuda.device.decodeSync(options), '');
  });

  test('a lost device is reported by whatever is awaited, and by what is called next', async () => {
    const there = place(paged());
    cuda.addon.steerCuda({ loseDevice: 1 });
    stream.decode(there);
    expect(await failure(() => stream.finish())).toMatchObject({ code: 'DEVICE_LOST' });
    expect(await failure(() => stream.decode(there))).toMatchObject({ code: 'DEVICE_LOST' });
    expect(await failure(() => cuda.device.alloc([4]))).toMatchObject({ code: 'DEVICE_LOST' });
  });

  test('misuse is named before anything is enqueued', async () => {
    const options = paged();
    const there = place(options);
    const wrong = (change: Partial<Record<keyof StreamDecodeOptions, unknown>>) => () =>
      stream.decode({ ...there, ...change } as StreamDecodeOptions);
    const { launches } = cuda.addon.cudaAlive();
    const messages: [() => unknown, string][] = [
      [
        wrong({ q: options.q }),
        "Expected `q` to be a tensor in the device's memory (see device.upload()), got a Object",
      ],
      [
        wrong({ contextLengths: Int32Array.of(1, 2, 3) }),
        "Expected `contextLengths` to be a tensor in the device's memory (see device.upload()), got a Int32Array",
      ],
      [wrong({ contextLengths: there.lse }), "Expected `contextLengths` dtype to be 'i32', got 'f32'"],
      [
        wrong({ contextLengths: there.pageTable }),
        `Expected \`contextLengths\` shape to be [3], got [${there.pageTable?.shape.join(', ')}]`,
      ],
      [
        wrong({ pageTable: there.contextLengths }),
        'Expected `pageTable` to be contiguous, of shape [3, maxPages], got [3]',
      ],
      [
        wrong({ pageTable: undefined }),
        `Expected \`k\` shape[0] to equal batch 3, got ${there.k.shape[0]}; pass \`pageTable\` for a paged cache`,
      ],
      [wrong({ out: there.lse }), "Expected `out` dtype to be 'f16', got 'f32'"],
      [wrong({ lse: there.pageTable }), "Expected `lse` dtype to be 'f32', got 'i32'"],
      [wrong({ lse: there.out, out: there.lse }), "Expected `out` dtype to be 'f16', got 'f32'"],
      [
        wrong({ contextLengths: cuda.device.wrap(there.contextLengths.pointer + 1n, [3], { dtype: 'i32' }) }),
        'Expected `contextLengths` to be aligned to its element size',
      ],
      [
        wrong({ lse: cuda.device.wrap(there.contextLengths.pointer, there.lse.shape) }),
        'Expected `lse` to have memory of its own, got memory that `contextLengths` uses too',
      ],
      [wrong({ out: there.q }), 'Expected `out` to have memory of its own, got memory that `q` uses too'],
      [wrong({ q: there.contextLengths }), "Expected `q` dtype to be 'f32', 'f16' or 'bf16', got 'i32'"],
      [() => stream.wait({} as never), 'Expected `event` to be an event (see stream.record()), got a Object'],
      [() => stream.capture(7 as never), 'Expected `body` to be a function, got 7'],
    ];
    for (const [call, message] of messages) expect((await failure(call)).message).toBe(message);
    stream.dispose();
    stream.dispose();
    expect((await failure(() => stream.finish())).message).toBe(
      'Expected a stream that is open, got one that was disposed',
    );
    expect(cuda.addon.cudaAlive().launches).toBe(launches);
  });
});
