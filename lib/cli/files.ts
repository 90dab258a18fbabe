// Files that a command writes on request, and what the system says of files.

import { accessSync, constants, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

import { InputError, quote, reasonOf } from './errors';

export function writeText(path: string, content: string): void {
  naming(path, 'to be writable', () => writeFileSync(path, content));
}

/** Before minutes of work rather than after; leaves nothing behind. */
export function checkWritable(path: string): void {
  naming(path, 'to be writable', () => {
    const status = statSync(path, { throwIfNoEntry: false });
    if (status?.isDirectory()) throw new Error('a directory');
    accessSync(status === undefined ? dirname(path) : path, constants.W_OK);
  });
}

/** Runs a file operation; what the system says about it becomes a sentence. */
export function naming<T>(path: string, expectation: string, operation: () => T): T {
  try {
    return operation();
  } catch (error) {
    throw new InputError(`Expected ${quote(path)} ${expectation}, got: ${reasonOf(error)}.`);
  }
}
