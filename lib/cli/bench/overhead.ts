// What the calls of a server's step cost: microseconds of the JavaScript thread from a call to its return, and bytes of
// JavaScript's heap that each call leaves to the garbage collector. On a GPU a call only enqueues; on the CPU it does its
// work as well, on one token of each sequence.

import { convert, type Device, tensor } from '../../index';
import { formatTable } from '../table';
import { formatMicroseconds } from '../units';
import { median, percentile } from './statistics';

export interface OverheadRow {
  readonly device: string;
  readonly call: 'device.decodeSync' | 'step.write' | 'stream.decode' | 'stream.write' | 'table.update';
  readonly batch: number;
  readonly medianUs: number;
  readonly p10Us: number;
  readonly p90Us: number;
  /** Bursts of `CALLS_OF_A_BURST` calls; a burst gives one time and one number of bytes. */
  readonly samples: number;
  readonly heapBytesPerCall: number;
}

export const OVERHEAD_BATCHES: readonly number[] = [1, 8, 64, 256];
/** So many that the clock's resolution does not matter, so few that the heap is seldom collected in between. */
const CALLS_OF_A_BURST = 32;

const [NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS] = [4, 1, 64, 16];

export interface OverheadEffort {
  readonly batches: readonly number[];
  /** Until the compiler has seen the calls often enough. */
  readonly warmUpBursts: number;
  readonly bursts: number;
}

const DEFAULT_EFFORT: OverheadEffort = { batches: OVERHEAD_BATCHES, warmUpBursts: 100, bursts: 101 };

export async function measureOverhead(device: Device, effort = DEFAULT_EFFORT): Promise<OverheadRow[]> {
  const rows: OverheadRow[] = [];
  for (const batch of effort.batches) {
    const { calls, settle, dispose } = device.type === 'cpu' ? onCpu(device, batch) : onCuda(device, batch);
    try {
      for (const [name, call] of calls) rows.push(await measureCall(device, batch, effort, name, call, settle));
    } finally {
      dispose();
    }
  }
  return rows;
}

async function measureCall(
  device: Device,
  batch: number,
  effort: OverheadEffort,
  name: OverheadRow['call'],
  call: () => void,
  settle: () => Promise<void>,
): Promise<OverheadRow> {
  const times: number[] = [];
  const bytes: number[] = [];
  for (let burst = -effort.warmUpBursts; burst < effort.bursts; ++burst) {
    const before = process.memoryUsage().heapUsed;
    const start = performance.now();
    for (let i = 0; i < CALLS_OF_A_BURST; ++i) call();
    const end = performance.now();
    const after = process.memoryUsage().heapUsed;
    await settle();
    if (burst < 0) continue;
    times.push(((end - start) * 1e3) / CALLS_OF_A_BURST);
    if (after >= before) bytes.push((after - before) / CALLS_OF_A_BURST); // else the heap was collected meanwhile
  }
  return {
    device: device.name,
    call: name,
    batch,
    medianUs: Number(median(times).toPrecision(3)),
    p10Us: Number(percentile(times, 10).toPrecision(3)),
    p90Us: Number(percentile(times, 90).toPrecision(3)),
    samples: times.length,
    heapBytesPerCall: Math.round(median(bytes)),
  };
}

interface Calls {
  calls: [OverheadRow['call'], () => void][];
  /** Waits for what the calls enqueued. */
  settle(): Promise<void>;
  dispose(): void;
}

function inputs(batch: number) {
  const half = (shape: readonly number[]) => {
    const values = new Float32Array(shape.reduce((product, length) => product * length, 1)).fill(0.5);
    return convert(tensor(values, shape), 'f16');
  };
  const cache = half([batch, 1, NUM_KV_HEADS, HEAD_DIM]);
  return { q: half([batch, NUM_QUERY_HEADS, HEAD_DIM]), k: cache, v: cache, lengths: new Int32Array(batch).fill(1) };
}

/** A cache that holds one token of each sequence. */
function filledCache(device: Device, batch: number) {
  const cache = device.createKvCache({
    layers: 1,
    numKvHeads: NUM_KV_HEADS,
    headDim: HEAD_DIM,
    pageTokens: PAGE_TOKENS,
    tokens: batch * PAGE_TOKENS,
  });
  const sequences = Array.from({ length: batch }, () => cache.createSequence());
  return { cache, sequences, step: cache.append(sequences) };
}

function onCpu(device: Device, batch: number): Calls {
  const { q, k, v, lengths } = inputs(batch);
  const options = { q, k, v, contextLengths: lengths };
  const targets = device.decodeSync(options);
  const call = { ...options, ...targets };
  const { cache, step } = filledCache(device, batch);
  const rows = convert(tensor(new Float32Array(batch * HEAD_DIM), [batch, NUM_KV_HEADS, HEAD_DIM]), 'f16');
  const write = { layer: 0, k: rows, v: rows, q, rotary: {} };
  return {
    calls: [
      ['device.decodeSync', () => device.decodeSync(call)],
      ['step.write', () => step.write(write)],
    ],
    settle: async () => {},
    dispose: () => cache.dispose(),
  };
}

function onCuda(device: Device, batch: number): Calls {
  const { q, k, v, lengths } = inputs(batch);
  const stream = device.createStream();
  const tensors = {
    q: device.upload(q),
    k: device.upload(k),
    v: device.upload(v),
    contextLengths: device.upload(lengths),
    out: device.alloc(q.shape, { dtype: 'f16' }),
    lse: device.alloc(q.shape.slice(0, -1)),
  };
  const { cache, sequences } = filledCache(device, batch);
  const table = cache.createTable({ rows: batch, maxContext: PAGE_TOKENS });
  const rows = device.alloc([batch, NUM_KV_HEADS, HEAD_DIM], { dtype: 'f16' });
  const queries = device.alloc(q.shape, { dtype: 'f16' });
  const write = { table, layer: 0, k: rows, v: rows, q: queries, rotary: {} };
  table.update(stream, sequences);
  return {
    calls: [
      ['stream.decode', () => stream.decode(tensors)],
      ['stream.write', () => stream.write(write)],
      ['table.update', () => table.update(stream, sequences)],
    ],
    settle: () => stream.finish(),
    dispose: () => {
      for (const one of [...Object.values(tensors), rows, queries, table, cache]) one.dispose();
      stream.dispose();
    },
  };
}

export function formatOverhead(device: Device, rows: readonly OverheadRow[]): string {
  const table = formatTable(
    [
      { title: 'call', cell: ({ call }) => call },
      { title: 'batch', align: 'right', cell: ({ batch }) => String(batch) },
      { title: 'median', align: 'right', cell: ({ medianUs }) => formatMicroseconds(medianUs) },
      { title: 'p10', align: 'right', cell: ({ p10Us }) => formatMicroseconds(p10Us) },
      { title: 'p90', align: 'right', cell: ({ p90Us }) => formatMicroseconds(p90Us) },
      { title: 'heap', align: 'right', cell: ({ heapBytesPerCall }) => `${heapBytesPerCall} B` },
    ],
    rows,
  );
  const what =
    device.type === 'cpu'
      ? 'From the call to its return, the work on one token of each sequence done in between'
      : 'From the call to its return, the work enqueued but not awaited';
  return (
    `${device.description}\n\n${table}\n` +
    `${what}; heap: what a call leaves to the garbage collector. Medians of bursts of ${CALLS_OF_A_BURST} calls.\n`
  );
}
