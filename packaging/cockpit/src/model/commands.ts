// SPDX-License-Identifier: GPL-2.0-or-later
// Build the command lines of virt-dmem: argument lists for an exec, never text for a shell.
//
// `Commands` is made from the parser of virt-dmem, so that a command or option that it does not have is an error of
// types. A value is joined to its option, and what names a pool, a domain or a code goes behind `--`: none of them can
// be taken for an option.

import type { Commands } from "./answers";

/** A command line, and in its type what it answers. */
export interface Call<Answer> {
    readonly argv: readonly string[];
    /** It changes the host, and so needs root; others are tried with whatever privileges there are. */
    readonly changes: boolean;
    /** Never set. */
    readonly answer?: Answer;
}

type AnswerOf<Name extends keyof Commands> = Commands[Name]["answer"];

function call<Name extends keyof Commands>(
    name: Name,
    options: Commands[Name]["options"],
    operands: Commands[Name]["operands"],
    changes = false,
): Call<AnswerOf<Name>> {
    const words: string[] = ["virt-dmem", ...name.split(" "), "--json"];
    for (const [option, value] of Object.entries<string | string[] | true | undefined>(options)) {
        if (value === true)
            words.push(option);
        else if (value !== undefined)
            words.push(...[value].flat().map(one => `${option}=${one}`));
    }
    const all: readonly (string | undefined)[] = operands;
    const given = all.filter(operand => operand !== undefined);
    return { argv: given.length > 0 ? [...words, "--", ...given] : words, changes };
}

export const listPools = () => call("pool list", {}, []);
export const listDomains = () => call("list", {}, []);
export const listApplied = () => call("list", { "--applied": true }, []);
export const listAlerts = () => call("alerts", {}, []);
export const listSavings = () => call("savings", {}, []);
export const followEvents = () => call("events", {}, []);
export const showDomain = (domain: string) => call("show", { "--timing": true }, [domain]);
export const explain = (code: string) => call("explain", {}, [code]);

/** What a pool is to be made of. */
export interface PoolWish {
    name: string;
    backend: Commands["pool create"]["options"]["--backend"];
    size: string;
    pageSize: string;
    onBoot: boolean;
}

/** Create a pool; an empty size or page size is left to virt-dmem. */
export const createPool = (wish: PoolWish) => call("pool create", {
    "--backend": wish.backend,
    ...sizeOf(wish.size),
    "--page-size": wish.pageSize || undefined,
    "--on-boot": wish.onBoot || undefined,
}, [wish.name], true);

/** Tell what a resize would do; reads as root, as pools are root's. */
export const previewResize = (name: string, size: string) =>
    call("pool resize", { "--dry-run": true, ...sizeOf(size) }, [name], true);

/** Resize a pool: without a terminal nothing is asked, and the page has shown what will be done. */
export const resizePool = (name: string, size: string) =>
    call("pool resize", { "--yes": true, ...sizeOf(size) }, [name], true);

/** Judge all persistent domains: what a rewrite would change, or why none is possible. */
export const judgeDomains = () => call("apply", { "--all": true, "--dry-run": true }, []);

export const previewApply = (domain: string, pool: string) =>
    call("apply", { "--dry-run": true, "--print-diff": true, "--pool": pool }, [domain]);

export const applyDomain = (domain: string, pool: string) => call("apply", { "--pool": pool }, [domain], true);

/** Return a size as it was typed: in all, or of each node as in "0=4G 1=4G". */
function sizeOf(typed: string): { "--size"?: string; "--node"?: string[] } {
    const parts = typed.split(/[\s,]+/).filter(part => part !== "");
    if (parts.length > 0 && parts.every(part => part.includes("=")))
        return { "--node": parts };
    return { "--size": typed.trim() || undefined };
}
