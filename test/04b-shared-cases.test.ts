// Caches dumped by other frameworks, under every strategy, worker count and instruction set.
import type { InstructionSet, Strategy } from 'lean-attention';
import { afterAll, describe, test } from 'vitest';
import { expectClose } from './helpers/compare';
import { installation, openDevice, referenceDecode } from './helpers/library';
import { readSharedCase, sharedCases, whyNoSharedCases } from './helpers/shared-cases';

const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];
const devices = (installation().cpu.instructionSets as InstructionSet[]).map((instructionSet) =>
  openDevice('cpu', { instructionSet, threads: 2 }),
);
afterAll(() => {
  for (const device of devices) device.dispose();
});

if (whyNoSharedCases !== undefined) test('shared cases', ({ skip }) => skip(whyNoSharedCases));

describe.each(sharedCases)('%s', (name) => {
  const options = readSharedCase(name);
  const reference = referenceDecode(options);
  test.each(STRATEGIES)('%s', (strategy) => {
    for (const device of devices) {
      for (const workers of [1, 2, 3, 7, 64, 132]) {
        const what = `${device.instructionSet}, ${workers} workers`;
        expectClose(device.decodeSync({ ...options, strategy, workers }), reference, what);
      }
    }
  });
});
