// Cold inputs: one block of memory, larger than the last-level cache, filled once with random values. Each sample takes
// the next part of it, so no sample finds the K and V of an earlier one in a cache, and nothing is allocated while timing.

import { readdirSync, readFileSync } from 'node:fs';
import { freemem } from 'node:os';

import { convert, type DType, type Tensor, tensor } from '../../index';
import { elementBytes, kvBytes, type Trial } from './trials';

export const PAGE_TOKENS = 256;
const GIB = 2 ** 30;
/** Typed arrays over it stay well under V8's limit on their length. */
const MAX_POOL_BYTES = 6 * GIB;
/** Odd and large, so that no two parts in use hold the same values at the same places. */
export const BLOCK_ELEMENTS = 1_048_583;

/** What a decode reads in one sample, and the same bytes as plain memory, for the roofline. */
export interface PoolSlot {
  readonly k: Tensor;
  readonly v: Tensor;
  readonly pageTable?: Int32Array;
  readonly buffers: readonly ArrayBufferView[];
}

export interface PoolSize {
  readonly bytes: number;
  readonly lastLevelCacheBytes: number | null;
  /** The most that a trial may take. */
  readonly limit: number;
}

/** `asked`, else at least 1 GiB and twice the last-level cache; room for the largest trial; at most half of what is free. */
export function choosePoolSize(trials: readonly Trial[], asked: number | undefined): PoolSize {
  const lastLevelCacheBytes = findLastLevelCache();
  // A container may have less than the machine; 0 means that nothing is known.
  const free = Math.min(freemem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  const limit = Math.min(MAX_POOL_BYTES, Math.floor(free / 2));
  const wanted = Math.max(asked ?? Math.max(GIB, 2 * (lastLevelCacheBytes ?? 0)), largestFootprint(trials, limit));
  return { bytes: Math.ceil(Math.min(wanted, limit) / 4096) * 4096, lastLevelCacheBytes, limit };
}

/** Of the trials that fit. */
export function largestFootprint(trials: readonly Trial[], limit: number): number {
  return Math.max(0, ...trials.map(footprint).filter((bytes) => bytes <= limit));
}

/** Bytes of the pool that one slot of a trial takes. */
export function footprint(trial: Trial): number {
  return 2 * slotElements(trial) * elementBytes(trial.dtype);
}

export class InputPool {
  private readonly memory: ArrayBuffer;
  private filledWith: DType | undefined;

  constructor(readonly bytes: number) {
    this.memory = new ArrayBuffer(bytes);
  }

  /** All the slots that a trial can rotate over. */
  slots(trial: Trial): PoolSlot[] {
    const data = this.fill(trial.dtype);
    return trial.paged ? pagedSlots(trial, data) : contiguousSlots(trial, data);
  }

  private fill(dtype: DType): Float32Array | Uint16Array {
    const data = dtype === 'f32' ? new Float32Array(this.memory) : new Uint16Array(this.memory);
    if (this.filledWith !== dtype) {
      const block = randomNormal([BLOCK_ELEMENTS], dtype, 1).data;
      for (let at = 0; at < data.length; at += block.length) {
        data.set(block.length <= data.length - at ? block : block.subarray(0, data.length - at), at);
      }
      this.filledWith = dtype;
    }
    return data;
  }
}

function contiguousSlots(trial: Trial, data: Float32Array | Uint16Array): PoolSlot[] {
  const { contextLengths, numKvHeads, headDim, dtype } = trial;
  const shape = [contextLengths.length, contextLengths[0], numKvHeads, headDim];
  const size = shape.reduce((product, extent) => product * extent, 1);
  const stride = slotElements(trial);
  return Array.from({ length: Math.floor(data.length / (2 * stride)) }, (_, slot) => {
    const [k, v] = [0, 1].map((which) => {
      const begin = (2 * slot + which) * stride;
      return data.subarray(begin, begin + size);
    });
    return { k: tensor(k, shape, { dtype }), v: tensor(v, shape, { dtype }), buffers: [k, v] };
  });
}

/** K's pages fill the first half of the pool, V's the second; a slot is a run of pages, dealt out in scattered order. */
function pagedSlots(trial: Trial, data: Float32Array | Uint16Array): PoolSlot[] {
  const { contextLengths, numKvHeads, headDim, dtype } = trial;
  const pageElements = PAGE_TOKENS * numKvHeads * headDim;
  const slotPages = countPages(contextLengths);
  const numPages = Math.floor(data.length / 2 / pageElements);
  const half = numPages * pageElements;
  const shape = [numPages, PAGE_TOKENS, numKvHeads, headDim];
  const [keys, values] = [data.subarray(0, half), data.subarray(half, 2 * half)];
  const k = tensor(keys, shape, { dtype });
  const v = tensor(values, shape, { dtype });
  return Array.from({ length: Math.floor(numPages / slotPages) }, (_, slot) => {
    const pageTable = scatteredPages(contextLengths, slot * slotPages);
    const maxPages = pageTable.length / contextLengths.length;
    const buffers: ArrayBufferView[] = [];
    contextLengths.forEach((context, sequence) => {
      for (let index = 0; index * PAGE_TOKENS < context; ++index) {
        const page = pageTable[sequence * maxPages + index];
        const used = Math.min(PAGE_TOKENS, context - index * PAGE_TOKENS) * numKvHeads * headDim;
        for (const half of [keys, values]) buffers.push(half.subarray(page * pageElements, page * pageElements + used));
      }
    });
    return { k, v, pageTable, buffers };
  });
}

/** A page table over a slot's run of pages, which begins at `firstPage`: neighbours in a sequence lie far apart. */
export function scatteredPages(contextLengths: readonly number[], firstPage: number): Int32Array {
  const order = scattered(countPages(contextLengths));
  const maxPages = Math.ceil(Math.max(...contextLengths) / PAGE_TOKENS);
  const pageTable = new Int32Array(contextLengths.length * maxPages).fill(-1);
  let next = 0;
  contextLengths.forEach((context, sequence) => {
    for (let index = 0; index * PAGE_TOKENS < context; ++index) {
      pageTable[sequence * maxPages + index] = firstPage + order[next++];
    }
  });
  return pageTable;
}

/** Elements that K takes in a slot, and V as many; kept at multiples of 64 so that every slot starts on a cache line. */
export function slotElements(trial: Trial): number {
  const { contextLengths, numKvHeads, headDim, dtype, paged } = trial;
  if (paged) return countPages(contextLengths) * PAGE_TOKENS * numKvHeads * headDim;
  return Math.ceil(kvBytes(trial) / 2 / elementBytes(dtype) / 64) * 64;
}

export function countPages(contextLengths: readonly number[]): number {
  return contextLengths.reduce((sum, context) => sum + Math.ceil(context / PAGE_TOKENS), 0);
}

/** 0 to count - 1, each once, neighbours far apart: multiples of a step that shares no factor with the count. */
function scattered(count: number): number[] {
  let step = Math.max(1, Math.round(count * 0.618));
  while (greatestCommonDivisor(step, count) !== 1) ++step;
  return Array.from({ length: count }, (_, i) => (i * step) % count);
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** Normally distributed values from a fixed seed: two runs measure, and check, the same numbers. */
export function randomNormal(shape: readonly number[], dtype: DType, seed: number): Tensor {
  const size = shape.reduce((product, extent) => product * extent, 1);
  const values = new Float32Array(size);
  let state = seed >>> 0;
  const uniform = (): number => {
    // Mulberry32: small, and random enough for values to measure with.
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return (((bits ^ (bits >>> 14)) >>> 0) + 1) / (2 ** 32 + 1);
  };
  for (let i = 0; i < size; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform()));
    const angle = 2 * Math.PI * uniform();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < size) values[i + 1] = radius * Math.sin(angle);
  }
  return convert(tensor(values, shape), dtype);
}

/** Linux says; elsewhere the pool's floor of 1 GiB has to do. */
function findLastLevelCache(): number | null {
  const folder = '/sys/devices/system/cpu/cpu0/cache';
  try {
    const sizes = readdirSync(folder)
      .filter((name) => name.startsWith('index'))
      .map((name) => /^(\d+)([KM]?)/.exec(readFileSync(`${folder}/${name}/size`, 'utf8')))
      .map((match) => Number(match?.[1] ?? 0) * (match?.[2] === 'M' ? 2 ** 20 : match?.[2] === 'K' ? 2 ** 10 : 1));
    return sizes.length === 0 ? null : Math.max(...sizes);
  } catch {
    return null;
  }
}
