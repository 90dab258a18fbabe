// The version of NVIDIA's driver, which CUDA itself does not tell.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** The kernel module says; where it is hidden, as in some containers, nvidia-smi may. Null: nothing here knows. */
export function driverVersion(): string | null {
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
