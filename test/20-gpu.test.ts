// On a GPU: `npm run test:gpu`, where whatever would be skipped is a failure. Elsewhere this says what is missing.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Device } from 'lean-attention';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gpuSuite, type Rig, skipOrFail } from './helpers/gpu-suite';
import { kvCacheSuite } from './helpers/gpu-suite-kv';
import { installation, openDevice } from './helpers/library';

const root = fileURLToPath(new URL('..', import.meta.url));
const MINUTE = 60_000;
const K = 1024;
const { built, reason, devices } = installation().cuda;
const gpu = devices.find((device) => device.reason === '');

/** Of this process alone, so that others on the GPU do not matter; of all where the driver does not tell, as in a container. */
function bytesInUse(device: Device): number {
  const query = ['--query-compute-apps=pid,used_memory', '--format=csv,noheader,nounits'];
  const { stdout } = spawnSync('nvidia-smi', query, { encoding: 'utf8' });
  const mebibytes = new RegExp(`^${process.pid}, (\\d+)$`, 'm').exec(stdout ?? '')?.[1];
  const { freeBytes, totalBytes } = device.memory();
  return mebibytes === undefined ? totalBytes - freeBytes : Number(mebibytes) * 2 ** 20;
}

/** Where csrc/cuda/cuda.cmake looks for it, too. */
function findNvcc(): string | undefined {
  const { CUDA_PATH, CUDA_HOME, PATH = '' } = process.env;
  const folders = [CUDA_PATH, CUDA_HOME, '/usr/local/cuda'].flatMap((toolkit) => (toolkit ? [`${toolkit}/bin`] : []));
  return [...folders, ...PATH.split(path.delimiter)].map((folder) => path.join(folder, 'nvcc')).find(existsSync);
}

if (gpu !== undefined) {
  const rig = { bytesInUse: () => bytesInUse(rig.device) } as Rig;
  beforeAll(() => {
    rig.device = openDevice(`cuda:${gpu.index}`);
  });
  afterAll(() => rig.device.dispose());

  describe(`${gpu.name}, compute capability ${gpu.computeCapability}`, () => {
    gpuSuite(
      rig,
      {
        headDims: [64, 80, 96, 112, 128, 192, 256, 40],
        cases: 160,
        longest: 700,
        long: [[64 * K, 17, 5000], new Array<number>(24).fill(3000), [128 * K + 1]],
        replays: 1000,
        stepsOfTwoStreams: 200,
        decodes: 10_000,
        slackBytes: 4 * 2 ** 20,
      },
      10 * MINUTE,
    );
    kvCacheSuite(rig);
  });
} else {
  test('a CUDA device', (context) => skipOrFail(context, reason));
}

// The kernels without Node in between: conformance of the primitives and every registered case.
describe('test/gpu', () => {
  const folder = path.join(root, 'build/gpu');
  const nvcc = findNvcc();

  function run(command: string, args: readonly string[], env: Record<string, string> = {}): void {
    const options = { encoding: 'utf8', maxBuffer: 1 << 26, env: { ...process.env, ...env } } as const;
    const { status, stdout, stderr } = spawnSync(command, args, options);
    expect({ status, said: status === 0 ? '' : `${stdout}\n${stderr}` }, command).toEqual({ status: 0, said: '' });
  }

  function configure(compiler: string, into: string): void {
    const architecture = gpu?.computeCapability.replace('.', '') ?? '80';
    // 9.0 and 10.x have instructions that only their "a" targets may use.
    const target = /^(90|10\d)$/.test(architecture) ? `${architecture}a` : architecture;
    const options = [`-DCMAKE_CUDA_ARCHITECTURES=${target}-real`, `-DCMAKE_CUDA_COMPILER=${compiler}`];
    run('cmake', ['-S', path.join(root, 'test/gpu'), '-B', into, ...options]);
  }

  test(
    'CMake makes a build of it',
    (context) => {
      if (!built) return skipOrFail(context, reason); // an nvcc that is there may not be one that works
      if (nvcc === undefined) return skipOrFail(context, 'nvcc was not found');
      const fresh = mkdtempSync(path.join(tmpdir(), 'lean-attention-gpu-'));
      try {
        configure(nvcc, fresh);
      } finally {
        rmSync(fresh, { recursive: true });
      }
    },
    MINUTE,
  );

  test(
    'builds, and its runner finds nothing wrong',
    (context) => {
      if (gpu === undefined) return skipOrFail(context, reason);
      if (nvcc === undefined) return skipOrFail(context, 'nvcc was not found');
      configure(nvcc, folder);
      run('cmake', ['--build', folder, '--parallel']);
      run(path.join(folder, 'gpu_runner'), [], { CUDA_VISIBLE_DEVICES: String(gpu.index) });
    },
    20 * MINUTE,
  );
});
