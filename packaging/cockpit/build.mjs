// SPDX-License-Identifier: GPL-2.0-or-later
// Build the page into build/cockpit of the project; with --tests build and run the tests of its logic.

import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const out = path.resolve(here, "../../build/cockpit");

/** Cockpit serves PatternFly's fonts itself. */
const cockpitsFonts = {
    name: "fonts of Cockpit",
    setup(of) {
        of.onResolve({ filter: /\.woff2?$/ }, found => (
            { path: `../../static/fonts/${found.path.split("/").slice(-2).join("/")}`, external: true }
        ));
        of.onLoad({ filter: /assets\/images\/.*\.svg$/ }, () => ({ contents: "", loader: "empty" }));
    },
};

async function buildPage() {
    rmSync(out, { recursive: true, force: true });
    mkdirSync(out, { recursive: true });
    await build({
        absWorkingDir: here,
        entryPoints: { index: "src/index.tsx" },
        outdir: out,
        bundle: true,
        minify: true,
        target: "es2022",
        jsx: "automatic",
        define: { "process.env.NODE_ENV": '"production"' },
        legalComments: "linked",
        plugins: [cockpitsFonts],
    });
    for (const name of ["index.html", "manifest.json"])
        cpSync(path.join(here, "src", name), path.join(out, name));
}

async function runTests() {
    const tests = path.resolve(out, "../cockpit-tests");
    rmSync(tests, { recursive: true, force: true });
    const sources = readdirSync(path.join(here, "src/test")).filter(name => name.endsWith(".test.ts"));
    await build({
        absWorkingDir: here,
        entryPoints: sources.map(name => path.join("src/test", name)),
        outdir: tests,
        outExtension: { ".js": ".mjs" },
        bundle: true,
        platform: "node",
        format: "esm",
        target: "node18",
    });
    const files = readdirSync(tests).map(name => path.join(tests, name));
    process.exitCode = spawnSync(process.execPath, ["--test", ...files], { stdio: "inherit" }).status ?? 1;
}

await (process.argv.includes("--tests") ? runTests() : buildPage());
