// Tensors in a device's memory. They hold no numbers that JavaScript can see: upload and download move them.
import { types } from 'node:util';
import { DTYPE_BYTES, DTYPES, type DType } from './dtype';
import type { NativeMemory } from './native';
import { DEFAULTS } from './options';
import {
  contiguousData,
  expectContiguous,
  expectTensor,
  extent,
  isContiguous,
  isShape,
  numElements,
  prepareStrides,
  type Tensor,
  zeros,
} from './tensor';
import { describe, expectInteger, expectIntegers, expectOneOf } from './validate';

/** Element types in device memory: those of tensors, and 32-bit integers for context lengths and page tables. */
export type DeviceDType = DType | 'i32';

const DEVICE_DTYPES: readonly DeviceDType[] = [...DTYPES, 'i32'];

export interface DeviceTensorOptions {
  /** Default: 'f32'. */
  dtype?: DeviceDType;
  /** In elements, for each axis; default: contiguous, the last axis fastest. */
  strides?: readonly number[];
}

export function deviceDTypeBytes(dtype: DeviceDType): number {
  return dtype === 'i32' ? 4 : DTYPE_BYTES[dtype];
}

/** Shape, strides and type of a tensor that is yet to get its memory. */
export interface DeviceShape {
  dtype: DeviceDType;
  shape: readonly number[];
  strides: readonly number[];
  bytes: number;
}

export function prepareDeviceShape(shape: readonly number[], options: DeviceTensorOptions): DeviceShape {
  const dtype = expectOneOf('dtype', options.dtype ?? DEFAULTS.deviceDType, DEVICE_DTYPES);
  const lengths = expectIntegers('shape', shape, 0);
  const strides = prepareStrides(lengths, options.strides);
  const bytes = extent(lengths, strides) * deviceDTypeBytes(dtype);
  if (!Number.isSafeInteger(bytes)) {
    throw new RangeError(`Expected \`shape\` to be one that memory can hold, got [${lengths.join(', ')}]`);
  }
  return { dtype, shape: Object.freeze(lengths), strides: Object.freeze(strides), bytes };
}

/** The class lends its memory to this library's native calls, and to nobody else. */
export let deviceMemoryOf: (t: DeviceTensor) => NativeMemory;

/**
 * A tensor in a device's memory. Made by `device.alloc`, `device.upload` and `device.wrap`. Enqueued work keeps the memory
 * that it uses; dropped tensors are freed by the garbage collector, which cannot see their size: dispose of large ones.
 */
export class DeviceTensor {
  readonly dtype: DeviceDType;
  /** Length of each axis. */
  readonly shape: readonly number[];
  /** Elements from one index to the next, for each axis. */
  readonly strides: readonly number[];
  /** From its first element to past its last. */
  readonly bytes: number;
  readonly #memory: NativeMemory; // of as many bytes

  /** @internal */
  constructor(memory: NativeMemory, { dtype, shape, strides, bytes }: DeviceShape) {
    this.#memory = memory;
    this.dtype = dtype;
    this.shape = shape;
    this.strides = strides;
    this.bytes = bytes;
  }

  /** Address of the first element in the device's memory, for other libraries; 0n once disposed. */
  get pointer(): bigint {
    return this.#memory.pointer();
  }

  /** The part from index `begin` of the first axis to before `end`, in the same memory: disposing either disposes both. */
  slice(begin: number, end: number): DeviceTensor {
    const [length, ...rest] = this.shape;
    if (length === undefined) throw new RangeError('Expected a tensor of at least one axis, got a shape of []');
    expectInteger('begin', begin, 0, length);
    expectInteger('end', end, begin, length);
    const shape = [end - begin, ...rest];
    const size = deviceDTypeBytes(this.dtype);
    const bytes = extent(shape, this.strides) * size;
    const offset = bytes === 0 ? 0 : begin * this.strides[0] * size;
    const part = { dtype: this.dtype, shape: Object.freeze(shape), strides: this.strides, bytes };
    return new DeviceTensor(this.#memory.part(offset, bytes), part);
  }

  /** Lets the memory go, once enqueued work no longer uses it. Idempotent. Memory that was wrapped stays its owner's. */
  dispose(): void {
    this.#memory.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  static {
    deviceMemoryOf = (t) => t.#memory;
  }
}

export function expectDeviceTensor(name: string, value: unknown, dtype?: DeviceDType): DeviceTensor {
  if (!(value instanceof DeviceTensor)) {
    throw new TypeError(
      `Expected \`${name}\` to be a tensor in the device's memory (see device.upload()), got ${describe(value)}`,
    );
  }
  if (dtype !== undefined && value.dtype !== dtype) {
    throw new TypeError(`Expected \`${name}\` dtype to be '${dtype}', got '${value.dtype}'`);
  }
  return value;
}

/** A copy to the device: what to copy, and what the target must be like. */
interface Upload {
  data: ArrayBufferView;
  dtype: DeviceDType;
  shape: readonly number[];
  target: DeviceTensor | undefined;
}

export function prepareUpload(source: Tensor | Int32Array, target: unknown): Upload {
  const numbers = types.isInt32Array(source);
  const from = numbers ? null : expectTensor('source', source);
  const dtype = from === null ? 'i32' : from.dtype;
  const shape = from === null ? [(source as Int32Array).length] : from.shape;
  const data = from === null ? (source as Int32Array) : contiguousData(from);
  if (target === undefined) return { data, dtype, shape, target: undefined };
  const to = expectDeviceTensor('target', target, dtype);
  // Page tables are flat in JavaScript: of integers, only the number counts.
  const fits = numbers ? numElements(to.shape) === shape[0] : isShape(to.shape, shape);
  if (!fits || !isContiguous(to)) {
    throw new RangeError(
      `Expected \`target\` to be contiguous, of shape [${shape.join(', ')}], got [${to.shape.join(', ')}]`,
    );
  }
  return { data, dtype, shape, target: to };
}

export function prepareDownload(source: unknown, target: unknown): Tensor {
  const from = expectDeviceTensor('source', source);
  if (from.dtype === 'i32') throw new TypeError("Expected `source` dtype to be 'f32', 'f16' or 'bf16', got 'i32'");
  expectContiguous('source', from);
  if (target === undefined) return zeros(from.shape, from.dtype);
  const to = expectTensor('target', target);
  if (to.dtype !== from.dtype) {
    throw new TypeError(`Expected \`target\` dtype to be '${from.dtype}', got '${to.dtype}'`);
  }
  if (!isShape(to.shape, from.shape) || !isContiguous(to)) {
    throw new RangeError(
      `Expected \`target\` to be contiguous, of shape [${from.shape.join(', ')}], got [${to.shape.join(', ')}]`,
    );
  }
  return to;
}
