// Text files that a command writes on request.

import { accessSync, constants, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

import { InputError, quote, reasonOf } from './errors';

export function writeText(path: string, content: string): void {
  try {
    writeFileSync(path, content);
  } catch (error) {
    throw notWritable(path, reasonOf(error));
  }
}

/** Before minutes of work rather than after; leaves nothing behind. */
export function checkWritable(path: string): void {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status?.isDirectory()) throw notWritable(path, 'a directory');
  try {
    accessSync(status === undefined ? dirname(path) : path, constants.W_OK);
  } catch (error) {
    throw notWritable(path, reasonOf(error));
  }
}

function notWritable(path: string, found: string): InputError {
  return new InputError(`Expected ${quote(path)} to be writable, got: ${found}.`);
}
