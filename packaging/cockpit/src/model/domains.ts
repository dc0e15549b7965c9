// SPDX-License-Identifier: GPL-2.0-or-later
// Join what virt-dmemd and libvirt tell of domains.

import type { AppliedOne, Domain } from "./answers";

/** A domain that holds memory of pools, or will at its next start. */
export interface DomainRow {
    uuid: string;
    name: string;
    /** Its phase, or that it is shut off. */
    state: string;
    /** What it holds; null: not known. */
    heldBytes: number | null;
    /** What its next start takes; null: not known, as it is not asked for by its XML. */
    nextBytes: number | null;
    /** The pools that it holds memory of, or of its next start. */
    pools: string[];
    /** It has a time line. */
    started: boolean;
}

/** Return the domains that hold memory, then those that are only applied; each by name. */
export function domainRows(held: Domain[], applied: Domain[]): DomainRow[] {
    const byUuid = new Map(applied.map(domain => [domain.uuid, domain]));
    const holding = held.map(domain => row(domain, byUuid.get(domain.uuid)));
    const known = new Set(held.map(domain => domain.uuid));
    const others = applied.filter(domain => !known.has(domain.uuid)).map(domain => row(domain, domain));
    return [...holding.sort(byName), ...others.sort(byName)];
}

function row(domain: Domain, applied: Domain | undefined): DomainRow {
    const started = domain.phase !== null;
    const pools = [...new Set(domain.extents.map(extent => extent.pool))].sort();
    return {
        uuid: domain.uuid,
        name: domain.name,
        state: domain.phase ?? (domain.active ? "running on ordinary memory" : "shut off"),
        heldBytes: domain.reserved_bytes,
        nextBytes: applied?.size_bytes ?? null,
        pools: pools.length > 0 ? pools : [applied?.pool ?? ""].filter(name => name !== ""),
        started,
    };
}

function byName(one: { name: string }, other: { name: string }): number {
    return one.name < other.name ? -1 : Number(one.name > other.name);
}

/** What apply says of a domain: that it can be rewritten, that nothing is left to do, or why it is refused. */
export interface Candidate {
    name: string;
    uuid: string;
    verdict: "possible" | "done" | "refused";
    /** Why it is refused. */
    reason: AppliedOne["error"];
}

/** Return the domains that apply was asked about: first those that it can rewrite. */
export function candidatesOf(judged: AppliedOne[]): Candidate[] {
    const order = ["possible", "done", "refused"];
    return judged
            .map(one => ({ name: one.name, uuid: one.domain?.uuid ?? "", verdict: verdictOf(one), reason: one.error }))
            .sort((one, other) => order.indexOf(one.verdict) - order.indexOf(other.verdict) || byName(one, other));
}

function verdictOf(one: AppliedOne): Candidate["verdict"] {
    if (one.error)
        return "refused";
    return one.diff === "" ? "done" : "possible";
}
