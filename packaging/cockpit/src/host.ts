// SPDX-License-Identifier: GPL-2.0-or-later
// Keep what the page shows of the host: read it at the start, after each event, and from time to time.

import { useCallback, useEffect, useRef, useState } from "react";

import type { Alert, Domain, Pool, PoolSaving } from "./model/answers";
import { followEvents, listAlerts, listApplied, listDomains, listPools, listSavings, type Call } from "./model/commands";
import type { Reason, Reply } from "./model/reply";
import { follow, run } from "./run";

/** Something that is read over and over: its value, or why it could not be read; neither: it was not read yet. */
export interface Known<Value> {
    value: Value | undefined;
    reason: Reason | undefined;
}

export interface HostState {
    pools: Known<Pool[]>;
    domains: Known<Domain[]>;
    applied: Known<Domain[]>;
    alerts: Known<Alert[]>;
    savings: Known<PoolSaving[]>;
    refresh: () => void;
}

const EVERY_MS = 15_000;
/** Events come in groups: a start has several. */
const SETTLED_MS = 300;

/** Return what is known of the host; the page is drawn again when it changes. */
export function useHost(): HostState {
    const [pools, readPools] = useReading(listPools, answer => answer.pools);
    const [domains, readDomains] = useReading(listDomains, answer => answer.domains);
    const [applied, readApplied] = useReading(listApplied, answer => answer.domains);
    const [alerts, readAlerts] = useReading(listAlerts, answer => answer.alerts);
    const [savings, readSavings] = useReading(listSavings, answer => answer.pools);
    const refresh = useCallback(() => {
        for (const read of [readPools, readDomains, readApplied, readAlerts, readSavings])
            read();
    }, [readPools, readDomains, readApplied, readAlerts, readSavings]);
    useRefreshing(refresh);
    return { pools, domains, applied, alerts, savings, refresh };
}

/** Return what a command answered last, and a function that runs it again: never twice at a time. */
function useReading<Answer, Value>(
    call: () => Call<Answer>, pick: (answer: Answer) => Value,
): [Known<Value>, () => void] {
    const [known, setKnown] = useState<Known<Value>>({ value: undefined, reason: undefined });
    const state = useRef({ running: false, again: false });
    const picking = useRef(pick);
    const read = useCallback(() => {
        const now = state.current;
        now.again = now.running;
        if (now.running)
            return;
        now.running = true;
        void run(call()).then(reply => {
            setKnown(knownBy(reply, picking.current));
            now.running = false;
            if (now.again)
                read();
        });
    }, [call]);
    return [known, read];
}

function knownBy<Answer, Value>(reply: Reply<Answer>, pick: (answer: Answer) => Value): Known<Value> {
    return reply.ok ? { value: pick(reply.answer), reason: undefined } : { value: undefined, reason: reply.reason };
}

/** Return why something is not known, each reason once; without pools nothing else matters. */
export function reasonsOf(host: HostState): Reason[] {
    if (host.pools.reason)
        return [host.pools.reason];
    const found = [host.alerts, host.domains, host.applied, host.savings].flatMap(known => known.reason ?? []);
    return found.filter((reason, at) => found.findIndex(other => other.message === reason.message) === at);
}

function useRefreshing(refresh: () => void): void {
    useEffect(() => {
        let settling: number | undefined;
        const soon = () => {
            window.clearTimeout(settling);
            settling = window.setTimeout(refresh, SETTLED_MS);
        };
        const whileVisible = () => {
            if (!document.hidden)
                refresh();
        };
        const timer = window.setInterval(whileVisible, EVERY_MS);
        const permission = cockpit.permission({ admin: true });
        permission.addEventListener("changed", soon);
        document.addEventListener("visibilitychange", whileVisible);
        const stop = follow(followEvents(), soon);
        refresh();
        return () => {
            stop();
            window.clearInterval(timer);
            window.clearTimeout(settling);
            permission.removeEventListener("changed", soon);
            document.removeEventListener("visibilitychange", whileVisible);
        };
    }, [refresh]);
}
