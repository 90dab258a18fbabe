// Small safetensors files to run, and to spoil.
import type { TensorToWrite } from '../../dist/cli/safetensors';

export const I32 = (name: string, shape: number[], values: number[]): TensorToWrite => ({
  name,
  dtype: 'I32',
  shape,
  data: Int32Array.from(values),
});
export const F32 = (name: string, shape: number[]): TensorToWrite => ({
  name,
  dtype: 'F32',
  shape,
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i)),
});
export const F16 = (name: string, shape: number[]): TensorToWrite => ({
  name,
  dtype: 'F16',
  shape,
  data: new Uint16Array(shape.reduce((a, b) => a * b, 1)).fill(0x3c00),
});

export const contiguous = (): TensorToWrite[] => [
  F32('q', [2, 4, 16]),
  F32('k', [2, 10, 2, 16]),
  F32('v', [2, 10, 2, 16]),
  I32('context_lengths', [2], [10, 3]),
];
export const paged = (): TensorToWrite[] => [
  F32('q', [2, 1, 4, 16]),
  F32('k', [5, 4, 2, 16]),
  F32('v', [5, 4, 2, 16]),
  I32('page_table', [2, 3], [4, 0, 2, 1, -7, 999]),
  I32('context_lengths', [2], [11, 4]),
];
/** The tensors with some replaced, added, or (by null) left out. */
export function edited(tensors: TensorToWrite[], ...changes: (TensorToWrite | { drop: string })[]): TensorToWrite[] {
  const map = new Map(tensors.map((entry) => [entry.name, entry]));
  for (const change of changes) {
    if ('drop' in change) map.delete(change.drop);
    else map.set(change.name, change);
  }
  return [...map.values()];
}
