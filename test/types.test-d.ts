// Types as callers meet them; checked by `npm run test:types`, never run. Each @ts-expect-error fails when its line is right.
import {
  type CacheDecodeOptions,
  type convert,
  type DecodeOptions,
  type DecodeResult,
  type Device,
  type DeviceSpec,
  type DType,
  type ErrorCode,
  type Installation,
  type InstructionSet,
  type installation,
  type KvCache,
  type KvCacheOptions,
  type KvCacheStats,
  type Layout,
  LeanAttentionError,
  mergeStates,
  openDevice,
  type Plan,
  type PlanTensors,
  type RotaryOptions,
  type RotaryPairing,
  type RotaryScaling,
  type Segment,
  type Sequence,
  type Step,
  type Strategy,
  type Tensor,
  type TensorData,
  tensor,
  type WriteOptions,
} from 'lean-attention';

/** The same type, not one that merely fits: `any` and unions that are too wide fail. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function exact<_T extends true>(): void {}

exact<Same<DType, 'f32' | 'f16' | 'bf16'>>();
exact<Same<Strategy, 'lean' | 'fixed-split' | 'flash-attention-2'>>();
exact<Same<Layout, 'NHD' | 'HND'>>();
exact<Same<InstructionSet, 'avx512' | 'avx2' | 'portable'>>();
exact<Same<DeviceSpec, 'auto' | 'cpu' | 'cuda' | `cuda:${number}`>>();
exact<
  Same<
    ErrorCode,
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
    | 'UNSUPPORTED'
  >
>();

const device = openDevice('cpu', { threads: 2, instructionSet: 'portable' });
exact<Same<typeof device, Device>>();
exact<Same<typeof device.type, 'cpu' | 'cuda'>>();
exact<Same<ReturnType<typeof installation>, Installation>>();

const q = tensor(new Float32Array(64), [1, 1, 64]);
exact<Same<typeof q, Tensor>>();
exact<Same<TensorData, Float32Array | Uint16Array>>();
exact<Same<Tensor['shape'], readonly number[]>>();
exact<Same<ReturnType<typeof convert>, Tensor>>();

const options: DecodeOptions = { q, k: q, v: q };
const promised = device.decode(options);
const result = device.decodeSync({
  ...options,
  layout: 'HND',
  contextLengths: [1] as const,
  pageTable: [[0]] as const,
});
exact<Same<typeof promised, Promise<DecodeResult>>>();
exact<Same<typeof result, DecodeResult>>();
exact<Same<ReturnType<typeof mergeStates>, DecodeResult>>();
mergeStates([result, result] as const);

const plan = device.plan({ numQueryHeads: 8, numKvHeads: 2, headDim: 64, contextLengths: Int32Array.of(1) });
exact<Same<typeof plan, Plan>>();
exact<Same<ReturnType<typeof plan.segments>, Segment[]>>();
exact<Same<Parameters<typeof plan.decode>[0], PlanTensors>>();
exact<Same<ReturnType<typeof plan.decodeSync>, DecodeResult>>();

const cache = device.createKvCache({ layers: 1, numKvHeads: 2, headDim: 64, tokens: 1024 });
exact<Same<typeof cache, KvCache>>();
exact<Same<typeof cache.dtype, DType>>();
exact<Same<ReturnType<typeof cache.stats>, KvCacheStats>>();
exact<Same<KvCacheOptions['dtype'], DType | undefined>>();
exact<Same<RotaryPairing, 'half-split' | 'interleaved'>>();
exact<Same<RotaryScaling['type'], 'linear' | 'ntk' | 'yarn' | 'llama3'>>();
{
  using sequence = cache.createSequence();
  exact<Same<typeof sequence, Sequence>>();
  exact<Same<ReturnType<typeof sequence.fork>, Sequence>>();
  exact<Same<typeof sequence.length, number>>();
  const step = cache.append([sequence] as const, [3] as const);
  exact<Same<typeof step, Step>>();
  exact<Same<typeof step.positions, Int32Array>>();
  exact<Same<typeof step.sequences, readonly Sequence[]>>();
  exact<Same<Parameters<typeof step.write>[0], WriteOptions>>();
  const rotary: RotaryOptions = { pairing: 'interleaved', scaling: { type: 'yarn', factor: 2, originalContext: 4096 } };
  exact<Same<ReturnType<typeof step.write>, void>>();
  step.write({ layer: 0, k: q, v: q, q, qOut: q, rotary });
  const over: CacheDecodeOptions = { q, cache, layer: 0, sequences: step };
  exact<Same<ReturnType<typeof device.decodeSync>, DecodeResult>>();
  device.decode(over);
  device.decodeSync({
    q,
    cache,
    layer: 0,
    sequences: [sequence] as const,
    strategy: 'fixed-split',
    splits: 2,
    scale: 1,
  });

  // @ts-expect-error: K and V are the cache's
  device.decode({ ...over, k: q, v: q });
  // @ts-expect-error: pages are the cache's
  device.decode({ q, cache, layer: 0, sequences: step, pageTable: [[0]] });
  // @ts-expect-error: a cache without sequences
  device.decode({ q, cache, layer: 0 });
  // @ts-expect-error: tensors and a layer
  device.decode({ ...options, layer: 0 });
  // @ts-expect-error: a step is no list of sequences
  cache.append(step);
  // @ts-expect-error: counts are numbers
  cache.append([sequence], ['1']);
  // @ts-expect-error: yarn needs the original context
  step.write({ layer: 0, k: q, v: q, rotary: { scaling: { type: 'yarn', factor: 2 } } });
  // @ts-expect-error: linear scaling has no betas
  step.write({ layer: 0, k: q, v: q, rotary: { scaling: { type: 'linear', factor: 2, betaFast: 1 } } });
  // @ts-expect-error: no such pairing
  step.write({ layer: 0, k: q, v: q, rotary: { pairing: 'neox' } });
  // @ts-expect-error: lengths do not change by assignment
  sequence.length = 0;
}
// @ts-expect-error: the number of layers is needed
device.createKvCache({ numKvHeads: 2, headDim: 64, tokens: 1 });
// @ts-expect-error: a plan has tensors
plan.decode({ q, cache, layer: 0, sequences: [] });

const error = new LeanAttentionError('OUT_OF_MEMORY', 'too much');
exact<Same<typeof error.code, ErrorCode>>();

// @ts-expect-error: no such device
openDevice('gpu');
// @ts-expect-error: an index is a number
openDevice('cuda:first');
// @ts-expect-error: no such option
openDevice('cpu', { cores: 2 });
// @ts-expect-error: no such instruction set
openDevice('cpu', { instructionSet: 'sse2' });
// @ts-expect-error: no such strategy
device.decode({ ...options, strategy: 'flash-decoding' });
device.decode({ ...options, launch: { copies: 'bulk', tileTokens: 32, stages: 4, warps: 2, ctasPerSm: 1 } });
// @ts-expect-error: no such copy path
device.decode({ ...options, launch: { copies: 'tma' } });
// @ts-expect-error: no such choice
device.decode({ ...options, launch: { threads: 128 } });
// @ts-expect-error: a number
device.plan({ numQueryHeads: 8, numKvHeads: 2, headDim: 64, contextLengths: [1], launch: { stages: 'auto' } });
// @ts-expect-error: no such layout
device.decode({ ...options, layout: 'BNHD' });
// @ts-expect-error: v is needed
device.decode({ q, k: q });
// @ts-expect-error: a typed array is no tensor
device.decode({ ...options, q: new Float32Array(64) });
// @ts-expect-error: lengths are 32-bit integers
device.decode({ ...options, contextLengths: new Float64Array(1) });
// @ts-expect-error: the plan has its own schedule
plan.decode({ ...options, strategy: 'lean' as Strategy, workers: 2 } satisfies PlanTensors);
// @ts-expect-error: headDim is needed
device.plan({ numQueryHeads: 8, numKvHeads: 2, contextLengths: [1] });
// @ts-expect-error: no such type
tensor(new Uint16Array(8), [8], { dtype: 'fp8' });
// @ts-expect-error: no doubles
tensor(new Float64Array(8), [8]);
// @ts-expect-error: shapes do not change
q.shape[0] = 2;
