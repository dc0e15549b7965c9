// SPDX-License-Identifier: GPL-2.0-or-later
// Compute the pictures of a pool: on each node what domains hold, what is pre-zeroed, and what else is free.

import type { Pool, PoolNode } from "./answers";
import { formatSize } from "./text";

export type Kind = "used" | "ready" | "free" | "untaken" | "unknown";

/** A piece of a bar. */
export interface Part {
    kind: Kind;
    bytes: number;
    /** Its share of the bar; those of all parts add up to 100. */
    percent: number;
}

/** A picture of the memory on one node. */
export interface Bar {
    title: string;
    parts: Part[];
    /** The same in words, for those who do not see it. */
    words: string;
    /** Domains reserved more than there is. */
    short: boolean;
}

/** The order from left to right, and what each kind is called. */
export const KINDS: [Kind, string][] = [
    ["used", "used"],
    ["ready", "pre-zeroed"],
    ["free", "free"],
    ["untaken", "not taken from the host"],
    ["unknown", "not known: virt-dmemd does not answer"],
];

/** Return a bar for each node of a pool; first, for an elastic one, what it has of what it may have. */
export function barsOf(pool: Pool): Bar[] {
    const nodes = pool.nodes.map(node => ({
        title: node.node < 0 ? "any node" : `node ${String(node.node)}`,
        ...barOf(node),
    }));
    if (!pool.elastic)
        return nodes;
    return [{ title: "in all", ...barOf(pool, pool.elastic.max_bytes - pool.capacity_bytes) }, ...nodes];
}

/** Return the kinds that bars contain, in their order. */
export function kindsIn(bars: Bar[]): [Kind, string][] {
    return KINDS.filter(([kind]) => bars.some(bar => bar.parts.some(part => part.kind === kind)));
}

type Sizes = Pick<PoolNode, "capacity_bytes" | "reserved_bytes" | "free_bytes" | "ready_bytes">;

function barOf(node: Sizes, untaken = 0): Omit<Bar, "title"> {
    const amounts = { ...amountsOf(node), untaken: atLeastZero(untaken) };
    const total = Object.values(amounts).reduce((sum, bytes) => sum + bytes, 0);
    const parts = KINDS
            .map(([kind]) => ({ kind, bytes: amounts[kind], percent: total > 0 ? 100 * amounts[kind] / total : 0 }))
            .filter(part => part.bytes > 0);
    const names = new Map(KINDS);
    const words = parts.map(part => `${formatSize(part.bytes)} ${names.get(part.kind) ?? ""}`).join(", ");
    const short = node.reserved_bytes !== null && node.reserved_bytes > node.capacity_bytes;
    return { parts, words: words || "empty", short };
}

function amountsOf(node: Sizes): Record<Exclude<Kind, "untaken">, number> {
    const { reserved_bytes: used, free_bytes: free } = node;
    if (used === null || free === null)
        return { used: 0, ready: 0, free: 0, unknown: atLeastZero(node.capacity_bytes) };
    const ready = Math.min(atLeastZero(node.ready_bytes ?? 0), atLeastZero(free));
    return { used: atLeastZero(used), ready, free: atLeastZero(free) - ready, unknown: 0 };
}

function atLeastZero(bytes: number): number {
    return Math.max(0, bytes);
}
