// From the options of a decode in a stream to what native code takes: everything lies in the device's memory.
import { callNumbers } from './call-numbers';
import { prepareCache, prepareQueries, prepareScale, prepareSchedule } from './decode';
import { deviceMemoryOf, expectDeviceTensor } from './memory';
import type { NativeStream } from './native';
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
  cache.shape.maxPages = table === null ? 1 : table.shape[1];
  return [
    callNumbers({ schedule, queries: queries.shape, kv: cache.shape, scale, headsAdjacent: false }),
    deviceMemoryOf(q),
    deviceMemoryOf(k),
    deviceMemoryOf(v),
    deviceMemoryOf(out),
    deviceMemoryOf(lse),
    deviceMemoryOf(lengths),
    table === null ? null : deviceMemoryOf(table),
  ];
}
