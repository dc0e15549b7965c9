// SPDX-License-Identifier: GPL-2.0-or-later
// Show the domains on pools, and below one that is opened the time line of its last start.

import { useState } from "react";
import { Card, CardBody, CardTitle, ExpandableSection, Label } from "./patternfly";

import type { Domain } from "../model/answers";
import { domainRows, type DomainRow } from "../model/domains";
import { formatSize, printable } from "../model/text";
import { LastStart } from "./LastStart";

export function Domains({ held, applied }: { held: Domain[]; applied: Domain[] }) {
    const rows = domainRows(held, applied);
    return (
        <Card component="section" aria-label="Domains">
            <CardTitle component="h2">Domains</CardTitle>
            <CardBody>
                {rows.length === 0 && <p className="dmem-quiet">No domain has its memory in a pool.</p>}
                {rows.map(row => <DomainLine key={row.uuid} row={row} />)}
            </CardBody>
        </Card>
    );
}

/** Of states; a parked guest's memory is kept, and only unparking it brings it back. */
const COLOURS = new Map<string, "green" | "purple">([["running", "green"], ["parked", "purple"]]);

function DomainLine({ row }: { row: DomainRow }) {
    const [open, setOpen] = useState(false);
    return (
        <div className="dmem-domain">
            <span className="dmem-domain-name">{printable(row.name)}</span>
            <Label isCompact color={COLOURS.get(row.state) ?? "grey"}>{printable(row.state)}</Label>
            <span className="dmem-domain-memory">{memoryOf(row)}</span>
            {row.started && (
                <ExpandableSection className="dmem-domain-start" isIndented isExpanded={open}
                    toggleText="Last start" toggleAriaLabel={`Last start of ${printable(row.name)}`}
                    onToggle={(_event, expanded) => { setOpen(expanded); }}>
                    {open && <LastStart uuid={row.uuid} />}
                </ExpandableSection>
            )}
        </div>
    );
}

function memoryOf(row: DomainRow): string {
    const pools = row.pools.length > 0 ? ` of ${row.pools.map(printable).join(", ")}` : "";
    if (row.started)
        return `${formatSize(row.heldBytes)}${pools}`;
    return row.nextBytes === null ? "" : `next start: ${formatSize(row.nextBytes)}${pools}`;
}
