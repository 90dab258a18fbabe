// Opens the device that an option names. What is not there becomes exit code 3 and a sentence that says what to do.

import { type Device, type DeviceSpec, LeanAttentionError, openDevice } from '../index';
import { DeviceError } from './errors';

export function openNamedDevice(spec: DeviceSpec): Device {
  try {
    return openDevice(spec);
  } catch (error) {
    if (!(error instanceof LeanAttentionError)) throw error;
    // A failed load is a help page of its own.
    if (error.code === 'NATIVE_LOAD_FAILED') throw new DeviceError(error.message);
    const advice = '`lean-attention doctor` says what is missing; --device cpu works without it.';
    throw new DeviceError(`${error.message.replace(/[.\s]*$/, '.')} ${advice}`);
  }
}
