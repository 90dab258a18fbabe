// From the options of a decode over a cache to what native code takes.

import { callNumbers } from './call-numbers';
import type { PreparedCall } from './decode';
import {
  expectHeads,
  hostViews,
  memoryOf,
  prepareQueries,
  prepareScale,
  prepareSchedule,
  prepareTarget,
} from './decode';
import type { Device } from './device';
import { DTYPE_CODES } from './dtype';
import { KvCache, openCache, sequenceIds } from './kv-cache';
import { batchOf, Step } from './kv-step';
import type { NativeBatch } from './native';
import type { CacheDecodeOptions } from './options';
import { describe, expectInteger } from './validate';

export function prepareCacheCall(options: CacheDecodeOptions, device: Device): PreparedCall {
  const { cache } = options;
  for (const name of ['k', 'v', 'layout', 'contextLengths', 'pageTable'] as const) {
    if (options[name] !== undefined) {
      throw new TypeError(`Expected no \`${name}\` with \`cache\`, got ${describe(options[name])}`);
    }
  }
  if (!(cache instanceof KvCache)) throw new TypeError(`Expected \`cache\` to be a KvCache, got ${describe(cache)}`);
  const native = openCache(cache);
  if (cache.device !== device) {
    throw new RangeError(`Expected \`cache\` to be of the device that decodes, got one of another device`);
  }
  const layer = expectInteger('layer', options.layer, 0, cache.layers - 1);
  const { sequences } = options;
  const holds = sequences instanceof Step ? sequences : Array.isArray(sequences) ? [...sequences] : sequences;
  const batch = prepareBatch(cache, holds);
  const queries = prepareQueries(options.q);
  const { q } = queries;
  if (batch.counts !== null && q.shape.length !== 3) {
    throw new RangeError(
      `Expected \`q\` shape to be [rows, numQueryHeads, headDim] of a step, got [${q.shape.join(', ')}]`,
    );
  }
  const rows = batch.counts === null ? batch.sequences.length : batch.counts.reduce((sum, count) => sum + count, 0);
  if (q.shape[0] !== rows) {
    const what = batch.counts === null ? 'the number of sequences' : "the step's rows";
    throw new RangeError(`Expected \`q\` shape[0] to equal ${what} ${rows}, got ${q.shape[0]}`);
  }
  const { shape } = queries;
  if (shape.headDim !== cache.headDim) {
    throw new RangeError(
      `Expected \`q\` shape[${q.shape.length - 1}] to equal the cache's headDim ${cache.headDim}, got ${shape.headDim}`,
    );
  }
  expectHeads(queries, cache.numKvHeads);
  const scale = prepareScale(options.scale, cache.headDim);
  const out = prepareTarget('out', options.out, q.shape, q.dtype);
  const lse = prepareTarget('lse', options.lse, q.shape.slice(0, -1), 'f32');
  const schedule = prepareSchedule(options);
  const kv = { kvType: DTYPE_CODES[cache.dtype], numKvHeads: cache.numKvHeads };
  const [qMemory, outMemory, lseMemory] = [memoryOf(q), out.data, lse.data];
  return {
    result: { out, lse },
    views: () => hostViews({ q: qMemory, out: outMemory, lse: lseMemory }),
    run: (device, asynchronous) =>
      device.decodeCache(
        asynchronous,
        callNumbers({ schedule, queries: shape, kv, scale, headsAdjacent: true }),
        qMemory,
        outMemory,
        lseMemory,
        native,
        layer,
        batch.sequences,
        batch.counts,
        batch.stamp,
        holds,
      ),
  };
}

function prepareBatch(cache: KvCache, sequences: CacheDecodeOptions['sequences']): NativeBatch {
  if (!(sequences instanceof Step)) return { sequences: sequenceIds(cache, sequences), counts: null, stamp: 0 };
  if (sequences.cache !== cache) {
    throw new RangeError('Expected `sequences` to be a step of `cache`, got one of another cache');
  }
  return batchOf(sequences);
}
