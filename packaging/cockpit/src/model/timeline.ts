// SPDX-License-Identifier: GPL-2.0-or-later
// Compute the time line of a start: when each step of the hook began, and how long it took.

import type { Step } from "./answers";

/** A step on the time line. */
export interface Span {
    name: string;
    seconds: number;
    /** Where it begins and how long it is, in percent of the whole. */
    left: number;
    width: number;
    /** It is a call of the hook as a whole; the others are parts of one. */
    isCall: boolean;
}

export interface Timeline {
    spans: Span[];
    /** From the first step's begin to the last one's end. */
    seconds: number;
    /** What pool memory added to the start: the sum of the calls. */
    addedSeconds: number;
}

/** libvirt's calls of the hook while a domain starts; those of its end are left out. */
const CALLS = ["prepare", "start", "started"];
const ENDS = ["stopped", "release"];

/** Return the time line of a start, in the order in which the steps began. */
export function timelineOf(steps: Step[]): Timeline {
    const ofStart = steps.filter(step => !ENDS.includes(step.step.split(":")[0] ?? ""));
    const sorted = [...ofStart].sort((one, other) => begin(one) - begin(other) || other.seconds - one.seconds);
    if (sorted.length === 0)
        return { spans: [], seconds: 0, addedSeconds: 0 };
    const from = Math.min(...sorted.map(begin));
    const seconds = Math.max(...sorted.map(step => step.at)) - from;
    const percent = (part: number) => seconds > 0 ? Math.min(100, Math.max(0, 100 * part / seconds)) : 0;
    const spans = sorted.map(step => ({
        name: step.step,
        seconds: step.seconds,
        left: percent(begin(step) - from),
        width: percent(step.seconds),
        isCall: isCall(step.step),
    }));
    const addedSeconds = sorted.filter(step => isCall(step.step)).reduce((sum, step) => sum + step.seconds, 0);
    return { spans, seconds, addedSeconds };
}

function begin(step: Step): number {
    return step.at - step.seconds;
}

function isCall(name: string): boolean {
    return CALLS.some(call => name === call || name === `${call}: hook`);
}
