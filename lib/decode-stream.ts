// From the options of a decode in a stream to what native code takes: everything lies in the device's memory.
import { prepareCache, prepareQueries, prepareScale, prepareSchedule } from './decode';
import { deviceMemoryOf, expectDeviceTensor } from './memory';
import type { NativeKvShape, NativeQueryShape, NativeSchedule, NativeStream } from './native';
import type { StreamDecodeOptions } from './options';
import { expectContiguous, expectShape, isContiguous } from './tensor';
import { expectObject } from './validate';

/** The call of a stream: native code reads the lengths and the page table when the work runs. */
export function prepareStreamCall(options: StreamDecodeOptions): Parameters<NativeStream['decode']> {
  expectObject('options', options);
  const q = expectDeviceTensor('q', options.q);
  const k = expectDeviceTensor('k', options.k);
  const v = expectDeviceTensor('v', options.v);
  const pageTable = options.pageTable;
  const queries = prepareQueries(q);
  const cache = prepareCache({ k, v, layout: options.layout, pageTable }, queries);
  const { batch, headDim } = queries.shape;
  const lengths = expectDeviceTensor('contextLengths', options.contextLengths, 'i32');
  expectShape('contextLengths', lengths, q.shape, 1);
  expectContiguous('contextLengths', lengths);
  const table = pageTable === undefined ? null : expectDeviceTensor('pageTable', pageTable, 'i32');
  if (table !== null && (table.shape.length !== 2 || table.shape[0] !== batch || !isContiguous(table))) {
    throw new RangeError(
      `Expected \`pageTable\` to be contiguous, of shape [${batch}, maxPages], got [${table.shape.join(', ')}]`,
    );
  }
  const out = expectDeviceTensor('out', options.out, q.dtype);
  expectShape('out', out, q.shape);
  expectContiguous('out', out);
  const lse = expectDeviceTensor('lse', options.lse, 'f32');
  expectShape('lse', lse, q.shape, q.shape.length - 1);
  expectContiguous('lse', lse);
  const schedule = prepareSchedule(options);
  const scale = prepareScale(options.scale, headDim);
  // Last: what reads the options may be the caller's code, and make a call of its own.
  writeNumbers(schedule, queries.shape, cache.shape, table === null ? 1 : table.shape[1], scale);
  return [
    numbers,
    deviceMemoryOf(q),
    deviceMemoryOf(k),
    deviceMemoryOf(v),
    deviceMemoryOf(out),
    deviceMemoryOf(lse),
    deviceMemoryOf(lengths),
    table === null ? null : deviceMemoryOf(table),
  ];
}

// One array for every call: native code reads it before it returns.
const numbers = new Float64Array(28);

/** In the order of kStreamNumbers in csrc/binding/arguments.cpp. */
function writeNumbers(
  schedule: NativeSchedule,
  q: NativeQueryShape,
  kv: Omit<NativeKvShape, 'maxPages'>,
  maxPages: number,
  scale: number,
): void {
  numbers[0] = schedule.strategy;
  numbers[1] = schedule.workers;
  numbers[2] = schedule.splits;
  numbers[3] = schedule.copies;
  numbers[4] = schedule.tileTokens;
  numbers[5] = schedule.stages;
  numbers[6] = schedule.warps;
  numbers[7] = schedule.ctasPerSm;
  numbers[8] = q.qType;
  numbers[9] = q.batch;
  numbers[10] = q.queryLen;
  numbers[11] = q.numQueryHeads;
  numbers[12] = q.headDim;
  numbers[13] = q.qSequenceStride;
  numbers[14] = q.qQueryStride;
  numbers[15] = q.qHeadStride;
  numbers[16] = kv.kvType;
  numbers[17] = kv.numKvHeads;
  numbers[18] = kv.numPages;
  numbers[19] = kv.pageTokens;
  numbers[20] = kv.kPageStride;
  numbers[21] = kv.kTokenStride;
  numbers[22] = kv.kHeadStride;
  numbers[23] = kv.vPageStride;
  numbers[24] = kv.vTokenStride;
  numbers[25] = kv.vHeadStride;
  numbers[26] = maxPages;
  numbers[27] = scale;
}
