// Which GPU was measured, and under which driver.

import { type Device, installation } from '../../index';
import { driverVersion } from '../driver';

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
