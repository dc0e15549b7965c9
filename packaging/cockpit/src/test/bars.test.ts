// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";

import type { Pool, PoolNode } from "../model/answers";
import { barsOf, kindsIn } from "../model/bars";

const GIB = 2 ** 30;

function node(part: Partial<PoolNode>): PoolNode {
    return { node: 0, capacity_bytes: 8 * GIB, reserved_bytes: 0, free_bytes: 8 * GIB, ready_bytes: 0, ...part };
}

function pool(...nodes: PoolNode[]): Pool {
    return {
        name: "p", backend: "hugetlbfs", page_size: 2 ** 21, mount: "/m", state: "ready",
        capacity_bytes: 0, reserved_bytes: 0, free_bytes: 0, ready_bytes: 0, ready_goal_bytes: 0, ready_most_bytes: 0,
        ready_policy: "all", pinned_bytes: 0, nodes, segments: [], ready_note: "", elastic: null, on_boot: false,
    };
}

const partsOf = (one: PoolNode) => barsOf(pool(one)).flatMap(bar => bar.parts);

test("a bar shows what is used, pre-zeroed and otherwise free, in this order", () => {
    const parts = partsOf(node({ reserved_bytes: 2 * GIB, free_bytes: 6 * GIB, ready_bytes: 4 * GIB }));
    assert.deepEqual(parts.map(part => [part.kind, part.bytes / GIB, part.percent]), [
        ["used", 2, 25], ["ready", 4, 50], ["free", 2, 25],
    ]);
});

test("what is empty has no part", () => {
    assert.deepEqual(partsOf(node({})).map(part => part.kind), ["free"]);
    assert.deepEqual(partsOf(node({ capacity_bytes: 0, free_bytes: 0 })), []);
});

test("the parts always add up, also where more is reserved or pre-zeroed than there is", () => {
    for (const strange of [
        { reserved_bytes: 12 * GIB, free_bytes: 0 },
        { free_bytes: 3 * GIB, ready_bytes: 5 * GIB },
        { reserved_bytes: -1, free_bytes: -1, ready_bytes: -1 },
    ]) {
        const parts = partsOf(node(strange));
        const sum = parts.reduce((total, part) => total + part.percent, 0);
        assert.ok(parts.length === 0 || Math.abs(sum - 100) < 1e-9, JSON.stringify(parts));
    }
});

test("a pool with less memory than is reserved says so", () => {
    const bars = barsOf(pool(node({}), node({ node: 1, reserved_bytes: 12 * GIB, free_bytes: 0 })));
    assert.deepEqual(bars.map(bar => bar.short), [false, true]);
});

test("without virt-dmemd only the size is known", () => {
    const unknown = node({ reserved_bytes: null, free_bytes: null, ready_bytes: null });
    assert.deepEqual(partsOf(unknown).map(part => [part.kind, part.percent]), [["unknown", 100]]);
});

test("a bar says the same in words", () => {
    const [bar] = barsOf(pool(node({ reserved_bytes: GIB, free_bytes: 7 * GIB, ready_bytes: GIB / 2 })));
    assert.equal(bar?.words, "1 GiB used, 512 MiB pre-zeroed, 6.5 GiB free");
});

test("each node has a bar, and memory of no node too", () => {
    assert.deepEqual(barsOf(pool(node({}), node({ node: 3 }))).map(bar => bar.title), ["node 0", "node 3"]);
    assert.deepEqual(barsOf(pool(node({ node: -1 }))).map(bar => bar.title), ["any node"]);
});

test("the legend explains what is drawn, and nothing else", () => {
    const bars = barsOf(pool(node({}), node({ reserved_bytes: GIB, free_bytes: 7 * GIB })));
    assert.deepEqual(kindsIn(bars).map(([kind]) => kind), ["used", "free"]);
});

test("an elastic pool first shows what it has of what it may have", () => {
    const limits = { max_bytes: 16 * GIB, min_bytes: 0, keep_free_bytes: GIB, linger_seconds: 600, room_bytes: GIB };
    const taken = { capacity_bytes: 4 * GIB, reserved_bytes: 3 * GIB, free_bytes: GIB, ready_bytes: 0 };
    const [inAll, ...nodes] = barsOf({ ...pool(node(taken)), ...taken, elastic: limits });
    assert.deepEqual(inAll?.parts.map(part => [part.kind, part.bytes / GIB]), [["used", 3], ["free", 1], ["untaken", 12]]);
    assert.equal(inAll.title, "in all");
    assert.equal(nodes.length, 1);
    const shrunk = barsOf({ ...pool(), ...taken, elastic: { ...limits, max_bytes: GIB } });
    assert.ok(!shrunk[0]?.parts.some(part => part.kind === "untaken"), "its limit may be below what it has");
});

test("without virt-dmemd an elastic pool shows how much it has", () => {
    const limits = { max_bytes: 16 * GIB, min_bytes: 0, keep_free_bytes: GIB, linger_seconds: 600, room_bytes: GIB };
    const unknown = { capacity_bytes: 4 * GIB, reserved_bytes: null, free_bytes: null, ready_bytes: null };
    const [inAll] = barsOf({ ...pool(), ...unknown, elastic: limits });
    assert.deepEqual(inAll?.parts.map(part => part.kind), ["untaken", "unknown"]);
});
