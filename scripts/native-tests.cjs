#!/usr/bin/env node
// Builds and runs the C++ tests where `npm test` does not run them: under sanitizers, and for AArch64 in an emulator.
//   node scripts/native-tests.cjs            all that this machine has the tools for
//   node scripts/native-tests.cjs thread     one of address, thread, arm64
// Exit code 1 when a test fails or a sanitizer finds something.
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync } = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const VARIANTS = {
  address: {
    // -O1: at -O2 the tile code with its checks takes nearly twice as long to compile.
    build: [
      '-DLEAN_ATTENTION_SANITIZE=address,undefined',
      '-DCMAKE_BUILD_TYPE=RelWithDebInfo',
      '-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g -DNDEBUG',
    ],
    env: {
      ASAN_OPTIONS: 'detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:halt_on_error=1',
      UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
    },
  },
  thread: {
    build: ['-DLEAN_ATTENTION_SANITIZE=thread', '-DCMAKE_BUILD_TYPE=RelWithDebInfo'],
    env: {
      TSAN_OPTIONS: `halt_on_error=1:second_deadlock_stack=1:suppressions=${path.join(root, 'test/native/tsan.supp')}`,
    },
  },
  arm64: {
    build: [
      '-DCMAKE_SYSTEM_NAME=Linux',
      '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
      '-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++',
      '-DCMAKE_BUILD_TYPE=Release',
    ],
    emulator: ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu'],
    // Those of code that is not the same on every processor; an emulator is slow.
    tests: ['backend', 'numeric', 'kv_cache_rotates', 'kv_cache_stores'],
    needs: ['aarch64-linux-gnu-g++', 'qemu-aarch64'],
  },
};

const unknown = process.argv.slice(2).find((name) => !(name in VARIANTS));
if (unknown !== undefined) {
  console.error(`Expected ${Object.keys(VARIANTS).join(', ')}, got ${unknown}`);
  process.exit(2);
}

const missing = ({ needs = [] }) => needs.filter((tool) => spawnSync(tool, ['--version']).error);
const chosen = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(VARIANTS);

function run(command, args, env = process.env) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env });
  if (status === 0) return true;
  console.error(`${path.basename(command)} ended with ${error?.message ?? signal ?? `exit code ${status}`}`);
  return false;
}

function passes(name, { build, env, emulator = [], tests = [] }) {
  const folder = path.join('build', `native-${name}`);
  const configure = ['-S', '.', '-B', folder, '-DLEAN_ATTENTION_NATIVE_TESTS=ON', '-DLEAN_ATTENTION_CUDA=off'];
  configure.push(...build, '--log-level=WARNING');
  if (!existsSync(path.join(root, folder)) && !spawnSync('ninja', ['--version']).error) configure.push('-G', 'Ninja');
  const [program, ...args] = [...emulator, path.join(root, folder, 'native_tests'), ...tests];
  return (
    run('cmake', configure) &&
    run('cmake', ['--build', folder, '--target', 'native_tests', '--parallel']) &&
    run(program, args, { ...process.env, ...env })
  );
}

let sound = true;
for (const name of chosen) {
  const tools = missing(VARIANTS[name]);
  if (tools.length > 0 && process.argv.length === 2) {
    console.log(`== ${name}: left out, it needs ${tools.join(' and ')}`);
    continue;
  }
  console.log(`== ${name}`);
  const passed = passes(name, VARIANTS[name]);
  console.log(`== ${name}: ${passed ? 'nothing found' : 'FAILED'}`);
  sound &&= passed;
}
process.exit(sound ? 0 : 1);
