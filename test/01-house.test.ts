// The house's law: which part may see which. Read from the includes and imports themselves; every rule also shows, on a
// made-up file, that it would find a violation.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));

interface Source {
  /** Relative to the repository. */
  file: string;
  text: string;
}

function sources(folder: string, extensions: RegExp): Source[] {
  return readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && extensions.test(entry.name))
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
    .sort()
    .map((file) => ({ file, text: readFileSync(path.join(root, file), 'utf8') }));
}

interface Rule {
  name: string;
  check: (source: Source) => string[];
  /** A file that breaks it, and one that does not. */
  broken: Source;
  kept: Source;
}

function testRules(rules: readonly Rule[], files: readonly Source[]): void {
  test.each(rules.map((rule) => [rule.name, rule] as const))('%s', (_, { check, broken, kept }) => {
    expect(check(broken), 'the rule finds a violation').not.toEqual([]);
    expect(check(kept), 'the rule lets others be').toEqual([]);
    expect(files.flatMap((source) => check(source).map((what) => `${source.file}: ${what}`))).toEqual([]);
  });
}

// ---- C++ ------------------------------------------------------------------------------------------------------------

const PARTS = ['core', 'runtime', 'cpu', 'cuda', 'binding'] as const;
type Part = (typeof PARTS)[number];

const partOf = (file: string): Part | undefined => PARTS.find((part) => file.startsWith(`csrc/${part}/`));

const includesOf = ({ text }: Source): string[] =>
  [...text.matchAll(/^\s*#\s*include\s*(["<][^">]+[">])/gm)].map((match) => match[1]);

/** The files that a source includes by a relative path, from the repository. */
const ownIncludes = (source: Source): string[] =>
  includesOf(source)
    .filter((include) => include.startsWith('"'))
    .map((include) => path.posix.normalize(path.posix.join(path.posix.dirname(source.file), include.slice(1, -1))));

/** Parts that each part sees whole. */
const SEES: Record<Part, readonly Part[]> = {
  core: ['core'],
  runtime: ['core', 'runtime'],
  cpu: ['core', 'cpu'],
  cuda: ['core', 'cuda'],
  binding: ['core', 'runtime', 'binding'],
};

/** What a backend may use of the runtime: its interface, and what that needs. */
const BACKEND_FILES = ['backend', 'check', 'error', 'plan', 'stream', 'thread_pool'].map(
  (name) => `csrc/runtime/${name}.h`,
);

/** And the files of other parts: the interface between them. */
const SEES_FILES: Record<Part, readonly string[]> = {
  core: [],
  runtime: [],
  cpu: BACKEND_FILES,
  cuda: BACKEND_FILES,
  binding: ['csrc/cpu/cpu_backend.h', 'csrc/cuda/cuda_backend.h'],
};

/** What core may use of the standard library: nothing that allocates or does I/O, and nothing that a kernel lacks. */
const CORE_HEADERS = ['<cmath>', '<cstddef>', '<cstdint>', '<cstring>'];
/** Files built for instruction sets that the machine may lack: no inline functions of the standard library. */
const PLAIN_HEADERS = ['<stddef.h>', '<stdint.h>'];

const file = (name: string, text: string): Source => ({ file: name, text });

const cppRules: Rule[] = [
  {
    name: 'binding → runtime → core ← cpu, cuda',
    check: (source) => {
      const part = partOf(source.file);
      if (part === undefined) return ['lies in no part of csrc'];
      return ownIncludes(source).filter((include) => {
        const other = partOf(include);
        return other === undefined || !(SEES[part].includes(other) || SEES_FILES[part].includes(include));
      });
    },
    broken: file('csrc/cpu/x.cpp', '#include "../cuda/cuda_backend.h"'),
    kept: file('csrc/cpu/x.cpp', '#include "../runtime/backend.h"\n#include "tile.h"\n#include <vector>'),
  },
  {
    name: '<napi.h> and Node headers only in binding',
    check: (source) =>
      partOf(source.file) === 'binding'
        ? []
        : includesOf(source).filter((include) => /napi|node|uv\.h|v8/.test(include)),
    broken: file('csrc/runtime/x.h', '#  include <napi.h>'),
    kept: file('csrc/binding/x.h', '#include <napi.h>'),
  },
  {
    name: 'CUDA headers only in cuda',
    check: (source) =>
      partOf(source.file) === 'cuda'
        ? []
        : includesOf(source).filter((include) => /^<(cuda|cooperative_groups|mma|cub|nv)/.test(include)),
    broken: file('csrc/core/x.h', '#include <cuda_fp16.h>'),
    kept: file('csrc/cuda/x.h', '#include <cuda_runtime.h>'),
  },
  {
    name: 'CUDA language and build flags only in cuda, but for the marks of core/numeric.h',
    check: ({ file: name, text }) =>
      partOf(name) === 'cuda' || name === 'csrc/core/numeric.h'
        ? []
        : [
            ...text.matchAll(
              /__(?:CUDACC__|CUDA_ARCH__|global__|device__|host__|shared__)|\bcuda(?:Malloc|Stream|Memcpy)\w*/g,
            ),
          ].map(([match]) => match),
    broken: file('csrc/runtime/x.cpp', '#ifdef __CUDACC__'),
    kept: file('csrc/core/x.h', 'LEAN_HD inline int f() { return 1; }'),
  },
  {
    name: 'core includes nothing but plain headers',
    check: (source) =>
      partOf(source.file) === 'core'
        ? includesOf(source).filter((include) => include.startsWith('<') && !CORE_HEADERS.includes(include))
        : [],
    broken: file('csrc/core/x.h', '#include <vector>'),
    kept: file('csrc/core/x.h', '#include <cstdint>'),
  },
  {
    name: 'core neither allocates nor does I/O',
    check: ({ file: name, text }) =>
      partOf(name) === 'core'
        ? [
            ...text.matchAll(
              /\bnew\s+\w|\bmalloc\(|\bprintf\(|\bstd::(?:string|vector|cout|cerr|unique_ptr|shared_ptr|function)\b|\bthrow\b/g,
            ),
          ].map(([match]) => match)
        : [],
    broken: file('csrc/core/x.h', 'std::vector<int> v;'),
    kept: file('csrc/core/x.h', 'std::uint32_t bits;'),
  },
  {
    name: 'tile code for other instruction sets pulls in no inline functions of the standard library',
    check: (source) =>
      /^csrc\/cpu\/tile/.test(source.file)
        ? includesOf(source).filter((include) => /^<[^.]*>$/.test(include) && !PLAIN_HEADERS.includes(include))
        : [],
    broken: file('csrc/cpu/tile_avx2.cpp', '#include <algorithm>'),
    kept: file('csrc/cpu/tile_avx2.cpp', '#include <stdint.h>\n#include <immintrin.h>'),
  },
  {
    name: 'the library never exits, aborts or prints',
    check: ({ text }) =>
      [
        ...text.matchAll(
          /\b(?:std::)?(?:exit|_exit|abort|terminate|printf|puts|perror)\s*\(|\bstd::c(?:out|err)\b|\bfprintf\b/g,
        ),
      ].map(([match]) => match),
    broken: file('csrc/runtime/x.cpp', 'std::abort();'),
    kept: file('csrc/runtime/x.cpp', 'throw Error(code, "gone");'),
  },
  {
    name: 'every file opens with what it is, headers with an include guard',
    check: ({ file: name, text }) => [
      // A .cpp may leave the caption to its header, and so may an instantiation.
      ...(text.startsWith('//') || (/\.(?:cpp|cu)$/.test(name) && text.startsWith('#include "')) ? [] : ['no caption']),
      ...(name.endsWith('.h') && !/^#pragma once$/m.test(text) ? ['no #pragma once'] : []),
    ],
    broken: file('csrc/runtime/x.h', '#pragma once\n'),
    kept: file('csrc/runtime/x.h', '// What it is.\n#pragma once\n'),
  },
];

describe('C++', () => {
  const files = sources('csrc', /\.(h|cpp|cu|cuh)$/);
  test('there are files to check in every part', () => {
    for (const part of PARTS)
      expect(
        files.some((source) => partOf(source.file) === part),
        part,
      ).toBe(true);
  });
  testRules(cppRules, files);

  test('includes form no circle between parts', () => {
    // The law above names what each part sees; the parts that it sees must not see it.
    for (const part of PARTS) {
      for (const other of SEES[part]) if (other !== part) expect(SEES[other]).not.toContain(part);
    }
  });
});

// ---- TypeScript -----------------------------------------------------------------------------------------------------

const importsOf = ({ text }: Source): string[] =>
  [
    ...text.matchAll(/^\s*(?:import|export)\b[^;'"]*?\bfrom\s*['"]([^'"]+)['"]/gm),
    ...text.matchAll(/^\s*import\s*['"]([^'"]+)['"]/gm),
    ...text.matchAll(/\b(?:require|import)\(\s*['"]([^'"]+)['"]\s*\)/g),
  ].map((match) => match[1]);

const resolved = (source: Source, name: string): string =>
  path.posix.normalize(path.posix.join(path.posix.dirname(source.file), name));

const isCli = (source: Source): boolean => source.file.startsWith('lib/cli/');

const tsRules: Rule[] = [
  {
    name: 'only lib/native.ts loads the addon',
    check: (source) =>
      source.file === 'lib/native.ts'
        ? []
        : importsOf(source)
            .filter((name) => /node-gyp-build|bindings|\.node$/.test(name) || /dlopen/.test(name))
            .concat([...source.text.matchAll(/process\.dlopen|createRequire/g)].map(([match]) => match)),
    broken: file('lib/device.ts', "const load = require('node-gyp-build');"),
    kept: file('lib/native.ts', "const load = require('node-gyp-build');"),
  },
  {
    name: 'lib/cli sees the public API, the reference and Node, and nothing behind them',
    check: (source) =>
      isCli(source)
        ? importsOf(source).filter((name) => {
            if (name.startsWith('node:')) return false;
            if (!name.startsWith('.')) return true;
            const target = resolved(source, name);
            return !(target.startsWith('lib/cli/') || target === 'lib/index' || target === 'lib/reference');
          })
        : [],
    broken: file('lib/cli/run.ts', "import { native } from '../native';"),
    kept: file(
      'lib/cli/bench/run.ts',
      "import { openDevice } from '../../index';\nimport path from 'node:path';\nimport { x } from '../table';",
    ),
  },
  {
    name: 'the library sees nothing of the command line',
    check: (source) =>
      isCli(source) ? [] : importsOf(source).filter((name) => resolved(source, name).startsWith('lib/cli')),
    broken: file('lib/device.ts', "import { run } from './cli/run';"),
    kept: file('lib/device.ts', "import { Plan } from './plan';"),
  },
  {
    name: 'the library depends on nothing but Node and node-gyp-build',
    check: (source) =>
      importsOf(source).filter((name) => !/^(?:\.{1,2}\/|node:)/.test(name) && name !== 'node-gyp-build'),
    broken: file('lib/device.ts', "import chalk from 'chalk';"),
    kept: file('lib/device.ts', "import path from 'node:path';"),
  },
  {
    name: 'the reference shares nothing with the library but its types',
    check: (source) =>
      source.file === 'lib/reference.ts'
        ? [...source.text.matchAll(/^import (?!type\b).*$/gm)].map(([match]) => match)
        : [],
    broken: file('lib/reference.ts', "import { convert } from './index';"),
    kept: file('lib/reference.ts', "import type { Tensor } from './index';"),
  },
  {
    name: 'lib/index.ts is re-exports only',
    check: (source) =>
      source.file === 'lib/index.ts'
        ? source.text
            .replace(/\/\/.*$/gm, '')
            .replace(/export (?:type )?\{[^}]*\} from '\.\/[\w-]+';/g, '')
            .split('\n')
            .filter((line) => line.trim() !== '')
        : [],
    broken: file('lib/index.ts', 'export const version = 1;'),
    kept: file('lib/index.ts', "// API.\nexport { openDevice, type DeviceOptions } from './device';"),
  },
  {
    name: 'no `any`',
    check: ({ text }) =>
      [...text.replace(/\/\/.*$|\/\*[\s\S]*?\*\//gm, '').matchAll(/[:<|&(,]\s*any\b|\bas any\b/g)].map(
        ([match]) => match,
      ),
    broken: file('lib/device.ts', 'function f(x: any) {}'),
    kept: file('lib/device.ts', '// any\nfunction f(x: unknown) {}'),
  },
  {
    name: 'the library never exits or prints; the command line does',
    check: (source) =>
      isCli(source)
        ? []
        : [...source.text.matchAll(/process\.(?:exit|abort|stdout|stderr)|console\.\w+/g)].map(([match]) => match),
    broken: file('lib/device.ts', "console.warn('slow');"),
    kept: file('lib/cli/main.ts', 'process.exit(2);'),
  },
  {
    name: 'every file opens with what it is',
    check: ({ text }) => (/^(?:#!.*\n)?\/\//.test(text) ? [] : ['no caption']),
    broken: file('lib/device.ts', "import path from 'node:path';"),
    kept: file('lib/cli/main.ts', '#!/usr/bin/env node\n// The command.\n'),
  },
];

describe('TypeScript', () => {
  const files = sources('lib', /\.ts$/);
  test('there are files to check', () => {
    expect(files.some(isCli)).toBe(true);
    expect(files.map((source) => source.file)).toContain('lib/index.ts');
  });
  testRules(tsRules, files);

  test('imports are found in every form', () => {
    const text =
      "import a from 'a';\nimport {\n  b,\n} from 'b';\nexport * from 'c';\nimport 'd';\nconst e = require('e');\nawait import('f');";
    expect(importsOf(file('lib/x.ts', text)).sort()).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
  });
});
