// From the options of a call to what native code takes: defaults, checks, flat numbers.
import { types } from 'node:util';
import { DTYPE_CODES, type DType } from './dtype';
import { LeanAttentionError } from './errors';
import { DeviceTensor, expectDeviceTensor } from './memory';
import type { NativeCall, NativePlan, NativeSchedule, NativeShape, NativeStreamCall } from './native';
import {
  COPY_PATHS,
  DEFAULTS,
  type DecodeOptions,
  type DecodeResult,
  LAYOUTS,
  type Layout,
  LIMITS,
  type ScheduleOptions,
  STRATEGIES,
  STRATEGY_CODES,
  type StreamDecodeOptions,
} from './options';
import { expectTensor, extent, isContiguous, type Tensor, zeros } from './tensor';
import { describe, expectInteger, expectIntegers, expectObject, expectOneOf } from './validate';

/** A call that is ready to run, and what it will have written. */
export interface PreparedCall {
  call: NativeCall;
  result: DecodeResult;
}

export function prepareSchedule(options: ScheduleOptions): NativeSchedule {
  const strategy = expectOneOf('strategy', options.strategy ?? DEFAULTS.strategy, STRATEGIES);
  if (options.splits !== undefined && strategy !== 'fixed-split') {
    throw new RangeError(`Expected \`splits\` only with the strategy 'fixed-split', got it with '${strategy}'`);
  }
  return {
    strategy: STRATEGY_CODES[strategy],
    workers:
      options.workers === undefined ? DEFAULTS.workers : expectInteger('workers', options.workers, 1, LIMITS.workers),
    splits: options.splits === undefined ? DEFAULTS.splits : expectInteger('splits', options.splits, 1, LIMITS.splits),
    ...prepareLaunch(options.launch),
  };
}

function prepareLaunch(launch: ScheduleOptions['launch']): Pick<NativeSchedule, 'copies' | 'ctasPerSm'> {
  if (launch !== undefined) expectObject('launch', launch);
  const { copies = DEFAULTS.copies, ctasPerSm } = launch ?? {};
  return {
    copies: COPY_PATHS.indexOf(expectOneOf('launch.copies', copies, COPY_PATHS)),
    ctasPerSm:
      ctasPerSm === undefined ? DEFAULTS.ctasPerSm : expectInteger('launch.ctasPerSm', ctasPerSm, 1, LIMITS.ctasPerSm),
  };
}

/** Context lengths as native code takes them. Their range is checked there, against a copy that nobody changes. */
export function prepareLengths(lengths: Int32Array | readonly number[]): Int32Array {
  if (types.isInt32Array(lengths)) return lengths;
  return Int32Array.from(expectIntegers('contextLengths', lengths, 0, LIMITS.int32));
}

type Operand = Tensor | DeviceTensor;

/** What a call reads, and its shape as native code takes it. */
interface PreparedShape {
  shape: Omit<NativeShape, 'maxPages' | 'scale'>;
  q: Operand;
  k: Operand;
  v: Operand;
}

/** Checks q, k and v against each other. */
function prepareShape(options: {
  q: Operand;
  k: Operand;
  v: Operand;
  layout?: Layout | undefined;
  pageTable?: unknown;
}): PreparedShape {
  const q = expectOperand('q', options.q);
  const k = expectOperand('k', options.k);
  const v = expectOperand('v', options.v);
  const layout = expectOneOf('layout', options.layout ?? DEFAULTS.layout, LAYOUTS);
  const [tokenAxis, headAxis] = layout === 'NHD' ? [1, 2] : [2, 1];

  if (q.shape.length !== 3 && q.shape.length !== 4) {
    throw new RangeError(
      `Expected \`q\` shape to be [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim], got [${q.shape.join(', ')}]`,
    );
  }
  const [batch, queryLen, numQueryHeads, headDim] =
    q.shape.length === 4 ? q.shape : [q.shape[0], 1, q.shape[1], q.shape[2]];
  expectAxis('q', q, 0, 'batch', 1, LIMITS.int32);
  if (q.shape.length === 4) expectAxis('q', q, 1, 'queryLen', 1, LIMITS.queryLen);
  expectAxis('q', q, q.shape.length - 1, 'headDim', 8, LIMITS.headDim);
  if (headDim % 8 !== 0) {
    throw new RangeError(`Expected \`q\` shape[${q.shape.length - 1}], headDim, to be a multiple of 8, got ${headDim}`);
  }

  const axes = layout === 'NHD' ? 'tokens, numKvHeads' : 'numKvHeads, tokens';
  if (k.shape.length !== 4) {
    throw new RangeError(
      `Expected \`k\` shape to be [${options.pageTable === undefined ? 'batch' : 'numPages'}, ${axes}, headDim], got [${k.shape.join(', ')}]`,
    );
  }
  if (k.shape[3] !== headDim)
    throw new RangeError(`Expected \`k\` shape[3] to equal headDim ${headDim}, got ${k.shape[3]}`);
  if (v.shape.length !== 4 || v.shape.some((length, axis) => length !== k.shape[axis])) {
    throw new RangeError(
      `Expected \`v\` shape to equal that of \`k\` [${k.shape.join(', ')}], got [${v.shape.join(', ')}]`,
    );
  }
  if (v.dtype !== k.dtype)
    throw new TypeError(`Expected \`v\` dtype to equal that of \`k\` '${k.dtype}', got '${v.dtype}'`);
  const numKvHeads = expectAxis('k', k, headAxis, 'numKvHeads', 1, LIMITS.int32);
  const pageTokens = expectAxis('k', k, tokenAxis, 'tokens', 1, LIMITS.int32);
  if (numQueryHeads === 0 || numQueryHeads % numKvHeads !== 0) {
    throw new RangeError(
      `Expected \`q\` shape[${q.shape.length - 2}], numQueryHeads, to be a multiple of numKvHeads ${numKvHeads}, got ${numQueryHeads}`,
    );
  }
  for (const [name, t] of Object.entries({ q, k, v })) {
    const last = t.shape.length - 1;
    if (t.strides[last] !== 1)
      throw new RangeError(`Expected \`${name}\` strides[${last}], headDim, to be 1, got ${t.strides[last]}`);
  }

  if (options.pageTable === undefined && k.shape[0] !== batch) {
    throw new RangeError(
      `Expected \`k\` shape[0] to equal batch ${batch}, got ${k.shape[0]}; pass \`pageTable\` for a paged cache`,
    );
  }
  const four = q.shape.length === 4;
  return {
    q,
    k,
    v,
    shape: {
      qType: DTYPE_CODES[q.dtype as DType],
      kvType: DTYPE_CODES[k.dtype as DType],
      batch,
      queryLen,
      numQueryHeads,
      numKvHeads,
      headDim,
      numPages: k.shape[0],
      pageTokens,
      qSequenceStride: q.strides[0],
      qQueryStride: four ? q.strides[1] : 0,
      qHeadStride: q.strides[four ? 2 : 1],
      kPageStride: k.strides[0],
      kTokenStride: k.strides[tokenAxis],
      kHeadStride: k.strides[headAxis],
      vPageStride: v.strides[0],
      vTokenStride: v.strides[tokenAxis],
      vHeadStride: v.strides[headAxis],
    },
  };
}

function prepareScale(given: number | undefined, headDim: number): number {
  const scale = given ?? DEFAULTS.scale(headDim);
  if (typeof scale !== 'number') throw new TypeError(`Expected \`scale\` to be a number, got ${describe(scale)}`);
  if (!Number.isFinite(scale)) throw new RangeError(`Expected \`scale\` to be finite, got ${scale}`);
  return scale;
}

export function prepareCall(
  options: DecodeOptions<Operand>,
  plan: { native: NativePlan; batch: number } | null,
): PreparedCall {
  expectObject('options', options);
  const { q, k, v, shape } = prepareShape(options);
  const { batch, pageTokens } = shape;
  const pageTable = options.pageTable === undefined ? null : preparePages(options.pageTable, batch);
  const maxPages = pageTable === null ? 1 : pageTable.length / batch;
  const contextLengths = prepareLengths(
    options.contextLengths ?? new Int32Array(batch).fill(Math.min(maxPages * pageTokens, LIMITS.int32)),
  );
  if (contextLengths.length !== batch) {
    throw new RangeError(
      `Expected \`contextLengths\` to hold ${batch} lengths, one a sequence, got ${contextLengths.length}`,
    );
  }
  const scale = prepareScale(options.scale, shape.headDim);
  const out = prepareTarget('out', options.out, q.shape, q.dtype as DType);
  const lse = prepareTarget('lse', options.lse, q.shape.slice(0, -1), 'f32');
  expectApart({ out, lse }, { q, k, v });
  return {
    result: { out, lse },
    call: {
      ...shape,
      ...prepareSchedule(options),
      q: memoryOf(q),
      k: memoryOf(k),
      v: memoryOf(v),
      out: out.data,
      lse: lse.data as Float32Array,
      contextLengths,
      pageTable,
      plan: plan === null ? null : plan.native,
      maxPages,
      scale,
    },
  };
}

/** The call of a stream: native code reads the lengths and the page table when the work runs. */
export function prepareStreamCall(options: StreamDecodeOptions): NativeStreamCall {
  expectObject('options', options);
  for (const name of ['q', 'k', 'v'] as const) expectDeviceTensor(name, options[name]);
  const { q, shape } = prepareShape(options);
  const lengths = expectDeviceTensor('contextLengths', options.contextLengths, 'i32');
  expectDeviceShape('contextLengths', lengths, [shape.batch]);
  const table = options.pageTable === undefined ? null : expectDeviceTensor('pageTable', options.pageTable, 'i32');
  if (table !== null && (table.shape.length !== 2 || table.shape[0] !== shape.batch || !isContiguous(table))) {
    throw new RangeError(
      `Expected \`pageTable\` to be contiguous, of shape [${shape.batch}, maxPages], got [${table.shape.join(', ')}]`,
    );
  }
  const out = expectDeviceTensor('out', options.out, q.dtype);
  expectDeviceShape('out', out, q.shape);
  const lse = expectDeviceTensor('lse', options.lse, 'f32');
  expectDeviceShape('lse', lse, q.shape.slice(0, -1));
  return {
    ...shape,
    ...prepareSchedule(options),
    q: options.q.view,
    k: options.k.view,
    v: options.v.view,
    out: out.view,
    lse: lse.view,
    contextLengths: lengths.view,
    pageTable: table === null ? null : table.view,
    maxPages: table === null ? 1 : table.shape[1],
    scale: prepareScale(options.scale, shape.headDim),
  };
}

function expectOperand(name: string, value: unknown): Operand {
  if (!(value instanceof DeviceTensor)) return expectTensor(name, value);
  if (value.dtype === 'i32') throw new TypeError(`Expected \`${name}\` dtype to be 'f32', 'f16' or 'bf16', got 'i32'`);
  return value;
}

function expectDeviceShape(name: string, t: DeviceTensor, shape: readonly number[]): void {
  if (t.shape.length !== shape.length || t.shape.some((length, axis) => length !== shape[axis])) {
    throw new RangeError(`Expected \`${name}\` shape to be [${shape.join(', ')}], got [${t.shape.join(', ')}]`);
  }
  if (!isContiguous(t))
    throw new RangeError(`Expected \`${name}\` to be contiguous, got strides [${t.strides.join(', ')}]`);
}

const memoryOf = (t: Operand): NativeCall['q'] => (t instanceof DeviceTensor ? t.view : t.data);

/** Asynchronous calls read memory after JavaScript has gone on, so it must be memory that cannot shrink meanwhile. */
export function expectFixedBuffers(call: NativeCall): void {
  for (const [name, view] of hostViews(call)) {
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
export function rememberBuffers(call: NativeCall): () => void {
  const views = hostViews(call).filter(([, view]) => view.byteLength > 0);
  return () => {
    const lost = views.find(([, view]) => view.byteLength === 0);
    if (lost === undefined) return;
    throw new LeanAttentionError(
      'BUFFER_DETACHED',
      `The buffer of \`${lost[0]}\` was transferred away while the call was using it; transfer buffers only after the promise has settled`,
    );
  };
}

function hostViews(call: NativeCall): [string, ArrayBufferView][] {
  return (['q', 'k', 'v', 'out', 'lse'] as const).flatMap((name) => {
    const view = call[name];
    return ArrayBuffer.isView(view) ? [[name, view]] : [];
  });
}

function expectAxis(name: string, t: Operand, axis: number, meaning: string, low: number, high: number): number {
  const length = t.shape[axis];
  if (length < low || length > high) {
    const range = high === LIMITS.int32 ? `at least ${low}` : `from ${low} to ${high}`;
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
  const rows = pageTable.map((row, sequence) =>
    expectIntegers(`pageTable[${sequence}]`, row, -(2 ** 31), LIMITS.int32),
  );
  const maxPages = Math.max(0, ...rows.map((row) => row.length));
  const table = new Int32Array(batch * maxPages).fill(-1);
  for (const [sequence, row] of rows.entries()) table.set(row, sequence * maxPages);
  return table;
}

function prepareTarget(
  name: string,
  given: Tensor | undefined,
  shape: readonly number[],
  dtype: Tensor['dtype'],
): Tensor {
  if (given === undefined) return zeros(shape, dtype);
  const target = expectTensor(name, given);
  if (target.dtype !== dtype) throw new TypeError(`Expected \`${name}\` dtype to be '${dtype}', got '${target.dtype}'`);
  if (target.shape.length !== shape.length || target.shape.some((length, axis) => length !== shape[axis])) {
    throw new RangeError(`Expected \`${name}\` shape to be [${shape.join(', ')}], got [${target.shape.join(', ')}]`);
  }
  if (!isContiguous(target))
    throw new RangeError(`Expected \`${name}\` to be contiguous, got strides [${target.strides.join(', ')}]`);
  return target;
}

/** Outputs must not lie over inputs or each other: workers write while others still read. */
function expectApart(targets: Record<string, Tensor>, sources: Record<string, Operand>): void {
  const overlaps = (a: Tensor, b: Tensor): boolean =>
    a.data.buffer === b.data.buffer &&
    a.data.byteOffset < b.data.byteOffset + extent(b.shape, b.strides) * b.data.BYTES_PER_ELEMENT &&
    b.data.byteOffset < a.data.byteOffset + extent(a.shape, a.strides) * a.data.BYTES_PER_ELEMENT;
  for (const [name, target] of Object.entries(targets)) {
    for (const [other, tensor] of Object.entries({ ...sources, ...targets })) {
      if (other !== name && !(tensor instanceof DeviceTensor) && overlaps(target, tensor)) {
        throw new RangeError(`Expected \`${name}\` to have memory of its own, got memory that \`${other}\` uses too`);
      }
    }
  }
}
