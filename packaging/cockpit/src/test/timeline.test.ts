// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";

import type { Step } from "../model/answers";
import { timelineOf } from "../model/timeline";

const step = (name: string, at: number, seconds: number): Step => ({ step: name, at, seconds });

const START = [
    step("prepare: hook", 100.1, 0.1),
    step("prepare: plan and ledger", 100.2, 0.05),
    step("prepare", 100.5, 0.4),
    step("start", 101.5, 0.25),
    step("started", 102, 0.25),
];

test("each step lies where it was, in the order in which they began", () => {
    const { spans, seconds } = timelineOf([...START].reverse());
    assert.equal(seconds.toFixed(3), "2.000");
    assert.deepEqual(spans.map(span => [span.name, Math.round(span.left), Math.round(span.width)]), [
        ["prepare: hook", 0, 5],
        ["prepare", 5, 20],
        ["prepare: plan and ledger", 8, 3],
        ["start", 63, 13],
        ["started", 88, 13],
    ]);
});

test("what pool memory added is the sum of the calls, not of their parts", () => {
    assert.equal(timelineOf(START).addedSeconds.toFixed(3), "1.000");
    assert.deepEqual(timelineOf(START).spans.filter(span => !span.isCall).map(span => span.name), ["prepare: plan and ledger"]);
});

test("the steps of its end are no part of a start", () => {
    const { spans } = timelineOf([...START, step("stopped", 5000, 1), step("release: hook", 5002, 1)]);
    assert.equal(spans.length, START.length);
});

test("no steps, or one that took no time, are no reason to fail", () => {
    assert.deepEqual(timelineOf([]), { spans: [], seconds: 0, addedSeconds: 0 });
    assert.deepEqual(timelineOf([step("prepare", 1, 0)]).spans.map(span => [span.left, span.width]), [[0, 0]]);
});
