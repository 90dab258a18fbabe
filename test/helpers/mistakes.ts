// What the files about misuse share: mistakes as data, how they are caught, and tensors to make them with.
import { expect } from 'vitest';
import { tensor } from './library';

export type ErrorClass = typeof TypeError | typeof RangeError;
export type Mistake<T> = [name: string, argument: T, error: ErrorClass, message: string];

export function thrownBy(body: () => unknown): Error {
  try {
    body();
  } catch (error) {
    return error as Error;
  }
  return expect.fail('Expected an error, got none');
}

/** The class itself, not one derived from it, and the whole sentence. */
export function expectError(error: unknown, errorClass: ErrorClass, message: string): void {
  expect(error).toBeInstanceOf(errorClass);
  expect((error as Error).constructor).toBe(errorClass);
  expect((error as Error).message).toBe(message);
}

export const f32 = (shape: readonly number[]) =>
  tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape);
export const f16 = (shape: readonly number[]) =>
  tensor(new Uint16Array(shape.reduce((a, b) => a * b, 1)), shape, { dtype: 'f16' });
export const strided = (shape: number[], strides: number[], length: number) =>
  tensor(new Float32Array(length), shape, { strides });
/** A tensor whose buffer was transferred away. */
export const detached = (shape: number[]) => {
  const t = f32(shape);
  structuredClone(t.data.buffer, { transfer: [t.data.buffer as ArrayBuffer] });
  return t;
};
