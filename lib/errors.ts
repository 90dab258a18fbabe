// The world's errors. A caller's mistake is a TypeError or a RangeError instead.

/** What went wrong, for programs. */
export type ErrorCode =
  | 'BUFFER_DETACHED'
  | 'CACHE_DISPOSED'
  | 'CANCELLED'
  | 'CUDA_UNAVAILABLE'
  | 'DEVICE_DISPOSED'
  | 'DEVICE_LOST'
  | 'INTERNAL'
  | 'NATIVE_LOAD_FAILED'
  | 'OUT_OF_MEMORY'
  | 'OUT_OF_PAGES'
  | 'UNSUPPORTED';

/** Something outside the caller's control, or a device that is gone. `code` says what, `message` what to do. */
export class LeanAttentionError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string) {
    super(message);
    this.name = 'LeanAttentionError';
    this.code = code;
  }
}
