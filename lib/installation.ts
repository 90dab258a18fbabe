// What this installation is: for `lean-attention doctor`, bug reports and logs.
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import path from 'node:path';
import { type CudaDeviceInfo, native, nativePath, packageRoot } from './native';

export interface Installation {
  version: string;
  cpu: {
    model: string;
    /** Processors that this process may use. */
    cores: number;
    /** What the tile code can use here, best first. */
    instructionSets: string[];
  };
  cuda: {
    /** Whether the addon holds CUDA kernels. */
    built: boolean;
    /** Whether one of the devices can be used. */
    available: boolean;
    /** Why none can be used, and what to do; empty where available. */
    reason: string;
    devices: CudaDeviceInfo[];
  };
  addon: { path: string; napiVersion: number; compiler: string; buildType: string };
}

/** @throws LeanAttentionError NATIVE_LOAD_FAILED with what to do, when the addon does not load. */
export function installation(): Installation {
  const { built, reason, devices } = native().cudaStatus();
  const manifest = JSON.parse(readFileSync(path.join(packageRoot(), 'package.json'), 'utf8')) as { version: string };
  return {
    version: manifest.version,
    cpu: {
      model: cpus()[0]?.model.trim() ?? 'unknown',
      cores: availableParallelism(),
      instructionSets: native().cpuInstructionSets(),
    },
    cuda: { built, available: devices.some((device) => device.reason === ''), reason, devices },
    addon: { path: nativePath(), ...native().buildInfo() },
  };
}
