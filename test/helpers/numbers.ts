// Numbers as tensors hold them. Written apart from the library, so that its rounding is not tested against itself.
import type { DType, TensorData } from 'lean-attention';

const bits32 = new Uint32Array(1);
const float32 = new Float32Array(bits32.buffer);
const float64 = new Float64Array(1);
const words64 = new Uint32Array(float64.buffer); // little-endian, as every platform of this library is

/** floor(log2(|value|)), read from the double itself because Math.log2 rounds. */
function exponentOf(value: number): number {
  float64[0] = value;
  return ((words64[1] >>> 20) & 0x7ff) - 1023;
}

/** The nearest value of a binary format with 8 or 5 exponent bits, ties to even, as a double. */
export function round(value: number, dtype: DType): number {
  if (dtype === 'f32') return Math.fround(value);
  if (!Number.isFinite(value) || value === 0) return value;
  const [fractionBits, lowest, largest] = dtype === 'f16' ? [10, -14, 65504] : [7, -126, 3.3895313892515355e38];
  const exponent = Math.max(exponentOf(value), lowest);
  const unit = 2 ** (exponent - fractionBits);
  const scaled = value / unit;
  let rounded = Math.floor(scaled);
  const rest = scaled - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2 !== 0)) rounded += 1;
  const result = rounded * unit;
  return Math.abs(result) > largest ? Math.sign(value) * Infinity : result;
}

/** The bit pattern of a value that the format holds exactly, or of the nearest one. */
export function toBits(value: number, dtype: 'f16' | 'bf16'): number {
  if (Number.isNaN(value)) return dtype === 'f16' ? 0x7e00 : 0x7fc0;
  const rounded = round(value, dtype);
  float32[0] = rounded;
  if (dtype === 'bf16') return bits32[0] >>> 16;
  const sign = (bits32[0] >>> 16) & 0x8000;
  const magnitude = Math.abs(rounded);
  if (magnitude === Infinity) return sign | 0x7c00;
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24);
  return sign | (((bits32[0] & 0x7fffffff) - (112 << 23)) >>> 13);
}

/** The value of a bit pattern. */
export function fromBits(bits: number, dtype: 'f16' | 'bf16'): number {
  if (dtype === 'bf16') {
    bits32[0] = bits << 16;
    return float32[0];
  }
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

export function emptyData(length: number, dtype: DType, shared = false): TensorData {
  const bytes = length * (dtype === 'f32' ? 4 : 2);
  const buffer = shared ? new SharedArrayBuffer(bytes) : new ArrayBuffer(bytes);
  return dtype === 'f32' ? new Float32Array(buffer) : new Uint16Array(buffer);
}

/** Stores a value, rounded to the type. */
export function store(data: TensorData, index: number, value: number, dtype: DType): void {
  data[index] = dtype === 'f32' ? value : toBits(value, dtype);
}

/** All elements as doubles. */
export function toDoubles(data: TensorData, dtype: DType): Float64Array {
  return dtype === 'f32' ? Float64Array.from(data) : Float64Array.from(data, (bits) => fromBits(bits, dtype));
}
