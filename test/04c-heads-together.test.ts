// Heads that lie side by side in memory are cut at the same places, unless workers are forced: a plan shows it, and decode
// over such plans is exact for every layout, also one that the plan was not made for.
import type { Device, PlanOptions } from 'lean-attention';
import { afterAll, describe, expect, test } from 'vitest';
import { build, type Case, nameOf } from './helpers/cases';
import { expectClose, expectSameBits } from './helpers/compare';
import { openDevice, referenceDecode } from './helpers/library';

const devices: Device[] = [1, 2, 3].map((threads) => openDevice('cpu', { threads }));
afterAll(() => {
  for (const device of devices) device.dispose();
});

const LONG: Case = {
  contexts: [1800, 0, 700, 65],
  queryLen: 1,
  numKvHeads: 4,
  groupSize: 2,
  headDim: 64,
  pageTokens: 0,
  layout: 'NHD',
  placement: 'plain',
  qType: 'f32',
  kvType: 'f32',
  seed: 11,
};

const shapeOf = (c: Case): PlanOptions => ({
  numQueryHeads: c.numKvHeads * c.groupSize,
  numKvHeads: c.numKvHeads,
  headDim: c.headDim,
  queryLen: c.queryLen,
  kvType: c.kvType,
  contextLengths: c.contexts,
});

/** How many heads are cut at the same places: 1, or a divisor of their number. */
function headsTogether(device: Device, options: PlanOptions): number {
  const cuts = new Map<string, number[]>();
  for (const { sequence, kvHead, tileBegin, tileEnd, worker } of device.plan(options).segments()) {
    const key = `${sequence} ${tileBegin} ${tileEnd} ${worker}`;
    cuts.set(key, [...(cuts.get(key) ?? []), kvHead]);
  }
  return Math.min(...[...cuts.values()].map((heads) => heads.length));
}

describe('a plan', () => {
  test.each(devices.map((device) => [device.threads, device] as const))('of %i threads', (threads, device) => {
    const plan = device.plan(shapeOf(LONG));
    const seen = new Set<string>();
    for (const { sequence, kvHead, tileBegin, tileEnd } of plan.segments()) {
      for (let tile = tileBegin; tile < tileEnd; ++tile) {
        const key = `${sequence} ${kvHead} ${tile}`;
        expect(seen.has(key), key).toBe(false);
        seen.add(key);
      }
    }
    const tiles = LONG.contexts.reduce((sum, context) => sum + Math.ceil(context / plan.tileTokens), 0);
    expect([seen.size, plan.numTiles]).toEqual([tiles * 4, tiles * 4]);
    expect(plan.workers).toBe(threads);
    expect(plan.makespanOverIdeal).toBeLessThanOrEqual(1 + 1 / 8);
    expect(headsTogether(device, shapeOf(LONG))).toBe(4);
  });

  test('cuts each head for itself where that is better, or asked for', () => {
    const [, device] = devices;
    expect(headsTogether(device, { ...shapeOf(LONG), workers: 2 }), 'forced workers').toBe(1);
    expect(headsTogether(device, { ...shapeOf(LONG), layout: 'HND' }), 'heads apart').toBe(1);
    expect(headsTogether(device, { ...shapeOf(LONG), strategy: 'flash-attention-2' })).toBe(1);
    // Shares stay balanced: with 12 tiles a head, pairs of heads make 24 units, 12 a thread; all four would make 6.
    expect(headsTogether(device, { ...shapeOf(LONG), contextLengths: [12 * 64] })).toBe(2);
    const short = { ...shapeOf(LONG), numKvHeads: 3, numQueryHeads: 6, contextLengths: [5 * 64] };
    expect(headsTogether(device, short)).toBe(1);
    // Accumulators stay in the L1: 32 rows of 128 dimensions.
    const wide = { ...shapeOf(LONG), headDim: 128, numKvHeads: 8, numQueryHeads: 64 };
    expect(headsTogether(device, wide)).toBe(4);
  });
});

describe('decode', () => {
  const cases: Case[] = [
    LONG,
    { ...LONG, kvType: 'f16', qType: 'f16', pageTokens: 24, seed: 12 },
    { ...LONG, queryLen: 3, contexts: [2, 1500, 0, 129], seed: 13 },
    { ...LONG, numKvHeads: 6, groupSize: 1, headDim: 40, kvType: 'bf16', qType: 'bf16', seed: 14 },
    { ...LONG, contexts: [2000], numKvHeads: 2, groupSize: 7, headDim: 96, placement: 'offset', seed: 15 },
    { ...LONG, contexts: [1300, 1300], layout: 'HND', pageTokens: 100, seed: 16 },
    { ...LONG, contexts: [1300, 1300], placement: 'fused KV', seed: 17 },
  ];
  test.each(cases.map((c) => [nameOf(c), c] as const))('%s', async (_, c) => {
    const options = build(c);
    const expected = referenceDecode(options);
    for (const device of devices) {
      const result = device.decodeSync(options);
      expectClose(result, expected);
      expectSameBits(await device.decode(options), result, 'asynchronous');
      const { contextLengths: __, ...tensors } = options;
      for (const layout of ['NHD', 'HND'] as const) {
        const plan = device.plan({ ...shapeOf(c), layout });
        expectClose(plan.decodeSync(tensors), expected);
      }
    }
  });
});
