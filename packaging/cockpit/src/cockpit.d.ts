// SPDX-License-Identifier: GPL-2.0-or-later
// Declare what this page uses of Cockpit's base1/cockpit.js, which Cockpit itself serves.

interface CockpitSpawnOptions {
    superuser?: "require" | "try";
    /** "message": standard error is collected, and comes with the result. */
    err?: "message";
    environ?: string[];
}

interface CockpitProblem {
    problem: string | null;
    message: string;
    exit_status: number | null;
}

interface CockpitProcess {
    then(done: (stdout: string, stderr: string | undefined) => void,
         failed: (problem: CockpitProblem, stdout: string | undefined) => void): unknown;
    stream(read: (text: string) => void): CockpitProcess;
    close(problem?: string): void;
}

interface CockpitPermission extends EventTarget {
    /** null: not known yet. */
    allowed: boolean | null;
    addEventListener(type: "changed", listener: () => void): void;
    removeEventListener(type: "changed", listener: () => void): void;
}

interface Cockpit {
    spawn(argv: string[], options?: CockpitSpawnOptions): CockpitProcess;
    permission(options: { admin: boolean }): CockpitPermission;
}

declare const cockpit: Cockpit;
