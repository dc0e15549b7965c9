// SPDX-License-Identifier: GPL-2.0-or-later

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { test } from "node:test";

import * as commands from "../model/commands";
import examples from "./commands.json";

/** What others may have chosen: it looks like an option, has quotes and spaces, and turns the direction of text. */
const HOSTILE = "--force '\"; $(reboot)\u202e";

/**
 * Calls of each function. tests/unit/test_cockpit.py has virt-dmem's own parser read them, from commands.json:
 * VIRT_DMEM_REGENERATE=1 npm test writes that anew.
 */
const CALLS: Record<keyof typeof commands, commands.Call<unknown>[]> = {
    listPools: [commands.listPools()],
    listDomains: [commands.listDomains()],
    listApplied: [commands.listApplied()],
    listAlerts: [commands.listAlerts()],
    listSavings: [commands.listSavings()],
    followEvents: [commands.followEvents()],
    showDomain: [commands.showDomain(HOSTILE)],
    explain: [commands.explain(HOSTILE)],
    createPool: [
        commands.createPool({ name: HOSTILE, backend: "tmpfs", size: "4G", pageSize: "", onBoot: false }),
        commands.createPool({ name: "p", backend: "hugetlbfs", size: "0=48G, 1=16G", pageSize: "1G", onBoot: true }),
        commands.createPool({ name: "p", backend: "dmemfs", size: "", pageSize: "", onBoot: false }),
    ],
    previewResize: [commands.previewResize(HOSTILE, " 8G ")],
    resizePool: [commands.resizePool(HOSTILE, "0=4G 1=4G")],
    judgeDomains: [commands.judgeDomains()],
    previewApply: [commands.previewApply(HOSTILE, HOSTILE)],
    applyDomain: [commands.applyDomain(HOSTILE, HOSTILE)],
};

test("the command lines are those that virt-dmem's parser is tested with", () => {
    const lines = Object.fromEntries(Object.entries(CALLS).map(([name, calls]) => [name, calls.map(call => call.argv)]));
    if (process.env.VIRT_DMEM_REGENERATE)
        writeFileSync("src/test/commands.json", written(lines));
    else
        assert.deepEqual(lines, examples);
});

test("only what changes the host requires root", () => {
    const changing = Object.entries(CALLS).filter(([, calls]) => calls.some(call => call.changes)).map(([name]) => name);
    assert.deepEqual(changing, ["createPool", "previewResize", "resizePool", "applyDomain"]);
});

test("a size that is not one of each node is left to virt-dmem to judge", () => {
    assert.deepEqual(commands.resizePool("p", "0=4G four").argv.slice(3), ["--json", "--yes", "--size=0=4G four", "--", "p"]);
});

/** Return JSON with a command in each line, and of ASCII only. */
function written(lines: Record<string, (readonly string[])[]>): string {
    const entries = Object.entries(lines).map(([name, calls]) => (
        `  ${JSON.stringify(name)}: [\n${calls.map(argv => `    ${JSON.stringify(argv)}`).join(",\n")}\n  ]`
    ));
    const escaped = (character: string) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
    return `{\n${entries.join(",\n")}\n}\n`.replace(/[^\n -~]/g, escaped);
}
