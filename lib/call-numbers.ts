// The numbers of a native call in one array: to read them from objects by name costs native code more than all the rest of
// a call, and a server makes one for every layer of every step.
import type { NativeKvShape, NativeQueryShape, NativeSchedule } from './native';

/** What no tensor says, as of a plan, is 0. */
export interface CallNumbers {
  schedule: NativeSchedule;
  queries: Partial<NativeQueryShape>;
  kv: Partial<NativeKvShape>;
  scale?: number;
  /** A token's heads lie side by side: workers may then cut the context for several of them at the same places. */
  headsAdjacent: boolean;
}

// One array for every call: native code reads it before it returns.
const numbers = new Float64Array(29);

/**
 * In the order of kCallNumbers in csrc/binding/arguments.cpp. The last thing before a call: what reads its other arguments
 * may be the caller's code, and make a call of its own.
 */
export function callNumbers({ schedule, queries, kv, scale = 0, headsAdjacent }: CallNumbers): Float64Array {
  numbers[0] = schedule.strategy;
  numbers[1] = schedule.workers;
  numbers[2] = schedule.splits;
  numbers[3] = schedule.copies;
  numbers[4] = schedule.tileTokens;
  numbers[5] = schedule.stages;
  numbers[6] = schedule.warps;
  numbers[7] = schedule.ctasPerSm;
  numbers[8] = queries.qType ?? 0;
  numbers[9] = queries.batch ?? 0;
  numbers[10] = queries.queryLen ?? 0;
  numbers[11] = queries.numQueryHeads ?? 0;
  numbers[12] = queries.headDim ?? 0;
  numbers[13] = queries.qSequenceStride ?? 0;
  numbers[14] = queries.qQueryStride ?? 0;
  numbers[15] = queries.qHeadStride ?? 0;
  numbers[16] = kv.kvType ?? 0;
  numbers[17] = kv.numKvHeads ?? 0;
  numbers[18] = kv.numPages ?? 0;
  numbers[19] = kv.pageTokens ?? 0;
  numbers[20] = kv.kPageStride ?? 0;
  numbers[21] = kv.kTokenStride ?? 0;
  numbers[22] = kv.kHeadStride ?? 0;
  numbers[23] = kv.vPageStride ?? 0;
  numbers[24] = kv.vTokenStride ?? 0;
  numbers[25] = kv.vHeadStride ?? 0;
  numbers[26] = kv.maxPages ?? 0;
  numbers[27] = scale;
  numbers[28] = headsAdjacent ? 1 : 0;
  return numbers;
}
