// Where a command writes. An interface, so that tests run commands in process and read what they printed.

export interface Terminal {
  /** Results: stdout. */
  out(text: string): void;
  /** Sentences about what went wrong, notes, progress: stderr. */
  err(text: string): void;
  readonly outColour: boolean;
  readonly errIsTerminal: boolean;
  /** Width of stdout in characters. */
  readonly columns: number;
}

export function processTerminal(): Terminal {
  const { stdout, stderr, env } = process;
  return {
    out: (text) => void stdout.write(text),
    err: (text) => void stderr.write(text),
    outColour: stdout.isTTY === true && env.NO_COLOR === undefined && env.TERM !== 'dumb',
    errIsTerminal: stderr.isTTY === true && env.TERM !== 'dumb',
    columns: stdout.columns ?? 100,
  };
}
