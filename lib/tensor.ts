// Tensors: typed arrays with an element type and a shape. Nothing is copied; views and strides are honoured.
import { types } from 'node:util';
import { DTYPE_CODES, type DType, isDType } from './dtype';
import { LeanAttentionError } from './errors';
import { native } from './native';
import { describe, expectIntegers, expectObject } from './validate';

/** What tensors live in. float16 and bfloat16 are bit patterns in a Uint16Array (a Float16Array is viewed as one). */
export type TensorData = Float32Array | Uint16Array;

/** A view of numbers. Make one with `tensor`. */
export interface Tensor {
  readonly data: TensorData;
  readonly dtype: DType;
  /** Length of each axis. */
  readonly shape: readonly number[];
  /** Elements from one index to the next, for each axis. */
  readonly strides: readonly number[];
}

export interface TensorOptions {
  /** Default: 'f32' over a Float32Array, 'f16' over a Float16Array. A Uint16Array needs it said. */
  dtype?: DType;
  /** In elements, for each axis; default: contiguous, the last axis fastest. */
  strides?: readonly number[];
}

/** Strides of a contiguous tensor. */
function contiguousStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

/** Copies of the strides given for a shape, or those of a contiguous tensor. */
export function prepareStrides(shape: readonly number[], given: readonly number[] | undefined): number[] {
  const strides = given === undefined ? contiguousStrides(shape) : expectIntegers('strides', given, 0);
  if (strides.length !== shape.length) {
    throw new RangeError(
      `Expected \`strides\` to have an entry for each of the ${shape.length} axes, got ${strides.length}`,
    );
  }
  return strides;
}

export function numElements(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

export function isContiguous({ shape, strides }: Pick<Tensor, 'shape' | 'strides'>): boolean {
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] > 1 && strides[axis] !== step) return false;
    step *= shape[axis];
  }
  return true;
}

export function expectContiguous(name: string, t: Pick<Tensor, 'shape' | 'strides'>): void {
  if (!isContiguous(t))
    throw new RangeError(`Expected \`${name}\` to be contiguous, got strides [${t.strides.join(', ')}]`);
}

/** Loops, as V8 does not inline the methods of frozen arrays, and streams ask in every call. */
export function isShape(shape: readonly number[], expected: readonly number[], axes = expected.length): boolean {
  if (shape.length !== axes) return false;
  for (let axis = 0; axis < axes; axis++) if (shape[axis] !== expected[axis]) return false;
  return true;
}

/** That a tensor has a shape, or the first axes of one. */
export function expectShape(
  name: string,
  { shape }: Pick<Tensor, 'shape'>,
  expected: readonly number[],
  axes = expected.length,
): void {
  if (!isShape(shape, expected, axes)) {
    throw new RangeError(
      `Expected \`${name}\` shape to be [${expected.slice(0, axes).join(', ')}], got [${shape.join(', ')}]`,
    );
  }
}

/** Elements from a tensor's first one to past its last. */
export function extent(shape: readonly number[], strides: readonly number[]): number {
  let reach = 1;
  for (let axis = 0; axis < shape.length; axis++) {
    if (shape[axis] === 0) return 0;
    reach += (shape[axis] - 1) * strides[axis];
  }
  return reach;
}

const isFloat16Array = (value: unknown): value is ArrayBufferView =>
  ArrayBuffer.isView(value) && Object.prototype.toString.call(value) === '[object Float16Array]';

/**
 * A tensor over `data`, from its first element on: pass `data.subarray(…)` to start elsewhere.
 *
 * @param data Float32Array for f32; Uint16Array (or Float16Array where there is one) for f16 and bf16 bit patterns.
 * @param shape Length of each axis; 0 is allowed.
 * @throws TypeError for a wrong kind of data or dtype; RangeError for a shape that `data` cannot hold.
 */
export function tensor(data: TensorData, shape: readonly number[], options: TensorOptions = {}): Tensor {
  expectObject('options', options);
  let values: TensorData;
  let dtype = options.dtype;
  if (types.isFloat32Array(data)) {
    dtype ??= 'f32';
    values = data;
  } else if (isFloat16Array(data)) {
    dtype ??= 'f16';
    const view = data as ArrayBufferView;
    values = new Uint16Array(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength / 2);
  } else if (types.isUint16Array(data)) {
    if (dtype === undefined) {
      throw new TypeError(
        "Expected `dtype` 'f16' or 'bf16' for a Uint16Array, which holds bit patterns of either, got undefined",
      );
    }
    values = data;
  } else {
    throw new TypeError(`Expected \`data\` to be a Float32Array or a Uint16Array, got ${describe(data)}`);
  }
  if (!isDType(dtype)) throw new TypeError(`Expected \`dtype\` to be 'f32', 'f16' or 'bf16', got ${describe(dtype)}`);
  if ((dtype === 'f32') !== types.isFloat32Array(values)) {
    throw new TypeError(
      `Expected \`data\` to be a ${dtype === 'f32' ? 'Float32Array' : 'Uint16Array'} for dtype '${dtype}', got ${describe(data)}`,
    );
  }
  const lengths = expectIntegers('shape', shape, 0);
  const strides = prepareStrides(lengths, options.strides);
  const needed = extent(lengths, strides);
  if (needed > values.length) {
    throw new RangeError(
      `Expected \`data\` to hold ${needed} elements for shape [${lengths.join(', ')}], got ${values.length}`,
    );
  }
  return { data: values, dtype, shape: Object.freeze(lengths), strides: Object.freeze(strides) };
}

/** That a value is a tensor whose data still holds what its shape says: callers may make their own, or detach buffers. */
export function expectTensor(name: string, value: unknown): Tensor {
  const t = value as Tensor | null | undefined;
  const isTensor =
    typeof t === 'object' &&
    t !== null &&
    isDType(t.dtype) &&
    (t.dtype === 'f32' ? types.isFloat32Array(t.data) : types.isUint16Array(t.data)) &&
    Array.isArray(t.shape) &&
    Array.isArray(t.strides) &&
    t.strides.length === t.shape.length;
  if (!isTensor) throw new TypeError(`Expected \`${name}\` to be a tensor (see tensor()), got ${describe(value)}`);
  const needed = extent(t.shape, t.strides);
  if (!(needed <= t.data.length)) {
    throw new TypeError(
      `Expected \`${name}\` to hold ${needed} elements, got ${t.data.length}: its ArrayBuffer was detached or shrunk after tensor() was called`,
    );
  }
  return t;
}

function newData(count: number, dtype: DType): TensorData {
  try {
    return dtype === 'f32' ? new Float32Array(count) : new Uint16Array(count);
  } catch {
    throw new LeanAttentionError('OUT_OF_MEMORY', `Not enough memory for a tensor of ${count} elements of '${dtype}'`);
  }
}

/** A contiguous tensor of zeros. */
export function zeros(shape: readonly number[], dtype: DType): Tensor {
  return tensor(newData(numElements(expectIntegers('shape', shape, 0)), dtype), shape, { dtype });
}

/** A tensor's elements, in order, in one array: its own where it is contiguous. */
export function contiguousData(t: Tensor): TensorData {
  return isContiguous(t) ? t.data.subarray(0, numElements(t.shape)) : gather(t);
}

/** The elements of a strided tensor, in order, in one contiguous array. */
function gather(source: Tensor): TensorData {
  const { data, shape, strides } = source;
  const target = newData(numElements(shape), source.dtype);
  const index = new Array<number>(shape.length).fill(0);
  let offset = 0;
  for (let i = 0; i < target.length; i++) {
    target[i] = data[offset];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      offset += strides[axis];
      index[axis] = index[axis] + 1;
      if (index[axis] < shape[axis]) break;
      offset -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return target;
}

/** A contiguous copy in another element type, rounded to nearest, ties to even. */
export function convert(source: Tensor, dtype: DType): Tensor {
  expectTensor('source', source);
  if (!isDType(dtype)) throw new TypeError(`Expected \`dtype\` to be 'f32', 'f16' or 'bf16', got ${describe(dtype)}`);
  const target = zeros(source.shape, dtype);
  native().convert(contiguousData(source), DTYPE_CODES[source.dtype], target.data, DTYPE_CODES[dtype]);
  return target;
}
