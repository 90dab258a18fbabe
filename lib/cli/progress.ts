// A progress bar on stderr, for people: it draws only on a terminal, and takes itself away when done.

import type { Terminal } from './terminal';

const WIDTH = 28;

export class Progress {
  private lastDrawn = 0;

  constructor(private readonly terminal: Terminal) {}

  /** `done` from 0 to 1. Redraws at most ten times a second: the thing measured should not wait for its picture. */
  show(done: number, label: string): void {
    const now = Date.now();
    if (!this.terminal.errIsTerminal || now - this.lastDrawn < 100) return;
    this.lastDrawn = now;
    const filled = Math.round(Math.min(1, Math.max(0, done)) * WIDTH);
    const bar = '█'.repeat(filled) + '░'.repeat(WIDTH - filled);
    const percent = String(Math.round(done * 100)).padStart(3);
    this.terminal.err(`\r\x1b[2K${bar} ${percent} %  ${label.slice(0, 60)}`);
  }

  clear(): void {
    if (this.terminal.errIsTerminal && this.lastDrawn > 0) this.terminal.err('\r\x1b[2K');
  }
}
