#!/usr/bin/env node
// Plants bugs into the kernels by machine and counts how many the rehearsal finds: its mutation score.
//
//   node scripts/mutate-kernels.mjs [--count N] [--seed N] [--file PART] [--list]
//
// Every operator, constant, condition and statement of the kernels and of the core that they use is a place; each gives
// one or two mutants. --count draws that many at random (all of them take hours), --seed another draw. A mutant is
// compiled as one thin instance and run until the first failure: in the fast build with either type, then race, then sanitize, as long as
// it survives. What survives all three is printed: a hole in the grid, or a change that changes nothing.

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildDir, compileThin, copySources, findFault } from '../test/rehearsal/planted.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const { values } = parseArgs({
  options: {
    count: { type: 'string', default: '40' },
    seed: { type: 'string', default: '1' },
    file: { type: 'string', default: '' },
    list: { type: 'boolean', default: false },
  },
});

// What is mutated: what runs on the device. Constants of the configuration table change speed only.
const FILES = [
  'core/decode_params.h',
  'core/schedule.h',
  'core/softmax_state.h',
  ...readdirSync(path.join(root, 'csrc/cuda'))
    .filter(
      (name) =>
        /\.h$/.test(name) &&
        !/primitives|config|entry|launch|error|backend|instances|params|api|read_kernel|append_kernel|owned|stream|staging/.test(
          name,
        ),
    )
    .map((name) => `cuda/${name}`),
].filter((file) => file.includes(values.file));

// [what, pattern, replacements]. Patterns match code only; comments and preprocessor lines are left out.
const OPERATORS = [
  ['<', / < (?![^;]*>\()/g, [' <= ']],
  ['<=', / <= /g, [' < ']],
  ['>', / > /g, [' >= ']],
  ['>=', / >= /g, [' > ']],
  ['==', / == /g, [' != ']],
  ['!=', / != /g, [' == ']],
  ['+', / \+ /g, [' - ']],
  ['-', / - /g, [' + ']],
  ['*', / \* /g, [' + ']],
  ['/', / \/ /g, [' * ']],
  ['%', / % /g, [' / ']],
  ['&&', / && /g, [' || ']],
  ['||', / \|\| /g, [' && ']],
  ['1', /\b1\b(?![.x'])/g, ['0', '2']],
  ['0', /\b0\b(?![.x'])/g, ['1']],
  ['statement', /^\s*(?:[\w:.<>]+(?:->|\.))?[a-z_]+(?:<[^;]*>)?\([^;{}]*\);$/gm, ['']],
  ['condition', /if \(/g, ['if (!', 'if (true || ']],
];

/** Comments and preprocessor lines, blanked to the same length, so that places keep their offsets. */
const blankComments = (text) =>
  text.replace(/\/\/[^\n]*|^#[^\n]*|static_assert\([^;]*;|"[^"\n]*"/gm, (match) => ' '.repeat(match.length));

function listMutants() {
  const mutants = [];
  for (const file of FILES) {
    const text = readFileSync(path.join(root, 'csrc', file), 'utf8');
    // The choice of splits is the host's; the tests of the schedule look after it.
    const code = blankComments(text).replace(/choose_num_splits\([\s\S]*?\n}\n/, (body) => body.replace(/\S/g, ' '));
    for (const [what, pattern, replacements] of OPERATORS)
      for (const match of code.matchAll(pattern))
        for (const replacement of replacements) {
          let mutated = text.slice(0, match.index) + replacement + text.slice(match.index + match[0].length);
          if (what === 'condition') {
            // The condition ends where its parenthesis does.
            const open = match.index + 3;
            let depth = 0;
            let close = open;
            for (; close < code.length; ++close) {
              if (code[close] === '(') ++depth;
              if (code[close] === ')' && --depth === 0) break;
            }
            if (code.slice(match.index - 0, open).includes('constexpr')) continue;
            const condition = text.slice(open, close + 1);
            const changed = replacement === 'if (!' ? `(!${condition})` : '(true)';
            mutated = text.slice(0, open) + changed + text.slice(close + 1);
          }
          const line =
            text.slice(0, match.index).split('\n').length + (what === 'statement' && match[0].startsWith('\n') ? 1 : 0);
          mutants.push({ file, line, what, replacement, source: text.split('\n')[line - 1].trim(), mutated });
        }
  }
  return mutants;
}

function draw(mutants, count, seed) {
  let state = BigInt(seed) * 0x9e3779b97f4a7c15n + 1n;
  const random = (n) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number(state >> 33n) % n;
  };
  const order = [...mutants];
  for (let i = order.length; i > 1; --i) {
    const j = random(i);
    [order[i - 1], order[j]] = [order[j], order[i - 1]];
  }
  return order.slice(0, count);
}

// bfloat16 holds what float16 overflows at.
const STAGES = [
  ['fast', 'BFloat16'],
  ['fast', 'Float16'],
  ['race', 'BFloat16'],
  ['sanitize', 'BFloat16'],
];

async function tryMutant(mutant, directory) {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  copySources(directory);
  writeFileSync(path.join(directory, mutant.file), mutant.mutated);
  for (const [build, type] of STAGES) {
    const { program, error } = await compileThin(directory, build, { type });
    if (error) return 'does not compile';
    const fault = await findFault(program, { every: build === 'fast' ? 1 : 5 });
    if (fault !== null) return `found by ${build}`;
  }
  return 'survived';
}

const all = listMutants();
const chosen = draw(all, Number(values.count), values.seed);
if (values.list) {
  for (const m of all)
    console.log(`${m.file}:${m.line} ${m.what} -> ${m.replacement.trim() || '(nothing)'}   ${m.source}`);
  console.log(`${all.length} mutants`);
} else {
  const score = {};
  let next = 0;
  const worker = async (index) => {
    while (next < chosen.length) {
      const mutant = chosen[next++];
      const outcome = await tryMutant(mutant, path.join(buildDir, 'mutants', String(index)));
      score[outcome] = (score[outcome] ?? 0) + 1;
      const change = `${mutant.what} -> ${mutant.replacement.trim() || '(nothing)'}`;
      console.log(`${outcome.padEnd(17)} ${mutant.file}:${mutant.line} ${change}   ${mutant.source}`);
    }
  };
  await Promise.all([worker(0), worker(1)]);
  const compiled = chosen.length - (score['does not compile'] ?? 0);
  console.log(`\n${compiled - (score.survived ?? 0)} of ${compiled} mutants found (of ${all.length} there are)`, score);
}
