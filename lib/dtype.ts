// Element types, as the field names them, and the numbers that native code knows them by.

/** Element type of a tensor: IEEE float32, IEEE float16, or bfloat16 (the upper half of a float32). */
export type DType = 'f32' | 'f16' | 'bf16';

export const DTYPES: readonly DType[] = ['f32', 'f16', 'bf16'];

/** The numbers of csrc/core/numeric.h. */
export const DTYPE_CODES: Readonly<Record<DType, number>> = { f32: 0, f16: 1, bf16: 2 };

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<DType, number>> = { f32: 4, f16: 2, bf16: 2 };

export function isDType(value: unknown): value is DType {
  return DTYPES.some((dtype) => dtype === value);
}
