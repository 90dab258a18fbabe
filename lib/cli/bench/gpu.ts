// Which GPU was measured, and under which driver.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

import { type Device, installation } from '../../index';

export interface Gpu {
  readonly name: string;
  readonly computeCapability: string;
  readonly memoryBytes: number;
  readonly l2Bytes: number;
  /** Null where nothing here knows it. */
  readonly driver: string | null;
}

export function describeGpu(device: Device): Gpu {
  const found = installation().cuda.devices.find(({ index }) => device.name === `cuda:${index}`);
  if (found === undefined) throw new Error(`Expected ${device.name} to be one of the installation's devices`);
  const { name, computeCapability, memoryBytes, l2Bytes } = found;
  return { name, computeCapability, memoryBytes, l2Bytes, driver: driverVersion() };
}

/** The kernel module says; where it is hidden, as in some containers, nvidia-smi may. */
function driverVersion(): string | null {
  try {
    const text = readFileSync('/proc/driver/nvidia/version', 'utf8');
    const version = /Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s/.exec(text)?.[1];
    if (version !== undefined) return version;
  } catch {
    // Not there: go on.
  }
  const arguments_ = ['--query-gpu=driver_version', '--format=csv,noheader'];
  const { stdout } = spawnSync('nvidia-smi', arguments_, { encoding: 'utf8', timeout: 5000 });
  return /^\d+(?:\.\d+)+$/.exec(stdout?.split('\n')[0].trim() ?? '')?.[0] ?? null;
}
