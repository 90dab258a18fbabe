// What a command tells the shell: one sentence on stderr and an exit code. Everything that the user can mend is an
// InputError or a DeviceError; whatever else arrives is a failure of ours, and still only a sentence.

import { LeanAttentionError } from '../index';

export const ExitCode = { ok: 0, failure: 1, badInput: 2, noDevice: 3 } as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/** An option, a file or a tensor that cannot be used: exit code 2. */
export class InputError extends Error {
  override readonly name = 'InputError';
}

/** A device that is not there: exit code 3. */
export class DeviceError extends Error {
  override readonly name = 'DeviceError';
}

export interface Failure {
  readonly exitCode: ExitCode;
  readonly sentence: string;
}

/** Whether the library refused what it was given: in a command, what the user gave. */
export function isRefusal(error: unknown): error is TypeError | RangeError {
  return (error instanceof TypeError || error instanceof RangeError) && error.message.startsWith('Expected');
}

/** A sentence of the library's, which end without a full stop, as one of a command's. */
export function asSentence(message: string): string {
  return message.replace(/[.\s]*$/, '.');
}

export function describeFailure(error: unknown): Failure {
  const sentence = error instanceof Error ? error.message : String(error);
  if (isRefusal(error)) return { exitCode: ExitCode.badInput, sentence: asSentence(sentence) };
  if (error instanceof InputError) return { exitCode: ExitCode.badInput, sentence };
  if (error instanceof DeviceError) return { exitCode: ExitCode.noDevice, sentence };
  if (error instanceof LeanAttentionError)
    return { exitCode: ExitCode.failure, sentence: `${sentence} (${error.code})` };
  return { exitCode: ExitCode.failure, sentence: `Unexpected failure: ${sentence}` };
}

/** A file operation's error in words: "no such file or directory", without the system call and the path. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return /^[A-Z]+: (.+?), \w+( |$)/.exec(text)?.[1] ?? text;
}

/** A value in a sentence; nothing where there is none, and never more than a line of it. */
export function quote(value: string | undefined): string {
  if (value === undefined) return 'nothing';
  const text = value.length > 60 ? `${value.slice(0, 57)}...` : value;
  return JSON.stringify(text);
}
