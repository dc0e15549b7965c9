// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { test } from "node:test";

import { changeSentences } from "../model/changes";
import { diffLines } from "../model/diff";
import { totalOf } from "../model/savings";
import { formatSeconds, formatSize, printable } from "../model/text";

test("sizes look as virt-dmem shows them", () => {
    const sizes = [0, 1023, 1024, 1536, 2 ** 21, 2.5 * 2 ** 30, null].map(formatSize);
    assert.deepEqual(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "2 MiB", "2.5 GiB", "unknown"]);
});

test("durations are milliseconds below a second", () => {
    assert.deepEqual([0.0034, 0.9, 1.239].map(formatSeconds), ["3 ms", "900 ms", "1.24 s"]);
});

test("what has no glyph is shown as an escape", () => {
    assert.equal(printable("a\u0000b\u202ec\u2028\u200bd"), "a\\x00b\\u{202e}c\\u{2028}\\u{200b}d");
    assert.equal(printable("gäst 1 <b>&amp;"), "gäst 1 <b>&amp;");
});

test("a diff has its lines told apart, and not those of its head", () => {
    const lines = diffLines("--- before\n+++ after\n@@ -1 +1 @@\n <domain>\n---x\n+  <a/>");
    assert.deepEqual(lines.map(line => line.kind), ["place", "same", "removed", "added"]);
    assert.deepEqual(diffLines(""), []);
});

test("a resize is told segment by segment", () => {
    const gib = 2 ** 30;
    assert.deepEqual(changeSentences([
        { segment: "p", before: { "0": gib, "1": gib }, after: { "0": gib } },
        { segment: "p+1", before: {}, after: { "-1": gib } },
        { segment: "p+2", before: { "0": gib }, after: {} },
    ]), [
        "Segment p shrinks from 2 GiB to 1 GiB (node 0: 1 GiB).",
        "Segment p+1 is added, with 1 GiB.",
        "Segment p+2 of 1 GiB is removed, and its memory given back to the host.",
    ]);
});

test("savings are added up, and are an estimate if one of them is", () => {
    const saving = (measured: boolean) => ({
        pool: "p", backend: "hugetlbfs", page_size: 1, size_bytes: 1, gross_bytes: 100, metadata_left_bytes: 20,
        net_bytes: 80, measured, how: measured ? "measured" as const : "estimated" as const,
    });
    assert.deepEqual(totalOf([saving(true), saving(false)]),
        { grossBytes: 200, leftBytes: 40, netBytes: 160, measured: false, percent: 80 });
    assert.deepEqual(totalOf([]).percent, 0);
});
