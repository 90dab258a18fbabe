#!/usr/bin/env node
// Builds and runs the C++ tests under sanitizers: address with undefined behaviour and leaks, then threads.
//   node scripts/sanitize.cjs            both
//   node scripts/sanitize.cjs thread     one of them
// Exit code 1 when a test fails or a sanitizer finds something.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const SANITIZERS = {
  address: 'address,undefined',
  thread: 'thread',
};
const OPTIONS = {
  ASAN_OPTIONS: 'detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:halt_on_error=1',
  UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
  TSAN_OPTIONS: `halt_on_error=1:second_deadlock_stack=1:suppressions=${path.join(root, 'test/native/tsan.supp')}`,
};

const chosen = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(SANITIZERS);
const unknown = chosen.find((name) => !(name in SANITIZERS));
if (unknown !== undefined) {
  console.error(`Expected ${Object.keys(SANITIZERS).join(' or ')}, got ${unknown}`);
  process.exit(2);
}

function run(command, args, env = process.env) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env });
  if (status === 0) return true;
  console.error(`${path.basename(command)} ended with ${error?.message ?? signal ?? `exit code ${status}`}`);
  return false;
}

let sound = true;
for (const name of chosen) {
  const folder = path.join('build', `sanitize-${name}`);
  const configure = ['-S', '.', '-B', folder, '-DLEAN_ATTENTION_NATIVE_TESTS=ON', '-DCMAKE_BUILD_TYPE=RelWithDebInfo'];
  configure.push(`-DLEAN_ATTENTION_SANITIZE=${SANITIZERS[name]}`, '-DLEAN_ATTENTION_CUDA=off', '--log-level=WARNING');
  if (!existsSync(path.join(root, folder)) && !spawnSync('ninja', ['--version']).error) configure.push('-G', 'Ninja');
  console.log(`== ${SANITIZERS[name]}`);
  const passed =
    run('cmake', configure) &&
    run('cmake', ['--build', folder, '--target', 'native_tests', '--parallel']) &&
    run(path.join(root, folder, 'native_tests'), [], { ...process.env, ...OPTIONS });
  console.log(`== ${SANITIZERS[name]}: ${passed ? 'nothing found' : 'FAILED'}`);
  sound &&= passed;
}
process.exit(sound ? 0 : 1);
