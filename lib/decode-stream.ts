// From the options of a decode in a stream to what native code takes: everything lies in the device's memory.
import { prepareCache, prepareQueries, prepareScale, prepareSchedule } from './decode';
import { type DeviceTensor, expectDeviceTensor } from './memory';
import type { NativeKvShape, NativeQueryShape, NativeSchedule, NativeStreamCall } from './native';
import type { StreamDecodeOptions } from './options';
import { isContiguous } from './tensor';
import { expectObject } from './validate';

// A stream's call is made for every layer of every step: its numbers go over in one array, which is used again for every
// call (native code reads it before it returns). Their order is that of kStreamNumbers in csrc/binding/arguments.cpp.
const SCHEDULE_NUMBERS = [
  'strategy',
  'workers',
  'splits',
  'copies',
  'tileTokens',
  'stages',
  'warps',
  'ctasPerSm',
] as const satisfies (keyof NativeSchedule)[];
const QUERY_NUMBERS = [
  'qType',
  'batch',
  'queryLen',
  'numQueryHeads',
  'headDim',
  'qSequenceStride',
  'qQueryStride',
  'qHeadStride',
] as const satisfies (keyof NativeQueryShape)[];
const CACHE_NUMBERS = [
  'kvType',
  'numKvHeads',
  'numPages',
  'pageTokens',
  'kPageStride',
  'kTokenStride',
  'kHeadStride',
  'vPageStride',
  'vTokenStride',
  'vHeadStride',
] as const satisfies (keyof NativeKvShape)[];
/** And the pages that a sequence may have, and the scale. */
const numbers = new Float64Array(SCHEDULE_NUMBERS.length + QUERY_NUMBERS.length + CACHE_NUMBERS.length + 2);

/** The call of a stream: native code reads the lengths and the page table when the work runs. */
export function prepareStreamCall(options: StreamDecodeOptions): NativeStreamCall {
  expectObject('options', options);
  for (const name of ['q', 'k', 'v'] as const) expectDeviceTensor(name, options[name]);
  const queries = prepareQueries(options.q);
  const { shape } = prepareCache(options, queries);
  const { q } = queries;
  const { batch, headDim } = queries.shape;
  const lengths = expectDeviceTensor('contextLengths', options.contextLengths, 'i32');
  expectDeviceShape('contextLengths', lengths, [batch]);
  const table = options.pageTable === undefined ? null : expectDeviceTensor('pageTable', options.pageTable, 'i32');
  if (table !== null && (table.shape.length !== 2 || table.shape[0] !== batch || !isContiguous(table))) {
    throw new RangeError(
      `Expected \`pageTable\` to be contiguous, of shape [${batch}, maxPages], got [${table.shape.join(', ')}]`,
    );
  }
  const out = expectDeviceTensor('out', options.out, q.dtype);
  expectDeviceShape('out', out, q.shape);
  const lse = expectDeviceTensor('lse', options.lse, 'f32');
  expectDeviceShape('lse', lse, q.shape.slice(0, -1));
  const schedule = prepareSchedule(options);
  const scale = prepareScale(options.scale, headDim);
  const call = {
    numbers,
    q: options.q.view,
    k: options.k.view,
    v: options.v.view,
    out: out.view,
    lse: lse.view,
    contextLengths: lengths.view,
    pageTable: table === null ? null : table.view,
  };
  // Last: what reads the options may be the caller's code, and make a call of its own.
  let next = 0;
  for (const name of SCHEDULE_NUMBERS) numbers[next++] = schedule[name];
  for (const name of QUERY_NUMBERS) numbers[next++] = queries.shape[name];
  for (const name of CACHE_NUMBERS) numbers[next++] = shape[name];
  numbers[next++] = table === null ? 1 : table.shape[1];
  numbers[next++] = scale;
  return call;
}

function expectDeviceShape(name: string, t: DeviceTensor, shape: readonly number[]): void {
  if (t.shape.length !== shape.length || t.shape.some((length, axis) => length !== shape[axis])) {
    throw new RangeError(`Expected \`${name}\` shape to be [${shape.join(', ')}], got [${t.shape.join(', ')}]`);
  }
  if (!isContiguous(t))
    throw new RangeError(`Expected \`${name}\` to be contiguous, got strides [${t.strides.join(', ')}]`);
}
