#!/usr/bin/env node
// Compiles every CUDA kernel instance and prints what the assembler made of it: registers, spills, stack, shared memory,
// and the bytes of its code, 16 an instruction: what a launch and a segment cost beside their tiles follows from these.
// Exit code 1: an instance spills registers or uses local memory, takes more registers than the launch configurations of
// the table leave it, does not compile, or not without a warning.
//   node scripts/compile-report.cjs [--arch 80,90a] [--all] [--only f16_128] [--json FILE]
// --all takes the full list of architectures; --only the instance files whose name contains the text.
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const allArchitectures = ['80', '86', '89', '90a', '100', '120'];
const variants = ['compact', 'ampere', 'hopper', 'hopper-bulk'];
// Each quarter of an SM has its registers, and gives them out to warps, 8 for each lane at a time.
const registersOfQuarter = 16384;
const warpsOfSm = (registers) => 4 * Math.floor(registersOfQuarter / (32 * 8 * Math.ceil(registers / 8)));

const root = path.join(__dirname, '..');
const folder = path.join(root, 'csrc/cuda/instances');

function option(name) {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
}

const nvcc = [process.env.CUDA_PATH, process.env.CUDA_HOME, '/usr/local/cuda']
  .filter(Boolean)
  .map((home) => path.join(home, 'bin/nvcc'))
  .concat('nvcc')
  .find((candidate) => spawnSync(candidate, ['--version']).status === 0);
if (!nvcc) {
  console.error('compile-report: nvcc was not found (set CUDA_HOME, or install the CUDA toolkit).');
  process.exit(2);
}

const architectures = process.argv.includes('--all') ? allArchitectures : (option('--arch') ?? '80,90a').split(',');
const files = readdirSync(folder).filter((file) => file.endsWith('.cu') && file.includes(option('--only') ?? ''));

// Which variants are whole on an architecture: the others are empty bodies (compiled_for in kernel_config.h).
function compiledVariants(architecture) {
  const number = Number.parseInt(architecture, 10);
  if (number === 90 || (number >= 100 && number < 120)) return ['hopper', 'hopper-bulk'];
  return number === 80 || number === 87 ? ['ampere'] : ['compact'];
}

// The assembler names a kernel by its mangled name; only the template's arguments are of interest.
function kernelName(mangled) {
  const decode = /DecodeKernelINS_\d+(B?Float16)ELi(\d+)ELNS_7VariantE(\d)E/.exec(mangled);
  if (!decode) {
    const other = /kernel_entryINS_\d+(\w+?)KernelE/.exec(mangled)?.[1] ?? mangled;
    return { type: '', headDim: 0, variant: other };
  }
  return { type: decode[1] === 'BFloat16' ? 'bf16' : 'f16', headDim: Number(decode[2]), variant: variants[decode[3]] };
}

// What the launch configurations say of an instance: threads, stages, dynamic shared memory.
function readTable() {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'compile-report-'));
  const program = path.join(directory, 'table');
  const built = spawnSync(nvcc, ['-std=c++20', path.join(__dirname, 'compile-report.cpp'), '-o', program]);
  const table = built.status === 0 ? spawnSync(program, { encoding: 'utf8' }).stdout : undefined;
  rmSync(directory, { recursive: true });
  if (table === undefined) throw new Error(`scripts/compile-report.cpp does not compile: ${built.stderr}`);
  return JSON.parse(table);
}

// Bytes of each kernel's code, by its mangled name: the sections .text.NAME of an ELF file of 64 bits.
function codeSizes(cubin) {
  const elf = readFileSync(cubin);
  const [table, entry, count, names] = [elf.readBigUInt64LE(40), ...[58, 60, 62].map((at) => elf.readUInt16LE(at))];
  const sections = Array.from({ length: count }, (_, i) => elf.subarray(Number(table) + i * entry));
  const [offset, size] = [24, 32].map((at) => (section) => Number(section.readBigUInt64LE(at)));
  const name = (section) => {
    const start = offset(sections[names]) + section.readUInt32LE(0);
    return elf.toString('latin1', start, elf.indexOf(0, start));
  };
  return new Map(sections.map((section) => [name(section).replace('.text.', ''), size(section)]));
}

function parse(output, architecture, code) {
  const rows = [];
  for (const block of output.split(/Compiling entry function /).slice(1)) {
    const number = (pattern) => Number(pattern.exec(block)?.[1] ?? 0);
    const mangled = /^'([^']+)'/.exec(block)[1];
    const row = {
      architecture,
      ...kernelName(mangled),
      codeBytes: code.get(mangled),
      registers: number(/Used (\d+) registers/),
      spillStores: number(/(\d+) bytes spill stores/),
      spillLoads: number(/(\d+) bytes spill loads/),
      stack: number(/(\d+) bytes stack frame/),
      staticShared: number(/(\d+) bytes smem/),
    };
    if (row.headDim === 0 || compiledVariants(architecture).includes(row.variant)) rows.push(row);
  }
  return rows;
}

function compile({ file, architecture }, directory) {
  return new Promise((resolve) => {
    const cubin = path.join(directory, `${file}-${architecture}.cubin`);
    const code = `arch=compute_${architecture},code=sm_${architecture}`;
    const args = [
      '-std=c++20',
      '-O3',
      '-gencode',
      code,
      '-cubin',
      '-Xptxas',
      '-v',
      '-o',
      cubin,
      path.join(folder, file),
    ];
    const started = Date.now();
    const child = spawn(nvcc, args);
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data));
    child.on('error', (error) => resolve({ rows: [], failure: `${file}: ${error.message}` }));
    child.on('close', (status) => {
      const seconds = (Date.now() - started) / 1000;
      const clean = status === 0 && !/\bwarning\b/.test(output);
      const failure = clean ? undefined : `${file} for sm_${architecture} does not compile as it should:\n${output}`;
      const sizes = status === 0 ? codeSizes(cubin) : new Map();
      resolve({ rows: parse(output, architecture, sizes).map((row) => ({ ...row, seconds })), failure });
    });
  });
}

async function main() {
  const table = readTable();
  const work = architectures.flatMap((architecture) => files.map((file) => ({ file, architecture })));
  const rows = [];
  const failures = [];
  const directory = mkdtempSync(path.join(os.tmpdir(), 'compile-report-'));
  const worker = async () => {
    for (let next = work.shift(); next; next = work.shift()) {
      const { rows: more, failure } = await compile(next, directory);
      rows.push(...more);
      if (failure) failures.push(failure);
    }
  };
  await Promise.all(Array.from({ length: os.availableParallelism() }, worker));
  rmSync(directory, { recursive: true });

  rows.sort(
    (a, b) =>
      architectures.indexOf(a.architecture) - architectures.indexOf(b.architecture) ||
      a.variant.localeCompare(b.variant) ||
      a.type.localeCompare(b.type) ||
      a.headDim - b.headDim,
  );
  const widths = [8, 13, 6, 9, 9, 6, 9, 9, 8, 9, 15, 15];
  const line = (cells) => cells.map((cell, i) => (i < 3 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('');
  const head = ['arch', 'variant', 'type', 'head dim', 'threads', 'regs', 'spill B', 'stack B', 'code B', 'CTAs/SM'];
  console.log(line([...head, 'shared B', 'in flight B']));
  for (const row of rows) {
    row.configs = table.filter((c) => variants[c.variant] === row.variant && c.headDim === row.headDim);
    const each = (name) => row.configs.map((config) => config[name]).join(' ');
    const spilled = row.spillStores + row.spillLoads;
    const numbers = [row.headDim || '', each('threads'), row.registers, spilled, row.stack, row.codeBytes];
    numbers.push(each('ctasPerSm'), each('sharedBytes'), each('bytesInFlight'));
    const cells = [`sm_${row.architecture}`, row.variant, row.type, ...numbers.map(String)];
    console.log(line(cells));
    if (row.spillStores + row.spillLoads + row.stack > 0)
      failures.push(`spills or local memory: ${cells.slice(0, 4).join(' ')}`);
    for (const { threads, ctasPerSm } of row.configs)
      if ((ctasPerSm * threads) / 32 > warpsOfSm(row.registers))
        failures.push(
          `registers for fewer than ${ctasPerSm} CTAs of ${threads} threads: ${cells.slice(0, 4).join(' ')}`,
        );
  }
  if (option('--json')) writeFileSync(option('--json'), `${JSON.stringify(rows, null, 2)}\n`);
  for (const failure of failures) console.error(failure);
  const expected = work.length === 0 && rows.length > 0;
  process.exit(failures.length > 0 || !expected ? 1 : 0);
}

main();
