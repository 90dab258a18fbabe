// Decode-phase attention for Node.js. This file is the public API and nothing else.
export { Device, type DeviceOptions, type DeviceSpec, type InstructionSet, openDevice } from './device';
export type { DType } from './dtype';
export { type CudaProblem, type ErrorCode, LeanAttentionError } from './errors';
export { type Installation, installation } from './installation';
export { KvCache, type KvCacheStats, Sequence } from './kv-cache';
export { Step } from './kv-step';
export { KvTable } from './kv-table';
export { type DeviceDType, DeviceTensor, type DeviceTensorOptions } from './memory';
export type {
  CacheDecodeOptions,
  CopyPath,
  DecodeOptions,
  DecodeResult,
  KvCacheOptions,
  KvTableOptions,
  LaunchOptions,
  Layout,
  RotaryOptions,
  RotaryPairing,
  RotaryScaling,
  ScheduleOptions,
  Strategy,
  StreamDecodeOptions,
  StreamWriteOptions,
  WriteOptions,
} from './options';
export { Plan, type PlanOptions, type PlanTensors, type Segment } from './plan';
export { mergeStates } from './states';
export { Graph, Stream, StreamEvent } from './stream';
export { convert, type Tensor, type TensorData, type TensorOptions, tensor } from './tensor';
