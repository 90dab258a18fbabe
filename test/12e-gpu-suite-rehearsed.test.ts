// The GPU's tests (test/20), shortened, over the rehearsed CUDA runtime: they are known to work before they meet a GPU.
import { describe, expect, test } from 'vitest';
import { gpuSuite, type Rig, skipOrFail } from './helpers/gpu-suite';
import { kvCacheSuite } from './helpers/gpu-suite-kv';
import { useRehearsedCuda } from './helpers/rehearsed-cuda';

const cuda = useRehearsedCuda();
const rig: Rig = {
  get device() {
    return cuda.device;
  },
  bytesInUse() {
    const { freeBytes, totalBytes } = cuda.device.memory();
    return totalBytes - freeBytes;
  },
};

gpuSuite(
  rig,
  {
    headDims: [64, 128],
    cases: 24,
    longest: 150,
    long: [[400, 17]],
    replays: 70,
    stepsOfTwoStreams: 10,
    decodes: 200,
    slackBytes: 0,
  },
  60_000,
);

kvCacheSuite(rig);

describe('where a GPU is required', () => {
  test('a skip is a failure', () => {
    const skipped: string[] = [];
    const context = { skip: (reason: string) => skipped.push(reason) } as never;
    const before = process.env.LEAN_ATTENTION_REQUIRE_CUDA;
    process.env.LEAN_ATTENTION_REQUIRE_CUDA = '1';
    expect(() => skipOrFail(context, 'no GPU')).toThrow('Expected nothing to be skipped: no GPU');
    delete process.env.LEAN_ATTENTION_REQUIRE_CUDA;
    skipOrFail(context, 'no GPU');
    expect(skipped).toEqual(['no GPU']);
    if (before !== undefined) process.env.LEAN_ATTENTION_REQUIRE_CUDA = before;
  });
});
