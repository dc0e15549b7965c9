// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";

import type { AppliedOne, Domain } from "../model/answers";
import { candidatesOf, domainRows } from "../model/domains";

function domain(name: string, part: Partial<Domain> = {}): Domain {
    return { uuid: `uuid-${name}`, name, phase: "running", reserved_bytes: 64, extents: [], ...part };
}

const extent = (pool: string) => ({
    alias: "pc.ram", pool, path: "/p", size_bytes: 1, page_size: 1, policy: "none", nodes: [], state: "ready",
});

test("domains that hold memory come first, and each once", () => {
    const held = [domain("b"), domain("a", { extents: [extent("q"), extent("p"), extent("q")] })];
    const applied = [domain("c", { phase: null, reserved_bytes: 0, pool: "p", size_bytes: 32 }), domain("b")];
    const rows = domainRows(held, applied);
    assert.deepEqual(rows.map(row => row.name), ["a", "b", "c"]);
    assert.deepEqual(rows[0]?.pools, ["p", "q"]);
    assert.deepEqual([rows[2]?.state, rows[2]?.nextBytes, rows[2]?.pools], ["shut off", 32, ["p"]]);
});

test("an applied domain that runs and holds nothing runs on ordinary memory", () => {
    const [row] = domainRows([], [domain("a", { phase: null, active: true, pool: null })]);
    assert.deepEqual([row?.state, row?.pools, row?.started], ["running on ordinary memory", [], false]);
});

test("of the domains to choose from those come first that can be rewritten", () => {
    const one = (name: string, diff: string, refused = false): AppliedOne => ({
        name, changed: false, diff,
        domain: refused ? null : { uuid: `uuid-${name}`, name, active: false, applied: true },
        error: refused ? { code: "domain-refused", message: "no", hint: "" } : null,
    });
    const found = candidatesOf([one("r", "", true), one("d", ""), one("q", "+"), one("p", "+")]);
    assert.deepEqual(found.map(candidate => [candidate.name, candidate.verdict]), [
        ["p", "possible"], ["q", "possible"], ["d", "done"], ["r", "refused"],
    ]);
});
