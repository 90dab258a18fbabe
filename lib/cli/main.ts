#!/usr/bin/env node
// The executable: hands the words after its name to `execute` and ends with the exit code it gives.

import { execute } from './commands';
import { ExitCode, reasonOf } from './errors';
import { processTerminal } from './terminal';

// `lean-attention … | head` closes stdout early: that is the reader's choice, not a failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`lean-attention: Expected stdout to be writable, got: ${reasonOf(error)}.\n`);
  process.exit(ExitCode.failure);
});
process.stderr.on('error', () => {});

// Not process.exit: what was written to a pipe may still be on its way.
void execute(process.argv.slice(2), processTerminal()).then((exitCode) => {
  process.exitCode = exitCode;
});
