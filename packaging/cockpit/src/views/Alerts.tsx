// SPDX-License-Identifier: GPL-2.0-or-later
// Show the active alerts, and what to do about each.

import { Alert } from "./patternfly";

import type { Alert as ActiveAlert } from "../model/answers";
import { printable } from "../model/text";
import { Explanation } from "./Explanation";

export function Alerts({ alerts }: { alerts: ActiveAlert[] }) {
    return alerts.map(alert => (
        <Alert key={`${alert.code} ${alert.subject}`} className="dmem-alert" isInline variant="warning"
            title={printable(alert.message)}>
            <p>{printable(alert.hint)}</p>
            <p className="dmem-quiet">since {new Date(alert.since * 1000).toLocaleString()}</p>
            <Explanation code={alert.code} />
        </Alert>
    ));
}
