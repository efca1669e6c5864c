#!/usr/bin/env node
// Runs the ringfence of this platform's package: its arguments, streams, signals and exit code are those of this process.
"use strict";

const { spawn } = require("node:child_process");
const { constants } = require("node:os");

const fail = (what, hint) => {
  console.error(`error: ${what}\n hint: ${hint}`);
  process.exit(1);
};

const platform = `@ringfence/${process.platform}-${process.arch}`;
let program;
try {
  program = require.resolve(`${platform}/bin/ringfence`);
} catch {
  fail(
    `failed to find package ${platform}`,
    "there are packages for Linux on x64 and arm64, with musl if they were made of a static program; if this is one of them, install without --omit=optional",
  );
}

// Before the start, so that no signal ends this process alone. A terminal sends its own to both; a second one changes nothing.
for (const signal of ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2"]) {
  process.on(signal, () => child.kill(signal));
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
child.on("error", (error) => fail(`failed to start ringfence: ${error.message}`, `is ${program} there, and executable?`));
child.on("exit", (code, signal) => {
  if (signal === null) process.exit(code);
  // As the child ended, so that a shell or a supervisor sees the signal; those that Node.js ignores leave the shell's code.
  process.exitCode = 128 + constants.signals[signal];
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
});
