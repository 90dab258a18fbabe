// Merging results that were computed in parts.
import { DTYPE_CODES } from './dtype';
import { native } from './native';
import type { DecodeResult } from './options';
import { contiguousData, expectShape, expectTensor, type Tensor, zeros } from './tensor';
import { describe, expectObject } from './validate';

/**
 * Merges decode results of the same queries over disjoint parts of a context into the result over all of them, exactly up
 * to rounding. Parts merge in the order given, so the same parts give the same bits. A part with lse -infinity is empty.
 *
 * @param states Results with `out` [..., headDim] of one shape and type, and `lse` [...] of f32.
 */
export function mergeStates(states: readonly DecodeResult[]): DecodeResult {
  if (!Array.isArray(states)) throw new TypeError(`Expected \`states\` to be an array, got ${describe(states)}`);
  if (states.length === 0) throw new RangeError('Expected `states` to hold at least one result, got none');
  for (const [index, state] of (states as readonly DecodeResult[]).entries()) {
    expectObject(`states[${index}]`, state);
    expectTensor(`states[${index}].out`, state.out);
    expectTensor(`states[${index}].lse`, state.lse);
  }
  const first: Tensor = states[0].out;
  if (!(first.shape[first.shape.length - 1] > 0)) {
    throw new RangeError(`Expected \`states[0].out\` shape to be [..., headDim], got [${first.shape.join(', ')}]`);
  }
  for (const [index, { out, lse }] of (states as readonly DecodeResult[]).entries()) {
    expectLike(`states[${index}].out`, out, first.shape, first.dtype);
    expectLike(`states[${index}].lse`, lse, first.shape.slice(0, -1), 'f32');
  }
  const result = { out: zeros(first.shape, first.dtype), lse: zeros(first.shape.slice(0, -1), 'f32') };
  native().mergeStates(
    states.map(({ out }) => contiguousData(out)),
    states.map(({ lse }) => contiguousData(lse) as Float32Array),
    DTYPE_CODES[first.dtype],
    first.shape[first.shape.length - 1],
    result.out.data,
    result.lse.data as Float32Array,
  );
  return result;
}

function expectLike(name: string, t: Tensor, shape: readonly number[], dtype: Tensor['dtype']): void {
  if (t.dtype !== dtype) throw new TypeError(`Expected \`${name}\` dtype to be '${dtype}', got '${t.dtype}'`);
  expectShape(name, t, shape);
}
