// Comparison with the float64 reference, by the error bounds that the library promises. Positions of NaN and infinities
// are compared before numbers.
import type { DecodeResult, DType, Tensor } from 'lean-attention';
import { expect } from 'vitest';
import type { ReferenceResult } from '../../dist/reference';
import { round, toDoubles } from './numbers';

/** ||out - ref|| / ||ref||, by the type that the output is rounded to. */
export const RELATIVE_ERROR: Readonly<Record<DType, number>> = { f32: 1e-5, f16: 5e-4, bf16: 3.5e-3 };

export interface Errors {
  /** ||out - ref|| / ||ref|| */
  relative: number;
  /** max |out - ref|, and that of the reference rounded to the output's type. */
  largest: number;
  largestOfRounding: number;
  /** max |lse - ref| / (1 + |ref|) */
  lse: number;
}

const kind = (value: number): string => (Number.isFinite(value) ? 'finite' : String(value));

function expectSameKinds(what: string, values: Float64Array, expected: Float64Array): void {
  expect(values.length, `${what}: number of elements`).toBe(expected.length);
  for (let i = 0; i < values.length; ++i) {
    if (kind(values[i]) !== kind(expected[i])) {
      expect.fail(`${what}[${i}]: expected ${expected[i]}, got ${values[i]}`);
    }
  }
}

export function measure(result: DecodeResult, reference: ReferenceResult): Errors {
  const { dtype } = result.out;
  const out = toDoubles(result.out.data, dtype);
  const lse = toDoubles(result.lse.data, 'f32');
  expectSameKinds('out', out, reference.out);
  expectSameKinds('lse', lse, reference.lse);
  const errors: Errors = { relative: 0, largest: 0, largestOfRounding: 0, lse: 0 };
  let difference = 0;
  let norm = 0;
  for (const [i, expected] of reference.out.entries()) {
    if (!Number.isFinite(expected)) continue;
    difference += (out[i] - expected) ** 2;
    norm += expected ** 2;
    errors.largest = Math.max(errors.largest, Math.abs(out[i] - expected));
    errors.largestOfRounding = Math.max(errors.largestOfRounding, Math.abs(round(expected, dtype) - expected));
  }
  errors.relative = difference === 0 ? 0 : Math.sqrt(difference / norm);
  for (const [i, expected] of reference.lse.entries()) {
    if (Number.isFinite(expected))
      errors.lse = Math.max(errors.lse, Math.abs(lse[i] - expected) / (1 + Math.abs(expected)));
  }
  return errors;
}

/**
 * `ordinary`: scores of a few units; else the wider bound for log-sum-exps holds. `ofScores`: what rounding alone does to
 * scores of thousands, which no float32 arithmetic avoids.
 */
export function expectClose(
  result: DecodeResult,
  reference: ReferenceResult,
  what = '',
  ordinary = true,
  ofScores = 0,
): void {
  const errors = measure(result, reference);
  const bound = RELATIVE_ERROR[result.out.dtype] + ofScores;
  expect(errors.relative, `${what}: ||out - ref|| / ||ref||`).toBeLessThanOrEqual(bound);
  expect(errors.largest, `${what}: max |out - ref|`).toBeLessThanOrEqual(
    2 * errors.largestOfRounding + 1e-5 + 5 * ofScores,
  );
  expect(errors.lse, `${what}: lse`).toBeLessThanOrEqual(ordinary ? 1e-5 : 1e-4);
}

const bytes = ({ data }: Tensor): Buffer => Buffer.from(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);

export const sameBits = (a: DecodeResult, b: DecodeResult): boolean =>
  bytes(a.out).equals(bytes(b.out)) && bytes(a.lse).equals(bytes(b.lse));

export function expectSameBits(a: DecodeResult, b: DecodeResult, what = ''): void {
  expect(bytes(a.out).equals(bytes(b.out)), `${what}: bits of out`).toBe(true);
  expect(bytes(a.lse).equals(bytes(b.lse)), `${what}: bits of lse`).toBe(true);
}
