// The commands, and the way from a command line to an exit code. Kept apart from main.ts so that tests call it in process.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { benchCommand } from './bench';
import { doctorCommand } from './doctor';
import { describeFailure, ExitCode, InputError, quote } from './errors';
import { nearest } from './nearest';
import type { Command } from './options';
import { runCommand } from './run';
import { scheduleCommand } from './schedule';
import type { Terminal } from './terminal';

const commands: readonly Command[] = [runCommand, benchCommand, scheduleCommand, doctorCommand];

const overview = `lean-attention: decode attention with LeanAttention's schedule (stream-K), on CPUs and NVIDIA GPUs

Usage: lean-attention COMMAND [options]

Commands:
${commands.map(({ name, summary }) => `  ${name.padEnd(10)} ${summary}`).join('\n')}

  lean-attention COMMAND --help   options and examples of a command
  lean-attention --version        the version

Exit codes: 0 done, 1 failed, 2 an option, a file or a tensor cannot be used, 3 the device is not there.
`;

/** Runs a command line (without node and the script); every failure ends as one sentence on stderr and an exit code. */
export async function execute(argv: readonly string[], terminal: Terminal): Promise<number> {
  try {
    return await dispatch(argv, terminal);
  } catch (error) {
    const { exitCode, sentence } = describeFailure(error);
    terminal.err(`lean-attention: ${sentence}\n`);
    return exitCode;
  }
}

async function dispatch([first, ...rest]: readonly string[], terminal: Terminal): Promise<number> {
  const wantsHelp = (words: readonly string[]): boolean => words.some((word) => word === '--help' || word === '-h');
  if (first === undefined) {
    terminal.err(overview);
    return ExitCode.badInput;
  }
  if (first === '--version' || first === '-v') {
    terminal.out(`${packageVersion()}\n`);
    return ExitCode.ok;
  }
  if (wantsHelp([first]) || first === 'help') {
    terminal.out(rest[0] === undefined ? overview : commandNamed(rest[0]).help);
    return ExitCode.ok;
  }
  const command = commandNamed(first);
  if (wantsHelp(rest)) {
    terminal.out(command.help);
    return ExitCode.ok;
  }
  return command.run(rest, terminal);
}

function commandNamed(name: string): Command {
  const command = commands.find((candidate) => candidate.name === name);
  if (command !== undefined) return command;
  const names = commands.map((candidate) => candidate.name);
  const guess = nearest(name, names);
  const hint = guess === undefined ? `expected one of ${names.join(', ')}.` : `did you mean \`${guess}\`?`;
  throw new InputError(`Unknown command ${quote(name)}, ${hint}`);
}

function packageVersion(): string {
  const text = readFileSync(join(__dirname, '..', '..', 'package.json'), 'utf8');
  return String((JSON.parse(text) as { version: unknown }).version);
}
