// SPDX-License-Identifier: GPL-2.0-or-later
// Read what a command of virt-dmem printed: its answer, or the reason why there is none, in its own words.

import type { Error as Reason } from "./answers";

export type { Reason };

/** How a command ended. */
export interface Ended {
    stdout: string;
    stderr: string;
    /** Cockpit's word for why it could not be run, as in "not-found"; empty: it ran. */
    problem: string;
}

/** An answer and the notes that came with it, or the reason why there is none. */
export type Reply<Answer> = { ok: true; answer: Answer; notes: string[] } | { ok: false; reason: Reason };

const SCHEMA = 1;

const PROBLEMS: Record<string, Reason> = {
    "not-found": {
        code: "",
        message: "virt-dmem is not installed on this host.",
        hint: "Install the package virt-dmem, then load this page again.",
    },
    "access-denied": {
        code: "",
        message: "This needs administrative access.",
        hint: "Turn it on at the top of Cockpit's window.",
    },
};

/** Return what an ended command answered; its exit status says no more than that. */
export function readReply<Answer>(ended: Ended): Reply<Answer> {
    if (ended.problem !== "" && ended.stdout === "")
        return { ok: false, reason: PROBLEMS[ended.problem] ?? broken(ended.stderr || ended.problem) };
    const answer = parsed(ended.stdout);
    if (answer === null)
        return { ok: false, reason: broken(ended.stderr || ended.stdout.slice(0, 300)) };
    if ("error" in answer && isReason(answer.error))
        return { ok: false, reason: answer.error };
    if (answer.schema !== SCHEMA)
        return { ok: false, reason: broken(`It answers in version ${String(answer.schema)} of its format.`) };
    return { ok: true, answer: answer as Answer, notes: notesOf(ended.stderr) };
}

function parsed(text: string): Record<string, unknown> | null {
    try {
        const value: unknown = JSON.parse(text);
        return isObject(value) ? value : null;
    } catch {
        return null;
    }
}

function isObject(value: unknown): value is Record<string, unknown> {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isReason(value: unknown): value is Reason {
    return isObject(value) && [value.code, value.message, value.hint].every(one => typeof one === "string");
}

function broken(said: string): Reason {
    return { code: "", message: "virt-dmem gave no answer that this page can read.", hint: said.trim() };
}

/** Return the notes for the operator: lines on standard error, each with the name of the program before it. */
function notesOf(stderr: string): string[] {
    return stderr.split("\n").filter(line => line.trim() !== "").map(line => line.replace(/^virt-dmem: /, ""));
}
