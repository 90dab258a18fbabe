// From the options of a call to what native code takes: defaults, checks, flat numbers.
import { types } from 'node:util';
import { callNumbers } from './call-numbers';
import { DTYPE_CODES, type DType } from './dtype';
import { LeanAttentionError } from './errors';
import { DeviceTensor, deviceMemoryOf } from './memory';
import type { NativeDevice, NativeKvShape, NativeMemory, NativePlan, NativeQueryShape, NativeSchedule } from './native';
import {
  COPY_PATHS,
  DEFAULTS,
  type DecodeOptions,
  type DecodeResult,
  LAYOUTS,
  type LaunchOptions,
  type Layout,
  LIMITS,
  type ScheduleOptions,
  STRATEGIES,
  STRATEGY_CODES,
} from './options';
import { expectContiguous, expectShape, expectTensor, isShape, type Tensor, zeros } from './tensor';
import { describe, expectInteger, expectIntegers, expectObject, expectOneOf } from './validate';

/** A call that is ready to run, and what it will have written. */
export interface PreparedCall {
  result: DecodeResult;
  /** The views of host memory that it reads and writes, by name. */
  views: () => NamedViews;
  /** Runs it before it returns, or returns a promise. */
  run: (device: NativeDevice, asynchronous: boolean) => Promise<void> | undefined;
}

export function prepareSchedule(options: ScheduleOptions): NativeSchedule {
  const strategy = expectOneOf('strategy', options.strategy ?? DEFAULTS.strategy, STRATEGIES);
  if (options.splits !== undefined && strategy !== 'fixed-split') {
    throw new RangeError(`Expected \`splits\` only with the strategy 'fixed-split', got it with '${strategy}'`);
  }
  const launch = prepareLaunch(options.launch);
  return {
    strategy: STRATEGY_CODES[strategy],
    workers:
      options.workers === undefined ? DEFAULTS.workers : expectInteger('workers', options.workers, 1, LIMITS.workers),
    splits: options.splits === undefined ? DEFAULTS.splits : expectInteger('splits', options.splits, 1, LIMITS.splits),
    copies: launch.copies,
    tileTokens: launch.tileTokens,
    stages: launch.stages,
    warps: launch.warps,
    ctasPerSm: launch.ctasPerSm,
  };
}

function prepareLaunch(launch: ScheduleOptions['launch']): Pick<NativeSchedule, keyof LaunchOptions> {
  if (launch === undefined) return DEFAULT_LAUNCH;
  expectObject('launch', launch);
  const { copies = DEFAULTS.launch.copies } = launch;
  const number = (name: Exclude<keyof LaunchOptions, 'copies'>): number => {
    const value = launch[name];
    return value === undefined ? DEFAULTS.launch[name] : expectInteger(`launch.${name}`, value, 1, LIMITS.launch[name]);
  };
  return {
    copies: COPY_PATHS.indexOf(expectOneOf('launch.copies', copies, COPY_PATHS)),
    tileTokens: number('tileTokens'),
    stages: number('stages'),
    warps: number('warps'),
    ctasPerSm: number('ctasPerSm'),
  };
}
const DEFAULT_LAUNCH = prepareLaunch({});

/** Context lengths as native code takes them. Their range is checked there, against a copy that nobody changes. */
export function prepareLengths(lengths: Int32Array | readonly number[]): Int32Array {
  if (types.isInt32Array(lengths)) return lengths;
  return Int32Array.from(expectIntegers('contextLengths', lengths, 0, LIMITS.int32));
}

/** Where q, k and v may lie: in host memory, or in the device's. */
export type Operand = Tensor | DeviceTensor;

/** Queries that have passed their checks. */
export interface PreparedQueries {
  q: Operand & { dtype: DType };
  shape: NativeQueryShape;
}

export function prepareQueries(value: Operand): PreparedQueries {
  const q = expectOperand('q', value);
  if (q.shape.length !== 3 && q.shape.length !== 4) {
    throw new RangeError(
      `Expected \`q\` shape to be [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim], got [${q.shape.join(', ')}]`,
    );
  }
  const four = q.shape.length === 4;
  const [batch, queryLen, numQueryHeads, headDim] = four ? q.shape : [q.shape[0], 1, q.shape[1], q.shape[2]];
  expectAxis('q', q, 0, 'batch', 1, LIMITS.int32);
  if (four) expectAxis('q', q, 1, 'queryLen', 1, LIMITS.queryLen);
  expectAxis('q', q, q.shape.length - 1, 'headDim', 8, LIMITS.headDim);
  if (headDim % 8 !== 0) {
    throw new RangeError(`Expected \`q\` shape[${q.shape.length - 1}], headDim, to be a multiple of 8, got ${headDim}`);
  }
  expectUnitStride('q', q);
  return {
    q,
    shape: {
      qType: DTYPE_CODES[q.dtype],
      batch,
      queryLen,
      numQueryHeads,
      headDim,
      qSequenceStride: q.strides[0],
      qQueryStride: four ? q.strides[1] : 0,
      qHeadStride: q.strides[four ? 2 : 1],
    },
  };
}

/** That each K/V head serves as many query heads. */
export function expectHeads({ q, shape }: PreparedQueries, numKvHeads: number): void {
  const { numQueryHeads } = shape;
  if (numQueryHeads === 0 || numQueryHeads % numKvHeads !== 0) {
    throw new RangeError(
      `Expected \`q\` shape[${q.shape.length - 2}], numQueryHeads, to be a multiple of numKvHeads ${numKvHeads}, got ${numQueryHeads}`,
    );
  }
}

export function prepareScale(value: number | undefined, headDim: number): number {
  const scale = value ?? DEFAULTS.scale(headDim);
  if (typeof scale !== 'number') throw new TypeError(`Expected \`scale\` to be a number, got ${describe(scale)}`);
  if (!Number.isFinite(Math.fround(scale))) {
    throw new RangeError(`Expected \`scale\` to be finite in float32, got ${scale}`);
  }
  return scale;
}

/** K and V that have passed their checks, against the queries too. */
export interface PreparedCache {
  k: Operand;
  v: Operand;
  /** `maxPages` is yet to be set. */
  shape: NativeKvShape;
}

export function prepareCache(
  options: { k: Operand; v: Operand; layout?: Layout | undefined; pageTable?: unknown },
  queries: PreparedQueries,
): PreparedCache {
  const { batch, headDim } = queries.shape;
  const k = expectOperand('k', options.k);
  const v = expectOperand('v', options.v);
  const layout = expectOneOf('layout', options.layout ?? DEFAULTS.layout, LAYOUTS);
  const [tokenAxis, headAxis] = layout === 'NHD' ? [1, 2] : [2, 1];

  const axes = layout === 'NHD' ? 'tokens, numKvHeads' : 'numKvHeads, tokens';
  if (k.shape.length !== 4) {
    throw new RangeError(
      `Expected \`k\` shape to be [${options.pageTable === undefined ? 'batch' : 'numPages'}, ${axes}, headDim], got [${k.shape.join(', ')}]`,
    );
  }
  if (k.shape[3] !== headDim)
    throw new RangeError(`Expected \`k\` shape[3] to equal headDim ${headDim}, got ${k.shape[3]}`);
  if (!isShape(v.shape, k.shape)) {
    throw new RangeError(
      `Expected \`v\` shape to equal that of \`k\` [${k.shape.join(', ')}], got [${v.shape.join(', ')}]`,
    );
  }
  if (v.dtype !== k.dtype)
    throw new TypeError(`Expected \`v\` dtype to equal that of \`k\` '${k.dtype}', got '${v.dtype}'`);
  const numKvHeads = expectAxis('k', k, headAxis, 'numKvHeads', 1, LIMITS.int32);
  const pageTokens = expectAxis('k', k, tokenAxis, 'tokens', 1, LIMITS.int32);
  expectHeads(queries, numKvHeads);
  expectUnitStride('k', k);
  expectUnitStride('v', v);
  if (options.pageTable === undefined && k.shape[0] !== batch) {
    throw new RangeError(
      `Expected \`k\` shape[0] to equal batch ${batch}, got ${k.shape[0]}; pass \`pageTable\` for a paged cache`,
    );
  }
  return {
    k,
    v,
    shape: {
      kvType: DTYPE_CODES[k.dtype],
      numKvHeads,
      numPages: k.shape[0],
      pageTokens,
      maxPages: 0,
      kPageStride: k.strides[0],
      kTokenStride: k.strides[tokenAxis],
      kHeadStride: k.strides[headAxis],
      vPageStride: v.strides[0],
      vTokenStride: v.strides[tokenAxis],
      vHeadStride: v.strides[headAxis],
    },
  };
}

export function prepareCall(options: DecodeOptions<Operand>, plan: NativePlan | null): PreparedCall {
  expectObject('options', options);
  const queries = prepareQueries(options.q);
  const { k, v, shape } = prepareCache(options, queries);
  const { q } = queries;
  const { batch, headDim } = queries.shape;
  const pageTable = options.pageTable === undefined ? null : preparePages(options.pageTable, batch);
  const maxPages = pageTable === null ? 1 : pageTable.length / batch;
  const contextLengths = prepareLengths(
    options.contextLengths ?? new Int32Array(batch).fill(Math.min(maxPages * shape.pageTokens, LIMITS.int32)),
  );
  if (contextLengths.length !== batch) {
    throw new RangeError(
      `Expected \`contextLengths\` to hold ${batch} lengths, one a sequence, got ${contextLengths.length}`,
    );
  }
  const scale = prepareScale(options.scale, headDim);
  const out = prepareTarget('out', options.out, q.shape, q.dtype);
  const lse = prepareTarget('lse', options.lse, q.shape.slice(0, -1), 'f32');
  const schedule = prepareSchedule(options);
  shape.maxPages = maxPages;
  const headsAdjacent = shape.kHeadStride === headDim && shape.vHeadStride === headDim;
  const [qMemory, kMemory, vMemory, outMemory, lseMemory] = [memoryOf(q), memoryOf(k), memoryOf(v), out.data, lse.data];
  return {
    result: { out, lse },
    views: () => hostViews({ q: qMemory, k: kMemory, v: vMemory, out: outMemory, lse: lseMemory }),
    run: (device, asynchronous) =>
      device.decode(
        asynchronous,
        callNumbers({ schedule, queries: queries.shape, kv: shape, scale, headsAdjacent }),
        qMemory,
        outMemory,
        lseMemory,
        kMemory,
        vMemory,
        contextLengths,
        pageTable,
        plan,
      ),
  };
}

/** An operand's memory as native calls take it. */
export function memoryOf(t: Operand): ArrayBufferView | NativeMemory {
  if (t instanceof DeviceTensor) return deviceMemoryOf(t);
  const { data } = t; // checked, but a caller's own tensor may say something else each time
  if (!ArrayBuffer.isView(data)) throw new TypeError(`Expected \`data\` to be a typed array, got ${describe(data)}`);
  return data;
}

function expectOperand(name: string, value: unknown): Operand & { dtype: DType } {
  if (!(value instanceof DeviceTensor)) return expectTensor(name, value);
  const { dtype } = value;
  if (dtype === 'i32') throw new TypeError(`Expected \`${name}\` dtype to be 'f32', 'f16' or 'bf16', got 'i32'`);
  return value as DeviceTensor & { dtype: DType };
}

/** Views of host memory that native code reads or writes, by name. */
export type NamedViews = [string, ArrayBufferView][];

export function hostViews(memory: Record<string, ArrayBufferView | NativeMemory>): NamedViews {
  return Object.entries(memory).filter((entry): entry is [string, ArrayBufferView] => ArrayBuffer.isView(entry[1]));
}

/** Asynchronous calls read memory after JavaScript has gone on, so it must be memory that cannot shrink meanwhile. */
export function expectFixedBuffers(views: NamedViews): void {
  for (const [name, view] of views) {
    const buffer = view.buffer as ArrayBuffer & { resizable?: boolean };
    if (buffer.resizable) {
      throw new TypeError(
        `Expected \`${name}\` of an asynchronous call to lie in a buffer of fixed length, got a resizable ArrayBuffer`,
      );
    }
  }
}

/**
 * Remembers which views hold memory before a call. The check that it returns is for afterwards: a buffer that was
 * transferred away meanwhile makes the result worthless, and says so.
 */
export function rememberBuffers(views: NamedViews): () => void {
  const held = views.filter(([, view]) => view.byteLength > 0);
  return () => {
    const lost = held.find(([, view]) => view.byteLength === 0);
    if (lost === undefined) return;
    throw new LeanAttentionError(
      'BUFFER_DETACHED',
      `The buffer of \`${lost[0]}\` was transferred away while the call was using it; transfer buffers only after the promise has settled`,
    );
  };
}

function expectUnitStride(name: string, t: Operand): void {
  const last = t.shape.length - 1;
  if (t.strides[last] !== 1)
    throw new RangeError(`Expected \`${name}\` strides[${last}], headDim, to be 1, got ${t.strides[last]}`);
}

function expectAxis(name: string, t: Operand, axis: number, meaning: string, low: number, high: number): number {
  const length = t.shape[axis];
  if (length < low || length > high) {
    const range = high < LIMITS.int32 ? `from ${low} to ${high}` : length < low ? `at least ${low}` : `at most ${high}`;
    throw new RangeError(`Expected \`${name}\` shape[${axis}], ${meaning}, to be ${range}, got ${length}`);
  }
  return length;
}

/** [batch, maxPages]; lists of unequal length are filled up with -1, which no context may reach. */
function preparePages(pageTable: Int32Array | readonly (readonly number[])[], batch: number): Int32Array {
  if (types.isInt32Array(pageTable)) {
    if (pageTable.length % batch !== 0) {
      throw new RangeError(
        `Expected \`pageTable\` to hold a multiple of batch ${batch} entries, got ${pageTable.length}`,
      );
    }
    return pageTable;
  }
  if (!Array.isArray(pageTable)) {
    throw new TypeError(`Expected \`pageTable\` to be an Int32Array or an array of arrays, got ${describe(pageTable)}`);
  }
  if (pageTable.length !== batch) {
    throw new RangeError(`Expected \`pageTable\` to hold ${batch} lists, one a sequence, got ${pageTable.length}`);
  }
  const rows = Array.from(pageTable, (row, sequence) =>
    expectIntegers(`pageTable[${sequence}]`, row, -(2 ** 31), LIMITS.int32),
  );
  const maxPages = rows.reduce((most, row) => Math.max(most, row.length), 0);
  const table = new Int32Array(batch * maxPages).fill(-1);
  for (const [sequence, row] of rows.entries()) table.set(row, sequence * maxPages);
  return table;
}

export function prepareTarget(
  name: string,
  given: Tensor | undefined,
  shape: readonly number[],
  dtype: Tensor['dtype'],
): Tensor {
  if (given === undefined) return zeros(shape, dtype);
  const target = expectTensor(name, given);
  if (target.dtype !== dtype) throw new TypeError(`Expected \`${name}\` dtype to be '${dtype}', got '${target.dtype}'`);
  expectShape(name, target, shape);
  expectContiguous(name, target);
  return target;
}
