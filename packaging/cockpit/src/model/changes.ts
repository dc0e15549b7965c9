// SPDX-License-Identifier: GPL-2.0-or-later
// Say what a resize does to each segment of a pool.

import type { SegmentChange } from "./answers";
import { formatSize } from "./text";

/** Return a sentence for each segment that changes. */
export function changeSentences(changes: SegmentChange[]): string[] {
    return changes.map(({ segment, before, after }) => {
        const [was, willBe] = [total(before), total(after)];
        if (was === 0)
            return `Segment ${segment} is added, with ${formatSize(willBe)}${byNode(after)}.`;
        if (willBe === 0)
            return `Segment ${segment} of ${formatSize(was)} is removed, and its memory given back to the host.`;
        return `Segment ${segment} ${was < willBe ? "grows" : "shrinks"} from ${formatSize(was)} to `
            + `${formatSize(willBe)}${byNode(after)}.`;
    });
}

function total(byNodes: Record<string, number>): number {
    return Object.values(byNodes).reduce((sum, bytes) => sum + bytes, 0);
}

function byNode(byNodes: Record<string, number>): string {
    const nodes = Object.entries(byNodes).filter(([node, bytes]) => Number(node) >= 0 && bytes > 0);
    return nodes.length > 0 ? ` (${nodes.map(([node, bytes]) => `node ${node}: ${formatSize(bytes)}`).join(", ")})` : "";
}
