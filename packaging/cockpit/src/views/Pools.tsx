// SPDX-License-Identifier: GPL-2.0-or-later
// Show the pools, each as a card with its picture.

import {
    Button, Card, CardBody, CardFooter, CardHeader, CardTitle, EmptyState, EmptyStateActions, EmptyStateBody,
    EmptyStateFooter, Gallery, Label, MemoryIcon,
} from "./patternfly";

import type { Pool } from "../model/answers";
import { barsOf } from "../model/bars";
import { formatSize, printable } from "../model/text";
import { Bars } from "./Bars";

export function Pools({ pools, onResize }: { pools: Pool[]; onResize: (pool: Pool) => void }) {
    return (
        <Gallery className="dmem-pools" hasGutter minWidths={{ default: "min(100%, 24rem)" }}>
            {pools.map(pool => <PoolCard key={pool.name} pool={pool} onResize={() => { onResize(pool); }} />)}
        </Gallery>
    );
}

function PoolCard({ pool, onResize }: { pool: Pool; onResize: () => void }) {
    const bars = barsOf(pool);
    const name = printable(pool.name);
    const short = bars.some(bar => bar.short);
    const resize = !pool.elastic && (
        <Button variant="secondary" size="sm" onClick={onResize} aria-label={`Resize ${name}`}>Resize</Button>
    );
    return (
        <Card component="section" aria-label={`Pool ${name}`}>
            <CardHeader actions={{ actions: resize, hasNoOffset: true }}>
                <CardTitle component="h2">
                    {name}
                    {pool.state !== "ready" && <Label className="dmem-label" color="orange">{printable(pool.state)}</Label>}
                    {pool.elastic && <Label className="dmem-label" color="blue">elastic</Label>}
                    {short && <Label className="dmem-label" color="red">less than reserved</Label>}
                </CardTitle>
                <p className="dmem-quiet">
                    {`${capacityOf(pool)} of ${printable(pool.backend)}, pages of ${formatSize(pool.page_size)}`}
                </p>
            </CardHeader>
            <CardBody><Bars bars={bars} /></CardBody>
            <CardFooter className="dmem-quiet"><Facts pool={pool} /></CardFooter>
        </Card>
    );
}

function capacityOf(pool: Pool): string {
    const has = formatSize(pool.capacity_bytes);
    return pool.elastic ? `${has} taken, at most ${formatSize(pool.elastic.max_bytes)}` : has;
}

function Facts({ pool }: { pool: Pool }) {
    const facts = [
        pool.elastic ? `It can take ${formatSize(pool.elastic.room_bytes)} more now, when domains start.` : "",
        pool.ready_note ? `Pre-zeroing: ${printable(pool.ready_note)}.` : "",
        pool.pinned_bytes ? `${formatSize(pool.pinned_bytes)} came back from guests and are still pinned.` : "",
        pool.on_boot === null ? "" : pool.on_boot ? "Restored at each boot." : "Not restored at the next boot.",
    ];
    return <>{facts.filter(fact => fact !== "").map(fact => <p key={fact}>{fact}</p>)}</>;
}

export function NoPools({ onCreate }: { onCreate: () => void }) {
    return (
        <EmptyState titleText="This host has no pool yet" headingLevel="h2" icon={MemoryIcon} variant="lg">
            <EmptyStateBody>
                A pool is host memory that is set aside for guests before they need it. Huge pages are easiest to
                find soon after boot.
            </EmptyStateBody>
            <EmptyStateFooter>
                <EmptyStateActions><Button variant="primary" onClick={onCreate}>Create the first pool</Button></EmptyStateActions>
            </EmptyStateFooter>
        </EmptyState>
    );
}
