// SPDX-License-Identifier: GPL-2.0-or-later
// Show what the pools save: the struct pages that an ordinary host keeps, what remains of them, and the rest.

import { Card, CardBody, CardTitle } from "./patternfly";

import type { PoolSaving } from "../model/answers";
import { totalOf } from "../model/savings";
import { formatSize, printable } from "../model/text";

export function Savings({ pools }: { pools: PoolSaving[] }) {
    const total = totalOf(pools);
    const left = 100 - total.percent;
    return (
        <Card component="section" aria-label="Savings">
            <CardTitle component="h2">Savings</CardTitle>
            <CardBody>
                <p>
                    <strong className="dmem-figure">{formatSize(total.netBytes)}</strong>
                    {` of ${formatSize(total.grossBytes)} of struct pages are gone`}
                    {total.measured ? ", counted by the kernel." : "; this is an estimate."}
                </p>
                <div className="dmem-bar dmem-bar-thin" role="img" aria-label={`${String(total.percent)} % saved`}>
                    <div className="dmem-part dmem-saved" style={{ width: `${String(total.percent)}%` }} />
                    <div className="dmem-part dmem-free" style={{ width: `${String(left)}%` }} />
                </div>
                <ul className="dmem-savings">
                    {pools.map(pool => (
                        <li key={pool.pool}>
                            <span>{printable(pool.pool)}</span>
                            <span>{`${formatSize(pool.net_bytes)} saved, ${formatSize(pool.metadata_left_bytes)} left`}</span>
                            <span className="dmem-quiet">{pool.how}</span>
                        </li>
                    ))}
                </ul>
            </CardBody>
        </Card>
    );
}
