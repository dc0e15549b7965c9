// SPDX-License-Identifier: GPL-2.0-or-later
// Show why a command was refused: its message, what to do about it, and on request what its code means.

import { Alert } from "./patternfly";

import type { Reason } from "../model/reply";
import { printable } from "../model/text";
import { Explanation } from "./Explanation";

export function Refusal({ reason, variant = "danger" }: { reason: Reason; variant?: "danger" | "warning" }) {
    return (
        <Alert className="dmem-refusal" isInline variant={variant} title={printable(reason.message)}>
            {reason.hint !== "" && <p>{printable(reason.hint)}</p>}
            {reason.code !== "" && <Explanation code={reason.code} />}
        </Alert>
    );
}
