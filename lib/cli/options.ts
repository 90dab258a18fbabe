// Command lines: one description of a command's options gives both the parser and the help text, so they cannot disagree.
// util.parseArgs splits the words; the checks are here, because its own messages are written for programmers.

import { parseArgs } from 'node:util';

import { InputError, quote } from './errors';
import { nearest } from './nearest';
import type { Terminal } from './terminal';

export interface OptionSpec {
  /** What stands for the value in the help text; absent for a flag. */
  readonly value?: string;
  readonly help: string;
}

export interface CommandSpec<Name extends string> {
  readonly name: string;
  readonly summary: string;
  /** Names of the positional arguments, all of them required. */
  readonly positionals: readonly string[];
  readonly options: Readonly<Record<Name, OptionSpec>>;
  /** Paragraphs below the options. */
  readonly notes: readonly string[];
  readonly examples: readonly string[];
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  readonly help: string;
  /** Returns the exit code. */
  run(argv: readonly string[], terminal: Terminal): Promise<number>;
}

export interface ParsedOptions<Name extends string> {
  readonly positionals: readonly string[];
  readonly values: Readonly<Partial<Record<Name, string>>>;
  has(flag: Name): boolean;
}

export function defineCommand<Name extends string>(
  spec: CommandSpec<Name>,
  run: (options: ParsedOptions<Name>, terminal: Terminal) => Promise<number>,
): Command {
  return {
    name: spec.name,
    summary: spec.summary,
    help: helpText(spec),
    run: async (argv, terminal) => run(parseOptions(spec, argv), terminal),
  };
}

export function parseOptions<Name extends string>(
  spec: CommandSpec<Name>,
  argv: readonly string[],
): ParsedOptions<Name> {
  const known = new Map<string, OptionSpec>(Object.entries<OptionSpec>(spec.options));
  const options = Object.fromEntries(
    [...known].map(([name, { value }]) => [name, { type: value === undefined ? 'boolean' : 'string' } as const]),
  );
  const { tokens } = parseArgs({ args: [...argv], options, strict: false, tokens: true });

  const values = new Map<string, string>();
  const flags = new Set<string>();
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value);
    if (token.kind !== 'option') continue;
    const { name, rawName, value, inlineValue } = token;
    const option = known.get(name);
    if (option === undefined || !rawName.startsWith('--')) {
      const guess = nearest(name, [...known.keys()]);
      throw new InputError(
        `Unknown option ${rawName} for \`${spec.name}\`` +
          (guess === undefined ? `; see \`lean-attention ${spec.name} --help\`.` : `, did you mean --${guess}?`),
      );
    }
    if (values.has(name) || flags.has(name)) throw new InputError(`Expected --${name} once, got it twice.`);
    if (option.value === undefined) {
      if (value !== undefined) throw new InputError(`Expected --${name} without a value, got ${quote(value)}.`);
      flags.add(name);
    } else if (value === undefined || value === '' || (!inlineValue && value.startsWith('--'))) {
      throw new InputError(`Expected a value after --${name} (${option.value}), got ${quote(value)}.`);
    } else {
      values.set(name, value);
    }
  }
  if (positionals.length !== spec.positionals.length) {
    throw new InputError(
      `Expected ${describePositionals(spec.positionals)} for \`${spec.name}\`, got ${
        positionals.length === 0 ? 'none' : positionals.map(quote).join(' ')
      }.`,
    );
  }
  return {
    positionals,
    values: Object.fromEntries(values) as Partial<Record<Name, string>>,
    has: (flag) => flags.has(flag),
  };
}

function describePositionals(names: readonly string[]): string {
  return names.length === 0 ? 'no argument besides options' : `the argument ${names.join(' ')}`;
}

function helpText<Name extends string>(spec: CommandSpec<Name>): string {
  const entries = [
    ...Object.entries<OptionSpec>(spec.options).map(([name, { value, help }]) => ({
      left: value === undefined ? `--${name}` : `--${name} ${value}`,
      help,
    })),
    { left: '--help', help: 'this text' },
  ];
  const width = Math.max(...entries.map(({ left }) => left.length)) + 4;
  const lines = [
    `Usage: lean-attention ${[spec.name, ...spec.positionals].join(' ')} [options]`,
    '',
    spec.summary,
    '',
    'Options:',
    ...entries.flatMap(({ left, help }) =>
      wrap(help, 100 - width).map((line, index) => (index === 0 ? `  ${left}` : '').padEnd(width) + line),
    ),
    ...spec.notes.flatMap((note) => ['', ...wrap(note, 100)]),
    '',
    'Examples:',
    ...spec.examples.map((example) => `  ${example}`),
  ];
  return `${lines.join('\n')}\n`;
}

/** Breaks a paragraph into lines of at most `width` characters; lines of its own ('\n') are kept as they are. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const paragraph of text.split('\n')) {
    let line = '';
    for (const word of paragraph.split(/(?<=\S) /)) {
      if (line !== '' && line.length + 1 + word.length > width) {
        lines.push(line);
        line = word;
      } else {
        line = line === '' ? word : `${line} ${word}`;
      }
    }
    lines.push(line);
  }
  return lines;
}
