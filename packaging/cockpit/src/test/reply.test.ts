// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";

import { readReply, type Ended } from "../model/reply";

const ended = (part: Partial<Ended>) => readReply({ stdout: "", stderr: "", problem: "", ...part });

test("an answer comes with the notes for the operator", () => {
    const reply = ended({ stdout: '{"schema": 1, "pools": []}', stderr: "virt-dmem: One.\nvirt-dmem: Two.\n" });
    assert.deepEqual(reply, { ok: true, answer: { schema: 1, pools: [] }, notes: ["One.", "Two."] });
});

test("a refusal has the command's own words", () => {
    const error = { code: "pool-exists", message: "There is a pool p.", hint: "Choose another name." };
    const reply = ended({ stdout: JSON.stringify({ schema: 1, error }), stderr: "virt-dmem: ...", problem: "" });
    assert.deepEqual(reply, { ok: false, reason: error });
});

test("several answers of which some are refusals are an answer", () => {
    const reply = ended({ stdout: '{"schema": 1, "domains": [{"name": "a", "error": {}}]}' });
    assert.ok(reply.ok);
});

for (const [what, part, message] of [
    ["no program", { problem: "not-found" }, /not installed/],
    ["no administrative access", { problem: "access-denied" }, /administrative access/],
    ["nothing printed", { stderr: "Traceback" }, /cannot|can read/],
    ["no JSON", { stdout: "pools: none" }, /can read/],
    ["no object", { stdout: "[]" }, /can read/],
    ["another version of the format", { stdout: '{"schema": 2, "pools": []}' }, /can read/],
    ["a refusal of another form", { stdout: '{"error": "no"}' }, /can read/],
] as const) {
    test(`${what} is a refusal that says so`, () => {
        const reply = ended(part);
        assert.ok(!reply.ok);
        assert.match(reply.reason.message, message);
    });
}

test("what it said instead of an answer is shown", () => {
    const reply = ended({ stderr: "Segmentation fault\n" });
    assert.ok(!reply.ok && reply.reason.hint === "Segmentation fault");
});
