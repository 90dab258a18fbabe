// Poison for whatever must not be read: NaN in memory, absurd indices in page tables.
import type { DType, TensorData } from 'lean-attention';
import { emptyData, store } from './numbers';

/** Memory that is all NaN; cases then write the elements that may be read. */
export function poisoned(length: number, dtype: DType, shared = false): TensorData {
  const data = emptyData(length, dtype, shared);
  store(data, 0, Number.NaN, dtype);
  return data.fill(data[0]);
}

/** Entries for the padding of a page table. */
export const ABSURD_PAGES = [2 ** 31 - 1, -1, -(2 ** 31), 1_000_003] as const;
