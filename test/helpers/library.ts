// The built package, as its users get it, and the float64 reference that results are held against.
import { createRequire } from 'node:module';
import type * as Library from 'lean-attention';
import type * as Reference from '../../dist/reference';

const load = createRequire(import.meta.url);

export const library: typeof Library = load('lean-attention');
export const { convert, Device, installation, LeanAttentionError, mergeStates, openDevice, Plan, tensor } = library;

const reference: typeof Reference = load('../../dist/reference.js');
export const { referenceDecode } = reference;
