// SPDX-License-Identifier: GPL-2.0-or-later
// Add up what the pools save.

import type { PoolSaving } from "./answers";

export interface Total {
    grossBytes: number;
    leftBytes: number;
    netBytes: number;
    /** All of it was counted by the kernel. */
    measured: boolean;
    /** The saving in percent of what an ordinary host keeps. */
    percent: number;
}

export function totalOf(pools: PoolSaving[]): Total {
    const sum = (of: (pool: PoolSaving) => number) => pools.reduce((total, pool) => total + of(pool), 0);
    const grossBytes = sum(pool => pool.gross_bytes);
    const netBytes = sum(pool => pool.net_bytes);
    return {
        grossBytes,
        leftBytes: sum(pool => pool.metadata_left_bytes),
        netBytes,
        measured: pools.every(pool => pool.measured),
        percent: grossBytes > 0 ? Math.round(100 * netBytes / grossBytes) : 0,
    };
}
