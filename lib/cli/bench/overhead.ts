// What a call costs before any attention is computed: microseconds of the JavaScript thread from the call to its return, and
// bytes of JavaScript's heap that each call leaves to the garbage collector. On a GPU the call only enqueues; on the CPU it
// decodes one token of each sequence as well.

import { convert, type Device, tensor } from '../../index';
import { formatTable } from '../table';
import { formatMicroseconds } from '../units';
import { median, percentile } from './statistics';

export interface OverheadRow {
  readonly device: string;
  readonly call: 'stream.decode' | 'device.decodeSync';
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

const [NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM] = [4, 1, 64];

export interface OverheadEffort {
  readonly batches: readonly number[];
  /** Until the compiler has seen the calls often enough. */
  readonly warmUpBursts: number;
  readonly bursts: number;
}

const DEFAULT_EFFORT: OverheadEffort = { batches: OVERHEAD_BATCHES, warmUpBursts: 100, bursts: 101 };

export async function measureOverhead(device: Device, effort = DEFAULT_EFFORT): Promise<OverheadRow[]> {
  const rows: OverheadRow[] = [];
  for (const batch of effort.batches) rows.push(await measureBatch(device, batch, effort));
  return rows;
}

async function measureBatch(device: Device, batch: number, effort: OverheadEffort): Promise<OverheadRow> {
  const { call, settle, dispose } = device.type === 'cpu' ? onCpu(device, batch) : onCuda(device, batch);
  const times: number[] = [];
  const bytes: number[] = [];
  try {
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
  } finally {
    dispose();
  }
  return {
    device: device.name,
    call: device.type === 'cpu' ? 'device.decodeSync' : 'stream.decode',
    batch,
    medianUs: Number(median(times).toPrecision(3)),
    p10Us: Number(percentile(times, 10).toPrecision(3)),
    p90Us: Number(percentile(times, 90).toPrecision(3)),
    samples: times.length,
    heapBytesPerCall: Math.round(median(bytes)),
  };
}

interface Calls {
  call(): void;
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

function onCpu(device: Device, batch: number): Calls {
  const { q, k, v, lengths } = inputs(batch);
  const options = { q, k, v, contextLengths: lengths };
  const targets = device.decodeSync(options);
  const call = { ...options, ...targets };
  return { call: () => device.decodeSync(call), settle: async () => {}, dispose: () => {} };
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
  return {
    call: () => stream.decode(tensors),
    settle: () => stream.finish(),
    dispose: () => {
      for (const one of Object.values(tensors)) one.dispose();
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
      ? 'From the call to its return, one token of each sequence decoded in between'
      : 'From the call to its return, the work enqueued but not awaited';
  return (
    `${device.description}\n\n${table}\n` +
    `${what}; heap: what a call leaves to the garbage collector. Medians of bursts of ${CALLS_OF_A_BURST} calls.\n`
  );
}
