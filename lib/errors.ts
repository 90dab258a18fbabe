// The world's errors. A caller's mistake is a TypeError or a RangeError instead.

/** What went wrong, for programs. */
export type ErrorCode =
  | 'BAD_DEVICE_DATA'
  | 'BUFFER_DETACHED'
  | 'CACHE_DISPOSED'
  | 'CANCELLED'
  | 'CUDA_UNAVAILABLE'
  | 'DEVICE_DISPOSED'
  | 'DEVICE_LOST'
  | 'INTERNAL'
  | 'LAUNCH_FAILED'
  | 'NATIVE_LOAD_FAILED'
  | 'OUT_OF_MEMORY'
  | 'OUT_OF_PAGES'
  | 'UNSUPPORTED';

/** Why no CUDA device can be used. */
export type CudaProblem =
  | 'not-built'
  | 'driver-missing'
  | 'driver-too-old'
  | 'no-device'
  | 'no-such-device'
  /** None in this build for the GPU's compute capability. */
  | 'no-kernels'
  /** The CUDA runtime did not start. */
  | 'runtime';

/** Something outside the caller's control, or a device that is gone. `code` says what, `message` what to do. */
export class LeanAttentionError extends Error {
  readonly code: ErrorCode;
  /** Of CUDA_UNAVAILABLE, else undefined: which of the causes it was. */
  readonly reason: CudaProblem | undefined;

  constructor(code: ErrorCode, message: string, reason?: CudaProblem) {
    super(message);
    this.name = 'LeanAttentionError';
    this.code = code;
    this.reason = reason;
  }
}
